//! Trunk and branch ENIs: an ENI of its own kind in an instance, whose VLANs lead to ENIs that are in none.
//!
//! The VPC resource controller makes them (`CreateNetworkInterface` with `InterfaceType=trunk`, `AssociateTrunkInterface`); nobody calls that over
//! HTTP here. Codes of refusals are those that the API reference has for such a thing in general: none was seen of these calls.

use std::sync::Arc;

use types::{EniId, VlanId};

use super::error::ApiError;
use super::model::{Event, Model};
use super::view::{AttachState, EniKind, EniView};

impl Model {
    /// AssociateTrunkInterface: refused where the trunk is none or in no instance, the VLAN is taken, or the branch is tied to something already.
    pub fn associate(&mut self, trunk: &EniId, branch: &EniId, vlan: VlanId) -> Result<String, ApiError> {
        let (of, to) = (Arc::clone(self.eni(trunk)?), Arc::clone(self.eni(branch)?));
        let attached = of.attachment.as_ref().is_some_and(|tie| tie.state == AttachState::Attached);
        if of.kind != EniKind::Trunk || !attached {
            return Err(ApiError::value(format!("Interface '{trunk}' is not an attached trunk interface.")));
        }
        if to.kind != EniKind::Interface || to.attachment.is_some() {
            return Err(ApiError::new(
                "InvalidNetworkInterface.InUse",
                format!("Interface: [{branch}] in use."),
            ));
        }
        let there: Vec<VlanId> = self.branches_of(trunk).into_iter().map(|(vlan, _)| vlan).collect();
        if there.contains(&vlan) {
            return Err(ApiError::value(format!("VLAN {vlan} of '{trunk}' is in use.")));
        }
        let room = self.limits_of(&of).map_or(0, |limits| usize::from(limits.branch_enis));
        if there.len() >= room {
            let message = format!("The instance allows {room} branch interfaces.");
            return Err(ApiError::new("AttachmentLimitExceeded", message));
        }
        let id = format!("trunk-assoc-{}", self.new_tail());
        self.eni_mut(branch)?.kind = EniKind::Branch { association: id.clone(), trunk: trunk.clone(), vlan };
        if let Some(instance) = of.inside().cloned() {
            let branch = Arc::clone(self.eni(branch)?);
            self.say(Event::Associated(instance, of, branch));
        }
        Ok(id)
    }

    /// DisassociateTrunkInterface: refused where it is no branch of anything.
    pub fn disassociate(&mut self, branch: &EniId) -> Result<(), ApiError> {
        let before = Arc::clone(self.eni(branch)?);
        let EniKind::Branch { trunk, .. } = &before.kind else {
            return Err(ApiError::value(format!("Interface '{branch}' is not associated.")));
        };
        self.eni_mut(branch)?.kind = EniKind::Interface;
        let trunk = Arc::clone(self.eni(trunk)?);
        if let Some(instance) = trunk.inside().cloned() {
            self.say(Event::Disassociated(instance, before));
        }
        Ok(())
    }

    /// The branches of a trunk with their VLANs.
    #[must_use]
    pub fn branches_of(&self, of: &EniId) -> Vec<(VlanId, Arc<EniView>)> {
        let branch = |eni: &Arc<EniView>| match &eni.kind {
            EniKind::Branch { trunk, vlan, .. } if trunk == of => Some((*vlan, Arc::clone(eni))),
            EniKind::Branch { .. } | EniKind::Interface | EniKind::Trunk => None,
        };
        self.enis().filter_map(branch).collect()
    }

    /// A trunk leaves its instance, and its branches lose their way.
    pub(super) fn end_branches(&mut self, trunk: &EniId) {
        for (_, branch) in self.branches_of(trunk) {
            // It was just found to be one.
            let _ended = self.disassociate(&branch.id);
        }
    }
}
