//! What the program does, one module per command.

pub mod guests;
pub mod run;

/// An I/O error in the words of a person, without "(os error N)".
pub fn plain(error: &std::io::Error) -> anyhow::Error {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    anyhow::anyhow!("{}", &text[..end])
}
