//! Reference plugins of the CNI project, which `ipamd install` puts on nodes that have none.

use std::fs;
use std::path::Path;

use oci::File;

use super::{Architecture, elf, read};
use crate::steps::Failure;

/// Those that our conflist can name, and what pods lack without them. `loopback` is not among them: `aws-cni` serves under that name.
const PLUGINS: [(&str, &str); 3] = [
    ("portmap", "host ports"),
    ("bandwidth", "limits of bandwidth (ENABLE_BANDWIDTH_PLUGIN)"),
    ("tuning", "IPv6 switched off (DISABLE_POD_V6)"),
];
/// Where the installer looks for them in the image.
const TO: &str = "plugins";
const LICENCE: &str = "LICENSE";

/// The plugins of a directory for an architecture. Without a directory it is said what nodes may lack; with one, all have to be there.
pub(super) fn files(directory: Option<&Path>, architecture: Architecture) -> Result<Vec<File>, Failure> {
    let Some(directory) = directory.map(|directory| directory.join(architecture.name())) else {
        for (name, lacks) in PLUGINS {
            println!(
                "── WITHOUT {TO}/{name}: no {lacks} on nodes that have none of their own; see --plugins"
            );
        }
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for (name, _) in PLUGINS {
        let from = directory.join(name);
        let file = read(&from, &format!("{TO}/{name}"), 0o755)?;
        let judged = elf::check(&file.content, architecture.machine());
        judged.map_err(|why| Failure::Why(format!("{}: {why}", from.display())))?;
        files.push(file);
    }
    let licence = directory.join(LICENCE);
    match fs::exists(&licence) {
        Ok(true) => files.push(read(&licence, "licences/plugins.txt", 0o644)?),
        Ok(false) | Err(_) => println!("── WITHOUT licences/plugins.txt: there is no {}", licence.display()),
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::program;
    use super::*;

    fn release(of: &Path, architecture: Architecture, machine: u8) {
        let directory = of.join(architecture.name());
        fs::create_dir_all(&directory).unwrap();
        for name in ["portmap", "bandwidth", "tuning", "ptp"] {
            fs::write(directory.join(name), program(machine, &[1])).unwrap();
        }
        fs::write(directory.join("LICENSE"), "Apache").unwrap();
    }

    #[test]
    fn the_plugins_of_an_architecture_come_with_their_licence_and_without_what_nobody_needs() {
        let releases = tempfile::tempdir().unwrap();
        release(releases.path(), Architecture::Amd64, 62);
        release(releases.path(), Architecture::Arm64, 183);

        let of = |architecture| files(Some(releases.path()), architecture).unwrap();
        let names: Vec<(String, u32)> =
            of(Architecture::Arm64).into_iter().map(|file| (file.path, file.mode)).collect();

        let wanted = [
            ("plugins/portmap", 0o755),
            ("plugins/bandwidth", 0o755),
            ("plugins/tuning", 0o755),
            ("licences/plugins.txt", 0o644),
        ];
        assert_eq!(names, wanted.map(|(name, mode)| (name.to_owned(), mode)));
        assert_eq!(of(Architecture::Amd64).len(), 4);
        assert_eq!(files(None, Architecture::Amd64).unwrap(), []);
    }

    #[test]
    fn a_plugin_that_is_missing_or_of_another_machine_is_told_by_its_path() {
        let releases = tempfile::tempdir().unwrap();
        release(releases.path(), Architecture::Amd64, 183);
        let why = |architecture| match files(Some(releases.path()), architecture) {
            Err(Failure::Why(why)) => why,
            other => panic!("{other:?}"),
        };

        assert!(why(Architecture::Amd64).contains("amd64/portmap: is for machine 183"));
        assert!(why(Architecture::Arm64).contains("arm64/portmap: No such file"));
    }
}
