//! Bits of a register brought to another place, without touching the flags.
//!
//! Problem: checks need some bits of an address by themselves, and the status flags are the guest's. Scheme: on hosts
//! with BMI2 one instruction does it (PEXT, RORX, SARX). On others ordinary shifts do, between LAHF and SAHF, which
//! cost some ten instructions; what every access needs is had by way of memory instead. Invariant: flags and all
//! registers but the target are as before, on every host. Source: SDM vol. 2, PEXT, RORX, SARX, LAHF, SAHF.

use dynasmrt::{DynasmApi, dynasm};

use super::Emitter;
use crate::area::offset;

/// Where RAX and the flags are kept meanwhile.
const RAX: i32 = offset::spill(8);
const FLAGS: i32 = offset::spill(9);
/// What is read again one byte further on; behind it there is a zero.
const MOVED: i32 = offset::spill(10);
/// What sets OF by overflowing if it is added to 1.
const OVERFLOWS: i8 = 0x7f;

/// Bits that lie beside each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The lowest one's number.
    from: u8,
    count: u8,
    /// The area's word with just them set.
    mask: i32,
}

impl Run {
    pub const INTERRUPT: Self = Self { from: 9, count: 1, mask: offset::INTERRUPT_BIT };
    /// Those that are all the same in a canonical address.
    pub const UPPER: Self = Self { from: 47, count: 17, mask: offset::SYSRET_UPPER };

    /// A bit's number in 32 or in 64.
    pub fn bit_number(is_long: bool) -> Self {
        Self { from: 0, count: 5 + u8::from(is_long), mask: offset::bit_number(is_long) }
    }
}

