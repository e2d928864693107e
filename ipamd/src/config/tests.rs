//! The table and what is made of environments.

use std::collections::BTreeSet;

use super::*;

/// Every variable of the Go version's daemon, installer and entrypoint.
const OF_THE_GO_VERSION: &str = "ADDITIONAL_ENI_TAGS ANNOTATE_POD_IP AWS_EC2_ENDPOINT AWS_EXTERNAL_SERVICE_CIDRS \
    AWS_MANAGE_ENIS_NON_SCHEDULABLE AWS_VPC_CNI_NODE_PORT_SUPPORT AWS_VPC_ENI_MTU AWS_VPC_K8S_CNI_BACKING_STORE \
    AWS_VPC_K8S_CNI_CONNMARK AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS \
    AWS_VPC_K8S_CNI_EXTERNALSNAT AWS_VPC_K8S_CNI_LOGLEVEL AWS_VPC_K8S_CNI_LOG_FILE AWS_VPC_K8S_CNI_RANDOMIZESNAT \
    AWS_VPC_K8S_CNI_VETHPREFIX AWS_VPC_K8S_PLUGIN_LOG_FILE AWS_VPC_K8S_PLUGIN_LOG_LEVEL \
    AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE CLUSTER_ENDPOINT CLUSTER_NAME \
    DISABLE_INTROSPECTION DISABLE_METRICS DISABLE_LEAKED_ENI_CLEANUP DISABLE_NETWORK_RESOURCE_PROVISIONING \
    DISABLE_POD_V6 DISABLE_TCP_EARLY_DEMUX ENABLE_BANDWIDTH_PLUGIN ENABLE_IMDS_ONLY_MODE ENABLE_IPv4 ENABLE_IPv6 \
    ENABLE_MULTI_NIC ENABLE_POD_ENI ENABLE_PREFIX_DELEGATION ENABLE_SUBNET_DISCOVERY ENABLE_V4_EGRESS ENABLE_V6_EGRESS \
    ENI_CONFIG_ANNOTATION_DEF ENI_CONFIG_LABEL_DEF HOST_CNI_BIN_PATH HOST_CNI_CONFDIR_PATH HTTP_TIMEOUT \
    INTROSPECTION_BIND_ADDRESS IP_COOLDOWN_PERIOD MANAGE_UNTAGGED_ENI MAX_ENI MINIMUM_IP_TARGET WARM_IP_TARGET \
    MY_NODE_NAME MY_POD_NAME NETWORK_POLICY_ENFORCING_MODE POD_MTU POD_SECURITY_GROUP_ENFORCING_MODE VPC_CNI_VERSION \
    WARM_ENI_TARGET WARM_PREFIX_TARGET AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER ENABLE_NFTABLES";

fn parse(pairs: &[(&str, &str)]) -> Result<Config, Vec<SettingError>> {
    Config::parse(&pairs.iter().map(|(name, text)| (name.into(), text.into())).collect())
}

#[test]
fn the_list_names_every_setting_once() {
    let listed = listed();

    for setting in SETTINGS {
        let line = format!("\n  {}  [", setting.name);
        assert_eq!(listed.matches(&line).count(), 1, "{}", setting.name);
    }
}

#[test]
fn the_table_has_every_variable_once_and_says_what_it_is_for() {
    let names: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name).collect();

    assert_eq!(names.len(), SETTINGS.len());
    assert!(SETTINGS.iter().all(|setting| setting.doc.ends_with('.')));
    for name in OF_THE_GO_VERSION.split_whitespace() {
        assert!(names.contains(name), "{name}");
    }
}

