//! The container image: two static programs, the roots of trust for TLS and licence texts, on nothing; and plugins of other people, where told.
//!
//! The roots come from the building machine's `ca-certificates` and not from a crate: a distribution withdraws a root within days, and whoever has
//! roots of their own has them in that file. They are an input like the sources: the same ones give the same image.

mod elf;
mod notices;
mod plugins;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use oci::{File, Image, Layer};

use crate::steps::{Failure, cargo, metadata, step};
use crate::{build, plugin, target};

/// Where the daemon looks for roots, as every program that uses the system's.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";
/// What the image does when nothing else is said.
const ENTRYPOINT: [&str; 1] = ["/ipamd"];
const ARGUMENTS: [&str; 1] = ["run"];
/// The members of the workspace that are in it.
const PROGRAMS: [&str; 2] = ["ipamd", "cni-plugin"];
/// Licences of what does not come by cargo, where a machine has them: the name in the image, and the file here.
const RUST_LICENCES: &str = "share/doc/rust/COPYRIGHT-library.html";
const ROOTS_LICENCE: &str = "/usr/share/doc/ca-certificates/copyright";

/// How the image is made.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only for this architecture, once or twice; otherwise for all that can be built here.
    #[arg(long)]
    arch: Vec<Architecture>,
    /// The name in the archive.
    #[arg(long, default_value = concat!("localhost/vpc-cni:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// The archive; `target/dist/vpc-cni.tar` unless said.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The roots of trust for TLS.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    roots: PathBuf,
    /// Also put reference plugins of the CNI project into the image, for nodes that have none: DIR has `amd64` and `arm64`, each as a
    /// release of theirs unpacks.
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Put the files of one architecture into this directory instead, as manifests/Containerfile does.
    #[arg(long, value_name = "DIR", conflicts_with = "out", requires = "arch")]
    tree: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// In the words of container images.
    const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// In the words of compilers.
    const fn cpu(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// `e_machine` of `elf.h`.
    const fn machine(self) -> u64 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.cpu())
    }

    /// The C compiler, which ring needs, and which links.
    fn compiler(self, host: &str) -> String {
        if host.starts_with(self.cpu()) { "cc".to_owned() } else { format!("{}-linux-gnu-gcc", self.cpu()) }
    }

    /// Why nothing can be built for it here.
    fn missing(self, host: &str) -> Option<String> {
        let (compiler, target) = (self.compiler(host), self.target());
        let asked = Command::new(&compiler).arg("--version").stdout(Stdio::null()).status();
        if !asked.is_ok_and(|status| status.success()) {
            return Some(format!(
                "there is no C compiler {compiler}; Debian has it as gcc-{}-linux-gnu",
                self.cpu()
            ));
        }
        (!target::is_to_be_had(&target))
            .then(|| format!("Rust's standard library for {target} is not to be had"))
    }
}

/// Builds the programs and packs them.
pub(crate) fn make(options: &Options) -> Result<(), Failure> {
    let host = target::host()?;
    let architectures = choose(&options.arch, |architecture| architecture.missing(&host))?;
    let directory = build::target_directory()?.join("dist");
    let base = base(&options.roots)?;
    let mut all = Vec::new();
    for architecture in architectures {
        // Before what takes minutes.
        let plugins = plugins::files(options.plugins.as_deref(), architecture)?;
        let programs = programs(architecture, &host, &directory)?;
        all.push((architecture, [programs, plugins].concat()));
    }
    match (&options.tree, all.as_slice()) {
        (Some(tree), [(_, programs)]) => write_tree(tree, &[base.as_slice(), programs].concat()),
        (Some(_), _) => Err(Failure::Why("--tree is for one architecture".to_owned())),
        (None, _) => {
            let out = options.out.clone().unwrap_or_else(|| directory.join("vpc-cni.tar"));
            write_archive(&out, &options.name, base, all)
        }
    }
}

/// The architectures to build for. What was asked for by name must be possible.
fn choose(
    asked: &[Architecture],
    missing: impl Fn(Architecture) -> Option<String>,
) -> Result<Vec<Architecture>, Failure> {
    let mut chosen = Vec::new();
    for architecture in Architecture::ALL {
        if !asked.is_empty() && !asked.contains(&architecture) {
            continue;
        }
        match missing(architecture) {
            None => chosen.push(architecture),
            Some(why) if asked.is_empty() => println!("── WITHOUT linux/{}: {why}", architecture.name()),
            Some(why) => return Err(Failure::Why(format!("linux/{}: {why}", architecture.name()))),
        }
    }
    match chosen.is_empty() {
        true => Err(Failure::Why("no architecture can be built for".to_owned())),
        false => Ok(chosen),
    }
}

/// What all architectures have.
fn base(roots: &Path) -> Result<Vec<File>, Failure> {
    let mut packages = BTreeSet::new();
    for architecture in Architecture::ALL {
        let metadata = metadata(&["--filter-platform", &architecture.target()])?;
        packages.extend(notices::linked(&metadata, &PROGRAMS));
    }
    let mut files = vec![
        read(roots, ROOTS, 0o644)?,
        read(Path::new("LICENSE"), "licences/vpc-cni.txt", 0o644)?,
        file("licences/linked.txt", 0o644, notices::collect(&packages)?.into_bytes()),
    ];
    let rust = Path::new(&target::sysroot()).join(RUST_LICENCES);
    let others =
        [(rust.as_path(), "licences/rust.html"), (Path::new(ROOTS_LICENCE), "licences/ca-certificates.txt")];
    for (from, to) in others {
        match from.exists() {
            true => files.push(read(from, to, 0o644)?),
            false => println!("── WITHOUT {to}: there is no {}", from.display()),
        }
    }
    Ok(files)
}

