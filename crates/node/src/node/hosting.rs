//! The host: what its kernel should hold, and what waits for that.
//!
//! What EC2 gives joins the pool only when the host's kernel is ready for it: an address on a secondary ENI must be
//! in the steering map before a pod has it. So every gain waits in `settling` for the next convergence. Of an ENI that is in the
//! pool all the same, because a picture shows it or because its link has not come in time, no pod gets an address before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use datapath::{EniSpec, NodeSpec, PodSpec};
use ipnetwork::Ipv4Network;
use pool::{ActionId, EniSeen, Given, Grant, Outcome, Role, Unready};
use types::{EniId, Ipv6Prefix, Mac, Moment, NetworkCard, Prefix, Reason, VethPrefix};

use super::event::{Effect, Facts, HostMade, HostWish, Picture};
use super::{Node, Settings};
use crate::clock::doubled;

/// How often to see whether the link of an ENI has appeared, as long as it may take.
const LINK_POLL: Duration = Duration::from_millis(100);
/// How long the link of a new ENI may take; longer than EC2's descriptions lag. Afterwards it is looked for as often as the rest.
const LINK_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between looks at EC2 while a link does not come, the first and the longest: somebody may have taken the ENI away.
const LINK_LOOKS: (Duration, Duration) = (LINK_PATIENCE, Duration::from_secs(3600));
/// How often the host's kernel is compared with what it should be although nothing happened.
pub const REPAIR_EVERY: Duration = Duration::from_secs(30);
/// Pause between a notice that somebody has changed something of ours and the look at it, so that one look is for all of
/// what was changed together. Doubles with each such look that follows one which had to put something back, up to
/// [`REPAIR_EVERY`]: with somebody who keeps undoing what we do there is no race.
const NOTICE_AFTER: Duration = Duration::from_millis(100);
/// What is changed that long after the last look, or longer, is no answer to it, and is put back without a pause.
const PEACE: Duration = Duration::from_secs(2);
/// The longest such pause while there is nothing to put back: others may be busy with what only looks like ours.
const IN_VAIN: Duration = Duration::from_millis(500);
/// After so many looks on end that had to put something back it is told that others keep at it.
const FIGHT: u32 = 6;
/// Pause before the host's kernel is tried again after a failure that concerns the whole node. Doubles with each, up to
/// [`REPAIR_EVERY`].
const HOST_RETRY: Duration = Duration::from_secs(1);

/// How far the host's kernel is from what it should be.
#[derive(Debug, Default)]
pub(super) struct HostState {
    /// Number of the newest wish.
    generation: u64,
    under_way: bool,
    /// Something has changed since the newest wish.
    pub(super) dirty: bool,
    retry_at: Option<Moment>,
    /// Pause before that; none after a success.
    retry_after: Duration,
    /// ENIs whose link is not there, and since when.
    missing: BTreeMap<Mac, Moment>,
    /// Those of them for which that is too long.
    late: BTreeSet<Mac>,
    /// How often EC2 was looked at because of them.
    late_looks: u32,
    /// When to see whether somebody else has changed something.
    repair_at: Moment,
    /// When that was last done.
    repaired_at: Moment,
    /// Somebody else has changed something since then.
    touched: bool,
    /// So soon after it that it may be an answer to it.
    answered: bool,
    /// The last look has put something back.
    put_back: bool,
    /// Pods are being compared with what they should be.
    comparing: bool,
    /// They are to be, since the last such look began.
    compare_due: bool,
    /// Pause between two looks that notices lead to, of which the second may be to an answer to the first.
    pause: Duration,
    /// How many looks on end notices have led to, each after one that had to put something back.
    rounds: u32,
    /// What was wrong the last time.
    pub(super) trouble: Option<String>,
    pub(super) settling: Vec<Settling>,
    /// ENIs by which pods' packets leave, each with the addresses that do.
    pub(super) led: Vec<EniSeen>,
    /// IPv6 prefixes that it leads out by secondary ENIs, as of the last wish that it has granted.
    pub(super) prefixes: BTreeMap<Mac, BTreeSet<Ipv6Prefix>>,
    /// The same of the newest wish.
    leading: BTreeMap<Mac, BTreeSet<Ipv6Prefix>>,
    /// Those that there were to be led out when it was made, by ENI.
    pub(super) wished_prefixes: BTreeMap<EniId, BTreeSet<Ipv6Prefix>>,
    /// What it could not do for ENIs when it was last brought in line.
    unready: BTreeMap<Mac, Unready>,
}

