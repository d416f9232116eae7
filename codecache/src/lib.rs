//! Where generated host code lives.
//!
//! [`arena::Arena`] is executable memory that is never writable and executable in one mapping;
//! [`cache::Cache`] keeps translated blocks in it.

pub mod arena;
pub mod cache;

pub use arena::{Arena, ArenaError};
pub use cache::Cache;