/// Builds both programs for an architecture.
fn programs(architecture: Architecture, host: &str, directory: &Path) -> Result<Vec<File>, Failure> {
    let target = architecture.target();
    let daemon = cargo(&[
        "build",
        "--locked",
        "--package",
        "ipamd",
        "--bin",
        "ipamd",
        "--release",
        "--target",
        &target,
    ]);
    for (what, mut command) in [("plugin", plugin::command(&target)), ("daemon (some minutes)", daemon)] {
        let compiler = architecture.compiler(host);
        let upper = target.replace('-', "_").to_uppercase();
        command.env(format!("CC_{}", target.replace('-', "_")), &compiler);
        command.env(format!("CARGO_TARGET_{upper}_LINKER"), &compiler);
        command.env("CARGO_ENCODED_RUSTFLAGS", without_paths()?).env("CARGO_TARGET_DIR", directory);
        step(&format!("build {what} for linux/{}", architecture.name()), command)?;
    }
    let built = [
        (directory.join(&target).join("release/ipamd"), "ipamd"),
        (plugin::file(directory, &target), "aws-cni"),
    ];
    let mut files = Vec::new();
    for (from, to) in built {
        let file = read(&from, to, 0o755)?;
        elf::check(&file.content, architecture.machine())
            .map_err(|why| Failure::Why(format!("{}: {why}", from.display())))?;
        files.push(file);
    }
    Ok(files)
}

/// Compiler flags that keep this machine's directories out of the programs, separated as cargo wants them.
fn without_paths() -> Result<String, Failure> {
    let failed = |error| Failure::Why(format!("no current directory: {error}"));
    let sources = std::env::current_dir().map_err(failed)?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).unwrap_or_default();
    let remapped = [(sources, "/vpc-cni"), (home, "/cargo")];
    let flags = remapped.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    Ok(flags.join("\x1f"))
}

fn write_tree(tree: &Path, files: &[File]) -> Result<(), Failure> {
    for file in files {
        let path = tree.join(&file.path);
        let written = fs::create_dir_all(path.parent().unwrap_or(tree))
            .and_then(|()| fs::write(&path, &file.content))
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(file.mode)));
        written.map_err(|error| Failure::Why(format!("{}: {error}", path.display())))?;
    }
    println!("   {}", tree.display());
    Ok(())
}

fn write_archive(
    out: &Path,
    name: &str,
    base: Vec<File>,
    all: Vec<(Architecture, Vec<File>)>,
) -> Result<(), Failure> {
    let failed = |error| Failure::Why(format!("{}: {error}", out.display()));
    let base = Layer::new(base).map_err(failed)?;
    let mut layers = Vec::new();
    for (architecture, programs) in all {
        layers.push((architecture, [base.clone(), Layer::new(programs).map_err(failed)?]));
    }
    let images: Vec<Image<'_>> = layers
        .iter()
        .map(|(architecture, layers)| Image {
            architecture: architecture.name(),
            layers,
            entrypoint: &ENTRYPOINT,
            arguments: &ARGUMENTS,
        })
        .collect();
    let archive = oci::pack(name, &images).map_err(failed)?;
    fs::create_dir_all(out.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    fs::write(out, &archive.bytes).map_err(failed)?;
    let architectures: Vec<String> =
        images.iter().map(|image| format!("linux/{}", image.architecture)).collect();
    println!("   {}: {} bytes, {}", out.display(), archive.bytes.len(), architectures.join(" and "));
    println!("   {name}\n   {}", archive.digest);
    Ok(())
}

fn read(from: &Path, to: &str, mode: u32) -> Result<File, Failure> {
    let content = fs::read(from).map_err(|error| Failure::Why(format!("{}: {error}", from.display())))?;
    Ok(file(to, mode, content))
}

fn file(path: &str, mode: u32, content: Vec<u8>) -> File {
    File { path: path.to_owned(), mode, content }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_built_is_left_out_unless_it_was_asked_for() {
        let no_arm = |architecture| (architecture == Architecture::Arm64).then(|| "no compiler".to_owned());

        assert_eq!(choose(&[], no_arm).unwrap(), [Architecture::Amd64]);
        assert_eq!(choose(&[Architecture::Amd64], no_arm).unwrap(), [Architecture::Amd64]);
        let Err(Failure::Why(why)) = choose(&[Architecture::Arm64], no_arm) else { panic!("it was built") };
        assert_eq!(why, "linux/arm64: no compiler");
        assert!(choose(&[], |_| Some("nothing".to_owned())).is_err());
    }

    #[test]
    fn only_the_hosts_own_compiler_has_the_short_name() {
        let host = "aarch64-unknown-linux-gnu";

        assert_eq!(Architecture::Arm64.compiler(host), "cc");
        assert_eq!(Architecture::Amd64.compiler(host), "x86_64-linux-gnu-gcc");
    }
}
