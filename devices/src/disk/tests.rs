//! Images that QEMU makes, and images that nobody should.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::{DiskError, DiskImage, DiskOptions, Format, SECTOR, create_qcow2, open, open_disc};

mod writing;

const CLUSTER: usize = 64 << 10;
/// The bit of a table entry whose cluster has one reference.
const COPIED: u64 = 1 << 63;
const TO_READ: DiskOptions = DiskOptions { read_only: true, snapshot: false, format: None };
const SNAPSHOT: DiskOptions = DiskOptions { read_only: false, snapshot: true, format: None };

/// A folder that is deleted when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let process = std::process::id();
        for n in 0.. {
            let path = std::env::temp_dir().join(format!("xenolith-disk-{name}-{process}-{n}"));
            match fs::create_dir(&path) {
                Ok(()) => return Self(path),
                // A process of the same number was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        unreachable!("there is a number that is free")
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("writable");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program of QEMU's in `folder`. False, and said so, if it isn't there.
fn qemu(program: &str, folder: &Path, arguments: &[&str]) -> bool {
    match Command::new(program).current_dir(folder).args(arguments).output() {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {told}");
            true
        }
        Err(_) => {
            eprintln!("SKIPPED: {program} is not installed (apt install qemu-utils)");
            false
        }
    }
}

/// A disk of 3 MiB and a bit: text that compresses, noise that doesn't, and holes.
fn contents(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = vec![0; (3 << 20) + 512 * 7];
    for (n, piece) in bytes.chunks_mut(24 << 10).enumerate() {
        for (at, byte) in piece.iter_mut().enumerate() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = match n % 4 {
                0 => (state >> 56) as u8,
                1 => (at / 100) as u8 ^ seed as u8,
                _ => 0,
            };
        }
    }
    bytes
}

fn all(image: &dyn DiskImage) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    // Pieces that fit neither clusters nor sectors' neighbours.
    for (n, piece) in bytes.chunks_mut(41 * 512).enumerate() {
        image.read_at((n * 41 * 512) as u64, piece).expect("within the image");
        let mut cached = vec![0xa5; piece.len()];
        if image.read_cached((n * 41 * 512) as u64, &mut cached) {
            assert!(cached == piece, "piece {n} is another in memory");
        }
    }
    bytes
}

/// A version 3 image of 1 MiB by hand: header, first-level table, a second-level table, two clusters.
fn by_hand() -> Vec<u8> {
    let mut image = vec![0; 5 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let cluster = CLUSTER as u64;
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 20).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &cluster.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER, &(2 * cluster + COPIED).to_be_bytes());
    put(2 * CLUSTER, &(3 * cluster + COPIED).to_be_bytes());
    put(2 * CLUSTER + 8, &(4 * cluster + COPIED).to_be_bytes());
    put(2 * CLUSTER + 16, &(4 * cluster + COPIED + 1).to_be_bytes());
    put(3 * CLUSTER, &[0x11; CLUSTER]);
    put(4 * CLUSTER, &[0x22; CLUSTER]);
    image
}

#[test]
fn a_written_cluster_a_zero_cluster_and_one_that_is_not_there() {
    let scratch = Scratch::new("by-hand");
    let image = open(&scratch.file("x", &by_hand()), TO_READ).expect("sound");
    let mut expected = vec![0; 1 << 20];
    expected[..CLUSTER].fill(0x11);
    expected[CLUSTER..2 * CLUSTER].fill(0x22);
    assert!(all(&*image) == expected);
    assert!(image.read_only() && image.write_at(0, &[0]).is_err());
    assert!(image.read_at((1 << 20) - 1, &mut [0; 2]).is_err());
    let cluster = CLUSTER as u64;
    assert_eq!([0, cluster, 2 * cluster - 1].map(|at| image.known_zeroes(at)), [0; 3]);
    assert_eq!(image.known_zeroes(2 * cluster + 512), (1 << 20) - 2 * cluster - 512);
}

