//! The table as data: what a [`NatSpec`] asks of the kernel, before it is text or bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::constants::{NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING};
use super::intervals::{Interval, most_specific, widest};
use super::{NatSpec, SnatPorts, TABLE};
use crate::model::Family;

/// Name of the set of destinations that keep the pod's address.
pub(super) const NO_SNAT: &str = "no_snat";
/// Name of the map from a pod's address to the chain that sets its ENI's mark: a hash, as cheap with a thousand pods as with one.
pub(super) const ENI_OF: &str = "eni_of";
/// Name of the same map for ranges of addresses, among which the kernel has to search.
pub(super) const ENI_OF_RANGE: &str = "eni_of_range";

/// The family whose table has sets and maps.
pub(super) const WITH_SETS: Family = Family::V4;
/// They, in the order in which they are made.
pub(super) const SETS: [Set; 3] = [
    Set { name: NO_SNAT, is_of_ranges: true, leads_to_chains: false, elements_max: None },
    Set { name: ENI_OF, is_of_ranges: false, leads_to_chains: true, elements_max: Some(SINGLES_MAX) },
    Set { name: ENI_OF_RANGE, is_of_ranges: true, leads_to_chains: true, elements_max: None },
];

/// Most elements of [`ENI_OF`]: with a bound the kernel takes a hash of fixed size, the fastest it has. Far more than any instance holds.
pub(super) const SINGLES_MAX: u32 = 16_384;

/// A set of IPv4 addresses, or a map from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: &'static str,
    /// Its elements are ranges, not single addresses.
    pub(super) is_of_ranges: bool,
    /// It is a map to chains.
    pub(super) leads_to_chains: bool,
    /// With a bound the kernel chooses another kind of set.
    pub(super) elements_max: Option<u32>,
}

/// Our table with all it holds. Prints as text for `nft -f`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub(super) family: Family,
    pub(super) no_snat: BTreeSet<Interval>,
    pub(super) steering: BTreeMap<Interval, u32>,
    pub(super) steering_mask: u32,
    pub(super) chains: Vec<Chain>,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Where packets enter it; `None` when only other chains jump to it.
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Vec<Term>>,
}

/// Where in the kernel packets enter a chain. The kernel calls all chains of kind NAT at one place (-100 in prerouting, 100 in
/// postrouting); their own priorities are only their order there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Destination NAT, before everybody's at -100: seen by the first packet of a connection only, so it costs the others nothing.
    BeforeDnat,
    /// Filter, after kube-proxy's DNAT and still before the routing decision.
    AfterDnat,
    /// Source NAT, after everybody's at 100: who has translated a connection already keeps it.
    SourceNat,
}

/// One condition or action of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Term {
    /// The packet came by this link.
    From(Link),
    /// The packet came by another link.
    NotFrom(Link),
    /// The packet leaves by another link.
    NotTo(Link),
    /// The packet is the first of its connection.
    NewConnection,
    /// The destination is not in the set [`NO_SNAT`].
    DestinationOutsideNoSnat,
    /// The source is in this range.
    SourceIn(IpNetwork),
    /// The destination is in this range.
    DestinationIn(IpNetwork),
    /// The destination is an address of the link by which the packet came.
    DestinationOfArrivalLink,
    /// The destination is no address of this host.
    DestinationNotLocal,
    /// The connection has all of these bits.
    ConnectionHas(u32),
    /// Changes the connection's mark.
    MarkConnection(Bits),
    /// Changes the packet's mark.
    MarkPacket(Bits),
    /// Jumps to the chain that this map has for the source.
    JumpBySource(&'static str),
    /// Leaves the chain.
    Return,
    /// Drops the packet.
    Drop,
    /// Translates the source.
    Snat {
        /// To this address.
        to: IpAddr,
        /// With ports chosen like this.
        ports: SnatPorts,
    },
}

/// A link by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// This one.
    Named(String),
    /// All whose names begin like this.
    Prefixed(String),
}

/// A change of a mark: what is kept of it, then what is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bits {
    pub(super) keep: u32,
    pub(super) set: u32,
}

