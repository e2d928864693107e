//! What is put on the host: the plugin's binary and kernel settings (`ipamd install`), and the conflist, which the daemon itself
//! writes once an ADD would succeed.
//!
//! `ipamd uninstall` takes the conflist away and nothing else: the pods that are there need the plugin for their DEL.

mod conflist;
mod files;

use std::io;
use std::path::{Path, PathBuf};

use datapath::{desired, put_sysctl_below};

use crate::config::Config;

pub use conflist::{Published, Publisher, published_file, render};
pub use files::Outcome;

/// The file by which runtimes find us; the Go version's has the same name, so that one replaces the other.
pub const CONFLIST: &str = "10-aws.conflist";
/// Where our image has the plugin.
pub const IMAGE_PLUGIN: &str = "/aws-cni";
/// The plugin's file.
pub(crate) const PLUGIN: &str = "aws-cni";
/// The plugin that containerd runs for every sandbox beside those of the conflist. Ours serves under this name where the node has none.
const LOOPBACK: &str = "loopback";
/// Plugins of other people that pods or the conflist need and that an image may bring.
const NEIGHBOURS: [&str; 4] = ["portmap", "bandwidth", "tuning", LOOPBACK];

/// Where the installer finds what it puts on the host.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The plugin.
    pub plugin: PathBuf,
    /// A directory with plugins of other people; it need not be there.
    pub neighbours: PathBuf,
    /// Where the host's `/proc/sys` is; of it only `net` is needed.
    pub sysctls: PathBuf,
}

