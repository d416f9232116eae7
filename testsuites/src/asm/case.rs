//! Case files: what they say, line by line.
//!
//! Problem: a case must read like a line of the manual and be exact. Scheme: comments of the form
//! `; word: ...` are directives, every other line is NASM code. `case:` starts a case; directives
//! before the first one are defaults for the file. `docs/testing.md` lists the directives.
//! Invariants: an unknown directive is an error; every line keeps its number, so that NASM's
//! messages and blessing point at the right place. Plain data after parsing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::layout::{self, symbol};
use super::state::{self, State};
use super::value::{self, Labels, View};

/// Processor mode of a case, but for its privilege level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Real,
    V86,
    Pm16,
    Pm32,
    Paging32,
    Pae32,
    Compat16,
    Compat32,
    Long64,
}

impl Base {
    const NAMES: [(&'static str, Self); 9] = [
        ("real", Self::Real),
        ("v86", Self::V86),
        ("pm16", Self::Pm16),
        ("pm32", Self::Pm32),
        ("paging32", Self::Paging32),
        ("pae32", Self::Pae32),
        ("compat16", Self::Compat16),
        ("compat32", Self::Compat32),
        ("long64", Self::Long64),
    ];

    #[must_use]
    pub fn code_bits(self) -> u32 {
        match self {
            Self::Real | Self::V86 | Self::Pm16 | Self::Compat16 => 16,
            Self::Long64 => 64,
            _ => 32,
        }
    }
    /// Bits of set-up code. It runs at CPL 0, in real mode for `real`.
    #[must_use]
    pub fn setup_bits(self) -> u32 {
        match self {
            Self::Real => 16,
            Self::Long64 | Self::Compat16 | Self::Compat32 => 64,
            _ => 32,
        }
    }
    /// Linear address of the code segment's offset 0, and the offset where code is.
    #[must_use]
    pub fn code(self) -> (u64, u64) {
        if self.code_bits() == 16 { (symbol("CODE16"), 0) } else { (0, symbol("CODE")) }
    }
    /// The same for set-up code.
    #[must_use]
    pub fn setup(self) -> (u64, u64) {
        match self {
            Self::Real => (symbol("CODE16"), symbol("SETUP16")),
            _ => (0, symbol("SETUP")),
        }
    }
}

/// Processor mode of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub base: Base,
    pub cpl: u8,
    pub iopl: u8,
}

impl Mode {
    fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let name = words.next().context("a mode is missing")?;
        let base = Base::NAMES.iter().find(|(known, _)| *known == name);
        let base = base.with_context(|| format!("no mode {name}"))?.1;
        let mut mode = Self { base, cpl: if base == Base::V86 { 3 } else { 0 }, iopl: 0 };
        for word in words {
            match word.split_once('=') {
                Some(("cpl", level)) => mode.cpl = level.parse()?,
                Some(("iopl", level)) => mode.iopl = level.parse()?,
                _ => bail!("{word} is neither cpl= nor iopl="),
            }
        }
        ensure!(mode.cpl <= 3 && mode.iopl <= 3, "levels are 0 to 3");
        let levels: &[u8] = match base {
            Base::Real => &[0],
            Base::V86 => &[3],
            Base::Pm32 | Base::Paging32 | Base::Pae32 => &[0, 1, 2, 3],
            _ => &[0, 3],
        };
        ensure!(levels.contains(&mode.cpl), "no cpl={} in mode {name}", mode.cpl);
        Ok(mode)
    }

    /// RFLAGS that a case starts with when it says nothing.
    #[must_use]
    pub fn base_flags(self) -> u64 {
        let user = self.cpl == 3 && self.base != Base::V86;
        2 | u64::from(user) << 9
            | u64::from(self.iopl) << 12
            | u64::from(self.base == Base::V86) << 17
    }

    /// ES, CS, SS, DS, FS, GS.
    fn segments(self) -> [u64; 6] {
        let named = |names: [&str; 4]| {
            let [es, cs, ss, ds] = names.map(symbol);
            [es, cs, ss, ds, 0, 0]
        };
        match (self.base, self.cpl) {
            (Base::Real | Base::V86, _) => {
                let [es, cs, ss, ds] =
                    ["EXTRA16", "CODE16", "STACK16", "DATA16"].map(|name| symbol(name) >> 4);
                [es, cs, ss, ds, ds, ds]
            }
            (Base::Pm16 | Base::Compat16, 3) => {
                named(["UEXTRA16_SEL", "UCODE16_SEL", "USTACK16_SEL", "UDATA16_SEL"])
            }
            (Base::Pm16 | Base::Compat16, _) => {
                named(["EXTRA16_SEL", "CODE16_SEL", "STACK16_SEL", "DATA16_SEL"])
            }
            (Base::Long64, 3) => [0, symbol("UCODE64"), symbol("UDATA"), 0, 0, 0],
            (Base::Long64, _) => [0, symbol("KCODE64"), symbol("KDATA"), 0, 0, 0],
            (_, 3) => named(["UDATA", "UCODE32", "UDATA", "UDATA"]),
            (_, 2) => named(["DATA_DPL2_SEL", "CODE_DPL2_SEL", "DATA_DPL2_SEL", "DATA_DPL2_SEL"]),
            (_, 1) => named(["DATA_DPL1_SEL", "CODE_DPL1_SEL", "DATA_DPL1_SEL", "DATA_DPL1_SEL"]),
            (_, _) => named(["KDATA", "KCODE32", "KDATA", "KDATA"]),
        }
    }

    /// Number for the harness's record.
    #[must_use]
    pub fn harness_mode(self) -> u32 {
        match self.base {
            Base::Real => 0,
            Base::V86 => 1,
            Base::Pm16 | Base::Pm32 => 2,
            Base::Paging32 => 3,
            Base::Pae32 => 4,
            Base::Compat16 | Base::Compat32 | Base::Long64 => 5,
        }
    }
}