#[test]
fn of_what_the_go_version_reads_only_what_has_no_effect_there_either_is_passed_over_in_silence() {
    let silent = SETTINGS.iter().filter(|setting| setting.support == Support::Elsewhere);
    let silent: Vec<_> = silent.map(|setting| setting.name).collect();

    // Labels in logs and events, and what the Go version ignores itself.
    let known = ["VPC_CNI_VERSION", "AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "ENABLE_NFTABLES"];
    assert_eq!(silent, known);
}

#[test]
fn a_name_that_is_almost_a_settings_is_warned_of_and_one_of_somebody_else_is_not() {
    for (name, meant) in [
        ("WARM_IP_TARGETS", "WARM_IP_TARGET"),
        ("MAX_ENIS", "MAX_ENI"),
        ("ENABLE_PREFIX_DELEGATE", "ENABLE_PREFIX_DELEGATION"),
        ("CLUSTERNAME", "CLUSTER_NAME"),
        ("AWS_VPC_K8S_CNI_LOGLVL", "AWS_VPC_K8S_CNI_LOGLEVEL"),
    ] {
        let warnings = parse(&[(name, "2")]).unwrap().warnings;

        assert_eq!(warnings, [format!("{name} is no setting; is {meant} meant?")]);
    }
    for name in [
        "HOME",
        "PATH",
        "HOSTNAME",
        "AWS_REGION",
        "AWS_ROLE_ARN",
        "KUBERNETES_SERVICE_HOST",
        "POD_X_SERVICE_HOST",
        "POD_X_SERVICE_PORT_HTTP",
        "POD_X_PORT",
        "POD_X_PORT_80_TCP_ADDR",
    ] {
        let warnings = parse(&[(name, "2")]).unwrap().warnings;

        assert!(!warnings.iter().any(|warning| warning.contains("is no setting")), "{warnings:?}");
    }
}

#[test]
fn a_setting_without_effect_is_warned_of_by_its_name() {
    for setting in SETTINGS.iter().filter(|setting| setting.support == Support::Ignored) {
        let other = match setting.kind {
            Kind::Flag if setting.default == "true" => "false",
            Kind::Flag => "true",
            Kind::Number(..) => "1",
            Kind::Word(_) | Kind::Text => "x",
        };
        let config = parse(&[(setting.name, other)]).unwrap();

        assert!(config.warnings[0].contains(setting.name), "{:?}", config.warnings);
    }
}

#[test]
fn what_the_installer_and_the_conflist_cannot_use_stops_the_daemon_or_is_the_default() {
    for (name, text) in [
        ("POD_MTU", "9002"),
        ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "stdout"),
        ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "plugin.log"),
        ("IPAMD_CONFLIST_VERSION", "1.1.0"),
    ] {
        assert_eq!(parse(&[(name, text)]).unwrap_err().len(), 1, "{name}={text}");
    }
    for (name, text) in [
        ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "loud"),
        ("POD_SECURITY_GROUP_ENFORCING_MODE", "lax"),
        ("ENABLE_BANDWIDTH_PLUGIN", "2"),
    ] {
        let mut config = parse(&[(name, text)]).unwrap();
        assert_eq!(std::mem::take(&mut config.warnings).len(), 1, "{name}={text}");
        assert_eq!(config, parse(&[]).unwrap(), "{name}={text}");
    }
}

#[test]
fn ipv6_needs_its_smallest_mtu_and_pods_that_have_it_switched_on() {
    for (name, text) in [("AWS_VPC_ENI_MTU", "1000"), ("POD_MTU", "1279"), ("DISABLE_POD_V6", "true")] {
        assert!(parse(&[(name, text)]).is_ok(), "{name}");
        assert_eq!(parse(&[(name, text), ("ENABLE_IPv6", "true")]).unwrap_err().len(), 1, "{name}");
    }
    assert_eq!(parse(&[("AWS_VPC_ENI_MTU", "1500")]).unwrap().pod_mtu, 1500);
    assert_eq!(parse(&[("AWS_VPC_ENI_MTU", "1500"), ("POD_MTU", "1400")]).unwrap().pod_mtu, 1400);
}

