//! `xenolith diff --snippet`: a few instructions everywhere, in one table.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::{Result, anyhow};
use xenolith_machine::fuzz::coverage::is_compared;
use xenolith_machine::fuzz::file;
use xenolith_machine::snippet::engine::{self, EngineRunner};
use xenolith_machine::snippet::judge::{self, Excuse, Mask};
use xenolith_machine::snippet::{Bits, Ending, RunnerError, Snippet, Who, source};
use xenolith_machine::{Engine, Mmu};

use crate::{status, terminal};

/// Runs the snippet, prints the table, and gives the exit status.
///
/// # Errors
/// The code can't be read or assembled, the model is unknown, or the host refuses something.
pub fn run(text: &str, mode: &str, cpu: &str) -> Result<u8> {
    let plain = |error: RunnerError| anyhow!("{error}");
    let bits = mode.parse().ok().and_then(Bits::from_number).unwrap_or_default();
    let snippet = source::read(text, bits).map_err(plain)?;
    let model = engine::model(cpu).map_err(plain)?;
    let mut names = Vec::new();
    let mut endings = Vec::new();
    for who in Who::ALL {
        let ending = who.runner(Mmu::default(), &model).and_then(|mut runner| runner.run(&snippet));
        match ending {
            Ok(ending) => {
                names.push(who.name());
                endings.push(ending);
            }
            Err(error) if matches!(who, Who::Qemu | Who::Host) => {
                terminal::say(&format!("without {}: {error}", who.name()));
            }
            Err(error) => return Err(plain(error)),
        }
    }
    let mut out = table(&snippet, &names, &endings);
    let mut tracer = EngineRunner::new(Engine::Interp, Mmu::default(), &model).map_err(plain)?;
    let mut different = false;
    // The last one is the best judge: the processor, or else QEMU.
    let reference = endings.len() - 1;
    for n in 0..reference {
        let pair = [&endings[reference], &endings[n]];
        if judge::agree(&snippet, pair[0], pair[1], &Mask::default()) {
            continue;
        }
        let bits = bits.number();
        let excuse = judge::excuse(&mut tracer, &snippet, pair[0], pair[1], |insn, bytes| {
            is_compared(insn, bytes, bits, &model)
        });
        different |= excuse == Excuse::None;
        // Writing to a String can't fail.
        let _ = writeln!(out, "{} differs from {}: {}", names[n], names[reference], why(&excuse));
    }
    // A reader that went away (`| head`) is no failure.
    let _ = io::stdout().write_all(out.as_bytes());
    Ok(if different { status::DIFFERENT } else { status::DONE })
}

fn why(excuse: &Excuse) -> String {
    match excuse {
        Excuse::None => "no excuse is known".to_owned(),
        Excuse::Undefined(cite) | Excuse::Makers(cite) => format!("allowed, {cite}"),
        Excuse::Tainted => "allowed, an undefined value was used".to_owned(),
        Excuse::Strayed => "its instructions are the machine's, or are not compared".to_owned(),
        Excuse::Endless => "it ran too long".to_owned(),
    }
}

/// Values of a row: at the start, and in each ending.
struct Row {
    name: String,
    before: String,
    after: Vec<String>,
}

/// Everything that changed or differs.
fn rows(snippet: &Snippet, endings: &[Ending]) -> Vec<Row> {
    let mut rows = vec![Row {
        name: "end".to_owned(),
        before: String::new(),
        after: endings.iter().map(|it| end(snippet, it)).collect(),
    }];
    let mut put = |name: &str, before: String, after: Vec<String>| {
        if after.iter().any(|it| *it != before) {
            rows.push(Row { name: name.to_owned(), before, after });
        }
    };
    let each = |text: &dyn Fn(&Ending) -> String| endings.iter().map(text).collect::<Vec<_>>();
    put("RIP", hex(snippet.rip), each(&|it| hex(it.rip)));
    for (n, name) in judge::GENERAL.iter().enumerate() {
        put(name, hex(snippet.gpr[n]), each(&|it| hex(judge::general(snippet, it, n))));
    }
    put("RFLAGS", judge::flags_text(snippet.rflags), each(&|it| judge::flags_text(it.rflags)));
    for (n, name) in judge::SEGMENTS.iter().enumerate() {
        let text = |selector: u16| format!("{selector:04x}");
        put(name, text(snippet.selectors[n]), each(&|it| text(it.selectors[n])));
    }
    let none = Mask::default();
    let before = judge::vector_listing(&snippet.vector, &none);
    let after: Vec<_> = endings.iter().map(|it| judge::vector_listing(&it.vector, &none)).collect();
    for (n, (name, value)) in before.into_iter().enumerate() {
        put(&name, value, after.iter().map(|list| list[n].1.clone()).collect());
    }
    let mut places: Vec<u64> =
        endings.iter().flat_map(|it| it.changes.iter().map(|&(at, _)| at)).collect();
    places.sort_unstable();
    places.dedup();
    for at in places {
        let text = |it: &Ending| {
            let found = it.changes.iter().find(|(place, _)| *place == at);
            found.map_or_else(|| "as before".to_owned(), |(_, value)| format!("{value:016x}"))
        };
        put(&format!("[{at:x}]"), String::new(), each(&text));
    }
    rows
}

fn hex(value: u64) -> String {
    format!("{value:x}")
}

fn end(snippet: &Snippet, ending: &Ending) -> String {
    if ending.is_complete(snippet) { "ran to its end".to_owned() } else { judge::end_text(ending) }
}

fn table(snippet: &Snippet, names: &[&str], endings: &[Ending]) -> String {
    /// Wider values get a line each.
    const WIDE: usize = 26;
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(out, "{}-bit code at {:#x}:", snippet.bits.number(), snippet.rip);
    for (bytes, insn) in file::listing(snippet) {
        let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(out, "  {bytes:<22} {insn}");
    }
    let rows = rows(snippet, endings);
    let narrow =
        |row: &Row| row.before.len() <= WIDE && row.after.iter().all(|it| it.len() <= WIDE);
    let heads = std::iter::once("before").chain(names.iter().copied());
    let widths: Vec<usize> = heads
        .clone()
        .enumerate()
        .map(|(n, head)| {
            let cell = |row: &Row| if n == 0 { row.before.len() } else { row.after[n - 1].len() };
            let widest = rows.iter().filter(|row| narrow(row)).map(cell).max();
            widest.unwrap_or(0).max(head.len())
        })
        .collect();
    let line = |out: &mut String, name: &str, cells: &mut dyn Iterator<Item = &str>| {
        let mut text = format!("{name:<11}");
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(text, " {cell:<width$} ");
        }
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(&mut out, "", &mut heads.clone());
    for row in &rows {
        let same = row.after.windows(2).all(|pair| pair[0] == pair[1]);
        let name = format!("{} {}", if same { ' ' } else { '*' }, row.name);
        let cells = std::iter::once(&row.before).chain(&row.after);
        if narrow(row) {
            line(&mut out, &name, &mut cells.map(String::as_str));
            continue;
        }
        for (n, (head, cell)) in heads.clone().zip(cells).enumerate() {
            let name = if n == 0 { name.as_str() } else { "" };
            let _ = writeln!(out, "{name:<11} {head:<7} {cell}");
        }
    }
    out
}
