//! Every setting that this version knows, in one table.

/// One setting: an environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// What its text must be.
    pub kind: Kind,
    /// The text that an unset or empty variable stands for; empty if it then stands for nothing.
    pub default: &'static str,
    /// What becomes of it.
    pub support: Support,
    /// What it means, for a reader who sets it.
    pub doc: &'static str,
}

/// What a setting's text must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `1 t T TRUE true True` or `0 f F FALSE false False`.
    Flag,
    /// A decimal number between the two, both included.
    Number(u32, u32),
    /// One of these words, in any case.
    Word(&'static [&'static str]),
    /// Anything, read by its own rule if it has one.
    Text,
}

/// What becomes of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Obeyed; text that cannot be is replaced by the default, with a warning.
    Lenient,
    /// Obeyed; text that cannot be stops the daemon.
    Strict,
    /// Changes nothing, and did not in the Go version either or not the node's network: nobody is warned.
    Elsewhere,
    /// Has no effect in this version; a warning says so if it is set to anything but its default.
    Ignored,
}

macro_rules! settings {
    ($(#[$about:meta])* $table:ident:
        $($name:ident = $text:literal: $kind:expr, $default:literal, $support:ident, $doc:literal;)*) => {
        $(pub(super) const $name: Setting =
            Setting { name: $text, kind: $kind, default: $default, support: Support::$support, doc: $doc };)*
        $(#[$about])*
        pub const $table: &[Setting] = &[$($name),*];
    };
}

use Kind::{Flag, Number, Text, Word};

settings! {
    /// The daemon's.
    SETTINGS:
    // The pool.
    WARM_ENI_TARGET = "WARM_ENI_TARGET": Number(0, u32::MAX), "1", Lenient, "ENIs kept free for pods to come. The default counts where another warm or minimum target is set; with none set, the number of free addresses follows the pods that start.";
    WARM_IP_TARGET = "WARM_IP_TARGET": Number(0, u32::MAX), "0", Lenient, "Free addresses kept for pods to come; 0: WARM_ENI_TARGET rules.";
    MINIMUM_IP_TARGET = "MINIMUM_IP_TARGET": Number(0, u32::MAX), "0", Lenient, "Addresses held at least, used or free; 0: no such floor.";
    MAX_ENI = "MAX_ENI": Number(1, u32::MAX), "", Lenient, "Most ENIs to have on each network card; unset: as many as the instance type allows.";
    MAX_PODS = "IPAMD_MAX_PODS": Number(1, 65535), "", Strict, "Pods that the kubelet admits (its maxPods): no more addresses are held than for so many. Unset: what the node object says, and as many as the instance can hold while that is not known.";
    IP_COOLDOWN_PERIOD = "IP_COOLDOWN_PERIOD": Number(0, u32::MAX), "30", Strict, "Seconds before a released address is given out again.";
    WARM_PREFIX_TARGET = "WARM_PREFIX_TARGET": Number(0, u32::MAX), "1", Lenient, "Free prefixes kept, with prefix delegation; WARM_IP_TARGET and MINIMUM_IP_TARGET go before it. The default counts where another target is set.";
    // The kernel.
    ENI_MTU = "AWS_VPC_ENI_MTU": Number(576, 9001), "9001", Strict, "MTU of ENIs, in bytes. At least 1280 with IPv6.";
    POD_MTU = "POD_MTU": Number(576, 9001), "", Strict, "MTU inside pods, in bytes; unset: AWS_VPC_ENI_MTU. At least 1280 with IPv6.";
    VETH_PREFIX = "AWS_VPC_K8S_CNI_VETHPREFIX": Text, "eni", Strict, "What host interface names of pods start with.";
    EXTERNAL_SNAT = "AWS_VPC_K8S_CNI_EXTERNALSNAT": Flag, "false", Lenient, "A gateway translates addresses, the node does not.";
    RANDOMIZE_SNAT = "AWS_VPC_K8S_CNI_RANDOMIZESNAT": Word(&["prng", "hashrandom", "none"]), "prng", Lenient, "How source ports are picked when addresses are translated.";
    EXCLUDE_SNAT_CIDRS = "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": Text, "", Lenient, "IPv4 ranges, with commas between, reached without translation.";
    CONNMARK = "AWS_VPC_K8S_CNI_CONNMARK": Text, "0x80", Lenient, "The bit marking connections that came in through the primary ENI; 1 to 4294967295.";
    NODE_PORT = "AWS_VPC_CNI_NODE_PORT_SUPPORT": Flag, "true", Lenient, "Answers to node ports leave through the primary ENI.";
    EXTERNAL_SERVICE_CIDRS = "AWS_EXTERNAL_SERVICE_CIDRS": Text, "", Lenient, "IPv4 ranges, with commas between, that the main table routes for pods of every ENI; which source address they see is not changed by it.";
    // The cloud.
    CLUSTER_NAME = "CLUSTER_NAME": Text, "", Lenient, "The cluster's name, written into tags of ENIs.";
    ADDITIONAL_ENI_TAGS = "ADDITIONAL_ENI_TAGS": Text, "{}", Lenient, "More tags for ENIs: a JSON object of texts.";
    MANAGE_UNTAGGED_ENI = "MANAGE_UNTAGGED_ENI": Flag, "true", Lenient, "ENIs without our tag are used like our own.";
    DISABLE_PROVISIONING = "DISABLE_NETWORK_RESOURCE_PROVISIONING": Flag, "false", Lenient, "Nothing is changed in EC2; the pool is what is there.";
    SUBNET_DISCOVERY = "ENABLE_SUBNET_DISCOVERY": Flag, "true", Lenient, "ENIs go into any subnet of the zone that is tagged kubernetes.io/role/cni, the one with most free addresses first.";
    LEAKED_CLEANUP = "DISABLE_LEAKED_ENI_CLEANUP": Flag, "false", Lenient, "ENIs that other instances of the cluster left behind are not looked for.";
    IMDS_ONLY = "ENABLE_IMDS_ONLY_MODE": Flag, "false", Lenient, "EC2 is never asked: ENIs and addresses are those that instance metadata tells.";
    NON_SCHEDULABLE = "AWS_MANAGE_ENIS_NON_SCHEDULABLE": Flag, "false", Lenient, "The pool follows its targets on a cordoned node too. Otherwise nothing is given back there, and only what pods wait for is asked for.";
    EC2_ENDPOINT = "AWS_EC2_ENDPOINT": Text, "", Strict, "URL used for EC2 in place of the region's.";
    IMDS_ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT": Text, "", Strict, "URL used for the metadata service in place of 169.254.169.254.";
    HTTP_TIMEOUT = "HTTP_TIMEOUT": Number(10, 3600), "10", Lenient, "Seconds one HTTP request to AWS may take.";
    HTTPS_PROXY = "HTTPS_PROXY": Text, "", Lenient, "A proxy (http:// or https://) for what is asked of AWS over HTTPS. Instance metadata, the credentials of pods and the API server are asked without it.";
    HTTPS_PROXY_LOWER = "https_proxy": Text, "", Lenient, "HTTPS_PROXY, where that is not set.";
    NO_PROXY = "NO_PROXY": Text, "", Lenient, "Hosts, domains and ranges, between commas, that are asked without HTTPS_PROXY.";
    NO_PROXY_LOWER = "no_proxy": Text, "", Lenient, "NO_PROXY, where that is not set.";
    // The daemon.
    HOLD_FILE = "IPAMD_HOLD_FILE": Text, "/etc/ipamd/hold", Lenient, "A file that holds back releases or all changes in EC2, beside the one that ipamd hold writes.";
    RUN_DIR = "IPAMD_RUN_DIR": Text, "/var/run/aws-node", Lenient, "Directory of the socket and of the state.";
    ADD_TIMEOUT = "IPAMD_ADD_TIMEOUT_SECONDS": Number(1, 600), "80", Strict, "Seconds an ADD may wait for an address.";
    LOG_LEVEL = "AWS_VPC_K8S_CNI_LOGLEVEL": Word(&["debug", "info", "warn", "error", "fatal"]), "debug", Lenient, "The least important level that is logged.";
    LOG_FILE = "AWS_VPC_K8S_CNI_LOG_FILE": Text, "stderr", Lenient, "A file for the log, or stdout or stderr, which both mean stderr. At 100 MiB the file becomes NAME.1, and a new one begins.";
    BACKING_STORE = "AWS_VPC_K8S_CNI_BACKING_STORE": Text, "", Lenient, "The Go version's checkpoint, which is taken over and kept for it; unset: ipam.json in IPAMD_RUN_DIR.";
    DISABLE_INTROSPECTION = "DISABLE_INTROSPECTION": Flag, "false", Lenient, "No introspection over HTTP.";
    INTROSPECTION_BIND = "INTROSPECTION_BIND_ADDRESS": Text, "127.0.0.1:61679", Lenient, "Where introspection listens: address and port, or unix: and a path.";
    DISABLE_METRICS = "DISABLE_METRICS": Flag, "false", Lenient, "No metrics over HTTP.";
    METRICS_BIND = "IPAMD_METRICS_BIND_ADDRESS": Text, "", Strict, "Address and port of the metrics; unset: port 61678 of all addresses.";
    ANNOTATE_POD_IP = "ANNOTATE_POD_IP": Flag, "false", Lenient, "Pods get the annotation vpc.amazonaws.com/pod-ips with their address, some time after they have it; it is empty once they have not. The daemon's role needs the right to patch pods.";
    CLUSTER_ENDPOINT = "CLUSTER_ENDPOINT": Text, "", Strict, "URL of the API server, in place of the one that Kubernetes tells every pod.";
    SERVICE_HOST = "KUBERNETES_SERVICE_HOST": Text, "", Lenient, "Set by Kubernetes in every pod; without it and IPAMD_KUBECONFIG the API server is not asked.";
    KUBECONFIG = "IPAMD_KUBECONFIG": Text, "", Lenient, "A kubeconfig file, in place of the pod's service account.";
    NODE_NAME = "MY_NODE_NAME": Text, "", Lenient, "The node's name in Kubernetes.";
    POD_NAME = "MY_POD_NAME": Text, "", Lenient, "The daemon's own pod, for events about the daemon.";
    POD_UID = "IPAMD_POD_UID": Text, "", Lenient, "Its UID, so that kubectl describe shows them.";
    VERSION = "VPC_CNI_VERSION": Text, "", Elsewhere, "Version in user agents; ours is the program's own.";
    CONFIGURE_RPFILTER = "AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER": Text, "", Elsewhere, "Means nothing any more.";
    ENABLE_NFTABLES = "ENABLE_NFTABLES": Text, "", Elsewhere, "Means nothing any more.";
    // Modes.
    ENABLE_IPV4 = "ENABLE_IPv4": Flag, "true", Lenient, "Pods get IPv4 addresses of the VPC. Where it is not set, they do unless ENABLE_IPv6 is.";
    ENABLE_IPV6 = "ENABLE_IPv6": Flag, "false", Lenient, "Pods get IPv6 addresses of the VPC; together with ENABLE_IPv4=true, both.";
    V6_EGRESS = "ENABLE_V6_EGRESS": Flag, "false", Lenient, "IPv4 pods reach IPv6, by the node's address; nobody outside reaches them by it.";
    V4_EGRESS = "ENABLE_V4_EGRESS": Flag, "true", Lenient, "IPv6 pods reach IPv4, by the node's address.";
    PREFIX_DELEGATION = "ENABLE_PREFIX_DELEGATION": Flag, "false", Lenient, "ENIs are given /28 prefixes instead of single addresses, where the instance type can hold them and the subnet has them.";
    POD_ENI = "ENABLE_POD_ENI": Flag, "false", Lenient, "Security groups for pods: a pod with the limit vpc.amazonaws.com/pod-eni gets the branch ENI that its annotation of the same name tells. Needs MY_NODE_NAME and a cluster; not together with ENABLE_IMDS_ONLY_MODE.";
    MULTI_NIC = "ENABLE_MULTI_NIC": Flag, "false", Lenient, "ENIs of all network cards are used, each with one free address kept on cards above 0; a pod whose annotation k8s.amazonaws.com/nicConfig is multi-nic-attachment gets an interface of each.";
    CUSTOM_NETWORK = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": Flag, "false", Lenient, "Custom networking: the node's ENIConfig object says subnet and security groups of new ENIs, and pods get no address of the primary ENI. Not with IPv6.";
    ENI_CONFIG_ANNOTATION = "ENI_CONFIG_ANNOTATION_DEF": Text, "k8s.amazonaws.com/eniConfig", Lenient, "Annotation of the node object that names its ENIConfig, with custom networking; goes before the label.";
    ENI_CONFIG_LABEL = "ENI_CONFIG_LABEL_DEF": Text, "k8s.amazonaws.com/eniConfig", Lenient, "Label of the node object that names its ENIConfig, with custom networking. Without either, the one named default is it.";
    POD_SG_MODE = "POD_SECURITY_GROUP_ENFORCING_MODE": Word(&["strict", "standard"]), "strict", Lenient, "How security groups for pods are enforced: strict, all of a pod's traffic goes by its branch ENI, also to its own node, and is not translated; standard, it goes as other pods' does where it stays on the node or leaves the VPC. With ENABLE_POD_ENI a value that it cannot have stops the daemon.";
    POLICY_MODE = "NETWORK_POLICY_ENFORCING_MODE": Word(&["none", "standard", "strict"]), "", Strict, "Whether the network policy agent is asked to enforce policies before a pod starts: none or unset, standard or strict.";
    // The plugin and its conflist, which the daemon writes once an ADD would succeed; and the installer.
    BIN_PATH = "HOST_CNI_BIN_PATH": Text, "/host/opt/cni/bin", Lenient, "Where plugins are installed, and where the daemon sees which others are there.";
    CONF_PATH = "HOST_CNI_CONFDIR_PATH": Text, "/host/etc/cni/net.d", Lenient, "Where the daemon writes the conflist.";
    CONFLIST_VERSION = "IPAMD_CONFLIST_VERSION": Word(&["1.0.0", "0.4.0"]), "1.0.0", Strict, "CNI version of the conflist.";
    PLUGIN_LOG_FILE = "AWS_VPC_K8S_PLUGIN_LOG_FILE": Text, "/var/log/aws-routed-eni/plugin.log", Strict, "The plugin's log: a path on the node, or stderr, which means none. Its standard output is the runtime's.";
    PLUGIN_LOG_LEVEL = "AWS_VPC_K8S_PLUGIN_LOG_LEVEL": Word(&["debug", "info", "warn", "error", "fatal"]), "info", Lenient, "Which calls the plugin logs: all, or from warn on those that failed.";
    BANDWIDTH = "ENABLE_BANDWIDTH_PLUGIN": Flag, "false", Lenient, "The bandwidth plugin is chained.";
    DISABLE_POD_V6 = "DISABLE_POD_V6": Flag, "false", Lenient, "Pods have IPv6 switched off, by the tuning plugin; not together with ENABLE_IPv6 or ENABLE_V6_EGRESS.";
    EARLY_DEMUX = "DISABLE_TCP_EARLY_DEMUX": Flag, "false", Lenient, "The kernel's early demultiplexing of TCP is switched off; the installer does it.";
    EGRESS_V4_LOG = "AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE": Text, "", Ignored, "Log of an egress plugin that is not needed here.";
    EGRESS_V6_LOG = "AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE": Text, "", Ignored, "Log of an egress plugin that is not needed here.";
}

/// Yes or no, as the Go version's helper reads it.
const YES_OR_NO: Kind = Word(&["yes", "true", "no", "false"]);

settings! {
    /// Those of `ipamd metrics-helper`, beside the daemon's for the API server, the cloud and the log.
    HELPER_SETTINGS:
    USE_CLOUDWATCH = "USE_CLOUDWATCH": YES_OR_NO, "", Strict, "Whether sums go to CloudWatch; goes before --cloudwatch. Without it and USE_PROMETHEUS there would be nothing to do.";
    USE_PROMETHEUS = "USE_PROMETHEUS": YES_OR_NO, "", Strict, "Whether sums are served at port 61681 (or IPAMD_METRICS_BIND_ADDRESS), path /metrics; goes before --prometheus.";
    METRIC_UPDATE_INTERVAL = "METRIC_UPDATE_INTERVAL": Number(1, 3600), "30", Strict, "Seconds between two rounds over all nodes. CloudWatch is told after every second one.";
    AWS_REGION = "AWS_REGION": Text, "", Strict, "Region of CloudWatch; unset: the instance's. Pods that cannot reach instance metadata need it.";
    AWS_CLUSTER_ID = "AWS_CLUSTER_ID": Text, "", Strict, "Value of the dimension CLUSTER_ID, at most 255 printable characters of ASCII; unset: the instance's tag eks:cluster-name, CLUSTER_ID or Name, the first that it has, or k8s-cluster.";
    CLOUDWATCH_ENDPOINT = "AWS_ENDPOINT_URL_CLOUDWATCH": Text, "", Strict, "URL used for CloudWatch in place of the region's.";
}
