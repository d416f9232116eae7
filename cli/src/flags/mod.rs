//! The command line: what may be written, with the help that explains it.
//!
//! One file per family of options; each flag's help text stands beside it. clap parses; [`parse`] makes
//! its refusals as short as all our other messages and gives them status 1, since 2 means something
//! else here.

mod boot;
mod console;
mod diff;
mod disasm;
mod fuzz;
mod image;
mod limits;
mod machine;
mod net;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

pub use boot::{BootFlags, no_option, parse_disk};
pub use console::{ConsoleFlags, ConsolePort, Display, Screenshot, Serial};
pub use diff::DiffArgs;
pub use disasm::DisasmArgs;
pub use fuzz::{FuzzArgs, FuzzEngine};
pub use image::{ConvertArgs, CreateArgs, ImageAction, ImageArgs, InfoArgs};
pub use limits::LimitFlags;
pub use machine::MachineFlags;
pub use net::NetFlags;

use crate::{status, terminal};

const EXAMPLES: &str = "\
Examples:
  xenolith run debian                     fetch Debian's kernel once, boot it to a shell
  xenolith run debian --disk disk.img     the same with a raw image as /dev/vda
  xenolith run --kernel bzImage --initrd initrd.img --append console=ttyS0 -m 1G
  xenolith guests                         what can be fetched by name, what is cached
  xenolith run --help                     all options, keys and exit statuses";

/// Runs whole x86 machines as an ordinary program: no KVM, no kernel module, no privileges.
#[derive(Debug, Parser)]
#[command(name = "xenolith", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(propagate_version = true, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Log what Xenolith itself does, on standard error: error, warn, info, debug or trace, also by
    /// part as in "warn,xenolith_devices=debug"
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "XENOLITH_LOG",
        hide_env_values = true
    )]
    #[arg(help_heading = "Help and debugging")]
    pub log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest and give it this terminal as its serial console
    Run(Box<RunArgs>),
    /// List the guests that `run` knows by name, where each comes from and whether it is cached
    Guests(GuestsArgs),
    /// Make, look at and convert disk images
    Image(ImageArgs),
    /// Run a guest in two engines in lockstep and show the first difference
    Diff(DiffArgs),
    /// Show what the translator makes of guest code: both sides beside each other
    Disasm(DisasmArgs),
    /// Run random instructions in engines and on this processor, and keep what differs
    Fuzz(FuzzArgs),
}

const RUN_HELP: &str = "\
Examples:
  xenolith run debian
  xenolith run debian -m 1G -c 2 --append 'quiet'
  xenolith run debian --disk disk.img --append 'root=/dev/vda1'
  xenolith run disk.img --net user,hostfwd=tcp:127.0.0.1:2222-:22
  xenolith run debian-i386 --timeout 600 </dev/null >boot.log
  xenolith run disk.img --disk data.img
  xenolith run disk.img --display vnc
  xenolith run --cdrom install.iso --disk new.img,if=ide
  xenolith run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
  xenolith run --kernel kernel.elf --serial file:out.txt --no-reboot

Keys, while the guest has the terminal (its serial line, or by --display terminal its screen):
  Ctrl-A X       quit (the power cord: the guest is not asked)
  Ctrl-A C       the monitor, and back: registers, memory, screen, keys, buttons (help lists all)
  Ctrl-A A       send one Ctrl-A to the guest
  Ctrl-A H       show these keys
  All other keys go to the guest, Ctrl-C and Ctrl-Z too.

Exit status:
  0              the guest switched the power off, or reset under --no-reboot, or Ctrl-A X
  1              wrong usage or configuration; one line on standard error says what
  2              a defect of Xenolith
  3              triple fault, without firmware or under --no-reboot (else it resets the machine, as on a PC);
                 the registers are on standard error
  124            --timeout passed
  (V<<1)|1       the guest wrote V to the debug-exit port 0xf4

Standard output carries the guest's serial bytes and nothing else (but its screen by
--display terminal).";

#[derive(Args, Debug)]
#[command(after_help = RUN_HELP, max_term_width = 100)]
#[command(
    override_usage = "xenolith run <GUEST|IMAGE> [OPTIONS]\n       xenolith run --kernel FILE [OPTIONS]"
)]
pub struct RunArgs {
    #[command(flatten)]
    pub boot: BootFlags,
    #[command(flatten)]
    pub machine: MachineFlags,
    #[command(flatten)]
    pub net: NetFlags,
    #[command(flatten)]
    pub console: ConsoleFlags,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub cache: CacheFlags,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  xenolith guests\n\nA guest is fetched by its first `xenolith run NAME`."
)]
pub struct GuestsArgs {
    #[command(flatten)]
    pub cache: CacheFlags,
}

/// Where fetched guests are kept.
#[derive(Args, Debug)]
pub struct CacheFlags {
    /// Folder for fetched guests [default: $XDG_CACHE_HOME/xenolith, else ~/.cache/xenolith]
    #[arg(long = "cache", value_name = "FOLDER", env = "XENOLITH_CACHE", hide_env_values = true)]
    #[arg(help_heading = "Named guests")]
    pub folder: Option<std::path::PathBuf>,
}

