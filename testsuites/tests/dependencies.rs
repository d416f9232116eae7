//! Rules about manifests and sources that a compiler doesn't check.
//!
//! Problem: a wrong arrow between crates, a forgotten lint table or a file that grows without end does no
//! harm on the day it appears, and much later. Scheme: read every manifest and every source file of the
//! workspace and compare with the rules of CONTRIBUTING.md. Arrows: ARCHITECTURE.md, "The crates".

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Each crate of ours and whom it may use in its program code.
const ARROWS: &[(&str, &[&str])] = &[
    ("cpu", &[]),
    ("mmu", &["cpu"]),
    ("codecache", &[]),
    ("translator", &["cpu", "codecache"]),
    ("devices", &[]),
    ("net", &["devices"]),
    ("machine", &["cpu", "mmu", "codecache", "translator", "devices", "net"]),
    ("cli", &["machine", "devices"]),
    ("testsuites", &["machine", "cpu", "mmu", "codecache", "translator", "devices", "net"]),
    ("benches", &["machine", "cpu", "mmu", "codecache", "translator", "devices"]),
];

/// Crates that make host calls, and who may. cli has a terminal and signals of its own, devices has disk images'
/// files; testsuites and benches are not part of the program.
const HOST_CALLS: &[&str] = &["libc", "rustix", "nix", "memmap2"];
const MAY_CALL_HOST: &[&str] =
    &["mmu", "codecache", "devices", "net", "machine", "cli", "testsuites", "benches"];
/// The one part of devices that may.
const DISK_IMAGES: &str = "devices/src/disk/";

const LICENSE: &str = "Apache-2.0 OR MIT";
const LINES_MAX: usize = 1500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a crate lies in the workspace")
        .to_owned()
}

fn manifest(folder: &str) -> Table {
    let path = root().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    text.parse().unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Names under `[dependencies]`, `[build-dependencies]` and their per-target forms.
fn dependencies(manifest: &Table) -> Vec<String> {
    let mut tables: Vec<&Table> = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let kinds = ["dependencies", "build-dependencies"];
    tables
        .iter()
        .flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flat_map(|table| table.keys().cloned())
        .collect()
}

fn members() -> Vec<String> {
    let manifest = manifest(".");
    let members = manifest["workspace"]["members"].as_array().expect("a list");
    members.iter().map(|member| member.as_str().expect("a folder").to_owned()).collect()
}

#[test]
fn every_crate_has_its_arrows() {
    let mut known: Vec<_> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut members = members();
    known.sort();
    members.sort();
    assert_eq!(members, known, "ARROWS lists each crate of the workspace");
}

#[test]
fn arrows_point_down() {
    for (name, allowed) in ARROWS {
        for dependency in dependencies(&manifest(name)) {
            if let Some(ours) = dependency.strip_prefix("xenolith-") {
                assert!(allowed.contains(&ours), "{name} must not use {ours}");
            }
        }
    }
}

#[test]
fn host_calls_stay_where_they_belong() {
    for member in members() {
        for dependency in dependencies(&manifest(&member)) {
            let allowed = MAY_CALL_HOST.contains(&member.as_str());
            assert!(
                allowed || !HOST_CALLS.contains(&dependency.as_str()),
                "{member} must not use {dependency}: host calls are for {MAY_CALL_HOST:?}"
            );
        }
    }
}

#[test]
fn devices_calls_the_host_for_disk_images_only() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let name = path.strip_prefix(root()).expect("below the root").display().to_string();
        if name.starts_with("devices/src/") && !name.starts_with(DISK_IMAGES) {
            let called = HOST_CALLS.iter().filter(|called| text.contains(&format!("{called}::")));
            complaints.extend(called.map(|called| format!("{name} must not use {called}")));
        }
    }
    report(&complaints);
}

#[test]
fn every_crate_takes_the_workspaces_lints_licence_and_edition() {
    for member in members() {
        let manifest = manifest(&member);
        let inherits = |table: &str, key: &str| {
            let value = manifest.get(table).and_then(|table| table.get(key));
            let value = value.map(|value| value.get("workspace").unwrap_or(value));
            let value = value.and_then(Value::as_bool);
            assert_eq!(value, Some(true), "{member}: {table}.{key} comes from the workspace");
        };
        inherits("lints", "workspace");
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            inherits("package", key);
        }
    }
}

#[test]
fn the_workspace_has_its_lints_and_licence() {
    let manifest = manifest(".");
    let workspace = &manifest["workspace"];
    assert_eq!(workspace["package"]["license"].as_str(), Some(LICENSE));
    let lints = &workspace["lints"];
    for (tool, lint) in [
        ("rust", "unsafe_op_in_unsafe_fn"),
        ("rust", "missing_debug_implementations"),
        ("clippy", "undocumented_unsafe_blocks"),
        ("clippy", "multiple_unsafe_ops_per_block"),
        ("clippy", "ptr_as_ptr"),
        ("clippy", "allow_attributes_without_reason"),
    ] {
        let level = lints[tool].get(lint).and_then(Value::as_str);
        assert!(matches!(level, Some("warn" | "deny" | "forbid")), "{tool}: {lint} is {level:?}");
    }
}

