//! Between two looks at EC2, instance metadata is glanced at: it is free, and where it tells something else than the books, EC2 is
//! asked at once. A glance alone changes nothing.
//!
//! The trunk of branch ENIs comes from others, at a moment that nobody tells: while an ADD waits for a branch ENI and no trunk is known, metadata is
//! glanced at every few seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use pool::{EniSeen, Given};
use types::{EniId, Moment};

use super::Node;
use super::adding::Pending;
use super::event::{CallId, Effect};
use super::looking::METADATA_LAG;
use crate::clock::doubled;
use crate::cloud::CloudError;

/// The ENIs, and what each has for pods.
type Told = BTreeMap<EniId, Given>;

/// When to glance, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Glances {
    /// One is under way.
    glancing: bool,
    /// When the next one is due.
    due: Moment,
    /// When the last one began.
    last: Moment,
    /// When a call of ours last ended: until metadata shows it, it tells less than the books.
    acted: Moment,
    /// What metadata told when EC2 was last asked because of it, and when that was: told again, it is no news.
    known: Option<(Told, Moment)>,
    /// How often EC2 was asked for a trunk since one was known or nobody waited for one.
    asked: u32,
}

fn told_by(enis: &[EniSeen]) -> Told {
    enis.iter().map(|eni| (eni.id.clone(), eni.given())).collect()
}

impl Node {
    /// A call of ours has ended.
    pub(super) const fn glance_later(&mut self, now: Moment) {
        self.glances.acted = now;
    }

    /// Glances at instance metadata: once in a while, and not while something changes.
    pub(super) fn glance_if_due(&mut self, now: Moment) {
        let Some(every) = self.settings.glance_every else { return };
        let ready = self.cloud.pictured && self.is_up_to_date() && !self.cloud.looking;
        if !ready || self.glances.glancing || self.glances.due > now {
            return;
        }
        if self.pool.is_changing() || now.since(self.glances.acted) <= METADATA_LAG {
            self.glances.due = now.plus(METADATA_LAG);
            return;
        }
        // The first look was a moment ago.
        if std::mem::replace(&mut self.glances.due, now.plus(self.cloud.jitter(every))) > Moment(0) {
            self.glance(now);
        }
    }

    /// The same while an ADD waits for a branch ENI and nobody knows of a trunk: every few seconds.
    pub(super) fn glance_for_trunk(&mut self, now: Moment) {
        if !self.lacks_trunk() {
            self.glances.asked = 0;
            return;
        }
        let may = self.settings.glance_every.is_some() && self.cloud.pictured && self.is_up_to_date();
        let idle = !self.cloud.looking && !self.glances.glancing && !self.pool.is_changing();
        if may && idle && self.glances.last.plus(FOR_TRUNK) <= now {
            self.glance(now);
        }
    }

    /// Instance metadata alone has told the ENIs, and which of them is the trunk only EC2 does: how long until it is asked again, if
    /// somebody waits for that.
    pub(super) fn ask_for_trunk(&mut self) -> Option<Duration> {
        if !self.lacks_trunk() {
            return None;
        }
        self.glances.asked = self.glances.asked.saturating_add(1);
        Some(doubled(ASK_AGAIN, self.glances.asked - 1))
    }

    fn glance(&mut self, now: Moment) {
        self.glances.glancing = true;
        self.glances.last = now;
        self.effects.push(Effect::Glance);
    }

    /// Whether an ADD waits for a branch ENI while nobody knows of a trunk.
    fn lacks_trunk(&self) -> bool {
        let for_branch = |id: &CallId| match self.pending.get(id) {
            Some(Pending::Add(add)) => Self::waits_for_branch(add),
            Some(Pending::Release { .. } | Pending::Check) | None => false,
        };
        self.awaits_trunk() && self.queue.iter().any(for_branch)
    }

    /// Instance metadata has told the ENIs; where they are as the books have them, all is well.
    pub(super) fn glanced(&mut self, told: Result<Vec<EniSeen>, CloudError>, now: Moment) {
        self.glances.glancing = false;
        let told = match told {
            Ok(enis) => told_by(&enis),
            Err(error) => {
                tracing::debug!(error = crate::chain(&error), "instance metadata does not tell the ENIs");
                return;
            }
        };
        let books = told_by(&self.pool.enis());
        // It may be the trunk, and no call of ours makes ENIs right now.
        let joined = self.lacks_trunk() && told.keys().any(|eni| !books.contains_key(eni));
        let changing = self.pool.is_changing() || !joined && now.since(self.glances.acted) <= METADATA_LAG;
        let pause = doubled(ASK_AGAIN, self.glances.asked.saturating_sub(1));
        let is_known =
            |(known, asked): &(Told, Moment)| *known == told && !(joined && now.since(*asked) > pause);
        if changing || told == books || self.glances.known.as_ref().is_some_and(is_known) {
            return;
        }
        tracing::info!("instance metadata tells other addresses than the books have; EC2 is asked");
        self.glances.known = Some((told, now));
        self.glances.asked = self.glances.asked.saturating_add(u32::from(joined));
        self.cloud.stale = true;
    }

    /// When the next glance is due.
    pub(super) fn glance_wakeup(&self) -> Option<Moment> {
        let waits = self.settings.glance_every.is_some() && self.cloud.pictured && !self.glances.glancing;
        let for_trunk = Some(self.glances.last.plus(FOR_TRUNK)).filter(|_| self.lacks_trunk());
        waits.then(|| for_trunk.unwrap_or(self.glances.due))
    }
}

/// How often EC2 is asked for the ENIs although nothing happened; instance metadata is glanced at in between.
pub const AUDIT_EVERY: Duration = Duration::from_secs(6 * 3600);
/// How often instance metadata is glanced at.
pub const GLANCE_EVERY: Duration = Duration::from_secs(900);
/// How often it is glanced at while somebody waits for a trunk.
const FOR_TRUNK: Duration = Duration::from_secs(5);
/// When EC2 is asked again for an ENI that metadata alone knows, while somebody waits for a trunk: its descriptions lag. Doubles each time, up
/// to the second.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(300));
