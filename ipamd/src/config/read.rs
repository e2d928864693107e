//! Reading single settings; what is wrong with them is collected, not returned one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use ipnetwork::Ipv4Network;

use super::SettingError;
use super::table::{Kind, SETTINGS, Setting, Support};

/// Names that start so are of the CNI: an unknown one among them is a mistake. Others may be meant for the AWS SDK.
pub(super) const OUR_PREFIXES: [&str; 9] =
    ["AWS_VPC_", "AWS_MANAGE_", "IPAMD_", "WARM_", "MINIMUM_", "ENABLE_", "DISABLE_", "ENI_CONFIG_", "POD_"];
/// A name with any other beginning is a mistake where so few letters make a setting of it.
const SLIPS_MAX: usize = 2;
/// Names that look like slips and are other programs' own.
const OF_OTHERS: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
/// Tags whose keys contain this are Kubernetes' own.
const RESERVED_TAG: &str = "k8s.amazonaws.com";

/// An environment: names and texts.
pub type Environment = BTreeMap<OsString, OsString>;

/// Reads settings and remembers what was wrong.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    environment: &'a Environment,
    pub(super) warnings: Vec<String>,
    pub(super) errors: Vec<SettingError>,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(environment: &'a Environment) -> Self {
        Self { environment, warnings: Vec::new(), errors: Vec::new() }
    }

    /// The text of a variable that is set and not empty.
    fn set(&self, setting: &Setting) -> Option<String> {
        let text = self.environment.get(std::ffi::OsStr::new(setting.name))?.to_string_lossy();
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Whether a variable is set to a number that it can be.
    pub(super) fn is_set(&self, setting: &Setting) -> bool {
        self.set(setting).is_some_and(|text| parse_number(setting.kind, &text).is_some())
    }

    /// Whether a variable is set.
    pub(super) fn has(&self, setting: &Setting) -> bool {
        self.set(setting).is_some()
    }

    fn is_utf8(&self, setting: &Setting) -> bool {
        self.environment.get(std::ffi::OsStr::new(setting.name)).is_some_and(|text| text.to_str().is_some())
    }

    /// A setting read by `parse`; one that cannot be is its default, or stops the daemon if it is strict.
    pub(super) fn parsed<T>(&mut self, setting: &Setting, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        if let Some(text) = self.set(setting) {
            // A lossy copy of a path or a name would be another path or name.
            if self.is_utf8(setting)
                && let Some(value) = parse(&text)
            {
                return Some(value);
            }
            self.wrong(setting, &text);
        }
        parse(setting.default)
    }

    fn wrong(&mut self, setting: &Setting, text: &str) {
        let found: String = text.chars().take(64).collect();
        match setting.support {
            Support::Strict => {
                self.errors.push(SettingError::Unfit { name: setting.name, found, doc: setting.doc });
            }
            Support::Lenient | Support::Elsewhere | Support::Ignored => {
                let instead = if setting.default.is_empty() { "nothing" } else { setting.default };
                self.warnings
                    .push(format!("{} is {found:?}, which it cannot be; {instead:?} is used", setting.name));
            }
        }
    }

    pub(super) fn flag(&mut self, setting: &Setting) -> bool {
        self.parsed(setting, parse_flag).unwrap_or_default()
    }

    pub(super) fn number(&mut self, setting: &Setting) -> Option<u32> {
        self.parsed(setting, |text| parse_number(setting.kind, text))
    }

    /// One of the setting's words, in lower case.
    pub(super) fn word(&mut self, setting: &Setting) -> String {
        let known = |text: &str| {
            let word = text.to_ascii_lowercase();
            let fits = match setting.kind {
                Kind::Word(words) => words.contains(&word.as_str()),
                Kind::Flag | Kind::Number(..) | Kind::Text => true,
            };
            fits.then_some(word)
        };
        self.parsed(setting, known).unwrap_or_default()
    }

    /// A number of which 0 means that there is none.
    pub(super) fn target(&mut self, setting: &Setting) -> Option<u32> {
        self.number(setting).filter(|n| *n > 0)
    }

    pub(super) fn text(&mut self, setting: &Setting) -> Option<String> {
        self.parsed(setting, |text| (!text.is_empty()).then(|| text.to_owned()))
    }

    /// Ranges between commas, as networks; those that are none are skipped, with a warning.
    pub(super) fn ranges(&mut self, setting: &Setting) -> Vec<Ipv4Network> {
        let text = self.set(setting).unwrap_or_default();
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match parse_range(part) {
                Some(range) => ranges.push(range),
                None => self.warnings.push(format!("{}: {part:?} is no IPv4 range; skipped", setting.name)),
            }
        }
        ranges
    }

    /// A JSON object of texts, without keys that are Kubernetes' own.
    pub(super) fn tags(&mut self, setting: &Setting) -> BTreeMap<String, String> {
        let parse = |text: &str| serde_json::from_str::<BTreeMap<String, String>>(text).ok();
        let mut tags = self.parsed(setting, parse).unwrap_or_default();
        for key in tags.extract_if(.., |key, _| key.contains(RESERVED_TAG)).map(|(key, _)| key) {
            self.warnings.push(format!("{}: the tag {key:?} is Kubernetes' own; skipped", setting.name));
        }
        tags
    }

    /// Complains of settings that this version ignores or refuses and of names that are almost right, of ours or of these.
    pub(super) fn check_the_rest(&mut self, own: &[Setting]) {
        for setting in SETTINGS {
            let Some(text) = self.set(setting) else { continue };
            let differs = match (setting.kind, parse_flag(&text)) {
                (Kind::Flag, None) => {
                    self.unread_flag(setting, &text);
                    continue;
                }
                (Kind::Flag, flag) => flag != parse_flag(setting.default),
                (Kind::Number(..) | Kind::Word(_) | Kind::Text, _) => text != setting.default,
            };
            match setting.support {
                Support::Ignored if differs => {
                    self.warnings.push(format!("{} has no effect in this version", setting.name));
                }
                Support::Ignored | Support::Lenient | Support::Strict | Support::Elsewhere => {}
            }
        }
        let known: BTreeSet<&str> = SETTINGS.iter().chain(own).map(|setting| setting.name).collect();
        for name in self.environment.keys().filter_map(|name| name.to_str()) {
            if known.contains(name) || OF_OTHERS.contains(&name) || is_of_a_service(name) {
                continue;
            }
            let nearest = known.iter().map(|other| (distance(name, other), *other)).min();
            let (slips, nearest) = nearest.unwrap_or_default();
            if slips <= SLIPS_MAX || OUR_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                self.warnings.push(format!("{name} is no setting; is {nearest} meant?"));
            }
        }
    }

    /// A flag that nothing else reads and that is neither yes nor no: it switches nothing, and is warned of.
    fn unread_flag(&mut self, setting: &Setting, text: &str) {
        match setting.support {
            Support::Ignored => self.wrong(setting, text),
            Support::Lenient | Support::Strict | Support::Elsewhere => {}
        }
    }
}

