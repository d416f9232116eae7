//! Debian packages through the machine's own apt, without touching the machine.
//!
//! Problem: a guest's packages may be of another architecture, the person may not be root, and nothing
//! of the machine's package state may change; yet where packages come from and whose signatures count
//! is for the machine to say. Scheme: apt runs with a configuration of its own (state, lists, cache and
//! sources in a folder of ours, an empty list of installed packages); the sources are derived from the
//! machine's own entries for Debian, with the machine's keyrings and proxies. apt verifies signatures
//! and checksums as always.
//! Invariant: apt gets nothing to write to outside our folder. Sources: apt.conf(5), sources.list(5).

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

/// What `apt-get` says of its progress.
pub type Progress<'a> = &'a mut dyn FnMut(f64);

/// A private apt in a folder of its own.
#[derive(Debug)]
pub struct Apt {
    config: PathBuf,
    /// Where the sources came from, for messages.
    etc: PathBuf,
}

/// A package that can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub bytes: u64,
    /// Alternatives included, versions left out.
    pub depends: Vec<String>,
}

impl Apt {
    /// Prepares `folder` for packages of `architecture`. `release` replaces the machine's own release.
    ///
    /// # Errors
    /// The machine has no apt sources for Debian, or the folder can't be written.
    pub fn new(folder: &Path, architecture: &str, release: Option<&str>) -> Result<Self> {
        Self::with_sources(folder, architecture, release, Path::new("/etc/apt"))
    }

    fn with_sources(
        folder: &Path,
        architecture: &str,
        release: Option<&str>,
        etc: &Path,
    ) -> Result<Self> {
        let sources = sources(etc);
        if sources.is_empty() {
            bail!("this machine's apt has no source for Debian (looked in {})", etc.display());
        }
        for part in ["lists/partial", "cache/archives/partial", "state", "sources.d", "nothing"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("status", "")?;
        let stanzas: String =
            sources.iter().filter_map(|source| source.stanza(architecture, release)).collect();
        write("sources.d/debian.sources", &stanzas)?;
        let config = folder.join("apt.conf");
        let place = folder.to_str().filter(|text| !text.contains(['"', '\n', '\\']));
        let place = place.context("apt needs a cache folder without quotes in its name")?;
        write("apt.conf", &configuration(place, architecture, &machine_transport()))?;
        Ok(Self { config, etc: etc.to_owned() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Reads the package lists. A source that fails is no error while others work; the complaint is
    /// returned for the time when a package turns out to be missing.
    ///
    /// # Errors
    /// There is no apt-get.
    pub fn update(&self, progress: Progress) -> Result<Option<String>> {
        let mut command = self.command("apt-get");
        command.args(["-q", "-o", "APT::Status-Fd=1", "update"]);
        let (_, complaint) = run(command, "apt-get", progress)?;
        Ok(complaint)
    }

    /// The newest version of a package.
    ///
    /// # Errors
    /// apt-cache can't be run.
    pub fn show(&self, name: &str) -> Result<Option<Package>> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", name]);
        let output = command.output().map_err(|error| missing_program("apt-cache", &error))?;
        Ok(parse_package(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Fetches a package into `folder`, which must be empty, and gives the file.
    ///
    /// # Errors
    /// apt-get's own complaint.
    pub fn download(
        &self,
        package: &Package,
        folder: &Path,
        progress: Progress,
    ) -> Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut command = self.command("apt-get");
        command.current_dir(folder).args(["-q", "-o", "APT::Status-Fd=1", "download"]);
        command.arg(format!("{}={}", package.name, package.version));
        let (success, complaint) = run(command, "apt-get", progress)?;
        let file = fs::read_dir(folder)
            .with_context(|| format!("cannot read {}", folder.display()))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|suffix| suffix == "deb"));
        match file {
            Some(file) if success => Ok(file),
            _ => bail!(
                "cannot download {} {}: {}",
                package.name,
                package.version,
                complaint.as_deref().unwrap_or("apt-get failed without a word")
            ),
        }
    }

    pub fn etc(&self) -> &Path {
        &self.etc
    }
}

/// Unpacks a package.
///
/// # Errors
/// dpkg-deb is missing, or its own complaint.
pub fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    let output = Command::new("dpkg-deb")
        .arg("--extract")
        .args([deb, folder])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| missing_program("dpkg-deb", &error))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "cannot unpack {}: {}",
            deb.display(),
            text.lines().next().unwrap_or("dpkg-deb failed without a word")
        );
    }
    Ok(())
}