/// Makers of processors, where their processors differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    Intel,
    Amd,
}

impl Maker {
    pub const ALL: [Self; 2] = [Self::Intel, Self::Amd];

    fn parse(text: &str) -> Result<Self> {
        match text {
            "intel" => Ok(Self::Intel),
            "amd" => Ok(Self::Amd),
            _ => bail!("no vendor {text}"),
        }
    }

    /// As CPUID says it.
    #[must_use]
    pub fn vendor(self) -> &'static str {
        match self {
            Self::Intel => "GenuineIntel",
            Self::Amd => "AuthenticAMD",
        }
    }
}

/// A register that a case may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Bytes of the block: general registers, RIP, selectors, control words.
    Field {
        offset: usize,
        len: usize,
    },
    Flags,
    /// ST(n), relative to the top of stack after the case (before it, for inputs).
    St(usize),
    Mm(usize),
    Xmm(usize),
    Ymm(usize),
}

impl Register {
    /// # Errors
    /// No such register.
    pub fn by_name(name: &str) -> Result<Self> {
        let field = |offset, len| Ok(Self::Field { offset, len });
        if let Some(n) = state::GPR_64.iter().position(|known| *known == name) {
            return field(8 * n, 8);
        }
        if let Some(n) = state::GPR_32.iter().position(|known| *known == name) {
            return field(8 * n, 4);
        }
        if let Some(n) = state::SEGMENT_NAMES.iter().position(|known| *known == name) {
            return field(state::SEGMENTS + 4 * n, 4);
        }
        let digits = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let class = &name[..name.len() - digits.len()];
        match (class, digits) {
            ("rip", "") => return field(state::RIP, 8),
            ("flags", "") => return Ok(Self::Flags),
            ("fcw", "") => return field(state::FCW, 2),
            ("fsw", "") => return field(state::FSW, 2),
            ("ftw", "") => return field(state::FTW, 1),
            ("mxcsr", "") => return field(state::MXCSR, 4),
            ("cr", "2") => return field(state::CR2, 8),
            ("dr", "6") => return field(state::DR6, 4),
            _ => {}
        }
        let n: usize = digits.parse().with_context(|| format!("no register {name}"))?;
        match class {
            "st" if n < 8 => Ok(Self::St(n)),
            "mm" if n < 8 => Ok(Self::Mm(n)),
            "xmm" if n < 16 => Ok(Self::Xmm(n)),
            "ymm" if n < 16 => Ok(Self::Ymm(n)),
            _ => bail!("no register {name}"),
        }
    }
}

/// `register=value`, evaluated once labels are known.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub register: Register,
    pub text: String,
}