impl HostState {
    pub(super) fn wakeup(&self) -> Option<Moment> {
        // Neither while something else is waited for: it comes with that.
        let repair = (!self.under_way && self.retry_at.is_none()).then_some(self.repair_at);
        self.retry_at.into_iter().chain(repair).min()
    }

    /// The IPv6 prefixes of an ENI that a picture tells which waits.
    pub(super) fn prefixes_told(&self, eni: &EniId) -> Option<&BTreeSet<Ipv6Prefix>> {
        self.settling.iter().find_map(|settling| match &settling.gain {
            Gain::Picture(picture) => picture.ipv6_prefixes.get(eni),
            Gain::Action(..) => None,
        })
    }

    /// Somebody else has changed something of ours, or may have.
    pub(super) fn touched(&mut self, now: Moment) {
        // Who has answered the last look is told by the first notice after it.
        if std::mem::replace(&mut self.touched, true) {
            return;
        }
        self.answered = now.since(self.repaired_at) < PEACE;
        let pause = if self.answered { self.pause } else { Duration::ZERO };
        let soon = now.plus(NOTICE_AFTER).max(self.repaired_at.plus(pause));
        self.repair_at = self.repair_at.min(soon);
    }

    /// Something that others had changed was put back.
    pub(super) const fn put_back(&mut self) {
        self.put_back = true;
    }

    /// A look begins, at pods too.
    fn looks(&mut self, every: Duration, now: Moment) {
        self.rounds = if self.touched && self.put_back { self.rounds.saturating_add(1) } else { 0 };
        self.pause = match (self.touched && self.answered, self.put_back) {
            (true, true) => (self.pause * 2).clamp(NOTICE_AFTER, REPAIR_EVERY),
            (true, false) => (self.pause * 2).clamp(NOTICE_AFTER, IN_VAIN),
            (false, _) => NOTICE_AFTER,
        };
        (self.touched, self.answered, self.put_back) = (false, false, false);
        self.repaired_at = now;
        self.repair_at = now.plus(every);
    }

    /// It failed for the whole node.
    fn failed(&mut self, error: String, now: Moment) {
        self.told(Some(error));
        self.dirty = true;
        self.retry_after = (self.retry_after * 2).clamp(HOST_RETRY, REPAIR_EVERY);
        self.retry_at = Some(now.plus(self.retry_after));
    }

    fn told(&mut self, trouble: Option<String>) {
        if let Some(error) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            tracing::error!(error, "the host's kernel is not as it should be");
        }
        self.trouble = trouble;
    }

    /// Which links are missing now. What may just be on its way is looked for soon.
    fn lacks(&mut self, missing: &BTreeSet<Mac>, now: Moment) {
        self.missing.retain(|mac, _| missing.contains(mac));
        for mac in missing {
            self.missing.entry(*mac).or_insert(now);
        }
        let is_late = |(mac, since): (&Mac, &Moment)| (now.since(*since) > LINK_PATIENCE).then_some(*mac);
        self.late = self.missing.iter().filter_map(is_late).collect();
        if self.late.len() < self.missing.len() {
            self.dirty = true;
            self.retry_at = Some(now.plus(LINK_POLL));
        }
    }

    /// That somebody keeps undoing what we do, in words.
    pub(super) fn fight(&self) -> Option<String> {
        let what = "others keep changing routes, rules, links or nftables of ours";
        let pause = self.pause.as_secs_f32();
        (self.rounds >= FIGHT)
            .then(|| format!("{what}; what is undone at once is put back after {pause:.1} s"))
    }
}

/// A gain that waits for the host's kernel.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) gain: Gain,
    /// The wish that covers it; `None` before there is one.
    generation: Option<u64>,
    since: Moment,
}

#[derive(Debug)]
pub(super) enum Gain {
    Action(ActionId, Outcome),
    Picture(Box<Picture>),
}

impl Gain {
    /// The ENIs this tells of.
    fn enis(&self) -> &[EniSeen] {
        match self {
            Self::Action(_, Outcome::Created(eni)) => std::slice::from_ref(&**eni),
            Self::Action(..) => &[],
            Self::Picture(picture) => &picture.enis,
        }
    }

