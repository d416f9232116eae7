//! Where generated host code lives.
//!
//! [`arena::Arena`] is executable memory that is never writable and executable in one mapping;
//! [`cache::Cache`] keeps translated blocks in it;
//! [`span::Span`] is memory that translated code may miss on purpose;
//! what is known of them is in long lists, `table::Table`.

pub mod arena;
pub mod cache;
pub mod span;
mod table;

pub use arena::{Arena, ArenaError};
pub use cache::Cache;
