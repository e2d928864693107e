//! What leads the runtime to us: the conflist, what stands before it, and the plugin.

use serde_json::Value;

use super::super::evidence::{Evidence, Networks, PluginSeen, Sum};
use super::super::finding::{Code, Finding, Verdict};
use super::super::words::word;
use super::daemon::RESTART;
use crate::install::CONFLIST;

/// Most differences that are told.
const DIFFERENCES_MAX: usize = 12;

pub(super) fn judge(evidence: &Evidence, verdict: &mut Verdict) {
    if let Some(seen) = super::seen(verdict, "the conflist", &evidence.live.networks) {
        networks(seen, verdict);
    }
    if let Some(seen) = super::seen(verdict, "the plugin", &evidence.live.plugin) {
        plugin(seen, verdict);
    }
}

/// The path of a file in the runtime's directory.
fn path(seen: &Networks, name: &str) -> String {
    seen.dir.join(name).display().to_string()
}

/// The command that shows what the runtime finds, and what it said.
fn listing(seen: &Networks) -> String {
    let names: Vec<&str> = seen.files.iter().map(|file| file.name.as_str()).collect();
    let names = if names.is_empty() { "no network".to_owned() } else { names.join(" ") };
    format!("ls {}: {names}", word(&seen.dir.display().to_string()))
}

fn networks(seen: &Networks, verdict: &mut Verdict) {
    let ours = path(seen, CONFLIST);
    let Some(there) = &seen.there else {
        let instead = match seen.files.first() {
            Some(file) if file.leads_here => format!("takes {}, which names us", file.name),
            Some(file) => format!("makes pods with {}", file.name),
            None => "makes no pods".to_owned(),
        };
        let what = format!("{ours} is not there, which the daemon has written: the runtime {instead}");
        verdict.findings.push(
            Finding::new(Code::ConflistMissing, what)
                .seen(listing(seen))
                .repair(RESTART)
                .advice("the daemon writes it once after a start: what has removed it is to be found first"),
        );
        return;
    };
    let differences = match there {
        Ok(there) => differences(&seen.written, there),
        Err(why) => vec![format!("it cannot be read: {why}")],
    };
    if !differences.is_empty() {
        let what = format!("{ours} is not what the daemon has written");
        let told = differences.iter().take(DIFFERENCES_MAX).cloned();
        let finding = told.fold(Finding::new(Code::ConflistDiffers, what), Finding::seen);
        verdict.findings.push(finding.repair(RESTART).advice(
            "the daemon writes it once after a start, with the plugins that the node has then: what has changed it is to be found first",
        ));
    }
    shadowed(seen, verdict);
    let behind = match there {
        Ok(there) if differences.is_empty() => behind(&seen.written, there),
        Ok(_) | Err(_) => String::new(),
    };
    verdict.compared.push(format!("{ours}{behind}, and what stands before it"));
}

/// The runtime takes the first file, by name.
fn shadowed(seen: &Networks, verdict: &mut Verdict) {
    let before: Vec<&str> = seen
        .files
        .iter()
        .take_while(|file| !file.leads_here && file.name != CONFLIST)
        .map(|file| file.name.as_str())
        .collect();
    let Some(first) = before.first() else { return };
    let what =
        format!("the runtime makes pods with {first}, which stands before {CONFLIST} and does not name us");
    // No ending that a runtime knows.
    let aside = |name: &&str| {
        let file = path(seen, name);
        format!("mv {} {}", word(&file), word(&format!("{file}.off")))
    };
    let command: Vec<String> = before.iter().map(aside).collect();
    verdict.findings.push(
        Finding::new(Code::ConflistShadowed, what)
            .seen(listing(seen))
            .repair(command.join(" && "))
            .advice("what belongs to another CNI that still runs comes back; pods that it has made meanwhile are to be made anew"),
    );
}

/// Plugins of a conflist.
fn plugins(list: &Value) -> &[Value] {
    list.get("plugins").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The type of a plugin.
fn kind(plugin: &Value) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or("one without type")
}

/// Plugins of others behind ours.
fn strangers<'a>(written: &'a Value, there: &'a Value) -> impl Iterator<Item = &'a str> {
    let is_ours = move |kind: &&str| plugins(written).iter().any(|ours| self::kind(ours) == *kind);
    plugins(there).iter().map(kind).filter(move |kind| !is_ours(kind))
}

fn behind(written: &Value, there: &Value) -> String {
    let names: Vec<&str> = strangers(written, there).collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" (with {} of others in the chain)", names.join(", "))
    }
}

/// What a conflist has otherwise than it was written. Others may put plugins of theirs behind ours, as service meshes do.
fn differences(written: &Value, there: &Value) -> Vec<String> {
    let mut told = Vec::new();
    compare("", written, there, &mut told);
    let (want, have) = (plugins(written), plugins(there));
    let named = |plugins: &[&Value]| plugins.iter().map(|plugin| kind(plugin)).collect::<Vec<_>>().join(", ");
    let want: Vec<&Value> = want.iter().collect();
    let ours: Vec<&Value> = have.iter().filter(|it| want.iter().any(|one| kind(one) == kind(it))).collect();
    if named(&ours) != named(&want) || have.first().map(kind) != want.first().map(|plugin| kind(plugin)) {
        let have = named(&have.iter().collect::<Vec<_>>());
        told.push(format!("plugins are {have}, where {} was written", named(&want)));
        return told;
    }
    for (written, there) in want.into_iter().zip(ours) {
        compare(&format!("{}: ", kind(written)), written, there, &mut told);
    }
    told
}

/// Two objects, key by key, but for the plugins.
fn compare(whose: &str, written: &Value, there: &Value, told: &mut Vec<String>) {
    let (Some(written), Some(there)) = (written.as_object(), there.as_object()) else {
        if written != there {
            told.push(format!("{whose}it is no object"));
        }
        return;
    };
    for (key, value) in written.iter().filter(|(key, _)| *key != "plugins") {
        match there.get(key) {
            Some(there) if there == value => {}
            Some(there) => told.push(format!("{whose}{key} is {there}, where {value} was written")),
            None => told.push(format!("{whose}{key} is missing, where {value} was written")),
        }
    }
    let more = there.keys().filter(|key| *key != "plugins" && !written.contains_key(*key));
    told.extend(more.map(|key| format!("{whose}{key} is there, which was not written")));
}

fn plugin(seen: &PluginSeen, verdict: &mut Verdict) {
    let at = seen.at.display().to_string();
    verdict.compared.push(format!("the plugin {at} with that of the image"));
    let sum = |Sum { bytes, sha256 }: &Sum| format!("{bytes} bytes with sha256 {sha256}");
    let (what, there) = match &seen.there {
        Some(there) if *there == seen.of_image => return,
        Some(there) => (format!("{at} is not the plugin of the daemon's image"), sum(there)),
        None => (format!("{at} is not there: no pod of ours is made or unmade"), "there is none".to_owned()),
    };
    let finding = Finding::new(Code::PluginDiffers, what).seen(format!("sha256sum {}: {there}", word(&at)));
    verdict.findings.push(finding.seen(format!("the image's: {}", sum(&seen.of_image))).repair(RESTART));
}