    /// What a call has given later, this has lost: somebody has taken it away meanwhile.
    fn lose(&mut self, later: &Self) {
        let given = match later {
            Self::Action(_, Outcome::Created(eni)) => {
                let mut given = eni.given();
                given.addresses.insert(eni.primary_address);
                given
            }
            Self::Action(_, Outcome::Assigned(given)) => given.clone(),
            Self::Action(..) | Self::Picture(_) => return,
        };
        let (addresses, prefixes) = match self {
            Self::Action(_, Outcome::Created(eni)) => (&mut eni.addresses, &mut eni.prefixes),
            Self::Action(_, Outcome::Assigned(ours)) => (&mut ours.addresses, &mut ours.prefixes),
            Self::Action(..) | Self::Picture(_) => return,
        };
        let overlaps = |prefix: &Prefix| given.all().any(|address| Prefix::of(address) == *prefix);
        addresses.retain(|address| !given.covers(*address));
        prefixes.retain(|prefix| !overlaps(prefix));
    }

    /// The ENI that a call has made.
    pub(super) fn new_eni(&self) -> Option<&EniSeen> {
        match self {
            Self::Action(_, Outcome::Created(eni)) => Some(eni),
            Self::Action(..) | Self::Picture(_) => None,
        }
    }
}

/// As networks: single addresses, and prefixes as what they are.
fn networks(given: &Given) -> impl Iterator<Item = Ipv4Network> {
    let prefixes = given.prefixes.iter();
    let prefixes = prefixes.filter_map(|prefix| Ipv4Network::new(prefix.first(), Prefix::LENGTH).ok());
    given.addresses.iter().copied().map(Ipv4Network::from).chain(prefixes)
}

/// Without the single addresses that are within a prefix of the same ENI.
fn widest(sources: &BTreeSet<Ipv4Network>) -> BTreeSet<Ipv4Network> {
    let within = |source: &Ipv4Network| sources.iter().any(|s| s != source && source.is_subnet_of(*s));
    sources.iter().filter(|source| !within(source)).copied().collect()
}

impl Node {
    pub(super) fn settle(&mut self, gain: Gain, now: Moment) {
        // A newer picture tells all that an older one does.
        if matches!(gain, Gain::Picture(_)) {
            self.host.settling.retain(|settling| !matches!(settling.gain, Gain::Picture(_)));
        }
        self.host.settling.iter_mut().for_each(|settling| settling.gain.lose(&gain));
        self.host.settling.push(Settling { gain, generation: None, since: now });
        self.host.dirty = true;
    }

    /// A call that has ended is in the way of a picture no more, or an ENI is stuck: what the picture that waits would bring now the last
    /// wish may have left out, so it waits for another one.
    pub(super) fn picture_differs(&mut self) {
        for settling in self.host.settling.iter_mut().filter(|s| matches!(s.gain, Gain::Picture(_))) {
            settling.generation = None;
            self.host.dirty = true;
        }
    }

    pub(super) fn converged(&mut self, generation: u64, result: Result<HostMade, String>, now: Moment) {
        self.host.under_way = false;
        let made = match result {
            Ok(made) => made,
            Err(error) => return self.host.failed(error, now),
        };
        self.host.retry_after = Duration::ZERO;
        // The wish was made after the last pod that was led elsewhere had gone.
        if !self.host.dirty {
            self.pool.lead_right();
        }
        self.host.put_back |= made.put_back;
        let refused: Vec<String> = made.refused.values().flatten().chain(&made.unset).cloned().collect();
        self.host.told((!refused.is_empty()).then(|| refused.join("; ")));
        // Of an ENI that pods' packets left by and that nobody tells any more none is on its way.
        let told: BTreeSet<Mac> = self.enis_told().map(|eni| eni.mac).collect();
        self.host.lacks(&made.missing.intersection(&told).copied().collect(), now);
        self.host.prefixes.clone_from(&self.host.leading);
        self.host.unready = self.unready_of(&made);
        self.tell_unready();
        let covered = |s: &Settling| s.generation.is_some_and(|covered| covered <= generation);
        let (settled, waiting) =
            std::mem::take(&mut self.host.settling).into_iter().partition(|s: &Settling| {
                self.is_too_late(s, now) || (covered(s) && !self.waits_for_its_eni(&s.gain, &made))
            });
        self.host.settling = waiting;
        self.memory.dirty |= !settled.is_empty();
        for Settling { gain, .. } in settled {
            match gain {
                Gain::Action(id, outcome) => self.pool.finish(id, outcome, now),
                Gain::Picture(picture) => {
                    // Of pods too that have come since the wish: the picture may lack their ENI.
                    self.host.led = self.leads(&self.enis_to_be(now));
                    self.pictured(*picture, now);
                }
            }
        }
        self.keep_leading();
        // On disk before any pod's address is that is served from now on: after a start its packets leave where they do now.
        self.remember();
        self.look_for_late(now);
    }

