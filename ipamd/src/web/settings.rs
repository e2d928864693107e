//! The settings as the Go version's introspection shows them: its names, its order, its numbers for words.

use serde_json::{Value, json};

use crate::config::{Config, SnatPorts};

/// `/v1/networkutils-env-settings`.
pub(super) fn network(config: &Config) -> Value {
    let excluded: Vec<String> = config.exclude_snat_cidrs.iter().map(ToString::to_string).collect();
    let services: Vec<String> = config.external_service_cidrs.iter().map(ToString::to_string).collect();
    let randomize = match config.snat_ports {
        SnatPorts::None => 0,
        SnatPorts::HashRandom => 1,
        SnatPorts::Prng => 2,
    };
    json!({
        "AWS_EXTERNAL_SERVICE_CIDRS": (!services.is_empty()).then_some(services),
        "AWS_VPC_CNI_NODE_PORT_SUPPORT": config.node_port,
        "AWS_VPC_ENI_MTU": config.eni_mtu,
        "AWS_VPC_K8S_CNI_CONNMARK": config.connmark,
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": (!excluded.is_empty()).then_some(excluded),
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": config.external_snat,
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT": randomize,
        "AWS_VPC_K8S_CNI_VETHPREFIX": config.veth_prefix.as_str(),
    })
}

/// `/v1/ipamd-env-settings`.
pub(super) fn daemon(config: &Config) -> Value {
    json!({
        "AWS_MANAGE_ENIS_NON_SCHEDULABLE": config.manage_cordoned,
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": config.custom_networking.is_some(),
        "ENABLE_SUBNET_DISCOVERY": config.subnet_discovery,
        "WARM_ENI_TARGET": config.warm_eni_target,
        "WARM_IP_TARGET": config.warm_ip_target.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_no_setting_the_answers_are_the_go_versions() {
        let config = Config::parse(&Default::default()).unwrap();

        assert_eq!(
            network(&config).to_string(),
            r#"{"AWS_EXTERNAL_SERVICE_CIDRS":null,"AWS_VPC_CNI_NODE_PORT_SUPPORT":true,"AWS_VPC_ENI_MTU":9001,"AWS_VPC_K8S_CNI_CONNMARK":128,"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS":null,"AWS_VPC_K8S_CNI_EXTERNALSNAT":false,"AWS_VPC_K8S_CNI_RANDOMIZESNAT":2,"AWS_VPC_K8S_CNI_VETHPREFIX":"eni"}"#
        );
        assert_eq!(
            daemon(&config).to_string(),
            r#"{"AWS_MANAGE_ENIS_NON_SCHEDULABLE":false,"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG":false,"ENABLE_SUBNET_DISCOVERY":true,"WARM_ENI_TARGET":1,"WARM_IP_TARGET":0}"#
        );
    }
}
