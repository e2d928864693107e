//! Bugs put between the node and its world on purpose, to see that the simulator finds them.

use node::cloud::{CloudError, CloudErrorKind};
use node::cluster::{EniConfigNews, News};
use node::hold::Hold;
use node::{Chore, Effect, Event, Picture};
use pool::Role;
use types::{Moment, NetworkCard};

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A caller hears of an address before it is on disk.
    AnswersBeforeTheDisk,
    /// Releases do not reach the disk.
    LosesReleases,
    /// After a restart the kernel is not asked which pods there are.
    IgnoresTheKernel,
    /// Cooldowns do not survive a restart.
    ForgetsCooling,
    /// It is forgotten that an ADD started before the DEL that overtook it.
    ForgetsTheOrder,
    /// Descriptions of EC2 are taken for as new as their arrival.
    TrustsOldPictures,
    /// Silence after a change is taken for a refusal.
    TakesSilenceForRefusal,
    /// What cut-off calls have left behind stays.
    LeavesChores,
    /// The wiring of released pods stays.
    KeepsLinks,
    /// ENIs of other instances that are attached to nothing are deleted as soon as they are seen.
    HasNoPatience,
    /// Idle addresses in the form of the mode before are never given back.
    KeepsTheOtherForm,
    /// ENIs of others are taken for ours.
    TakesOthersForOurs,
    /// ENIs with EFA are taken for plain ones.
    TakesEfaForPlain,
    /// With custom networking pods get addresses of the primary ENI.
    UsesThePrimary,
    /// That an ENIConfig was deleted is taken for trouble with the API server.
    TakesAbsenceForTrouble,
    /// ENIs serve pods before their links are there.
    ServesBeforeTheLink,
    /// The kernel steers by the wish before the last.
    SteersByTheWishBefore,
    /// What an operator holds back is not held back.
    IgnoresTheBrake,
    /// That the node is cordoned is not heard.
    IgnoresTheCordon,
    /// What CPU pods leave is not heard.
    IgnoresTheFullness,
    /// ENIs of all network cards are taken for the first one's.
    TakesAllCardsForOne,
}

impl Plant {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::AnswersBeforeTheDisk,
        Self::LosesReleases,
        Self::IgnoresTheKernel,
        Self::ForgetsCooling,
        Self::ForgetsTheOrder,
        Self::TrustsOldPictures,
        Self::TakesSilenceForRefusal,
        Self::LeavesChores,
        Self::KeepsLinks,
        Self::HasNoPatience,
        Self::KeepsTheOtherForm,
        Self::TakesOthersForOurs,
        Self::TakesEfaForPlain,
        Self::UsesThePrimary,
        Self::TakesAbsenceForTrouble,
        Self::ServesBeforeTheLink,
        Self::SteersByTheWishBefore,
        Self::IgnoresTheBrake,
        Self::IgnoresTheCordon,
        Self::IgnoresTheFullness,
        Self::TakesAllCardsForOne,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AnswersBeforeTheDisk => "answers-before-the-disk",
            Self::LosesReleases => "loses-releases",
            Self::IgnoresTheKernel => "ignores-the-kernel",
            Self::ForgetsCooling => "forgets-cooling",
            Self::ForgetsTheOrder => "forgets-the-order",
            Self::TrustsOldPictures => "trusts-old-pictures",
            Self::TakesSilenceForRefusal => "takes-silence-for-refusal",
            Self::LeavesChores => "leaves-chores",
            Self::KeepsLinks => "keeps-links",
            Self::HasNoPatience => "has-no-patience",
            Self::KeepsTheOtherForm => "keeps-the-other-form",
            Self::TakesOthersForOurs => "takes-others-for-ours",
            Self::TakesEfaForPlain => "takes-efa-for-plain",
            Self::UsesThePrimary => "uses-the-primary",
            Self::TakesAbsenceForTrouble => "takes-absence-for-trouble",
            Self::ServesBeforeTheLink => "serves-before-the-link",
            Self::SteersByTheWishBefore => "steers-by-the-wish-before",
            Self::IgnoresTheBrake => "ignores-the-brake",
            Self::IgnoresTheCordon => "ignores-the-cordon",
            Self::IgnoresTheFullness => "ignores-the-fullness",
            Self::TakesAllCardsForOne => "takes-all-cards-for-one",
        }
    }

    /// What the node hears in place of an event.
    pub(crate) fn event(self, event: Event, now: Moment) -> Event {
        match (self, event) {
            (Self::TrustsOldPictures, Event::Looked(Ok(mut picture))) => {
                // Later than any change, so that no lag is allowed for.
                picture.as_of = now.plus(2 * pool::PICTURE_LAG_MAX);
                Event::Looked(Ok(picture))
            }
            (Self::TakesSilenceForRefusal, Event::Acted { id, result: Err(error) })
                if error.kind() == CloudErrorKind::Unclear =>
            {
                let refusal = CloudError::new(CloudErrorKind::Other, error.call(), "no answer");
                Event::Acted { id, result: Err(refusal) }
            }
            (Self::HasNoPatience, Event::Looked(Ok(mut picture))) => {
                picture.chores.extend(picture.strays.iter().map(|stray| Chore::Delete(stray.eni.clone())));
                Event::Looked(Ok(picture))
            }
            (Self::TakesOthersForOurs, Event::Looked(Ok(mut picture))) => {
                take_for_plain(&mut picture, &[Role::Unmanaged, Role::Trunk]);
                Event::Looked(Ok(picture))
            }
            (Self::TakesEfaForPlain, Event::Looked(Ok(mut picture))) => {
                take_for_plain(&mut picture, &[Role::Efa]);
                Event::Looked(Ok(picture))
            }
            (Self::TakesAllCardsForOne, Event::Looked(Ok(mut picture))) => {
                picture.enis.iter_mut().for_each(|eni| eni.card = NetworkCard(0));
                Event::Looked(Ok(picture))
            }
            (Self::TakesAbsenceForTrouble, Event::Cluster(News::EniConfig(name, EniConfigNews::Absent))) => {
                let trouble = EniConfigNews::Trouble("it is not there".to_owned());
                Event::Cluster(News::EniConfig(name, trouble))
            }
            (Self::ServesBeforeTheLink, Event::Converged { generation, result: Ok(mut made) }) => {
                made.missing.clear();
                Event::Converged { generation, result: Ok(made) }
            }
            (Self::IgnoresTheBrake, Event::Held(_)) => Event::Held(Hold::Nothing),
            (Self::IgnoresTheCordon, Event::Cluster(News::Node(mut object))) => {
                object.unschedulable = false;
                Event::Cluster(News::Node(object))
            }
            (Self::IgnoresTheFullness, Event::Cluster(News::Node(mut object))) => {
                object.cpu = None;
                Event::Cluster(News::Node(object))
            }
            (_, event) => event,
        }
    }

    /// What is done in place of an effect.
    pub(crate) fn effect(self, effect: Effect) -> Option<Effect> {
        match (self, effect) {
            (Self::LeavesChores, Effect::Tidy(_)) | (Self::KeepsLinks, Effect::Unwire(_)) => None,
            (_, effect) => Some(effect),
        }
    }
}

fn take_for_plain(picture: &mut Picture, roles: &[Role]) {
    for eni in picture.enis.iter_mut().filter(|eni| roles.contains(&eni.role)) {
        eni.role = Role::Secondary;
    }
}
