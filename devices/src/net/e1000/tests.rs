//! What a driver of the card sees, and what a hostile one does.

use std::sync::Arc;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::add;
use super::receive::check_sequence;
use super::transmit::sum;
use crate::bus::Bus;
use crate::clock::lock;
use crate::net::fake::FakeNet;
use crate::net::{Mac, NetBackend};
use crate::pci::PciRoot;
use crate::virtio::tests::board::Sink;

type Ram = Arc<GuestMemoryMmap<()>>;

const REGISTERS: u64 = 0xe000_0000;
const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x2000;
const RX_BUFFERS: u64 = 0x1_0000;
const TX_BUFFERS: u64 = 0x8_0000;
const SELF: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Slot 2's INTA# at the I/O APIC.
const GSI: u32 = 18;

struct Board {
    memory: Bus,
    ports: Bus,
    _root: Arc<std::sync::Mutex<PciRoot>>,
    sink: Arc<Sink>,
    ram: Ram,
    network: Arc<FakeNet>,
}

impl Board {
    fn new() -> Self {
        let (memory, mut ports) = (Bus::new(), Bus::new());
        let sink = Arc::new(Sink::default());
        let root = PciRoot::new(&memory, &mut ports, Arc::clone(&sink) as _, Box::new(()))
            .expect("free ports");
        let ram: Ram =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("1 MiB"));
        let network = FakeNet::new();
        let backend: Arc<dyn NetBackend> = Arc::clone(&network) as _;
        let rom = vec![0x55, 0xaa, 1];
        let slot = add(&mut lock(&root), Arc::clone(&ram), backend, Mac(SELF), rom);
        assert_eq!(slot.expect("free slot"), 2);
        lock(&root).assign_resources(REGISTERS..0xe100_0000, 0xc000..0xd000).expect("space");
        let board = Self { memory, ports, _root: root, sink, ram, network };
        board.config(4, 2, 7);
        board
    }

    fn config(&self, offset: u64, size: u8, value: u64) {
        self.ports.write(0xcf8, 4, 1 << 31 | 2 << 11 | offset & !3);
        self.ports.write(0xcfc + (offset & 3), size, value);
    }

    fn config_read(&self, offset: u64) -> u64 {
        self.ports.write(0xcf8, 4, 1 << 31 | 2 << 11 | offset);
        self.ports.read(0xcfc, 4)
    }

    fn read(&self, register: u64) -> u32 {
        self.memory.read(REGISTERS + register, 4) as u32
    }

    fn write(&self, register: u64, value: u32) {
        self.memory.write(REGISTERS + register, 4, value.into());
    }

    /// Eight descriptors each way, all receive buffers of 2 KiB but one with the card; all interrupts on.
    fn start(&self) {
        for n in 0..8 {
            let at = GuestAddress(RX_RING + 16 * n);
            self.ram.write_obj([RX_BUFFERS + 0x1000 * n, 0], at).expect("in RAM");
        }
        for (register, value) in [
            (0x2800, RX_RING as u32),
            (0x2808, 128),
            (0x2818, 7),
            (0x3800, TX_RING as u32),
            (0x3808, 128),
            (0x00d0, 0xffff_ffff),
            (0x0100, 0x8002),
            (0x0400, 2),
        ] {
            self.write(register, value);
        }
    }

    /// Status, length and special of a receive descriptor, and what is in its buffer.
    fn received(&self, n: u64) -> (u8, u16, Vec<u8>) {
        let words: [u64; 2] = self.ram.read_obj(GuestAddress(RX_RING + 16 * n)).expect("in RAM");
        let mut bytes = vec![0; (words[1] & 0xffff) as usize];
        self.ram.read_slice(&mut bytes, GuestAddress(words[0])).expect("in RAM");
        ((words[1] >> 32) as u8, (words[1] >> 48) as u16, bytes)
    }

    /// Puts descriptors behind those that are there and moves the tail. Buffers follow each other.
    fn send(&self, descriptors: &[[u64; 2]]) {
        let mut tail = u64::from(self.read(0x3818));
        for descriptor in descriptors {
            let at = GuestAddress(TX_RING + 16 * tail);
            self.ram.write_obj(*descriptor, at).expect("in RAM");
            tail = (tail + 1) % 8;
        }
        self.write(0x3818, tail as u32);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).expect("in RAM");
    }
}