fn missing_program(program: &str, error: &std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::NotFound {
        anyhow::anyhow!(
            "there is no {program} on this machine; fetching needs a Debian system's apt"
        )
    } else {
        crate::cmd::plain(error).context(format!("cannot run {program}"))
    }
}

/// Runs apt-get with its progress on standard output: success, and its first complaint.
fn run(mut command: Command, program: &str, progress: Progress) -> Result<(bool, Option<String>)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| missing_program(program, &error))?;
    let mut stderr = child.stderr.take().context("apt-get has no standard error")?;
    // Read aside, so that neither pipe fills while we wait for the other.
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        // What was read before a failure is what we have.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let stdout = child.stdout.take().context("apt-get has no standard output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let Ok(line) = line else { break };
        if let Some(percent) = parse_progress(&String::from_utf8_lossy(&line)) {
            progress(percent);
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    let complaint = complaints.join().ok().and_then(|text| first_complaint(&text));
    Ok((status.success(), complaint))
}

/// `dlstatus:ITEM:PERCENT:TEXT`.
fn parse_progress(line: &str) -> Option<f64> {
    line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()
}

/// The first line that says what went wrong rather than that something did.
fn first_complaint(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("E: ").or_else(|| line.strip_prefix("W: ")))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .next()
}

fn parse_package(text: &str) -> Option<Package> {
    let stanza: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).collect();
    let field = |name: &str| {
        stanza.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
    };
    let depends = field("Depends")
        .unwrap_or_default()
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
        .collect();
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        bytes: field("Size")?.parse().ok()?,
        depends,
    })
}

/// One entry of the machine's sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Source {
    uris: String,
    suites: String,
    components: String,
    /// Options that say whose word counts, as deb822 fields, several lines where need be.
    trust: Vec<(String, String)>,
}

impl Source {
    /// Keeps what can be Debian's archive: all its releases have a component `main`, and it is signed
    /// by Debian's keys or those that the machine trusts for everything. A foreign source would at best
    /// be of no use to us, and at worst break ours.
    fn is_debian(&self) -> bool {
        let signed = self.trust.iter().find(|(name, _)| name == "Signed-By");
        let keys = signed.map_or("", |(_, keys)| keys);
        (keys.is_empty() || keys.contains("debian-archive") || keys.contains("BEGIN PGP"))
            && self.components.split_whitespace().any(|one| one == "main")
            && !self.uris.trim().is_empty()
            && !self.uris.contains("cdrom:")
    }

    fn stanza(&self, architecture: &str, release: Option<&str>) -> Option<String> {
        let mut suites = self.suites.clone();
        if let Some(release) = release {
            // Only the plain archive: names of side archives differ between releases.
            if self.suites.split_whitespace().all(|suite| suite.contains(['-', '/'])) {
                return None;
            }
            release.clone_into(&mut suites);
        }
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\nArchitectures: {architecture}\n",
            self.uris.trim(),
        );
        for (name, value) in &self.trust {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{name}: {value}");
        }
        text.push('\n');
        Some(text)
    }
}

/// The machine's entries for Debian, in both styles.
fn sources(etc: &Path) -> Vec<Source> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        // A file that we may not read holds a private archive: not Debian's.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|suffix| suffix.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            Some("sources") => sources.extend(parse_stanzas(&text)),
            _ => {}
        }
    }
    sources.retain(Source::is_debian);
    sources
}

/// `deb [options] uri suite component...`
fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t']))?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut trust = Vec::new();
    for option in options.split_whitespace() {
        match option.split_once('=') {
            Some(("signed-by", keys)) => {
                trust.push(("Signed-By".to_owned(), keys.replace(',', " ")));
            }
            Some(("trusted", value)) => trust.push(("Trusted".to_owned(), value.to_owned())),
            Some(("check-valid-until", value)) => {
                trust.push(("Check-Valid-Until".to_owned(), value.to_owned()));
            }
            _ => {}
        }
    }
    let mut words = rest.split_whitespace();
    Some(Source {
        uris: words.next()?.to_owned(),
        suites: words.next()?.to_owned(),
        components: words.collect::<Vec<_>>().join(" "),
        trust,
    })
}

