//! What the monitor can do: one table, and a method for each row.
//!
//! A row has the command's name, what may follow and a line of help; the help is made of the table, so that it
//! can't lack one. The input thread.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xenolith_devices::legacy::i8042::Buttons;
use xenolith_machine::inspect::{Held, Space};

use super::Monitor;
use super::expression::evaluate;
use super::memory::{self, Format};
use crate::display::keys;
use crate::screenshot::write_png;

/// How long `sendkey` keeps keys down, and for how long at most: the monitor waits for it.
const KEY_TIME: Duration = Duration::from_millis(100);
const KEY_TIME_MAX: Duration = Duration::from_secs(10);

const NO_BALLOON: &str = "the machine has no balloon; --balloon gives it one";

/// What followed the command's name comes with it.
type Run = fn(&mut Monitor, &str) -> Result<String>;

/// A command's name, other names, what may follow, help, and what it does.
struct Command {
    names: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    run: Run,
}

const fn row(
    names: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    run: Run,
) -> Command {
    Command { names, arguments, help, run }
}

const COMMANDS: &[Command] = &[
    row(&["help", "?"], "", "this list", Monitor::help),
    row(&["info"], "WHAT", "what there is to be seen; info alone lists it", Monitor::info),
    row(&["x"], "/FMT ADDRESS", "memory at a virtual address: x /10i $pc, x/4xg $rsp", Monitor::x),
    row(&["xp"], "/FMT ADDRESS", "memory at a physical address", Monitor::xp),
    row(&["print", "p"], "/FMT NUMBER", "a number: p $rsp+8", Monitor::print),
    row(&["gva2gpa"], "ADDRESS", "the physical address of a virtual one", Monitor::gva2gpa),
    row(&["cpu"], "N", "the processor that the other commands mean", Monitor::set_cpu),
    row(&["screendump", "screenshot"], "FILE", "the screen as a PNG file", Monitor::screendump),
    row(
        &["sendkey"],
        "KEYS [MS]",
        "keys by QEMU's names: sendkey ctrl-alt-delete",
        Monitor::sendkey,
    ),
    row(&["mouse_move"], "DX DY [DZ]", "moves the mouse", Monitor::mouse_move),
    row(
        &["mouse_button"],
        "BITS",
        "buttons that are down: 1 left, 2 right, 4 middle",
        Monitor::mouse_button,
    ),
    row(&["nmi"], "", "the NMI button: one to each processor", Monitor::nmi),
    row(
        &["system_powerdown"],
        "",
        "the power button: asks the guest to switch off",
        Monitor::power,
    ),
    row(&["system_reset"], "", "the reset button", Monitor::reset),
    row(&["balloon"], "MIB", "asks the guest to do with so much of its memory", Monitor::balloon),
    row(&["stop", "s"], "", "holds the machine; its time stands still", Monitor::stop),
    row(&["cont", "c"], "", "lets it go on", Monitor::cont),
    row(&["quit", "q"], "", "ends the run (the power cord)", Monitor::quit),
];

type Look = fn(&Monitor, &Held, &str) -> Result<String>;

/// What `info` shows of a machine at rest.
const INFO: &[(&str, &str, Look)] = &[
    ("registers", "a processor's registers; -a: all processors'", Monitor::registers),
    ("cpus", "the processors and where they are", |_, held, _| Ok(held.processors())),
    ("pic", "the 8259A pair", |_, held, _| Ok(held.pic())),
    ("ioapic", "the I/O APIC", |_, held, _| Ok(held.io_apic())),
    ("lapic", "a processor's local APIC; a number picks another", Monitor::local_apic),
    ("mtree", "what is where in memory and ports", |_, held, _| Ok(held.memory_map())),
];

/// A command's name and what follows it, which may begin at once with a slash: `x/4xb`.
fn name_and_rest(line: &str) -> (&str, &str) {
    let line = line.trim();
    let end = line.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    (name, rest.trim())
}

/// The format behind a slash, and what follows it.
fn format_and_rest(words: &str) -> Result<(Format, &str)> {
    let Some(rest) = words.strip_prefix('/') else { return Ok((Format::parse("")?, words)) };
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    Ok((Format::parse(&rest[..end])?, rest[end..].trim()))
}

/// Buttons by QEMU's bits.
fn buttons(bits: u64) -> Buttons {
    let pairs = [(1, Buttons::LEFT), (2, Buttons::RIGHT), (4, Buttons::MIDDLE)];
    pairs.into_iter().filter(|&(bit, _)| bits & bit != 0).map(|(_, button)| button).collect()
}