/// Why there is nothing to run: a mistake, or help that was asked for.
#[derive(Debug)]
pub enum Refusal {
    /// Text that was asked for (help, version): standard output, status 0.
    Text(clap::Error),
    /// One line about a mistake: standard error, status 1.
    Mistake(String),
}

impl Refusal {
    /// Prints it where it belongs and gives the exit status.
    pub fn tell(self) -> ExitCode {
        match self {
            Self::Text(help) => {
                // A reader that went away (`| head`) is no failure.
                let _ = help.print();
                ExitCode::from(status::DONE)
            }
            Self::Mistake(line) => {
                terminal::say(&line);
                ExitCode::from(status::WRONG)
            }
        }
    }
}

/// Parses a command line, program name first.
///
/// # Errors
/// A mistake in one line, or help to print.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Refusal> {
    let args: Vec<OsString> = args.into_iter().collect();
    let boots = args.get(1).is_none_or(|command| command != "image");
    Cli::try_parse_from(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refusal::Text(error),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            if boots =>
        {
            Refusal::Mistake(
                "no command given; try 'xenolith run debian', or 'xenolith --help'".to_owned(),
            )
        }
        // Only one thing is required to run: something to boot.
        ErrorKind::MissingRequiredArgument if boots => Refusal::Mistake(
            "nothing to boot: give a guest's name, as in 'xenolith run debian', a disk image, or \
             --kernel FILE"
                .to_owned(),
        ),
        _ => Refusal::Mistake(one_line(&error.render().to_string())),
    })
}

/// clap's message without its label, usage and layout. Its first paragraph says what is wrong; a `tip:`
/// line further down says what was probably meant.
fn one_line(message: &str) -> String {
    let mut lines = message.lines().map(str::trim);
    let mut text = lines.by_ref().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    for line in lines {
        // A tip on how to pass a misspelt flag as a value helps nobody here.
        if let Some(tip) = line.strip_prefix("tip: ")
            && !tip.contains("as a value")
        {
            text.push_str("; ");
            text.push_str(tip);
            break;
        }
    }
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse_line(line: &str) -> Result<Cli, Refusal> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_line() {
        let lines = [
            "xenolith",
            "xenolith fly",
            "xenolith run",
            "xenolith run --kernal x",
            "xenolith run debian --kernel x",
            "xenolith run --initrd x",
            "xenolith run debian --initrd x",
            "xenolith run debian --frobnicate",
            "xenolith run debian -m",
            "xenolith run debian -m lots",
            "xenolith run debian -m 99999999999999999999",
            "xenolith run debian -c many",
            "xenolith run debian -c -1",
            "xenolith run debian --engine jit",
            "xenolith run debian --serial telnet",
            "xenolith run debian --net tap",
            "xenolith run debian --net user,hostfwd=tcp:2222",
            "xenolith run disk.img --screenshot soon",
            "xenolith run disk.img --display gtk",
            "xenolith run disk.img --display vnc=nowhere",
            "xenolith run debian --timeout soon",
            "xenolith run debian --timeout -1",
            "xenolith run debian --timeout nan",
            "xenolith run debian --timeout 1e300",
            "xenolith run debian another",
            "xenolith image",
            "xenolith image create x",
            "xenolith image convert x",
        ];
        for line in lines {
            match parse_line(line) {
                Err(Refusal::Mistake(text)) => {
                    assert!(!text.contains('\n'), "{line}: {text}");
                    assert!(!text.starts_with("error"), "{line}: {text}");
                    assert!(text.len() < 250, "{line}: {text}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_misspelt_flag_is_told_the_right_one() {
        let Err(Refusal::Mistake(text)) = parse_line("xenolith run --kernal x") else {
            panic!("refused");
        };
        assert!(text.contains("'--kernal'") && text.contains("'--kernel'"), "{text}");
        let Err(Refusal::Mistake(text)) = parse_line("xenolith run debian --frob") else {
            panic!("refused");
        };
        assert!(text.contains("'--frob'") && !text.contains("-- --frob"), "{text}");
    }

    #[test]
    fn help_is_text_and_complete() {
        let Err(Refusal::Text(help)) = parse_line("xenolith run --help") else {
            panic!("help");
        };
        let help = help.render().to_string();
        for word in [
            "--kernel",
            "--bios",
            "--debugcon",
            "--initrd",
            "--append",
            "-m",
            "-c",
            "--serial",
            "--serial2",
            "--net",
            "hostfwd=",
            "--display",
            "--screenshot",
            "--vga-rom",
            "--engine",
            "--timeout",
            "--no-reboot",
            "--disk",
            "--cdrom",
            "--floppy",
            "--cpu",
            "--icount",
            "Ctrl-A X",
            "Ctrl-A C",
            "124",
            "0xf4",
        ] {
            assert!(help.contains(word), "{word} is not in the help");
        }
    }
}
