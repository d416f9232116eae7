//! Machine code of all cases in one run of NASM.
//!
//! Problem: several hundred runs of an assembler cost seconds, and labels of a case must be known as
//! addresses. Scheme: each case and each set-up becomes a section of one flat binary, with the
//! address it will run at; a table in front says where each begins and how long it is; NASM's map
//! lists the labels. `%line` makes messages name the case's file and line. Invariant: labels are local
//! (`.name`), so that cases don't see each other. One process, in a temporary folder.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::case::Case;
use super::value::Labels;

/// A case's bytes and labels.
#[derive(Clone, Debug, Default)]
pub struct Assembled {
    /// With the UD2 that ends it.
    pub code: Vec<u8>,
    pub setup: Vec<u8>,
    /// Offsets in the code segment; `start` and `end` too.
    pub labels: Labels,
}

/// What to do when a program of the peers is missing.
pub const INSTALL_HINT: &str = "run testsuites/guests/install-peers.sh";

/// Folder of `layout.inc`, `macros.inc` and the harness.
#[must_use]
pub fn harness_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/asm/harness")
}

/// Scratch folder that goes away with the value.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// # Errors
    /// The temporary folder is not writable.
    pub fn new(purpose: &str) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("xenolith-{purpose}-{}-{n}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                // A process of the same number was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        }
    }
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in the temporary folder is no reason to fail a test.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Runs NASM on `source`; returns the flat binary.
///
/// # Errors
/// NASM is missing, or doesn't like the source: then with its messages.
pub fn nasm(source: &Path, output: &Path) -> Result<Vec<u8>> {
    let beside = source.parent().unwrap_or(Path::new(""));
    let [harness, beside] =
        [&harness_folder(), beside].map(|folder: &Path| format!("{}/", folder.display()));
    let run = Command::new("nasm")
        .args(["-f", "bin", "-w-label-orphan", "-I", &harness, "-I", &beside, "-o"])
        .arg(output)
        .arg(source)
        .output()
        .with_context(|| format!("no nasm: {INSTALL_HINT}"))?;
    if !run.status.success() {
        bail!("nasm:\n{}", String::from_utf8_lossy(&run.stderr));
    }
    std::fs::read(output).with_context(|| output.display().to_string())
}

/// Assembles cases, in order.
///
/// # Errors
/// As [`nasm`], or code too long for its place.
pub fn assemble(cases: &[&Case]) -> Result<Vec<Assembled>> {
    let scratch = Scratch::new("asm")?;
    let map = scratch.path().join("map");
    let source = scratch.path().join("cases.asm");
    std::fs::write(&source, source_text(cases, &map))?;
    let binary = nasm(&source, &scratch.path().join("cases.bin"))?;
    let mut assembled: Vec<Assembled> = cases
        .iter()
        .enumerate()
        .map(|(index, case)| {
            let entry = binary.get(16 * index..16 * index + 16).context("table too short")?;
            let word = |n: usize| {
                u32::from_le_bytes(entry[4 * n..4 * n + 4].try_into().expect("four bytes")) as usize
            };
            let slice = |start: usize, len: usize| {
                binary
                    .get(start..start + len)
                    .context("section outside the file")
                    .map(<[u8]>::to_vec)
            };
            let code = slice(word(0), word(1))?;
            let setup = slice(word(2), word(3))?;
            ensure!(code.len() <= 0x1000 && setup.len() <= 0x2000, "{}: too long", case.name);
            Ok(Assembled { code, setup, labels: Labels::new() })
        })
        .collect::<Result<_>>()?;
    let map_text = std::fs::read_to_string(&map).context("NASM wrote no map")?;
    for line in map_text.lines() {
        // "  Real address  Virtual address  name"
        let mut words = line.split_whitespace();
        let (Some(_), Some(address), Some(name), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Some((index, label)) = name.strip_prefix("case_").and_then(|n| n.split_once('.'))
        else {
            continue;
        };
        let (Ok(index), Ok(address)) = (index.parse::<usize>(), u64::from_str_radix(address, 16))
        else {
            continue;
        };
        // NASM numbers addresses of a section with vstart from it.
        if let Some(case) = assembled.get_mut(index) {
            case.labels.insert(format!(".{label}"), address);
        }
    }
    Ok(assembled)
}

fn source_text(cases: &[&Case], map: &Path) -> String {
    let mut text = format!(
        "[map symbols {}]\n%include \"layout.inc\"\n%include \"macros.inc\"\nsection .text vstart=0\n",
        map.display()
    );
    let write = |text: &mut String, line: std::fmt::Arguments| {
        text.write_fmt(line).expect("a String takes everything");
        text.push('\n');
    };
    for index in 0..cases.len() {
        write(
            &mut text,
            format_args!(
                "dd section.c{index}.start, case_{index}.end_ - case_{index}.start_ + 2, \
                 section.s{index}.start, case_{index}.setup_end_ - case_{index}.setup_"
            ),
        );
    }
    for (index, case) in cases.iter().enumerate() {
        let base = case.mode.base;
        write(&mut text, format_args!("section c{index} vstart={:#x} align=1", base.code().1));
        write(&mut text, format_args!("bits {}\ncase_{index}:\n.start_:", base.code_bits()));
        push_lines(&mut text, case, &case.code);
        write(&mut text, format_args!("bits {}\n.end_:\nud2", base.code_bits()));
        write(&mut text, format_args!("section s{index} vstart={:#x} align=1", base.setup().1));
        write(&mut text, format_args!("bits {}\n.setup_:", base.setup_bits()));
        push_lines(&mut text, case, &case.setup);
        let ret = if base.setup_bits() == 16 { "retf" } else { "ret" };
        write(&mut text, format_args!("{ret}\n.setup_end_:"));
    }
    text
}

fn push_lines(text: &mut String, case: &Case, lines: &[(usize, String)]) {
    for (number, line) in lines {
        let place = format!("%line {}+0 {}\n", number + 1, case.path.display());
        text.push_str(&place);
        text.push_str(line);
        text.push('\n');
    }
}