/// `address = bytes`.
#[derive(Clone, Debug)]
pub struct MemoryText {
    pub address: String,
    pub bytes: Vec<u8>,
}

/// `fault: #GP(0x18) at .label cr2=...`.
#[derive(Clone, Debug)]
pub struct Fault {
    pub vector: u8,
    pub error: u32,
    /// Where RIP points: a label, or `end`.
    pub at: String,
}

/// Names of vectors, and whether they have an error code.
pub const VECTORS: [(&str, u8, bool); 16] = [
    ("#DE", 0, false),
    ("#DB", 1, false),
    ("#BP", 3, false),
    ("#OF", 4, false),
    ("#BR", 5, false),
    ("#UD", 6, false),
    ("#NM", 7, false),
    ("#DF", 8, true),
    ("#TS", 10, true),
    ("#NP", 11, true),
    ("#SS", 12, true),
    ("#GP", 13, true),
    ("#PF", 14, true),
    ("#MF", 16, false),
    ("#AC", 17, true),
    ("#XM", 19, false),
];

impl Fault {
    fn parse(text: &str) -> Result<Self> {
        let (what, at) = text.split_once(" at ").context("a fault needs ` at LABEL`")?;
        let what = what.trim();
        let at = at.trim().to_owned();
        if let Some(number) = what.strip_prefix("int ") {
            let vector = value::evaluate(number, &Labels::new())? as u8;
            return Ok(Self { vector, error: 0, at });
        }
        let (name, error) = match what.split_once('(') {
            Some((name, code)) => {
                let code = code.strip_suffix(')').context("a ) is missing")?;
                (name, value::evaluate(code, &Labels::new())? as u32)
            }
            None => (what, 0),
        };
        let known = VECTORS.iter().find(|(known, ..)| *known == name);
        let &(_, vector, has_error) = known.with_context(|| format!("no exception {name}"))?;
        ensure!(has_error == what.contains('('), "{name}: wrong about the error code");
        Ok(Self { vector, error, at })
    }
}

/// One initial state, one piece of code, one expectation.
#[derive(Clone, Debug)]
pub struct Case {
    /// `map/file/case`.
    pub name: String,
    pub path: PathBuf,
    /// Line of `case:`, from 0.
    pub first_line: usize,
    /// Line after the last one of the case.
    pub end_line: usize,
    pub mode: Mode,
    pub needs: Vec<String>,
    /// Whose processors do as the case says, where the others differ.
    pub maker: Option<Maker>,
    /// Why the host CPU is not asked, where its mode would allow it.
    pub not_on_host: Option<String>,
    /// Why QEMU isn't asked at all: it would hang or die.
    pub not_on_qemu: Option<String>,
    /// Why QEMU's answer is not compared.
    pub qemu_differs: Option<String>,
    pub watch: Vec<(String, u64)>,
    pub inputs: Vec<Assignment>,
    pub input_memory: Vec<MemoryText>,
    /// Line numbers from 0 and text.
    pub setup: Vec<(usize, String)>,
    pub code: Vec<(usize, String)>,
    pub undefined_flags: u64,
    pub undefined: Vec<Register>,
    pub undefined_memory: Vec<(String, u64)>,
    pub outputs: Vec<Assignment>,
    pub output_memory: Vec<MemoryText>,
    pub fault: Option<Fault>,
    /// Lines of the results, which blessing replaces.
    pub result_lines: Vec<usize>,
    /// Element type of the first typed vector input.
    pub view: View,
}

impl Case {
    /// Whether the bare host CPU can run it: user-mode code without set-up.
    #[must_use]
    pub fn runs_on_host(&self) -> bool {
        !matches!(self.mode.base, Base::Real | Base::V86)
            && self.mode.cpl == 3
            && self.mode.iopl == 0
            && self.setup.is_empty()
            && self.watch.is_empty()
            && self.not_on_host.is_none()
    }

    /// Whether a processor of this maker does as the case says.
    #[must_use]
    pub fn holds_for(&self, maker: Maker) -> bool {
        self.maker.is_none_or(|of| of == maker)
    }

    /// Whether it starts in a segment of the LDT or names one.
    #[must_use]
    pub fn uses_ldt(&self) -> bool {
        let mut selectors = layout::symbols()
            .iter()
            .filter(|(name, value)| name.ends_with("_SEL") && *value & 7 == 7);
        self.mode.base.code_bits() == 16 || selectors.any(|(name, _)| self.mentions(name))
    }

