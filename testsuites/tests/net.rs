//! The network as guests have it: an address, a file from a server of this computer, a way in; and a program
//! that firmware loads over it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use xenolith_testsuites::Program;
use xenolith_testsuites::asm::assemble::nasm;
use xenolith_testsuites::debian::{Debian, PATIENCE};
use xenolith_testsuites::disk::{Scratch, tool};
use xenolith_testsuites::program::xenolith;

/// The folder of Debian's package ipxe-qemu.
const IPXE: &str = "/usr/lib/ipxe/qemu";
const FILE_BYTES: u32 = 3 << 20;

/// A port of this computer that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn content() -> Vec<u8> {
    (0..FILE_BYTES).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A web server of one file for one client; gives what it was asked.
fn web_server() -> Result<(u16, JoinHandle<Result<String>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let serve = move || {
        let (mut stream, _) = listener.accept()?;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        let body = content();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(&body)?;
        Ok(String::from_utf8(request)?)
    };
    Ok((port, thread::spawn(serve)))
}

/// `legacy`: virtio's driver for devices from before virtio 1.0.
fn a_guest_uses_the_network(
    name: &'static str,
    model: &str,
    driver: &str,
    legacy: bool,
) -> Result<()> {
    let guest = Debian::with_module(name, "e1000", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("net")?;
    let dump = scratch.path().join("dump.pcap");
    let append = if legacy { "virtio_pci.force_legacy=1" } else { "" };
    let boot = |way_in| {
        let mut command = guest.run_elf(append)?;
        command.arg("--net").arg(format!(
            "user,model={model},hostfwd=tcp:127.0.0.1:{way_in}-:7777,mac=52:54:00:ab:cd:ef,dump={}",
            dump.display()
        ));
        guest.boot(command)
    };
    let mut way_in = free_port()?;
    let mut booted = boot(way_in);
    // Another program may be faster to take the port.
    while booted.as_ref().is_err_and(|error| format!("{error:#}").contains("in use")) {
        way_in = free_port()?;
        booted = boot(way_in);
    }
    let mut program = booted?;
    let used = program.command("readlink /sys/class/net/eth0/device/driver", PATIENCE)?;
    ensure!(used.trim().ends_with(driver), "{used}");
    if model == "virtio" {
        // Bit 32 of the features: VIRTIO_F_VERSION_1.
        let bit = program.command("cut -c 33 /sys/class/net/eth0/device/features", PATIENCE)?;
        ensure!(bit.trim() == if legacy { "0" } else { "1" }, "{bit}");
    }

    let told = program.command("udhcpc -n -q -t 20 2>&1", PATIENCE)?;
    ensure!(told.contains("10.0.2.15"), "{told}");
    let address = program.command("ip addr show eth0", PATIENCE)?;
    ensure!(address.contains("inet 10.0.2.15/24"), "{address}");
    ensure!(address.contains("link/ether 52:54:00:ab:cd:ef"), "{address}");
    let route = program.command("ip route", PATIENCE)?;
    ensure!(route.contains("default via 10.0.2.2"), "{route}");
    ensure!(program.command("cat /etc/resolv.conf", PATIENCE)? == "nameserver 10.0.2.3\n");
    program.command("ping -c 2 -w 60 10.0.2.2", PATIENCE)?;

    // Out: a file from this computer, whole.
    let (port, server) = web_server()?;
    let line =
        format!("wget -q -O /tmp/file http://10.0.2.2:{port}/some/file; sha256sum /tmp/file");
    let began = Instant::now();
    let digest = program.command(&line, PATIENCE)?;
    println!("{name}, {model}: {FILE_BYTES} bytes fetched in {:?}", began.elapsed());
    let request = server.join().ok().context("the server panicked")??;
    ensure!(request.starts_with("GET /some/file HTTP/1"), "{request}");
    let expected = scratch.path().join("expected");
    fs::write(&expected, content())?;
    let expected = tool(&["sha256sum", &expected.display().to_string()], "")?;
    ensure!(digest.split(' ').next() == expected.split(' ').next(), "{digest} {expected}");
    let refused = program.command("wget -q -O - http://10.0.2.2:1/ 2>&1; true", PATIENCE)?;
    ensure!(refused.contains("refused"), "{refused}");

    // In, by the forward: each side says something, and hears the other's end.
    program.command(
        "(echo the guest speaking | nc -l -p 7777 >/tmp/heard; touch /tmp/over) & true",
        PATIENCE,
    )?;
    program.command("until netstat -ltn | grep -q 7777; do sleep 1; done", PATIENCE)?;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, way_in))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"the host speaking\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    ensure!(heard == "the guest speaking\n", "{heard}");
    program.command("until [ -e /tmp/over ]; do sleep 1; done", PATIENCE)?;
    ensure!(program.command("cat /tmp/heard", PATIENCE)? == "the host speaking\n");

    // A driver that comes again finds the card as new.
    program.command(&format!("rmmod {driver} && modprobe {driver}"), PATIENCE)?;
    let told = program.command("udhcpc -n -q -t 20 2>&1", PATIENCE)?;
    ensure!(told.contains("10.0.2.15"), "{told}");

    program.power_off(PATIENCE)?;
    let dump = fs::read(dump)?;
    ensure!(dump.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]) && dump.len() > FILE_BYTES as usize);
    Ok(())
}

