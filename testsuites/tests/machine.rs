//! The machine from outside, with guests of a few instructions.

use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use iced_x86::code_asm::{
    CodeAssembler, al, ax, bl, byte_ptr, dword_ptr, dx, eax, ebx, ecx, edi, esi, esp, ptr,
};
use xenolith_machine::{Config, End, Handle, Machine};
use xenolith_testsuites::Guest;
use xenolith_testsuites::multiboot::{self, TemporaryFile};

const SERIAL: u32 = 0x3f8;
const LIMIT: Duration = Duration::from_secs(120);

/// Boots code; the file lives as long as the guest may restart.
fn boot(
    change: impl FnOnce(&mut Config),
    code: impl FnOnce(&mut CodeAssembler) -> Result<()>,
) -> Result<(Guest, TemporaryFile)> {
    let file = TemporaryFile::new(&multiboot::image(code)?)?;
    let mut config = Config { memory_bytes: 64 << 20, kernel: file.0.clone(), ..Config::default() };
    change(&mut config);
    Ok((Guest::boot(config)?, file))
}

/// Writes a byte to a port.
fn out(a: &mut CodeAssembler, port: u32, value: u32) -> Result<()> {
    a.mov(dx, port)?;
    a.mov(al, value)?;
    a.out(dx, al)?;
    Ok(())
}

fn print(a: &mut CodeAssembler, text: &str) -> Result<()> {
    for byte in text.bytes() {
        out(a, SERIAL, u32::from(byte))?;
    }
    Ok(())
}

fn hang(a: &mut CodeAssembler) -> Result<()> {
    a.cli()?;
    a.hlt()?;
    Ok(())
}

#[test]
fn serial_output_is_complete_when_the_debug_port_ends_the_run() -> Result<()> {
    let (mut guest, _file) = boot(
        |_| (),
        |a| {
            print(a, "hello, world\n")?;
            out(a, 0xf4, 0x2a)?;
            hang(a)
        },
    )?;
    guest.wait_for("hello, world\n", LIMIT)?;
    assert_eq!(guest.end(LIMIT)?, End::DebugExit(0x2a));
    Ok(())
}

#[test]
fn power_goes_off_by_acpi() -> Result<()> {
    let (guest, _file) = boot(
        |_| (),
        |a| {
            a.mov(dx, 0x604)?;
            a.mov(eax, 0x2000)?;
            a.out(dx, ax)?;
            hang(a)
        },
    )?;
    assert_eq!(guest.end(LIMIT)?, End::PowerOff);
    Ok(())
}

#[test]
fn a_reset_starts_again_from_power_on() -> Result<()> {
    // RAM doesn't survive our reset, so CMOS couldn't tell either: the test counts on the console.
    let (mut guest, _file) = boot(
        |_| (),
        |a| {
            print(a, "again ")?;
            out(a, 0xcf9, 6)?;
            hang(a)
        },
    )?;
    for _ in 0..3 {
        guest.wait_for("again ", LIMIT)?;
    }
    guest.handle().quit();
    assert_eq!(guest.end(LIMIT)?, End::Quit);
    // Reset control register, and the keyboard controller's pulse on its output port's bit 0.
    for (port, value) in [(0xcf9, 6), (0x64, 0xfe)] {
        let (guest, _file) = boot(
            |config| config.no_reboot = true,
            |a| {
                out(a, port, value)?;
                hang(a)
            },
        )?;
        assert_eq!(guest.end(LIMIT)?, End::Reboot, "by port {port:#x}");
    }
    Ok(())
}

#[test]
fn the_configuration_device_tells_the_number_of_processors() -> Result<()> {
    const SELECTOR: u32 = 0x510;
    // QEMU, docs/specs/fw_cfg: FW_CFG_NB_CPUS.
    const PROCESSORS: u32 = 5;
    let (guest, _file) = boot(
        |config| config.vcpus = 3,
        |a| {
            a.mov(dx, SELECTOR)?;
            a.mov(ax, PROCESSORS)?;
            a.out(dx, ax)?;
            a.mov(dx, SELECTOR + 1)?;
            a.in_(al, dx)?;
            a.mov(dx, 0xf4)?;
            a.out(dx, al)?;
            hang(a)
        },
    )?;
    assert_eq!(guest.end(LIMIT)?, End::DebugExit(3));
    Ok(())
}

#[test]
fn a_triple_fault_shows_registers() -> Result<()> {
    let (guest, _file) = boot(
        |_| (),
        |a| {
            a.mov(ebx, 0x1234_5678)?;
            a.int(0x80)?;
            Ok(())
        },
    )?;
    let End::TripleFault { dump } = guest.end(LIMIT)? else { panic!("no triple fault") };
    assert!(dump.to_lowercase().contains("12345678"), "{dump}");
    Ok(())
}

