//! The `xenolith` program: reads the command line, lends the terminal to the guest's serial line, and
//! turns the way a machine ends into an exit status.
//!
//! Scheme: `flags` says what a person may write, `cmd` does it. Standard output carries the guest's
//! serial bytes and nothing else (but for the commands whose very purpose is to print); whatever we
//! have to say goes to standard error, one line each. Every way out restores the terminal: a return
//! from `main`, a panic in any thread, a deadly signal.

mod cmd;
mod display;
mod flags;
mod guests;
mod keys;
mod monitor;
mod screenshot;
mod signals;
mod status;
mod terminal;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    terminal::restore_on_panic();
    let cli = match flags::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(refusal) => return refusal.tell(),
    };
    start_logging(cli.log.as_deref());
    let status = match cli.command {
        flags::Command::Run(args) => cmd::run::run(&args),
        flags::Command::Diff(args) => cmd::diff::run(&args),
        flags::Command::Fuzz(args) => cmd::fuzz::run(&args),
        flags::Command::Disasm(args) => cmd::disasm::run(&args),
        flags::Command::Image(args) => cmd::image::run(&args),
        flags::Command::Guests(args) => cmd::guests::run(&args),
    };
    terminal::restore();
    match status {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // `{:#}` puts the causes behind the error on the same line.
            terminal::say(&cmd::without_codes(&format!("{error:#}")));
            ExitCode::from(status::WRONG)
        }
    }
}

/// Our own log, for debugging Xenolith: on standard error, only errors unless asked for more.
fn start_logging(filter: Option<&str>) {
    let filter = filter.map_or_else(|| EnvFilter::new("error"), EnvFilter::new);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(terminal::LogWriter::default)
        .init();
}
