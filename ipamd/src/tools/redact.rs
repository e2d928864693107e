//! Takes secrets out of text before it leaves the node. Pure.
//!
//! It rather takes too much: a line is cut where something that may be a secret begins.

use wire::Report;

use super::evidence::{Evidence, Look};
use crate::config::{Environment, Kind, SETTINGS, Setting};

/// What stands in the place of what was taken.
const TAKEN: &str = "[left out]";
/// Words after which a secret may follow, in lower case.
const BEFORE_SECRETS: [&str; 14] = [
    "secret",
    "token",
    "password",
    "passwd",
    "authorization",
    "credential",
    "signature",
    "cookie",
    "bearer",
    // Not the word alone: EC2 calls the addresses of pods private.
    "private_key",
    "private key",
    "privatekey",
    "api_key",
    "apikey",
];
/// Beginnings of words that are secrets, or lead to some: AWS access key ids and JSON web tokens.
const SECRETS_BEGIN: [&str; 3] = ["AKIA", "ASIA", "eyJ"];
/// A longer line is cut: no line of ours is.
const LINE_CHARS_MAX: usize = 2000;
/// Settings of any text whose value is no secret. URLs are among them, without what may stand before the host and after the path.
const HARMLESS_TEXTS: [&str; 12] = [
    "MAX_ENI",
    "AWS_VPC_K8S_CNI_VETHPREFIX",
    "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
    "AWS_VPC_K8S_CNI_CONNMARK",
    "CLUSTER_NAME",
    "ADDITIONAL_ENI_TAGS",
    "AWS_EC2_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "CLUSTER_ENDPOINT",
    "MY_NODE_NAME",
    "IPAMD_RUN_DIR",
    "AWS_VPC_K8S_CNI_LOG_FILE",
];

/// A log without what may be secret.
pub(super) fn log(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.lines() {
        // A key is armoured over many lines.
        in_key |= line.contains("-----BEGIN");
        match in_key {
            true => out.push_str(TAKEN),
            false => out.push_str(&of_line(line)),
        }
        in_key &= !line.contains("-----END");
        out.push('\n');
    }
    out
}

fn of_line(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let words = BEFORE_SECRETS.iter().filter_map(|word| Some(lower.find(word)? + word.len()));
    let begins = SECRETS_BEGIN.iter().filter_map(|begin| line.find(begin));
    let userinfo = userinfo(line);
    let cut = words.chain(begins).chain(userinfo).min();
    let kept = cut.map_or(line, |cut| line.get(..cut).unwrap_or_default());
    let mut short: String = kept.chars().take(LINE_CHARS_MAX).collect();
    if cut.is_some() || short.len() < kept.len() {
        short.push_str(TAKEN);
    }
    short
}

/// Where a URL's name and password begin.
fn userinfo(line: &str) -> Option<usize> {
    line.match_indices("://").map(|(at, mark)| at + mark.len()).find(|start| {
        let rest = line.get(*start..).unwrap_or_default();
        let authority = rest.split(['/', ' ', '"', '?']).next().unwrap_or_default();
        authority.contains('@')
    })
}

/// What is known of a node without what may be secret. It is judged after this: a finding has the words of what it was found in.
pub(super) fn evidence(evidence: &mut Evidence) {
    let Evidence { saved, live, .. } = evidence;
    if let Look::Seen(seen) = &mut live.daemon {
        report(seen);
    }
    let unseen = [
        unseen(&mut live.daemon),
        unseen(&mut live.host),
        unseen(&mut live.nftables),
        unseen(&mut live.runtime),
        unseen(&mut live.networks),
        unseen(&mut live.plugin),
        unseen(&mut live.cloud),
    ];
    let lines = unseen.into_iter().flatten().chain(&mut saved.troubles).chain(&mut saved.damage);
    lines.for_each(|line| *line = of_line(line));
}

/// Why something was not seen.
const fn unseen<T>(look: &mut Look<T>) -> Option<&mut String> {
    match look {
        Look::Seen(_) => None,
        Look::Failed(why) | Look::Skipped(why) => Some(why),
    }
}

/// What others' words in a report may hold: EC2's and the API server's errors.
fn report(report: &mut Report) {
    let messages = report.reasons.iter_mut().map(|entry| &mut entry.message);
    let lines = report.cloud.iter_mut().chain(&mut report.cluster).chain(&mut report.plan);
    let lines = lines.chain(&mut report.not_ready).chain(messages);
    lines.for_each(|line| *line = of_line(line));
}

/// The settings that are set, a line each. Variables that are no settings of ours are not even named.
pub(super) fn settings(environment: &Environment) -> String {
    let line = |setting: &Setting| {
        let text = environment.get(std::ffi::OsStr::new(setting.name))?.to_string_lossy();
        let text = text.trim();
        (!text.is_empty()).then(|| format!("{}={}\n", setting.name, value(setting, text)))
    };
    SETTINGS.iter().filter_map(line).collect()
}

