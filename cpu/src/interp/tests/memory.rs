//! Fetches, loads and stores: limits, canonical addresses, pages, devices, rights.

use iced_x86::code_asm::{dword_ptr, ptr, registers as r};

use super::bench::{
    BIG, Bench, CODE, DATA, DEVICE, FREE, GDT, KERNEL_CODE, Mapping, TSS_A, descriptor, flat,
};
use crate::state::reg::{RAX, RBX, RCX, RDI, RSI, RSP};
use crate::state::{Activity, Cr4, Rflags, Segment, sreg};

const HOLE: u64 = 0x50_0000;

#[test]
fn non_canonical_addresses_fault_by_segment() {
    for (base, vector) in [(RAX, 13), (RSP, 12)] {
        let mut b = Bench::new(64);
        b.vm.state.gpr[base] = 1 << 47;
        b.code(
            |a| {
                if base == RAX { a.mov(r::ecx, ptr(r::rax)) } else { a.mov(r::ecx, ptr(r::rsp)) }
            },
        );
        b.set_raw_gate_ist(vector);
        b.expect(vector, 0, 0);
    }
    // Only the last byte.
    let mut b = Bench::new(64);
    b.vm.state.gpr[RAX] = (1 << 47) - 3;
    b.code(|a| a.mov(r::ecx, ptr(r::rax))).expect(13, 0, 0);
}

impl Bench {
    /// Lets the vector's handler have a stack of its own.
    fn set_raw_gate_ist(&mut self, vector: u8) {
        let at = super::bench::IDT + 16 * u64::from(vector);
        let raw = self.read_u64(at);
        self.write_u64(at, raw | 1 << 32);
    }
}

#[test]
fn limits_are_of_whole_operands() {
    let data = |limit, access| descriptor(DATA as u32, limit, access, BIG);
    // (descriptor, offset, faults) for a load of four bytes.
    let cases = [
        (data(0xff, 0x93), 0xfc, false),
        (data(0xff, 0x93), 0xfd, true),
        (data(0xff, 0x93), 0xffff_fffc, true),
        // Expand-down: above the limit.
        (data(0xff, 0x97), 0xff, true),
        (data(0xff, 0x97), 0x100, false),
        (descriptor(DATA as u32, 0xff, 0x97, 0), 0xfffc, false),
        (descriptor(DATA as u32, 0xff, 0x97, 0), 0xfffd, true),
        // Code: readable, or not.
        (data(0xff, 0x9b), 0, false),
    ];
    for (raw, offset, faults) in cases {
        for (segment, vector) in [(sreg::DS, 13), (sreg::SS, 12)] {
            if segment == sreg::SS && raw >> 40 & 8 != 0 {
                continue;
            }
            let mut b = Bench::new(32);
            b.set_descriptor(FREE, raw);
            let loaded = b.segment(FREE);
            b.vm.state.seg[segment] = loaded;
            b.vm.state.gpr[RBX] = offset;
            b.bytes(if segment == sreg::SS { b"\x36\x8b\x03\xf4" } else { b"\x3e\x8b\x03\xf4" });
            b.vm.step();
            let s = &b.vm.state;
            assert_eq!(s.rip != CODE + 3, faults, "{raw:x} {offset:x}");
            if faults && segment == sreg::DS {
                assert_eq!(b.frame().vector, vector);
            }
        }
    }
    // Stores to read-only data and to code; loads from execute-only code; anything from null.
    for (raw, code) in [
        (data(0xff, 0x91), b"\x89\x03"),
        (data(0xff, 0x9b), b"\x89\x03"),
        (data(0xff, 0x99), b"\x8b\x03"),
        (0, b"\x8b\x03"),
    ] {
        let mut b = Bench::new(32);
        b.set_descriptor(FREE, raw);
        let loaded = if raw == 0 { Segment::NULL } else { b.segment(FREE) };
        b.vm.state.seg[sreg::DS] = loaded;
        b.bytes(code).expect(13, 0, 0);
    }
}

#[test]
fn real_mode_words_dont_wrap_around_the_segment() {
    for (code, vector) in [(&b"\x8b\x07"[..], 13), (b"\x36\x8b\x07", 12)] {
        let mut b = Bench::new(16);
        b.vm.state.gpr[RBX] = 0xffff;
        b.bytes(code).expect(vector, 0, 0);
    }
    // But a stack of 64 KiB does, between pushes.
    let mut b = Bench::new(16);
    b.vm.state.gpr[RSP] = 0;
    b.bytes(b"\x50\xf4").expect_halt();
    assert_eq!(b.vm.state.gpr[RSP], 0xfffe);
}

