//! The whole system on the VPC lab: the real daemon, the real plugin, real packets, real containerd, and an EC2
//! of other people's making.
//!
//! `main` enters namespaces before any thread exists. Tests run one after the other, each with a lab of its own;
//! what the machine cannot run is counted as ignored, with its reason.

#![expect(clippy::print_stderr, reason = "a test program: it tells a person")]

mod alone;
mod announcing;
mod bad_input;
mod branch_enis;
mod causes;
mod chain;
mod chart;
mod cluster;
mod containerd;
mod custom_networking;
mod demo;
mod doctor;
mod estate;
mod image;
mod install;
mod introspection;
mod ipv6;
mod kube_proxy;
mod life;
mod metrics_helper;
mod monitoring;
mod moto;
mod multi_nic;
mod packet;
mod page;
mod policy;
mod prefixes;
mod privilege;
mod repair;
mod routing;
mod security_groups;
mod storms;
mod support;
mod takeover;
mod takeover_ipv6;

use libtest_mimic::{Arguments, Trial};
use support::{Test, run, tell_skips};

/// Why something that not every machine has is not here.
type Missing = fn() -> Option<String>;

/// What needs such things.
const LACKING: [(&[Test], Missing); 4] = [
    (page::TESTS, lab::browser::missing),
    (monitoring::WITNESSED, monitoring::missing),
    (security_groups::WITH_VLANS, lab::fabric::no_vlans),
    (security_groups::WITHOUT_VLANS, security_groups::has_vlans),
];

fn main() -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    // The namespaces have fixed names, and two cores are soon busy.
    arguments.test_threads = Some(1);
    let tests: Vec<Test> = [
        life::TESTS,
        prefixes::TESTS,
        multi_nic::TESTS,
        estate::TESTS,
        repair::TESTS,
        storms::TESTS,
        bad_input::TESTS,
        causes::TESTS,
        doctor::TESTS,
        cluster::TESTS,
        announcing::TESTS,
        custom_networking::TESTS,
        demo::TESTS,
        policy::TESTS,
        introspection::TESTS,
        monitoring::TESTS,
        metrics_helper::TESTS,
        privilege::TESTS,
        packet::TESTS,
        routing::TESTS,
        security_groups::TESTS,
        branch_enis::TESTS,
        install::TESTS,
    ]
    .concat();
    // Asked before the lab, where everybody is root.
    let not_root = (!rustix::process::geteuid().is_root()).then(|| "root is needed for cgroups".to_owned());
    let lab = lab::netns::enter_lab().map_err(|error| error.to_string());
    let programs = support::missing_programs();
    let without_lab = lab.err().or(programs);
    let without_iptables = without_lab.clone().or_else(takeover::missing);
    let hidden = || lab::netns::hide_cni_results().err().map(|error| error.to_string());
    let without_user = without_lab.clone().or_else(privilege::no_user_namespaces);
    let without_containerd = without_lab.clone().or(not_root).or_else(containerd::missing).or_else(hidden);
    let without_moto = without_lab.clone().or_else(lab::moto::missing);
    let mut trials = trials(&tests, without_lab.as_deref());
    for (test, missing) in kube_proxy::TESTS {
        trials.extend(self::trials(&[*test], without_lab.clone().or_else(missing).as_deref()));
    }
    for (tests, missing) in LACKING {
        trials.extend(self::trials(tests, without_lab.clone().or_else(missing).as_deref()));
    }
    let no_ipv6 = || (!lab::fabric::ipv6()).then(|| "no IPv6 here".to_owned());
    let without_ipv6 = without_lab.or_else(no_ipv6);
    let without_both = without_iptables.clone().or_else(no_ipv6);
    for tests in [ipv6::TESTS, multi_nic::IPV6, branch_enis::IPV6] {
        trials.extend(self::trials(tests, without_ipv6.as_deref()));
    }
    trials.extend(self::trials(takeover::TESTS, without_iptables.as_deref()));
    trials.extend(self::trials(takeover_ipv6::TESTS, without_both.as_deref()));
    for tests in [containerd::TESTS, image::TESTS] {
        trials.extend(self::trials(tests, without_containerd.as_deref()));
    }
    let without_chain = without_containerd.clone().or_else(chain::missing);
    trials.extend(self::trials(chain::CONTAINERD, without_chain.as_deref()));
    let without_podman = without_containerd.or_else(chain::without_podman);
    trials.extend(self::trials(chain::PODMAN, without_podman.as_deref()));
    for tests in [moto::TESTS, metrics_helper::WITNESSED] {
        trials.extend(self::trials(tests, without_moto.as_deref()));
    }
    trials.extend(self::trials(alone::TESTS, None));
    trials.extend(self::trials(chart::TESTS, chart::missing().as_deref()));
    trials.extend(self::trials(privilege::AS_USER, without_user.as_deref()));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials(tests: &[Test], missing: Option<&str>) -> Vec<Trial> {
    if let Some(reason) = missing {
        tell_skips(tests, reason);
    }
    let trial = |(name, test): &Test| {
        let test = *test;
        Trial::test(*name, move || run(test)).with_ignored_flag(missing.is_some())
    };
    tests.iter().map(trial).collect()
}
