//! This node's pods, as their objects say: with security groups for pods which of them have a branch ENI, and with targets that
//! follow the pods whether another one still fits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::{Moment, PodName};

use super::Node;
use super::adding::Add;
use crate::cluster::{BranchWish, PodNews, PodObject};

/// With less CPU than this left to ask for, in thousandths, a node is full: few pods that ask for any ask for less.
const LEFT_OVER: u64 = 100;
/// A node stays full so long after a pod has ended: as a rule another one takes its place.
const LINGERS: Duration = Duration::from_secs(60);

/// What is known of this node's pods.
#[derive(Debug, Default)]
pub(super) struct PodsState {
    pods: BTreeMap<PodName, Told>,
    /// Whether all of them were told since the start.
    pub(super) listed: bool,
    /// Why they are not told, if it is so.
    pub(super) trouble: Option<String>,
    /// When there was last no CPU left.
    full_at: Option<Moment>,
}

/// What an object says.
#[derive(Debug)]
pub(super) struct Told {
    uid: String,
    pub(super) branch: BranchWish,
    cpu: u64,
    gets_address: bool,
}

impl PodsState {
    pub(super) fn count(&self) -> usize {
        self.pods.len()
    }

    /// The CPU that they have asked for, in thousandths.
    fn cpu(&self) -> u64 {
        self.pods.values().fold(0, |sum, told| sum.saturating_add(told.cpu))
    }
}

impl Node {
    /// Takes in what the API server says of this node's pods.
    pub(super) fn pods_say(&mut self, news: PodNews) {
        let told = |object: PodObject| {
            let PodObject { name, uid, branch, cpu, gets_address } = object;
            (name, Told { uid, branch, cpu, gets_address })
        };
        match news {
            PodNews::All(objects) => {
                self.pods.pods = objects.into_iter().map(told).collect();
                (self.pods.listed, self.pods.trouble) = (true, None);
            }
            PodNews::Is(object) => {
                if let BranchWish::Wrong(why) = &object.branch {
                    tracing::warn!(pod = %object.name, why, "the pod's branch ENI cannot be used");
                }
                self.pods.pods.extend([told(object)]);
                self.pods.trouble = None;
            }
            PodNews::Gone(name) => drop(self.pods.pods.remove(&name)),
            PodNews::Trouble(trouble) => {
                if self.pods.trouble.is_none() {
                    tracing::warn!(
                        trouble,
                        "the API server does not tell this node's pods; what was known stays true"
                    );
                }
                self.pods.trouble = Some(trouble);
            }
        }
    }

    /// What was told of an ADD's pod; not of one that had its name before.
    pub(super) fn told_of(&self, add: &Add) -> Option<&Told> {
        let uid = &add.attachment.pod_uid;
        let told = self.pods.pods.get(&add.attachment.pod);
        told.filter(|told| uid.is_empty() || told.uid.is_empty() || told.uid == *uid)
    }

    /// Notes that there is no CPU left, before something changes that.
    pub(super) fn note_fullness(&mut self, now: Moment) {
        if self.lacks_cpu() {
            self.pods.full_at = Some(now);
        }
    }

    /// Whether the scheduler has no CPU left for another pod that asks for some. Not where that is not known.
    fn lacks_cpu(&self) -> bool {
        self.cpu_left().is_some_and(|left| left < LEFT_OVER)
    }

    /// On a node that is full, or was a moment ago: how many of its pods are still to get an address. They were bound before the runtime
    /// asks for them.
    pub(super) fn full(&self, now: Moment) -> Option<u32> {
        let was = || self.pods.full_at.is_some_and(|at| now.since(at) < LINGERS);
        if !self.lacks_cpu() && !was() {
            return None;
        }
        let have: BTreeSet<&PodName> = self.pool.holders().map(|(owner, _)| &owner.pod).collect();
        let comes = |(name, told): &(&PodName, &Told)| {
            told.gets_address && told.branch == BranchWish::No && !have.contains(name)
        };
        u32::try_from(self.pods.pods.iter().filter(comes).count()).ok()
    }

    /// The CPU that pods can still ask for, in thousandths.
    pub(super) fn cpu_left(&self) -> Option<u64> {
        let all = self.cluster.cpu().filter(|_| self.pods.listed)?;
        Some(all.saturating_sub(self.pods.cpu()))
    }
}
