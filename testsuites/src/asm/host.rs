//! The bare host CPU as an oracle, for user-mode cases.
//!
//! Problem: what a case does must be measured on real hardware, register for register, and a case may
//! fault, loop or clobber the stack. Scheme: the case region is a memfd; the parent fills it and forks. The
//! child maps it at the addresses of `layout.inc`, raises SIGUSR1, and its handler replaces the
//! interrupted context by the case's initial state, so that the kernel's signal return loads every register
//! at once, 32-bit code segment included. The case ends with a signal (UD2 at its end gives SIGILL); that handler,
//! on its own stack, copies the context into a shared page and exits. Invariants: between fork and exit the child
//! makes system calls and plain stores only (no allocation, no locks: other threads may have held them);
//! the handler clears EFLAGS.AC first, as cases set it. One child at a time per call.
//! Source: Linux `arch/x86/include/uapi/asm/sigcontext.h`; SDM vol. 1, "XSAVE-Managed Features".

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use anyhow::{Context, Result, bail, ensure};

use super::case::Maker;
use super::image::{Features, Prepared};
use super::layout::symbol;
use super::state::{self, Outcome, Run, State};

/// CPUID of the host in the harness's words. Features that the kernel has not enabled are left out.
#[must_use]
pub fn features() -> Features {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let one = __cpuid(1);
    let seven = __cpuid_count(7, 0);
    let extended = __cpuid(0x8000_0001);
    let xsave = __cpuid_count(0xd, 1);
    let mut features =
        [one.ecx, one.edx, seven.ebx, seven.ecx, extended.ecx, extended.edx, xsave.eax];
    if !std::arch::is_x86_feature_detected!("avx") {
        const AVX_FMA_F16C: u32 = 1 << 28 | 1 << 12 | 1 << 29;
        features[0] &= !AVX_FMA_F16C;
        features[2] &= !(1 << 5);
    }
    features
}

/// Who made the host's processor. Other makers count as Intel: nearly all cases are common to all.
#[must_use]
pub fn maker() -> Maker {
    let leaf = std::arch::x86_64::__cpuid(0);
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    if vendor == b"AuthenticAMD" || vendor == b"HygonGenuine" { Maker::Amd } else { Maker::Intel }
}

/// Whether this kernel lets a process have an LDT, which some cases' selectors need.
#[must_use]
pub fn has_local_descriptors() -> bool {
    const READ: i32 = 0;
    let mut entry = [0u8; 8];
    // SAFETY: reads at most eight bytes of this process's LDT into `entry`.
    let read =
        unsafe { libc::syscall(libc::SYS_modify_ldt, READ, entry.as_mut_ptr(), entry.len()) };
    read >= 0
}

/// Part of the case's memory that a host process maps.
struct Area {
    start: u64,
    len: u64,
    protection: i32,
}

/// What a host process maps. Everything else of the case region stays absent.
fn areas() -> [Area; 6] {
    const READ: i32 = libc::PROT_READ;
    const WRITE: i32 = libc::PROT_WRITE;
    const EXEC: i32 = libc::PROT_EXEC;
    let area = |name, len, protection| Area { start: symbol(name), len, protection };
    [
        area("CODE", 0x2000, READ | EXEC),
        area("RWX", 0x1000, READ | WRITE | EXEC),
        area("DATA", 0x2000, READ | WRITE),
        area("RO", 0x1000, READ),
        area("STACK", 0x2000, READ | WRITE),
        area("CODE16", LOW_LEN, READ | WRITE | EXEC),
    ]
}

/// The four 16-bit segments.
const LOW_LEN: u64 = 0x4_0000;
/// Where they are in the memfd, behind the case region.
const LOW_OFFSET: u64 = 0x3_0000;
const REGION_LEN: usize = (LOW_OFFSET + LOW_LEN) as usize;

/// Offset in the memfd of a linear address.
fn offset_of(address: u64) -> Option<usize> {
    let (low, base) = (symbol("CODE16"), symbol("CODE"));
    if (low..low + LOW_LEN).contains(&address) {
        Some((address - low + LOW_OFFSET) as usize)
    } else if (base..base + LOW_OFFSET).contains(&address) {
        Some((address - base) as usize)
    } else {
        None
    }
}

/// `struct user_desc` of modify_ldt(2).
#[repr(C)]
#[derive(Clone, Copy)]
struct UserDesc {
    entry_number: u32,
    base: u32,
    limit: u32,
    /// Bits: 32-bit 0, contents 1-2, read or execute only 3, limit in pages 4, not present 5.
    flags: u32,
}

