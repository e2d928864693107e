//! Kubernetes: what the node object changes here. Without it everything works as the settings say.

use pool::{Plan, Targets};
use types::Moment;

use super::Node;
use crate::cluster::{News, NodeObject};

/// What we know of the node object.
#[derive(Debug, Default)]
pub(super) struct ClusterState {
    object: Option<NodeObject>,
    /// It was there, and is there no more: the instance is about to end, as a rule.
    deleted: bool,
    seen_at: Moment,
    /// Why it cannot be asked for, or is not there.
    trouble: Option<String>,
}

impl ClusterState {
    /// Whether the node object is known.
    pub(super) const fn is_known(&self) -> bool {
        self.object.is_some()
    }

    /// The CPU that the node's pods may ask for in all, in thousandths.
    pub(super) fn cpu(&self) -> Option<u64> {
        self.object.as_ref()?.cpu
    }
}

impl Node {
    /// Takes in what the API server says.
    pub(super) fn cluster_says(&mut self, news: News, now: Moment) {
        self.note_fullness(now);
        let before = std::mem::take(&mut self.cluster);
        self.cluster = match news {
            News::Node(object) => {
                self.eni_config_named(object.eni_config.clone());
                if before.object.as_ref() != Some(&object) {
                    tracing::info!(
                        cordoned = object.unschedulable,
                        max_pods = object.max_pods,
                        "the node object"
                    );
                    object.warm.wrong.iter().for_each(|wrong| tracing::warn!("{wrong}"));
                }
                ClusterState { object: Some(*object), deleted: false, seen_at: now, trouble: None }
            }
            News::NoNode => {
                let trouble = "there is no node object of this name".to_owned();
                tracing::warn!("{trouble}");
                let deleted = before.deleted || before.object.is_some();
                ClusterState { object: None, deleted, seen_at: now, trouble: Some(trouble) }
            }
            News::Trouble(trouble) => {
                if before.trouble.is_none() {
                    tracing::warn!(
                        trouble,
                        "the API server does not tell the node object; what was known stays true"
                    );
                }
                ClusterState { trouble: Some(trouble), ..before }
            }
            News::Pods(news) => {
                self.cluster = before;
                return self.pods_say(news);
            }
            News::EniConfig(name, says) => {
                self.cluster = before;
                return self.eni_config_says(&name, says, now);
            }
        };
    }

    /// Whether new pods are kept away from the node, and the settings want it left alone then.
    pub(super) fn is_left_alone(&self) -> bool {
        let cordoned = self.cluster.object.as_ref().is_some_and(|object| object.unschedulable);
        cordoned && !self.settings.manage_cordoned
    }

    /// Whether nothing is given back whatever the plan says: the node is left alone, or its object was deleted. An ENI that is being
    /// detached while its instance ends is left behind.
    pub(super) fn keeps_all(&self) -> bool {
        self.cluster.deleted || self.is_left_alone()
    }

    /// The targets that hold now: the settings', what the node object says in their place, and none on a node that is left alone.
    pub(super) fn targets(&self, now: Moment) -> Targets {
        let object = self.cluster.object.as_ref();
        let targets = object.map_or(self.settings.targets, |object| object.warm.over(self.settings.targets));
        let max_pods = targets.max_pods.or(object.and_then(|object| object.max_pods));
        // What it takes to know is looked through for whom it concerns.
        let full = if targets.automatic { self.full(now) } else { None };
        Targets { max_pods, demand_only: self.is_left_alone(), full, ..targets }
    }

    /// A plan without what is not given back now.
    pub(super) fn left_alone(&self, mut plan: Plan) -> Plan {
        if self.keeps_all() {
            plan.actions.retain(|planned| planned.action.leaving().is_none());
        }
        plan
    }

    /// Why it is not known whether the node is full, in words; with branch ENIs that is told with them.
    fn pods_trouble(&self) -> Option<String> {
        let trouble = self.pods.trouble.as_ref().filter(|_| !self.settings.pod_eni)?;
        Some(format!("whether another pod fits is not known: {trouble}"))
    }

    /// What is known, for people.
    pub(super) fn cluster_lines(&self, now: Moment) -> Vec<String> {
        if !self.settings.in_cluster {
            return Vec::new();
        }
        let ago = |at: Moment| now.since(at).as_secs();
        let object = match &self.cluster.object {
            Some(object) => {
                let schedulable = match (object.unschedulable, self.is_left_alone()) {
                    (false, _) => "schedulable",
                    (true, false) => "cordoned",
                    (true, true) => {
                        "cordoned: nothing is given back, and only what pods wait for is asked for"
                    }
                };
                let pods = object.max_pods.map_or_else(String::new, |pods| format!(", {pods} pods at most"));
                let full = match self.full(now) {
                    Some(_) => ", without CPU for another pod",
                    None => "",
                };
                format!("{schedulable}{pods}{full} (told {} s ago)", ago(self.cluster.seen_at))
            }
            None if self.cluster.deleted => "deleted: nothing is given back".to_owned(),
            None => "the node object is not known".to_owned(),
        };
        let wrong = self.cluster.object.iter().flat_map(|object| object.warm.wrong.clone());
        let trouble = self.cluster.trouble.clone();
        std::iter::once(object)
            .chain(wrong)
            .chain(trouble)
            .chain(self.eni_config_lines())
            .chain(self.branch_lines())
            .chain(self.pods_trouble())
            .collect()
    }
}