#[test]
fn images_as_qemu_makes_them() {
    let scratch = Scratch::new("qemu");
    let expected = contents(7);
    scratch.file("raw", &expected);
    for options in [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M,lazy_refcounts=on",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=512",
        "compression_type=zstd,cluster_size=2M",
    ] {
        for compress in [false, true] {
            let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
            arguments.extend(compress.then_some("-c"));
            arguments.extend(["raw", "image"]);
            if !qemu("qemu-img", &scratch.0, &arguments) {
                return;
            }
            let image = open(&scratch.0.join("image"), TO_READ).expect("QEMU's");
            assert!(all(&*image) == expected, "{options}, compressed: {compress}");
        }
    }
}

#[test]
fn others_formats_are_named_and_refused() {
    let scratch = Scratch::new("foreign");
    scratch.file("raw", &contents(7));
    for (format, name) in
        [("vmdk", "VMDK"), ("vdi", "VDI"), ("vpc", "VHD"), ("vhdx", "VHDX"), ("qed", "QED")]
    {
        if !qemu("qemu-img", &scratch.0, &["convert", "-f", "raw", "-O", format, "raw", "image"]) {
            return;
        }
        let path = scratch.0.join("image");
        let error = open(&path, TO_READ).err().expect("unknown").to_string();
        assert!(error.contains(&format!("a {name} image, which is not supported")), "{error}");
        assert!(super::describe(&path).is_err());
        let raw = DiskOptions { format: Some(Format::Raw), ..TO_READ };
        assert!(open(&path, raw).is_ok(), "a raw disk, if that is said");
    }
}

#[test]
fn a_damaged_zstd_cluster_is_an_error() {
    let scratch = Scratch::new("zstd");
    scratch.file("raw", &contents(7));
    let convert = [
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
        "raw",
        "image",
    ];
    if !qemu("qemu-img", &scratch.0, &convert) {
        return;
    }
    let path = scratch.0.join("image");
    let sound = fs::read(&path).expect("there");
    let frames: Vec<_> = (0..sound.len() - 4)
        .filter(|&at| sound[at..at + 4] == 0xfd2f_b528_u32.to_le_bytes())
        .collect();
    assert!(frames.len() > 5);
    let mut damaged = sound;
    for (n, at) in frames.into_iter().enumerate() {
        // The frame's header: a window of terabytes, among others.
        damaged[at + 4 + n % 2] = 0xff;
    }
    fs::write(&path, &damaged).expect("writable");
    let image = open(&path, TO_READ).expect("its tables are sound");
    assert!(image.read_at(0, &mut [0; 512]).is_err());
    let mut failed = 0;
    for at in (0..image.size() - 512).step_by(CLUSTER) {
        failed += u32::from(image.read_at(at, &mut [0; 512]).is_err());
    }
    assert!(failed > 3, "{failed}");
}

#[test]
fn what_an_image_does_not_have_comes_from_its_backing_image() {
    let scratch = Scratch::new("backing");
    let base = contents(1);
    scratch.file("base", &base);
    // The disk is larger than its base, and one cluster and a part of one are its own.
    let mut wanted = base;
    wanted.resize(4 << 20, 0);
    wanted[..CLUSTER].fill(0x55);
    wanted[(1 << 20) + 512..(1 << 20) + 1024].fill(0x66);
    let create = ["create", "-f", "qcow2", "-b", "base", "-F", "raw", "top", "4M"];
    let write = ["-c", "write -P 0x55 0 64k", "-c", "write -P 0x66 1049088 512", "top"];
    if !qemu("qemu-img", &scratch.0, &create) || !qemu("qemu-io", &scratch.0, &write) {
        return;
    }
    let image = open(&scratch.0.join("top"), TO_READ).expect("QEMU's");
    assert!(all(&*image) == wanted);
    // Zeroes that are known are zeroes.
    for at in (0..wanted.len()).step_by(512) {
        let known = image.known_zeroes(at as u64) as usize;
        assert!(wanted[at..at + known].iter().all(|&byte| byte == 0), "{at}: {known}");
    }
    assert_eq!(image.known_zeroes(4 << 20), 0);
    assert!(image.known_zeroes((4 << 20) - 5120) == 5120, "past the base's end");
    assert!(scratch.0.join("top").metadata().expect("there").len() < 2 << 20);
    drop(image);
    fs::remove_file(scratch.0.join("base")).expect("there");
    let error = open(&scratch.0.join("top"), TO_READ).err().expect("no base").to_string();
    assert!(
        error.contains("its backing file: disk image") && error.contains("base: No such"),
        "{error}"
    );
}