/// The LDT of `layout.inc`.
fn local_descriptors() -> [UserDesc; 15] {
    const BIG: u32 = 1;
    const EXPAND_DOWN: u32 = 1 << 1;
    const CODE: u32 = 2 << 1;
    const CONFORMING: u32 = 3 << 1;
    const ONLY: u32 = 1 << 3;
    const PAGES: u32 = 1 << 4;
    const ABSENT: u32 = 1 << 5;
    const FLAT: u32 = BIG | PAGES;
    let entry = |selector: &str, base: u64, limit, flags| UserDesc {
        entry_number: symbol(selector) as u32 >> 3,
        base: base as u32,
        limit,
        flags,
    };
    let data = symbol("DATA");
    let small = |selector, segment, flags| entry(selector, symbol(segment), 0xffff, flags);
    [
        entry("LDT_DATA_SEL", 0, 0xf_ffff, FLAT),
        entry("LDT_CODE_SEL", 0, 0xf_ffff, FLAT | CODE),
        entry("SMALL_SEL", data, 0xfff, BIG),
        entry("EXPDOWN_SEL", data, 0xfff, BIG | EXPAND_DOWN),
        entry("RODATA_SEL", 0, 0xf_ffff, FLAT | ONLY),
        entry("ABSENT_SEL", 0, 0xf_ffff, FLAT | ABSENT),
        entry("XCODE_SEL", 0, 0xf_ffff, FLAT | CODE | ONLY),
        entry("UCONFORM_SEL", 0, 0xf_ffff, FLAT | CONFORMING),
        small("UCODE16_SEL", "CODE16", CODE),
        small("UDATA16_SEL", "DATA16", 0),
        small("UEXTRA16_SEL", "EXTRA16", 0),
        small("USTACK16_SEL", "STACK16", 0),
        entry("UABSENT_CODE_SEL", 0, 0xf_ffff, FLAT | CODE | ABSENT),
        entry("EXPDOWN16_SEL", data, 0xfff, EXPAND_DOWN),
        entry("SMALLCODE_SEL", symbol("CODE"), 0xff, BIG | CODE),
    ]
}
const XSTATE_LEN: usize = 832;

/// Shared between parent and child.
#[repr(C, align(64))]
struct Shared {
    /// Initial state; the child's first handler reads it.
    initial: [u8; state::SIZE],
    /// Set by the last handler.
    done: u32,
    stage: u32,
    gregs: [i64; 23],
    selectors: [u16; 4],
    xstate: [u8; XSTATE_LEN],
}

/// The child's shared page, for its handlers. Set before fork, per thread in the parent it is only passed on.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());
/// Serialises callers: `SHARED` is one.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

unsafe extern "C" {
    fn xenolith_asm_signal_entry(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void);
}

// Clears AC before any compiled code may access memory unaligned.
std::arch::global_asm!(
    ".globl xenolith_asm_signal_entry",
    "xenolith_asm_signal_entry:",
    "pushfq",
    "and qword ptr [rsp], ~0x40000",
    "popfq",
    "jmp {handler}",
    handler = sym on_signal,
);

/// Both handlers: SIGUSR1 loads the initial state, everything else records the end.
extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut c_void) {
    let shared = SHARED.load(Ordering::Relaxed);
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel passes a valid context, and nothing else refers to it.
    let context = unsafe { &mut *context };
    // SAFETY: the parent mapped it before the fork, and in this process only this handler uses it.
    let shared = unsafe { &mut *shared };
    let xstate: *mut u8 = context.uc_mcontext.fpregs.cast();
    // SAFETY: with AVX enabled the kernel's frame is at least FXSAVE area, header and YMM halves long.
    let xstate = unsafe { std::slice::from_raw_parts_mut(xstate, XSTATE_LEN) };
    if signal == libc::SIGUSR1 {
        load_initial(&shared.initial, &mut context.uc_mcontext.gregs, xstate);
        return;
    }
    shared.gregs = context.uc_mcontext.gregs;
    shared.xstate.copy_from_slice(xstate);
    shared.selectors = data_selectors();
    shared.done = 1;
    exit_now(0);
}

/// ES, DS, FS, GS: the kernel's 64-bit signal frame leaves them in the registers.
fn data_selectors() -> [u16; 4] {
    let (es, ds, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads selectors into general registers.
    unsafe {
        std::arch::asm!(
            "mov {0:x}, es", "mov {1:x}, ds", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) es, out(reg) ds, out(reg) fs, out(reg) gs, options(nomem, nostack),
        );
    }
    [es, ds, fs, gs]
}

/// Ends the process without touching thread-local storage: the case may have cleared FS.
fn exit_now(status: i32) -> ! {
    // SAFETY: exit_group does not return.
    unsafe {
        std::arch::asm!(
            "syscall", in("rax") libc::SYS_exit_group, in("rdi") status, options(noreturn, nostack),
        );
    }
}

/// Order of `gregs` against that of the state block.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

