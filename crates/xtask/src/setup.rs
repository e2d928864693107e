//! The Debian packages that the demo and the tests need: installed where we may, asked for plainly where we may not.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::steps::Failure;

/// A program, by name or by path, and the package it comes from.
type Needed = (&'static str, &'static str);

/// Without these nothing works.
const BASE: &[Needed] = &[("ip", "iproute2"), ("nft", "nftables")];
/// Without these some tests are skipped, and counted as such.
const FOR_TESTS: &[Needed] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("conntrack", "conntrack"),
    ("iptables", "iptables"),
    ("/usr/lib/cni/loopback", "containernetworking-plugins"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    // With what it needs 38 MB.
    ("podman", "podman"),
];

/// The same, of which not every distribution has a package.
const BROWSER: &[Needed] = &[("chromium-headless-shell", "chromium-headless-shell")];
/// Any of these will do.
const BROWSERS: &[&str] = &["chromium", "chromium-headless-shell"];
/// What the virtual machine is made with.
const FOR_VM: &[Needed] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("strip", "binutils"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];
/// A witness whose package starts a service: it is only unpacked, below the build's directory.
const UNPACKED: (&str, &[&str]) = ("prometheus", &["prometheus", "promtool"]);

/// What the demo needs.
pub(crate) fn for_demo() -> Result<(), Failure> {
    install(&missing(BASE));
    require(BASE)
}

/// What the tests need.
pub(crate) fn for_tests() -> Result<(), Failure> {
    let all: Vec<Needed> = BASE.iter().chain(FOR_TESTS).copied().collect();
    let mut packages = missing(&all);
    packages.extend((!can_make_environments()).then_some("python3-venv"));
    install(&packages);
    if !BROWSERS.iter().any(|browser| there(browser)) {
        install(&missing(BROWSER));
    }
    require(BASE)
}

/// What tests in a virtual machine need beside that.
pub(crate) fn for_vm() -> Result<(), Failure> {
    let all: Vec<Needed> = BASE.iter().chain(FOR_VM).copied().collect();
    install(&missing(&all));
    require(&all)
}

/// The path on which the tests find their programs: Prometheus' too, if it can be had.
pub(crate) fn path_for_tests(target: &Path) -> Option<OsString> {
    let (package, programs) = UNPACKED;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let place = target.join(package);
    let bin = place.join("usr/bin");
    let has = |bin: &Path| programs.iter().all(|program| bin.join(program).exists());
    if !programs.iter().all(|program| there(program)) && !has(&bin) {
        println!("── unpacking {package}");
        if let Err(why) = unpack(package, &place) {
            println!("   {why}; what needs it is skipped");
        }
    }
    let own = std::iter::once(bin).filter(|bin| has(bin));
    std::env::join_paths(own.chain(std::env::split_paths(&path))).ok()
}

/// Unpacks a package without installing it.
fn unpack(package: &str, place: &Path) -> Result<(), String> {
    std::fs::create_dir_all(place).map_err(|error| format!("{}: {error}", place.display()))?;
    let script =
        format!("apt-get -qq download {package} && dpkg-deb -x {package}_*.deb . && rm -f {package}_*.deb");
    let made = Command::new("sh").args(["-c", &script]).current_dir(place).stdin(Stdio::null()).output();
    let made = made.map_err(|error| format!("cannot run sh: {error}"))?;
    match made.status.success() {
        true => Ok(()),
        false => Err(format!("{package} is not to be had: {}", String::from_utf8_lossy(&made.stderr).trim())),
    }
}

fn missing(needed: &[Needed]) -> Vec<&'static str> {
    needed.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect()
}

fn there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    on_path || ["/usr/sbin", "/sbin"].iter().any(|directory| Path::new(directory).join(program).exists())
}

/// Whether there is a Python that can make environments with a pip in them, as moto needs one.
fn can_make_environments() -> bool {
    let asked = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    asked.is_ok_and(|output| output.status.success())
}

fn install(packages: &[&str]) {
    if packages.is_empty() {
        return;
    }
    let names = packages.join(" ");
    if !there("apt-get") || !is_root() {
        println!("── missing packages: {names}\n   as root: apt-get install {names}");
        return;
    }
    println!("── installing {names}");
    // A package list that cannot be renewed may still do; the install says if not.
    let _updated = quiet("apt-get", &["update", "-qq"]);
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(packages);
    if !quiet("apt-get", &arguments) {
        println!("   apt-get could not install all of them; what needs them is skipped");
    }
}

fn require(needed: &[Needed]) -> Result<(), Failure> {
    let packages = missing(needed);
    if packages.is_empty() {
        return Ok(());
    }
    Err(Failure::Why(format!("these packages are needed: {}", packages.join(" "))))
}

fn quiet(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
