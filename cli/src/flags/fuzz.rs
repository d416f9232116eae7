//! `xenolith fuzz`: what to make up, and how long.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::machine::MmuFlag;

const FUZZ_HELP: &str = "\
Examples:
  xenolith fuzz --insns                                 a minute of random instructions
  xenolith fuzz --insns --seed 7 --seconds 600
  xenolith fuzz --insns --engine bt                     the translator only
  xenolith fuzz --insns --engine qemu                   is QEMU right?
  xenolith fuzz --insns --seed 7 --first 1234 --snippets 1    one of them again

Exit status:
  0              no difference
  1              wrong usage or configuration; one line on standard error says what
  4              a difference; standard output says which, files in --out are cases for testsuites/asm";

#[derive(Args, Debug)]
#[command(after_help = FUZZ_HELP, max_term_width = 100)]
pub struct FuzzArgs {
    /// Random sequences of instructions, in all engines and on the processor that this program runs on
    #[arg(long)]
    pub insns: bool,

    /// Where random numbers begin: the same seed makes the same snippets
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,

    /// How long to go on [default: 60, or as long as --snippets takes]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,

    /// End after so many snippets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub snippets: Option<u64>,

    /// Number of the first snippet
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub first: u64,

    /// Whom to compare; may be given more than once [default: interp and bt; qemu is ten times slower]
    #[arg(long = "engine", value_name = "ENGINE", value_enum)]
    pub engines: Vec<FuzzEngine>,

    /// How the translator finds memory: auto tests its look-ups, shadow its windows
    #[arg(long, value_name = "KIND", value_enum, default_value_t = MmuFlag::Auto)]
    pub mmu: MmuFlag,

    /// Let the translator do without the host's BMI2
    #[arg(long)]
    pub no_bmi2: bool,

    /// Don't ask this processor: the first engine is the reference
    #[arg(long)]
    pub no_host: bool,

    /// Processor of the engines, as for `run`
    #[arg(long, value_name = "MODEL[,+F][,-F]", default_value = "host")]
    pub cpu: String,

    /// Folder for failing snippets
    #[arg(long, value_name = "FOLDER", default_value = "xenolith-fuzz")]
    pub out: PathBuf,

    /// End after so many different findings
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub findings: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FuzzEngine {
    Interp,
    Bt,
    Qemu,
}