#[test]
fn code_runs_up_to_its_limit() {
    // The NOP is the last byte; then #GP with RIP beyond. An instruction over the limit is #GP at its
    // start.
    for (code, limit, at) in [(&b"\x90\x90"[..], CODE, 1), (b"\xb8\0\0\0\0", CODE + 3, 0)] {
        let mut b = Bench::new(32);
        b.vm.state.seg[sreg::CS].limit = limit as u32;
        b.set_descriptor(KERNEL_CODE, descriptor(0, 0xf_ffff, 0x9b, BIG | 8));
        b.bytes(code).expect(13, 0, at);
    }
}

#[test]
fn an_instruction_may_cross_into_an_absent_page() {
    let mut b = Bench::new(64);
    let at = CODE + 0xffe;
    b.write(at, b"\xb8\x01");
    b.vm.mem.map(CODE + 0x1000, None);
    b.vm.state.rip = at;
    b.expect(14, 0, 0xffe);
    assert_eq!(b.vm.state.cr2, CODE + 0x1000);
    // And into one that changes its mapping between two executions.
    let mut b = Bench::new(64);
    b.write(at, b"\xb8\x01");
    b.write(DATA, b"\x02\x00\x00\xf4");
    b.write(DATA + 0x1000, b"\x03\x00\x00\xf4");
    for (gpa, value) in [(DATA, 0x201), (DATA + 0x1000, 0x301), (DATA, 0x201)] {
        b.vm.mem.map(CODE + 0x1000, Some(Mapping { gpa, write: true, user: true }));
        b.vm.state.rip = at;
        b.vm.state.activity = Activity::Running;
        b.run();
        assert_eq!(b.vm.state.gpr[RAX], value);
    }
}

#[test]
fn fetches_end_at_the_canonical_boundary() {
    let mut b = Bench::new(64);
    let last = 0x7fff_ffff_f000;
    b.vm.mem.map(last, Some(Mapping { gpa: DATA, write: true, user: true }));
    b.write(DATA + 0xffe, b"\xb8\x01");
    b.vm.state.rip = last + 0xffe;
    let caught = b.caught();
    assert_eq!((caught.vector, caught.rip), (13, last + 0xffe));
    // One that ends there exactly; the next one is fetched from beyond.
    let mut b = Bench::new(64);
    b.vm.mem.map(last, Some(Mapping { gpa: DATA, write: true, user: true }));
    b.write(DATA + 0xfff, b"\x90");
    b.vm.state.rip = last + 0xfff;
    let caught = b.caught();
    assert_eq!((caught.vector, caught.rip), (13, last + 0x1000));
    // At the very top RIP wraps to 0.
    let mut b = Bench::new(64);
    b.vm.mem.map(u64::MAX, Some(Mapping { gpa: DATA, write: true, user: true }));
    b.write(DATA + 0xfff, b"\x90");
    b.write(0, b"\xf4");
    for _ in 0..2 {
        b.vm.state.rip = u64::MAX;
        b.vm.state.activity = Activity::Running;
        b.run();
        assert_eq!(b.vm.state.rip, 1);
    }
}

#[test]
fn over_long_instructions_are_gp() {
    let mut code = vec![0x66; 14];
    code.push(0x90);
    let mut b = Bench::new(32);
    b.bytes(&[&code[..], b"\xf4"].concat()).expect_halt();
    for prefixes in [15, 20, 14] {
        let mut code = vec![0x66; prefixes];
        code.extend_from_slice(b"\x01\xc0\x90");
        Bench::new(32).bytes(&code).expect(13, 0, 0);
    }
    // Also where a page or the segment ends.
    let mut b = Bench::new(32);
    b.write(CODE + 0xff8, &[0x66; 15]);
    b.write(CODE + 0x1007, b"\x90");
    b.vm.state.rip = CODE + 0xff8;
    b.expect(13, 0, 0xff8);
    // #UD within 15 bytes stays #UD.
    Bench::new(32).bytes(b"\x66\x66\x66\x0f\x0b").expect(6, 0, 0);
}

#[test]
fn a_store_over_two_pages_is_all_or_nothing() {
    let mut b = Bench::new(64);
    b.vm.mem.map(DATA + 0x1000, None);
    b.vm.state.gpr[RDI] = DATA + 0xffe;
    b.vm.state.gpr[RAX] = u64::MAX;
    b.bytes(b"\x89\x07").expect(14, 2, 0);
    assert_eq!(b.vm.state.cr2, DATA + 0x1000);
    assert_eq!(b.read_u16(DATA + 0xffe), 0);
    // The same for a read-modify-write, with and without LOCK.
    for code in [&b"\x01\x07"[..], b"\xf0\x01\x07"] {
        let mut b = Bench::new(64);
        b.vm.mem.map(DATA + 0x1000, Some(Mapping { gpa: DATA, write: false, user: true }));
        b.vm.state.gpr[RDI] = DATA + 0xffe;
        b.vm.state.gpr[RAX] = u64::MAX;
        b.bytes(code).expect(14, 3, 0);
        assert_eq!(b.vm.state.rflags & Rflags::STATUS.bits(), 0);
    }
}

