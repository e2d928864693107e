//! What leads the runtime to us.

use serde_json::{Value, json};

use super::super::super::evidence::{NetworkFile, Networks, PluginSeen, Sum};
use super::*;

fn file(name: &str, leads_here: bool) -> NetworkFile {
    NetworkFile { name: name.to_owned(), leads_here }
}

/// Our conflist alone.
pub(super) fn well() -> Networks {
    let written: Value = serde_json::from_str(include_str!("../../../install/10-aws.conflist")).unwrap();
    Networks {
        dir: PathBuf::from("/etc/cni/net.d"),
        files: vec![file("10-aws.conflist", true)],
        there: Some(Ok(written.clone())),
        written,
    }
}

/// The image's plugin.
pub(super) fn plugin() -> PluginSeen {
    let sum = Sum { bytes: 7, sha256: "ab".repeat(32) };
    PluginSeen { at: PathBuf::from("/opt/cni/bin/aws-cni"), of_image: sum.clone(), there: Some(sum) }
}

fn change(evidence: &mut Evidence, change: impl FnOnce(&mut Networks)) {
    set(&mut evidence.live.networks, change);
}

fn list(seen: &mut Networks) -> &mut Value {
    seen.there.as_mut().unwrap().as_mut().unwrap()
}

/// One harm for each code.
pub(super) const HARMS: &[fn(&mut Evidence)] = &[
    |e| change(e, |seen| (seen.files, seen.there) = (Vec::new(), None)),
    |e| change(e, |seen| seen.there = Some(Err("expected value at line 1".to_owned()))),
    |e| change(e, |seen| seen.files.insert(0, file("05-cilium.conflist", false))),
    |e| set(&mut e.live.plugin, |seen| seen.there = None),
];

#[test]
fn a_conflist_that_is_gone_is_found_with_what_the_runtime_takes_instead() {
    is(HARMS[0], Code::ConflistMissing, "k8s-app=aws-node");
    let found = found(|e| {
        change(e, |seen| (seen.files, seen.there) = (vec![file("20-other.conf", false)], None));
    });

    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].what.ends_with("the runtime makes pods with 20-other.conf"), "{}", found[0].what);
    assert_eq!(found[0].evidence, ["ls /etc/cni/net.d: 20-other.conf"]);
}

/// The evidence of the one finding that a changed conflist is.
fn differing(changed: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut found = found(|e| change(e, |seen| changed(list(seen))));
    assert_eq!(found.len(), 1, "{found:#?}");
    let finding = found.remove(0);
    assert_eq!(finding.code, Code::ConflistDiffers);
    assert!(finding.repair.is_some_and(|command| command.contains("k8s-app=aws-node")));
    finding.evidence
}

