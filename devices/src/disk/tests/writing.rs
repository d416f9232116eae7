//! qcow2 images that are written: what QEMU says of them, kills at any moment, full disks, damaged headers.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::super::describe;
use super::super::qcow2::create;
use super::*;
use crate::fake::Random;

const WRITE: DiskOptions = DiskOptions { read_only: false, snapshot: false, format: None };

fn open_to_write(path: &Path) -> Arc<dyn DiskImage> {
    open(path, WRITE).unwrap_or_else(|error| panic!("{error}"))
}

/// QEMU finds nothing wrong: no more than lost space, or not even that.
fn check(path: &Path, leaks_allowed: bool) {
    let Ok(output) = Command::new("qemu-img").args(["check", "-q"]).arg(path).output() else {
        eprintln!("SKIPPED: qemu-img is not installed (apt install qemu-utils)");
        return;
    };
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    // 3: leaked clusters only.
    let good = output.status.success() || leaks_allowed && output.status.code() == Some(3);
    assert!(good, "qemu-img check: {}: {told}", output.status);
}

/// Writes at random, as `expected` is then, with flushes, discards and zeroes between.
fn churn(image: &dyn DiskImage, expected: &mut [u8], random: &mut Random, steps: usize) {
    let size = expected.len() as u64;
    for _ in 0..steps {
        let draw = random.next();
        let offset = random.next() % (size / SECTOR) * SECTOR;
        let len = (1 << (draw % 9) | draw >> 20 & 7) * SECTOR;
        let len = len.min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match draw >> 32 & 31 {
            0 => image.flush().expect("room"),
            1..=3 => {
                image.write_zeroes(offset, len).expect("within the disk");
                expected[range].fill(0);
            }
            4..=5 => {
                image.discard(offset, len).expect("within the disk");
                // What it reads as now is not said.
                image.read_at(offset, &mut expected[range]).expect("within the disk");
            }
            _ => {
                expected[range.clone()].fill_with(|| random.next() as u8);
                image.write_at(offset, &expected[range]).expect("within the disk");
            }
        }
    }
}

const SECTOR: u64 = super::super::SECTOR;

#[test]
fn what_is_written_is_read_and_sound_for_qemu() {
    let scratch = Scratch::new("writing");
    let base = contents(5);
    scratch.file("base", &base);
    let size = base.len() as u64;
    let mut random = Random(77);
    let created = |options: &str| {
        let arguments = ["create", "-f", "qcow2", "-o", options, "image", &size.to_string()];
        qemu("qemu-img", &scratch.0, &arguments)
    };
    let converted = |options: &[&str]| {
        let arguments = [&["convert", "-O", "qcow2"], options, &["base", "image"]].concat();
        qemu("qemu-img", &scratch.0, &arguments)
    };
    let zeroes = vec![0; base.len()];
    // Name, how QEMU makes it, and what it has then.
    type Maker<'a> = (&'a str, &'a dyn Fn() -> bool, &'a [u8]);
    let makers: [Maker<'_>; 10] = [
        ("plain", &|| created("compat=1.1"), &zeroes),
        ("version 2", &|| created("compat=0.10"), &zeroes),
        ("small clusters", &|| created("cluster_size=512"), &zeroes),
        ("large clusters", &|| created("cluster_size=2M"), &zeroes),
        ("1-bit counts", &|| created("refcount_bits=1,cluster_size=4k"), &zeroes),
        ("64-bit counts", &|| created("refcount_bits=64,cluster_size=1k"), &zeroes),
        ("lazy", &|| created("lazy_refcounts=on"), &zeroes),
        ("with data", &|| converted(&[]), &base),
        ("compressed", &|| converted(&["-c"]), &base),
        ("backed", &|| created("backing_file=base,backing_fmt=raw"), &base),
    ];
    for (name, make, before) in makers {
        if !make() {
            return;
        }
        let path = scratch.0.join("image");
        let mut expected = before.to_vec();
        for _ in 0..3 {
            let image = open_to_write(&path);
            assert!(all(&*image) == expected, "{name}");
            churn(&*image, &mut expected, &mut random, 60);
            assert!(all(&*image) == expected, "{name}");
            drop(image);
            check(&path, false);
        }
        // QEMU reads the same.
        let read = ["convert", "-f", "qcow2", "-O", "raw", "image", "read"];
        assert!(qemu("qemu-img", &scratch.0, &read));
        assert!(fs::read(scratch.0.join("read")).expect("there") == expected, "{name}");
        assert!(fs::read(scratch.0.join("base")).expect("there") == base, "{name}");
    }
}