fn allowed_licences() -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("deny.toml is there");
    let deny: Table = text.parse().expect("deny.toml is sound");
    let allowed = deny["licenses"]["allow"].as_array().expect("a list");
    allowed.iter().map(|licence| licence.as_str().expect("a name").to_owned()).collect()
}

/// Whether an SPDX expression can be satisfied: `OR` binds weaker than `AND`; an old `/` means `OR`.
fn can_be_satisfied(expression: &str, allowed: &[String]) -> bool {
    fn split<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
        let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
        for (at, character) in text.char_indices() {
            match character {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ if depth == 0 && at >= start && text[at..].starts_with(word) => {
                    parts.push(&text[start..at]);
                    start = at + word.len();
                }
                _ => {}
            }
        }
        parts.push(&text[start..]);
        parts
    }
    let text = expression.trim();
    for (word, all) in [("/", false), (" OR ", false), (" AND ", true)] {
        let parts = split(text, word);
        if parts.len() > 1 {
            let mut parts = parts.into_iter().map(|part| can_be_satisfied(part, allowed));
            return if all { parts.all(|good| good) } else { parts.any(|good| good) };
        }
    }
    match text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        Some(inner) => can_be_satisfied(inner, allowed),
        None => allowed.iter().any(|licence| licence == text),
    }
}

#[test]
fn expressions_are_read_right() {
    let allowed = ["MIT", "Unicode-3.0"].map(str::to_owned);
    for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(MIT OR X) AND Unicode-3.0"] {
        assert!(can_be_satisfied(good, &allowed), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND X", "(X OR Y) AND MIT", "X/Y"] {
        assert!(!can_be_satisfied(bad, &allowed), "{bad}");
    }
}

/// cargo-deny does this better, where it is installed; this needs nothing.
#[test]
fn licences_of_all_crates_are_allowed() {
    let allowed = allowed_licences();
    assert!(!allowed.iter().any(|licence| licence.contains("GPL") || licence.contains("CDDL")));
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--workspace", "--prefix", "none", "--no-dedupe"])
        .args(["--edges", "normal,build", "--target", "x86_64-unknown-linux-gnu"])
        .args(["--format", "{p}|{l}"])
        .current_dir(root())
        .output()
        .expect("cargo started this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut complaints: Vec<String> = text
        .lines()
        .filter(|line| !line.is_empty())
        .filter(|line| {
            let licence = line.split_once('|').map_or("", |(_, licence)| licence);
            !can_be_satisfied(licence, &allowed)
        })
        .map(str::to_owned)
        .collect();
    assert!(text.lines().count() > 50, "cargo tree lists few crates: {text}");
    complaints.sort();
    complaints.dedup();
    report(&complaints);
}

/// Every Rust file of ours.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                // A fuzz target's own build output may lie inside.
                if path.file_name().is_none_or(|name| name != "target") {
                    walk(&path, found);
                }
            } else if path.extension().is_some_and(|suffix| suffix == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    for member in members() {
        walk(&root().join(member), &mut paths);
    }
    assert!(paths.len() > 30, "only {} files found", paths.len());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// Fails with all complaints at once.
fn report(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn files_are_of_a_size_to_read() {
    let too_long = |(path, text): (PathBuf, String)| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{} has {lines} lines", path.display()))
    };
    report(&sources().into_iter().filter_map(too_long).collect::<Vec<_>>());
}

#[test]
fn every_module_opens_with_its_purpose() {
    let silent = |(path, text): (PathBuf, String)| {
        let opening: Vec<&str> = text
            .lines()
            .skip_while(|line| line.trim().is_empty())
            .map_while(|line| line.strip_prefix("//!"))
            .map(str::trim)
            .collect();
        let speaks = opening.concat().len() > 15 && opening != ["placeholder"];
        (!speaks).then(|| format!("{} doesn't open with `//!` and its purpose", path.display()))
    };
    report(&sources().into_iter().filter_map(silent).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file doesn't find itself.
    let marks =
        [["to", "do!("], ["unimple", "mented!("], ["FIX", "ME"], ["TO", "DO"], ["X", "XX "]]
            .map(|parts| parts.concat());
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                complaints.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    report(&complaints);
}

/// `unwrap()` says nothing about why it can't fail. Outside tests it is not wanted.
#[test]
fn what_cannot_fail_says_why() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let of_tests = |path: &Path| {
            path.components().any(|part| {
                matches!(
                    part.as_os_str().to_str(),
                    Some("tests" | "tests.rs" | "testsuites" | "benches")
                )
            })
        };
        if of_tests(path.strip_prefix(root()).expect("below the root")) {
            continue;
        }
        let program = text.split("#[cfg(test)]\nmod ").next().unwrap_or(&text);
        for (number, line) in program.lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            if code.contains(".unwrap()") {
                complaints.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    report(&complaints);
}
