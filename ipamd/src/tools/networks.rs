//! What leads the runtime to us, read from the node's disk: its directory of networks, and the plugin.
//!
//! Of files of other people it is told what they are called and whether they lead to us; of our own what the daemon writes, and of plugins that
//! others have put behind ours their type.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::evidence::{Look, NetworkFile, Networks, PluginSeen, Sum};
use super::saved;
use crate::install::{CONFLIST, PLUGIN, Published};

/// Where the daemon's container has directories of the node, by our manifests.
pub(super) const OF_HOST: &str = "/host";
/// Endings of the files that a runtime takes for networks (libcni's `ConfFiles`, as containerd calls it).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// A longer one no runtime reads.
const NETWORK_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// A plugin is some MB.
const PLUGIN_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Stands for what others have written.
const THEIRS: &str = "[left out]";

/// The path on the node of one that the daemon's container has.
fn on_node(path: &Path) -> PathBuf {
    path.strip_prefix(OF_HOST).map_or_else(|_| path.to_owned(), |below| Path::new("/").join(below))
}

/// The path by which we can see it: the daemon's, or the node's where we are not in the daemon's container.
fn visible(path: &Path) -> PathBuf {
    if path.parent().is_some_and(Path::exists) { path.to_owned() } else { on_node(path) }
}

