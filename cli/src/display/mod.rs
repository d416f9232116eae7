//! The guest's screen, keyboard and mouse on the host's side.
//!
//! [`keys`] knows the names, symbols and characters of keys.

pub mod keys;