#[test]
fn writing_every_default_out_changes_nothing_but_who_sizes_the_pool() {
    let pairs: Vec<_> = SETTINGS.iter().map(|setting| (setting.name, setting.default)).collect();

    let mut written = parse(&pairs).unwrap();

    // A target that is set is meant, also when it is the default of the Go version.
    assert!(!written.automatic);
    written.automatic = true;
    assert_eq!(written, parse(&[]).unwrap());
    assert_eq!(parse(&[]).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn an_empty_environment_means_the_defaults() {
    let config = parse(&[]).unwrap();

    assert_eq!((config.warm_eni_target, config.warm_ip_target, config.minimum_ip_target), (1, None, None));
    assert_eq!((config.max_enis, config.cooldown, config.eni_mtu), (None, Duration::from_secs(30), 9001));
    assert_eq!((config.connmark, config.node_port, config.external_snat), (0x80, true, false));
    assert_eq!(
        (config.snat_ports, config.log_level, config.log_file),
        (SnatPorts::Prng, LevelFilter::DEBUG, None)
    );
    assert_eq!((config.provisioning, config.manage_untagged), (true, true));
    assert_eq!((config.http_timeout, config.add_timeout), (Duration::from_secs(10), Duration::from_secs(80)));
    assert_eq!(config.run_dir, PathBuf::from("/var/run/aws-node"));
}

#[test]
fn daemon_and_plugin_meet_without_settings() {
    assert_eq!(wire::socket_in(DEFAULT_RUN_DIR.as_ref()), PathBuf::from(wire::SOCKET_PATH));
}

#[test]
fn settings_mean_what_the_go_version_means_by_them() {
    let config = parse(&[
        ("WARM_IP_TARGET", "5"),
        ("MAX_ENI", "1000"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x100"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "hashrandom"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.1.2.3/16, fd00::/8,nonsense,192.168.0.0/24"),
        ("AWS_EXTERNAL_SERVICE_CIDRS", "169.254.171.0/24,::/0"),
        ("ADDITIONAL_ENI_TAGS", r#"{"team":"net","x.k8s.amazonaws.com/y":"z"}"#),
        ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "T"),
        ("AWS_VPC_K8S_CNI_LOG_FILE", "/var/log/x"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "WARN"),
    ])
    .unwrap();

    assert_eq!((config.warm_ip_target, config.max_enis, config.connmark), (Some(5), Some(255), 0x100));
    assert_eq!(config.snat_ports, SnatPorts::HashRandom);
    let ranges: Vec<_> = config.exclude_snat_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.1.0.0/16", "192.168.0.0/24"]);
    let services: Vec<_> = config.external_service_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(services, ["169.254.171.0/24"]);
    assert_eq!(config.eni_tags, BTreeMap::from([("team".to_owned(), "net".to_owned())]));
    assert!(!config.provisioning);
    assert_eq!((config.log_file, config.log_level), (Some("/var/log/x".into()), LevelFilter::WARN));
    assert_eq!(config.warnings.len(), 4);
}

#[test]
fn marks_are_read_in_every_base_and_are_never_none() {
    for (text, mark) in
        [("128", 128), ("0x80", 128), ("0X80", 128), ("0200", 128), ("0o200", 128), ("0b1", 1)]
    {
        assert_eq!(parse_mark(text), Some(mark), "{text}");
    }
    for bad in ["0", "-1", "0x1ffffffff", "x", "é", ""] {
        assert_eq!(parse_mark(bad), None, "{bad}");
    }
}

#[test]
fn text_that_cannot_be_is_the_default_with_a_warning() {
    for (name, text) in [
        ("WARM_ENI_TARGET", "-1"),
        ("MAX_ENI", "0"),
        ("HTTP_TIMEOUT", "9"),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "yes"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0"),
        ("ADDITIONAL_ENI_TAGS", "{"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "dice"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "loud"),
        ("ENABLE_IPv6", "yes"),
        ("ENABLE_PREFIX_DELEGATION", "on"),
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "maybe"),
        ("ENABLE_POD_ENI", "2"),
        ("DISABLE_METRICS", "no"),
    ] {
        let mut config = parse(&[(name, text)]).unwrap();

        assert_eq!(config.warnings.len(), 1, "{name}");
        config.warnings.clear();
        assert_eq!(config, parse(&[]).unwrap(), "{name}");
    }
}

#[test]
fn everything_that_stops_the_daemon_is_told_at_once() {
    let errors = parse(&[
        ("AWS_VPC_ENI_MTU", "100"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth"),
        ("IP_COOLDOWN_PERIOD", "soon"),
        ("ENABLE_IPv4", "false"),
        // Outside of a cluster.
        ("ENABLE_POD_ENI", "true"),
        ("NETWORK_POLICY_ENFORCING_MODE", "Strictly"),
    ])
    .unwrap_err();

    assert_eq!(errors.len(), 6, "{errors:?}");
}

#[test]
fn security_groups_for_pods_need_a_cluster_and_ec2() {
    let inside = [("ENABLE_POD_ENI", "true"), ("MY_NODE_NAME", "n"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")];
    let with = |more: &[(&str, &str)]| parse(&[&inside[..], more].concat());

    let config = with(&[]).unwrap();
    assert_eq!((config.pod_eni, config.enforcing), (true, Enforcing::Strict));
    let config = with(&[("POD_SECURITY_GROUP_ENFORCING_MODE", "Standard")]).unwrap();
    assert_eq!(config.enforcing, Enforcing::Standard);
    let needs = parse(&inside[..1]).unwrap_err();
    assert_eq!(needs, [SettingError::Needs { name: "ENABLE_POD_ENI", other: "MY_NODE_NAME" }]);
    let together = with(&[("ENABLE_IMDS_ONLY_MODE", "true")]).unwrap_err();
    assert_eq!(together.len(), 1, "{together:?}");
}

#[test]
fn an_enforcing_mode_that_cannot_be_stops_the_daemon_where_pods_may_have_branch_enis() {
    let slip = ("POD_SECURITY_GROUP_ENFORCING_MODE", "standrad");
    let inside =
        [("ENABLE_POD_ENI", "true"), ("MY_NODE_NAME", "n"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1"), slip];

    let errors = parse(&inside).unwrap_err();

    assert_eq!(errors.len(), 1, "{errors:?}");
    let said = errors[0].to_string();
    assert!(said.starts_with("POD_SECURITY_GROUP_ENFORCING_MODE is \"standrad\""), "{said}");
    // Nothing is bound to a branch ENI without it.
    assert_eq!(parse(&[slip]).unwrap().warnings.len(), 1);
}

#[test]
fn the_policy_mode_goes_to_the_agent_as_it_is_written() {
    let mode = |text| parse(&[("NETWORK_POLICY_ENFORCING_MODE", text)]).unwrap().policy_mode;

    assert_eq!((mode("Strict"), mode("standard")), (Some("Strict".to_owned()), Some("standard".to_owned())));
    assert_eq!((mode("None"), mode("")), (None, None));
}

#[test]
fn introspection_listens_where_the_go_version_would() {
    let at = |text| parse(&[("INTROSPECTION_BIND_ADDRESS", text)]).unwrap().introspection.unwrap();
    let address = |text: &str| IntrospectionBind::Address(text.parse().unwrap());

    assert_eq!(at(""), address("127.0.0.1:61679"));
    assert_eq!(at("[::1]:7"), address("[::1]:7"));
    assert_eq!(at("localhost:7"), address("127.0.0.1:7"));
    assert_eq!(at(":7"), IntrospectionBind::Everywhere(7));
    assert_eq!(at("unix:/run/x.sock"), IntrospectionBind::Socket("/run/x.sock".into()));
    for wrong in ["unix:x.sock", "somewhere:7", "127.0.0.1", "7"] {
        let config = parse(&[("INTROSPECTION_BIND_ADDRESS", wrong)]).unwrap();
        assert_eq!(config.introspection, Some(address("127.0.0.1:61679")), "{wrong}");
        assert_eq!(config.warnings.len(), 1, "{wrong}");
    }
    assert_eq!(parse(&[("DISABLE_INTROSPECTION", "true")]).unwrap().introspection, None);
}

#[test]
fn several_network_cards_are_used_with_every_family() {
    assert!(!parse(&[]).unwrap().multi_nic);
    let dual = [("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "true")];
    let alone = [("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "false")];
    let egress = [("ENABLE_IPv6", "false"), ("ENABLE_V6_EGRESS", "true")];
    for [one, other] in [dual, alone, egress] {
        assert!(parse(&[("ENABLE_MULTI_NIC", "true"), one, other]).unwrap().multi_nic);
    }
}

#[test]
fn text_that_is_not_utf_8_is_told_and_never_half_used() {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = || std::ffi::OsString::from_vec(b"/run/\xff".to_vec());
    let of = |name: &str| Config::parse(&[(name.into(), bytes())].into());

    let config = of("IPAMD_RUN_DIR").unwrap();
    assert_eq!((config.run_dir, config.warnings.len()), (PathBuf::from("/var/run/aws-node"), 1));
    assert_eq!(of("AWS_VPC_K8S_CNI_LOG_FILE").unwrap().log_file, None);
    assert_eq!(of("AWS_VPC_K8S_CNI_VETHPREFIX").unwrap_err().len(), 1);
}

#[test]
fn a_proxy_is_read_in_either_case_and_one_that_cannot_be_is_none() {
    let of = |pairs: &[(&str, &str)]| {
        let config = parse(pairs).unwrap();
        (config.https_proxy, config.no_proxy, config.warnings.len())
    };
    let some = |text: &str| Some(text.to_owned());

    assert_eq!(
        of(&[("HTTP_PROXY", "http://p:1")]),
        (None, None, 0),
        "nothing is asked of AWS over plain HTTP"
    );
    assert_eq!(
        of(&[("https_proxy", "p:3128"), ("no_proxy", ".lab,10.0.0.0/8")]),
        (some("http://p:3128"), some(".lab,10.0.0.0/8"), 0)
    );
    assert_eq!(of(&[("HTTPS_PROXY", "https://p"), ("https_proxy", "q")]), (some("https://p"), None, 0));
    assert_eq!(of(&[("HTTPS_PROXY", "socks5://p:1")]), (None, None, 1));
}

#[test]
fn settings_without_effect_and_names_almost_right_are_warned_of() {
    let config = parse(&[
        ("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "/x"),
        ("AWS_VPC_K8S_CNI_CONMARK", "1"),
        ("HOME", "/"),
    ])
    .unwrap();

    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(config.warnings.iter().any(|w| w.contains("is AWS_VPC_K8S_CNI_CONNMARK meant")));
}

#[test]
fn custom_networking_has_its_keys_and_no_ipv6() {
    const ON: (&str, &str) = ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true");
    let keys = |pairs: &[(&str, &str)]| {
        parse(pairs).map(|config| config.custom_networking.map(|keys| [keys.annotation, keys.label]))
    };
    let both = |annotation: &str, label: &str| Ok(Some([annotation.to_owned(), label.to_owned()]));

    assert_eq!(keys(&[("ENI_CONFIG_LABEL_DEF", "zone")]), Ok(None));
    assert_eq!(keys(&[ON]), both("k8s.amazonaws.com/eniConfig", "k8s.amazonaws.com/eniConfig"));
    let moved = [ON, ("ENI_CONFIG_LABEL_DEF", "zone"), ("ENI_CONFIG_ANNOTATION_DEF", "")];
    assert_eq!(keys(&moved), both("k8s.amazonaws.com/eniConfig", "zone"));
    let together = SettingError::Together { name: ON.0, other: "ENABLE_IPv6" };
    for more in [&[][..], &[("ENABLE_IPv4", "true")]] {
        assert_eq!(keys(&[&[ON, ("ENABLE_IPv6", "true")], more].concat()), Err(vec![together.clone()]));
    }
}

#[test]
fn both_families_are_asked_for_by_name_and_none_by_mistake_only() {
    let families = |pairs: &[(&str, &str)]| parse(pairs).map(|config| config.families);

    assert_eq!(families(&[]), Ok(Families::V4 { egress: false }));
    assert_eq!(families(&[("ENABLE_V6_EGRESS", "true")]), Ok(Families::V4 { egress: true }));
    assert_eq!(families(&[("ENABLE_IPv6", "true")]), Ok(Families::V6 { egress: true }));
    let without = [("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "false"), ("ENABLE_V4_EGRESS", "false")];
    assert_eq!(families(&without), Ok(Families::V6 { egress: false }));
    assert_eq!(families(&[("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "true")]), Ok(Families::Dual));
    assert!(families(&[("ENABLE_IPv4", "false")]).is_err());
}