/// The table for a node. Pure.
#[must_use]
pub fn ruleset(spec: &NatSpec) -> Ruleset {
    let mut chains = Vec::new();
    chains.extend(spec.node_port.then(|| node_port(spec)));
    chains.extend(spec.local.map(IpNetwork::V4).map(to_local));
    let mut steering = most_specific(&spec.sources);
    steering.values_mut().for_each(|mark| *mark &= spec.steering_mask);
    chains.push(from_pods(spec, &steering));
    chains.extend(spec.snat.map(|ports| source_nat(spec, ports)));
    Ruleset {
        no_snat: widest(&spec.no_snat),
        steering,
        steering_mask: spec.steering_mask,
        ..Ruleset::without_sets(WITH_SETS, chains)
    }
}

/// A connection that arrives by the primary ENI for one of that ENI's addresses may end at a pod of another ENI:
/// its replies must leave by the primary ENI too. Seen before DNAT changes the destination.
fn node_port(spec: &NatSpec) -> Chain {
    let rule = vec![
        Term::From(Link::Named(spec.primary_if.clone())),
        Term::DestinationOfArrivalLink,
        Term::MarkConnection(Bits::added(spec.connmark)),
    ];
    Chain { name: "node_port".to_owned(), hook: Some(Hook::BeforeDnat), rules: vec![rule] }
}

/// Nobody but its pod begins a connection with an address that means something on this node only.
pub(super) fn to_local(range: IpNetwork) -> Chain {
    let rule = vec![Term::DestinationIn(range), Term::NewConnection, Term::Drop];
    Chain { name: "to_local".to_owned(), hook: Some(Hook::AfterDnat), rules: vec![rule] }
}

fn from_pods(spec: &NatSpec, steering: &BTreeMap<Interval, u32>) -> Chain {
    let prefixes = spec.pod_if_prefixes.iter().map(|prefix| Link::Prefixed(prefix.clone()));
    let not_a_pod = prefixes.map(Term::NotFrom).chain([Term::Return]).collect();
    // What is in neither map costs no lookup in it.
    let has = |single| steering.keys().any(|interval| interval.is_single() == single);
    let maps = [(ENI_OF, true), (ENI_OF_RANGE, false)].into_iter().filter(|(_, single)| has(*single));
    let leaving = vec![
        Term::NewConnection,
        Term::DestinationOutsideNoSnat,
        Term::DestinationNotLocal,
        Term::MarkConnection(Bits::added(spec.connmark)),
    ];
    let by_primary = vec![Term::ConnectionHas(spec.connmark), Term::MarkPacket(Bits::added(spec.connmark))];
    let mut rules = vec![not_a_pod];
    rules.extend(maps.map(|(map, _)| vec![Term::JumpBySource(map)]));
    rules.extend(spec.snat.map(|_| leaving));
    rules.extend((spec.snat.is_some() || spec.node_port).then_some(by_primary));
    Chain { name: "from_pods".to_owned(), hook: Some(Hook::AfterDnat), rules }
}

/// Branch ENIs (`vlan*`) translate nothing: they carry their pod's own address. Where pods have addresses of the node alone, those
/// are translated wherever they go and nothing else is: the node's own connections keep their source inside the VPC and outside.
fn source_nat(spec: &NatSpec, ports: SnatPorts) -> Chain {
    let of_pods = spec.local.map(IpNetwork::V4).map(Term::SourceIn);
    let leaving = [
        Term::NotTo(Link::Prefixed("vlan".to_owned())),
        Term::DestinationOutsideNoSnat,
        Term::DestinationNotLocal,
        Term::Snat { to: spec.primary_address.into(), ports },
    ];
    let rule = of_pods.into_iter().chain(leaving).collect();
    Chain { name: "source_nat".to_owned(), hook: Some(Hook::SourceNat), rules: vec![rule] }
}

impl Ruleset {
    /// A table of chains alone.
    pub(super) const fn without_sets(family: Family, chains: Vec<Chain>) -> Self {
        Self { family, no_snat: BTreeSet::new(), steering: BTreeMap::new(), steering_mask: 0, chains }
    }

    /// The marks that sources are steered by; each has a chain.
    pub(super) fn marks(&self) -> BTreeSet<u32> {
        self.steering.values().copied().collect()
    }

    /// The chain that gives a packet an ENI's mark. A jump to it, because kernels before 6.13 cannot combine the mark
    /// with a looked-up value.
    pub(super) fn steering_chain(&self, mark: u32) -> Chain {
        let bits = Bits { keep: !self.steering_mask, set: mark };
        Chain { name: steering_chain_name(mark), hook: None, rules: vec![vec![Term::MarkPacket(bits)]] }
    }

