//! Outcome against expectation, and outcome to text.
//!
//! Problem: a case says what changes; everything else must stay. Scheme: the expected register block is the
//! initial one with the case's outputs applied, and both blocks are listed as named values with the same
//! code, so that a difference in text is a difference in state and blessing writes what comparing reads.
//! Invariants: undefined flags, registers and memory appear in no list. What the SDM leaves open always is left
//! out always: RF, the x87 instruction and operand pointers, CR2 and DR6 where the oracle can't know them,
//! stack bytes below the stack pointer when the report itself was delivered on that stack. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};

use super::case::{self, Assignment, Base, Case, Register, VECTORS};
use super::image::Prepared;
use super::state::{self, Outcome, State};
use super::value::{self, View};

/// Which part of the state an oracle knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A machine: everything.
    Machine,
    /// A host process: no DR6, and CR2 only for page faults.
    Process,
}

/// Ordered list of `name` to text.
type Listing = BTreeMap<String, String>;

/// Differences between outcome and file, one a line; empty when they agree.
///
/// # Errors
/// An expectation that can't be evaluated.
pub fn compare(prepared: &Prepared, outcome: &Outcome, scope: Scope) -> Result<Vec<String>> {
    let case = prepared.case;
    let (expected_state, expected_memory) =
        expected(prepared).with_context(|| case.name.clone())?;
    let want = list(prepared, &expected_state, &expected_memory, scope)?;
    let have_memory = changed_bytes(prepared, outcome)?;
    let have = list(prepared, &outcome.state, &have_memory, scope)?;
    let mut lines = Vec::new();
    for name in want.keys().chain(have.keys().filter(|name| !want.contains_key(*name))) {
        let initial = "unchanged".to_owned();
        let (wanted, got) =
            (want.get(name).unwrap_or(&initial), have.get(name).unwrap_or(&initial));
        if wanted != got {
            lines.push(format!("{name}: file says {wanted}, got {got}"));
        }
    }
    Ok(lines)
}