#[test]
fn a_circle_of_backing_images_ends() {
    let scratch = Scratch::new("circle");
    let mut bytes = by_hand();
    bytes[8..16].copy_from_slice(&112u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&1u32.to_be_bytes());
    bytes[112] = b'x';
    let circle = scratch.file("x", &bytes);
    let error = open(&circle, TO_READ).err().expect("a circle").to_string();
    assert!(error.ends_with("x: the backing files go in a circle"), "{error}");
    // Of two; and a chain that is no circle but too long.
    bytes[112] = b'y';
    scratch.file("x", &bytes);
    std::os::unix::fs::symlink("x", scratch.0.join("z")).expect("writable");
    bytes[112] = b'z';
    scratch.file("y", &bytes);
    let error = open(&circle, TO_READ).err().expect("a circle").to_string();
    assert!(error.contains("y: its backing file") && error.contains("in a circle"), "{error}");
    bytes[16..20].copy_from_slice(&2u32.to_be_bytes());
    for n in 10..50 {
        bytes[112..114].copy_from_slice((n + 1).to_string().as_bytes());
        scratch.file(&n.to_string(), &bytes);
    }
    let error = open(&scratch.0.join("10"), TO_READ).err().expect("too long").to_string();
    assert!(error.ends_with("more than 32 backing files") && !error.contains('\n'), "{error}");
    bytes[16..20].copy_from_slice(&5u32.to_be_bytes());
    bytes[112..117].copy_from_slice(b"nbd:x");
    let error = open(&scratch.file("x", &bytes), TO_READ).err().expect("a protocol").to_string();
    assert!(error.ends_with("backing file \"nbd:x\" is not a file's name"), "{error}");
}

#[test]
fn a_snapshot_takes_writes_and_leaves_the_image_alone() {
    let scratch = Scratch::new("snapshot");
    for bytes in [by_hand(), contents(3)] {
        let path = scratch.file("image", &bytes);
        let snapshot = open(&path, SNAPSHOT).expect("sound");
        let mut expected = all(&*open(&path, TO_READ).expect("readers share"));
        let size = expected.len();
        for (at, len) in
            [(0, 512), (65_024, 1024), (130_000, 200_000), (size - 512, 512), (512, 512)]
        {
            snapshot.write_at(at as u64, &vec![at as u8 | 1; len]).expect("within the disk");
            expected[at..at + len].fill(at as u8 | 1);
        }
        snapshot.flush().expect("nothing to do");
        assert!(!snapshot.read_only() && all(&*snapshot) == expected);
        assert!(snapshot.write_at(size as u64, &[0]).is_err());
        assert!(fs::read(&path).expect("there") == bytes);
    }
}

/// Whether the host's file system says what it has in memory: not all do.
fn host_tells(path: &Path) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    let file = fs::File::open(path).expect("there");
    let mut byte = [0];
    let mut pieces = [std::io::IoSliceMut::new(&mut byte)];
    preadv2(file, &mut pieces, 0, ReadWriteFlags::NOWAIT) != Err(Errno::OPNOTSUPP)
}