#[test]
fn snapshots_in_an_image_stay_as_they_are() {
    let scratch = Scratch::new("inner");
    let base = contents(6);
    scratch.file("base", &base);
    let path = scratch.0.join("image");
    if !qemu("qemu-img", &scratch.0, &["convert", "-O", "qcow2", "base", "image"])
        || !qemu("qemu-img", &scratch.0, &["snapshot", "-c", "before", "image"])
    {
        return;
    }
    let mut expected = base.clone();
    let image = open_to_write(&path);
    churn(&*image, &mut expected, &mut Random(9), 80);
    drop(image);
    check(&path, false);
    let read = ["convert", "-l", "before", "-O", "raw", "image", "read"];
    assert!(qemu("qemu-img", &scratch.0, &read));
    assert!(fs::read(scratch.0.join("read")).expect("there") == base);
    assert!(all(&*open_to_write(&path)) == expected);
}

#[test]
fn images_that_we_make_are_sound_and_grow() {
    let scratch = Scratch::new("made");
    let path = scratch.0.join("image");
    for size in [512, 1 << 20, 3 << 40] {
        let file = File::create(&path).expect("writable");
        create(&file, size, None).expect("room");
        drop(file);
        check(&path, false);
        let info = describe(&path).expect("sound");
        assert_eq!((info.format, info.disk_bytes), (Format::Qcow2, size));
        assert_eq!((info.qcow2, info.backing), (Some((3, CLUSTER as u64)), None));
        let image = open_to_write(&path);
        assert_eq!(image.size(), size);
        image.write_at(size - 512, &[7; 512]).expect("room");
        image.flush().expect("room");
        drop(image);
        check(&path, false);
        assert!(path.metadata().expect("there").len() < 2 << 20);
        let mut last = [0; 512];
        open(&path, TO_READ).expect("sound").read_at(size - 512, &mut last).expect("within it");
        assert_eq!(last, [7; 512]);
    }
    let file = File::create(&path).expect("writable");
    for size in [0, 513, u64::MAX / 512 * 512] {
        assert!(create(&file, size, None).is_err(), "{size}");
    }
}

#[test]
fn a_refcount_table_grows_when_it_is_full() {
    // Clusters of 512 bytes: a cluster of the table counts 8 MiB.
    let scratch = Scratch::new("table");
    let path = scratch.0.join("image");
    let arguments = ["create", "-f", "qcow2", "-o", "cluster_size=512", "image", "64M"];
    if !qemu("qemu-img", &scratch.0, &arguments) {
        return;
    }
    let before = fs::read(&path).expect("there")[48..60].to_vec();
    let image = open_to_write(&path);
    let piece: Vec<u8> = (0..1u32 << 20).map(|at| (at / 3) as u8).collect();
    for at in 0..40u64 {
        image.write_at(at << 20, &piece).expect("room");
        if at % 16 == 0 {
            image.flush().expect("room");
        }
    }
    drop(image);
    check(&path, false);
    let image = open(&path, TO_READ).expect("sound");
    let mut read = vec![0; piece.len()];
    for at in 0..40u64 {
        image.read_at(at << 20, &mut read).expect("within it");
        assert!(read == piece, "{at} MiB");
    }
    assert_ne!(fs::read(&path).expect("there")[48..60], before);
}

