//! interp
pub mod width;