/// The file that a path leads to in the end, if there is one.
fn followed(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    match std::fs::canonicalize(path) {
        Ok(path) => saved::bytes(&path, most),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why there is nothing to look for.
fn unpublished<T>() -> Look<T> {
    Look::Skipped("the daemon has not written down a conflist here yet".to_owned())
}

/// The runtime's directory of networks.
pub(super) fn networks(published: Option<&Published>) -> Look<Networks> {
    let Some(published) = published else { return unpublished() };
    let file = visible(&published.file);
    let dir = file.parent().unwrap_or(Path::new("/"));
    let names = match saved::names(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Look::Skipped(format!("{} is not to be seen from here", dir.display()));
        }
        Err(error) => return Look::Failed(format!("{}: {error}", dir.display())),
    };
    let is_taken = |name: &String| {
        let ending = name.rsplit_once('.').map(|(_, ending)| ending);
        ending.is_some_and(|ending| ENDINGS.contains(&ending)) && !dir.join(name).is_dir()
    };
    let files = names.into_iter().filter(is_taken);
    let leads_here = |name: &str| leads_here(&dir.join(name), &on_node(dir));
    let files = files.map(|name| NetworkFile { leads_here: leads_here(&name), name }).collect();
    let written = serde_json::from_str(&published.conflist).unwrap_or_default();
    let there = match followed(&file, NETWORK_BYTES_MAX) {
        Ok(None) => None,
        Ok(Some(bytes)) => Some(serde_json::from_slice(&bytes).map_err(|error| error.to_string())),
        Err(error) => Some(Err(error.to_string())),
    };
    let there = there.map(|there| there.map(|there| told(there, Some(&written))));
    Look::Seen(Networks { dir: on_node(dir), files, written, there })
}

/// Whether a network of others calls our plugin in the end: in its own chain, as a copy of ours, or by the name of our network, of our file or
/// of the directory `dir`, of which it takes what comes after it.
fn leads_here(path: &Path, dir: &Path) -> bool {
    let bytes = followed(path, NETWORK_BYTES_MAX).ok().flatten().unwrap_or_default();
    serde_json::from_slice(&bytes).is_ok_and(|network| names_us(&network, dir))
}

fn names_us(network: &Value, dir: &Path) -> bool {
    match network {
        // Plugin and network have one name.
        Value::String(text) => {
            let path = Path::new(text);
            text == PLUGIN || on_node(path) == dir || path.file_stem() == Path::new(CONFLIST).file_stem()
        }
        Value::Array(all) => all.iter().any(|it| names_us(it, dir)),
        Value::Object(map) => map.values().any(|it| names_us(it, dir)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What is there, without what others may have put into it: only what the daemon writes too is told with its value.
fn told(there: Value, like: Option<&Value>) -> Value {
    match (there, like) {
        (Value::Object(map), Some(Value::Object(like))) => {
            let tell = |(key, value)| {
                let value = told(value, like.get(&key));
                (key, value)
            };
            Value::Object(map.into_iter().map(tell).collect())
        }
        (Value::Array(plugins), Some(Value::Array(like))) => {
            Value::Array(plugins.into_iter().map(|plugin| told_plugin(plugin, like)).collect())
        }
        (there @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)), Some(_)) => there,
        (_, _) => THEIRS.into(),
    }
}

fn told_plugin(plugin: Value, like: &[Value]) -> Value {
    let kind = plugin.get("type").cloned();
    let ours = like.iter().find(|ours| kind.is_some() && ours.get("type") == kind.as_ref());
    match (ours, kind) {
        (Some(ours), _) => told(plugin, Some(ours)),
        (None, Some(Value::String(kind))) => {
            Value::Object(Map::from_iter([("type".to_owned(), kind.into())]))
        }
        (None, _) => THEIRS.into(),
    }
}

/// The plugin that the runtime executes, beside the image's.
pub(super) fn plugin(published: Option<&Published>, image: &Path) -> Look<PluginSeen> {
    let Some(published) = published else { return unpublished() };
    let of_image = match sum(image) {
        Ok(Some(sum)) => sum,
        Ok(None) => {
            let image = image.display();
            return Look::Skipped(format!(
                "there is no {image} to compare it with, as in the daemon's container; --plugin says where it is"
            ));
        }
        Err(error) => return Look::Failed(format!("{}: {error}", image.display())),
    };
    let at = visible(&published.plugin);
    if !at.parent().is_some_and(Path::exists) {
        return Look::Skipped(format!("{} is not to be seen from here", at.display()));
    }
    match sum(&at) {
        Ok(there) => Look::Seen(PluginSeen { at: on_node(&at), of_image, there }),
        Err(error) => Look::Failed(format!("{}: {error}", at.display())),
    }
}

fn sum(path: &Path) -> io::Result<Option<Sum>> {
    let sum = |bytes: Vec<u8>| Sum {
        bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    Ok(followed(path, PLUGIN_BYTES_MAX)?.map(sum))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    const OURS: &str = include_str!("../install/10-aws.conflist");

    fn published(dir: &Path) -> Published {
        let (file, plugin) = (dir.join(CONFLIST), dir.join(PLUGIN));
        Published { file, conflist: OURS.to_owned(), plugin }
    }

    fn look(dir: &Path) -> Networks {
        let Look::Seen(seen) = networks(Some(&published(dir))) else { panic!("not seen") };
        seen
    }

    #[test]
    fn networks_are_told_in_the_runtimes_order_and_what_is_none_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let multus = json!({"type": "multus", "clusterNetwork": "/host/etc/cni/net.d/10-aws.conflist"});
        write("00-multus.conf", &multus.to_string());
        write("05-chain.conflist", &json!({"plugins": [{"type": "aws-cni"}, {"type": "other"}]}).to_string());
        write("07-flannel.json", &json!({"type": "flannel"}).to_string());
        write("08-broken.conf", "{");
        write(CONFLIST, OURS);
        write("90-z.conflist.off", "{}");
        write("kubeconfig", "token: secret");
        std::fs::create_dir(dir.path().join("00-dir.conf")).unwrap();
        symlink("05-chain.conflist", dir.path().join("06-link.conflist")).unwrap();

        let seen = look(dir.path());

        let names: Vec<_> = seen.files.iter().map(|file| (file.name.as_str(), file.leads_here)).collect();
        let want = [
            ("00-multus.conf", true),
            ("05-chain.conflist", true),
            ("06-link.conflist", true),
            ("07-flannel.json", false),
            ("08-broken.conf", false),
            (CONFLIST, true),
        ];
        assert_eq!(names, want);
        assert_eq!(seen.there, Some(Ok(seen.written.clone())));
    }

    #[test]
    fn a_network_that_calls_others_names_ours_by_file_network_or_directory() {
        let dir = Path::new("/etc/cni/net.d");
        let multus = |network: &str| json!({"type": "multus", "clusterNetwork": network});

        for ours in
            ["/etc/cni/net.d/10-aws.conflist", "10-aws", "aws-cni", "/host/etc/cni/net.d", "/etc/cni/net.d/"]
        {
            assert!(names_us(&multus(ours), dir), "{ours}");
        }
        for other in ["/etc/cni/net.d/10-flannel.conflist", "cilium", "/etc/cni", ""] {
            assert!(!names_us(&multus(other), dir), "{other}");
        }
    }

    #[test]
    fn of_what_others_have_put_into_our_conflist_no_value_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut list: Value = serde_json::from_str(OURS).unwrap();
        list["plugins"][0]["password"] = "hunter2".into();
        list["plugins"][0]["capabilities"] = json!(["hunter2"]);
        list["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni", "token": "hunter2"}));
        list["extra"] = json!({"a": "hunter2"});
        std::fs::write(dir.path().join(CONFLIST), list.to_string()).unwrap();

        let seen = look(dir.path());

        let there = seen.there.clone().unwrap().unwrap();
        assert_eq!(there["plugins"][2], json!({"type": "istio-cni"}));
        assert_eq!(there["plugins"][0]["password"], THEIRS);
        assert_eq!(there["plugins"][0]["mtu"], "9001");
        assert!(!serde_json::to_string(&seen).unwrap().contains("hunter2"));
    }

    #[test]
    fn a_conflist_that_is_gone_or_garbage_is_told_and_a_directory_that_is_not_there_is_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();

        assert_eq!(look(dir.path()).there, None);
        std::fs::write(dir.path().join(CONFLIST), [0xff; 9]).unwrap();
        assert!(look(dir.path()).there.unwrap().is_err());
        let nowhere = published(&dir.path().join("nowhere"));
        assert!(matches!(networks(Some(&nowhere)), Look::Skipped(_)));
        assert!(matches!(networks(None), Look::Skipped(_)));
    }

    #[test]
    fn the_plugin_is_compared_with_the_images_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (image, published) = (dir.path().join("image"), published(dir.path()));
        let look = || plugin(Some(&published), &image);

        assert!(matches!(look(), Look::Skipped(why) if why.contains("--plugin")));
        std::fs::write(&image, "one").unwrap();
        let missing = look();
        std::fs::write(&published.plugin, "two").unwrap();
        let other = look();
        std::fs::write(&published.plugin, "one").unwrap();
        let same = look();

        let there = |look: &Look<PluginSeen>| look.seen().unwrap().there.clone();
        assert_eq!(there(&missing), None);
        assert_ne!(there(&other).unwrap(), other.seen().unwrap().of_image);
        assert_eq!(there(&same).unwrap(), same.seen().unwrap().of_image);
        std::fs::remove_file(&published.plugin).unwrap();
        std::fs::create_dir(&published.plugin).unwrap();
        assert!(matches!(look(), Look::Failed(_)));
    }

    #[test]
    fn what_the_daemons_container_has_is_named_as_the_node_has_it() {
        assert_eq!(on_node(Path::new("/host/etc/cni/net.d/x")), Path::new("/etc/cni/net.d/x"));
        assert_eq!(on_node(Path::new("/etc/cni/net.d/x")), Path::new("/etc/cni/net.d/x"));
        assert_eq!(visible(Path::new("/host/nowhere/x")), Path::new("/nowhere/x"));
    }
}
