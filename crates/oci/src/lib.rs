//! Container images, made of files and nothing else: no Docker, no base image, no clock.
//!
//! The form is the OCI image layout in a tar file ("OCI archive"), which containerd, Podman, Buildah and Skopeo read. The same input gives the
//! same bytes: files have no owner and no date, and their order is that of their paths.

mod layer;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use layer::{File, Layer};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The annotation by which tools find an image in an archive, and the one in which containerd looks for its whole name.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// An image for one architecture.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// In Go's words, as the image specification wants it: `amd64`, `arm64`.
    pub architecture: &'a str,
    /// What its file system is made of, from below.
    pub layers: &'a [Layer],
    /// The program that is started.
    pub entrypoint: &'a [&'a str],
    /// Its arguments, unless others are given.
    pub arguments: &'a [&'a str],
}

/// An OCI archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The file.
    pub bytes: Vec<u8>,
    /// What identifies the image of that name: `sha256:` and hexadecimal digits.
    pub digest: String,
}

/// Packs an image for one or more architectures under one name, such as `registry.example/name:tag`. Layers that are the same are there once.
///
/// # Errors
/// When a path is too long for tar.
pub fn pack(name: &str, images: &[Image<'_>]) -> io::Result<Archive> {
    let mut blobs = Blobs::default();
    let manifests: Vec<Value> = images.iter().map(|image| blobs.put_image(image)).collect();
    let mut index = blobs.put_json(
        INDEX,
        &json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests,
        }),
    );
    let digest = index["digest"].as_str().unwrap_or_default().to_owned();
    index["annotations"] = NAMES.map(|key| (key.to_owned(), Value::from(name))).into_iter().collect();
    let root = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index]});

    let file = |path: &str, content: Vec<u8>| File { path: path.to_owned(), mode: 0o644, content };
    let mut files = vec![
        file("index.json", root.to_string().into_bytes()),
        file("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes()),
    ];
    files.extend(blobs.0.into_iter().map(|(hash, bytes)| file(&format!("blobs/sha256/{hash}"), bytes)));
    Ok(Archive { bytes: layer::tar(&files)?, digest })
}

/// What an archive holds, by the hash of each.
#[derive(Debug, Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Puts an image there; its manifest's descriptor.
    fn put_image(&mut self, image: &Image<'_>) -> Value {
        let layers: Vec<Value> =
            image.layers.iter().map(|layer| self.put(layer.media_type, layer.stored.clone())).collect();
        let diff_ids: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = self.put_json(
            CONFIG,
            &json!({
                "architecture": image.architecture, "os": "linux",
                "config": {"Entrypoint": image.entrypoint, "Cmd": image.arguments, "WorkingDir": "/"},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        );
        let mut manifest = self.put_json(
            MANIFEST,
            &json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
            }),
        );
        manifest["platform"] = json!({"architecture": image.architecture, "os": "linux"});
        manifest
    }

    fn put_json(&mut self, media_type: &str, value: &Value) -> Value {
        self.put(media_type, value.to_string().into_bytes())
    }

    /// Puts bytes there; their descriptor.
    fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (hash, size) = (sha256(&bytes), bytes.len());
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{hash}"), "size": size});
        self.0.insert(hash, bytes);
        descriptor
    }
}

/// In hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Writing into a text cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn file(path: &str, content: &str) -> File {
        File { path: path.to_owned(), mode: 0o755, content: content.into() }
    }

    fn layer(files: &[File]) -> Layer {
        Layer::new(files.to_vec()).unwrap()
    }

    fn packed(architectures: &[&str]) -> Archive {
        let base = layer(&[file("etc/roots", "roots")]);
        let layers: Vec<_> =
            architectures.iter().map(|name| [base.clone(), layer(&[file("program", name)])]).collect();
        let images: Vec<Image<'_>> = architectures
            .iter()
            .zip(&layers)
            .map(|(architecture, layers)| Image {
                architecture,
                layers,
                entrypoint: &["/program"],
                arguments: &["run"],
            })
            .collect();
        pack("localhost/program:1", &images).unwrap()
    }

    /// Every file of an archive by its path.
    fn files(archive: &Archive) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive.bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if entry.header().entry_type().is_file() {
                files.insert(path, bytes);
            }
        }
        files
    }

    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = &files[&format!("blobs/sha256/{digest}")];
        assert_eq!(sha256(bytes), digest);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    fn json_blob(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
        serde_json::from_slice(blob(files, descriptor)).unwrap()
    }

    #[test]
    fn from_the_name_everything_is_found_by_its_digest_down_to_the_files() {
        let archive = packed(&["amd64", "arm64"]);
        let files = files(&archive);
        let root: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let named = &root["manifests"][0];
        assert_eq!(named["annotations"][NAMES[0]], "localhost/program:1");
        assert_eq!(named["digest"], archive.digest);

        let index = json_blob(&files, named);
        for (at, architecture) in ["amd64", "arm64"].into_iter().enumerate() {
            let descriptor = &index["manifests"][at];
            assert_eq!(descriptor["platform"], json!({"architecture": architecture, "os": "linux"}));
            let manifest = json_blob(&files, descriptor);
            let config = json_blob(&files, &manifest["config"]);
            assert_eq!(config["architecture"], architecture);
            assert_eq!(config["config"]["Entrypoint"], json!(["/program"]));
            let mut plain = Vec::new();
            let compressed = blob(&files, &manifest["layers"][1]);
            flate2::read::GzDecoder::new(compressed).read_to_end(&mut plain).unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][1], format!("sha256:{}", sha256(&plain)));
        }
    }

    #[test]
    fn the_same_files_in_any_order_give_the_same_bytes_and_others_do_not() {
        let one = layer(&[file("b/c", "2"), file("a", "1"), file("b/a", "3")]);
        let other = layer(&[file("a", "1"), file("b/a", "3"), file("b/c", "2")]);
        assert_eq!(one, other);
        assert_ne!(one, layer(&[file("a", "1"), file("b/a", "4"), file("b/c", "2")]));

        assert_eq!(packed(&["amd64"]), packed(&["amd64"]));
        assert_ne!(packed(&["amd64"]).digest, packed(&["arm64"]).digest);
    }

    #[test]
    fn a_plain_layer_is_the_same_files() {
        let files = [file("a", "1")];
        let (compressed, plain) = (layer(&files), Layer::plain(files.to_vec()).unwrap());

        assert_eq!(compressed.diff_id, plain.diff_id);
        assert_ne!(compressed.stored, plain.stored);
        assert_eq!(plain.diff_id, format!("sha256:{}", sha256(&plain.stored)));
    }

    #[test]
    fn a_layer_that_architectures_share_is_there_once() {
        // The index of the archive, its layout; index, two manifests, two configurations, two programs and one base.
        assert_eq!(files(&packed(&["amd64", "arm64"])).len(), 2 + 8);
    }
}
