//! The code that enters and leaves translated code.
//!
//! Problem: translated code keeps the guest's registers in the host's, all of them, so getting there and
//! back isn't a call that Rust could make. Scheme: five routines, published once before any block.
//! Invariants: RSP is the guest's between `enter` and `exit`, and so is FS if it is lent; status flags pass through both; vector
//! registers are saved on the way out if they were the guest's, and loaded on the way in if asked; x87
//! registers stay where they are. Upper halves of vector registers that are all zero are left in the state that
//! VZEROUPPER leaves them in: some processors pay some hundred cycles whenever code that uses AVX only for scalars comes
//! to SSE code in the other state (Intel 64 and IA-32 Optimization Reference Manual, "Mixing AVX Code with SSE Code").

#![allow(clippy::useless_conversion, reason = "dynasm! converts register numbers")]

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use xenolith_cpu::env::Privilege;
use xenolith_translator::area::offset;
use xenolith_translator::emit::Routines;
use xenolith_translator::host::Host;

/// General registers but RSP and the scratch ones, which the common code moves.
const MOVED: [u8; 13] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15];

/// The component of x87 state in XSAVE's masks (SDM vol. 1, "XSAVE-Managed Features").
pub const XSTATE_X87: i32 = 1;

/// The routines: their code, which begins with `enter`, and where they are.
pub struct Common {
    pub code: Vec<u8>,
    pub routines: Routines,
}

/// ```text
/// enter(target: rdi)   a C function; GS is the Area, whose SCRATCH goes to r10 and r11; comes back when the guest leaves
/// exit                 jumped to with the guest's registers and flags; SITE says from where
/// load_vector          jumped to; loads the vector registers and jumps to r10; no flags
/// load_x87             the same for the x87 registers
/// look_again           jumped to; goes on where the user's jump cache says that r10 is, or to exit; no flags
/// ```
pub fn common(base: u64, host: Host) -> Common {
    let mut asm: VecAssembler<X64Relocation> = VecAssembler::new(base as usize);
    let here = |asm: &VecAssembler<X64Relocation>| base + asm.offset().0 as u64;
    dynasm!(asm ; .arch x64
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15 ; sub rsp, 8
        ; gs mov [offset::HOST_RSP], rsp
        ; gs mov [offset::TARGET], rdi
        ; gs cmp QWORD [offset::VECTOR_WANTED], 0
        ; je >plain
        ; lea r10, [>plain]
        ; jmp >load_vector
        ; plain:
        ; gs cmp QWORD [offset::HOST_FS], 0
        ; je >own
        ; gs mov rax, [offset::WINDOW_FS]
        ; wrfsbase rax
        ; own:
        // OF by an addition that overflows or not, the others by SAHF.
        ; gs movzx eax, BYTE [offset::FLAGS + 1]
        ; shl eax, 28
        ; add eax, eax
        ; gs mov ah, BYTE [offset::FLAGS]
        ; sahf
    );
    for register in MOVED {
        dynasm!(asm ; .arch x64 ; gs mov Rq(register), [offset::gpr(usize::from(register))]);
    }
    dynasm!(asm ; .arch x64
        ; gs mov rsp, [offset::gpr(4)]
        ; gs mov r10, [offset::scratch(0)]
        ; gs mov r11, [offset::scratch(1)]
        ; gs jmp QWORD [offset::TARGET]
    );
    let load_vector = here(&asm);
    dynasm!(asm ; .arch x64 ; load_vector:);
    for n in 0..16 {
        dynasm!(asm ; .arch x64 ; gs vmovups Ry(n), [offset::ymm(usize::from(n))]);
    }
    // Upper halves that were loaded count as used, though they are zero.
    dynasm!(asm ; .arch x64
        ; gs mov [offset::spill(1)], rcx
        ; gs mov rcx, [offset::VECTOR_UPPER]
        ; jrcxz >clean
        ; jmp >loaded
        ; clean:
        ; vzeroupper
        ; loaded:
        ; gs mov rcx, [offset::spill(1)]
        ; gs ldmxcsr [offset::GUEST_MXCSR]
        ; gs mov QWORD [offset::VECTOR_IDLE], 0
        ; jmp r10
    );
    let load_x87 = here(&asm);
    // What an image without pointers leaves of the host's (AMD's processors do) FNINIT clears.
    dynasm!(asm ; .arch x64
        ; gs mov [offset::spill(1)], rax
        ; gs mov [offset::spill(2)], rdx
        ; mov eax, XSTATE_X87
        ; mov edx, 0
        ; fninit
        ; gs xrstor64 [offset::X87]
        ; gs mov rax, [offset::spill(1)]
        ; gs mov rdx, [offset::spill(2)]
        ; gs mov QWORD [offset::X87_IDLE], 0
        ; jmp r10
    );
    let look_again = here(&asm);
    if host.bmi2 {
        dynasm!(asm ; .arch x64 ; gs pext r11, r10, [offset::JUMP_INDEX]);
    } else {
        dynasm!(asm ; .arch x64 ; movzx r11d, r10w);
    }
    let jumps = offset::jumps(usize::from(Privilege::User as u8));
    dynasm!(asm ; .arch x64
        ; gs mov rcx, [offset::USER_JUMPS]
        ; lea r11, [rcx + r11 * 2]
        ; gs mov rcx, [r11 * 8 + jumps]
        ; lea rcx, [rcx + r10]
        ; jrcxz >known
        ; gs mov rcx, [offset::spill(0)]
        ; jmp >exit
        ; known:
        ; gs mov rcx, [offset::spill(0)]
        ; gs jmp QWORD [r11 * 8 + jumps + 8]
        ; exit:
    );
    let exit = here(&asm);
    for register in MOVED {
        dynasm!(asm ; .arch x64 ; gs mov [offset::gpr(usize::from(register))], Rq(register));
    }
    dynasm!(asm ; .arch x64
        ; gs mov [offset::gpr(4)], rsp
        ; gs mov rsp, [offset::HOST_RSP]
        ; pushfq
        ; gs pop QWORD [offset::FLAGS]
        ; gs mov rax, [offset::HOST_FS]
        ; test rax, rax
        ; jz >own
        ; wrfsbase rax
        ; own:
        ; gs cmp QWORD [offset::VECTOR_IDLE], 0
        ; jne >idle
    );
    for n in 0..16 {
        dynasm!(asm ; .arch x64 ; gs vmovups [offset::ymm(usize::from(n))], Ry(n));
    }
    for step in [1, 2, 4, 8] {
        for n in (0..16).step_by(2 * usize::from(step)) {
            let n = n as u8;
            dynasm!(asm ; .arch x64 ; vorps Ry(n), Ry(n), Ry(n + step));
        }
    }
    dynasm!(asm ; .arch x64
        ; vextractf128 xmm0, ymm0, 1
        ; vptest xmm0, xmm0
        ; setne al
        ; movzx eax, al
        ; gs mov [offset::VECTOR_UPPER], rax
        ; gs stmxcsr [offset::GUEST_MXCSR]
        ; vzeroupper
        ; gs ldmxcsr [offset::HOST_MXCSR]
        ; gs mov QWORD [offset::VECTOR_IDLE], 1
        ; gs mov QWORD [offset::VECTOR_SAVED], 1
        ; idle:
        ; add rsp, 8 ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
        ; ret
    );
    let code = asm.finalize().expect("no labels are left open");
    Common { code, routines: Routines { exit, load_vector, load_x87, look_again } }
}
