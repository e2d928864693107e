//! What people are shown is right.

use lab::LabError;
use lab::demo::Paint;

use crate::support::{Outcome, Test, ensure};

pub(crate) const TESTS: &[Test] = &[("the_demo_of_kubernetes_shows_what_should_be", kubernetes)];

/// Where there is no Prometheus its part is left out, and said to be; the test of that is in `monitoring`.
fn kubernetes() -> Outcome {
    let mut said = Vec::new();
    let right = lab::demo_kubernetes::show(Paint::new(false), &mut |line| said.push(line.to_owned()))?;

    let said = said.join("\n");
    ensure!(right && !said.contains("WRONG"), "{said}");
    for part in [
        "29 pods at most",
        "warm-ip-target=6",
        "no-eni-config",
        "CustomNetworking",
        "subnet-full",
        "no-branch-eni",
        "by its branch ENI",
        "dashboard",
    ] {
        ensure!(said.contains(part), "{part} is not in\n{said}");
    }
    Ok::<(), LabError>(())
}