    /// The ENIs of the pool, and those of gains that wait.
    pub(super) fn enis_told(&self) -> impl Iterator<Item = &EniSeen> {
        self.pool.seen().chain(self.host.settling.iter().flat_map(|settling| settling.gain.enis()))
    }

    /// By which secondary ENIs pods would have no way out: no link, a refusal of the kernel, or no range that the way out could be made of.
    fn unready_of(&self, made: &HostMade) -> BTreeMap<Mac, Unready> {
        let without_range = self.enis_told().filter(|eni| self.lacks_range(eni));
        let stuck = without_range.map(|eni| eni.mac).chain(made.refused.keys().copied());
        let mut unready: BTreeMap<Mac, Unready> = stuck.map(|mac| (mac, Unready::Stuck)).collect();
        for mac in &made.missing {
            let late = self.host.late.contains(mac);
            unready.entry(*mac).or_insert(if late { Unready::Stuck } else { Unready::Coming });
        }
        unready
    }

    /// Says of which secondary ENIs pods get no address, those too that lack an IPv6 prefix.
    pub(super) fn tell_unready(&mut self) {
        let awaiting = self.enis_told().filter(|eni| self.awaits_prefix(eni));
        let why = |eni: &EniSeen| match self.is_prefix_refused(&eni.id) {
            true => Unready::PrefixRefused,
            false => Unready::NoPrefix,
        };
        let mut unready: BTreeMap<Mac, Unready> = awaiting.map(|eni| (eni.mac, why(eni))).collect();
        unready.extend(&self.host.unready);
        if self.pool.set_unready(unready) {
            self.picture_differs();
        }
    }

    /// Whether a gain of a secondary ENI has waited for the kernel for so long that it counts as coming no more: it joins the pool,
    /// which gives it to nobody before the kernel is ready.
    fn is_too_late(&self, settling: &Settling, now: Moment) -> bool {
        let on = match &settling.gain {
            Gain::Action(_, Outcome::Created(eni)) => Some(&**eni),
            Gain::Action(id, Outcome::Assigned(_)) => {
                let on = self.pool.eni_of(*id);
                self.pool.seen().find(|eni| Some(&eni.id) == on)
            }
            Gain::Action(..) | Gain::Picture(_) => None,
        };
        let is_out_of_use = on.is_some_and(|eni| self.pool.unready(eni) == Some(Unready::Stuck));
        is_out_of_use && now.since(settling.since) > LINK_PATIENCE
    }

    /// Somebody may have taken away an ENI whose link does not come: EC2 is looked at, ever less often.
    fn look_for_late(&mut self, now: Moment) {
        let late: Vec<&EniSeen> = self.late().collect();
        if late.is_empty() {
            self.host.late_looks = 0;
        } else if now.since(self.cloud.looked_at) > doubled(LINK_LOOKS, self.host.late_looks) {
            for EniSeen { id, mac, device, .. } in late {
                tracing::error!(eni = %id, %mac, %device, "the link of an ENI does not come");
            }
            self.host.late_looks = self.host.late_looks.saturating_add(1);
            self.cloud.look_at = now;
        }
    }

    /// ENIs that are to serve pods and whose links have not come in time.
    fn late(&self) -> impl Iterator<Item = &EniSeen> {
        self.pool.seen().filter(|eni| eni.role != Role::Primary && self.host.late.contains(&eni.mac))
    }

    /// That links do not come, in words.
    pub(super) fn link_troubles(&self) -> impl Iterator<Item = String> {
        self.late().map(|EniSeen { id, mac, card, device, .. }| {
            let at = match card {
                NetworkCard(0) => format!("device {device}"),
                card => format!("device {device} of network card {card}"),
            };
            format!("{}: {id} is attached at {at}, and no link has its MAC {mac}", Reason::KernelRefused)
        })
    }

