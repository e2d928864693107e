//! The operator's brake: what is held back.

use std::fmt;

/// What is held back; later ones include earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Hold {
    /// Nothing.
    #[default]
    Nothing,
    /// Addresses and ENIs are not given back.
    Releases,
    /// Nothing is changed in EC2.
    Changes,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Releases => "releases",
            Self::Changes => "changes",
        })
    }
}
