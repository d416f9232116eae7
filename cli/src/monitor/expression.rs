//! Numbers as a person writes them: `0x7c00`, `$rsp+8`, `($eip-4)*2`.
//!
//! Sums and products of numbers (decimal, or hexadecimal after 0x), registers after `$` and parentheses, in 64
//! bits that wrap. Recursion is bounded by the length of a line. Pure functions.

use anyhow::{Context, Result, bail, ensure};

struct Parser<'a> {
    rest: &'a str,
    register: &'a dyn Fn(&str) -> Option<u64>,
}

/// The value of all of `text`.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn evaluate(text: &str, register: &dyn Fn(&str) -> Option<u64>) -> Result<u64> {
    let mut parser = Parser { rest: text, register };
    let value = parser.sum()?;
    match parser.rest.trim_start() {
        "" => Ok(value),
        rest => bail!("{rest:?} can't follow a number"),
    }
}

impl Parser<'_> {
    fn take(&mut self, symbol: char) -> bool {
        let rest = self.rest.trim_start().strip_prefix(symbol);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> Result<u64> {
        let mut value = self.product()?;
        loop {
            if self.take('+') {
                value = value.wrapping_add(self.product()?);
            } else if self.take('-') {
                value = value.wrapping_sub(self.product()?);
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<u64> {
        let mut value = self.value()?;
        loop {
            if self.take('*') {
                value = value.wrapping_mul(self.value()?);
            } else if self.take('/') {
                let divisor = self.value()?;
                value = value.checked_div(divisor).context("a division by zero")?;
            } else {
                return Ok(value);
            }
        }
    }

    fn value(&mut self) -> Result<u64> {
        if self.take('-') {
            return Ok(self.value()?.wrapping_neg());
        }
        if self.take('(') {
            let value = self.sum()?;
            ensure!(self.take(')'), "a ) is missing");
            return Ok(value);
        }
        let is_register = self.take('$');
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (word, rest) = text.split_at(end.unwrap_or(text.len()));
        self.rest = rest;
        ensure!(!word.is_empty(), "a number is missing");
        if is_register {
            let name = word.to_ascii_lowercase();
            return (self.register)(&name).with_context(|| format!("${word}: no such register"));
        }
        let parsed = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        parsed.ok().with_context(|| format!("{word}: not a number of at most 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_products_and_registers() {
        let register = |name: &str| (name == "rsp").then_some(0x1000);
        let value = |text: &str| evaluate(text, &register);
        let of = |text| value(text).ok();
        assert_eq!(of("0x7c00"), Some(0x7c00));
        assert_eq!(of(" $RSP + 8*2 "), Some(0x1010));
        assert_eq!(of("($rsp-(4+4))/2"), Some(0x7fc));
        assert_eq!(of("-1"), Some(u64::MAX));
        assert_eq!(of("1-2-3"), Some(4u64.wrapping_neg()));
        for bad in ["", "1 2", "(1", "1)", "$", "$rax", "0x", "1/0", "99999999999999999999", "+"] {
            let mistake = value(bad).expect_err(bad).to_string();
            assert!(!mistake.is_empty() && !mistake.contains('\n'), "{bad}: {mistake}");
        }
        assert!(value(&"(".repeat(1024)).is_err());
    }
}