#[test]
fn what_the_host_has_in_memory_is_read_without_waiting() {
    let scratch = Scratch::new("cached");
    let raw = scratch.file("raw", &contents(5));
    let qcow2 = scratch.file("qcow2", &by_hand());
    if !host_tells(&raw) {
        eprintln!("SKIPPED: the host's file system can't read without waiting");
        return;
    }
    let mut piece = [0; 1024];
    for (path, options) in [(&raw, TO_READ), (&qcow2, TO_READ), (&raw, SNAPSHOT)] {
        let image = open(path, options).expect("sound");
        if path == &qcow2 {
            assert!(!image.read_cached(512, &mut piece), "its table has to be read");
        }
        if options.snapshot {
            image.write_at(512, &[0x77; 512]).expect("within the disk");
        }
        let mut wanted = [0; 1024];
        image.read_at(512, &mut wanted).expect("within the disk");
        assert!(image.read_cached(512, &mut piece) && piece == wanted);
        let size = image.size();
        assert!(!image.read_cached(size - 512, &mut piece), "over the end");
        assert!(!image.read_cached(u64::MAX, &mut piece));
    }
    // A cluster of zeroes, one that isn't there, and both ways into the next.
    let image = open(&qcow2, TO_READ).expect("sound");
    all(&*image);
    for offset in [2 * CLUSTER, 3 * CLUSTER, CLUSTER - 512, 2 * CLUSTER - 512] {
        assert!(image.read_cached(offset as u64, &mut piece), "{offset:#x}");
    }
}

#[test]
fn the_content_tells_the_format_unless_it_is_given() {
    let scratch = Scratch::new("format");
    let path = scratch.file("image", &by_hand());
    let raw = DiskOptions { format: Some(Format::Raw), ..TO_READ };
    assert_eq!(open(&path, raw).expect("any file is raw").size(), 5 * CLUSTER as u64);
    let path = scratch.file("image", &[0; 1024]);
    let qcow2 = DiskOptions { format: Some(Format::Qcow2), ..TO_READ };
    let error = open(&path, qcow2).err().expect("not one").to_string();
    assert!(error.ends_with("not a qcow2 image"), "{error}");
    let path = scratch.file("image", &[]);
    assert!(matches!(open(&path, TO_READ), Err(DiskError::TooSmall { bytes: 0, .. })));
}

