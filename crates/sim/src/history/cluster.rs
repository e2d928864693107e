//! The API server around one node: its object, its pods and, with custom networking, the ENIConfigs, which change, go wrong and
//! come back; and, beside it, what a daemon that was told so may do.

use std::collections::{BTreeMap, BTreeSet};

use node::cluster::{
    BranchWish, EniConfig, EniConfigName, EniConfigNews, NameKeys, News, NodeObject, PodNews, PodObject,
};
use types::{PodName, SecurityGroupId, SubnetId};

use super::met::{Manner, Met};

/// Label of the node object that names its ENIConfig.
const LABEL: &str = "zone";
/// The ENIConfig of nodes that name none.
const DEFAULT: &str = "default";
/// The CPU that each pod asks for, and what so many ask for is all that the node has, in thousandths. The scheduler of this cluster
/// is not so strict: pods that are more come all the same.
const CPU: u64 = 1000;
const FITS: u64 = 8;

/// Something that happens to the node's ENIConfig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It names the subnet with this number.
    Subnet(u8),
    /// It names a subnet that does not exist.
    NoSubnet,
    /// It names a security group that does not exist.
    NoGroup,
    /// It cannot be read.
    Unreadable,
    /// It is deleted.
    Deleted,
    /// The node object names another one; some of those exist.
    Renamed(u8),
    /// New pods are kept away from the node, or no longer.
    Cordoned(bool),
    /// The node object is deleted.
    NoNode,
    /// The API server goes away.
    Away,
    /// It is back.
    Back,
}

/// All but those with numbers; the one that has to meet a new ENI twice.
pub(crate) const TURNS: &[Turn] =
    &[Turn::NoSubnet, Turn::NoGroup, Turn::Unreadable, Turn::Deleted, Turn::NoNode, Turn::Away, Turn::Back];

/// Those that happen without custom networking too.
pub(crate) const TURNS_OF_THE_NODE: &[Turn] =
    &[Turn::Cordoned(true), Turn::Cordoned(false), Turn::NoNode, Turn::Away, Turn::Back];

/// What the API server has.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Which the node object names, if there is one.
    named: String,
    has_node: bool,
    cordoned: bool,
    objects: BTreeMap<String, EniConfigNews>,
    away: bool,
    home: EniConfig,
    /// The pods that are bound to the node, where it tells them.
    pods: Option<BTreeSet<PodName>>,
}

impl Cluster {
    /// All is well: the ENIConfig of nodes that name none says this subnet. No pod is bound to the node; it tells pods, or does not.
    pub(crate) fn new(subnet: SubnetId, tells_pods: bool) -> Self {
        let home = EniConfig { subnet, groups: Vec::new() };
        let objects = BTreeMap::from([(DEFAULT.to_owned(), EniConfigNews::Is(home.clone()))]);
        let pods = tells_pods.then(BTreeSet::new);
        Self { named: DEFAULT.to_owned(), has_node: true, cordoned: false, objects, away: false, home, pods }
    }

    /// A pod is bound to the node, or deleted; what that tells.
    pub(crate) fn pod(&mut self, name: PodName, bound: bool) -> Option<News> {
        let pods = self.pods.as_mut()?;
        let changes = if bound { pods.insert(name.clone()) } else { pods.remove(&name) };
        let news = if bound { PodNews::Is(object(name)) } else { PodNews::Gone(name) };
        (changes && !self.away).then_some(News::Pods(news))
    }

    /// All is well again; whether it was not.
    pub(crate) fn restore(&mut self, met: &mut Met) -> bool {
        let well = Self { pods: self.pods.clone(), ..Self::new(self.home.subnet.clone(), false) };
        let before = std::mem::replace(self, well);
        let well = before.objects.get(&before.named) == self.objects.get(DEFAULT);
        let config_off = before.away || !before.has_node || before.named != DEFAULT || !well;
        if config_off {
            met.note(Manner::ConfigRestored);
        }
        config_off || before.cordoned
    }

    /// Something happens.
    pub(crate) fn take(&mut self, turn: Turn, subnets: &[SubnetId], met: &mut Met) {
        let manner = match turn {
            Turn::Subnet(number) => {
                let Some(subnet) = subnets.get(usize::from(number)) else { return };
                let says = EniConfigNews::Is(EniConfig { subnet: subnet.clone(), groups: Vec::new() });
                let before = self.objects.insert(self.named.clone(), says.clone());
                (before != Some(says)).then_some(Manner::ConfigElsewhere)
            }
            Turn::NoSubnet => self
                .say(no_such_subnet().map(|subnet| EniConfig { subnet, groups: Vec::new() }))
                .then_some(Manner::ConfigWithoutSubnet),
            Turn::NoGroup => {
                let subnet = self.home.subnet.clone();
                let group = no_such_group();
                self.say(group.map(|group| EniConfig { subnet, groups: vec![group] }))
                    .then_some(Manner::ConfigWithoutGroup)
            }
            Turn::Unreadable => {
                let wrong = EniConfigNews::Wrong("spec.subnet is a number".to_owned());
                self.objects.insert(self.named.clone(), wrong);
                Some(Manner::ConfigUnreadable)
            }
            Turn::Deleted => self.objects.remove(&self.named).map(|_| Manner::ConfigAbsent),
            Turn::Renamed(number) => {
                self.named = if number == 0 { DEFAULT.to_owned() } else { format!("zone-{number}") };
                Some(Manner::ConfigRenamed)
            }
            Turn::Cordoned(cordoned) => {
                self.cordoned = cordoned;
                cordoned.then_some(Manner::Cordoned)
            }
            Turn::NoNode => std::mem::take(&mut self.has_node).then_some(Manner::NodeObjectGone),
            Turn::Away => (!std::mem::replace(&mut self.away, true)).then_some(Manner::ClusterAway),
            Turn::Back => {
                self.away = false;
                self.has_node = true;
                None
            }
        };
        manner.into_iter().for_each(|manner| met.note(manner));
    }

