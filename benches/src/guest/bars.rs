//! What must be reached, as the translator's issue names it.
//!
//! Ratios are "times as fast as TCG" and "times as slow as native".

/// A row's bar, by its group.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// At least so many times faster than TCG.
    pub tcg_min: f64,
    /// At most so many times slower than native.
    pub native_max: Option<f64>,
}

pub const BOOT: f64 = 4.0;
/// Geometric means, of compute and of system work.
pub const COMPUTE_MEAN: f64 = 5.0;
pub const SYSTEM_MEAN: f64 = 4.0;
/// Vectors, floating point, x87: each.
const FLOAT: f64 = 15.0;
const REGISTER_NATIVE: f64 = 1.2;

pub const IDLE_SHARE_MAX: f64 = 0.02;
pub const MEMORY_BEYOND_MAX: u64 = 150 << 20;
/// Over a boot, by the translator's own count.
pub const INTERPRETED_SHARE_MAX: f64 = 0.001;
pub const NS_AN_INSTRUCTION_MAX: f64 = 400.0;

pub fn of(group: &str) -> Bar {
    match group {
        "boot" => Bar { tcg_min: BOOT, native_max: None },
        "float" => Bar { tcg_min: FLOAT, native_max: None },
        "register" => Bar { tcg_min: FLOAT, native_max: Some(REGISTER_NATIVE) },
        _ => Bar { tcg_min: 1.0, native_max: None },
    }
}

/// Whether a group is compute work.
pub fn is_compute(group: &str) -> bool {
    !matches!(group, "boot" | "boot-guest" | "system")
}
