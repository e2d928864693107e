//! Features that the node's CNINode object is to name.

use std::collections::BTreeMap;

/// Features by name, with their values.
pub type Features = BTreeMap<String, String>;

/// The feature that names the node's ENIConfig.
pub const CUSTOM_NETWORKING: &str = "CustomNetworking";

/// The feature that has the controller make a trunk ENI for the node.
pub const POD_SECURITY_GROUPS: &str = "SecurityGroupsForPods";