/// QEMU with the image at `name` as a guest's disk, its monitor at our end of two pipes.
fn machine_of_qemu(name: &str, read_only: bool) -> Command {
    let read_only = if read_only { "on" } else { "off" };
    let drive = format!("file={name},format=raw,if=virtio,read-only={read_only}");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-S", "-nodefaults", "-display", "none", "-monitor", "stdio", "-drive", &drive]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Such a machine that has the image open until it is dropped.
struct Holder(Child);

impl Holder {
    /// Starts it and waits until the image is open. None, and said so, if QEMU isn't there.
    fn new(name: &str, read_only: bool) -> Option<Self> {
        let Ok(child) = machine_of_qemu(name, read_only).spawn() else {
            eprintln!("SKIPPED: qemu-system-x86_64 is not installed (apt install qemu-system-x86)");
            return None;
        };
        let mut holder = Self(child);
        // The monitor answers when the machine is complete.
        let input = holder.0.stdin.as_mut().expect("piped");
        input.write_all(b"info block\n").and_then(|()| input.flush()).expect("it listens");
        let output = holder.0.stdout.as_mut().expect("piped");
        let mut told = Vec::new();
        let mut byte = [0];
        while !told.ends_with(b"(raw") {
            output.read_exact(&mut byte).expect("QEMU opens the image and tells its format");
            told.push(byte[0]);
        }
        Some(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether QEMU takes the image. It must say that a lock keeps it out if it doesn't.
fn qemu_opens(name: &str, read_only: bool) -> bool {
    let mut child = machine_of_qemu(name, read_only).spawn().expect("it was there");
    // One that was refused may have closed its end by now.
    let _ = child.stdin.take().expect("piped").write_all(b"quit\n");
    let output = child.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || told.contains("lock"), "{told}");
    output.status.success()
}

#[test]
fn an_image_that_qemu_has_open_is_refused_and_qemu_refuses_ours() {
    let scratch = Scratch::new("locks");
    let path = scratch.file("image", &[0; 64 << 10]);
    let name = path.to_str().expect("ASCII");
    let write = DiskOptions::default();
    let Some(writer) = Holder::new(name, false) else { return };
    for options in [write, TO_READ, SNAPSHOT] {
        assert!(matches!(open(&path, options), Err(DiskError::InUse(_))), "{options:?}");
    }
    drop(writer);
    let reader = Holder::new(name, true).expect("it was there");
    assert!(matches!(open(&path, write), Err(DiskError::InUse(_))));
    drop(open(&path, TO_READ).expect("readers share"));
    drop(open(&path, SNAPSHOT).expect("readers share"));
    drop(reader);

    let ours = open(&path, write).expect("free again");
    assert!(!qemu_opens(name, false) && !qemu_opens(name, true));
    drop(ours);
    let ours = open(&path, TO_READ).expect("free");
    assert!(!qemu_opens(name, false) && qemu_opens(name, true));
    drop(ours);
    assert!(qemu_opens(name, false));
}

/// Opens and reads the image, for whatever comes of it but a panic.
fn survive(path: &Path) -> Result<(), String> {
    let image: Arc<dyn DiskImage> = open(path, TO_READ).map_err(|error| error.to_string())?;
    let mut data = vec![0; 4096];
    for at in [0, CLUSTER as u64, 2 * CLUSTER as u64, image.size().saturating_sub(4096)] {
        let len = data.len().min((image.size() - at.min(image.size())) as usize);
        let _ = image.read_at(at.min(image.size()), &mut data[..len]);
    }
    Ok(())
}

#[test]
fn damaged_headers_and_tables_are_errors_of_one_line() {
    let scratch = Scratch::new("damaged");
    let sound = by_hand();
    let places = (4..112).chain(CLUSTER..CLUSTER + 8).chain(2 * CLUSTER..2 * CLUSTER + 24);
    let mut refused = 0;
    for at in places {
        for value in [0x00, 0x01, 0x40, 0x7f, 0x80, 0xff] {
            let mut bytes = sound.clone();
            bytes[at] ^= value;
            if let Err(error) = survive(&scratch.file("x", &bytes)) {
                assert!(!error.contains('\n'), "{error}");
                refused += 1;
            }
        }
    }
    // Most fields of the header can be wrong; the tables' entries are looked at when they are used.
    assert!(refused > 100, "only {refused} were refused");
}

#[test]
fn images_cut_short_are_errors() {
    let scratch = Scratch::new("cut");
    let sound = by_hand();
    for len in [4, 71, 103, CLUSTER, CLUSTER + 7] {
        assert!(survive(&scratch.file("x", &sound[..len])).is_err(), "{len} bytes");
    }
    let image = open(&scratch.file("x", &sound[..4 * CLUSTER]), TO_READ).expect("tables are there");
    assert!(image.read_at(0, &mut [0; 512]).is_ok());
    let error = image.read_at(CLUSTER as u64, &mut [0; 512]).expect_err("not in the file");
    assert_eq!(error.to_string(), "cluster 1 is said to be at 0x40000");
}

#[test]
fn the_last_sector_of_a_disc_is_filled_up_whatever_its_format() {
    let scratch = Scratch::new("disc");
    for (sectors, size) in [(1, 2048), (4, 2048), (5, 4096), (203, 104_448)] {
        let path = scratch.0.join(format!("{sectors}.qcow2"));
        let bytes = sectors * SECTOR;
        create_qcow2(&fs::File::create_new(&path).expect("writable"), bytes, None).expect("room");
        let image = open(&path, DiskOptions::default()).expect("sound");
        image.write_at(0, &vec![7; bytes as usize]).expect("room");
        image.flush().expect("room");
        drop(image);
        let disc = open_disc(&path, None).expect("sound");
        assert_eq!((disc.size(), disc.read_only()), (size, true));
        let mut wanted = vec![7; bytes as usize];
        wanted.resize(size as usize, 0);
        let mut read = vec![0xa5; size as usize];
        disc.read_at(0, &mut read).expect("all of it");
        assert!(read == wanted, "{sectors}");
        read.fill(0xa5);
        assert!(!disc.read_cached(0, &mut read) || read == wanted, "{sectors}, in memory");
        disc.read_at(size - 1, &mut read[..1]).expect("the last byte");
        assert!(disc.read_at(size - 1, &mut [0; 2]).is_err());
        assert!(disc.write_at(0, &[0]).is_err());
    }
}