#[test]
fn typed_bytes_reach_the_guest() -> Result<()> {
    let (mut guest, _file) = boot(
        |_| (),
        |a| {
            let mut poll = a.create_label();
            print(a, "ready\n")?;
            a.set_label(&mut poll)?;
            a.mov(dx, SERIAL + 5)?;
            a.in_(al, dx)?;
            a.test(al, 1)?;
            a.jz(poll)?;
            a.mov(dx, SERIAL)?;
            a.in_(al, dx)?;
            a.add(al, 1)?;
            a.out(dx, al)?;
            a.jmp(poll)?;
            Ok(())
        },
    )?;
    guest.wait_for("ready\n", LIMIT)?;
    guest.type_bytes(b"HAL");
    guest.wait_for("IBM", LIMIT)?;
    Ok(())
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[test]
fn a_timeout_ends_a_loop_and_an_idle_guest_uses_no_cpu() -> Result<()> {
    let limit = Duration::from_millis(500);
    let (guest, _file) = boot(
        |config| config.timeout = Some(limit),
        |a| {
            let mut forever = a.create_label();
            a.set_label(&mut forever)?;
            a.jmp(forever)?;
            Ok(())
        },
    )?;
    assert_eq!(guest.end(LIMIT)?, End::Timeout);
    let start = Instant::now();
    let (guest, _file) = boot(|config| config.timeout = Some(limit), hang)?;
    assert_eq!(guest.end(LIMIT)?, End::Timeout);
    assert!(start.elapsed() >= limit, "{:?}", start.elapsed());

    let (mut guest, _file) = boot(
        |_| (),
        |a| {
            print(a, "at rest")?;
            hang(a)
        },
    )?;
    guest.wait_for("at rest", LIMIT)?;
    // What is left to do before takes the longer the busier the computer is.
    let spell = Duration::from_millis(500);
    let spells: Vec<Duration> = (0..20)
        .map(|_| {
            let before = cpu_time();
            std::thread::sleep(spell);
            cpu_time() - before
        })
        .take_while(|&used| used > spell / 20)
        .collect();
    // Other tests of this binary may run beside it, so this only holds when it runs alone, as it does
    // under nextest.
    if std::env::var_os("NEXTEST").is_some() {
        assert!(spells.len() < 20, "{spells:?} of CPU time in {spell:?} each");
    }
    Ok(())
}

/// Sets up an interrupt table whose every entry leads to `handler`, at 2 MiB.
fn interrupts_to(
    a: &mut CodeAssembler,
    handler: impl FnOnce(&mut CodeAssembler) -> Result<()>,
) -> Result<()> {
    const TABLE: u32 = 0x20_0000;
    let mut fill = a.create_label();
    let mut over = a.create_label();
    a.mov(esp, TABLE)?;
    // The return address is the handler's.
    a.call(over)?;
    handler(a)?;
    a.set_label(&mut over)?;
    a.pop(eax)?;
    a.mov(edi, TABLE)?;
    a.mov(ecx, 256)?;
    a.set_label(&mut fill)?;
    // Offset low with selector 0x10, then flags of a 32-bit interrupt gate with offset high.
    a.mov(esi, eax)?;
    a.and(esi, 0xffff)?;
    a.or(esi, 0x10 << 16)?;
    a.mov(ptr(edi), esi)?;
    a.mov(esi, eax)?;
    a.and(esi, 0xffff_0000u32)?;
    a.or(esi, 0x8e00)?;
    a.mov(ptr(edi + 4), esi)?;
    a.add(edi, 8)?;
    a.dec(ecx)?;
    a.jnz(fill)?;
    a.push(TABLE)?;
    a.push(0x07ff_0000)?;
    a.lidt(ptr(esp + 2))?;
    a.add(esp, 8)?;
    Ok(())
}

/// Counts ten timer ticks of the PIT, then prints the time stamp counter as hex and ends.
fn ten_ticks(a: &mut CodeAssembler) -> Result<()> {
    let mut wait = a.create_label();
    let mut digit = a.create_label();
    let mut letter = a.create_label();
    interrupts_to(a, |a| {
        a.inc(ebx)?;
        a.push(eax)?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.pop(eax)?;
        a.iretd()?;
        Ok(())
    })?;
    // 8259: unmask IRQ 0 only; it is at vector 8 as firmware left it. 8254: 1 kHz, mode 2.
    out(a, 0x21, 0xfe)?;
    out(a, 0x43, 0x34)?;
    out(a, 0x40, 0xa9)?;
    out(a, 0x40, 0x04)?;
    a.xor(ebx, ebx)?;
    a.sti()?;
    a.set_label(&mut wait)?;
    a.hlt()?;
    a.cmp(ebx, 10)?;
    a.jb(wait)?;
    a.cli()?;
    a.rdtsc()?;
    a.mov(ecx, 8)?;
    a.mov(esi, eax)?;
    a.set_label(&mut digit)?;
    a.rol(esi, 4)?;
    a.mov(eax, esi)?;
    a.and(eax, 15)?;
    a.add(al, u32::from(b'0'))?;
    a.cmp(al, u32::from(b'9'))?;
    a.jbe(letter)?;
    a.add(al, 39)?;
    a.set_label(&mut letter)?;
    a.mov(dx, SERIAL)?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jnz(digit)?;
    print(a, " ticks\n")?;
    out(a, 0xf4, 0)?;
    hang(a)
}

#[test]
fn the_timer_ticks_in_host_time() -> Result<()> {
    let start = Instant::now();
    let (guest, _file) = boot(|_| (), ten_ticks)?;
    assert_eq!(guest.end(LIMIT)?, End::DebugExit(0));
    assert!(start.elapsed() >= Duration::from_millis(9), "ten ticks of a millisecond each");
    Ok(())
}

#[test]
fn counted_time_gives_the_same_run_every_time() -> Result<()> {
    let run = || -> Result<String> {
        let (mut guest, _file) = boot(|config| config.icount = true, ten_ticks)?;
        let ticks = guest.wait_for(" ticks", LIMIT)?;
        assert_eq!(guest.end(LIMIT)?, End::DebugExit(0));
        Ok(ticks)
    };
    let first = run()?;
    let ns = u64::from_str_radix(&first, 16)?;
    // The first tick may be one that waited since power-on; the others are 1193 periods of 1,193,182 Hz
    // apart. A few instructions come on top.
    assert!((8_998_000..10_010_000).contains(&ns), "{ns} ns");
    assert_eq!(run()?, first);
    Ok(())
}

#[test]
fn a_second_processor_starts_by_init_and_sipi() -> Result<()> {
    let (mut guest, _file) = boot(
        |config| config.vcpus = 2,
        |a| {
            let mut wait = a.create_label();
            // Real-mode code at 0x8000: mov al, '2'; mov dx, 0x3f8; out dx, al; mov byte [0x600], 1; hlt
            let code = [0xb0u8, b'2', 0xba, 0xf8, 0x03, 0xee, 0xc6, 0x06, 0x00, 0x06, 0x01, 0xf4];
            for (n, byte) in code.into_iter().enumerate() {
                a.mov(byte_ptr(0x8000 + n as u32), u32::from(byte))?;
            }
            a.mov(edi, 0xfee0_0000u32)?;
            a.mov(dword_ptr(edi + 0x310), 1 << 24)?;
            a.mov(dword_ptr(edi + 0x300), 0x4500)?;
            a.mov(dword_ptr(edi + 0x300), 0x4608)?;
            a.set_label(&mut wait)?;
            a.mov(bl, byte_ptr(0x600))?;
            a.cmp(bl, 1)?;
            a.jne(wait)?;
            print(a, " started\n")?;
            out(a, 0xf4, 1)?;
            hang(a)
        },
    )?;
    let before = guest.wait_for(" started", LIMIT)?;
    assert_eq!(before, "2");
    assert_eq!(guest.end(LIMIT)?, End::DebugExit(1));
    Ok(())
}

#[test]
fn endless_string_instructions_do_not_hold_up_the_timeout() -> Result<()> {
    // To RAM and holes, to the hole of the PCI bus, and to a port.
    for (start, to_port) in [(0x30_0000u32, false), (0xd000_0000, false), (0x30_0000, true)] {
        let limit = Duration::from_millis(300);
        let (guest, _file) = boot(
            |config| config.timeout = Some(limit),
            |a| {
                let mut forever = a.create_label();
                a.set_label(&mut forever)?;
                a.mov(ecx, u32::MAX)?;
                a.mov(esi, start)?;
                a.mov(edi, start)?;
                a.mov(dx, 0x80)?;
                if to_port {
                    a.rep().outsb()?;
                } else {
                    a.rep().stosb()?;
                }
                a.jmp(forever)?;
                Ok(())
            },
        )?;
        let begin = Instant::now();
        assert_eq!(guest.end(LIMIT)?, End::Timeout);
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    }
    Ok(())
}

/// A reader that never reads.
struct Stuck(mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        // The sender lives as long as the test.
        let _ = self.0.recv();
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_does_not_keep_the_user_from_leaving() -> Result<()> {
    let image = multiboot::image(|a| {
        let mut forever = a.create_label();
        a.mov(dx, SERIAL)?;
        a.set_label(&mut forever)?;
        a.out(dx, al)?;
        a.jmp(forever)?;
        Ok(())
    })?;
    let file = TemporaryFile::new(&image)?;
    let config = Config { memory_bytes: 64 << 20, kernel: file.0.clone(), ..Config::default() };
    let (_sender, receiver) = mpsc::channel();
    let machine = Machine::new(config, Box::new(Stuck(receiver)))?;
    let handle = machine.handle();
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || done.send(machine.run()));
    // Long enough to fill the buffer, so that the vCPU waits.
    std::thread::sleep(Duration::from_secs(1));
    handle.quit();
    assert_eq!(ended.recv_timeout(LIMIT)?, End::Quit);
    Ok(())
}

#[test]
fn handles_work_from_other_threads() {
    fn shareable<T: Clone + Send + Sync>() {}
    shareable::<Handle>();
}
