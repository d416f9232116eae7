//! Virtio devices set up half right.
//!
//! Problem: random register writes never get a device as far as looking at a ring. Scheme: the chunk walks
//! the whole way of a driver (reset, status bits, features, queue addresses, DRIVER_OK, ring the bell), with
//! each step left out or spoilt now and then, over rings drawn here: descriptors with wild addresses,
//! lengths and links, indirect tables, indices ahead of and behind themselves. Every third driver is one from
//! before virtio 1.0, which goes through ports. Source: VIRTIO 1.2, §3.1 "Device Initialization", §2.7 "Split
//! Virtqueues", §4.1.4.3 "Common configuration structure layout", §4.1.4.10 "Legacy Interfaces".

use super::chunks::{EAX, EBX, Emitter};
use super::places;
use super::rng::Rng;

const COMMON: u32 = 0;
const NOTIFY: u32 = 0x3000;
const RING_BYTES: u32 = 0x1000;

/// Where queue `n` has its three parts.
fn ring(n: u32) -> [u32; 3] {
    let start = places::RINGS + RING_BYTES * n;
    [start, start + 0x400, start + 0x800]
}

/// Where the board puts the devices' ports.
const PORTS: u16 = 0xc000;
const PORTS_STEP: u16 = 0x20;
/// Where old drivers have all their queues, one over the other.
const OLD_RING: u32 = places::RINGS;

/// Steps of a driver for one of the devices.
pub fn chunk(rng: &mut Rng, e: &mut Emitter) {
    if rng.one_in(3) {
        old_driver(rng, e);
        return;
    }
    // BAR 4 of some slot into EBX.
    let slot = 1 + rng.below(6) as u32;
    e.out(0xcf8, 4, 1 << 31 | slot << 11 | 0x20);
    e.input(0xcfc, 4);
    e.operand32();
    e.bytes(&[0x83, 0xe0, 0xf0]); // and eax, -16
    e.operand32();
    e.bytes(&[0x89, 0xc3]); // mov ebx, eax
    let mut write = |rng: &mut Rng, offset: u32, size: u32, value: u32| {
        if rng.one_in(24) {
            return;
        }
        let value = if rng.one_in(24) { rng.odd_u64() as u32 } else { value };
        e.mov(EAX, value);
        e.store(size, COMMON + offset);
    };
    for status in [0, 1, 3] {
        write(rng, 0x14, 1, status);
    }
    let features = if rng.one_in(2) { 0 } else { rng.u32() };
    for (select, value) in [(0, features & 0x3000_0000 | features & 0x7f), (1, 1)] {
        write(rng, 0x08, 4, select);
        write(rng, 0x0c, 4, value);
    }
    write(rng, 0x14, 1, 0xb);
    for queue in 0..1 + rng.below(4) as u32 {
        write(rng, 0x16, 2, queue);
        let size = *rng.pick(&[1, 2, 8, 16, 64, 256, 3, 0x8000]);
        write(rng, 0x18, 2, size);
        let parts = ring(queue);
        for (register, part) in (0..).zip(parts) {
            let part = if rng.one_in(16) { places::edge(rng) as u32 } else { part };
            write(rng, 0x20 + 8 * register, 4, part);
            write(rng, 0x24 + 8 * register, 4, 0);
        }
        write(rng, 0x1a, 2, rng.clone().u32() & 3);
        write(rng, 0x1c, 2, 1);
    }
    write(rng, 0x14, 1, 0xf);
    rings(rng, e);
    for _ in 0..1 + rng.below(4) {
        let queue = rng.below(5) as u32;
        e.mov(EAX, queue);
        e.store(2, NOTIFY + 4 * queue);
    }
    if rng.one_in(4) {
        // Reset under it.
        e.mov(EAX, 0);
        e.store(1, COMMON + 0x14);
    }
}

