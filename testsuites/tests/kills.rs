//! Machines that are killed while their guest writes: what the guest flushed is there, and the image is whole.
//!
//! Scheme: a shell in Debian writes records, one after the other, each with a flush behind it, and then says so on the
//! console; the program is killed at a random moment, the image is looked at, and another machine goes on with it. A
//! record says in each line which one it is and of which generation, so a sector of it is good if it is of
//! the generation that was flushed last, or of a later one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use xenolith_devices::disk::{self as images, DiskOptions};
use xenolith_testsuites::debian::{Debian, PATIENCE};
use xenolith_testsuites::disk::{SECTOR, Scratch};
use xenolith_testsuites::program::xenolith;

const DISK_BYTES: u64 = 64 << 20;
/// Bytes of a record, and of each line in it.
const RECORD: usize = 4096;
const LINE: usize = 16;
const SLOTS: usize = 48;
/// Records lie so far apart: most have a cluster of a qcow2 image, of 64 KiB, to themselves, and some share one.
const STRIDE: u64 = 40 << 10;

/// Kills of a kind of disk, by day (two kinds) and by night (all).
const BY_DAY: u32 = 2;
const BY_NIGHT: u32 = 30;

/// How a disk is stored and attached.
struct Kind {
    name: &'static str,
    /// More arguments for `image create`; none makes a raw one.
    create: Option<&'static [&'static str]>,
    options: &'static str,
    device: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind { name: "raw-virtio", create: None, options: "if=virtio", device: "/dev/vda" },
    Kind { name: "raw-ide", create: None, options: "if=ide", device: "/dev/sda" },
    Kind { name: "qcow2-virtio", create: Some(&[]), options: "if=virtio", device: "/dev/vda" },
    Kind {
        name: "qcow2-backed-ide",
        create: Some(&["--backing", "base.img"]),
        options: "if=ide",
        device: "/dev/sda",
    },
];

/// The guest's endless loop from generation `first` on.
fn writer(device: &str, first: u64) -> String {
    let last = SLOTS - 1;
    let (lines, stride) = (RECORD / LINE, STRIDE / RECORD as u64);
    // Two numbers of seven digits, a space and the line's end are 16 bytes. dd ends with fsync(2).
    format!(
        "g={first}; while :; do for s in $(seq 0 {last}); do \
         yes $(printf '%07d' $s)' '$(printf '%07d' $g) | head -n {lines} | \
         dd of={device} bs={RECORD} seek=$((s*{stride})) conv=notrunc,fsync 2>/dev/null && \
         echo \"is flushed: $s $g\"; done; g=$((g+1)); done"
    )
}

/// The slot and generation that a sector says it has, if it says the same throughout.
fn record(sector: &[u8]) -> Option<(usize, u64)> {
    let line = sector.get(..LINE)?;
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (slot, generation) = text.split_once(' ')?;
    let same = sector.chunks(LINE).all(|other| other == line);
    same.then_some((slot.parse().ok()?, generation.parse().ok()?))
}

/// Notes what the console says was flushed.
fn note(console: &str, flushed: &mut [u64; SLOTS]) -> Result<usize> {
    let mut count = 0;
    // The last line may be cut short by the kill; its number would be another.
    let whole = &console[..console.rfind('\n').unwrap_or(0)];
    for told in whole.lines().filter_map(|line| line.trim().strip_prefix("is flushed: ")) {
        let (slot, generation) = told.split_once(' ').with_context(|| told.to_owned())?;
        // What was typed comes back too, with what stands for numbers.
        let (Ok(slot), Ok(generation)) = (slot.parse::<usize>(), generation.parse()) else {
            continue;
        };
        *flushed.get_mut(slot).context("no such slot")? = generation;
        count += 1;
    }
    Ok(count)
}

/// Compares all records in the image at `path` with what was flushed.
fn check(path: &Path, flushed: &[u64; SLOTS]) -> Result<()> {
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let image = images::open(path, options)?;
    let mut bytes = vec![0; RECORD];
    for (slot, &wanted) in flushed.iter().enumerate().filter(|&(_, &wanted)| wanted > 0) {
        image.read_at(slot as u64 * STRIDE, &mut bytes)?;
        for (part, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let found = record(sector);
            let good = found.is_some_and(|(which, found)| which == slot && found >= wanted);
            ensure!(good, "record {slot}, sector {part}: {found:?}, but {wanted} was flushed");
        }
    }
    Ok(())
}

fn kill_again_and_again(kind: &Kind, kills: u32) -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("kills")?;
    let path = scratch.path().join("disk.img");
    let size = DISK_BYTES.to_string();
    let image_create = |arguments: &[&str]| -> Result<()> {
        let mut command = xenolith()?;
        command
            .current_dir(scratch.path())
            .args(["image", "create", "-f", "qcow2"])
            .args(arguments);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    fs::write(scratch.path().join("base.img"), vec![b'#'; DISK_BYTES as usize])?;
    match kind.create {
        Some(arguments) => image_create(&[arguments, &["disk.img", &size]].concat())?,
        None => fs::File::create(&path)?.set_len(DISK_BYTES)?,
    }

    let (mut flushed, mut told) = ([0; SLOTS], 0);
    for round in 0..kills {
        let mut command = guest.run_elf("quiet")?;
        command.args(["--net", "none", "--disk"]);
        command.arg(format!("{},{}", path.display(), kind.options));
        let mut program = guest.boot(command)?;
        // Later than anything that was written before.
        let first = flushed.iter().max().copied().unwrap_or(0) + 1000;
        program.type_line(&writer(kind.device, first));
        program.wait_for("is flushed: 0 ", PATIENCE)?;
        // Anywhere in a turn of the slots, and a little more.
        thread::sleep(Duration::from_millis(u64::from(round) * 7919 % 1500));
        let console = program.kill()?;
        told += note(&console, &mut flushed)?;
        check(&path, &flushed).with_context(|| format!("{}, kill {round}", kind.name))?;
        if kind.create.is_some() {
            whole(&path).with_context(|| format!("{}, kill {round}", kind.name))?;
        }
    }
    eprintln!("{}: {kills} kills, {told} records flushed", kind.name);
    ensure!(told >= kills as usize, "{}: only {told} records were flushed", kind.name);
    Ok(())
}

/// QEMU finds nothing wrong with a qcow2 image but space that is lost.
fn whole(path: &Path) -> Result<()> {
    let output = Command::new("qemu-img").args(["check", "-q"]).arg(path).output()?;
    // 3: leaked clusters only.
    let good = output.status.success() || output.status.code() == Some(3);
    ensure!(good, "qemu-img check: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn what_a_guest_flushed_outlives_kills_of_the_program() -> Result<()> {
    KINDS.iter().step_by(3).try_for_each(|kind| kill_again_and_again(kind, BY_DAY))
}

#[test]
#[ignore = "nightly: slow"]
fn what_a_guest_flushed_outlives_many_kills_of_the_program() -> Result<()> {
    KINDS.iter().try_for_each(|kind| kill_again_and_again(kind, BY_NIGHT))
}
