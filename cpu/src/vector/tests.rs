//! Every allowed instruction against the host itself: see [`native`] for how the host is asked and
//! [`generate`] for how cases are made.

mod amd;
mod directed;
pub(crate) mod generate;
pub(crate) mod native;
mod random;