impl Emitter<'_> {
    /// Emits what changes flags, and puts them back behind it. RAX may be among its targets.
    fn keep_flags(&mut self, emit: impl FnOnce(&mut Self)) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [RAX], rax
            ; lahf
            ; seto al
            ; gs mov [FLAGS], rax
            ; gs mov rax, [RAX]
        );
        emit(self);
        dynasm!(self.asm ; .arch x64
            ; gs mov [RAX], rax
            ; gs mov rax, [FLAGS]
            ; add al, OVERFLOWS
            ; sahf
            ; gs mov rax, [RAX]
        );
    }

    /// A run of the bits of `of`, as a number.
    pub(super) fn gather(&mut self, into: u8, of: u8, run: Run) {
        let Run { from, count, mask } = run;
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64 ; gs pext Rq(into), Rq(of), [mask]);
            return;
        }
        let up = (64 - from - count) as i8;
        let down = (64 - count) as i8;
        self.keep_flags(|emitter| {
            dynasm!(emitter.asm ; .arch x64
                ; mov Rq(into), Rq(of)
                ; shl Rq(into), up
                ; shr Rq(into), down
            );
        });
    }

    /// The bits of `of` that are set in the area's word `mask`, in their order: zero if there are none, a small number
    /// if they are low ones.
    pub(super) fn pick(&mut self, into: u8, of: u8, mask: i32) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64 ; gs pext Rq(into), Rq(of), [mask]);
            return;
        }
        self.keep_flags(|emitter| {
            dynasm!(emitter.asm ; .arch x64 ; mov Rq(into), Rq(of) ; gs and Rq(into), [mask]);
        });
    }

    /// `of` turned right by so many bits.
    pub(super) fn turn(&mut self, into: u8, of: u8, by: i8) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64 ; rorx Rq(into), Rq(of), by);
            return;
        }
        self.keep_flags(|emitter| {
            dynasm!(emitter.asm ; .arch x64 ; mov Rq(into), Rq(of) ; ror Rq(into), by);
        });
    }

    /// The number of the region of 4 GiB that the address in `of` lies in; garbage above its 16 bits.
    pub(super) fn region_number(&mut self, into: u8, of: u8) {
        if self.frame.host.bmi2 {
            self.turn(into, of, 32);
        } else {
            dynasm!(self.asm ; .arch x64 ; gs mov [MOVED], Rq(of) ; gs mov Rd(into), [MOVED + 4]);
        }
    }

    /// The slot of an address in the inline TLB.
    pub(super) fn tlb_index(&mut self, into: u8, of: u8) {
        const _: () = assert!(crate::area::TLB_ENTRIES == 1 << 16);
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64 ; gs pext Rq(into), Rq(of), [offset::TLB_INDEX]);
            return;
        }
        // Down by 8, up by 4, and down by 8 again.
        dynasm!(self.asm ; .arch x64
            ; gs mov [MOVED], Rq(of)
            ; gs mov Rd(into), [MOVED + 1]
            ; lea Rd(into), [Rq(into) * 8]
            ; lea Rd(into), [Rq(into) * 2]
            ; gs mov [MOVED], Rq(into)
            ; gs movzx Rd(into), WORD [MOVED + 1]
        );
    }

    /// Zero if all bits of `register` are that are set in the area's word `mask`: a page's number, perhaps with lower
    /// bits. No more than 56 bits are left.
    pub(super) fn pick_page(&mut self, register: u8, mask: i32) {
        if self.frame.host.bmi2 || mask != offset::PAGE {
            return self.pick(register, register, mask);
        }
        dynasm!(self.asm ; .arch x64
            ; gs mov [MOVED], Rq(register)
            ; gs mov Rq(register), [MOVED + 1]
            ; lea Rq(register), [Rq(register) * 8]
            ; lea Rq(register), [Rq(register) * 2]
            ; gs mov [MOVED], Rq(register)
            ; gs mov Rq(register), [MOVED + 1]
        );
    }

    /// A sixteenth of a number below 2^28.
    pub(super) fn sixteenth(&mut self, register: u8) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64
                ; rorx Rq(register), Rq(register), 4
                ; mov Rd(register), Rd(register)
            );
            return;
        }
        // Up by 4, and down by 8.
        dynasm!(self.asm ; .arch x64
            ; lea Rd(register), [Rq(register) * 8]
            ; lea Rd(register), [Rq(register) * 2]
            ; gs mov [MOVED], Rq(register)
            ; gs mov Rd(register), [MOVED + 1]
        );
    }

    /// The slot of the address in r10 in the jump cache, in r11.
    pub(super) fn jump_index(&mut self) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64 ; gs pext r11, r10, [offset::JUMP_INDEX]);
        } else {
            dynasm!(self.asm ; .arch x64 ; movzx r11d, r10w);
        }
    }

    /// What of the attention word in r11 matters now: zero or a number below 2^32. r10 is free.
    pub(super) fn pick_attention(&mut self) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64 ; gs pext r11, r11, [offset::ATTENTION_MASK]);
            return;
        }
        // The mask is -1, or -2 to let go of the lowest bit: then -1 comes of 0, which is as good.
        dynasm!(self.asm ; .arch x64
            ; gs movsxd r10, DWORD [offset::ATTENTION_MASK]
            ; lea r11, [r11 + r10 + 1]
        );
    }

    /// Zero if the sign is, or else a number below 2^32.
    pub(super) fn gather_sign(&mut self, register: u8) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64 ; gs pext Rq(register), Rq(register), [offset::SIGN]);
            return;
        }
        dynasm!(self.asm ; .arch x64
            ; gs mov [MOVED], Rq(register)
            ; gs movsx Rq(register), BYTE [MOVED + 7]
            ; gs mov [MOVED], Rq(register)
            ; gs mov Rd(register), [MOVED + 4]
        );
    }

    /// Zero if the bits of `of` under `mask` are `wanted`, which lie under it.
    pub(super) fn differs(&mut self, into: u8, of: u8, mask: u32, wanted: u32) {
        if self.frame.host.bmi2 {
            let gathered = gathered(wanted, mask) as i32;
            dynasm!(self.asm ; .arch x64
                ; mov Rd(into), mask as i32
                ; pext Rd(into), Rd(of), Rd(into)
                ; lea Rd(into), [Rq(into) - gathered]
            );
            return;
        }
        self.keep_flags(|emitter| {
            dynasm!(emitter.asm ; .arch x64
                ; mov Rd(into), Rd(of)
                ; and Rd(into), mask as i32
                ; sub Rd(into), wanted as i32
            );
        });
    }

    /// Clears all bits but those set in the area's word `mask`.
    pub(super) fn cut(&mut self, register: u8, mask: i32) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64
                ; gs pext Rq(register), Rq(register), [mask]
                ; gs pdep Rq(register), Rq(register), [mask]
            );
            return;
        }
        self.keep_flags(|emitter| {
            dynasm!(emitter.asm ; .arch x64 ; gs and Rq(register), [mask]);
        });
    }

    /// Shifts down by a constant, and keeps the sign.
    pub(super) fn shift_down(&mut self, register: u8, by: i8) {
        if self.frame.host.bmi2 {
            dynasm!(self.asm ; .arch x64
                ; gs mov [RAX], Rq(register)
                ; mov Rd(register), by.into()
                ; gs sarx Rq(register), [RAX], Rq(register)
            );
            return;
        }
        self.keep_flags(|emitter| {
            dynasm!(emitter.asm ; .arch x64 ; sar Rq(register), by);
        });
    }
}

/// What PEXT gathers.
fn gathered(value: u32, mask: u32) -> u32 {
    let set = (0..32).filter(|bit| mask >> bit & 1 != 0);
    set.enumerate().fold(0, |sum, (to, from)| sum | (value >> from & 1) << to)
}
