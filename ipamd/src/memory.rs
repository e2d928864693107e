//! What the daemon last knew of its instance, in a file of the run directory: a start while instance metadata and EC2 are away
//! goes on from it.
//!
//! It is used only on the instance, in the boot and with the kind of addresses that it was written for, by a daemon that follows
//! one of ours: an image that was made of a running node carries it to others, and the Go version changes the same ENIs
//! without knowing of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use pool::Role;
use serde::{Deserialize, Serialize};
use types::Mac;

use crate::checkpoint;
use crate::families::Families;
use crate::node::Remembered;

/// Version of the file's form.
const VERSION: u32 = 1;
/// A file longer than this is not ours.
const READ_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The kernel's name for the time since the machine was started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which machine something was written on, and for which kind of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    boot: String,
    families: Families,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Written {
    version: u32,
    origin: Origin,
    remembered: Remembered,
}

impl Written {
    /// What is in it, wherever it was written.
    pub(crate) fn of(self) -> (Families, Remembered) {
        (self.origin.families, self.remembered)
    }
}

/// Where the file is.
pub(crate) fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("instance.json")
}

/// The file, and what it is to be of.
#[derive(Debug, Clone)]
pub(crate) struct MemoryFile {
    path: PathBuf,
    origin: Origin,
}

impl MemoryFile {
    /// That of this machine since it was started; `None` where the kernel does not say since when that is.
    pub(crate) fn here(run_dir: &Path, families: Families) -> Option<Self> {
        let boot = std::fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
        let origin = Origin { boot, families };
        (!origin.boot.is_empty()).then(|| Self { path: file(run_dir), origin })
    }

    /// Puts it on disk. What cannot be written is told, and missing at a start without instance metadata alone.
    pub(crate) fn write(&self, remembered: &Remembered) {
        let (origin, remembered) = (self.origin.clone(), remembered.clone());
        let bytes = serde_json::to_vec(&Written { version: VERSION, origin, remembered });
        let written = bytes.map_err(io::Error::from).and_then(|bytes| checkpoint::write(&self.path, &bytes));
        if let Err(error) = written {
            tracing::warn!(%error, file = %self.path.display(), "cannot write down what is known of the instance");
        }
    }

    /// Reads what was written here, if there is anything; `links` are the MAC addresses of the host's links.
    ///
    /// # Errors
    /// In words, why what is there is not used.
    pub(crate) fn load(&self, links: &BTreeSet<Mac>) -> Result<Option<Remembered>, String> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(READ_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| e.to_string())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        parse(&bytes, &self.origin, links).map(Some)
    }
}

/// What a file's bytes say. ENIs without a link here serve nobody; without the primary one it is another instance's.
fn parse(bytes: &[u8], origin: &Origin, links: &BTreeSet<Mac>) -> Result<Remembered, String> {
    let written: Written = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if written.version != VERSION {
        return Err(format!("its version {} is not {VERSION}", written.version));
    }
    if written.origin.boot != origin.boot {
        return Err("it is of another machine, or of before this one was started".to_owned());
    }
    if written.origin.families != origin.families {
        return Err("pods had another kind of addresses".to_owned());
    }
    let mut remembered = written.remembered;
    remembered.leave_out(|eni| !links.contains(&eni.mac));
    if remembered.enis.iter().all(|eni| eni.role != Role::Primary) {
        return Err("no link here has the MAC address of its primary ENI".to_owned());
    }
    Ok(remembered)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use pool::EniSeen;
    use types::{DeviceIndex, InstanceTable, NetworkCard};

    use super::*;
    use crate::node::Facts;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn eni(number: u8, role: Role) -> EniSeen {
        let address = |last| Ipv4Addr::new(10, 0, number, last);
        EniSeen {
            id: format!("eni-{number}").parse().unwrap(),
            mac: mac(number),
            card: NetworkCard(0),
            device: DeviceIndex(number),
            subnet: "subnet-1".parse().unwrap(),
            primary_address: address(4),
            addresses: (10..13).map(address).collect(),
            prefixes: BTreeSet::new(),
            role,
        }
    }

    /// Two ENIs with three addresses each on one m5.large.
    fn remembered() -> Remembered {
        let facts = Facts {
            instance: "i-1".parse().unwrap(),
            limits: InstanceTable::builtin().get("m5.large").unwrap().clone(),
            primary_address: Ipv4Addr::new(10, 0, 0, 4),
            subnet: "subnet-1".parse().unwrap(),
            vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
            ipv6: None,
        };
        Remembered {
            enis: vec![eni(0, Role::Primary), eni(1, Role::Secondary)],
            stranded: Vec::new(),
            lost: BTreeSet::new(),
            unlinked: Vec::new(),
            subnets: [("subnet-1".parse().unwrap(), "10.0.0.0/20".parse().unwrap())].into(),
            excluded: BTreeSet::new(),
            occupied: BTreeSet::new(),
            efa_only: BTreeSet::new(),
            ipv6: std::collections::BTreeMap::new(),
            ipv6_further: std::collections::BTreeMap::new(),
            ipv6_prefixes: BTreeSet::new(),
            facts,
        }
    }

    fn here() -> Origin {
        Origin { boot: "here".to_owned(), families: Families::V4 { egress: false } }
    }

    fn links(of: &[u8]) -> BTreeSet<Mac> {
        of.iter().map(|last| mac(*last)).collect()
    }

    fn written() -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let file = MemoryFile { path: directory.path().join("instance.json"), origin: here() };
        assert_eq!(file.load(&links(&[0])), Ok(None));
        file.write(&remembered());
        std::fs::read(&file.path).unwrap()
    }

    #[test]
    fn what_was_written_here_comes_back_as_it_was() {
        assert_eq!(parse(&written(), &here(), &links(&[0, 1, 7])), Ok(remembered()));
    }

    #[test]
    fn what_an_image_carries_from_another_instance_is_not_used() {
        let elsewhere = Origin { boot: "elsewhere".to_owned(), ..here() };
        assert!(parse(&written(), &elsewhere, &links(&[0, 1])).unwrap_err().contains("another machine"));
        // Also not where the boot seems to be the same.
        assert!(parse(&written(), &here(), &links(&[1, 8])).unwrap_err().contains("MAC address"));
    }

    #[test]
    fn what_was_written_for_other_addresses_is_not_used() {
        let other = Origin { families: Families::V6 { egress: true }, ..here() };
        assert!(parse(&written(), &other, &links(&[0, 1])).unwrap_err().contains("addresses"));
    }

    #[test]
    fn an_eni_that_was_taken_away_meanwhile_is_left_out() {
        let found = parse(&written(), &here(), &links(&[0])).unwrap();
        assert_eq!(found.enis, [eni(0, Role::Primary)]);
        assert_eq!(found.unlinked, [eni(1, Role::Secondary)]);
    }

    #[test]
    fn damage_and_newer_forms_are_refused_in_words() {
        let bytes = written();
        assert!(parse(&bytes[..bytes.len() / 2], &here(), &links(&[0, 1])).is_err());
        let newer = String::from_utf8(bytes).unwrap().replacen("\"version\":1", "\"version\":2", 1);
        assert!(parse(newer.as_bytes(), &here(), &links(&[0, 1])).unwrap_err().contains("version 2"));
    }
}
