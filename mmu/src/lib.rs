//! Guest RAM, page walks and the software TLB.
//!
//! [`ram::GuestRam`] is the guest's memory, [`code`] tells cached code when its bytes change,
//! [`walk`] reads the guest's page tables, and [`tlb::SoftMmu`] is one vCPU's view of it all: the
//! [`xenolith_cpu::env::Memory`] that the interpreter runs on. [`shadow::Shadow`] lets the host's MMU do it.

pub mod code;
#[cfg(test)]
mod oracle;
mod pages;
pub mod ram;
pub mod shadow;
pub mod tlb;
pub mod view;
pub mod walk;

pub use code::{CodeBitmap, CodeMap};
pub use ram::{DeviceMemory, GuestRam, RamError};
pub use shadow::Shadow;
pub use tlb::SoftMmu;
pub use walk::{Reserved, load_pdptes};
