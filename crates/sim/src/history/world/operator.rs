//! The operator: puts the brake on and takes it off, cordons the node, and fills it.

use std::collections::BTreeSet;

use node::Event;
use node::hold::Hold;
use pool::Action;
use wire::Verb;

use super::{Held, World, hold};

/// What a full node may have beside what its pods want (`pool`), and what the last prefix may have beyond that.
const SPARE: u32 = 2;
const STEP: u32 = 15;

impl World {
    /// The daemon reads what is held back.
    pub(super) fn put_on(&mut self, what: Hold) -> Held {
        self.hold = what;
        self.hear(Event::Held(what))
    }

    /// Nothing is begun in EC2 that the operator holds back, and nothing goes back on a node that is left alone.
    pub(super) fn check_hold(&self, action: Option<&Action>) -> Held {
        let leaves = action.is_some_and(|action| action.leaving().is_some());
        let allowed = match self.hold {
            Hold::Nothing => true,
            Hold::Releases => !leaves,
            Hold::Changes => false,
        };
        hold!(allowed, "{:?} are held back, and it begins {action:?}", self.hold);
        hold!(!leaves || !self.told.is_left_alone(), "the node is left alone, and gives back: {action:?}");
        Ok(())
    }

    /// A node that no further pod fits asks for no more than for those that are on it or wait, and a few.
    pub(super) fn check_fullness(&self, action: &Action) -> Held {
        let (Some(told), Some(node)) = (self.told.full(), &self.node) else { return Ok(()) };
        let have: BTreeSet<_> = node.pool().holders().map(|(owner, _)| &owner.pod).collect();
        let is_add = |verb: &Verb| matches!(verb, Verb::Add(_));
        let adds = self.calls.values().filter(|pending| pending.arrived && is_add(&pending.request.verb));
        let (coming, waiting) = (told.iter().filter(|pod| !have.contains(pod)).count(), adds.count());
        let step = if self.script.setup.prefixes { STEP } else { 0 };
        let most = u32::try_from(coming + waiting).unwrap_or(u32::MAX).saturating_add(SPARE + step);
        hold!(action.brings() <= most, "the node is full, {coming} pods come, {waiting} wait: {action:?}");
        Ok(())
    }
}