impl Monitor {
    /// Carries a line out: its answer, in whole lines.
    ///
    /// # Errors
    /// A mistake, in one line.
    pub(super) fn execute(&mut self, line: &str) -> Result<String, String> {
        let (name, words) = name_and_rest(line);
        if name.is_empty() {
            return Ok(String::new());
        }
        let Some(command) = COMMANDS.iter().find(|command| command.names.contains(&name)) else {
            return Err(format!("{name}: no such command; help lists them"));
        };
        if command.arguments.is_empty() && !words.is_empty() {
            return Err(format!("{name} takes nothing behind it"));
        }
        (command.run)(self, words).map_err(|error| format!("{name}: {error:#}"))
    }

    fn hold(&self) -> Result<Held> {
        let held = self.inspector.hold()?;
        ensure!(self.cpu < held.vcpus(), "there is no processor {}", self.cpu);
        Ok(held)
    }

    fn number(&self, held: &Held, text: &str) -> Result<u64> {
        evaluate(text, &|name| held.register(self.cpu, name))
    }

    fn help(&mut self, _: &str) -> Result<String> {
        let lines = COMMANDS.iter().map(|command| {
            let name = format!("{} {}", command.names.join("|"), command.arguments);
            format!("{name:<32} {}\n", command.help)
        });
        Ok(lines.collect())
    }

    fn info(&mut self, words: &str) -> Result<String> {
        let (what, more) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
        match what {
            "" => {
                let mut rows: Vec<_> = INFO.iter().map(|&(name, help, _)| (name, help)).collect();
                rows.push(("balloon", "the memory that the balloon leaves to the guest"));
                rows.push(("block", "the disks"));
                rows.push(("status", "whether the machine runs"));
                Ok(rows.iter().map(|(name, help)| format!("info {name:<27} {help}\n")).collect())
            }
            "balloon" => self.show_balloon(),
            "block" => Ok(self.inspector.disks()),
            "status" => {
                Ok(if self.stopped.is_some() { "paused\n" } else { "running\n" }.to_owned())
            }
            _ => {
                let Some((_, _, look)) = INFO.iter().find(|(name, _, _)| *name == what) else {
                    bail!("there is no {what:?}; info alone lists what there is");
                };
                look(self, &self.hold()?, more.trim())
            }
        }
    }

    fn registers(&self, held: &Held, more: &str) -> Result<String> {
        let cpus = match more {
            "" => self.cpu..self.cpu + 1,
            "-a" => 0..held.vcpus(),
            _ => bail!("only -a may follow"),
        };
        Ok(cpus.map(|cpu| format!("CPU#{cpu}\n{}", held.registers(cpu))).collect())
    }

    fn local_apic(&self, held: &Held, more: &str) -> Result<String> {
        let cpu = if more.is_empty() { self.cpu } else { more.parse().context("a number")? };
        ensure!(cpu < held.vcpus(), "there is no processor {cpu}");
        Ok(held.local_apic(cpu))
    }

    fn memory(&mut self, words: &str, space: Space) -> Result<String> {
        let (format, address) = format_and_rest(words)?;
        ensure!(!address.is_empty(), "an address must follow");
        let held = self.hold()?;
        let address = self.number(&held, address)?;
        Ok(memory::dump(&held, self.cpu, space, format, address))
    }

    fn x(&mut self, words: &str) -> Result<String> {
        self.memory(words, Space::Linear)
    }

    fn xp(&mut self, words: &str) -> Result<String> {
        self.memory(words, Space::Physical)
    }

    fn print(&mut self, words: &str) -> Result<String> {
        let (mut format, number) = format_and_rest(words)?;
        ensure!(
            format.count == 1 && !matches!(format.kind, 'i' | 's'),
            "a number has no such format"
        );
        format.size = 8;
        let value = self.number(&self.hold()?, number)?;
        Ok(match format.kind {
            // Without zeros in front.
            'x' => format!("{value:#x}\n"),
            _ => format!("{}\n", format.show(value).trim()),
        })
    }

    fn gva2gpa(&mut self, words: &str) -> Result<String> {
        let held = self.hold()?;
        let linear = self.number(&held, words)?;
        let physical = held.translate(self.cpu, linear);
        physical.map_or_else(|| Ok("unmapped\n".to_owned()), |gpa| Ok(format!("gpa: {gpa:#x}\n")))
    }

    fn set_cpu(&mut self, words: &str) -> Result<String> {
        let cpu = words.parse::<usize>().context("a number must follow")?;
        ensure!(cpu < self.inspector.hold()?.vcpus(), "there is no processor {cpu}");
        self.cpu = cpu;
        Ok(String::new())
    }