    /// Whether the kernel is not ready for what a gain brings to one ENI. A picture brings what is there, in whatever state.
    fn waits_for_its_eni(&self, gain: &Gain, made: &HostMade) -> bool {
        match gain {
            Gain::Action(_, Outcome::Created(eni)) => !made.is_ready(&eni.mac),
            Gain::Action(id, Outcome::Assigned(_)) => {
                let on = self.pool.eni_of(*id);
                let on = self.pool.seen().find(|eni| Some(&eni.id) == on);
                on.is_some_and(|eni| made.refused.contains_key(&eni.mac))
            }
            Gain::Action(..) | Gain::Picture(_) => false,
        }
    }

    /// The VPC has other ranges now: packets to them keep their source address.
    pub(super) fn ranges(&mut self, ranges: Vec<Ipv4Network>) {
        if let Some(facts) = &mut self.facts {
            tracing::info!(?ranges, "the VPC's ranges have changed");
            facts.vpc_cidrs = ranges;
            self.host.dirty = true;
            self.memory.dirty = true;
        }
    }

    /// Asks for the host's kernel to be brought in line, one wish at a time; once in a while also when nothing of ours has
    /// changed, for others change it too.
    pub(super) fn wish(&mut self, now: Moment) {
        let repair = self.cloud.pictured && self.host.repair_at <= now;
        self.host.dirty |= repair;
        if self.host.retry_at.is_some_and(|at| at <= now) {
            self.host.retry_at = None;
        }
        let Some(facts) = &self.facts else { return };
        // Before the first picture nobody knows the ENIs' subnets, and a wish without ENIs takes their rules and tables away.
        let known =
            self.cloud.pictured || self.host.settling.iter().any(|s| matches!(s.gain, Gain::Picture(_)));
        if !known || !self.host.dirty || self.host.under_way || self.host.retry_at.is_some() {
            return;
        }
        let enis = self.enis_to_be(now);
        let led = self.leads(&enis);
        self.memory.dirty |= led != self.host.led;
        let wish = self.host_wish(facts, enis);
        let prefixes = wish.node.enis.iter().map(|eni| (eni.mac, eni.ipv6.clone()));
        self.host.leading = prefixes.collect();
        self.host.wished_prefixes = self.prefixes_to_lead();
        self.host.led = led;
        self.keep_leading();
        self.host.generation += 1;
        self.host.under_way = true;
        self.host.dirty = false;
        // The start looks too: others may have been here while nobody did.
        if repair || self.host.touched || !self.cloud.pictured {
            self.host.compare_due = true;
            self.compare_pods();
            self.host.looks(self.settings.repair_every, now);
        }
        let mut settling = std::mem::take(&mut self.host.settling);
        // A wish says nothing of an ENI whose range is not known.
        let covered = |s: &&mut Settling| !s.gain.new_eni().is_some_and(|eni| self.lacks_range(eni));
        for settling in settling.iter_mut().filter(covered) {
            settling.generation.get_or_insert(self.host.generation);
        }
        self.host.settling = settling;
        self.effects.push(Effect::Converge { generation: self.host.generation, host: Box::new(wish) });
    }

    /// Has pods compared with what they should be, if that is due: one look at a time, for ADDs wait behind each, and what a look finds late
    /// it finds with the pods of then.
    fn compare_pods(&mut self) {
        if self.host.compare_due && !self.host.comparing {
            (self.host.compare_due, self.host.comparing) = (false, true);
            self.effects.push(Effect::Mend(self.wired_pods()));
        }
    }

    /// The look at pods has ended, and what it has told was heeded.
    pub(super) fn compared(&mut self) {
        self.host.comparing = false;
        self.compare_pods();
    }

