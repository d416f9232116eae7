//! A random address for a kernel that we unpack.
//!
//! Problem: a kernel's own unpacker puts it at a random address, so that attackers can't know it; who takes that
//! work over must do the same. Scheme: as the unpacker does: a slot in physical memory, for a 64-bit kernel another
//! one in its linear window, out of all where it fits. The kernel is changed by the tables of addresses that its build
//! has put behind the ELF file, each ended by a zero before it: for 64-bit kernels those with 8 bytes, those with 4
//! bytes that are taken off (until Linux 6.15), those with 4; else the last only. Whether
//! a kernel expects this is seen by its unpacker, which knows the option that forbids it. Invariants: nothing is
//! written outside of a segment's bytes; under counted time the choice is the same every time. Differs from the
//! unpacker: physical slots are below the PCI hole only. Called before the machine runs.
//!
//! Source: Linux arch/x86/boot/compressed/kaslr.c and misc.c, arch/x86/tools/relocs.c (what they do, not how).

use super::linux::{Layout, Packed, Part};
use super::{u32_at, u64_at};
use crate::random::Random;

/// The option on the command line.
const FORBIDDEN: &str = "nokaslr";
/// Part of a message of unpackers that choose the two addresses apart (Linux 4.8 and later).
const APART: &[u8] = b"Physical KASLR disabled";
/// Options that take memory away; then the kernel stays where it was linked for.
const MEMORY_OPTIONS: [&str; 3] = ["mem=", "memmap=", "hugepages"];

/// Where a 64-bit kernel's image is mapped, and the size of the window.
const WINDOW: u64 = 0xffff_ffff_8000_0000;
const WINDOW_BYTES: u64 = 1 << 30;
/// A 32-bit kernel must end below.
const NARROW_END: u64 = 512 << 20;

/// How far a kernel is moved, modulo 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub physical: u64,
    /// By which its linear addresses change.
    pub linear: u64,
}

/// Chooses an address. The error is a reason why the kernel stays where it was linked for.
pub fn choose(packed: &Packed<'_>, layout: &Layout, random: &mut Random) -> Result<Choice, String> {
    let knows = |word: &[u8]| {
        packed.unpacker.iter().any(|code| code.windows(word.len()).any(|part| part == word))
    };
    if packed.command_line.split_ascii_whitespace().any(|word| word == FORBIDDEN) {
        return Err(format!("{FORBIDDEN} is on its command line"));
    }
    if !packed.relocatable || !knows(FORBIDDEN.as_bytes()) || !knows(APART) {
        return Err("it is from before Linux 4.8 or was built without that".to_owned());
    }
    let least = if layout.wide { 2 << 20 } else { 8 << 10 };
    let step = packed.alignment;
    let start = layout.start();
    if !step.is_power_of_two() || step < least || !start.is_multiple_of(step) {
        return Err(format!("its alignment of {step:#x} is odd"));
    }
    let size = packed.init_size.max(layout.memory_end() - start).next_multiple_of(step);
    let physical = physical(packed, layout, size, random)?.wrapping_sub(start);
    let linear = if layout.wide {
        if layout.base != WINDOW {
            return Err(format!("it is mapped {:#x} above its memory", layout.base));
        }
        let free = WINDOW_BYTES.checked_sub(start + size).ok_or("it fills its window")?;
        step * (random.draw() % (free / step + 1))
    } else {
        physical
    };
    Ok(Choice { physical, linear })
}

/// A physical address out of all those that are possible.
fn physical(
    packed: &Packed<'_>,
    layout: &Layout,
    size: u64,
    random: &mut Random,
) -> Result<u64, String> {
    let start = layout.start();
    if MEMORY_OPTIONS.iter().any(|option| packed.command_line.contains(option)) {
        return Ok(start);
    }
    let end = if layout.wide { packed.map.low_end() } else { packed.map.low_end().min(NARROW_END) };
    let free = |&at: &u64| {
        packed.map.is_ram(at, size)
            && packed.initrd.is_none_or(|(from, to)| at + size <= from || to <= at)
    };
    let steps = (start..(end + 1).saturating_sub(size)).step_by(packed.alignment as usize);
    let slots: Vec<u64> = steps.filter(free).collect();
    let count = slots.len() as u64;
    if count == 0 {
        return Err("there is no room elsewhere".to_owned());
    }
    // The remainder is below a length.
    Ok(slots[(random.draw() % count) as usize])
}

/// Changes the kernel's linear addresses by `delta`. The error is a reason; then it may be half changed.
pub fn relocate(image: &mut [u8], layout: &Layout, delta: u64) -> Result<(), String> {
    let (kernel, tables) = image.split_at_mut(layout.end);
    let tables = tables_in(tables, layout.wide)?;
    for (n, table) in tables.iter().enumerate() {
        let bytes = if layout.wide && n == 0 { 8 } else { 4 };
        let taken_off = layout.wide && n == 1 && tables.len() == 3;
        let delta = if taken_off { delta.wrapping_neg() } else { delta };
        let mut last = &layout.parts[0];
        for address in table.chunks_exact(4).filter_map(|word| u32_at(word, 0)) {
            // Sign extension, which for a 32-bit kernel is taken off again.
            let linear = i64::from(address.cast_signed()).cast_unsigned();
            let at = linear.wrapping_sub(layout.base);
            let physical = if layout.wide { at } else { at & 0xffff_ffff };
            let inside = |part: &Part| {
                let into = physical.checked_sub(part.physical)?;
                (into + bytes <= part.len as u64).then_some(part.offset + into as usize)
            };
            let offset = match inside(last) {
                Some(offset) => offset,
                None => {
                    let found = layout.parts.iter().find_map(|part| Some((part, inside(part)?)));
                    let (part, offset) = found
                        .ok_or_else(|| format!("a relocation at {linear:#x} is outside of it"))?;
                    last = part;
                    offset
                }
            };
            if bytes == 8 {
                let value = u64_at(kernel, offset).unwrap_or(0).wrapping_add(delta);
                super::put(kernel, offset, &value.to_le_bytes());
            } else {
                let value = u32_at(kernel, offset).unwrap_or(0).wrapping_add(delta as u32);
                super::put(kernel, offset, &value.to_le_bytes());
            }
        }
    }
    Ok(())
}

/// The tables in their order.
fn tables_in(bytes: &[u8], wide: bool) -> Result<Vec<&[u8]>, String> {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut tables: Vec<&[u8]> =
        words.split(|word| *word == [0; 4]).map(<[[u8; 4]]>::as_flattened).collect();
    // A zero is before each table, so the first of them ends nothing.
    let sound = rest.is_empty() && tables.remove(0).is_empty();
    let expected = if wide { 2..=3 } else { 1..=1 };
    if sound && expected.contains(&tables.len()) {
        Ok(tables)
    } else {
        Err("its relocations are in no known form".to_owned())
    }
}