/// Whether the kubelet makes a variable of this name for a service of the namespace, which may be called as anybody likes:
/// `POD_X_SERVICE_HOST`, `POD_X_SERVICE_PORT_HTTP`, `POD_X_PORT`, `POD_X_PORT_80_TCP_ADDR`.
fn is_of_a_service(name: &str) -> bool {
    let numbered = name.split("_PORT_").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    numbered || name.ends_with("_PORT") || name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT")
}

pub(super) fn parse_flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn parse_number(kind: Kind, text: &str) -> Option<u32> {
    let number = text.parse().ok()?;
    match kind {
        Kind::Number(min, max) => (min..=max).contains(&number).then_some(number),
        Kind::Flag | Kind::Word(_) | Kind::Text => Some(number),
    }
}

/// A whole number with any of the prefixes `0x`, `0o`, `0b` and `0` (octal); 0 is none.
pub(super) fn parse_mark(text: &str) -> Option<u32> {
    let text = text.to_ascii_lowercase();
    let (digits, base) = match text.get(..2) {
        Some("0x") => (text.get(2..)?, 16),
        Some("0o") => (text.get(2..)?, 8),
        Some("0b") => (text.get(2..)?, 2),
        _ if text.starts_with('0') => (text.as_str(), 8),
        _ => (text.as_str(), 10),
    };
    u32::from_str_radix(digits, base).ok().filter(|mark| *mark != 0)
}

fn parse_range(text: &str) -> Option<Ipv4Network> {
    let (_, _) = text.split_once('/')?;
    let range: Ipv4Network = text.parse().ok()?;
    Ipv4Network::new(range.network(), range.prefix()).ok()
}

/// How many letters must be put in, left out or changed to make one word of the other (Levenshtein).
pub(crate) fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((j, b), above) in other.iter().enumerate().zip(row.iter().skip(1)) {
            let diagonal = row.get(j).copied().unwrap_or_default() + usize::from(a != *b);
            let left = next.last().copied().unwrap_or_default() + 1;
            next.push(diagonal.min(left).min(above + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
