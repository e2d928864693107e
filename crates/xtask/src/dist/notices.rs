//! The licence texts of what is linked in: nearly all of them ask to go with every copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::steps::Failure;

/// How names of files with licences begin.
const BEGINNINGS: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// A package that is linked in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    name: String,
    version: String,
    licence: String,
    directory: PathBuf,
}

/// What these members of the workspace link in, by `cargo metadata`, without the workspace's own packages.
pub(super) fn linked(metadata: &Value, members: &[&str]) -> BTreeSet<Package> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    let is_root = |package: &Value| members.contains(&text(&package["name"]).as_str());
    let mut next: Vec<String> =
        packages.iter().filter(|(_, package)| is_root(package)).map(|(id, _)| id.clone()).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = next.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let dependencies = nodes.get(&id).map(|node| list(&node["deps"])).unwrap_or_default();
        let linked =
            |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        next.extend(dependencies.iter().filter(|dependency| linked(dependency)).map(|one| text(&one["pkg"])));
    }
    // A package of the workspace has no source.
    let foreign =
        seen.iter().filter_map(|id| packages.get(id)).filter(|package| !package["source"].is_null());
    foreign.map(package).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn package(package: &Value) -> Package {
    let manifest = PathBuf::from(text(&package["manifest_path"]));
    Package {
        name: text(&package["name"]),
        version: text(&package["version"]),
        licence: text(&package["license"]),
        directory: manifest.parent().unwrap_or(Path::new("")).to_owned(),
    }
}

/// One text for all packages: who they are, then every licence text once, with those whose it is.
pub(super) fn collect(packages: &BTreeSet<Package>) -> Result<String, Failure> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages {
        for file in licences_in(&package.directory)? {
            let bytes =
                fs::read(&file).map_err(|error| Failure::Why(format!("{}: {error}", file.display())))?;
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            let whose = format!("{} {}", package.name, package.version);
            let all = texts.entry(text).or_default();
            // A package may hold the same text twice.
            if all.last() != Some(&whose) {
                all.push(whose);
            }
        }
    }
    Ok(put_together(packages, texts))
}

/// Files with licences directly in a package's directory, in the order of their names.
fn licences_in(directory: &Path) -> Result<BTreeSet<PathBuf>, Failure> {
    let failed = |error| Failure::Why(format!("{}: {error}", directory.display()));
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) {
            files.insert(path);
        }
    }
    Ok(files)
}

fn put_together(packages: &BTreeSet<Package>, texts: BTreeMap<String, Vec<String>>) -> String {
    let mut all = "What is linked into these programs, and under which licences.\n\n".to_owned();
    for Package { name, version, licence, .. } in packages {
        all.push_str(&format!("{name} {version}: {licence}\n"));
    }
    let mut texts: Vec<(Vec<String>, String)> =
        texts.into_iter().map(|(text, whose)| (whose, text)).collect();
    texts.sort();
    let line = "-".repeat(80);
    for (whose, text) in texts {
        all.push_str(&format!("\n{line}\n{}\n{line}\n\n{text}\n", whose.join(", ")));
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_only_built_or_tested_with_is_not_linked() {
        let package = |id: &str, source: Value| {
            json!({"id": id, "name": id, "version": "1.0.0", "license": "MIT", "source": source,
                "manifest_path": format!("/registry/{id}/Cargo.toml")})
        };
        let on = |id: &str, kind: Value| json!({"pkg": id, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("daemon", Value::Null), package("own", Value::Null), package("other", Value::Null),
                package("a", "registry".into()), package("b", "registry".into()),
                package("built", "registry".into()), package("tested", "registry".into()),
                package("elsewhere", "registry".into()),
            ],
            "resolve": {"nodes": [
                {"id": "daemon", "deps": [on("own", Value::Null), on("built", "build".into()), on("tested", "dev".into())]},
                {"id": "own", "deps": [on("a", Value::Null)]},
                {"id": "a", "deps": [on("b", Value::Null), on("a", Value::Null)]},
                {"id": "other", "deps": [on("elsewhere", Value::Null)]},
            ]},
        });

        let linked = linked(&metadata, &["daemon"]);

        let names: Vec<&str> = linked.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(linked.first().unwrap().directory, Path::new("/registry/a"));
    }

    #[test]
    fn a_text_that_many_share_is_there_once_with_all_their_names() {
        let package = |name: &str| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: "MIT".to_owned(),
            directory: PathBuf::new(),
        };
        let packages = BTreeSet::from(["a", "b"].map(package));
        let whose = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let texts = BTreeMap::from([
            ("shared".to_owned(), whose(&["a 1.0.0", "b 1.0.0"])),
            ("alone".to_owned(), whose(&["b 1.0.0"])),
        ]);

        let all = put_together(&packages, texts);

        assert!(all.contains("a 1.0.0: MIT\nb 1.0.0: MIT\n"), "{all}");
        assert!(all.contains("\na 1.0.0, b 1.0.0\n"), "{all}");
        assert_eq!((all.matches("shared").count(), all.matches("alone").count()), (1, 1));
    }
}
