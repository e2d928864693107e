//! The call's parameters: the `CNI_*` variables.

use std::ffi::OsString;
use std::fmt;

use wire::TraceParent;

/// The `CNI_*` variables of one call, as they were given.
#[derive(Debug, Clone, Default)]
pub struct Variables(Vec<(&'static str, OsString)>);

const COMMAND: &str = "CNI_COMMAND";
const CONTAINER_ID: &str = "CNI_CONTAINERID";
const NETNS: &str = "CNI_NETNS";
const IF_NAME: &str = "CNI_IFNAME";
const ARGS: &str = "CNI_ARGS";
/// How runtimes that trace their calls pass the trace on.
const TRACE: &str = "TRACEPARENT";

/// Every variable that is looked at; `CNI_PATH` is not, since nothing is delegated to another plugin.
const NAMES: [&str; 6] = [COMMAND, CONTAINER_ID, NETNS, IF_NAME, ARGS, TRACE];

/// Longest path that the kernel resolves, in bytes.
const NETNS_BYTES_MAX: usize = 4095;

/// A variable that is missing or cannot be what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("required env variables [{}] missing", .0.join(","))]
    Missing(Vec<&'static str>),
    #[error("env variable {0} is not UTF-8 text")]
    NotText(&'static str),
    #[error("env variable {NETNS} is longer than {NETNS_BYTES_MAX} bytes")]
    LongNetns,
    #[error("unknown CNI_COMMAND: {0:?}")]
    UnknownCommand(String),
}

/// The operations of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The variables that the commands need; what a command does not need is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) container_id: String,
    pub(crate) if_name: String,
    pub(crate) netns: String,
    pub(crate) args: String,
    /// What is malformed is not there.
    pub(crate) trace: Option<TraceParent>,
}

impl Variables {
    /// The process's own.
    #[must_use]
    pub fn of_process() -> Self {
        Self(NAMES.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))).collect())
    }

    /// The text of a variable; an empty one counts as absent, as in the reference implementation.
    fn text(&self, name: &'static str) -> Result<Option<&str>, EnvironmentError> {
        let Some((_, value)) = self.0.iter().find(|(n, v)| *n == name && !v.is_empty()) else {
            return Ok(None);
        };
        value.to_str().map(Some).ok_or(EnvironmentError::NotText(name))
    }
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// The command asked for, or `None` when the program was started without one, by a person presumably.
    pub(crate) fn read(variables: &Variables) -> Result<Option<Self>, EnvironmentError> {
        let Some(word) = variables.text(COMMAND)? else { return Ok(None) };
        let known = Self::ALL.into_iter().find(|c| c.word() == word);
        known.map(Some).ok_or_else(|| EnvironmentError::UnknownCommand(word.chars().take(64).collect()))
    }

    /// The command as `CNI_COMMAND` has it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// What the specification requires for the command, beside `CNI_COMMAND`.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &[CONTAINER_ID, NETNS, IF_NAME],
            Self::Del => &[CONTAINER_ID, IF_NAME],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Parameters {
    /// Reads what the command needs; all that is missing is named at once.
    pub(crate) fn read(command: Command, variables: &Variables) -> Result<Self, EnvironmentError> {
        let absent = |name: &&str| !variables.0.iter().any(|(n, v)| n == name && !v.is_empty());
        let missing: Vec<_> = command.required().iter().copied().filter(absent).collect();
        if !missing.is_empty() {
            return Err(EnvironmentError::Missing(missing));
        }
        let text = |name| variables.text(name).map(|t| t.unwrap_or_default().to_owned());
        let trace = variables.text(TRACE).ok().flatten().and_then(|text| text.parse().ok());
        match command {
            Command::Add | Command::Check => {
                let netns = text(NETNS)?;
                if netns.len() > NETNS_BYTES_MAX {
                    return Err(EnvironmentError::LongNetns);
                }
                let (container_id, if_name) = (text(CONTAINER_ID)?, text(IF_NAME)?);
                Ok(Self { container_id, if_name, netns, args: text(ARGS)?, trace })
            }
            // The pod is only informative to DEL, and its namespace may be gone: neither may make it fail.
            Command::Del => {
                let (container_id, if_name) = (text(CONTAINER_ID)?, text(IF_NAME)?);
                let (netns, args) = (text(NETNS).unwrap_or_default(), text(ARGS).unwrap_or_default());
                Ok(Self { container_id, if_name, netns, args, trace })
            }
            Command::Gc | Command::Status | Command::Version => Ok(Self { trace, ..Self::default() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn variables(pairs: &[(&'static str, &[u8])]) -> Variables {
        Variables(pairs.iter().map(|(n, v)| (*n, OsString::from_vec(v.to_vec()))).collect())
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let given = variables(&[(NETNS, b"")]);

        let missing = |c| Parameters::read(c, &given).err();

        assert_eq!(
            missing(Command::Add),
            Some(EnvironmentError::Missing(vec![CONTAINER_ID, NETNS, IF_NAME]))
        );
        assert_eq!(
            missing(Command::Check),
            Some(EnvironmentError::Missing(vec![CONTAINER_ID, NETNS, IF_NAME]))
        );
        assert_eq!(missing(Command::Del), Some(EnvironmentError::Missing(vec![CONTAINER_ID, IF_NAME])));
        assert_eq!(missing(Command::Gc), None);
        assert_eq!(missing(Command::Status), None);
    }

    #[test]
    fn a_command_is_written_as_the_specification_writes_it() {
        let command = |word: &[u8]| Command::read(&variables(&[(COMMAND, word)]));

        for known in Command::ALL {
            assert_eq!(command(known.word().as_bytes()), Ok(Some(known)));
        }
        assert_eq!(command(b""), Ok(None));
        assert_eq!(command(b"add"), Err(EnvironmentError::UnknownCommand("add".to_owned())));
        assert_eq!(command(b"\xff"), Err(EnvironmentError::NotText(COMMAND)));
    }

    #[test]
    fn what_del_does_not_need_cannot_make_it_fail() {
        let given = variables(&[(CONTAINER_ID, b"a"), (IF_NAME, b"eth0"), (NETNS, b"\xff"), (ARGS, b"\xff")]);

        assert!(Parameters::read(Command::Del, &given).is_ok());
        assert_eq!(Parameters::read(Command::Add, &given), Err(EnvironmentError::NotText(NETNS)));
    }

    #[test]
    fn a_trace_is_taken_where_it_is_one_and_never_makes_a_call_fail() {
        let trace = |value: &[u8]| {
            let given = variables(&[(CONTAINER_ID, b"a"), (IF_NAME, b"eth0"), (TRACE, value)]);
            Parameters::read(Command::Del, &given).unwrap().trace
        };
        let parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

        assert_eq!(trace(parent).map(|trace| trace.to_string().into_bytes()), Some(parent.to_vec()));
        for bad in [&b""[..], b"\xff", b"00-4bf9-00f0-01"] {
            assert_eq!(trace(bad), None);
        }
    }

    #[test]
    fn a_namespace_path_is_bounded() {
        let path = vec![b'a'; NETNS_BYTES_MAX + 1];
        let given = variables(&[(CONTAINER_ID, b"a"), (IF_NAME, b"eth0"), (NETNS, &path)]);

        assert_eq!(Parameters::read(Command::Add, &given), Err(EnvironmentError::LongNetns));
    }
}
