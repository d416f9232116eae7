//! Firmware boot: SeaBIOS starts disks as on a PC with nothing but this board under it.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use xenolith_machine::Attachment;
use xenolith_testsuites::Program;
use xenolith_testsuites::debian::{Debian, PATIENCE, QUICK};
use xenolith_testsuites::disk::{self, Partition, SECTOR, Scratch};
use xenolith_testsuites::int13::Disk;
use xenolith_testsuites::program::xenolith;

const DISK_BYTES: u64 = 160 << 20;
const TABLE: &str = "label: dos\nstart=2048, type=83, bootable\n";
const ROOT: Partition = Partition { start: 2048 * SECTOR, bytes: DISK_BYTES - 2048 * SECTOR };

const INIT: &str = "\
#!/bin/sh
export PATH=/bin PS1='disk# '
mount -t proc proc /proc
mount -t sysfs sys /sys
exec setsid -c sh -i </dev/ttyS0 >/dev/ttyS0 2>&1
";
const APPLETS: [&str; 10] =
    ["sh", "mount", "setsid", "sync", "cat", "grep", "poweroff", "reboot", "nproc", "uname"];

/// A disk with GRUB, a Debian kernel and a small root file system, which the kernel finds as `root`; GRUB
/// waits for a key.
fn grub_disk(guest: &Debian, scratch: &Scratch, root: &str) -> Result<std::path::PathBuf> {
    grub_disk_with(guest, scratch, root, INIT)
}

/// The same with another first program.
fn grub_disk_with(
    guest: &Debian,
    scratch: &Scratch,
    root: &str,
    init: &str,
) -> Result<std::path::PathBuf> {
    let tree = scratch.path().join("tree");
    disk::busybox_tree(&tree, &guest.busybox, &APPLETS, init)?;
    disk::grub_tree(&tree, guest, "serial", "Debian from the disk", &format!("root={root}"))?;
    let image = scratch.path().join("disk.img");
    disk::make(&image, DISK_BYTES, TABLE, ROOT, &tree)?;
    disk::install_grub(&image, scratch.path(), ROOT.start)?;
    Ok(image)
}

fn choose(program: &mut Program) -> Result<()> {
    // GRUB itself writes to the serial port: on the way through the firmware's screen services, cursor
    // movements come between the letters.
    program.wait_for("GNU GRUB", PATIENCE)?;
    program.wait_for("Debian from the disk", PATIENCE)?;
    program.type_line("");
    program.wait_for("disk# ", PATIENCE)?;
    Ok(())
}

#[test]
fn debian_boots_by_grub_from_a_partitioned_disk_and_again_after_a_reset() -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("bios")?;
    let image = grub_disk(&guest, &scratch, "/dev/vda1")?;
    let mut command = xenolith()?;
    command.arg("run").arg(&image).args(["-c", "2", "-m", "600M"]);
    let mut program = Program::start(command)?;
    choose(&mut program)?;

    // What the firmware has told of the machine.
    ensure!(program.command("nproc", PATIENCE)? == "2\n");
    let name = program.command("cat /sys/class/dmi/id/product_name", PATIENCE)?;
    ensure!(name == "Standard PC\n", "{name}");
    let memory = program.command("grep MemTotal /proc/meminfo", PATIENCE)?;
    let kib: u64 = memory.split_whitespace().nth(1).context("a number")?.parse()?;
    ensure!((500 << 10..600 << 10).contains(&kib), "{memory}");
    let interrupts = program.command("cat /proc/interrupts", PATIENCE)?;
    ensure!(interrupts.contains("acpi") && interrupts.contains("IO-APIC"), "{interrupts}");
    let ports = program.command("cat /proc/ioports", PATIENCE)?;
    ensure!(ports.contains("ACPI PM1a_EVT_BLK") && ports.contains("0600-0603"), "{ports}");

    program.type_line("reboot -f");
    choose(&mut program)?;
    ensure!(program.command("uname", PATIENCE)? == "Linux\n");
    program.type_line("poweroff -f");
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