#[test]
fn a_conflist_that_is_not_what_was_written_is_found_key_by_key() {
    is(HARMS[1], Code::ConflistDiffers, "k8s-app=aws-node");
    let mtu = differing(|list| list["plugins"][0]["mtu"] = "1400".into());
    assert_eq!(mtu, [r#"aws-cni: mtu is "1400", where "9001" was written"#]);
    let version = differing(|list| list["cniVersion"] = "0.4.0".into());
    assert_eq!(version, [r#"cniVersion is "0.4.0", where "1.0.0" was written"#]);
    let more = differing(|list| list["disableCheck"] = true.into());
    assert_eq!(more, ["disableCheck is there, which was not written"]);
    let less = differing(|list| drop(list["plugins"][0].as_object_mut().unwrap().remove("vethPrefix")));
    assert_eq!(less, [r#"aws-cni: vethPrefix is missing, where "eni" was written"#]);
    let other = differing(|list| list["plugins"] = json!([{"type": "flannel"}]));
    assert_eq!(other, ["plugins are flannel, where aws-cni, portmap was written"]);
    let swapped = differing(|list| list["plugins"].as_array_mut().unwrap().reverse());
    assert_eq!(swapped, ["plugins are portmap, aws-cni, where aws-cni, portmap was written"]);
    let twice = differing(|list| {
        let plugins = list["plugins"].as_array_mut().unwrap();
        plugins.push(plugins[1].clone());
    });
    assert_eq!(twice, ["plugins are aws-cni, portmap, portmap, where aws-cni, portmap was written"]);
    assert_eq!(differing(|list| *list = json!([])).len(), 2);
}

#[test]
fn a_plugin_that_others_have_put_behind_ours_is_well_and_told() {
    let mut evidence = super::well();
    change(&mut evidence, |seen| {
        list(seen)["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni"}));
    });

    let verdict = judge(&evidence);

    assert_eq!(verdict.findings, []);
    let told =
        "/etc/cni/net.d/10-aws.conflist (with istio-cni of others in the chain), and what stands before it";
    assert!(verdict.compared.iter().any(|line| line == told), "{:?}", verdict.compared);
}

#[test]
fn a_network_that_stands_before_ours_is_found_unless_it_leads_to_us() {
    let before = |files: &[(&str, bool)]| {
        let files: Vec<_> = files.iter().map(|(name, leads)| file(name, *leads)).collect();
        move |e: &mut Evidence| change(e, |seen| drop(seen.files.splice(0..0, files)))
    };
    is(
        before(&[("05-a b.conf", false)]),
        Code::ConflistShadowed,
        "mv '/etc/cni/net.d/05-a b.conf' '/etc/cni/net.d/05-a b.conf.off'",
    );
    is(
        before(&[
            ("01-x.conf", false),
            ("02-y.conf", false),
            ("05-chain.conflist", true),
            ("06-z.conf", false),
        ]),
        Code::ConflistShadowed,
        "mv /etc/cni/net.d/01-x.conf /etc/cni/net.d/01-x.conf.off && mv /etc/cni/net.d/02-y.conf /etc/cni/net.d/02-y.conf.off",
    );
    assert_eq!(found(before(&[("00-multus.conf", true), ("05-cilium.conflist", false)])), []);
    assert_eq!(found(|e| change(e, |seen| seen.files.push(file("20-other.conf", false)))), []);
}

#[test]
fn a_plugin_that_is_another_or_missing_is_found() {
    is(HARMS[3], Code::PluginDiffers, "k8s-app=aws-node");
    let other = |e: &mut Evidence| {
        set(&mut e.live.plugin, |seen| seen.there.as_mut().unwrap().sha256 = "cd".repeat(32));
    };
    let found = found(other);

    assert_eq!((found.len(), found[0].code), (1, Code::PluginDiffers));
    assert!(found[0].evidence[0].starts_with("sha256sum /opt/cni/bin/aws-cni: 7 bytes with sha256 cdcd"));
}

#[test]
fn without_evidence_of_conflist_and_plugin_nothing_is_invented() {
    let mut evidence = super::well();
    (evidence.live.networks, evidence.live.plugin) = (Look::default(), Look::default());

    let verdict = judge(&evidence);

    assert_eq!((verdict.findings.len(), verdict.failed.len(), verdict.skipped.len()), (0, 0, 2));
}

#[test]
fn an_archive_has_our_conflist_and_of_others_the_names_alone() {
    let mut evidence = super::well();
    change(&mut evidence, |seen| seen.files.push(file("20-other.conf", false)));
    let verdict = judge(&evidence);

    let parts = bundle::parts(&evidence, &verdict, &Environment::new(), &[]);

    let text = |name: &str| {
        let part = parts.iter().find(|part| part.name == name).unwrap();
        String::from_utf8(part.text.clone()).unwrap()
    };
    let names = "/etc/cni/net.d/10-aws.conflist (names us)\n/etc/cni/net.d/20-other.conf\n";
    assert_eq!(text("networks.txt"), names);
    let list: Value = serde_json::from_str(&text("10-aws.conflist")).unwrap();
    assert_eq!(list["plugins"][0]["type"], "aws-cni");
}