    /// Whether it runs in the 16-bit segments or names one.
    #[must_use]
    pub fn uses_low_segments(&self) -> bool {
        let names = ["CODE16", "DATA16", "EXTRA16", "STACK16"];
        self.mode.base.code_bits() == 16 || names.into_iter().any(|name| self.mentions(name))
    }

    fn mentions(&self, name: &str) -> bool {
        let code = self.code.iter().map(|(_, line)| line);
        let inputs = self.inputs.iter().map(|input| &input.text);
        let memory = self.input_memory.iter().map(|memory| &memory.address);
        code.chain(inputs).chain(memory).any(|text| text.contains(name))
    }

    /// The register block before the case.
    ///
    /// # Errors
    /// A value that can't be evaluated.
    pub fn initial_state(&self, labels: &Labels) -> Result<State> {
        let mut state = State::new();
        let bits = self.mode.base.code_bits();
        state.set(state::RIP, 8, self.mode.base.code().1);
        state.set(state::RFLAGS, 8, self.mode.base_flags());
        let stack = if bits == 16 { "STACK16_SP" } else { "STACK_MID" };
        state.set(32, 8, symbol(stack));
        for (n, selector) in self.mode.segments().into_iter().enumerate() {
            state.set(state::SEGMENTS + 4 * n, 4, selector);
        }
        let depth = |register: Register| match register {
            Register::St(n) => n + 1,
            _ => 0,
        };
        let stacked = self.inputs.iter().map(|input| depth(input.register)).max().unwrap_or(0);
        if stacked > 0 {
            state.set(state::FSW, 2, ((8 - stacked as u64) & 7) << 11);
        }
        for input in &self.inputs {
            assign(&mut state, input, self.mode.base_flags(), labels)?;
            if let Register::St(n) | Register::Mm(n) = input.register {
                let physical = (state.top() + n) % 8;
                let tags = state.get(state::FTW, 1) | 1 << physical;
                state.set(state::FTW, 1, tags);
            }
        }
        Ok(state)
    }
}

/// Carries out one assignment.
///
/// # Errors
/// A value that can't be evaluated.
pub fn assign(state: &mut State, what: &Assignment, base: u64, labels: &Labels) -> Result<()> {
    let text = what.text.as_str();
    match what.register {
        Register::Field { offset, len } => {
            let mut value = value::evaluate(text, labels)?;
            if offset < state::RIP && len == 4 {
                // EAX and the like: the upper half is zero.
                state.set(offset, 8, 0);
                value &= 0xffff_ffff;
            }
            ensure!(len == 8 || value >> (8 * len) == 0, "{text} is too large");
            state.set(offset, len, value);
        }
        Register::Flags => state.set(state::RFLAGS, 8, value::flags(text, base)?),
        Register::St(n) => {
            state.bytes[state::ST + 16 * n..][..10].copy_from_slice(&value::x87(text)?);
        }
        Register::Mm(n) => {
            let slot = &mut state.bytes[state::ST + 16 * n..][..10];
            slot[..8].copy_from_slice(&value::vector(text, 8)?.0);
            slot[8..].copy_from_slice(&[0xff, 0xff]);
        }
        Register::Xmm(n) => {
            let bytes = value::vector(text, 16)?.0;
            state.bytes[state::XMM + 16 * n..][..16].copy_from_slice(&bytes);
        }
        Register::Ymm(n) => {
            let bytes = value::vector(text, 32)?.0;
            state.bytes[state::XMM + 16 * n..][..16].copy_from_slice(&bytes[..16]);
            state.bytes[state::YMMH + 16 * n..][..16].copy_from_slice(&bytes[16..]);
        }
    }
    Ok(())
}

/// A file of cases.
#[derive(Clone, Debug)]
pub struct CaseFile {
    pub path: PathBuf,
    pub lines: Vec<String>,
    pub cases: Vec<Case>,
}

/// Which lines the parser is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Setup,
}

