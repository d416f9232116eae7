//! Single rules, each with the smallest state that shows it.
