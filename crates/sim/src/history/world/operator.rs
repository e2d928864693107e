//! The operator: puts the brake on and takes it off, and cordons the node.

use node::Event;
use node::hold::Hold;
use pool::Action;

use super::{Held, World, hold};

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
}