/// The result lines for an outcome: `; fault:`, `; out:`, `; out-mem:`.
///
/// # Errors
/// An `undef` of the case that can't be evaluated.
pub fn describe(prepared: &Prepared, outcome: &Outcome, scope: Scope) -> Result<Vec<String>> {
    let memory = changed_bytes(prepared, outcome)?;
    let mut listing = list(prepared, &outcome.state, &memory, scope)?;
    let mut lines = Vec::new();
    if let Some(fault) = listing.remove("fault") {
        lines.push(format!("; fault: {fault}"));
    }
    listing.retain(|name, _| !name.starts_with('['));
    let mut line = String::new();
    for name in output_order(&listing) {
        let word = format!(" {name}={}", listing[&name]);
        if !line.is_empty() && line.len() + word.len() > 100 {
            lines.push(std::mem::take(&mut line));
        }
        if line.is_empty() {
            line.push_str("; out:");
        }
        line.push_str(&word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines.extend(memory_lines(prepared, &memory));
    if lines.is_empty() {
        lines.push("; out: unchanged".to_owned());
    }
    Ok(lines)
}

/// General registers first, in machine order, then the rest as sorted.
fn output_order(listing: &Listing) -> Vec<String> {
    let rank = |name: &String| {
        let gpr = state::GPR_64.iter().chain(&state::GPR_32).position(|known| known == name);
        let late = match name.as_str() {
            "flags" => 60,
            "rip" => 0,
            _ => 61,
        };
        (gpr.map_or(late, |n| n + 1), name.len(), name.clone())
    };
    let mut names: Vec<String> = listing.keys().cloned().collect();
    names.sort_by_key(rank);
    names
}

fn memory_lines(prepared: &Prepared, memory: &BTreeMap<u64, u8>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut bytes = memory.iter().peekable();
    while let Some((&start, &first)) = bytes.next() {
        let mut run = vec![first];
        // Small gaps of unchanged bytes are written along.
        while let Some(&(&address, &byte)) = bytes.peek() {
            let position = (address - start) as usize;
            if position >= 16 || position > run.len() + 3 {
                break;
            }
            while run.len() < position {
                run.push(prepared.initial_byte(start + run.len() as u64));
            }
            run.push(byte);
            bytes.next();
        }
        let mut line = format!("; out-mem: {} =", value::address(start));
        for byte in run {
            write!(line, " {byte:02x}").expect("a String takes everything");
        }
        lines.push(line);
    }
    lines
}

/// Expected register block and changed bytes.
fn expected(prepared: &Prepared) -> Result<(State, BTreeMap<u64, u8>)> {
    let case = prepared.case;
    let labels = &prepared.assembled.labels;
    let mut state = prepared.state.clone();
    state.set(state::VECTOR, 4, 6);
    state.set(state::RIP, 8, end_of(prepared));
    if let Some(fault) = &case.fault {
        state.set(state::VECTOR, 4, u64::from(fault.vector));
        state.set(state::ERROR, 4, u64::from(fault.error));
        let rip = match fault.at.as_str() {
            "start" => case.mode.base.code().1,
            "end" => end_of(prepared),
            text => value::evaluate(text, labels)?,
        };
        state.set(state::RIP, 8, rip);
    }
    // FSW first: ST(n) of the outputs are relative to the top that it sets, while the physical registers
    // stay where they are.
    let before = prepared.state.clone();
    let is_fsw =
        |output: &&Assignment| output.register == Register::Field { offset: state::FSW, len: 2 };
    let base = case.mode.base_flags();
    for output in case.outputs.iter().filter(is_fsw) {
        case::assign(&mut state, output, base, labels)?;
    }
    for n in 0..8 {
        let (from, to) = (before.physical_x87(n), state.physical_x87(n));
        state.bytes[to..to + 16].copy_from_slice(&before.bytes[from..from + 16]);
    }
    for output in case.outputs.iter().filter(|output| !is_fsw(output)) {
        case::assign(&mut state, output, base, labels)?;
    }
    let mut memory = BTreeMap::new();
    for line in &case.output_memory {
        let address = value::evaluate(&line.address, labels)?;
        for (n, byte) in line.bytes.iter().enumerate() {
            memory.insert(address + n as u64, *byte);
        }
    }
    memory.retain(|&address, byte| prepared.initial_byte(address) != *byte);
    Ok((state, memory))
}

fn end_of(prepared: &Prepared) -> u64 {
    prepared.assembled.labels.get(".end_").copied().unwrap_or(0)
}

/// Bytes of memory that a run changed, without undefined ones and without the report's own traces.
fn changed_bytes(prepared: &Prepared, outcome: &Outcome) -> Result<BTreeMap<u64, u8>> {
    let labels = &prepared.assembled.labels;
    let case = prepared.case;
    let mut memory = BTreeMap::new();
    for (&address, word) in &outcome.memory {
        for (n, byte) in word.to_le_bytes().into_iter().enumerate() {
            if prepared.initial_byte(address + n as u64) != byte {
                memory.insert(address + n as u64, byte);
            }
        }
    }
    for (address, len) in &case.undefined_memory {
        let start = value::evaluate(address, labels)?;
        memory.retain(|address, _| !(start..start + len).contains(address));
    }
    // At CPL 0 outside long mode the final exception's frame lies below the stack pointer.
    let state = &outcome.state;
    let cs = state.u32_at(state::SEGMENTS + 4);
    let real = case.mode.harness_mode() == 0;
    let long = case.mode.harness_mode() == 5;
    if real || !long && cs & 3 == 0 && state.u64_at(state::RFLAGS) & 1 << 17 == 0 {
        let ss = u64::from(state.u32_at(state::SEGMENTS + 8));
        let base = if real {
            ss << 4
        } else if ss == super::layout::symbol("STACK16_SEL") {
            super::layout::symbol("STACK16")
        } else {
            0
        };
        let top = base + state.gpr(4);
        memory.retain(|&address, _| address >= top || address + 32 < top);
    }
    Ok(memory)
}

/// Everything that differs from the initial state, by name.
fn list(
    prepared: &Prepared,
    state: &State,
    memory: &BTreeMap<u64, u8>,
    scope: Scope,
) -> Result<Listing> {
    let case = prepared.case;
    let before = &prepared.state;
    let mut listing = Listing::new();
    let vector = state.u32_at(state::VECTOR);
    let rip = state.u64_at(state::RIP);
    if vector != 6 || rip != end_of(prepared) {
        listing.insert("fault".to_owned(), fault_text(prepared, state));
    }
    let bits = case.mode.base.code_bits();
    // IRET to a 16-bit stack segment loads SP only: the upper half of ESP is the harness's (SDM vol. 2A,
    // "IRET", and vol. 3, "Stack Switching in Protected Mode").
    let iret_loads_sp_only = bits == 16 && !matches!(case.mode.base, Base::Real | Base::V86);
    for n in 0..16 {
        let mask = if n == 4 && iret_loads_sp_only { 0xffff } else { u64::MAX };
        let (old, new) = (before.gpr(n) & mask, state.gpr(n) & mask);
        if new != old {
            let name = if bits == 64 || n >= 8 { state::GPR_64[n] } else { state::GPR_32[n] };
            listing.insert(name.to_owned(), value::number(new, bits != 16));
        }
    }
    for (n, name) in state::SEGMENT_NAMES.iter().enumerate() {
        let offset = state::SEGMENTS + 4 * n;
        if state.u32_at(offset) != before.u32_at(offset) {
            listing.insert((*name).to_owned(), value::number(state.get(offset, 4), false));
        }
    }
    let hidden = case.undefined_flags | 1 << 16;
    let base = case.mode.base_flags();
    let flags = |state: &State| value::format_flags(state.u64_at(state::RFLAGS), base, hidden);
    if flags(state) != flags(before) {
        listing.insert("flags".to_owned(), flags(state));
    }
    let dr6 = Register::Field { offset: state::DR6, len: 4 };
    let names_dr6 = case.outputs.iter().any(|output| output.register == dr6);
    for (name, offset, len) in [
        ("fcw", state::FCW, 2),
        ("fsw", state::FSW, 2),
        ("ftw", state::FTW, 1),
        ("mxcsr", state::MXCSR, 4),
        ("cr2", state::CR2, 8),
        ("dr6", state::DR6, 4),
    ] {
        let known = match name {
            "cr2" => scope == Scope::Machine || vector == 14,
            // Cases blessed by the host say nothing of DR6, unless by hand.
            "dr6" => scope == Scope::Machine && (!case.runs_on_host() || names_dr6),
            _ => true,
        };
        if known && state.get(offset, len) != before.get(offset, len) {
            listing.insert(name.to_owned(), value::number(state.get(offset, len), name == "cr2"));
        }
    }
    list_x87(before, state, case.view, &mut listing);
    for n in 0..16 {
        let (low, high) = (state.xmm(n), state.ymmh(n));
        if high != before.ymmh(n) {
            let whole = [low, high].concat();
            listing.insert(format!("ymm{n}"), value::format_vector(&whole, case.view));
        } else if low != before.xmm(n) {
            listing.insert(format!("xmm{n}"), value::format_vector(&low, case.view));
        }
    }
    for register in &case.undefined {
        listing.retain(|name, _| Register::by_name(name).ok() != Some(*register));
    }
    for (address, byte) in memory {
        listing.insert(format!("[{}]", value::address(*address)), format!("{byte:02x}"));
    }
    Ok(listing)
}

fn list_x87(before: &State, state: &State, view: View, listing: &mut Listing) {
    for physical in 0..8 {
        let (from, to) = (before.physical_x87(physical), state.physical_x87(physical));
        let (old, new) = (&before.bytes[from..from + 10], &state.bytes[to..to + 10]);
        if old == new {
            continue;
        }
        let n = (to - state::ST) / 16;
        // MMX writes all ones above the 64 bits; no x87 result looks so but a NaN or infinity of
        // a negative sign, which the first form writes as well as the second.
        if new[8..] == [0xff, 0xff] && state.top() == 0 && new[7] & 0x80 == 0
            || old[8..] == [0xff, 0xff] && new[8..] == [0xff, 0xff]
        {
            listing.insert(format!("mm{n}"), value::format_vector(&new[..8], view));
        } else {
            listing.insert(format!("st{n}"), value::format_x87(new));
        }
    }
}

fn fault_text(prepared: &Prepared, state: &State) -> String {
    let vector = state.u32_at(state::VECTOR);
    let what = match VECTORS.iter().find(|(_, number, _)| u32::from(*number) == vector) {
        Some((name, _, true)) => {
            format!("{name}({})", value::number(state.get(state::ERROR, 4), false))
        }
        Some((name, _, false)) => (*name).to_owned(),
        None => format!("int {vector:#x}"),
    };
    let rip = state.u64_at(state::RIP);
    let start = prepared.case.mode.base.code().1;
    let place = if rip == end_of(prepared) {
        "end".to_owned()
    } else if let Some((name, _)) = prepared
        .assembled
        .labels
        .iter()
        .find(|(name, address)| **address == rip && !name.ends_with('_'))
    {
        name.clone()
    } else if rip == start {
        "start".to_owned()
    } else {
        value::number(rip, prepared.case.mode.base.code_bits() != 16)
    };
    format!("{what} at {place}")
}

/// Rewrites the result lines of the cases of one file; `results` has the new lines for each case to
/// change, by its first line.
#[must_use]
pub fn bless(lines: &[String], cases: &[Case], results: &BTreeMap<usize, Vec<String>>) -> String {
    let mut text = String::new();
    let push = |text: &mut String, line: &str| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    for (number, line) in lines.iter().enumerate() {
        let owner = cases
            .iter()
            .find(|case| (case.first_line..case.end_line).contains(&number))
            .and_then(|case| Some((case, results.get(&case.first_line)?)));
        let Some((case, new)) = owner else {
            push(&mut text, line);
            continue;
        };
        if !case.result_lines.contains(&number) {
            push(&mut text, line);
        }
        if case.code.last().is_some_and(|(last, _)| *last == number) {
            new.iter().for_each(|line| push(&mut text, line));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::assemble::Assembled;
    use super::super::case::CaseFile;
    use super::*;

    const FILE: &str = "; mode: long64 cpl=3

; case: a
; in: rax=1 flags=CF
        nop
; out: rax=5 flags=ZF
; out-mem: DATA = 02

; case: b
        nop
";

    fn file() -> CaseFile {
        CaseFile::parse(Path::new("x.asm"), "x", FILE).expect("a valid file")
    }

    fn prepared(case: &Case) -> Prepared<'_> {
        let mut assembled = Assembled { code: vec![0x90, 0x0f, 0x0b], ..Assembled::default() };
        assembled.labels.insert(".end_".to_owned(), 0x100_0001);
        Prepared::new(case, assembled).expect("nothing to go wrong")
    }

    fn as_expected(prepared: &Prepared) -> Outcome {
        let mut state = prepared.state.clone();
        state.set(0, 8, 5);
        state.set(state::RFLAGS, 8, 0x1_0242);
        state.set(state::RIP, 8, 0x100_0001);
        state.set(state::VECTOR, 4, 6);
        let memory = BTreeMap::from([(super::super::layout::symbol("DATA"), 2)]);
        Outcome { state, memory }
    }

    #[test]
    fn agreement_and_each_kind_of_difference() {
        let file = file();
        let prepared = prepared(&file.cases[0]);
        let good = as_expected(&prepared);
        let say = |outcome: &Outcome| {
            compare(&prepared, outcome, Scope::Machine).expect("comparable").join("\n")
        };
        assert_eq!(say(&good), "");
        let mut register = good.clone();
        register.state.set(8, 8, 9);
        assert_eq!(say(&register), "rcx: file says unchanged, got 9");
        let mut flags = good.clone();
        flags.state.set(state::RFLAGS, 8, 0x203);
        assert_eq!(say(&flags), "flags: file says ZF, got unchanged");
        let mut memory = good.clone();
        memory.memory.clear();
        assert_eq!(say(&memory), "[DATA]: file says 02, got unchanged");
        let mut fault = good;
        fault.state.set(state::VECTOR, 4, 13);
        assert_eq!(say(&fault), "fault: file says unchanged, got #GP(0) at end");
    }

    #[test]
    fn blessing_replaces_results_only() {
        let file = file();
        let prepared = prepared(&file.cases[0]);
        let mut outcome = as_expected(&prepared);
        outcome.state.set(0, 8, 7);
        let lines = describe(&prepared, &outcome, Scope::Machine).expect("describable");
        let results = BTreeMap::from([(file.cases[0].first_line, lines)]);
        let text = bless(&file.lines, &file.cases, &results);
        assert_eq!(text, FILE.replace("rax=5", "rax=7"));
    }
}