#[test]
fn debian_uses_the_network_by_virtio() -> Result<()> {
    a_guest_uses_the_network("debian", "virtio", "virtio_net", false)
}

#[test]
fn debian_uses_the_network_by_the_interface_of_old_drivers() -> Result<()> {
    a_guest_uses_the_network("debian", "virtio", "virtio_net", true)
}

#[test]
fn debian_uses_the_network_by_e1000() -> Result<()> {
    a_guest_uses_the_network("debian", "e1000", "e1000", false)
}

#[test]
fn debian_i386_uses_the_network_by_e1000() -> Result<()> {
    a_guest_uses_the_network("debian-i386", "e1000", "e1000", false)
}

#[test]
fn without_a_network_there_is_no_card() -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let mut command = guest.run_elf("")?;
    command.args(["--net", "none"]);
    let mut program = guest.boot(command)?;
    let cards = program.command("ls /sys/class/net", PATIENCE)?;
    ensure!(cards.trim() == "lo", "{cards}");
    program.kill().map(drop)
}

#[test]
fn a_taken_port_is_told_in_one_line() -> Result<()> {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = taken.local_addr()?.port();
    let mut command = xenolith()?;
    command.args(["run", "--bios", "/usr/share/seabios/bios-256k.bin", "--net"]);
    command.arg(format!("user,hostfwd=tcp:127.0.0.1:{port}-:22"));
    let ended = Program::start(command)?.end(PATIENCE)?;
    ensure!(ended.status.code() == Some(1), "{}", ended.status);
    ensure!(ended.stderr.lines().count() == 1, "{}", ended.stderr);
    for part in ["--net", &port.to_string(), "in use"] {
        ensure!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    Ok(())
}

#[test]
fn firmware_loads_a_program_over_the_network() -> Result<()> {
    if !Path::new(IPXE).is_dir() {
        bail!("{IPXE} is not there: install Debian's package ipxe-qemu");
    }
    let scratch = Scratch::new("netboot")?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/netboot.asm");
    nasm(&source, &scratch.path().join("program"))?;
    for (engine, model, virtio) in [
        ("bt", "e1000", "modern"),
        ("interp", "e1000", "modern"),
        ("bt", "virtio", "transitional"),
        ("bt", "virtio", "modern"),
        ("bt", "virtio", "legacy"),
    ] {
        let mut command = xenolith()?;
        command.args(["run", "--bios", "/usr/share/seabios/bios-256k.bin", "--engine", engine]);
        command.args(["--virtio", virtio, "--net"]);
        let folder = scratch.path().display();
        command.arg(format!("user,model={model},tftp={folder},bootfile=program"));
        let engine = format!("{engine}, {model}, {virtio}");
        let ended = Program::start(command)?.end(PATIENCE)?;
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        // The program's own status, 20, as the debug-exit port passes it on.
        ensure!(
            ended.status.code() == Some(41),
            "{engine}: {}: {text}{}",
            ended.status,
            ended.stderr
        );
        ensure!(text.contains("10.0.2.15"), "{engine}: no address: {text}");
        ensure!(text.contains("loaded over the network"), "{engine}: {text}");
    }
    Ok(())
}