    /// The ENIs that the kernel should know; of two that have an address the first one leads it out:
    /// 1. what calls have brought, and then what they have left where it was;
    /// 2. until descriptions can be trusted after a start: by which pods' packets have left. Descriptions may have the address where it was
    ///    before the pod had it, and the pool does not know better yet;
    /// 3. what the pool will have once the picture that waits has joined it, and what it has now;
    /// 4. by which pods' packets have left: descriptions may be old, and an address that is on no other ENI goes nowhere better.
    fn enis_to_be(&self, now: Moment) -> Vec<EniSeen> {
        let settling = || self.host.settling.iter().map(|settling| &settling.gain);
        let pictures = || {
            settling().filter_map(|gain| match gain {
                Gain::Picture(picture) => Some(picture),
                Gain::Action(..) => None,
            })
        };
        let brought = |gain: &Gain| match gain {
            Gain::Action(_, Outcome::Created(eni)) => Some((**eni).clone()),
            Gain::Action(id, Outcome::Assigned(Given { addresses, prefixes })) => {
                let on = self.pool.eni_of(*id);
                let eni = self.pool.seen().find(|eni| Some(&eni.id) == on)?.clone();
                Some(EniSeen { addresses: addresses.clone(), prefixes: prefixes.clone(), ..eni })
            }
            Gain::Action(..) | Gain::Picture(_) => None,
        };
        let left = |gain: &Gain| match gain {
            Gain::Action(id, Outcome::Failed) => self.pool.if_refused(*id),
            Gain::Action(..) | Gain::Picture(_) => None,
        };
        // Only whose packets leave there is older than what is told of an ENI.
        let as_told = |eni: EniSeen| match self.enis_told().filter(|told| told.id == eni.id).last() {
            Some(told) => {
                let EniSeen { addresses, prefixes, role, .. } = eni;
                EniSeen { addresses, prefixes, role, ..told.clone() }
            }
            None => eni,
        };
        let led: Vec<EniSeen> =
            self.host.led.iter().cloned().chain(self.known_before()).map(as_told).collect();

        let mut enis: Vec<EniSeen> =
            settling().filter_map(brought).chain(settling().filter_map(left)).collect();
        let as_of = pictures().map(|picture| picture.as_of).fold(self.pool.pictured(), Moment::max);
        if self.trusts_what_was(as_of) {
            enis.extend(led.clone());
        }
        for picture in pictures() {
            let mut later = self.pool.clone();
            later.observe(&picture.enis, picture.as_of, now);
            enis.extend(later.enis());
        }
        enis.extend(self.pool.enis());
        enis.extend(led);
        enis
    }

    /// By which ENIs, of those to be, pods' packets are to leave: those that have their addresses now, or had them last (I16).
    fn leads(&self, enis: &[EniSeen]) -> Vec<EniSeen> {
        let owners = self.pool.holders().filter(|(owner, _)| owner.branch.is_none());
        let mut held: BTreeSet<Ipv4Addr> = owners.map(|(_, address)| address).collect();
        let mut led = Vec::new();
        for eni in enis {
            let given = eni.given();
            let addresses: BTreeSet<Ipv4Addr> =
                held.extract_if(.., |address| given.covers(*address)).collect();
            if !addresses.is_empty() {
                // For these pods alone.
                let role = Role::Unmanaged;
                led.push(EniSeen { addresses, prefixes: BTreeSet::new(), role, ..eni.clone() });
            }
        }
        led
    }

    /// By which ENI each pod's packets leave, as the kernel was told last.
    pub fn led(&self) -> impl Iterator<Item = (Ipv4Addr, &EniSeen)> {
        self.host.led.iter().flat_map(|eni| eni.addresses.iter().map(move |address| (*address, eni)))
    }

    /// Whether a pod's packets leave by another ENI than the one that has its address. Once the pod is gone nothing speaks for that.
    pub(super) fn leads_astray(&self, grant: &Grant) -> bool {
        let by = self.host.led.iter().find(|eni| eni.addresses.contains(&grant.address));
        by.is_some_and(|eni| grant.place.as_ref().is_none_or(|place| place.eni != eni.id))
    }

    /// What of that no description has, or one that has it elsewhere.
    pub(super) fn stranded(&self) -> Vec<EniSeen> {
        let grants = self.pool.owners().map(|(_, grant)| (grant.address, grant.place.map(|place| place.eni)));
        let places: BTreeMap<Ipv4Addr, Option<EniId>> = grants.collect();
        let of = |eni: &EniSeen| {
            let mut addresses = eni.addresses.clone();
            addresses.retain(|address| places.get(address).is_some_and(|on| on.as_ref() != Some(&eni.id)));
            (!addresses.is_empty()).then(|| EniSeen { addresses, ..eni.clone() })
        };
        self.host.led.iter().filter_map(of).collect()
    }