#[test]
fn discarded_space_is_given_back_and_used_again() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new("discard");
    let path = scratch.0.join("image");
    create(&File::create(&path).expect("writable"), 32 << 20, None).expect("room");
    let image = open_to_write(&path);
    for _ in 0..4 {
        for at in 0..16u64 {
            image.write_at(at << 20, &vec![0x33; 1 << 20]).expect("room");
        }
        image.flush().expect("room");
        assert!(image.can_discard());
        image.discard(0, 16 << 20).expect("within it");
        image.flush().expect("room");
        let mut read = [1; 512];
        image.read_at(5 << 20, &mut read).expect("within it");
        assert_eq!(read, [0; 512]);
        assert!(path.metadata().expect("there").blocks() * 512 < 2 << 20);
    }
    assert!(path.metadata().expect("there").len() < 18 << 20);
    drop(image);
    check(&path, false);

    let raw = scratch.file("raw", &vec![0x44; 4 << 20]);
    let image = open(&raw, WRITE).expect("sound");
    image.discard(1 << 20, 2 << 20).expect("within it");
    assert!(raw.metadata().expect("there").blocks() * 512 <= 2 << 20);
    assert_eq!(raw.metadata().expect("there").len(), 4 << 20);
}

/// The writer's first generation.
const FIRST: &str = "XENOLITH_TEST_FIRST";
/// The variable that makes a test's program a writer, with the image's path.
const WRITER: &str = "XENOLITH_TEST_WRITER";
/// Bytes of a record; it says its number throughout. Not a divisor of a cluster, so that some lie in two.
const RECORD: usize = 3 * 512;
const RECORDS: u64 = 6000;

fn record(slot: u64, generation: u64) -> Vec<u8> {
    let word = (slot << 40 | generation).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..RECORD / 8).flat_map(|n| word.wrapping_add(n as u64).to_le_bytes()).collect()
}

/// The generation that a sector of a record says it has, if it is the record's at all. A kill may come between
/// sectors.
fn generation(slot: u64, part: usize, sector: &[u8]) -> Option<u64> {
    let first = u64::from_le_bytes(*sector.first_chunk()?);
    // The inverse of the odd number in `record`.
    let word = first.wrapping_sub(part as u64 * 64).wrapping_mul(0xf1de_83e1_9937_733d);
    let generation = word & ((1 << 40) - 1);
    (record(slot, generation)[part * 512..][..512] == *sector).then_some(generation)
}

/// Writes records for ever and tells which it has flushed: slot and generation.
fn write_records(path: &Path, first: u64) {
    let image = open_to_write(path);
    let mut out = std::io::stdout();
    let mut random = Random(u64::from(std::process::id()) | 1 << 40);
    for generation in first.. {
        let mut told = String::new();
        for _ in 0..1 + random.next() % 30 {
            let slot = random.next() % RECORDS;
            image.write_at(slot * RECORD as u64, &record(slot, generation)).expect("room");
            told.push_str(&format!("record {slot} {generation}\n"));
        }
        // Space behind the records comes and goes, so that clusters are used again.
        let at = (16 << 20) + ((random.next() % 64) << 16);
        if generation % 3 == 0 {
            image.discard(at, 256 << 10).expect("within it");
        } else {
            image.write_at(at, &[generation as u8; 5000]).expect("room");
        }
        image.flush().expect("room");
        told.push_str("flushed\n");
        out.write_all(told.as_bytes()).and_then(|()| out.flush()).expect("someone reads");
    }
}