#[test]
fn code_in_a_device_is_fetched_each_time() {
    let mut b = Bench::new(64);
    b.vm.state.rip = DEVICE;
    b.world.lock().expect("free").device = 0x40;
    // The device answers each byte with what it holds: first INC-like REX prefixes, then HLT.
    b.world.lock().expect("free").device = 0xf4;
    b.run();
    assert_eq!(b.vm.state.rip, DEVICE + 1);
    b.vm.state.rip = DEVICE;
    b.vm.state.activity = Activity::Running;
    b.world.lock().expect("free").device = 0xcc;
    assert_eq!(b.caught().vector, 3);
}

#[test]
fn device_accesses_are_split_into_what_a_bus_takes() {
    let mut b = Bench::new(64);
    b.vm.state.gpr[RDI] = DEVICE + 0xffd;
    b.vm.state.gpr[RAX] = 0x1122_3344_5566_7788;
    b.bytes(b"\x48\x89\x07\xf4").expect_halt();
    let world = b.world.lock().expect("free");
    let page = DEVICE + 0x1000;
    let expected = [
        (DEVICE + 0xffd, 2, 0x7788),
        (DEVICE + 0xfff, 1, 0x66),
        (page, 4, 0x2233_4455),
        (page + 4, 1, 0x11),
    ];
    assert_eq!(world.device_writes, expected);
}

#[test]
fn code_that_writes_itself_runs_what_it_wrote() {
    // mov byte [rip], 0xf4 changes the next instruction, in the block that is running.
    let mut b = Bench::new(64);
    b.bytes(b"\xc6\x05\x00\x00\x00\x00\xf4\x0f\x0b").expect_halt();
    // By a repeated string instruction as well.
    let mut b = Bench::new(64);
    b.vm.state.gpr[RDI] = CODE + 2;
    b.vm.state.gpr[RAX] = 0xf4;
    b.vm.state.gpr[RCX] = 2;
    b.bytes(b"\xf3\xaa\x0f\x0b").expect_halt();
    assert_eq!(b.vm.state.rip, CODE + 3);
}

#[test]
fn smap_spares_ac_but_not_implicit_accesses() {
    let user = |gpa| Some(Mapping { gpa, write: true, user: true });
    let kernel = |gpa| Some(Mapping { gpa, write: true, user: false });
    let smap = || {
        let mut b = Bench::new(64);
        b.vm.state.cr4 |= Cr4::SMAP.bits();
        for page in (0..super::bench::RAM_LEN as u64).step_by(0x1000) {
            b.vm.mem.map(page, kernel(page));
        }
        b.vm.mem.map(DATA, user(DATA));
        b.vm.state.gpr[RDI] = DATA;
        b
    };
    smap().bytes(b"\x8b\x07\xf4").expect(14, 1, 0);
    // STAC; mov; CLAC; mov.
    smap().bytes(b"\x0f\x01\xcb\x8b\x07\x0f\x01\xca\x8b\x07").expect(14, 1, 8);
    // A GDT in a user page: AC doesn't help, the access is the processor's own.
    let mut b = smap();
    b.vm.mem.map(GDT, user(GDT));
    b.vm.state.rflags |= Rflags::AC.bits();
    b.bytes(b"\x8e\xd8");
    b.vm.state.gpr[RAX] = 0x10;
    // Delivery needs the GDT as well.
    assert_eq!(b.vm.run(10), crate::interp::Exit::Shutdown);
    assert_eq!(b.vm.state.cr2, GDT + 8);
}

