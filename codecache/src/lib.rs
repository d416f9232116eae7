//! Where generated host code lives.
//!
//! [`arena::Arena`] is executable memory that is never writable and executable in one mapping.

pub mod arena;

pub use arena::{Arena, ArenaError};