/// Kills a process that writes records again and again. Each time QEMU finds no damage, and what was flushed
/// is there, or a later generation of it.
#[test]
fn a_writer_that_is_killed_loses_nothing_that_it_flushed() {
    if let (Some(path), Some(first)) = (std::env::var_os(WRITER), std::env::var_os(FIRST)) {
        let first = first.to_str().and_then(|text| text.parse().ok()).expect("a number");
        return write_records(Path::new(&path), first);
    }
    let scratch = Scratch::new("kills");
    let base = scratch.file("base", &contents(8));
    let mut random = Random(0x5eed);
    for (name, backing) in
        [("plain", None), ("backed", Some((base.to_str().expect("ASCII"), "raw")))]
    {
        let path = scratch.0.join(name);
        let backing = backing.map(|(name, format)| (name.as_bytes(), format));
        create(&File::create(&path).expect("writable"), 24 << 20, backing).expect("room");
        let mut flushed = vec![0; RECORDS as usize];
        let mut rounds = 0;
        for round in 0..12u64 {
            let mut writer = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "--nocapture"])
                .arg("disk::tests::writing::a_writer_that_is_killed_loses_nothing_that_it_flushed")
                .env(WRITER, &path)
                .env(FIRST, ((round << 20) + 1).to_string())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this program runs");
            let lines = BufReader::new(writer.stdout.take().expect("piped")).lines();
            let (first_flush, flushes) = std::sync::mpsc::channel();
            let reader = std::thread::spawn(move || {
                let mut told = Vec::new();
                let mut sure = 0;
                for line in lines.map_while(Result::ok) {
                    let words: Vec<&str> = line.split(' ').collect();
                    match words[..] {
                        ["record", slot, generation] => {
                            let number = |text: &str| text.parse::<u64>().expect("a number");
                            told.push((number(slot), number(generation)));
                        }
                        ["flushed"] => {
                            sure = told.len();
                            // Only the first is waited for.
                            let _ = first_flush.send(());
                        }
                        _ => {}
                    }
                }
                told.truncate(sure);
                told
            });
            // Some are killed before they have flushed anything.
            if round % 4 != 0 {
                flushes.recv().expect("it writes");
            }
            std::thread::sleep(Duration::from_millis(random.next() % 500));
            writer.kill().expect("it runs");
            writer.wait().expect("it was killed");
            let told = reader.join().expect("it reads");
            rounds += usize::from(!told.is_empty());
            for (slot, generation) in told {
                flushed[slot as usize] = generation;
            }
            check(&path, true);
            let image = open(&path, TO_READ).expect("sound");
            let mut read = vec![0; RECORD];
            for slot in (0..RECORDS).filter(|&slot| flushed[slot as usize] > 0) {
                image.read_at(slot * RECORD as u64, &mut read).expect("within it");
                for (part, sector) in read.chunks(512).enumerate() {
                    let found = generation(slot, part, sector);
                    let wanted = flushed[slot as usize];
                    let good = found.is_some_and(|found| found >= wanted);
                    assert!(good, "{name}: {slot}, sector {part}: {found:?}, not {wanted}");
                }
            }
        }
        assert!(rounds >= 9, "{name}: {rounds} writers have flushed");
    }
}

/// The size that files of the writer may have at most, for the test of a full disk.
const LIMIT: &str = "XENOLITH_TEST_FILE_LIMIT";

fn fill_up(path: &Path, limit: u64) {
    // A write past the limit is an error instead of a signal's end.
    // SAFETY: the argument is a signal and a way to handle it; nothing else uses the signal here.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a valid rlimit of ours, which is only read.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
    assert_eq!(set, 0);
    let image = open_to_write(path);
    let mut failed = 0;
    for at in 0..48u64 {
        match image.write_at(at << 18, &vec![at as u8 + 1; 1 << 18]) {
            Ok(()) => assert_eq!(failed, 0, "room comes from nowhere"),
            Err(_) => failed += 1,
        }
        if failed == 0 {
            image.flush().expect("what could be written can be flushed");
            println!("kept {at}");
        }
    }
    assert!(failed > 3, "the limit was not reached");
    // What has its room can still be written.
    image.write_at(0, &[0xaa; 512]).expect("no room is needed");
    image.flush().expect("no room is needed");
}

#[test]
fn a_full_disk_is_an_error_and_the_image_stays_whole() {
    if let (Some(path), Some(limit)) = (std::env::var_os(WRITER), std::env::var_os(LIMIT)) {
        let limit = limit.to_str().and_then(|text| text.parse().ok()).expect("a number");
        return fill_up(Path::new(&path), limit);
    }
    let scratch = Scratch::new("full");
    let path = scratch.0.join("image");
    for limit in [0x2_0000, 0x6_1234, 0x40_0000, 0x40_8000, 0x77_7777] {
        let _ = fs::remove_file(&path);
        create(&File::create(&path).expect("writable"), 16 << 20, None).expect("room");
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "--nocapture"])
            .arg("disk::tests::writing::a_full_disk_is_an_error_and_the_image_stays_whole")
            .envs([(WRITER, path.as_os_str()), (LIMIT, limit.to_string().as_ref())])
            .output()
            .expect("this program runs");
        let told = String::from_utf8_lossy(&output.stdout);
        // With no room for the first cluster there is nothing to write again.
        if limit > 0x10_0000 {
            assert!(output.status.success(), "{limit:#x}: {told}");
        }
        check(&path, true);
        let image = open_to_write(&path);
        let mut read = vec![0; 1 << 18];
        let kept = told.lines().filter_map(|line| line.strip_prefix("kept ")?.parse::<u64>().ok());
        let mut count = 0;
        for at in kept {
            count += 1;
            image.read_at(at << 18, &mut read).expect("within it");
            assert!(read[512..].iter().all(|&byte| byte == at as u8 + 1), "{limit:#x}: {at}");
        }
        assert!(limit < 0x40_0000 || count > 8, "{limit:#x}: {count} pieces");
        // With room again it goes on.
        image.write_at(15 << 20, &[1; 4096]).expect("room");
        drop(image);
        check(&path, true);
    }
}