fn value(setting: &Setting, text: &str) -> String {
    let harmless = match setting.kind {
        Kind::Flag => matches!(text.to_ascii_lowercase().as_str(), "1" | "t" | "true" | "0" | "f" | "false"),
        Kind::Number(..) => text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit()),
        Kind::Word(words) => words.iter().any(|word| word.eq_ignore_ascii_case(text)),
        Kind::Text => HARMLESS_TEXTS.contains(&setting.name),
    };
    match harmless {
        true if setting.name == "ADDITIONAL_ENI_TAGS" => text.to_owned(),
        true => of_line(text.split('?').next().unwrap_or_default()),
        false => "(set, and left out)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::evidence::{Live, Saved};
    use super::super::judge::judge;
    use super::*;

    #[test]
    fn lines_are_cut_where_a_secret_may_begin() {
        for line in [
            "aws_secret_access_key=hunter2",
            "x-amz-security-token: hunter2",
            "Authorization: AWS4-HMAC-SHA256 hunter2",
            "key AKIAhunter2",
            "jwt eyJhunter2",
            "http://user:hunter2@host/",
            "private_key=hunter2",
            "PrivateKey: hunter2",
            "the private key hunter2",
        ] {
            let text = log(line);
            assert!(!text.contains("hunter2") && text.contains(TAKEN), "{text}");
        }
        for line in [
            "throttled: AssignPrivateIpAddresses: RequestLimitExceeded: Request limit exceeded.",
            "PrivateIpAddressLimitExceeded: Number of private addresses will exceed limit",
            "UnassignPrivateIpAddresses",
        ] {
            assert_eq!(log(line), format!("{line}\n"), "what a supporter needs is left");
        }
        assert_eq!(log("pod default/web got 10.0.0.9\n"), "pod default/web got 10.0.0.9\n");
    }

    #[test]
    fn a_key_of_many_lines_is_taken_whole() {
        let text = log("before\n-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\nafter\n");

        assert_eq!(text, format!("before\n{TAKEN}\n{TAKEN}\n{TAKEN}\nafter\n"));
    }

    #[test]
    fn long_lines_and_letters_of_all_kinds_are_no_trouble() {
        assert!(log(&"é".repeat(10_000)).len() < 5000);
        assert!(log("İsecret hunter2").contains(TAKEN));
    }

    #[test]
    fn settings_are_told_with_values_that_they_can_have() {
        let set = |name: &str, text: &str| (name.into(), text.into());
        let environment = Environment::from([
            set("WARM_IP_TARGET", "5"),
            set("MINIMUM_IP_TARGET", "hunter2"),
            set("AWS_EC2_ENDPOINT", "http://user:hunter2@host/"),
            set("IPAMD_KUBECONFIG", "/hunter2"),
            set("ADDITIONAL_ENI_TAGS", r#"{"team":"net"}"#),
            set("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ]);

        let text = settings(&environment);

        assert!(!text.contains("hunter2") && !text.contains("AWS_SECRET"), "{text}");
        assert!(text.contains("WARM_IP_TARGET=5\n"), "{text}");
        assert!(text.contains(r#"ADDITIONAL_ENI_TAGS={"team":"net"}"#), "{text}");
        assert!(text.contains("MINIMUM_IP_TARGET=(set, and left out)"), "{text}");
    }

    #[test]
    fn what_is_found_in_others_words_has_none_of_their_secrets() {
        let mut report = crate::status::blank(types::Moment(0));
        report.cloud.push("denied: DescribeInstances: signature hunter2".to_owned());
        report.not_ready.push("credentials: token hunter2".to_owned());
        let (saved, mut live) = (Saved::default(), Live::default());
        live.daemon = Look::Seen(Box::new(report));
        live.host = Look::Failed("password hunter2".to_owned());
        let mut seen = Evidence { dir: "/nonexistent".into(), saved, live };
        assert!(judge(&seen).render().contains("hunter2"), "there is something to take out");

        evidence(&mut seen);
        let verdict = judge(&seen);
        let parts = super::super::bundle::parts(&seen, &verdict, &Environment::new(), &[]);

        for part in parts {
            let text = String::from_utf8_lossy(&part.text);
            assert!(!text.contains("hunter2"), "{}: {text}", part.name);
        }
        assert!(verdict.render().contains("denied: DescribeInstances"), "{}", verdict.render());
    }

    #[test]
    fn harmless_settings_are_settings() {
        for name in HARMLESS_TEXTS {
            assert!(SETTINGS.iter().any(|setting| setting.name == name), "{name}");
        }
    }
}