fn frame_to(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 9, 8, 0]].concat();
    frame.extend((14..len).map(|i| i as u8));
    frame
}

#[test]
fn the_card_is_what_drivers_look_for() {
    let board = Board::new();
    assert_eq!(board.config_read(0), 0x100e_8086);
    assert_eq!(board.config_read(8), 0x0200_0003);
    assert_eq!(board.config_read(0x3c) >> 8 & 0xff, 1, "INTA#");
    board.config(0x30, 4, 0xe080_0001);
    assert_eq!(board.memory.read(0xe080_0000, 2), 0xaa55, "its ROM");
    assert_eq!(board.read(8) & 0xc3, 0x83, "link up, full duplex, 1,000 Mb/s");
    // Its address, and the same through the I/O window.
    assert_eq!(board.read(0x5400), 0x1200_5452);
    assert_eq!(board.read(0x5404), 0x8000_5634);
    let ports = board.config_read(0x18);
    assert_eq!(ports & 3, 1);
    board.ports.write(ports & !3, 4, 0x5404);
    assert_eq!(board.ports.read((ports & !3) + 4, 4), 0x8000_5634);
    board.ports.write((ports & !3) + 4, 4, 0);
    assert_eq!(board.read(0x5404), 0);
    board.write(0, 1 << 26);
    assert_eq!(board.read(0x5404), 0x8000_5634, "a reset reads it again");
}

#[test]
fn the_eeprom_is_read_by_register_and_by_pins() {
    let board = Board::new();
    let mut sum = 0_u16;
    for word in 0..64_u32 {
        board.write(0x14, word << 8 | 1);
        let register = board.read(0x14);
        assert_eq!(register & 0xff10, word << 8 | 0x10, "done");
        // Request and grant, then select, and clock out 110 and six bits of address.
        board.write(0x10, 1 << 6);
        assert_ne!(board.read(0x10) & 1 << 7, 0);
        let command = 0b110 << 6 | word;
        board.write(0x10, 1 << 6 | 2);
        for bit in (0..9).rev() {
            let pins = 1 << 6 | 2 | (command >> bit & 1) << 2;
            board.write(0x10, pins);
            board.write(0x10, pins | 1);
            board.write(0x10, pins);
        }
        let mut value = 0;
        for _ in 0..16 {
            board.write(0x10, 1 << 6 | 2 | 1);
            value = value << 1 | board.read(0x10) >> 3 & 1;
            board.write(0x10, 1 << 6 | 2);
        }
        board.write(0x10, 0);
        assert_eq!(value, register >> 16, "word {word}");
        sum = sum.wrapping_add(value as u16);
    }
    assert_eq!(sum, 0xbaba);
}

#[test]
fn the_phy_says_that_the_link_is_up_and_negotiates_anew() {
    let board = Board::new();
    board.write(0xd0, 0x0204);
    let read = |register: u32| {
        board.write(0x20, 2 << 26 | 1 << 21 | register << 16);
        let access = board.read(0x20);
        assert_eq!(access >> 28 & 5, 1, "ready, and no error");
        access & 0xffff
    };
    assert_eq!((read(2), read(3)), (0x0141, 0x0c20));
    assert_eq!(read(1) & 0x24, 0x24, "complete, and up");
    board.write(0x20, 1 << 26 | 1 << 21 | 0x1340);
    assert_eq!(board.read(0xc0), 4, "a change of the link");
    assert_eq!(read(0), 0x1140);
    board.write(0x20, 2 << 26 | 1 << 21 | 1 << 29);
    assert!(board.sink.level(GSI));
    assert_eq!(board.read(0xc0), 0x200);
    assert!(!board.sink.level(GSI));
    board.write(0x20, 2 << 26 | 7 << 21);
    assert_ne!(board.read(0x20) & 1 << 30, 0, "nobody at another address");
}

