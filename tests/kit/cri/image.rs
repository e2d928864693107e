//! The sandbox image: busybox and nothing else, as a Docker archive.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::CriError;

/// The image's name.
pub(super) const NAME: &str = "localhost/pause:1";

/// Makes the archive with `tar` and imports it with `ctr`.
pub(super) fn import(directory: &Path) -> Result<(), CriError> {
    let archive = archive(directory).map_err(|e| CriError::Io("make the sandbox image", e))?;
    let address = directory.join("containerd.sock");
    let output = Command::new("ctr")
        .arg("--address")
        .arg(address)
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

fn archive(directory: &Path) -> io::Result<std::path::PathBuf> {
    let (root, layer) = (directory.join("rootfs"), directory.join("image/layer"));
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(&layer)?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    tar(&root, &layer.join("layer.tar"), &["."])?;
    // `sleep` is an applet of busybox, named by its first argument.
    let config = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/busybox","sleep","100000"]},
        "rootfs":{"type":"layers","diff_ids":["sha256:DIGEST"]},"history":[]}"#;
    let digest = sha256(&layer.join("layer.tar"))?;
    let image = directory.join("image");
    fs::write(image.join("config.json"), config.replace("DIGEST", &digest))?;
    let manifest =
        format!(r#"[{{"Config":"config.json","RepoTags":["{NAME}"],"Layers":["layer/layer.tar"]}}]"#);
    fs::write(image.join("manifest.json"), manifest)?;
    let archive = directory.join("pause.tar");
    tar(&image, &archive, &["manifest.json", "config.json", "layer/layer.tar"])?;
    Ok(archive)
}

fn tar(from: &Path, to: &Path, what: &[&str]) -> io::Result<()> {
    let done = Command::new("tar").arg("-C").arg(from).arg("-cf").arg(to).args(what).status()?;
    if done.success() { Ok(()) } else { Err(io::Error::other("tar failed")) }
}

fn sha256(path: &Path) -> io::Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().next().map(str::to_owned).ok_or_else(|| io::Error::other("sha256sum failed"))
}