#[test]
fn the_io_permission_bitmap_decides_for_users() {
    // (map offset, TSS limit, bytes of the map, port, width, allowed)
    let cases = [
        (0x68, 0x70, 0, 0x10, 1, true),
        (0x68, 0x70, 1, 0x08, 1, false),
        (0x68, 0x70, 0x80, 0x0f, 2, false),
        (0x68, 0x70, 2, 0x07, 2, true),
        (0x68, 0x70, 2, 0x07, 4, false),
        // The byte after the port's must lie within the limit.
        (0x68, 0x69, 0, 0x08, 1, false),
        (0x68, 0x6a, 0, 0x08, 1, true),
        (0xffff, 0x70, 0, 0x08, 1, false),
    ];
    for (map, limit, bits, port, width, allowed) in cases {
        let mut b = Bench::new(64);
        b.write(TSS_A + 0x66, &(map as u16).to_le_bytes());
        b.write(TSS_A + 0x69, &[bits]);
        b.vm.state.tr.limit = limit;
        b.set_level(3);
        b.vm.state.gpr[2] = port;
        b.bytes(match width {
            1 => &b"\xec\xf4"[..],
            2 => b"\x66\xed\xf4",
            _ => b"\xed\xf4",
        });
        // Allowed, the HLT faults.
        let at = if allowed { 1 + u64::from(width == 2) } else { 0 };
        b.expect(13, 0, at);
        assert_eq!(b.world.lock().expect("free").port_reads.len(), usize::from(allowed), "{port}");
    }
    // IOPL lets it all through.
    let mut b = Bench::new(64);
    b.set_level(3);
    b.vm.state.rflags |= Rflags::IOPL.bits();
    b.bytes(b"\xe4\x60\xf4").expect(13, 0, 2);
    assert_eq!(b.vm.state.gpr[RAX], 0x5a);
}

#[test]
fn ins_reads_the_port_only_when_it_can_store() {
    let mut b = Bench::new(64);
    b.vm.state.gpr[RDI] = HOLE;
    b.bytes(b"\x6c").expect(14, 2, 0);
    assert!(b.world.lock().expect("free").port_reads.is_empty());
    let mut b = Bench::new(64);
    b.vm.state.gpr[RSI] = HOLE;
    b.bytes(b"\x6e").expect(14, 0, 0);
    assert!(b.world.lock().expect("free").port_writes.is_empty());
}

#[test]
fn a_fault_inside_a_repetition_shows_what_was_done() {
    let mut b = Bench::new(64);
    b.vm.mem.map(DATA + 0x1000, None);
    b.vm.state.gpr[RDI] = DATA + 0xff8;
    b.vm.state.gpr[RCX] = 5;
    b.bytes(b"\xf3\xab").expect(14, 2, 0);
    assert_eq!((b.vm.state.gpr[RCX], b.vm.state.gpr[RDI]), (3, DATA + 0x1000));
}

#[test]
fn pushes_that_fault_leave_the_pointer() {
    let mut b = Bench::new(64);
    b.set_raw_gate_ist(14);
    b.vm.state.gpr[RSP] = HOLE + 8;
    for code in [&b"\x50"[..], b"\xff\x30", b"\xe8\x00\x00\x00\x00", b"\x9c"] {
        b.vm.state.activity = Activity::Running;
        b.vm.state.rip = CODE;
        b.vm.state.gpr[RSP] = HOLE + 8;
        b.vm.state.gpr[RAX] = DATA;
        let caught = b.bytes(code).expect(14, 2, 0);
        assert_eq!(caught.rsp, HOLE + 8);
    }
}

#[test]
fn compatibility_mode_addresses_have_32_bits() {
    let mut b = Bench::new(64);
    b.set_descriptor(FREE, flat(0x9b, BIG));
    let code = b.segment(FREE);
    b.vm.state.seg[sreg::CS] = code;
    b.vm.state.seg[sreg::DS].base = 0xffff_0000;
    b.vm.state.gpr[RAX] = DATA + 0x1_0000;
    b.write_u32(DATA, 0x1234_5678);
    b.bytes(b"\x8b\x08\xf4").expect_halt();
    assert_eq!(b.vm.state.gpr[RCX], 0x1234_5678);
    // An operand over the end of the 4 GiB.
    b.vm.mem.map(0xffff_f000, Some(Mapping { gpa: DATA, write: true, user: true }));
    b.vm.state.gpr[RAX] = 0xfffe;
    b.write(DATA + 0xffe, b"\x11\x22");
    b.write(0, b"\x33\x44");
    b.vm.state.activity = Activity::Running;
    b.vm.state.rip = CODE;
    b.expect_halt();
    assert_eq!(b.vm.state.gpr[RCX], 0x4433_2211);
}

#[test]
fn leaving_protected_mode_with_a_null_segment_gives_a_usable_one() {
    let mut b = Bench::new(16);
    b.vm.state.seg[sreg::DS] = Segment::NULL;
    b.code(|a| {
        a.mov(r::ds, r::ax)?;
        a.mov(r::ecx, dword_ptr(r::bx))?;
        a.hlt()
    });
    b.vm.state.gpr[RAX] = DATA >> 4;
    b.write_u32(DATA, 0x1234_5678);
    b.expect_halt();
    assert_eq!(b.vm.state.gpr[RCX], 0x1234_5678);
}