#[test]
fn frames_arrive_with_their_check_sequence_and_interrupt() {
    let board = Board::new();
    board.start();
    assert_eq!(check_sequence(b"123456789"), 0xcbf4_3926);
    let frame = frame_to(SELF, 1514);
    board.network.deliver(&frame);
    let (status, _, bytes) = board.received(0);
    assert_eq!(status, 0b111, "done, the end, no checksum looked at");
    assert_eq!(bytes[..1514], frame);
    assert_eq!(bytes[1514..], check_sequence(&frame).to_le_bytes());
    assert!(board.sink.level(GSI));
    assert_eq!(board.read(0xc0), 1 << 7);
    assert!(!board.sink.level(GSI));
    // A short one is filled up; without the check sequence if so wished.
    board.write(0x100, 0x8002 | 1 << 26);
    board.network.deliver(&frame_to([0xff; 6], 20));
    let (_, _, bytes) = board.received(1);
    assert_eq!((bytes.len(), &bytes[20..]), (60, &[0; 40][..]));
    assert_eq!((board.read(0x4074), board.read(0x4074)), (2, 0), "cleared when read");
    // Four more fill half of the ring and more; the last descriptor is the driver's.
    for _ in 0..7 {
        board.network.deliver(&frame);
    }
    assert_eq!(board.network.waiting(), 2);
    assert_eq!(board.read(0x2810), 7);
    assert_ne!(board.read(0xc0) & 1 << 4, 0, "few descriptors");
    board.write(0x2818, 1);
    assert_eq!((board.network.waiting(), board.read(0x2810)), (0, 1));
}

#[test]
fn a_large_frame_is_spread_over_small_buffers() {
    let board = Board::new();
    board.start();
    // Buffers of 256 bytes.
    board.write(0x100, 0x8002 | 3 << 16);
    let frame = frame_to(SELF, 600);
    board.network.deliver(&frame);
    let pieces: Vec<_> = (0..3).map(|n| board.received(n)).collect();
    assert_eq!(pieces.iter().map(|piece| piece.0).collect::<Vec<_>>(), [5, 5, 7]);
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.2).collect();
    assert_eq!(bytes[..600], frame);
    assert_eq!(bytes.len(), 604);
}

#[test]
fn filters_let_in_what_the_driver_wants() {
    let board = Board::new();
    board.start();
    let mut n = 0;
    let mut comes_in = |control: u32, to: [u8; 6]| {
        board.write(0x100, control);
        let before = board.read(0x2810);
        board.network.deliver(&frame_to(to, 60));
        assert_eq!(board.network.waiting(), 0);
        n = board.read(0x2810);
        // The driver gives the buffer back.
        board.write(0x2818, (n + 7) % 8);
        n != before
    };
    let (other, group) = ([2, 0, 0, 0, 0, 7], [1, 0, 0x5e, 0, 0, 0xfb]);
    assert!(comes_in(2, SELF));
    assert!(!comes_in(2, other) && comes_in(2 | 1 << 3, other), "promiscuous");
    assert!(!comes_in(2, [0xff; 6]) && comes_in(2 | 1 << 15, [0xff; 6]));
    assert!(!comes_in(2, group) && comes_in(2 | 1 << 4, group));
    assert!(!comes_in(0, SELF), "off");
    // The table: bits 47 to 36 of the address, 0xfb0.
    board.write(0x5200 + 4 * (0xfb0 >> 5), 1 << (0xfb0 & 31));
    assert!(comes_in(2, group));
    assert!(!comes_in(2 | 3 << 12, group), "other bits");
    // Another address in the list.
    board.write(0x5408, 2);
    board.write(0x540c, 0x8000_0700);
    assert!(comes_in(2, other));
}

