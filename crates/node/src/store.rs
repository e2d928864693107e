//! The state on disk: what its lines say, and how they are read and written.
//!
//! Every line is a checksum (FNV-1a, hexadecimal), a space, JSON, and a line feed. A cut last line is what a crash leaves; it was
//! never promised to anyone and is dropped. Of any other damage every line is kept that checks.

use std::io;
use std::net::Ipv4Addr;

use pool::Snapshot;
use serde::{Deserialize, Serialize};
use types::{Ipv6Prefix, Moment, NetworkCard, SandboxKey};

use crate::checkpoint::Checkpoint;

/// Version of the file's form. A newer one is set aside, not guessed at.
pub const VERSION: u32 = 1;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
pub enum Record {
    /// Everything, at the head of a file.
    Snapshot {
        /// [`VERSION`].
        version: u32,
        /// The pool.
        pool: Box<Snapshot>,
        /// The IPv6 prefix.
        #[serde(default)]
        ipv6: Ipv6Books,
    },
    /// All that is remembered of the IPv6 prefix, anew.
    Ipv6(Ipv6Books),
    /// A sandbox got an address.
    Assigned {
        /// Who.
        owner: pool::Owner,
        /// What.
        address: Ipv4Addr,
        /// The network card whose ENI has it, where that is known. Nothing but the Go version's checkpoint needs it.
        #[serde(default)]
        card: Option<NetworkCard>,
    },
    /// A call that takes this away is about to be made: EC2 may go on showing it for a while, also after a restart.
    Leaving {
        /// What.
        leaving: pool::Leaving,
        /// When. Files of before do not tell it.
        #[serde(default)]
        at: Option<Moment>,
    },
    /// A sandbox gave its address back.
    Released {
        /// Who.
        sandbox: SandboxKey,
        /// When; the address cools from then on.
        at: Moment,
    },
}

impl Record {
    /// When this was so, as far as it tells.
    #[must_use]
    pub fn at(&self) -> Option<Moment> {
        match self {
            Self::Snapshot { pool, .. } => pool.last(),
            Self::Ipv6(_) => None,
            Self::Assigned { owner, .. } => Some(owner.since),
            Self::Leaving { at, .. } => *at,
            Self::Released { at, .. } => Some(*at),
        }
    }
}

/// What is remembered of the primary ENI's IPv6 prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ipv6Books {
    /// The one that we asked EC2 for and have not given back; one of others is never given back.
    pub ours: Option<Ipv6Prefix>,
    /// The one that was last given back, or may have been, and when: EC2 may go on showing it for a while.
    pub left: Option<(Ipv6Prefix, Moment)>,
}

/// What the files held.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Lines in order; a snapshot first, if there was one.
    pub records: Vec<Record>,
    /// What was wrong with the file, in words, and where it was set aside.
    pub damage: Option<String>,
    /// The Go version's checkpoint, which is another file.
    pub checkpoint: Option<Checkpoint>,
}

impl Loaded {
    /// What these bytes of a state file hold.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let (records, damage) = parse(bytes);
        Self { records, damage, checkpoint: None }
    }
}

/// A record as a line of the file.
pub fn line(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let mut line = format!("{:016x} ", checksum(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

/// FNV-1a, 64 bit: tells a torn or bit-flipped line from a whole one.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The good lines, and what is wrong with the others. A cut last line is not damage.
fn parse(bytes: &[u8]) -> (Vec<Record>, Option<String>) {
    let mut records = Vec::new();
    let mut bad = Vec::new();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    for (number, text) in lines.iter().enumerate() {
        match parse_line(text) {
            Some(Record::Snapshot { version, .. }) if version != VERSION => {
                return (Vec::new(), Some(format!("version {version} is not {VERSION}")));
            }
            Some(record) => records.push(record),
            None if number > 0 && number + 1 == lines.len() && !text.ends_with(b"\n") => {}
            None => bad.push(number + 1),
        }
    }
    if bytes.is_empty() {
        return (records, Some("the file is empty".to_owned()));
    }
    let damage = bad
        .first()
        .map(|first| format!("{} of {} lines are not ours, the first is {first}", bad.len(), lines.len()));
    (records, damage)
}

fn parse_line(text: &[u8]) -> Option<Record> {
    let text = text.strip_suffix(b"\n")?;
    let (sum, rest) = text.split_at_checked(16)?;
    let json = rest.strip_prefix(b" ")?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    if sum != checksum(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_the_ipv6_prefix_is_loaded_and_older_files_have_none() {
        let prefix: Ipv6Prefix = "2001:db8::/80".parse().unwrap();
        let books = Ipv6Books { ours: Some(prefix), left: Some((prefix, Moment(7))) };
        let snapshot = |ipv6| Record::Snapshot { version: VERSION, pool: Box::default(), ipv6 };
        for record in [snapshot(books), Record::Ipv6(books)] {
            assert_eq!(parse(&line(&record).unwrap()), (vec![record], None));
        }
        let mut json = serde_json::to_value(snapshot(books)).unwrap();
        json.as_object_mut().unwrap().remove("ipv6");
        let old: Record = serde_json::from_value(json).unwrap();
        assert_eq!(old, snapshot(Ipv6Books::default()));
    }

    #[test]
    fn a_leaving_of_before_tells_no_moment() {
        let json = r#"{"record":"leaving","leaving":{"eni":"eni-1","given":null}}"#;
        let told = serde_json::from_str(json).unwrap();
        assert!(matches!(told, Record::Leaving { at: None, .. }));
    }
}