impl CaseFile {
    /// `name`: the path below the corpus, without extension.
    ///
    /// # Errors
    /// A line that is not understood, with its number.
    pub fn parse(path: &Path, name: &str, text: &str) -> Result<Self> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut defaults = blank(path, name);
        let mut has_mode = false;
        let mut cases: Vec<Case> = Vec::new();
        let mut part = Part::Code;
        for (number, line) in lines.iter().enumerate() {
            let at = || format!("{}:{}", path.display(), number + 1);
            let trimmed = line.trim();
            let Some(comment) = trimmed.strip_prefix(';') else {
                if !trimmed.is_empty() {
                    let case = cases
                        .last_mut()
                        .with_context(|| format!("{}: code before the first case", at()))?;
                    let body = if part == Part::Setup { &mut case.setup } else { &mut case.code };
                    body.push((number, line.clone()));
                    case.end_line = number + 1;
                }
                continue;
            };
            let Some((word, rest)) = directive(comment) else { continue };
            if word == "case" {
                ensure!(has_mode, "{}: no `; mode:` yet", at());
                part = Part::Code;
                let mut case = defaults.clone();
                case.name = format!("{name}/{rest}");
                case.first_line = number;
                case.end_line = number + 1;
                ensure!(
                    !rest.is_empty() && !rest.contains(char::is_whitespace),
                    "{}: a case is named by one word",
                    at()
                );
                ensure!(
                    cases.iter().all(|other| other.name != case.name),
                    "{}: {} twice",
                    at(),
                    case.name
                );
                cases.push(case);
                continue;
            }
            let case = cases.last_mut().unwrap_or(&mut defaults);
            match word {
                "setup" => part = Part::Setup,
                "code" => part = Part::Code,
                _ => case.directive(word, rest, number).with_context(at)?,
            }
            case.end_line = number + 1;
            has_mode |= word == "mode";
        }
        for case in &cases {
            ensure!(!case.code.is_empty(), "{}: no code", case.name);
        }
        Ok(Self { path: path.to_path_buf(), lines, cases })
    }
}

fn blank(path: &Path, name: &str) -> Case {
    Case {
        name: name.to_owned(),
        path: path.to_path_buf(),
        first_line: 0,
        end_line: 0,
        mode: Mode { base: Base::Long64, cpl: 3, iopl: 0 },
        needs: Vec::new(),
        maker: None,
        not_on_host: None,
        not_on_qemu: None,
        qemu_differs: None,
        watch: Vec::new(),
        inputs: Vec::new(),
        input_memory: Vec::new(),
        setup: Vec::new(),
        code: Vec::new(),
        undefined_flags: 0,
        undefined: Vec::new(),
        undefined_memory: Vec::new(),
        outputs: Vec::new(),
        output_memory: Vec::new(),
        fault: None,
        result_lines: Vec::new(),
        view: View::Hex,
    }
}

/// `word: rest` of a comment, where the word is lower case without spaces.
fn directive(comment: &str) -> Option<(&str, &str)> {
    let (word, rest) = comment.trim().split_once(':')?;
    let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    plain.then_some((word, rest.trim()))
}

fn split_assignment(word: &str) -> Result<Assignment> {
    let (register, text) = word.split_once('=').with_context(|| format!("{word} has no ="))?;
    Ok(Assignment { register: Register::by_name(register)?, text: text.to_owned() })
}

fn memory_text(text: &str) -> Result<MemoryText> {
    let (address, bytes) = text.split_once('=').context("a memory line needs =")?;
    let bytes = bytes.trim();
    let bytes = if let Some((_, list)) = bytes.split_once(':') {
        // As long as its elements are: find the length that they fill.
        let elements = list.split(',').count();
        let len = [1, 2, 4, 8].into_iter().map(|unit| unit * elements);
        let found = len.into_iter().find_map(|len| value::vector(bytes, len).ok());
        found.with_context(|| format!("not a list: {bytes}"))?.0
    } else {
        bytes
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .with_context(|| format!("not hexadecimal bytes: {bytes}"))?
    };
    Ok(MemoryText { address: address.trim().to_owned(), bytes })
}

/// `ADDRESS LENGTH`.
fn range(text: &str) -> Result<(String, u64)> {
    let (address, len) = text.rsplit_once(' ').context("needs ADDRESS LENGTH")?;
    Ok((address.trim().to_owned(), value::evaluate(len, &Labels::new())?))
}

