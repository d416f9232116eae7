//! The binary translator: guest bytes to host code.

pub mod area;
pub mod classify;
pub mod emit;
pub mod guess;
mod hoist;
pub mod host;
pub mod listing;
pub mod mode;
pub mod plan;