    /// No ENI is deleted that pods' packets leave by, whatever descriptions have of it.
    fn keep_leading(&mut self) {
        let enis = self.stranded().into_iter().map(|eni| eni.id).collect();
        self.pool.set_led_by(enis);
    }

    /// What is to be steered to an ENI. Of one that is not for pods any more that is what pods have of it.
    fn given_to_pods(&self, eni: &EniSeen) -> Given {
        if eni.card != NetworkCard(0) && !self.settings.families.has_ipv4_of_vpc() {
            // Those are names in the pool.
            return Given::default();
        }
        let given = eni.given();
        if eni.role.is_for_pods() {
            return given;
        }
        let held = self.pool.holders().map(|(_, address)| address);
        Given::addresses(held.filter(|address| given.covers(*address)).collect())
    }

    fn host_wish(&self, facts: &Facts, to_be: Vec<EniSeen>) -> HostWish {
        let mut enis: Vec<EniSpec> = Vec::new();
        let mut ids = BTreeMap::new();
        // An address is led out by one ENI.
        let mut steered = Given::default();
        for seen in to_be {
            let Some(subnet) = self.range_of(&seen.subnet) else { continue };
            let mut given = self.given_to_pods(&seen);
            given.addresses.retain(|address| !steered.covers(*address));
            // A single address of another ENI may be within: the most specific source leads.
            given.prefixes.retain(|prefix| !steered.prefixes.contains(prefix));
            let ipv6 = self.ipv6_to_lead(&seen);
            if given.is_empty() && ipv6.is_empty() && !seen.role.is_for_pods() {
                continue;
            }
            let sources: BTreeSet<Ipv4Network> = networks(&given).collect();
            steered.addresses.extend(given.addresses);
            steered.prefixes.extend(given.prefixes);
            if let Some(same) = enis.iter_mut().find(|spec| spec.mac == seen.mac) {
                same.sources.extend(sources);
                same.ipv6.extend(ipv6);
                continue;
            }
            let EniSeen { id, mac, card, device, primary_address, .. } = seen;
            ids.insert(mac, id);
            let mtu = self.settings.eni_mtu;
            enis.push(EniSpec { mac, card, device, primary_address, subnet, mtu, sources, ipv6 });
        }
        enis.iter_mut().for_each(|spec| spec.sources = widest(&spec.sources));
        enis.sort_by_key(|spec| (spec.card, spec.device));
        let families = self.settings.families;
        let no_snat = facts.vpc_cidrs.iter().chain(&self.settings.exclude_snat).copied();
        // An address of the node alone is translated wherever it goes.
        let no_snat = no_snat.filter(|_| families.has_ipv4_of_vpc()).collect();
        let ipv6_egress = self.ipv6_egress(facts);
        let has_ipv6 = || self.pool.holders().any(|(owner, _)| owner.ipv6.is_some());
        let ipv6 = families.needs_prefix() || ipv6_egress.is_some() || has_ipv6();
        // Later, the wiring thread owns the pods' table: a wish made before a DEL must not bring its route back.
        let pods = (!self.cloud.pictured).then(|| self.wired_pods());
        let Settings { marks, connmark, external_services, .. } = &self.settings;
        let (marks, external_services) = (marks.for_cards(&facts.limits.cards), external_services.clone());
        let (trunk, strict_branches) = (self.trunk_spec(), self.has_strict_branches());
        let node =
            NodeSpec { enis, marks, connmark: *connmark, ipv6, external_services, trunk, strict_branches };
        let (local, primary_address) = (families.local_range(), facts.primary_address);
        let pod_if_prefixes = self.veth_prefixes();
        HostWish { node, no_snat, local, ipv6_egress, pod_if_prefixes, pods, primary_address, ids }
    }

    /// What the names of pods' host ends start with: the setting, and what it was when those that live were named.
    #[must_use]
    pub fn veth_prefixes(&self) -> BTreeSet<VethPrefix> {
        let of_owners = self.pool.holders().filter_map(|(owner, _)| owner.host_if.prefix());
        of_owners.chain([self.settings.veth_prefix.clone()]).collect()
    }

    /// What the kernel should hold of each pod.
    #[must_use]
    pub fn wired_pods(&self) -> Vec<PodSpec> {
        let mtu = self.settings.pod_mtu;
        let families = self.settings.families;
        self.pool.holders().map(|(owner, address)| families.pod_spec(owner, address, mtu)).collect()
    }
}
