//! Text that goes to a terminal or into a shell, whatever it was made of.

use types::PodName;

/// A text of the outside without what a terminal would obey.
#[must_use]
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// One word of a shell command.
#[must_use]
pub(super) fn word(text: &str) -> String {
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b"_-./:@%+=,".contains(&b);
    if !text.is_empty() && text.bytes().all(harmless) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The command that has a pod made anew.
#[must_use]
pub(super) fn delete_pod(pod: &PodName) -> String {
    format!("kubectl -n {} delete pod {}", word(&pod.namespace), word(&pod.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_obey_is_quoted() {
        assert_eq!(word("eni0123456789a"), "eni0123456789a");
        assert_eq!(word(""), "''");
        assert_eq!(word("a; rm -rf $HOME"), "'a; rm -rf $HOME'");
        assert_eq!(word("it's"), "'it'\\''s'");
    }

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\nc");
    }
}
