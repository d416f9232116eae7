//! States and tables as text for people.
//!
//! Names and order follow QEMU's monitor where it has a counterpart. Pure functions.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};
use xenolith_cpu::interp;
use xenolith_cpu::state::VectorState;
use xenolith_cpu::{CpuState, Gpa, PAGE_SIZE};
use xenolith_devices::bus::Bus;
use xenolith_mmu::view::{SWITCHED, Source, View};

use super::{Held, Parts, Space, next_instruction};
use crate::config::DiskConfig;
use crate::drives::Disk;
use crate::memory_map::{HIGH_START, HOLE_START};

const NAMES: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
/// The longest instruction.
const INSTRUCTION_MAX: usize = 15;

/// Everything that instructions can see of a vCPU, but for MSRs that few know.
pub fn registers(state: &CpuState) -> String {
    let vector = &state.vector;
    let mut out = interp::dump(state);
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "\nXCR0={:x} FCW={:04x} FSW={:04x} FTW={:02x} MXCSR={:08x}",
        state.xcr0,
        vector.u16_at(VectorState::FCW),
        vector.u16_at(VectorState::FSW),
        vector.bytes[VectorState::FTW],
        vector.mxcsr()
    );
    let hex =
        |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    for n in 0..8 {
        let st = &vector.bytes[VectorState::ST + 16 * n..];
        let end = if n % 2 == 1 { '\n' } else { ' ' };
        let _ = write!(out, "ST{n}={} {}{end}", hex(&st[8..10]), hex(&st[..8]));
    }
    // Upper halves exist for a guest that has switched them on.
    let wide = state.xcr0 & 4 != 0;
    for n in 0..16 {
        let ymm = vector.ymm(n);
        let (name, len) = if wide { ("YMM", 32) } else { ("XMM", 16) };
        let end = if wide || n % 2 == 1 { '\n' } else { ' ' };
        let _ = write!(out, "{name}{n:02}={}{end}", hex(&ymm[..len]));
    }
    out
}

/// See [`Held::register`].
pub fn register(state: &CpuState, name: &str) -> Option<u64> {
    match name {
        "pc" => return Some(next_instruction(state)),
        "rip" => return Some(state.rip),
        "eip" => return Some(state.rip & 0xffff_ffff),
        "ip" => return Some(state.rip & 0xffff),
        "rflags" | "eflags" => return Some(state.rflags),
        "cr0" => return Some(state.cr0),
        "cr2" => return Some(state.cr2),
        "cr3" => return Some(state.cr3),
        "cr4" => return Some(state.cr4),
        "efer" => return Some(state.efer),
        "xcr0" => return Some(state.xcr0),
        _ => {}
    }
    if let Some(n) = SEGMENTS.iter().position(|&segment| segment == name) {
        return Some(u64::from(state.seg[n].selector));
    }
    if let Some(base) = name.strip_suffix("_base") {
        let n = SEGMENTS.iter().position(|&segment| segment == base)?;
        return Some(state.seg[n].base);
    }
    if let Some(n) = name.strip_prefix("dr") {
        return state.dr.get(n.parse::<usize>().ok()?).copied();
    }
    let (wide, base) = match name.as_bytes().first()? {
        b'r' => (u64::MAX, &name[1..]),
        b'e' => (0xffff_ffff, &name[1..]),
        _ => (0xffff, name),
    };
    let number = NAMES.iter().position(|&known| known == base).or_else(|| {
        let number = base.parse().ok().filter(|number| (8..16).contains(number));
        number.filter(|_| wide == u64::MAX)
    })?;
    Some(state.gpr[number] & wide)
}

/// See [`super::Inspector::disks`].
pub fn disks(disks: &[(DiskConfig, Disk)]) -> String {
    let mut out = String::new();
    for (n, (config, disk)) in disks.iter().enumerate() {
        let kept = match (config.options.snapshot, disk.read_only()) {
            (true, _) => ", writes are not kept",
            (false, true) => ", read-only",
            (false, false) => "",
        };
        let _ = writeln!(out, "disk{n}: {}, {} bytes{kept}", config.path.display(), disk.size());
    }
    if out.is_empty() { "no disks\n".to_owned() } else { out }
}

fn line(out: &mut String, start: u64, last: u64, name: &str) {
    let _ = writeln!(out, "  {start:016x}-{last:016x} {name}");
}

