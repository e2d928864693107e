//! From what is known to what is wrong. Pure.
//!
//! | file | compares |
//! |---|---|
//! | `daemon.rs` | what the daemon says of itself, and its files |
//! | `host.rs` | what the host's kernel holds with what the daemon wants it to hold |
//! | `branches.rs` | the branch ENIs of the state's pods with links, tables and rules of the kernel |
//! | `pods.rs` | the state's sandboxes with links, and with what the runtime knows |
//! | `networks.rs` | the conflist and the plugin on the node with what the daemon has written and its image has |
//! | `cloud.rs` | the state with EC2 |

mod branches;
mod cloud;
mod daemon;
mod host;
mod networks;
mod pods;
#[cfg(test)]
pub(super) mod tests;

use super::evidence::{Evidence, Look};
use super::finding::Verdict;

/// Judges.
#[must_use]
pub fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { failed: evidence.saved.troubles.clone(), ..Verdict::default() };
    daemon::judge(evidence, &mut verdict);
    networks::judge(evidence, &mut verdict);
    host::judge(evidence, &mut verdict);
    branches::judge(evidence, &mut verdict);
    pods::judge(evidence, &mut verdict);
    cloud::judge(evidence, &mut verdict);
    verdict.findings.sort_by_key(|finding| (finding.severity, finding.code));
    verdict
}

/// What was seen, if it was; a look that failed or was not made is noted.
fn seen<'a, T>(verdict: &mut Verdict, who: &str, look: &'a Look<T>) -> Option<&'a T> {
    match look {
        Look::Seen(answer) => Some(answer),
        Look::Failed(why) => {
            verdict.failed.push(format!("{who}: {why}"));
            None
        }
        Look::Skipped(why) => {
            verdict.skipped.push(format!("{who}: {why}"));
            None
        }
    }
}