/// Why the host is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be put in place.
    #[error("cannot put {from} at {to}")]
    Copy {
        /// What.
        from: PathBuf,
        /// Where.
        to: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A kernel setting could not be made.
    #[error("cannot set {path} to {value}")]
    Sysctl {
        /// The setting, as a file.
        path: PathBuf,
        /// What it should say.
        value: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The conflist could not be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Puts plugins and kernel settings on the host; says what became of each. What is as it should be is not touched.
///
/// # Errors
/// The first thing that cannot be done. What came before it is done, and can be done again.
pub fn install(config: &Config, sources: &Sources, say: &mut dyn FnMut(&str)) -> Result<(), InstallError> {
    let to = config.install.bin_dir.join(PLUGIN);
    let outcome = files::replace(&sources.plugin, &to).map_err(copying(&sources.plugin, &to))?;
    say(&format!("{}: {outcome}", to.display()));
    for name in NEIGHBOURS {
        let (from, to) = (sources.neighbours.join(name), config.install.bin_dir.join(name));
        match files::put_unless_newer(&from, &to) {
            Ok(outcome) => say(&format!("{}: {outcome}", to.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => {
                let there = absent(name, &to).map_err(copying(&from, &to))?;
                say(&format!("{name}: {there}"));
            }
            Err(source) => return Err(copying(&from, &to)(source)),
        }
    }
    sysctls(config, &sources.sysctls, say)
}

/// What becomes of a plugin of other people that the image does not bring.
fn absent(name: &str, to: &Path) -> io::Result<&'static str> {
    match (to.exists(), name) {
        (true, _) => Ok("the node has its own"),
        // A link follows ours to its next version, and the Go version's installer replaces it by a file.
        (false, LOOPBACK) => {
            files::link(Path::new(PLUGIN), to).map(|()| "the node has none, so it is a link to aws-cni")
        }
        (false, _) => Ok("neither here nor on the node; pods have none of what it does"),
    }
}

fn copying(from: &Path, to: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let (from, to) = (from.to_owned(), to.to_owned());
    move |source| InstallError::Copy { from, to, source }
}

/// Those that the daemon does not make itself.
fn sysctls(config: &Config, root: &Path, say: &mut dyn FnMut(&str)) -> Result<(), InstallError> {
    for setting in desired::sysctls_of_installation(config.install.early_demux, config.families.has_ipv6()) {
        let path = root.join(&setting.path);
        match put_sysctl_below(root, &setting) {
            Ok(true) => say(&format!("{}: set to {}", path.display(), setting.value)),
            Ok(false) => say(&format!("{}: is {} already", path.display(), setting.value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && setting.path == desired::EARLY_DEMUX => {
                say(&format!("{}: this kernel has none", path.display()));
            }
            Err(source) => return Err(InstallError::Sysctl { path, value: setting.value, source }),
        }
    }
    Ok(())
}

/// Takes the conflist away: the runtime then starts no new pods here, and those that are there stay as they are. What was written down of it
/// goes too, so that nobody misses it. Tells whether there was one.
///
/// # Errors
/// As the file system says.
pub fn uninstall(config: &Config) -> Result<bool, InstallError> {
    let was_there = remove(config.install.conf_dir.join(CONFLIST))?;
    remove(published_file(&config.run_dir))?;
    Ok(was_there)
}

fn remove(path: PathBuf) -> Result<bool, InstallError> {
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(InstallError::Remove { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::server::chain;

    struct Host {
        _dir: tempfile::TempDir,
        config: Config,
        sources: Sources,
    }

    /// A host with both directories, an image with a plugin, and a kernel with IPv6.
    fn host(settings: &[(&str, &str)]) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "conf", "image", "sys/net/ipv4", "sys/net/ipv6/conf/all"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("aws-cni"), "plugin").unwrap();
        fs::write(at("sys/net/ipv4/tcp_early_demux"), "1\n").unwrap();
        fs::write(at("sys/net/ipv6/conf/all/disable_ipv6"), "1\n").unwrap();
        let own = [("HOST_CNI_BIN_PATH", at("bin")), ("HOST_CNI_CONFDIR_PATH", at("conf"))];
        let own = own.iter().map(|(name, path)| ((*name).into(), path.into()));
        let given = settings.iter().map(|(name, text)| (name.into(), text.into()));
        let config = Config::parse(&own.chain(given).collect()).unwrap();
        let config = Config { run_dir: at(""), ..config };
        let sources = Sources { plugin: at("aws-cni"), neighbours: at("image"), sysctls: at("sys") };
        Host { _dir: dir, config, sources }
    }

    fn run(host: &Host) -> Result<Vec<String>, InstallError> {
        let mut said = Vec::new();
        install(&host.config, &host.sources, &mut |line| said.push(line.to_owned()))?;
        Ok(said)
    }

    #[test]
    fn the_plugin_is_put_in_place_for_everybody_to_execute_and_replaced_by_another_one_only() {
        let host = host(&[]);
        let plugin = host.config.install.bin_dir.join("aws-cni");

        assert!(run(&host).unwrap()[0].ends_with("aws-cni: put in place"));
        assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o7777, 0o755);
        assert!(run(&host).unwrap()[0].ends_with("aws-cni: is there already"));
        fs::write(&host.sources.plugin, "another").unwrap();
        assert!(run(&host).unwrap()[0].ends_with("aws-cni: replaced"));

        assert_eq!(fs::read_to_string(&plugin).unwrap(), "another");
        // It and the link of loopback, and nothing that was on the way.
        assert_eq!(fs::read_dir(&host.config.install.bin_dir).unwrap().count(), 2);
    }

    #[test]
    fn the_installer_sets_what_the_daemon_does_not_and_ipv6_only_where_pods_have_it() {
        let read = |host: &Host, name: &str| fs::read_to_string(host.sources.sysctls.join(name)).unwrap();
        let (plain, other) =
            (host(&[]), host(&[("ENABLE_IPv6", "true"), ("DISABLE_TCP_EARLY_DEMUX", "true")]));

        run(&plain).unwrap();
        run(&other).unwrap();

        let of =
            |host| (read(host, "net/ipv4/tcp_early_demux"), read(host, "net/ipv6/conf/all/disable_ipv6"));
        assert_eq!(of(&plain), ("1\n".to_owned(), "1\n".to_owned()));
        assert_eq!(of(&other), ("0".to_owned(), "0".to_owned()));
    }

    #[test]
    fn a_kernel_without_the_switch_is_no_error_and_one_without_ipv6_is() {
        let host = host(&[("ENABLE_IPv6", "true")]);
        fs::remove_dir_all(host.sources.sysctls.join("net")).unwrap();

        let error = chain(&run(&host).unwrap_err());

        assert!(error.contains("disable_ipv6 to 0: No such file"), "{error}");
    }

    #[test]
    fn a_missing_plugin_or_directory_is_told_by_its_path() {
        let host = host(&[]);
        fs::remove_file(&host.sources.plugin).unwrap();
        assert!(chain(&run(&host).unwrap_err()).contains("aws-cni"));

        fs::write(&host.sources.plugin, "plugin").unwrap();
        fs::remove_dir(&host.config.install.bin_dir).unwrap();
        let error = chain(&run(&host).unwrap_err());
        assert!(error.contains("bin/aws-cni: No such file"), "{error}");
    }

    #[test]
    fn a_node_without_loopback_gets_ours_by_a_link_and_one_that_has_its_own_keeps_it() {
        let (bare, own) = (host(&[]), host(&[]));
        let loopback = |host: &Host| host.config.install.bin_dir.join("loopback");
        fs::write(loopback(&own), "theirs").unwrap();

        let said = run(&bare).unwrap();
        run(&own).unwrap();

        assert!(said.iter().any(|line| line.starts_with("loopback: the node has none")), "{said:?}");
        assert_eq!(fs::read_link(loopback(&bare)).unwrap(), Path::new("aws-cni"));
        assert_eq!(fs::read_to_string(loopback(&bare)).unwrap(), "plugin");
        assert_eq!(fs::read_to_string(loopback(&own)).unwrap(), "theirs");
        // It leads to the next version, and gives way to one that an image brings.
        fs::write(&bare.sources.plugin, "next").unwrap();
        assert!(run(&bare).unwrap().iter().any(|line| line == "loopback: the node has its own"));
        assert_eq!(fs::read_to_string(loopback(&bare)).unwrap(), "next");
        fs::remove_file(loopback(&bare)).unwrap();
        std::os::unix::fs::symlink("gone", loopback(&bare)).unwrap();
        run(&bare).unwrap();
        assert_eq!(fs::read_link(loopback(&bare)).unwrap(), Path::new("aws-cni"));
    }

    #[test]
    fn a_loopback_of_the_image_is_put_where_the_node_has_none() {
        let host = host(&[]);
        fs::write(host.sources.neighbours.join("loopback"), "reference").unwrap();

        run(&host).unwrap();

        assert_eq!(fs::read_to_string(host.config.install.bin_dir.join("loopback")).unwrap(), "reference");
    }

    #[test]
    fn uninstalling_takes_the_conflist_and_leaves_the_plugin() {
        let host = host(&[]);
        run(&host).unwrap();
        fs::write(host.config.install.conf_dir.join(CONFLIST), "{}").unwrap();
        fs::write(published_file(&host.config.run_dir), "{}").unwrap();

        assert!(uninstall(&host.config).unwrap());
        assert!(!published_file(&host.config.run_dir).exists(), "doctor would miss the conflist");
        assert!(!uninstall(&host.config).unwrap());
        assert!(host.config.install.bin_dir.join("aws-cni").exists());
    }
}
