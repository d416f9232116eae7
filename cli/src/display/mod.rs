//! The guest's screen, keyboard and mouse on the host's side.
//!
//! [`vnc`] serves it to other programs, [`terminal`] paints it in the person's terminal ([`text`], [`typing`]);
//! [`keys`] knows the names, symbols and characters of keys; [`pace`] types no faster than the guest reads.

pub mod keys;
mod pace;
pub mod terminal;
mod text;
mod typing;
pub mod vnc;