    fn screendump(&mut self, words: &str) -> Result<String> {
        ensure!(!words.is_empty(), "a file's name must follow");
        let picture = self.screen.picture().context("the machine has no screen")?;
        let write = |path: &Path| write_png(File::create(path)?, &picture);
        write(Path::new(words))
            .map_err(|error| crate::cmd::plain(&error))
            .with_context(|| words.to_owned())?;
        Ok(String::new())
    }

    fn sendkey(&mut self, words: &str) -> Result<String> {
        let (names, time) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
        let time = match time.trim() {
            "" => KEY_TIME,
            text => Duration::from_millis(text.parse().context("milliseconds")?),
        };
        ensure!(time <= KEY_TIME_MAX, "at most {} ms", KEY_TIME_MAX.as_millis());
        let keys = keys::combination(names)?;
        let mut taken = true;
        for &key in &keys {
            taken &= self.screen.key(key, true);
        }
        thread::sleep(time);
        for &key in keys.iter().rev() {
            taken &= self.screen.key(key, false);
        }
        ensure!(taken, "the guest does not take keys now");
        Ok(String::new())
    }

    fn mouse_move(&mut self, words: &str) -> Result<String> {
        let numbers = words.split_whitespace().map(str::parse).collect::<Result<Vec<i32>, _>>();
        let numbers = numbers.context("numbers must follow")?;
        let (dx, dy, dz) = match numbers[..] {
            [dx, dy] => (dx, dy, 0),
            [dx, dy, dz] => (dx, dy, dz),
            _ => bail!("two or three numbers must follow"),
        };
        self.screen.mouse(dx, dy, dz, self.buttons);
        Ok(String::new())
    }

    fn mouse_button(&mut self, words: &str) -> Result<String> {
        self.buttons = buttons(words.parse().context("a number must follow")?);
        self.screen.mouse(0, 0, 0, self.buttons);
        Ok(String::new())
    }

    fn nmi(&mut self, _: &str) -> Result<String> {
        self.inspector.press_nmi_button()?;
        Ok(String::new())
    }

    fn power(&mut self, _: &str) -> Result<String> {
        let heard = self.inspector.press_power_button()?;
        Ok(if heard { "" } else { "the guest has not asked to be told of the power button\n" }
            .to_owned())
    }

    fn reset(&mut self, _: &str) -> Result<String> {
        self.inspector.press_reset_button()?;
        Ok(String::new())
    }

    fn balloon(&mut self, words: &str) -> Result<String> {
        let mib = words.parse::<u64>().context("a number of MiB must follow")?;
        ensure!(mib > 0, "a guest can't do without memory");
        ensure!(self.inspector.set_memory_target(mib.saturating_mul(1 << 20))?, NO_BALLOON);
        Ok(String::new())
    }

    fn show_balloon(&self) -> Result<String> {
        let balloon = self.inspector.balloon()?.context(NO_BALLOON)?;
        let mut text = format!("balloon: actual={}\n", balloon.memory_bytes >> 20);
        for (name, value) in balloon.statistics {
            text.push_str(&format!("{name}: {value}\n"));
        }
        Ok(text)
    }

    fn stop(&mut self, _: &str) -> Result<String> {
        if self.stopped.is_none() {
            self.stopped = Some(self.inspector.stop()?);
        }
        Ok(String::new())
    }

    fn cont(&mut self, _: &str) -> Result<String> {
        self.stopped = None;
        Ok(String::new())
    }

    fn quit(&mut self, _: &str) -> Result<String> {
        self.handle.quit();
        Ok(String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_what_follows() {
        assert_eq!(name_and_rest(" x/4xb  $rsp + 8 "), ("x", "/4xb  $rsp + 8"));
        assert_eq!(name_and_rest("info registers -a"), ("info", "registers -a"));
        assert_eq!(name_and_rest("screendump /tmp/a b"), ("screendump", "/tmp/a b"));
        assert_eq!(name_and_rest(""), ("", ""));
        let (format, rest) = format_and_rest("/4xb  $rsp + 8").expect("sound");
        assert_eq!((format.count, format.size, rest), (4, 1, "$rsp + 8"));
        assert_eq!(format_and_rest("0").expect("sound").1, "0");
        assert!(format_and_rest("/4z 0").is_err());
    }

    #[test]
    fn each_name_is_given_once() {
        let mut names: Vec<_> = COMMANDS.iter().flat_map(|command| command.names).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
