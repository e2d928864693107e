//! Images made on the spot: the sandbox's, which is busybox and nothing else, and ours, of the programs that are tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oci::{File, Image, Layer};

use super::CriError;
use crate::LabError;
use crate::node::binary;

/// The sandbox image's name.
pub(super) const PAUSE: &str = "localhost/pause:1";
/// The name of ours, in archives that `cargo xtask dist` makes too.
pub const OURS: &str = concat!("localhost/vpc-cni:", env!("CARGO_PKG_VERSION"));
/// The variable that names an archive to be tested instead of one that is made of the programs.
const GIVEN: &str = "LAB_IMAGE";

/// Imports the sandbox image.
pub(super) fn import_pause(directory: &Path) -> Result<(), CriError> {
    let failed = |error| CriError::Io("make the sandbox image", error);
    let busybox = File {
        path: "bin/busybox".to_owned(),
        mode: 0o755,
        content: fs::read("/bin/busybox").map_err(failed)?,
    };
    // `sleep` is an applet of busybox, named by its first argument.
    let entrypoint = ["/bin/busybox", "sleep", "100000"];
    let archive = directory.join("pause.tar");
    pack(PAUSE, vec![busybox], &entrypoint, &[])
        .and_then(|bytes| fs::write(&archive, bytes))
        .map_err(failed)?;
    import(directory, &archive)
}

/// Our image as an archive: the one that `LAB_IMAGE` names, or one of the programs that are tested. Those may be dynamic, so their libraries
/// are in it too; otherwise it is packed and laid out as the one that is shipped.
///
/// # Errors
/// When a program is not built or cannot be read.
pub fn ours(directory: &Path) -> Result<PathBuf, LabError> {
    if let Some(given) = std::env::var_os(GIVEN) {
        return Ok(given.into());
    }
    let daemon = binary("IPAMD_BIN", "ipamd")?;
    let mut files = vec![
        file("ipamd", &stripped(&daemon, directory))?,
        file("aws-cni", &binary("AWS_CNI_BIN", "aws-cni")?)?,
        // The daemon does not start without roots of trust.
        file("etc/ssl/certs/ca-certificates.crt", Path::new("/etc/ssl/certs/ca-certificates.crt"))?,
    ];
    for library in libraries(&daemon)? {
        files.push(file(library.trim_start_matches('/'), Path::new(&library))?);
    }
    let archive = directory.join("ours.tar");
    let packed = pack(OURS, files, &["/ipamd"], &["run"]).and_then(|bytes| fs::write(&archive, bytes));
    packed.map_err(LabError::doing("make our image"))?;
    Ok(archive)
}

fn pack(name: &str, files: Vec<File>, entrypoint: &[&str], arguments: &[&str]) -> std::io::Result<Vec<u8>> {
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let layers = [Layer::plain(files)?];
    Ok(oci::pack(name, &[Image { architecture, layers: &layers, entrypoint, arguments }])?.bytes)
}

fn file(path: &str, from: &Path) -> Result<File, LabError> {
    let content = fs::read(from).map_err(LabError::doing(format!("read {}", from.display())))?;
    Ok(File { path: path.to_owned(), mode: 0o755, content })
}

/// Half of a program is for debuggers; where nobody can take it out, it stays.
fn stripped(program: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join("ipamd.stripped");
    let done = Command::new("strip").arg("-o").arg(&copy).arg(program).stderr(Stdio::null()).status();
    if done.is_ok_and(|status| status.success()) { copy } else { program.to_owned() }
}

/// What the program's interpreter loads, and the interpreter, by `ldd`; nothing of a static program.
fn libraries(program: &Path) -> Result<Vec<String>, LabError> {
    let output = Command::new("ldd").arg(program).output().map_err(LabError::doing("run ldd"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect())
}

/// Imports an archive with `ctr` into the instance of this directory.
pub(super) fn import(directory: &Path, archive: &Path) -> Result<(), CriError> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(directory.join("containerd.sock"))
        .args(["--namespace", "k8s.io", "images", "import", "--snapshotter", "native"])
        .arg(archive)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| CriError::Io("run ctr", e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(CriError::Refused(String::from_utf8_lossy(&output.stderr).into_owned()))
}