    /// Every chain, those of the steering first.
    pub(super) fn all_chains(&self) -> Vec<Chain> {
        self.marks()
            .into_iter()
            .map(|mark| self.steering_chain(mark))
            .chain(self.chains.iter().cloned())
            .collect()
    }
}

/// The rule's comment in the kernel: a fingerprint by which it is known to be as it was written.
pub(super) fn comment(rule: &[Term]) -> String {
    format!("rule {:016x}", fnv1a(text(rule).as_bytes()))
}

fn text(rule: &[Term]) -> String {
    let terms: Vec<String> = rule.iter().map(ToString::to_string).collect();
    terms.join(" ")
}

pub(super) fn steering_chain_name(mark: u32) -> String {
    format!("mark_{mark:x}")
}

/// The mark of a chain that [`steering_chain_name`] named.
pub(super) fn steering_chain_mark(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("mark_")?, 16).ok()
}

/// 64-bit FNV-1a: tells versions apart and is the same in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Bits {
    const fn added(set: u32) -> Self {
        Self { keep: u32::MAX, set }
    }
}

impl Hook {
    /// Kind of chain, as the kernel names it.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::AfterDnat => "filter",
            Self::BeforeDnat | Self::SourceNat => "nat",
        }
    }

    /// Place among the chains of the same hook.
    pub(super) const fn priority(self) -> i32 {
        match self {
            Self::BeforeDnat => -150,
            Self::AfterDnat => -95,
            Self::SourceNat => 110,
        }
    }

    /// The kernel's number of the hook.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::BeforeDnat | Self::AfterDnat => NF_INET_PRE_ROUTING,
            Self::SourceNat => NF_INET_POST_ROUTING,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::BeforeDnat | Self::AfterDnat => "prerouting",
            Self::SourceNat => "postrouting",
        }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {TABLE} {{", keyword(self.family))?;
        if self.family == WITH_SETS {
            self.write_sets(f)?;
        }
        self.chains.iter().try_for_each(|chain| write!(f, "{chain}"))?;
        writeln!(f, "}}")
    }
}

