//! What EC2 holds for this node, judged by tags: whose an ENI is, where new ones may go, what is left to do. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use pool::Role;
use types::{InstanceId, Mac, Moment, NetworkCard, SecurityGroupId, SubnetId};

use crate::cloud::time;
use crate::cloud::{ConnectionTracking, EniRecord, LooseEni, SubnetRecord};
use crate::node::{Chore, Stray, Subnets};

/// Tag of every ENI that we make or use: the instance it is for.
pub(crate) const INSTANCE_TAG: &str = "node.k8s.amazonaws.com/instance_id";
const CREATED_TAG: &str = "node.k8s.amazonaws.com/createdAt";
const UNMANAGED_TAG: &str = "node.k8s.amazonaws.com/no_manage";
const CLUSTER_TAG: &str = "cluster.k8s.amazonaws.com/name";
const OWNER_TAG: (&str, &str) = ("eks:eni:owner", "amazon-vpc-cni");
/// Tag of a subnet: `0` keeps us out, anything else lets us in.
const SUBNET_TAG: &str = "kubernetes.io/role/cni";
/// Tags of a subnet that start so name the clusters that may use it.
const SUBNET_CLUSTER_TAG: &str = "cni.networking.k8s.aws/cluster/";
/// Descriptions of ENIs that we make start so.
const DESCRIPTION: &str = "aws-K8S-";

