//! Trace context as the runtime passes it on: `traceparent` of the W3C recommendation "Trace Context".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whose trace a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    parent: u64,
    flags: u8,
}

/// A text that is no `traceparent`; the recommendation has it ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent of the form version-trace-parent-flags, in lowercase hexadecimal digits")]
pub struct TraceParentError;

/// The trace's id: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl TraceParent {
    /// The id of the whole trace.
    #[must_use]
    pub const fn id(self) -> TraceId {
        TraceId(self.trace)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    /// Of later versions the part that this one has is taken, as the recommendation says.
    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let mut parts = text.splitn(5, '-');
        let mut part = |digits| parts.next().filter(|part| is_hex(part, digits)).ok_or(TraceParentError);
        let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(TraceParentError);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_too_long| TraceParentError)?;
        let parent = u64::from_str_radix(parent, 16).map_err(|_too_long| TraceParentError)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_too_long| TraceParentError)?;
        if trace == 0 || parent == 0 {
            return Err(TraceParentError);
        }
        Ok(Self { trace, parent, flags })
    }
}

fn is_hex(part: &str, digits: usize) -> bool {
    part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{:016x}-{:02x}", self.id(), self.parent, self.flags)
    }
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// For fields: what is malformed is not there.
pub(crate) fn lenient<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TraceParent>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Request, Verb};

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_runtime_gave_is_told_again_as_it_was() {
        let parsed: TraceParent = GIVEN.parse().unwrap();

        assert_eq!(parsed.to_string(), GIVEN);
        assert_eq!(parsed.id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn a_later_version_may_say_more_and_this_one_may_not() {
        let later = GIVEN.replacen("00", "01", 1);

        assert_eq!(format!("{later}-more-of-it").parse::<TraceParent>(), GIVEN.parse());
        for bad in [
            &format!("{GIVEN}-more"),
            &GIVEN.replacen("00", "ff", 1),
            &GIVEN.to_uppercase(),
            &GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GIVEN.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GIVEN[..54],
            &GIVEN.replace('4', "+"),
            "",
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(TraceParentError), "{bad}");
        }
    }

    #[test]
    fn plugins_and_daemons_with_and_without_it_understand_each_other() {
        let mut request =
            Request { version: 1, patience_ms: 1, started_ns: 2, trace: None, verb: Verb::Status };
        let old = r#"{"version":1,"patience_ms":1,"started_ns":2,"verb":{"verb":"status"}}"#;

        assert_eq!(serde_json::to_string(&request).unwrap(), old);
        assert_eq!(serde_json::from_str::<Request>(old).unwrap(), request);
        request.trace = GIVEN.parse().ok();
        let new = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&new).unwrap(), request);
        let malformed = new.replace(GIVEN, "nonsense");
        assert_eq!(serde_json::from_str::<Request>(&malformed).unwrap().trace, None);
    }
}
