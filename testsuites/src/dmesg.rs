//! Two kernel logs of the same kernel on two machines, compared for complaints.
//!
//! Problem: Linux says in its log what it dislikes about a machine, at every level from emergency to
//! information, among hundreds of lines that differ from boot to boot. Scheme: a line is a complaint if its
//! level is warning or worse, or if it has one of [`WORDS`]; numbers are masked; what the other log has
//! too is no complaint about us. What is left must stand in a list of allowed lines, each with its reason.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};

/// Levels up to this one (warning) are complaints whatever they say.
const WARNING: u8 = 4;

/// What gives a complaint away at any level, in lower case.
const WORDS: [&str; 46] = [
    "abnormal",
    "adjusted",
    "backward",
    "bad ",
    "bios",
    "bogus",
    "broken",
    "bug",
    "can't",
    "cannot",
    "conflict",
    "could not",
    "couldn't",
    "defect",
    "doesn't",
    "erratum",
    "error",
    "fail",
    "fallback",
    "falling back",
    "illegal",
    "inconsistent",
    "invalid",
    "lockup",
    "lost",
    "mismatch",
    "missing",
    "not consistent",
    "not supported",
    "out of range",
    "overflow",
    "reject",
    "skew",
    "spurious",
    "stall",
    "stuck",
    "taint",
    "timed out",
    "too ",
    "unable",
    "unexpected",
    "unknown",
    "unstable",
    "unsupported",
    "workaround",
    "wrong",
];

/// A line of a kernel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// 0 (emergency) to 7 (debugging).
    pub level: u8,
    pub text: String,
}

impl Line {
    fn is_complaint(&self) -> bool {
        let text = self.text.to_lowercase();
        self.level <= WARNING || WORDS.iter().any(|word| text.contains(word))
    }
}

/// The lines of what `dmesg -r` prints. Anything else is skipped.
#[must_use]
pub fn parse(log: &str) -> Vec<Line> {
    log.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Line> {
    let (priority, rest) = line.trim_end().strip_prefix('<')?.split_once(">[")?;
    let text = rest.split_once(']')?.1;
    // The upper bits name the facility.
    let level = priority.parse::<u32>().ok()? & 7;
    Some(Line { level: level as u8, text: text.trim_start().to_owned() })
}

/// The text without its numbers, decimal or hexadecimal.
fn mask(text: &str) -> String {
    let mut masked = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let digits = bare.strip_prefix("0x").unwrap_or(bare);
        let is_number = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_hexdigit())
            && (bare.len() != digits.len() || digits.bytes().any(|b| b.is_ascii_digit()));
        masked.push_str(if is_number { "#" } else { bare });
        masked.push_str(&word[bare.len()..]);
    }
    masked
}

/// Lines that may be there, one each: `text | reason`, where `*` in the text stands for anything.
#[derive(Debug)]
pub struct Allowed(Vec<String>);

impl Allowed {
    /// # Errors
    /// An entry has no reason.
    pub fn parse(file: &str) -> Result<Self> {
        let lines = file.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let entry = |line: &str| {
            let (text, reason) = line.split_once(" | ").with_context(|| format!("{line:?}"))?;
            ensure!(!reason.trim().is_empty(), "{text:?} without a reason");
            Ok(text.trim().to_owned())
        };
        Ok(Self(lines.map(entry).collect::<Result<_>>()?))
    }

    fn has(&self, text: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, text))
    }
}

/// Whether `text` is as `pattern` says, from its beginning to its end.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    // split gives one part at least.
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = pattern.contains('*').then(|| parts.next_back()).flatten() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// What the kernel complains about here but not there, and that isn't allowed.
#[must_use]
pub fn complaints<'a>(here: &'a [Line], there: &[Line], allowed: &Allowed) -> Vec<&'a Line> {
    let known: HashSet<String> = there.iter().map(|line| mask(&line.text)).collect();
    here.iter()
        .filter(|line| line.is_complaint())
        .filter(|line| !known.contains(&mask(&line.text)) && !allowed.has(&line.text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "\
noise
<6>[    0.000000] Linux version 6.1
<4>[    0.100000] Something new
<6>[    0.200000] tsc: Marking TSC unstable due to check_tsc_sync_source failed
<3>[    0.300000] pci 0000:00:01.0: BAR 13 at 0xfe00 is odd
<30>[    0.400000] from user space: all well
<6>[    0.500000] x2apic: IRQ remapping doesn't support X2APIC mode
";
    const THERE: &str = "<3>[    1.300000] pci 0000:00:02.0: BAR 7 at 0xc000 is odd\n";

    #[test]
    fn complaints_are_told_from_news() {
        let allowed = Allowed::parse("# why\nx2apic: *X2APIC mode | no IOMMU\n").expect("sound");
        let (here, there) = (parse(HERE), parse(THERE));
        assert_eq!(here.len(), 6);
        assert_eq!(here[4].level, 6);
        let found: Vec<_> =
            complaints(&here, &there, &allowed).iter().map(|line| &line.text[..9]).collect();
        assert_eq!(found, ["Something", "tsc: Mark"]);
    }

    #[test]
    fn an_allowed_line_needs_a_reason() {
        assert!(Allowed::parse("text").is_err());
        assert!(Allowed::parse("text | ").is_err());
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abcd", false),
            ("*", "", true),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*b*", "abc", true),
            ("*b*d", "abc", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn numbers_are_masked_and_words_are_not() {
        assert_eq!(mask("BAR 4 [io 0xc060-0xc06f]"), "BAR # [io #-#]");
        assert_eq!(mask("added a feed, 12ms"), "added a feed, 12ms");
        assert_eq!(mask("ffff8880 e820"), "# #");
    }
}