#[test]
fn vlan_tags_are_filtered_taken_off_and_put_on() {
    let board = Board::new();
    board.start();
    let mut tagged = frame_to(SELF, 64);
    tagged.splice(12..12, [0x81, 0, 0xa0, 0x05]);
    board.write(0x100, 0x8002 | 1 << 18 | 1 << 26);
    board.network.deliver(&tagged);
    assert_eq!(board.received(0).0, 0, "not in the table");
    board.write(0x5600, 1 << 5);
    board.network.deliver(&tagged);
    assert_eq!(board.received(0).2, tagged);
    board.write(0, 1 << 30 | 1);
    board.network.deliver(&tagged);
    let (status, special, bytes) = board.received(1);
    assert_eq!((status & 8, special, bytes), (8, 0xa005, frame_to(SELF, 64)));
    board.put(TX_BUFFERS, &frame_to(SELF, 64));
    board.send(&[[TX_BUFFERS, 0xa005 << 48 | 0x49 << 24 | 64]]);
    assert_eq!(board.network.sent(), [tagged]);
}

#[test]
fn frames_are_sent_and_their_descriptors_given_back() {
    let board = Board::new();
    board.start();
    let frame = frame_to([2; 6], 300);
    board.put(TX_BUFFERS, &frame);
    // In three pieces; the last reports.
    board.send(&[
        [TX_BUFFERS, 100],
        [TX_BUFFERS + 100, 150],
        [TX_BUFFERS + 250, (1 << 3 | 1) << 24 | 50],
    ]);
    assert_eq!(board.network.sent(), std::slice::from_ref(&frame));
    assert_eq!(board.read(0x3810), 3);
    let status = |n: u64| -> u8 { self::byte(&board.ram, TX_RING + 16 * n + 12) };
    assert_eq!([status(0), status(1), status(2)], [0, 0, 1]);
    assert_eq!(board.read(0xc0), 3, "written back, and the ring is empty");
    // A simple checksum over the last 20 bytes, put in front of them.
    board.send(&[[TX_BUFFERS, 24 << 32 | (1 << 2 | 1) << 24 | 20 << 16 | 44 | 24 << 40]]);
    let sent = board.network.sent();
    assert_eq!(sent[1][20..22], (!sum(&frame[24..44])).to_be_bytes());
    // Off, nothing goes.
    board.write(0x400, 0);
    board.send(&[[TX_BUFFERS, 1 << 24 | 60]]);
    assert_eq!(board.network.sent().len(), 2);
    board.write(0x400, 2);
    assert_eq!(board.network.sent().len(), 3);
    // No room: it stays the driver's turn to wait.
    board.network.set_room(Some(0));
    board.send(&[[TX_BUFFERS, 1 << 24 | 60]]);
    assert_eq!((board.read(0x3810), board.network.sent().len()), (5, 3));
    board.network.set_room(None);
    assert_eq!((board.read(0x3810), board.network.sent().len()), (6, 4));
}

fn byte(ram: &Ram, at: u64) -> u8 {
    ram.read_obj(GuestAddress(at)).expect("in RAM")
}

/// Ethernet, IPv4 and TCP headers with `payload` bytes behind, as a driver leaves them to the card: no
/// lengths, and in the checksum the sum of addresses and protocol.
fn tcp_packet(payload: usize) -> Vec<u8> {
    let mut packet = frame_to([2; 6], 14);
    packet.extend([0x45, 0, 0, 0, 0x12, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    let pseudo = sum(&[10, 0, 2, 15, 10, 0, 2, 2, 0, 6]).to_be_bytes();
    packet.extend([0x10, 0, 0, 80, 0xff, 0xff, 0xfe, 0, 0, 0, 0, 1, 0x50, 0x19, 0x10, 0]);
    packet.extend([pseudo[0], pseudo[1], 0, 0]);
    packet.extend((0..payload).map(|i| (i % 251) as u8));
    packet
}

/// A context for it: TCP over IPv4.
fn tcp_context(segment: u64, len: u64) -> [u64; 2] {
    let low = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
    let command = 1 | 2 | if segment > 0 { 4 } else { 0 } | 1 << 5;
    [low, len | command << 24 | 54 << 40 | segment << 48]
}

fn assert_sound(frame: &[u8]) {
    assert_eq!(sum(&frame[14..34]), 0xffff, "IP checksum");
    let len = u16::from_be_bytes([frame[16], frame[17]]);
    assert_eq!(usize::from(len), frame.len() - 14);
    let mut covered = frame[26..34].to_vec();
    covered.extend([0, 6]);
    covered.extend((len - 20).to_be_bytes());
    covered.extend_from_slice(&frame[34..]);
    assert_eq!(sum(&covered), 0xffff, "TCP checksum");
}

#[test]
fn a_long_packet_is_cut_into_segments() {
    let board = Board::new();
    board.start();
    let packet = tcp_packet(4000);
    board.put(TX_BUFFERS, &packet);
    let data = |len: u64, end: u64| len | 1 << 20 | (1 << 5 | 1 << 2 | end) << 24 | 3 << 40;
    board.send(&[
        tcp_context(1460, 4000),
        [TX_BUFFERS, data(54, 0)],
        [TX_BUFFERS + 54, data(4000, 1 | 8)],
    ]);
    let sent = board.network.sent();
    assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 1514, 1134]);
    let payload: Vec<u8> = sent.iter().flat_map(|frame| frame[54..].to_vec()).collect();
    assert_eq!(payload, packet[54..]);
    for (n, frame) in sent.iter().enumerate() {
        assert_sound(frame);
        assert_eq!(frame[18..20], (0x12ff + n as u16).to_be_bytes(), "identification");
        let sequence = 0xffff_fe00_u32.wrapping_add(1460 * n as u32);
        assert_eq!(frame[38..42], sequence.to_be_bytes());
        assert_eq!(frame[47], if n == 2 { 0x19 } else { 0x10 }, "FIN and PSH at the end");
    }
    assert_eq!(board.read(0x40f8), 1);
}

