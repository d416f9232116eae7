//! Exceptions: vectors, error codes, and how the interpreter carries them.
//!
//! Guest misbehaviour travels as [`Trap::Exception`] from the instruction that caused it to the
//! delivery code; it is never a Rust panic. Invariant: when a handler returns a fault, the
//! architectural state is as before the instruction, but for what the SDM lets it change (CR2 is set
//! when a page fault is raised). Source: SDM vol. 3, "Interrupt and Exception Handling".

/// Exception vectors (SDM vol. 3, "Exception and Interrupt Vectors").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    FloatingPoint = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    SimdFloatingPoint = 19,
}

impl Vector {
    /// Whether delivery pushes an error code.
    #[must_use]
    pub fn has_error_code(self) -> bool {
        use Vector as V;
        matches!(
            self,
            V::DoubleFault
                | V::InvalidTss
                | V::SegmentNotPresent
                | V::StackFault
                | V::GeneralProtection
                | V::PageFault
                | V::AlignmentCheck
        )
    }
}

/// An exception on its way to delivery. For a page fault CR2 has been set already; for #DB, DR6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    pub vector: Vector,
    /// Zero where the vector has none.
    pub error_code: u32,
}

/// Why a handler did not complete normally.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// Deliver this with RIP at the start of the instruction.
    Exception(Exception),
    /// The instruction completed, and the run loop must look at `CpuState::activity` or its exit.
    Exit,
}

macro_rules! constructors {
    ($($name:ident => $vector:ident),* $(,)?) => {
        impl Trap {
            $(
                #[doc = concat!("#", stringify!($vector), " without error code, or with code 0.")]
                #[must_use]
                pub const fn $name() -> Self {
                    Self::Exception(Exception { vector: Vector::$vector, error_code: 0 })
                }
            )*
        }
    };
}
constructors! {
    de => DivideError, db => Debug, br => BoundRange, ud => InvalidOpcode,
    nm => DeviceNotAvailable, mf => FloatingPoint, xm => SimdFloatingPoint, ac => AlignmentCheck,
    gp0 => GeneralProtection, ss0 => StackFault,
}

impl Trap {
    /// An exception with an error code (a selector with its low two bits cleared, or a
    /// page-fault code).
    #[must_use]
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Self::Exception(Exception { vector, error_code })
    }
    /// #GP(selector).
    #[must_use]
    pub const fn gp(selector: u16) -> Self {
        Self::with_code(Vector::GeneralProtection, (selector & 0xfffc) as u32)
    }
    /// #NP(selector).
    #[must_use]
    pub const fn np(selector: u16) -> Self {
        Self::with_code(Vector::SegmentNotPresent, (selector & 0xfffc) as u32)
    }
    /// #SS(selector).
    #[must_use]
    pub const fn ss(selector: u16) -> Self {
        Self::with_code(Vector::StackFault, (selector & 0xfffc) as u32)
    }
    /// #TS(selector).
    #[must_use]
    pub const fn ts(selector: u16) -> Self {
        Self::with_code(Vector::InvalidTss, (selector & 0xfffc) as u32)
    }
}

/// Page-fault error code bits (SDM vol. 3, "Page-Fault Exceptions").
pub mod page_fault {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// What a handler returns.
pub type Outcome<T = ()> = Result<T, Trap>;
