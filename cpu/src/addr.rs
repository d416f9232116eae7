//! Address types: which side of which translation a number belongs to.
//!
//! Problem: a 64-bit integer may be a guest physical, guest linear or host address, and mixing them
//! up is the commonest bug of a hypervisor. Scheme: one newtype each, no implicit conversion.
//! Invariant: a `Gva` is a *linear* address (segment base already added). Any thread.

use std::fmt;

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `offset` bytes further on, wrapping at 2^64.
            #[allow(
                clippy::should_implement_trait,
                reason = "an operator would hide that the sum wraps"
            )]
            #[must_use]
            #[inline(always)]
            pub fn add(self, offset: u64) -> Self {
                Self(self.0.wrapping_add(offset))
            }

            /// Offset of the address in its 4 KiB page.
            #[must_use]
            #[inline(always)]
            pub fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// First address of the 4 KiB page.
            #[must_use]
            #[inline(always)]
            pub fn page_base(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// Guest physical address.
    Gpa
);
address!(
    /// Guest virtual (linear) address.
    Gva
);

impl Gpa {
    /// Guest physical page number.
    #[must_use]
    #[inline(always)]
    pub fn gpn(self) -> u64 {
        self.0 >> 12
    }
}