/// What is typed goes to GRUB by the serial line, and then to the virtio console, where the guest has its own.
#[test]
fn debian_i386_boots_by_grub_to_the_virtio_console() -> Result<()> {
    let guest = Debian::get("debian-i386", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("bios")?;
    let init = INIT.replace("ttyS0", "hvc0");
    let image = grub_disk_with(&guest, &scratch, "/dev/vda1", &init)?;
    let mut command = xenolith()?;
    command.arg("run").arg(&image).args(["--console", "virtio"]);
    let mut program = Program::start(command)?;
    choose(&mut program)?;
    ensure!(program.command("uname -m", PATIENCE)? == "i686\n");
    program.type_line("poweroff -f");
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

/// Firmware, boot loader and kernel on a disk that has but the interface from before virtio 1.0.
#[test]
fn debian_boots_by_grub_from_an_old_virtio_disk() -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("bios")?;
    let image = grub_disk(&guest, &scratch, "/dev/vda1")?;
    let mut command = xenolith()?;
    command.arg("run").arg(&image).args(["--virtio", "legacy"]);
    let mut program = Program::start(command)?;
    choose(&mut program)?;
    let ids = program.command("cat /sys/bus/virtio/devices/virtio*/../device", PATIENCE)?;
    ensure!(ids.contains("0x1001") && !ids.contains("0x104"), "{ids}");
    let features = program.command("cat /sys/bus/virtio/devices/virtio*/features", PATIENCE)?;
    ensure!(features.lines().all(|bits| bits.as_bytes().get(32) == Some(&b'0')), "{features}");
    program.command("mount -o remount,rw / && echo kept >/kept && sync", PATIENCE)?;
    ensure!(program.command("cat /kept", PATIENCE)? == "kept\n");
    program.type_line("poweroff -f");
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

/// With what the host has in memory and, at first, hasn't.
#[test]
fn the_firmware_reads_a_disk_by_each_controller() -> Result<()> {
    let disk = Disk::new()?;
    for attachment in [Attachment::Virtio, Attachment::Ide] {
        ensure!(disk.here(attachment)?.len() == 8);
    }
    Ok(())
}

/// By IDE; what the guest writes is there at its next start.
#[test]
fn debian_boots_by_grub_from_an_ide_disk() -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("bios")?;
    let image = grub_disk(&guest, &scratch, "/dev/sda1")?;
    let mut data = image.clone().into_os_string();
    data.push(".data");
    fs::File::create(&data)?.set_len(8 << 20)?;
    // The disk that is named first is the one to boot from, whatever it is attached by.
    let start = || {
        let mut command = xenolith()?;
        command.arg("run");
        for (file, options) in [(image.as_os_str(), ",if=ide"), (&data, ",if=virtio")] {
            let mut disk = file.to_owned();
            disk.push(options);
            command.arg("--disk").arg(disk);
        }
        Program::start(command)
    };
    let mut program = start()?;
    choose(&mut program)?;
    let found = program.command("cat /sys/block/sda/device/model /sys/block/sda/size", PATIENCE)?;
    let sectors = (DISK_BYTES / SECTOR).to_string();
    ensure!(found.contains("Xenolith disk") && found.contains(&sectors), "{found}");
    let driver = program.command("grep ata_piix /proc/interrupts", PATIENCE)?;
    ensure!(driver.contains(" 14"), "{driver}");
    // DMA, and so the bus master, is what the driver chose.
    let modes = program.command("cat /sys/class/ata_device/dev1.0/dma_mode", PATIENCE)?;
    ensure!(modes.contains("DMA"), "{modes}");
    ensure!(program.command("cat /sys/block/vda/size", PATIENCE)? == "16384\n");
    program.command("mount -o remount,rw / && echo kept >/kept && sync", PATIENCE)?;
    program.kill()?;

    let mut program = start()?;
    choose(&mut program)?;
    ensure!(program.command("cat /kept", PATIENCE)? == "kept\n");
    program.type_line("poweroff -f");
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

/// A rescue disc as grub-mkrescue makes it, with Debian's kernel.
fn rescue_disc(guest: &Debian, scratch: &Scratch) -> Result<std::path::PathBuf> {
    let tree = scratch.path().join("disc");
    fs::create_dir_all(tree.join("boot/grub"))?;
    fs::copy(&guest.vmlinuz, tree.join("boot/vmlinuz"))?;
    fs::copy(&guest.initrd, tree.join("boot/initrd.img"))?;
    fs::write(tree.join("word"), "from the disc\n")?;
    let menu = format!(
        "serial\nterminal_input serial\nterminal_output serial\n\
         menuentry 'Debian from the disc' {{\n\
         linux /boot/vmlinuz console=ttyS0 {QUICK}\n\
         initrd /boot/initrd.img\n}}\n"
    );
    fs::write(tree.join("boot/grub/grub.cfg"), menu)?;
    disk::rescue_disc(&tree, scratch.path())
}

#[test]
fn debian_boots_from_a_rescue_disc() -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("bios")?;
    let disc = rescue_disc(&guest, &scratch)?;
    // The image ends inside a sector, which the drive fills up with zeroes.
    let mut bytes = fs::read(&disc)?;
    bytes.extend([0x5a; 700]);
    fs::write(&disc, &bytes)?;
    let whole = scratch.path().join("whole");
    bytes.resize(bytes.len().next_multiple_of(2048), 0);
    fs::write(&whole, &bytes)?;
    // A disk that nothing can be booted from comes first and is passed over.
    let empty = scratch.path().join("empty.img");
    fs::File::create(&empty)?.set_len(8 << 20)?;
    let mut command = xenolith()?;
    command.args(["run", "--cdrom"]).arg(&disc).arg("--disk");
    command.arg(format!("{},if=ide", empty.display()));
    let mut program = Program::start(command)?;
    program.wait_for("GNU GRUB", PATIENCE)?;
    program.wait_for("Debian from the disc", PATIENCE)?;
    program.type_line("");
    program.wait_for(&guest.prompt(), PATIENCE)?;
    program.command("mkdir -p /disc && mount -t iso9660 -o ro /dev/sr0 /disc", PATIENCE)?;
    ensure!(program.command("cat /disc/word", PATIENCE)? == "from the disc\n");
    let digest = program.command("sha256sum </dev/sr0", PATIENCE)?;
    let expected = disk::tool(&["sha256sum", &whole.display().to_string()], "")?;
    ensure!(digest.split(' ').next() == expected.split(' ').next(), "{digest} {expected}");
    program.power_off(PATIENCE)?;
    Ok(())
}

/// What a boot sector has written behind the firmware's last word. The firmware's console writes dots and line ends
/// at its ticks, which may come between.
fn between_dots(text: &str, last_word: &str) -> String {
    let behind = text.rsplit(last_word).next().unwrap_or_default();
    behind.chars().filter(|it| it.is_ascii_lowercase() || *it == ' ').collect()
}

#[test]
fn line_20_and_the_shadow_of_the_rom_are_switched_as_on_the_chip_set() -> Result<()> {
    let scratch = Scratch::new("bios")?;
    let image = disk::boot_sector("shadow.asm", 1 << 20, scratch.path())?;
    for engine in ["interp", "bt"] {
        let mut command = xenolith()?;
        command.arg("run").arg(&image).args(["--engine", engine, "--timeout", "300"]);
        let ended = Program::start(command)?.end(PATIENCE)?;
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        ensure!(ended.status.success(), "{engine}: {}: {text}{}", ended.status, ended.stderr);
        ensure!(between_dots(&text, "Booting from Hard Disk") == "abcdefg", "{engine}: {text}");
    }
    Ok(())
}

#[test]
fn the_machine_is_reset_in_all_ways_and_the_clocks_memory_lives_on() -> Result<()> {
    let scratch = Scratch::new("bios")?;
    let image = disk::boot_sector("resets.asm", 1 << 20, scratch.path())?;
    let end = |options: &[&str]| -> Result<_> {
        let mut command = xenolith()?;
        command.arg("run").arg(&image).args(["--timeout", "300"]).args(options);
        let ended = Program::start(command)?.end(PATIENCE)?;
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        let starts = text.split("Booting from Hard Disk").skip(1);
        let letters = starts.map(|text| text.trim_start_matches('.').trim().get(..1));
        Ok((ended.status.code(), letters.flatten().collect::<String>(), ended.stderr))
    };
    for engine in ["interp", "bt"] {
        let (status, letters, error) = end(&["--engine", engine])?;
        ensure!((status, letters.as_str()) == (Some(0), "abcdef"), "{status:?} {letters} {error}");
    }
    // The first is the triple fault.
    let (status, letters, error) = end(&["--no-reboot"])?;
    ensure!((status, letters.as_str()) == (Some(3), "a"), "{status:?} {letters}");
    ensure!(error.contains("triple fault"), "{error}");
    Ok(())
}

/// The whole of a floppy by the firmware's services: its geometry, reads over cylinders, a write.
#[test]
fn a_floppy_boots_and_reads_the_rest_of_itself() -> Result<()> {
    for engine in ["interp", "bt"] {
        let scratch = Scratch::new("bios")?;
        let image = disk::boot_sector("floppy.asm", 1440 << 10, scratch.path())?;
        let mut command = xenolith()?;
        command.arg("run").arg("--floppy").arg(&image);
        command.args(["--engine", engine, "--timeout", "300"]);
        let ended = Program::start(command)?.end(PATIENCE)?;
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        ensure!(
            ended.status.code() == Some(1),
            "{engine}: {}: {text}{}",
            ended.status,
            ended.stderr
        );
        let told = between_dots(&text, "Booting from Floppy");
        ensure!(told == "ab text from the second cylinder cdef", "{engine}: {text}");
        ensure!(fs::read(&image)?.ends_with(&[0xa5, 0x5a]), "{engine}: nothing was written");
    }
    Ok(())
}

/// A disk with a boot sector, text in the third one, and nothing more; `table` is a partition table's entry.
fn geometry_disk(scratch: &Scratch, bytes: u64, entry: &[u8]) -> Result<std::path::PathBuf> {
    let image = disk::boot_sector("geometry.asm", 1024, scratch.path())?;
    let file = fs::File::options().write(true).open(&image)?;
    file.write_all_at(b"third", 1024)?;
    file.write_all_at(entry, 446)?;
    file.set_len(bytes.max(1024 + 5))?;
    Ok(image)
}

/// Whoever has no other way reads a disk by cylinders, heads and sectors: they must be those by which it was
/// partitioned, and there must be some, however small it is, also if the file ends inside a sector.
#[test]
fn the_firmware_knows_small_and_large_disks_by_cylinders() -> Result<()> {
    // SeaBIOS keeps the last cylinder to itself, as BIOSes did for a test of the drive.
    //
    // From sector 63 to the end of cylinder 99 under 255 heads and 63 sectors; under 4 and 17.
    let under_255 = [0x80, 1, 1, 0, 6, 254, 63, 99, 63, 0, 0, 0, 0x25, 0x83, 0x18, 0];
    let under_4 = [0x80, 1, 1, 0, 6, 3, 17, 99, 17, 0, 0, 0, 0x7f, 0x1a, 0, 0];
    for (bytes, entry, wanted) in [
        (0, &[][..], "0001 0010 003f third"),
        (100_000, &[], "0001 0010 003f third"),
        (8 << 20, &[], "000f 0010 003f third"),
        (3 << 30, &[], "030b 0080 003f third"),
        (900 << 20, &under_255, "0071 00ff 003f third"),
        (20 << 20, &under_4, "0259 0004 0011 third"),
    ] {
        for options in [",if=virtio", ",if=ide"] {
            let scratch = Scratch::new("bios")?;
            let mut disk = geometry_disk(&scratch, bytes, entry)?.into_os_string();
            disk.push(options);
            let mut command = xenolith()?;
            command.args(["run", "--net", "none", "--timeout", "300", "--disk"]).arg(disk);
            let ended = Program::start(command)?.end(PATIENCE)?;
            let text = String::from_utf8_lossy(&ended.stdout).into_owned();
            let told: String = text
                .rsplit("Booting from Hard Disk")
                .next()
                .unwrap_or_default()
                .chars()
                .filter(|&it| it.is_ascii_alphanumeric() || it == ' ')
                .collect();
            ensure!(told == wanted, "{bytes}{options}: {told:?} in {text}");
        }
    }
    Ok(())
}

#[test]
fn firmware_without_a_disk_says_so_on_screen_and_on_its_debug_port() -> Result<()> {
    let scratch = Scratch::new("bios")?;
    let log = scratch.path().join("log");
    let mut command = xenolith()?;
    command.args(["run", "--bios", "/usr/share/seabios/bios-256k.bin", "-c", "3", "--debugcon"]);
    command.arg(&log);
    let mut program = Program::start(command)?;
    program.wait_for("No bootable device", PATIENCE)?;
    program.kill()?;
    let log = fs::read_to_string(log)?;
    for part in ["Found QEMU fw_cfg", "Found 3 cpu(s)", "ACPI: parse DSDT", "[RAM]"] {
        ensure!(log.contains(part), "{part} is not in {log}");
    }
    Ok(())
}

#[test]
fn what_is_no_firmware_is_refused_in_one_line() -> Result<()> {
    let scratch = Scratch::new("bios")?;
    let odd = scratch.path().join("odd");
    fs::write(&odd, [1; 1000])?;
    let folder = scratch.path().to_owned();
    let missing = scratch.path().join("missing");
    for (path, part) in [(odd, "64 KiB"), (folder, "directory"), (missing, "No such file")] {
        let mut command = xenolith()?;
        command.args(["run", "--bios"]).arg(&path);
        let ended = Program::start(command)?.end(PATIENCE)?;
        ensure!(ended.status.code() == Some(1), "{}: {}", path.display(), ended.status);
        ensure!(ended.stderr.lines().count() == 1, "{}", ended.stderr);
        ensure!(ended.stderr.contains("--bios") && ended.stderr.contains(part), "{}", ended.stderr);
    }
    Ok(())
}
