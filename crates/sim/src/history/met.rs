//! Which of the world's bad manners a history has met: one that is never met proves nothing.

use std::fmt;

/// A bad manner of the world, or what it takes pains to meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// An ENI tagged to be left alone is attached while the daemon may run.
    Unmanaged,
    /// An ENI without any tag is attached, and only tagged ones are ours.
    Untagged,
    /// An ENI without an IPv4 address is attached, for EFA alone.
    EfaOnly,
    /// An ENI with EFA is attached, which pods may use and which is never deleted.
    Efa,
    /// The trunk ENI of branch ENIs is attached.
    Trunk,
    /// An ENI of somebody else stands at a device index beyond what we would use.
    HighDevice,
    /// An ENI of somebody else leaves a gap in the device indices.
    DeviceGap,
    /// Somebody detaches their ENI again.
    ForeignLeaves,
    /// An ENI of ours cannot be attached: others hold its place, or the last one.
    PlaceTaken,
    /// EC2 describes our ENIs as they were before a change that it had confirmed.
    OlderThanOurWrite,
    /// What EC2 describes is outdated by more than a minute.
    MinutesOld,
    /// EC2 describes something older than it has described before.
    OutOfOrder,
    /// EC2's list of ENIs that are attached to nothing is older than that of those that are.
    LooseListOld,
    /// Instance metadata tells something else than EC2 at the same time.
    MetadataBehind,
    /// Two lists of instance metadata are of different times, and disagree.
    MetadataDisagrees,
    /// The node's ENIConfig is deleted.
    ConfigAbsent,
    /// It names another subnet than before.
    ConfigElsewhere,
    /// It names a subnet that does not exist.
    ConfigWithoutSubnet,
    /// It names a security group that does not exist.
    ConfigWithoutGroup,
    /// EC2 refuses an ENI for want of such a group.
    GroupRefused,
    /// It cannot be read.
    ConfigUnreadable,
    /// The node is given another ENIConfig.
    ConfigRenamed,
    /// The API server does not answer.
    ClusterAway,
    /// The node object is deleted.
    NodeObjectGone,
    /// After trouble the ENIConfig is as it should be again.
    ConfigRestored,
    /// The node is cordoned.
    Cordoned,
    /// The daemon starts while neither instance metadata nor EC2 answers, and goes on from what was known.
    DarkStart,
    /// A pod runs with an interface of each of several network cards.
    WidePod,
    /// Such a pod has fewer: of the other cards pods get nothing, for EFA alone stands there.
    NarrowedPod,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::Unmanaged,
        Self::Untagged,
        Self::EfaOnly,
        Self::Efa,
        Self::Trunk,
        Self::HighDevice,
        Self::DeviceGap,
        Self::ForeignLeaves,
        Self::PlaceTaken,
        Self::OlderThanOurWrite,
        Self::MinutesOld,
        Self::OutOfOrder,
        Self::LooseListOld,
        Self::MetadataBehind,
        Self::MetadataDisagrees,
        Self::ConfigAbsent,
        Self::ConfigElsewhere,
        Self::ConfigWithoutSubnet,
        Self::ConfigWithoutGroup,
        Self::GroupRefused,
        Self::ConfigUnreadable,
        Self::ConfigRenamed,
        Self::ClusterAway,
        Self::NodeObjectGone,
        Self::ConfigRestored,
        Self::Cordoned,
        Self::DarkStart,
        Self::WidePod,
        Self::NarrowedPod,
    ];
}

impl fmt::Display for Manner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmanaged => "unmanaged ENIs",
            Self::Untagged => "ENIs without tags",
            Self::EfaOnly => "EFA-only ENIs",
            Self::Efa => "ENIs with EFA",
            Self::Trunk => "trunk ENIs",
            Self::HighDevice => "others' ENIs at high devices",
            Self::DeviceGap => "others' ENIs after a gap",
            Self::ForeignLeaves => "others' ENIs detached",
            Self::PlaceTaken => "own ENIs without a place",
            Self::OlderThanOurWrite => "looks older than our write",
            Self::MinutesOld => "looks minutes old",
            Self::OutOfOrder => "looks out of order",
            Self::LooseListOld => "older lists of loose ENIs",
            Self::MetadataBehind => "metadata unlike EC2",
            Self::MetadataDisagrees => "metadata unlike itself",
            Self::ConfigAbsent => "ENIConfigs deleted",
            Self::ConfigElsewhere => "ENIConfigs changed",
            Self::ConfigWithoutSubnet => "ENIConfigs without subnet",
            Self::ConfigWithoutGroup => "ENIConfigs without group",
            Self::GroupRefused => "ENIs refused for a group",
            Self::ConfigUnreadable => "ENIConfigs unreadable",
            Self::ConfigRenamed => "ENIConfigs renamed",
            Self::ClusterAway => "API server away",
            Self::NodeObjectGone => "node objects deleted",
            Self::ConfigRestored => "ENIConfigs restored",
            Self::Cordoned => "nodes cordoned",
            Self::DarkStart => "starts in the dark",
            Self::WidePod => "pods on several cards",
            Self::NarrowedPod => "pods on fewer cards",
        })
    }
}

/// How often each was met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Met([u64; Manner::ALL.len()]);

impl Met {
    /// Counts one.
    pub(super) fn note(&mut self, manner: Manner) {
        let counts = self.0.iter_mut().zip(Manner::ALL);
        counts.filter(|(_, of)| *of == manner).for_each(|(count, _)| *count += 1);
    }

    /// How often one was met.
    #[must_use]
    pub fn of(&self, manner: Manner) -> u64 {
        self.0.iter().zip(Manner::ALL).filter(|(_, of)| *of == manner).map(|(count, _)| count).sum()
    }

    /// Both together.
    pub(super) fn add(&mut self, other: Self) {
        for (ours, theirs) in self.0.iter_mut().zip(other.0) {
            *ours += theirs;
        }
    }
}
