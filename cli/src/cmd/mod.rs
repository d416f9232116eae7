//! What the program does, one module per command.

pub mod diff;
pub mod disasm;
pub mod fuzz;
pub mod guests;
pub mod image;
pub mod run;
mod snippet;

/// An I/O error in the words of a person.
pub fn plain(error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("{}", without_codes(&error.to_string()))
}

/// `text` without the "(os error N)" that tells nobody anything.
pub fn without_codes(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once(')').map_or("", |(_, rest)| rest));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_and_the_rest_stays() {
        assert_eq!(without_codes("a: No such file (os error 2)"), "a: No such file");
        assert_eq!(without_codes("x (os error 2): y (os error 13); z"), "x: y; z");
        assert_eq!(without_codes("plain (text)"), "plain (text)");
    }
}