/// Stanzas of `Field: value`, continued by indented lines, parted by empty lines.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(from_fields(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn from_fields(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value);
    let enabled = field("enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
    if !enabled || !field("types")?.split_whitespace().any(|kind| kind == "deb") {
        return None;
    }
    let words = |text: &String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let trust = ["Signed-By", "Trusted", "Check-Valid-Until"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), field(&name.to_ascii_lowercase())?.clone())))
        .collect();
    Some(Source {
        uris: words(field("uris")?),
        suites: words(field("suites")?),
        components: field("components").map(words).unwrap_or_default(),
        trust,
    })
}

/// How the machine reaches its archives: proxies, time-outs, clock checks.
fn machine_transport() -> String {
    let Ok(output) = Command::new("apt-config").arg("dump").stdin(Stdio::null()).output() else {
        // Without apt the first real call says so.
        return String::new();
    };
    let kept = ["Acquire::http", "Acquire::Check-", "Acquire::Force", "Acquire::proxy"];
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| kept.iter().any(|prefix| line.starts_with(prefix)))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// apt reads this file first and the machine's own after it, were those not named away here: the
/// machine's hooks and pins are for the machine.
fn configuration(place: &str, architecture: &str, transport: &str) -> String {
    format!(
        r#"{transport}Dir::State "{place}/state";
Dir::State::lists "{place}/lists";
Dir::State::status "{place}/status";
Dir::Cache "{place}/cache";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "{place}/nothing";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{place}/nothing";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{place}/sources.d";
Dir::Log "{place}";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_old_style() {
        let source = parse_line("deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://a/debian bookworm main contrib # x")
            .expect("an entry");
        assert_eq!((source.uris.as_str(), source.suites.as_str()), ("http://a/debian", "bookworm"));
        assert!(source.is_debian());
        assert!(parse_line("deb http://a/docker bookworm stable").is_some_and(|s| !s.is_debian()));
        assert!(parse_line("deb cdrom:[x]/ bookworm main").is_none_or(|s| !s.is_debian()));
        for line in [
            "",
            "# deb http://a b main",
            "deb-src http://a b main",
            "deb",
            "deb [x",
            "deb http://a",
        ] {
            assert_eq!(parse_line(line), None, "{line}");
        }
    }

    #[test]
    fn stanzas_of_the_new_style() {
        let text = "\
Types: deb deb-src
# a comment
URIs: http://a/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://b
Suites: x
Components: main

Types: deb
URIs: http://hashicorp
Suites: bookworm
Components: main
Signed-By: /k/hashicorp.gpg
";
        let mut sources = parse_stanzas(text);
        sources.retain(Source::is_debian);
        assert_eq!(sources.len(), 1);
        let stanza = sources[0].stanza("i386", None).expect("all suites");
        assert!(stanza.contains("Suites: bookworm bookworm-updates\n"), "{stanza}");
        assert!(stanza.contains("Architectures: i386\nSigned-By: /usr"), "{stanza}");
        let stanza = sources[0].stanza("i386", Some("bookworm")).expect("the plain archive");
        assert!(stanza.contains("Suites: bookworm\n"), "{stanza}");
        let security = Source { suites: "trixie-security".to_owned(), ..sources[0].clone() };
        assert_eq!(security.stanza("i386", Some("bookworm")), None);
    }

    #[test]
    fn a_machine_without_debian_says_so() {
        let error =
            Apt::with_sources(Path::new("/nonexistent"), "i386", None, Path::new("/nowhere"))
                .expect_err("no sources");
        assert!(error.to_string().contains("no source for Debian"), "{error}");
    }

    #[test]
    fn what_apt_prints() {
        assert_eq!(parse_progress("dlstatus:1:37.5000:Retrieving file 1 of 1"), Some(37.5));
        assert_eq!(parse_progress("Get:1 http://a"), None);
        assert_eq!(
            first_complaint("N: x\nW: Failed to fetch http://a  Temporary failure\nE: more"),
            Some("Failed to fetch http://a Temporary failure".to_owned())
        );
        let package = parse_package(
            "Package: linux-image-amd64\nVersion: 6.1\nDepends: linux-image-6.1.0-5-amd64 (= 6.1), a | b:any\nSize: 1492\n\nPackage: other\n",
        )
        .expect("a package");
        assert_eq!(package.depends, ["linux-image-6.1.0-5-amd64", "a", "b"]);
        assert_eq!((package.name.as_str(), package.bytes), ("linux-image-amd64", 1492));
        assert_eq!(parse_package(""), None);
    }
}
