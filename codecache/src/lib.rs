//! Where generated host code lives.
//!
//! [`arena::Arena`] is executable memory that is never writable and executable in one mapping;
//! [`cache::Cache`] keeps translated blocks in it;
//! [`span::Span`] is memory that translated code may miss on purpose.

pub mod arena;
pub mod cache;
pub mod span;

pub use arena::{Arena, ArenaError};
pub use cache::Cache;