impl Case {
    fn directive(&mut self, word: &str, rest: &str, line: usize) -> Result<()> {
        match word {
            "mode" => self.mode = Mode::parse(rest)?,
            "needs" => self.needs = rest.split_whitespace().map(str::to_owned).collect(),
            "vendor" => self.maker = Some(Maker::parse(rest)?),
            "host" => {
                let reason = rest.strip_prefix("no, ").context("only `host: no, REASON`")?;
                self.not_on_host = Some(reason.to_owned());
            }
            "qemu" => {
                let reason = rest.strip_prefix("no, ").context("only `qemu: no, REASON`")?;
                self.not_on_qemu = Some(reason.to_owned());
            }
            "qemu-differs" => {
                ensure!(!rest.is_empty(), "needs a reason");
                self.qemu_differs = Some(rest.to_owned());
            }
            "watch" => self.watch.push(range(rest)?),
            "in" => {
                for word in rest.split_whitespace() {
                    let input = split_assignment(word)?;
                    self.note_view(&input);
                    self.inputs.push(input);
                }
            }
            "in-mem" => self.input_memory.push(memory_text(rest)?),
            "undef" => {
                for word in rest.split_whitespace() {
                    match word.strip_prefix("flags=") {
                        Some(names) => self.undefined_flags |= value::flags(names, 0)?,
                        None => self.undefined.push(Register::by_name(word)?),
                    }
                }
            }
            "undef-mem" => self.undefined_memory.push(range(rest)?),
            "out" => {
                for word in rest.split_whitespace().filter(|word| *word != "unchanged") {
                    self.outputs.push(split_assignment(word)?);
                }
                self.result_lines.push(line);
            }
            "out-mem" => {
                self.output_memory.push(memory_text(rest)?);
                self.result_lines.push(line);
            }
            "fault" => {
                self.fault = Some(Fault::parse(rest)?);
                self.result_lines.push(line);
            }
            _ => bail!("no directive {word}"),
        }
        Ok(())
    }

    fn note_view(&mut self, input: &Assignment) {
        let len = match input.register {
            Register::Xmm(_) => 16,
            Register::Ymm(_) => 32,
            Register::Mm(_) => 8,
            _ => return,
        };
        if let Ok((_, view)) = value::vector(&input.text, len)
            && self.view == View::Hex
        {
            self.view = view;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "; Prose: with a colon.
; mode: pm32 cpl=3
; undef: flags=AF

; case: one
; in: eax=-1 st1=2.0 flags=CF
; setup:
        nop
; code:
.here:  ud2
; fault: #GP(0x18) at .here

; case: two
        nop
";

    fn parse(text: &str) -> Result<CaseFile> {
        CaseFile::parse(Path::new("x.asm"), "map/x", text)
    }

    #[test]
    fn a_file_reads_as_documented() {
        let file = parse(FILE).expect("this is the documented form");
        let [one, two] = &file.cases[..] else { panic!("two cases: {:?}", file.cases.len()) };
        assert_eq!((one.name.as_str(), two.name.as_str()), ("map/x/one", "map/x/two"));
        assert_eq!((one.undefined_flags, two.undefined_flags), (0x10, 0x10));
        assert_eq!((one.setup.len(), one.code.len(), two.setup.len()), (1, 1, 0));
        let fault = one.fault.as_ref().expect("the case has one");
        assert_eq!((fault.vector, fault.error, fault.at.as_str()), (13, 0x18, ".here"));
        assert!(!one.runs_on_host() && two.runs_on_host());
        let state = one.initial_state(&Labels::new()).expect("no labels are used");
        assert_eq!(state.gpr(0), 0xffff_ffff);
        assert_eq!(state.u64_at(state::RFLAGS), 0x203);
        assert_eq!((state.top(), state.get(state::FTW, 1)), (6, 0x80));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (wrong, said) in [
            ("; mode: pm64\n", "no mode pm64"),
            ("; mode: pm32\n; case: a\n; inn: eax=1\n nop\n", "no directive inn"),
            ("; mode: pm32\n; case: a\n; in: eex=1\n nop\n", "no register eex"),
            ("; mode: pm32\n; case: a\n; fault: #GP at .x\n nop\n", "error code"),
            ("; mode: pm32\n; case: a\n nop\n; case: a\n nop\n", "twice"),
            ("; mode: pm32\n; case: a\n", "no code"),
            (" nop\n", "before the first case"),
        ] {
            let error = parse(wrong).expect_err("each has a mistake");
            assert!(format!("{error:#}").contains(said), "{wrong}: {error:#}");
        }
    }
}