/// Steps of a driver from before virtio 1.0.
fn old_driver(rng: &mut Rng, e: &mut Emitter) {
    let ports = PORTS + PORTS_STEP * rng.below(12) as u16;
    let mut write = |rng: &mut Rng, offset: u16, size: u32, value: u32| {
        if rng.one_in(24) {
            return;
        }
        let value = if rng.one_in(24) { rng.odd_u64() as u32 } else { value };
        e.out(ports + offset, size, value);
    };
    for status in [0, 1, 3] {
        write(rng, 0x12, 1, status);
    }
    let features = if rng.one_in(2) { 0 } else { rng.u32() };
    write(rng, 0x04, 4, features);
    for queue in 0..1 + rng.below(4) as u32 {
        write(rng, 0x0e, 2, queue);
        let page = if rng.one_in(8) { places::edge(rng) as u32 } else { OLD_RING };
        write(rng, 0x08, 4, page >> 12);
        if rng.one_in(4) {
            write(rng, 0x16, 2, rng.clone().u32() & 3);
        }
    }
    if !rng.one_in(4) {
        write(rng, 0x12, 1, 7);
    }
    if rng.one_in(8) {
        e.input(ports + rng.below(0x20) as u16, *rng.pick(&[1, 2, 4]));
    }
    let available = OLD_RING + 16 * *rng.pick(&[64, 128, 256]);
    ring_contents(rng, e, [OLD_RING, available]);
    for _ in 0..1 + rng.below(4) {
        e.out(ports + 0x10, 2, rng.below(5) as u32);
    }
    if rng.one_in(4) {
        // A queue moves, or goes, under it.
        e.out(ports + 0x0e, 2, rng.below(3) as u32);
        e.out(ports + 0x08, 4, *rng.pick(&[0, OLD_RING >> 12, 0xffff_ffff]));
    }
    if rng.one_in(4) {
        e.out(ports + 0x12, 1, 0);
    }
}

/// Writes a few descriptors and an available ring. EBX is kept by pushing it, where there is a stack.
fn rings(rng: &mut Rng, e: &mut Emitter) {
    let [descriptors, available, _] = ring(rng.below(3) as u32);
    ring_contents(rng, e, [descriptors, available]);
}

/// The same at these places.
fn ring_contents(rng: &mut Rng, e: &mut Emitter, [descriptors, available]: [u32; 2]) {
    e.operand32();
    e.bytes(&[0x53]); // push ebx
    let count = 1 + rng.below(5) as u32;
    e.mov(EBX, descriptors);
    for n in 0..count {
        let address = if rng.one_in(4) { places::edge(rng) } else { places::register(rng) };
        let length = match rng.below(4) {
            0 => rng.below(0x10000) as u32,
            1 => rng.odd_u64() as u32,
            _ => *rng.pick(&[1, 16, 20, 512, 4096]),
        };
        // NEXT, WRITE, INDIRECT
        let flags = if rng.one_in(8) {
            rng.u32() & 0xffff
        } else {
            u32::from(n + 1 < count) | rng.u32() & 2
        };
        // A table of descriptors that is this one.
        let (address, flags) =
            if rng.one_in(8) { (u64::from(descriptors), 4) } else { (address, flags) };
        let next = if rng.one_in(8) { rng.u32() & 0xffff } else { n + 1 };
        let high = if rng.one_in(8) { (address >> 32) as u32 } else { 0 };
        for (offset, value) in
            [(0, address as u32), (4, high), (8, length), (12, flags | next << 16)]
        {
            e.mov(EAX, value);
            e.store(4, 16 * n + offset);
        }
    }
    // Indirect tables and block requests are read from there: a header that asks for something.
    e.mov(EBX, places::DATA);
    e.mov(EAX, *rng.pick(&[0, 1, 4, 8, 11, 13]));
    e.store(4, 0);
    e.mov(EBX, available);
    let index = *rng.pick(&[1, 1, 1, 2, 5, 0xffff, 0x100]);
    e.mov(EAX, index << 16 | rng.u32() & 1);
    e.store(4, 0);
    e.mov(EAX, if rng.one_in(8) { rng.u32() } else { 0 });
    e.store(4, 4);
    e.operand32();
    e.bytes(&[0x5b]); // pop ebx
}
