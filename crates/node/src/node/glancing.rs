//! Between two looks at EC2, instance metadata is glanced at: it is free, and where it tells something else than the books, EC2 is
//! asked at once. A glance alone changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use pool::{EniSeen, Given};
use types::{EniId, Moment};

use super::Node;
use super::event::Effect;
use super::looking::METADATA_LAG;
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
    /// When a call of ours last ended: until metadata shows it, it tells less than the books.
    acted: Moment,
    /// What metadata told when EC2 was last asked because of it: told again, it is no news.
    known: Option<Told>,
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
            self.glances.glancing = true;
            self.effects.push(Effect::Glance);
        }
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
        let changing = self.pool.is_changing() || now.since(self.glances.acted) <= METADATA_LAG;
        if changing || told == told_by(&self.pool.enis()) || self.glances.known.as_ref() == Some(&told) {
            return;
        }
        tracing::info!("instance metadata tells other addresses than the books have; EC2 is asked");
        self.glances.known = Some(told);
        self.cloud.stale = true;
    }

    /// When the next glance is due.
    pub(super) fn glance_wakeup(&self) -> Option<Moment> {
        let waits = self.settings.glance_every.is_some() && self.cloud.pictured && !self.glances.glancing;
        waits.then_some(self.glances.due)
    }
}

/// How often EC2 is asked for the ENIs although nothing happened; instance metadata is glanced at in between.
pub const AUDIT_EVERY: Duration = Duration::from_secs(6 * 3600);
/// How often instance metadata is glanced at.
pub const GLANCE_EVERY: Duration = Duration::from_secs(900);