fn bus(out: &mut String, bus: &Bus) {
    for mapped in bus.mapped() {
        line(out, mapped.start, mapped.last, &mapped.name);
    }
}

/// RAM and what the chip set makes of it, then the devices in memory, then the ports.
pub fn memory_map(parts: &Parts) -> String {
    let (ram, layout) = (&parts.ram, parts.ram.layout());
    let mut out = "memory\n".to_owned();
    line(&mut out, 0, SWITCHED.start - 1, "ram");
    let mut start = SWITCHED.start;
    while start < SWITCHED.end {
        let view = ram.view(Gpa(start));
        let mut end = start + PAGE_SIZE;
        while end < SWITCHED.end && ram.view(Gpa(end)) == view {
            end += PAGE_SIZE;
        }
        if let Some(View { read, write }) = view {
            let name = match (read, write) {
                (Source::Ram, true) => "ram",
                (Source::Ram, false) => "ram, read-only",
                (Source::Rom, true) => "rom, writes go to ram",
                (Source::Rom, false) => "rom",
                (Source::Bus, true) => "bus, writes go to ram",
                (Source::Bus, false) => "bus",
            };
            line(&mut out, start, end - 1, name);
        }
        start = end;
    }
    line(&mut out, SWITCHED.end, layout.low_bytes.min(HOLE_START) - 1, "ram");
    if let Some(video) = ram.video_range() {
        line(&mut out, video.start, video.end - 1, "vga memory");
    }
    if layout.rom_bytes > 0 {
        line(&mut out, HIGH_START - layout.rom_bytes, HIGH_START - 1, "rom");
    }
    if layout.high_bytes > 0 {
        line(&mut out, HIGH_START, HIGH_START + layout.high_bytes - 1, "ram");
    }
    out += "devices in memory\n";
    bus(&mut out, &parts.buses.memory);
    out += "ports\n";
    bus(&mut out, &parts.buses.ports);
    out
}

/// See [`Held::disassemble`].
pub fn disassemble(held: &Held, cpu: usize, space: Space, address: u64, count: usize) -> String {
    let bits = held.state(cpu).code_bits();
    let mut formatter = NasmFormatter::new();
    formatter.options_mut().set_branch_leading_zeros(false);
    let mut instruction = Instruction::default();
    let mut out = String::new();
    let mut at = address;
    for _ in 0..count {
        let mut bytes = [0; INSTRUCTION_MAX];
        let mut len = 0;
        let mut missing = None;
        for byte in &mut bytes {
            match held.read(cpu, space, at.wrapping_add(len as u64), std::slice::from_mut(byte)) {
                Ok(()) => len += 1,
                Err(unreadable) => {
                    missing = Some(unreadable);
                    break;
                }
            }
        }
        Decoder::with_ip(bits, &bytes[..len], at, DecoderOptions::NONE)
            .decode_out(&mut instruction);
        if instruction.is_invalid()
            && let Some(missing) = missing
        {
            let _ = writeln!(out, "{missing}");
            break;
        }
        let len = if instruction.is_invalid() { 1 } else { instruction.len() };
        let hex: String = bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut text = String::new();
        if instruction.is_invalid() {
            text.push_str("(bad)");
        } else {
            formatter.format(&instruction, &mut text);
        }
        let _ = writeln!(out, "{at:#018x}: {hex:<30} {text}");
        at = at.wrapping_add(len as u64);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_known_by_their_names() {
        let mut state = CpuState::reset(0x306c3);
        state.gpr = std::array::from_fn(|n| 0x1111_2222_3333_0000 + n as u64);
        let of = |name| register(&state, name);
        assert_eq!(of("rax"), Some(0x1111_2222_3333_0000));
        assert_eq!(of("edi"), Some(0x3333_0007));
        assert_eq!(of("bx"), Some(3));
        assert_eq!(of("r15"), Some(0x1111_2222_3333_000f));
        assert_eq!(of("cs"), Some(0xf000));
        assert_eq!(of("cs_base"), Some(0xffff_0000));
        assert_eq!(of("pc"), Some(0xffff_fff0));
        assert_eq!(of("rip"), Some(0xfff0));
        assert_eq!(of("dr7"), Some(0x400));
        for unknown in ["", "r", "e", "r7", "r16", "e8", "zs_base", "dr8", "drx", "xmm0", "rä"] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
        let text = registers(&state);
        for part in ["RIP=000000000000fff0", "R15=111122223333000f", "FCW=0040", "XMM15="] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