fn load_initial(initial: &[u8; state::SIZE], gregs: &mut [i64; 23], xstate: &mut [u8]) {
    let word = |offset: usize| {
        let bytes = &initial[offset..offset + 8];
        i64::from_le_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
        ])
    };
    for (n, greg) in GREGS.iter().enumerate() {
        gregs[*greg as usize] = word(8 * n);
    }
    gregs[libc::REG_RIP as usize] = word(state::RIP);
    gregs[libc::REG_EFL as usize] = word(state::RFLAGS);
    let cs = word(state::SEGMENTS + 4) & 0xffff;
    let ss = word(state::SEGMENTS + 8) & 0xffff;
    gregs[libc::REG_CSGSFS as usize] = cs | ss << 48;
    // The last 96 bytes of the legacy area describe the frame to the kernel: keep them.
    let mxcsr_mask: [u8; 4] = [xstate[28], xstate[29], xstate[30], xstate[31]];
    xstate[..416].copy_from_slice(&initial[state::FX..state::FX + 416]);
    xstate[28..32].copy_from_slice(&mxcsr_mask);
    xstate[512] |= 7;
    xstate[576..832].copy_from_slice(&initial[state::YMMH..state::YMMH + 256]);
}

/// A mapping that is undone with the value.
struct Mapping {
    address: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(len: usize, fd: i32) -> Result<Self> {
        let flags = if fd < 0 { libc::MAP_SHARED | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, 0) };
        ensure!(address != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self { address: address.cast(), len })
    }
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: ours, `len` bytes long, and the child that shares it does not run meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference outlives the value.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// Runs one case on the host CPU.
///
/// # Errors
/// The host refuses a mapping or a process: not the case's fault.
pub fn run(prepared: &Prepared) -> Result<Run> {
    let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"xenolith-case".as_ptr(), libc::MFD_CLOEXEC) };
    ensure!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    let result = run_in(prepared, fd);
    // SAFETY: opened above.
    unsafe { libc::close(fd) };
    drop(turn);
    result
}

fn run_in(prepared: &Prepared, fd: i32) -> Result<Run> {
    // SAFETY: a plain call on our descriptor.
    let sized = unsafe { libc::ftruncate(fd, REGION_LEN as i64) };
    ensure!(sized == 0, "ftruncate: {}", std::io::Error::last_os_error());
    let mut region = Mapping::new(REGION_LEN, fd)?;
    for (address, bytes) in &prepared.chunks {
        let offset = offset_of(*address);
        let target = offset.and_then(|offset| region.bytes().get_mut(offset..offset + bytes.len()));
        target
            .with_context(|| format!("{}: memory outside the case region", prepared.case.name))?
            .copy_from_slice(bytes);
    }
    let mut page = Mapping::new(size_of::<Shared>().next_multiple_of(4096), -1)?;
    page.bytes()[..state::SIZE].copy_from_slice(&prepared.state.bytes);
    SHARED.store(page.address.cast(), Ordering::Relaxed);
    let mut stack = Mapping::new(1 << 16, -1)?;
    let stack_bottom: *mut c_void = stack.bytes().as_mut_ptr().cast();
    let data = prepared.state.u32_at(state::SEGMENTS + 12) as u16;
    let extra = prepared.state.u32_at(state::SEGMENTS) as u16;
    let areas = areas().map(|area| {
        let offset = offset_of(area.start).expect("areas lie in the case's memory");
        (area, offset as i64)
    });
    let descriptors = local_descriptors();
    // SAFETY: the child keeps to system calls and stores, as the module says.
    let child = unsafe { libc::fork() };
    if child == 0 {
        child_main(fd, &areas, &descriptors, stack_bottom, [extra, data]);
    }
    ensure!(child > 0, "fork: {}", std::io::Error::last_os_error());
    let mut status = 0;
    loop {
        // SAFETY: waits for our own child.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited == child {
            break;
        }
        let error = std::io::Error::last_os_error();
        ensure!(error.kind() == std::io::ErrorKind::Interrupted, "waitpid: {error}");
    }
    let shared: *const Shared = page.address.cast();
    // SAFETY: the child is gone; the page is ours, aligned and large enough.
    let shared = unsafe { &*shared };
    if shared.done == 0 {
        if libc::WIFEXITED(status) {
            bail!(
                "{}: the host process could not be set up (step {})",
                prepared.case.name,
                shared.stage
            );
        }
        return Ok(Run::Lost(format!("killed by signal {}", libc::WTERMSIG(status))));
    }
    let memory = changes(prepared, &mut region);
    Ok(Run::Ended(Box::new(Outcome { state: captured(prepared, shared), memory })))
}

/// Signals that end a case, and the one that starts it.
const SIGNALS: [i32; 7] = [
    libc::SIGUSR1,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];

