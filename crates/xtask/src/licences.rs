//! The licences of everything that is linked in: those that ask for nothing but a notice.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::steps::{Failure, metadata};

/// Licences, by SPDX identifier, that can be part of an Apache-2.0 program without conditions on its source.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Where our programs run; what a package needs on other systems is not linked in.
const PLATFORMS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// Packages whose licence does not allow what we do with them.
pub(crate) fn complaints() -> Result<BTreeSet<String>, Failure> {
    let mut complaints = BTreeSet::new();
    for platform in PLATFORMS {
        let metadata = metadata(&["--filter-platform", platform])?;
        let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
        complaints.extend(packages.iter().filter_map(complaint));
    }
    Ok(complaints)
}

fn complaint(package: &Value) -> Option<String> {
    let name = package["name"].as_str().unwrap_or("a package");
    let Some(licence) = package["license"].as_str() else {
        return Some(format!("{name}: names no licence, so nothing allows its use"));
    };
    let why = "only licences without conditions on our source may be linked in";
    (!allowed(licence)).then(|| format!("{name}: its licence is {licence}; {why}"))
}

/// Whether an SPDX expression can be met with [`ALLOWED`]; an old `/` means OR, and an exception only gives more.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words };
    parser.any() && parser.words.is_empty()
}

/// Reads an SPDX expression; what it does not understand is not allowed.
struct Parser<'a> {
    words: &'a [&'a str],
}

impl Parser<'_> {
    fn any(&mut self) -> bool {
        let mut good = self.all();
        while self.take("OR") {
            good |= self.all();
        }
        good
    }

    fn all(&mut self) -> bool {
        let mut good = self.one();
        while self.take("AND") {
            good &= self.one();
        }
        good
    }

    fn one(&mut self) -> bool {
        if self.take("(") {
            let good = self.any();
            return self.take(")") && good;
        }
        let good = self.next().is_some_and(|word| ALLOWED.contains(&word));
        if self.take("WITH") {
            return self.next().is_some() && good;
        }
        good
    }

    fn take(&mut self, word: &str) -> bool {
        let there = self.words.first() == Some(&word);
        if there {
            self.next();
        }
        there
    }

    fn next(&mut self) -> Option<&str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }
}

#[test]
fn one_good_licence_is_enough_where_there_is_a_choice() {
    assert!(allowed("MIT"));
    assert!(allowed("MIT OR Apache-2.0 OR LGPL-2.1-or-later"));
    assert!(allowed("Apache-2.0/MIT"));
    assert!(allowed("Apache-2.0 WITH LLVM-exception"));
    assert!(!allowed("MPL-2.0"));
    assert!(!allowed("GPL-2.0-only WITH Classpath-exception-2.0"));
}

#[test]
fn every_licence_must_be_good_where_all_apply() {
    assert!(allowed("(MIT OR GPL-3.0-only) AND Unicode-3.0"));
    assert!(!allowed("MIT AND LGPL-2.1-only"));
    assert!(!allowed("(MIT AND GPL-3.0-only) OR MPL-2.0"));
}

#[test]
fn what_cannot_be_read_is_not_allowed() {
    for text in ["", "MIT AND", "MIT Apache-2.0", "(MIT", "MIT)"] {
        assert!(!allowed(text), "{text}");
    }
}