#[test]
fn checksums_are_put_in_without_cutting() {
    let board = Board::new();
    board.start();
    let mut packet = tcp_packet(101);
    // Here the driver knows the lengths.
    packet[16..18].copy_from_slice(&141_u16.to_be_bytes());
    let pseudo = sum(&[10, 0, 2, 15, 10, 0, 2, 2, 0, 6, 0, 121]);
    packet[50..52].copy_from_slice(&pseudo.to_be_bytes());
    board.put(TX_BUFFERS, &packet);
    let data = packet.len() as u64 | 1 << 20 | (1 << 5 | 1) << 24 | 3 << 40;
    board.send(&[tcp_context(0, 0), [TX_BUFFERS, data]]);
    let sent = board.network.sent();
    assert_eq!(sent.len(), 1);
    assert_sound(&sent[0]);
}

#[test]
fn without_bus_mastering_the_guests_memory_is_left_alone() {
    let board = Board::new();
    board.start();
    board.config(4, 2, 3);
    board.send(&[[TX_BUFFERS, (1 << 3 | 1) << 24 | 60]]);
    board.network.deliver(&frame_to(SELF, 60));
    assert!(board.network.sent().is_empty());
    assert_eq!((board.received(0).0, board.read(0x3810)), (0, 0));
    board.config(4, 2, 7);
    assert_eq!(board.network.sent().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any register accesses over any memory, with frames coming in.
    #[test]
    fn random_accesses_neither_panic_nor_hang(
        memory in vec(any::<u8>(), 0x400),
        accesses in vec((0..40usize, any::<u16>(), any::<u32>(), 0..3u8), 1..150),
    ) {
        const REGISTERS: [u64; 20] = [
            0x0000, 0x0010, 0x0014, 0x0020, 0x00c0, 0x00d0, 0x0100, 0x0400, 0x2800, 0x2804,
            0x2808, 0x2810, 0x2818, 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x5000, 0x5600,
        ];
        let board = Board::new();
        board.start();
        board.put(RX_RING, &memory);
        board.put(TX_RING, &memory);
        let begin = Instant::now();
        for (which, offset, value, what) in accesses {
            let register = REGISTERS.get(which).copied().unwrap_or(u64::from(offset) * 2);
            // Small values lead deeper than random ones.
            let value = if value & 1 == 0 { value >> 1 & 0xff } else { value };
            match what {
                0 => {
                    let _ = board.read(register);
                }
                1 => board.network.deliver(&memory[..usize::from(offset) % 0x400]),
                _ => board.write(register, value),
            }
        }
        lock(&board._root).reset();
        prop_assert!(begin.elapsed().as_secs() < 60);
    }
}