    fn say(&mut self, config: Option<EniConfig>) -> bool {
        let Some(config) = config else { return false };
        self.objects.insert(self.named.clone(), EniConfigNews::Is(config));
        true
    }

    /// What it tells now, in order.
    pub(crate) fn news(&self) -> Vec<News> {
        let config = |says| News::EniConfig(self.named.clone(), says);
        if self.away {
            let why = "connection refused".to_owned();
            let pods = self.pods.as_ref().map(|_| News::Pods(PodNews::Trouble(why.clone())));
            let rest = [News::Trouble(why.clone()), config(EniConfigNews::Trouble(why))];
            return pods.into_iter().chain(rest).collect();
        }
        let all = |pods: &BTreeSet<PodName>| PodNews::All(pods.iter().cloned().map(object).collect());
        let pods = self.pods.as_ref().map(|pods| News::Pods(all(pods)));
        let says = self.objects.get(&self.named).cloned().unwrap_or(EniConfigNews::Absent);
        if !self.has_node {
            // Who watches the ENIConfig goes on with that.
            return [News::NoNode, config(says)].into_iter().chain(pods).collect();
        }
        let node = News::Node(Box::new(self.node()));
        [node, config(says)].into_iter().chain(pods).collect()
    }

    fn node(&self) -> NodeObject {
        let keys = NameKeys { annotation: String::new(), label: LABEL.to_owned() };
        let named = (self.named != DEFAULT).then(|| (LABEL.to_owned(), self.named.clone()));
        let named = EniConfigName::of(&named.into_iter().collect(), &BTreeMap::new(), &keys);
        let cpu = self.pods.as_ref().map(|_| FITS * CPU);
        NodeObject { eni_config: Some(named), unschedulable: self.cordoned, cpu, ..NodeObject::default() }
    }
}

/// A pod as its object says.
const fn object(name: PodName) -> PodObject {
    PodObject { name, uid: String::new(), branch: BranchWish::No, cpu: CPU, gets_address: true }
}

fn no_such_subnet() -> Option<SubnetId> {
    "subnet-0ffffffffffffffff".parse().ok()
}

/// A security group that EC2 does not know.
pub(crate) fn no_such_group() -> Option<SecurityGroupId> {
    "sg-0ffffffffffffffff".parse().ok()
}

/// What one daemon has been told in its life: of its ENIConfig, whether the node is to be left alone, and of its pods.
#[derive(Debug, Default)]
pub(crate) struct Told {
    name: Option<String>,
    config: Option<EniConfig>,
    left_alone: bool,
    cpu: Option<u64>,
    /// Once all were told.
    pods: Option<BTreeSet<PodName>>,
}

impl Told {
    /// The daemon hears this.
    pub(crate) fn hear(&mut self, news: &News) {
        match news {
            News::Node(object) => {
                (self.left_alone, self.cpu) = (object.unschedulable, object.cpu);
                let name = object.eni_config.as_ref().map(|named| named.name.clone());
                if name.is_some() && name != self.name {
                    (self.name, self.config) = (name, None);
                }
            }
            News::EniConfig(of, says) if self.name.as_ref() == Some(of) => match says {
                EniConfigNews::Is(config) => self.config = Some(config.clone()),
                EniConfigNews::Absent => self.config = None,
                // What it said before stays true.
                EniConfigNews::Wrong(_) | EniConfigNews::Trouble(_) => {}
            },
            News::Pods(PodNews::All(objects)) => {
                self.pods = Some(objects.iter().map(|object| object.name.clone()).collect());
            }
            News::Pods(PodNews::Is(object)) => {
                if let Some(pods) = &mut self.pods {
                    pods.insert(object.name.clone());
                }
            }
            News::Pods(PodNews::Gone(name)) => {
                if let Some(pods) = &mut self.pods {
                    pods.remove(name);
                }
            }
            News::NoNode => self.cpu = None,
            News::EniConfig(..) | News::Trouble(_) | News::Pods(PodNews::Trouble(_)) => {}
        }
    }

    /// The pods of a node that no further one fits, as far as that is known.
    pub(crate) fn full(&self) -> Option<&BTreeSet<PodName>> {
        let asked = |pods: &&BTreeSet<PodName>| CPU * u64::try_from(pods.len()).unwrap_or(u64::MAX);
        self.pods.as_ref().filter(|pods| self.cpu.is_some_and(|cpu| asked(pods) >= cpu))
    }

    /// Whether nothing may be given back: the node is cordoned.
    pub(crate) const fn is_left_alone(&self) -> bool {
        self.left_alone
    }

    /// Whether an ENI may be made like this.
    pub(crate) fn allows(&self, subnet: &SubnetId, groups: &[SecurityGroupId]) -> bool {
        self.config.as_ref().is_some_and(|config| config.subnet == *subnet && config.groups == groups)
    }
}