impl Ruleset {
    fn write_sets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  set {NO_SNAT} {{\n    type ipv4_addr\n    flags interval")?;
        write_elements(f, self.no_snat.iter().map(ToString::to_string))?;
        writeln!(f, "  }}")?;
        self.marks().into_iter().try_for_each(|mark| write!(f, "{}", self.steering_chain(mark)))?;
        let jump =
            |(source, mark): (&Interval, &u32)| format!("{source} : jump {}", steering_chain_name(*mark));
        let of = |single| self.steering.iter().filter(move |(source, _)| source.is_single() == single);
        writeln!(f, "  map {ENI_OF} {{\n    type ipv4_addr : verdict\n    size {SINGLES_MAX}")?;
        write_elements(f, of(true).map(jump))?;
        writeln!(f, "  }}\n  map {ENI_OF_RANGE} {{\n    type ipv4_addr : verdict\n    flags interval")?;
        write_elements(f, of(false).map(jump))?;
        writeln!(f, "  }}")
    }
}

/// How `nft` calls a family.
const fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn write_elements(f: &mut fmt::Formatter<'_>, elements: impl Iterator<Item = String>) -> fmt::Result {
    let elements: Vec<String> = elements.collect();
    match elements.is_empty() {
        true => Ok(()),
        false => writeln!(f, "    elements = {{ {} }}", elements.join(", ")),
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  chain {} {{", self.name)?;
        if let Some(hook) = self.hook {
            let (kind, name, priority) = (hook.kind(), hook.name(), hook.priority());
            writeln!(f, "    type {kind} hook {name} priority {priority}; policy accept;")?;
        }
        for rule in &self.rules {
            writeln!(f, "    {} comment \"{}\"", text(rule), comment(rule))?;
        }
        writeln!(f, "  }}")
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(link) => write!(f, "iifname {link}"),
            Self::NotFrom(link) => write!(f, "iifname != {link}"),
            Self::NotTo(link) => write!(f, "oifname != {link}"),
            Self::NewConnection => write!(f, "ct state new"),
            Self::DestinationOutsideNoSnat => write!(f, "ip daddr != @{NO_SNAT}"),
            Self::SourceIn(range) => write!(f, "{} saddr {range}", keyword(Family::of(range.ip()))),
            Self::DestinationIn(range) => write!(f, "{} daddr {range}", keyword(Family::of(range.ip()))),
            Self::DestinationOfArrivalLink => write!(f, "fib daddr . iif type local"),
            Self::DestinationNotLocal => write!(f, "fib daddr type != local"),
            Self::ConnectionHas(mark) => write!(f, "ct mark and {mark:#x} == {mark:#x}"),
            Self::MarkConnection(bits) => write!(f, "ct mark set ct mark {bits}"),
            Self::MarkPacket(bits) => write!(f, "meta mark set meta mark {bits}"),
            Self::JumpBySource(map) => write!(f, "ip saddr vmap @{map}"),
            Self::Return => write!(f, "return"),
            Self::Drop => write!(f, "drop"),
            Self::Snat { to, ports: SnatPorts::Prng } => write!(f, "snat to {to} fully-random"),
            Self::Snat { to, ports: SnatPorts::HashRandom } => write!(f, "snat to {to} random"),
            Self::Snat { to, ports: SnatPorts::Plain } => write!(f, "snat to {to}"),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "\"{name}\""),
            Self::Prefixed(prefix) => write!(f, "\"{prefix}*\""),
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keep {
            u32::MAX => write!(f, "or {:#x}", self.set),
            keep => write!(f, "and {keep:#x} or {:#x}", self.set),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;

    #[test]
    fn steering_is_one_lookup_per_kind_of_source_and_changes_only_its_own_bits() {
        let text = ruleset(&spec()).to_string();

        assert_eq!(text.matches("vmap @eni_of").count(), 2, "addresses, and ranges");
        assert!(text.contains("10.0.0.20 : jump mark_100 }"), "{text}");
        assert!(text.contains("10.0.1.0/28 : jump mark_200 }"), "{text}");
        assert!(text.contains("meta mark set meta mark and 0xffffc0ff or 0x100"), "{text}");
        let singles = BTreeMap::from([("10.0.0.20".parse().unwrap(), 0x100)]);
        let text = ruleset(&NatSpec { sources: singles, ..spec() }).to_string();
        assert_eq!(text.matches("vmap @").count(), 1, "{text}");
        let text = ruleset(&NatSpec { sources: BTreeMap::new(), ..spec() }).to_string();
        assert_eq!(text.matches("vmap @").count(), 0, "{text}");
    }

    #[test]
    fn a_packet_of_a_pod_is_one_under_each_of_the_prefixes() {
        let pod_if_prefixes = ["azv", "eni"].map(str::to_owned).into();
        let text = ruleset(&NatSpec { pod_if_prefixes, ..spec() }).to_string();

        assert!(text.contains(r#"iifname != "azv*" iifname != "eni*" return"#), "{text}");
    }

    #[test]
    fn external_snat_leaves_sources_alone() {
        let text = ruleset(&NatSpec { snat: None, node_port: false, ..spec() }).to_string();

        assert!(!text.contains("snat to") && !text.contains("ct mark"), "{text}");
    }

    #[test]
    fn node_ports_work_without_snat() {
        let text = ruleset(&NatSpec { snat: None, ..spec() }).to_string();

        assert!(text.contains("iifname \"ens5\" fib daddr . iif type local ct mark set ct mark or 0x80"));
        assert!(text.contains("ct mark and 0x80 == 0x80 meta mark set meta mark or 0x80"), "{text}");
        assert!(!text.contains("snat to"), "{text}");
    }

    #[test]
    fn different_rules_have_different_comments() {
        let ruleset = ruleset(&spec());
        let chains = ruleset.all_chains();
        let comments: BTreeSet<String> =
            chains.iter().flat_map(|c| &c.rules).map(|rule| comment(rule)).collect();

        assert_eq!(comments.len(), chains.iter().map(|chain| chain.rules.len()).sum::<usize>());
    }

    #[test]
    fn a_steering_chain_is_known_by_its_name() {
        assert_eq!(steering_chain_mark(&steering_chain_name(0x3f00)), Some(0x3f00));
        assert_eq!(steering_chain_mark("from_pods"), None);
    }
}
