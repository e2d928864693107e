//! The real program against the CNI specification 1.1.0, section 2, clause by clause, and against a daemon of good
//! and of bad manners.

#![expect(
    clippy::unwrap_used,
    reason = "a test main of its own has no #[test] functions, where this is allowed"
)]

mod daemon;
mod faults;
mod loopback;
mod protocol;
mod runtime;
mod wiring;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// One test function under its own name.
#[macro_export]
macro_rules! trials {
    ($($name:ident),* $(,)?) => { vec![$((stringify!($name), $name as fn())),*] };
}

/// Tests by name.
type Named = Vec<(&'static str, fn())>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Before there is a second thread: only then can an ordinary user have a user namespace.
    if !rustix::process::geteuid().is_root() {
        drop(become_root_of_a_user_namespace());
    }
    let obstacle = runtime::Netns::new().err();
    let mut trials = trials("protocol", protocol::all(), None);
    trials.extend(self::trials("faults", faults::all(), None));
    trials.extend(self::trials("wiring", wiring::all(), obstacle.as_deref()));
    trials.extend(self::trials("loopback", loopback::all(), obstacle.as_deref()));
    let no_ipv6 = (!std::path::Path::new("/proc/sys/net/ipv6").exists()).then_some("no IPv6 in this kernel");
    trials.extend(self::trials("wiring", wiring::of_ipv6(), obstacle.as_deref().or(no_ipv6)));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials(module: &str, tests: Named, obstacle: Option<&str>) -> Vec<Trial> {
    let trial = |(name, test): (&str, fn())| {
        let trial = Trial::test(format!("{module}::{name}"), move || {
            test();
            Ok(())
        });
        match obstacle {
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
            None => trial,
        }
    };
    tests.into_iter().map(trial).collect()
}

fn become_root_of_a_user_namespace() -> std::io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    runtime::unshare(rustix::thread::UnshareFlags::NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}