fn child_main(
    fd: i32,
    areas: &[(Area, i64)],
    descriptors: &[UserDesc],
    stack: *mut c_void,
    selectors: [u16; 2],
) -> ! {
    xenolith_machine::probe::withdraw();
    for (area, offset) in areas {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
        let target = ptr::with_exposed_provenance_mut(area.start as usize);
        let (len, offset) = (area.len as usize, *offset);
        // SAFETY: never replaces a mapping: the address must be free.
        let mapped = unsafe { libc::mmap(target, len, area.protection, flags, fd, offset) };
        if mapped != target {
            exit_now(1);
        }
    }
    for descriptor in descriptors {
        let size = size_of::<UserDesc>();
        const WRITE: i32 = 0x11;
        // SAFETY: adds an entry to this process's own LDT.
        unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, descriptor, size) };
    }
    let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: 1 << 16 };
    // SAFETY: the stack is mapped and used by nobody else.
    unsafe { libc::sigaltstack(&raw const alternate, ptr::null_mut()) };
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let entry: unsafe extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void) =
        xenolith_asm_signal_entry;
    action.sa_sigaction = entry as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    for signal in SIGNALS {
        // SAFETY: the handler is one for SA_SIGINFO.
        unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    }
    let limit = libc::rlimit { rlim_cur: 2, rlim_max: 2 };
    // SAFETY: plain call; a case that loops is killed after two seconds of CPU time.
    unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) };
    // A core file of every lost case helps nobody.
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain call.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) };
    // SAFETY: asks for the process and thread numbers.
    let process = unsafe { libc::getpid() };
    // SAFETY: loads the flat or null user selectors that the case starts with, then signals this thread:
    // the handler replaces the context, so nothing after this line runs.
    unsafe {
        std::arch::asm!(
            "mov es, {0:x}", "mov ds, {1:x}", "syscall",
            in(reg) selectors[0], in(reg) selectors[1],
            in("rax") libc::SYS_tgkill, in("rdi") process, in("rsi") process,
            in("rdx") libc::SIGUSR1, lateout("rax") _, out("rcx") _, out("r11") _,
        );
    }
    exit_now(2)
}

fn captured(prepared: &Prepared, shared: &Shared) -> State {
    let mut state = prepared.state.clone();
    let greg = |n: i32| shared.gregs[n as usize] as u64;
    for (n, register) in GREGS.iter().enumerate() {
        state.set(8 * n, 8, greg(*register));
    }
    state.set(state::RIP, 8, greg(libc::REG_RIP));
    state.set(state::RFLAGS, 8, greg(libc::REG_EFL));
    let packed = greg(libc::REG_CSGSFS);
    let [es, ds, fs, gs] = shared.selectors.map(u64::from);
    for (n, selector) in [es, packed & 0xffff, packed >> 48, ds, fs, gs].into_iter().enumerate() {
        state.set(state::SEGMENTS + 4 * n, 4, selector);
    }
    state.set(state::VECTOR, 4, greg(libc::REG_TRAPNO));
    state.set(state::ERROR, 4, greg(libc::REG_ERR));
    state.set(state::CR2, 8, greg(libc::REG_CR2));
    let present = u64::from_le_bytes(shared.xstate[512..520].try_into().expect("eight bytes"));
    let fresh = State::new();
    let part = |bit: u64, offset: usize, len: usize, state: &mut State, source: usize| {
        let bytes = if present & bit != 0 {
            &shared.xstate[source..source + len]
        } else {
            &fresh.bytes[offset..offset + len]
        };
        state.bytes[offset..offset + len].copy_from_slice(bytes);
    };
    part(1, state::FX, 24, &mut state, 0);
    part(1, state::ST, 128, &mut state, 32);
    part(2, state::XMM, 256, &mut state, 160);
    part(4, state::YMMH, 256, &mut state, 576);
    // XSAVE writes MXCSR whatever XSTATE_BV says.
    state.bytes[state::MXCSR..state::MXCSR + 4].copy_from_slice(&shared.xstate[24..28]);
    state
}

fn changes(prepared: &Prepared, region: &mut Mapping) -> BTreeMap<u64, u32> {
    let mut memory = BTreeMap::new();
    for (start, len) in &prepared.windows {
        let Some(offset) = offset_of(*start) else { continue };
        let Some(bytes) = region.bytes().get(offset..offset + *len as usize) else { continue };
        for (n, word) in bytes.chunks_exact(4).enumerate() {
            let address = start + 4 * n as u64;
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            if word != initial_word(prepared, address) {
                memory.insert(address, word);
            }
        }
    }
    memory
}

fn initial_word(prepared: &Prepared, address: u64) -> u32 {
    let byte = |n: u64| prepared.initial_byte(address + n);
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}