/// The rules of one node.
#[derive(Debug, Clone)]
pub(crate) struct Estate {
    /// This instance.
    pub(crate) instance: InstanceId,
    /// The primary ENI's MAC address.
    pub(crate) primary: Mac,
    /// The primary ENI's subnet.
    pub(crate) subnet: SubnetId,
    /// `CLUSTER_NAME`.
    pub(crate) cluster: Option<String>,
    /// `ADDITIONAL_ENI_TAGS`; they win over our own.
    pub(crate) more_tags: BTreeMap<String, String>,
    /// `MANAGE_UNTAGGED_ENI`.
    pub(crate) manage_untagged: bool,
    /// `ENABLE_IMDS_ONLY_MODE`: nobody will ever tell tags.
    pub(crate) imds_only: bool,
    /// `ENABLE_MULTI_NIC`.
    pub(crate) multi_nic: bool,
    /// `ENABLE_SUBNET_DISCOVERY`.
    pub(crate) subnet_discovery: bool,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`: an ENIConfig says subnet and security groups of ENIs for pods.
    pub(crate) custom_networking: bool,
}

impl Estate {
    /// The description of a new ENI.
    pub(crate) fn description(&self) -> String {
        format!("{DESCRIPTION}{}", self.instance)
    }

    /// The tags of a new ENI.
    pub(crate) fn tags_of_new(&self, now: Moment) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::from([(CREATED_TAG.to_owned(), time::written(now))]);
        tags.extend(self.tags());
        tags
    }

    /// The tags that every ENI has that pods use.
    fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::from([(INSTANCE_TAG.to_owned(), self.instance.to_string())]);
        if let Some(cluster) = &self.cluster {
            tags.insert(CLUSTER_TAG.to_owned(), cluster.clone());
            tags.insert(OWNER_TAG.0.to_owned(), OWNER_TAG.1.to_owned());
        }
        tags.extend(self.more_tags.clone());
        tags
    }

    /// What an attached ENI is for, from its place, type and tags. Without tags it may be anybody's: nothing is taken from it,
    /// least of all the ENI itself.
    pub(crate) fn role(&self, record: &EniRecord) -> Role {
        let tags = record.tags.as_ref();
        let tag = |key: &str| tags.and_then(|tags| tags.get(key)).map(String::as_str);
        let ours = tag(INSTANCE_TAG) == Some(self.instance.as_str());
        match (record.interface_type.as_str(), tag(UNMANAGED_TAG)) {
            _ if record.mac == self.primary => Role::Primary,
            ("trunk", _) => Role::Trunk,
            // Pods may be on one of ours from when the setting was on: it stays wired, and gets no more.
            _ if record.card != NetworkCard(0) && !self.multi_nic && !ours => Role::Unmanaged,
            _ if tags.is_none() && !self.imds_only => Role::Unmanaged,
            (_, Some("true")) => Role::Unmanaged,
            (_, None) if !ours && !self.manage_untagged => Role::Unmanaged,
            ("efa", _) => Role::Efa,
            _ => Role::Secondary,
        }
    }

    /// What is to be done about an attached ENI that EC2 has described; `groups` and `tracking` are the primary ENI's.
    pub(crate) fn duties(
        &self,
        record: &EniRecord,
        groups: &[SecurityGroupId],
        tracking: ConnectionTracking,
    ) -> Vec<Chore> {
        let (Some(tags), role) = (&record.tags, self.role(record)) else { return Vec::new() };
        if !role.is_for_pods() {
            return Vec::new();
        }
        let ours = tags.get(INSTANCE_TAG).map(String::as_str) == Some(self.instance.as_str());
        let mut chores = Vec::new();
        // First, because the right to the others may hang on the cluster's tag.
        let mut missing = self.tags();
        missing.retain(|key, value| tags.get(key) != Some(value));
        if !missing.is_empty() {
            chores.push(Chore::Tag { eni: record.id.clone(), tags: missing });
        }
        if let (true, Some(false), Some(attachment)) =
            (ours, record.delete_on_termination, &record.attachment)
            && role != Role::Primary
        {
            chores.push(Chore::Tie { eni: record.id.clone(), attachment: attachment.clone() });
        }
        let theirs: BTreeSet<&SecurityGroupId> = record.security_groups.iter().collect();
        let secondary = role != Role::Primary;
        if secondary && !self.custom_networking && !groups.is_empty() && theirs != groups.iter().collect() {
            chores.push(Chore::Guard { eni: record.id.clone(), groups: groups.to_vec() });
        }
        // What somebody has set on an ENI stays.
        if secondary && tracking.is_set() && !record.tracking.is_set() {
            chores.push(Chore::Track { eni: record.id.clone(), tracking });
        }
        chores
    }

    /// What is to be done about ENIs that are attached to nothing: ours go; those that other instances of our cluster may have
    /// left behind are watched. Only what was made by this program, or the one it takes the place of, is either.
    pub(crate) fn loose(&self, loose: &[LooseEni]) -> (Vec<Chore>, Vec<Stray>) {
        let (mut chores, mut strays) = (Vec::new(), Vec::new());
        for eni in loose.iter().filter(|eni| eni.description.starts_with(DESCRIPTION)) {
            let tag = |key: &str| eni.tags.get(key).map(String::as_str);
            if tag(INSTANCE_TAG) == Some(self.instance.as_str()) {
                chores.push(Chore::Delete(eni.id.clone()));
            } else if self.cluster.is_some() && tag(CLUSTER_TAG) == self.cluster.as_deref() {
                let made = tag(CREATED_TAG).and_then(time::read);
                strays.extend(made.map(|made| Stray { eni: eni.id.clone(), made }));
            }
        }
        (chores, strays)
    }

    /// Which subnets may be used, of all in the VPC and zone; `None` if they are not all there. With custom networking any may be
    /// the ENIConfig's, whatever its tags say.
    pub(crate) fn subnets(&self, found: &[SubnetRecord]) -> Option<Subnets> {
        found.iter().find(|subnet| subnet.id == self.subnet)?;
        let free = |of: &SubnetRecord| (of.id.clone(), of.available);
        if self.custom_networking {
            return Some(Subnets { free: found.iter().map(free).collect(), ..Subnets::default() });
        }
        let mut open: Vec<&SubnetRecord> = found
            .iter()
            .filter(|subnet| self.subnet_discovery || subnet.id == self.subnet)
            .filter(|subnet| match subnet.tags.get(SUBNET_TAG).map(String::as_str) {
                None | Some("") => subnet.id == self.subnet,
                Some(_) => !self.excludes(subnet),
            })
            .collect();
        open.sort_by_key(|subnet| (Reverse(subnet.available), &subnet.id));
        let excluded = found.iter().filter(|subnet| self.excludes(subnet));
        Some(Subnets {
            free: open.iter().copied().map(free).collect(),
            for_new: open.into_iter().map(|subnet| subnet.id.clone()).collect(),
            excluded: excluded.map(|subnet| subnet.id.clone()).collect(),
        })
    }

    /// Whether a subnet's tags keep us out.
    fn excludes(&self, subnet: &SubnetRecord) -> bool {
        match subnet.tags.get(SUBNET_TAG).map(String::as_str) {
            None | Some("") => false,
            Some("0") => true,
            Some(_) => self.is_of_other_clusters(subnet),
        }
    }

    /// Whether a subnet names the clusters that may use it, and not this one.
    fn is_of_other_clusters(&self, subnet: &SubnetRecord) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        let mut named = subnet.tags.keys().filter_map(|key| key.strip_prefix(SUBNET_CLUSTER_TAG)).peekable();
        named.peek().is_some() && named.all(|name| name != cluster)
    }
}

#[cfg(test)]
mod tests {
    use types::DeviceIndex;

    use super::*;
    use crate::cloud::policy::{self, Doing, denied};

    const UNSET: ConnectionTracking =
        ConnectionTracking { tcp_established: None, udp_stream: None, udp: None };
    const HOUR: ConnectionTracking = ConnectionTracking { tcp_established: Some(3600), ..UNSET };

    fn estate(cluster: Option<&str>) -> Estate {
        Estate {
            instance: "i-1".parse().unwrap(),
            primary: Mac([2, 0, 0, 0, 0, 0]),
            subnet: "subnet-1".parse().unwrap(),
            cluster: cluster.map(str::to_owned),
            more_tags: BTreeMap::new(),
            manage_untagged: true,
            imds_only: false,
            multi_nic: false,
            subnet_discovery: true,
            custom_networking: false,
        }
    }

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn eni(n: u8, with: &[(&str, &str)]) -> EniRecord {
        EniRecord {
            id: format!("eni-{n}").parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, n]),
            card: NetworkCard(0),
            device: DeviceIndex(n),
            subnet: "subnet-1".parse().unwrap(),
            primary_address: "10.0.0.4".parse().unwrap(),
            addresses: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            ipv6_prefixes: BTreeSet::new(),
            interface_type: "interface".to_owned(),
            tags: Some(tags(with)),
            attachment: Some(format!("eni-attach-{n}")),
            delete_on_termination: Some(true),
            security_groups: vec!["sg-1".parse().unwrap()],
            tracking: ConnectionTracking::default(),
        }
    }

    fn groups(of: &[&str]) -> Vec<SecurityGroupId> {
        of.iter().map(|id| id.parse().unwrap()).collect()
    }

    fn subnet(n: u32, with: &[(&str, &str)]) -> SubnetRecord {
        SubnetRecord {
            id: format!("subnet-{n}").parse().unwrap(),
            cidr: format!("10.0.{n}.0/24").parse().unwrap(),
            available: n * 10,
            tags: tags(with),
        }
    }

    #[test]
    fn tags_and_places_say_whose_an_eni_is() {
        let (open, strict) = (estate(None), Estate { manage_untagged: false, ..estate(None) });
        let ours = [(INSTANCE_TAG, "i-1")];

        assert_eq!(open.role(&eni(0, &[])), Role::Primary);
        assert_eq!(open.role(&eni(1, &[])), Role::Secondary);
        assert_eq!(strict.role(&eni(1, &[])), Role::Unmanaged);
        assert_eq!(strict.role(&eni(1, &ours)), Role::Secondary);
        assert_eq!(strict.role(&eni(1, &[(UNMANAGED_TAG, "false")])), Role::Secondary);
        assert_eq!(open.role(&eni(1, &[(UNMANAGED_TAG, "true"), ours[0]])), Role::Unmanaged);
        assert_eq!(open.role(&EniRecord { interface_type: "trunk".into(), ..eni(1, &ours) }), Role::Trunk);
        let efa = EniRecord { interface_type: "efa".into(), ..eni(1, &ours) };
        assert_eq!(open.role(&efa), Role::Efa);
        let untold = EniRecord { tags: None, ..eni(1, &[]) };
        assert_eq!((open.role(&untold), strict.role(&untold)), (Role::Unmanaged, Role::Unmanaged));
        let never_told = Estate { imds_only: true, ..open };
        assert_eq!(never_told.role(&untold), Role::Secondary);
    }

    #[test]
    fn enis_of_other_network_cards_are_used_as_the_setting_says() {
        let (off, on) = (estate(None), Estate { multi_nic: true, ..estate(None) });
        let on_card = |with: &[(&str, &str)]| EniRecord { card: NetworkCard(1), ..eni(1, with) };

        assert_eq!((off.role(&on_card(&[])), on.role(&on_card(&[]))), (Role::Unmanaged, Role::Secondary));
        // One of ours may have pods from when the setting was on.
        let ours = on_card(&[(INSTANCE_TAG, "i-1")]);
        assert_eq!((off.role(&ours), on.role(&ours)), (Role::Secondary, Role::Secondary));
        let others = on_card(&[(UNMANAGED_TAG, "true")]);
        assert_eq!((off.role(&others), on.role(&others)), (Role::Unmanaged, Role::Unmanaged));
        let untold = EniRecord { tags: None, ..on_card(&[]) };
        assert_eq!((off.role(&untold), on.role(&untold)), (Role::Unmanaged, Role::Unmanaged));
    }

    #[test]
    fn an_eni_that_is_as_it_should_be_needs_nothing() {
        let full = [(INSTANCE_TAG, "i-1"), (CLUSTER_TAG, "blue"), OWNER_TAG];
        let estate = estate(Some("blue"));

        for n in 0..2 {
            assert_eq!(estate.duties(&eni(n, &full), &groups(&["sg-1"]), UNSET), []);
        }
        let untold = EniRecord { tags: None, ..eni(1, &[]) };
        for others in [untold, eni(1, &[(UNMANAGED_TAG, "true")])] {
            assert_eq!(estate.duties(&others, &groups(&["sg-2"]), HOUR), []);
        }
        let own = EniRecord { tracking: ConnectionTracking { udp: Some(40), ..UNSET }, ..eni(1, &full) };
        assert_eq!(estate.duties(&own, &groups(&["sg-1"]), HOUR), []);
        assert_eq!(estate.duties(&eni(0, &full), &groups(&["sg-1"]), HOUR), []);
    }

    #[test]
    fn what_is_missing_is_made_up_for() {
        let estate = estate(None);
        let untied = EniRecord { delete_on_termination: Some(false), ..eni(1, &[(INSTANCE_TAG, "i-1")]) };
        let id = untied.id.clone();

        let tie = Chore::Tie { eni: id.clone(), attachment: "eni-attach-1".to_owned() };
        assert_eq!(estate.duties(&untied, &groups(&["sg-1"]), UNSET), [tie]);
        let wanted = groups(&["sg-2", "sg-3"]);
        let guard = Chore::Guard { eni: id.clone(), groups: wanted.clone() };
        let tag = Chore::Tag { eni: id.clone(), tags: tags(&[(INSTANCE_TAG, "i-1")]) };
        let track = Chore::Track { eni: id, tracking: HOUR };
        assert_eq!(estate.duties(&eni(1, &[]), &wanted, HOUR), [tag, guard, track]);
        // The primary ENI's groups are the measure, and its life is not ours to tie.
        let primary = EniRecord { delete_on_termination: Some(false), ..eni(0, &[(INSTANCE_TAG, "i-1")]) };
        assert_eq!(estate.duties(&primary, &wanted, UNSET), []);
    }

    #[test]
    fn the_policies_allow_every_duty_on_enis_that_had_no_tag_in_the_order_in_which_it_is_done() {
        let estate = estate(Some(policy::CLUSTER));
        for (policy, n) in [(policy::BASIC, 0), (policy::BASIC, 1), (policy::SCOPED, 0), (policy::SCOPED, 1)]
        {
            // One that we made before the cluster had a name is tied to the instance's life too.
            let own = EniRecord { delete_on_termination: Some(false), ..eni(n, &[(INSTANCE_TAG, "i-1")]) };
            for record in [eni(n, &[]), own] {
                let mut has = record.tags.clone().unwrap();
                let duties = estate.duties(&record, &groups(&["sg-2"]), HOUR);
                assert!(!duties.is_empty());
                for chore in duties {
                    let denied = match &chore {
                        Chore::Tag { tags, .. } => denied(policy, Doing::Tag { has: &has, gets: tags }),
                        Chore::Tie { .. } | Chore::Guard { .. } | Chore::Track { .. } => {
                            denied(policy, Doing::To("ModifyNetworkInterfaceAttribute", &has))
                        }
                        Chore::Delete(_) => denied(policy, Doing::To("DeleteNetworkInterface", &has)),
                    };
                    assert_eq!(denied, [""; 0], "{chore:?} on {has:?}");
                    if let Chore::Tag { tags, .. } = chore {
                        has.extend(tags);
                    }
                }
            }
        }
    }

    #[test]
    fn the_policies_allow_what_is_made_to_be_made_and_unmade() {
        let tags = estate(Some(policy::CLUSTER)).tags_of_new(Moment(0));

        for policy in [policy::BASIC, policy::SCOPED] {
            assert_eq!(denied(policy, Doing::Create(&tags)), [""; 0]);
            for call in ["AttachNetworkInterface", "DetachNetworkInterface", "DeleteNetworkInterface"] {
                assert_eq!(denied(policy, Doing::To(call, &tags)), [""; 0]);
            }
        }
    }

    #[test]
    fn with_custom_networking_groups_are_left_alone_and_tags_of_subnets_mean_nothing() {
        let estate = Estate { custom_networking: true, ..estate(None) };
        let ours = eni(1, &[(INSTANCE_TAG, "i-1")]);
        assert_eq!(estate.duties(&ours, &groups(&["sg-2"]), UNSET), []);

        let found = [subnet(1, &[]), subnet(2, &[(SUBNET_TAG, "0")])];
        let told = estate.subnets(&found).unwrap();
        assert_eq!((told.for_new.len(), told.excluded.len(), told.free.len()), (0, 0, 2));
        assert_eq!(estate.subnets(&found[1..]), None);
    }

    #[test]
    fn loose_enis_are_ours_or_watched_or_nobody_knows() {
        let loose = |n: u8, description: &str, with: &[(&str, &str)]| LooseEni {
            id: format!("eni-{n}").parse().unwrap(),
            description: description.to_owned(),
            tags: tags(with),
        };
        let made = (CREATED_TAG, "2000-02-29T12:34:56Z");
        let other = (INSTANCE_TAG, "i-2");
        let all = [
            loose(1, "aws-K8S-i-1", &[(INSTANCE_TAG, "i-1")]),
            loose(2, "made by hand", &[(INSTANCE_TAG, "i-1")]),
            loose(3, "aws-K8S-i-2", &[other, (CLUSTER_TAG, "blue"), made]),
            loose(4, "aws-K8S-i-2", &[other, (CLUSTER_TAG, "green"), made]),
            loose(5, "aws-K8S-i-2", &[other, (CLUSTER_TAG, "blue")]),
            loose(6, "aws-K8S-i-2", &[other, (CLUSTER_TAG, "blue"), (CREATED_TAG, "long ago")]),
        ];
        let ours = vec![Chore::Delete("eni-1".parse().unwrap())];
        let stray = Stray { eni: "eni-3".parse().unwrap(), made: Moment(951_827_696_000) };

        assert_eq!(estate(Some("blue")).loose(&all), (ours.clone(), vec![stray]));
        assert_eq!(estate(None).loose(&all), (ours, Vec::new()));
    }

    #[test]
    fn subnets_let_us_in_by_tag_and_the_emptiest_comes_first() {
        let yes = (SUBNET_TAG, "1");
        let for_blue = [yes, ("cni.networking.k8s.aws/cluster/blue", "")];
        let found = [
            subnet(1, &[]),
            subnet(2, &[yes]),
            subnet(3, &[]),
            subnet(4, &[(SUBNET_TAG, "0")]),
            subnet(5, &for_blue),
        ];
        let names =
            |of: &[u32]| of.iter().map(|n| format!("subnet-{n}").parse().unwrap()).collect::<Vec<_>>();
        let told = |estate: Estate| {
            let told = estate.subnets(&found).unwrap();
            (told.for_new, told.excluded.into_iter().collect::<Vec<_>>())
        };

        assert_eq!(told(estate(None)), (names(&[5, 2, 1]), names(&[4])));
        assert_eq!(told(estate(Some("blue"))), (names(&[5, 2, 1]), names(&[4])));
        assert_eq!(told(estate(Some("green"))), (names(&[2, 1]), names(&[4, 5])));
        let without = Estate { subnet_discovery: false, ..estate(None) };
        assert_eq!(told(without), (names(&[1]), names(&[4])));
        assert_eq!(estate(None).subnets(&found[1..]), None);
    }

    #[test]
    fn an_excluded_primary_subnet_takes_no_new_eni() {
        let found = [subnet(1, &[(SUBNET_TAG, "0")])];

        let told = estate(None).subnets(&found).unwrap();

        assert_eq!((told.for_new.len(), told.excluded.len()), (0, 1));
    }
}