/// Every byte of the header and the tables, changed in an image that is then written.
#[test]
fn damaged_images_are_refused_or_written_without_a_panic() {
    let scratch = Scratch::new("damaged-writing");
    let path = scratch.0.join("image");
    create(&File::create(&path).expect("writable"), 8 << 20, None).expect("room");
    let image = open_to_write(&path);
    for at in [0, 1 << 20, 5 << 20] {
        image.write_at(at, &[0x77; 100_000]).expect("room");
    }
    drop(image);
    let sound = fs::read(&path).expect("there");
    let cluster = 64 << 10;
    let l2 = u64::from_be_bytes(sound[3 * cluster..3 * cluster + 8].try_into().expect("8 bytes"));
    let l2 = (l2 & !COPIED) as usize;
    let places = (0..112)
        .chain(cluster..cluster + 8)
        .chain(2 * cluster..2 * cluster + 24)
        .chain(3 * cluster..3 * cluster + 8)
        .chain(l2..l2 + 16);
    let (mut refused, mut failed) = (0, 0);
    for at in places {
        for flip in [0x01, 0x40, 0x80, 0xff] {
            let mut bytes = sound.clone();
            bytes[at] ^= flip;
            fs::write(&path, &bytes).expect("writable");
            match open(&path, WRITE) {
                Err(error) => {
                    assert!(!error.to_string().contains('\n'), "{error}");
                    refused += 1;
                }
                Ok(image) => {
                    // A damaged size may be anything.
                    let last = (image.size() - 512).min(6 << 20);
                    for at in [0, 512, 70_000 / 512 * 512, 2 << 20, last] {
                        if at + 512 <= image.size() {
                            failed += usize::from(image.write_at(at, &[1; 512]).is_err());
                        }
                    }
                    let _ = image.discard(0, image.size().min(1 << 20));
                    let _ = image.flush();
                }
            }
        }
    }
    assert!(refused > 100 && failed > 0, "{refused} refused, {failed} writes failed");
}

#[test]
fn images_marked_dirty_or_corrupt_and_unknown_features_are_not_written() {
    let scratch = Scratch::new("marked");
    let path = scratch.0.join("image");
    create(&File::create(&path).expect("writable"), 1 << 20, None).expect("room");
    let sound = fs::read(&path).expect("there");
    for (bit, part) in [(1u64, "marked dirty"), (2, "marked corrupt"), (1 << 40, "not known")] {
        let mut bytes = sound.clone();
        bytes[72..80].copy_from_slice(&bit.to_be_bytes());
        fs::write(&path, &bytes).expect("writable");
        let error = open(&path, WRITE).err().expect("refused").to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(open(&path, TO_READ).is_ok(), bit < 4);
    }
    // What programs that don't know it must clear is cleared by the first write.
    let mut bytes = sound;
    bytes[88..96].copy_from_slice(&1u64.to_be_bytes());
    fs::write(&path, &bytes).expect("writable");
    drop(open_to_write(&path));
    assert_eq!(fs::read(&path).expect("there")[95], 1);
    open_to_write(&path).write_at(0, &[1; 512]).expect("room");
    assert_eq!(fs::read(&path).expect("there")[88..96], [0; 8]);
}
