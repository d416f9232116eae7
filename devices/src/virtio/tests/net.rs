//! What a driver of the network device sees.

use std::sync::Arc;

use virtio_drivers::device::net::VirtIONetRaw;
use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, PciTransport, RAM, TestHal, alloc, eventually};
use crate::net::fake::FakeNet;
use crate::net::{FRAME_MAX, Mac, NetBackend};
use crate::virtio::Net;

type Driver = VirtIONetRaw<TestHal, PciTransport, 16>;

fn card() -> (Arc<FakeNet>, Arc<Board>) {
    let network = FakeNet::new();
    let backend: Arc<dyn NetBackend> = Arc::clone(&network) as _;
    let board = Board::with(Net::new(backend, Mac([2, 0, 0, 1, 2, 3])), &RAM);
    (network, board)
}

#[test]
fn frames_go_both_ways_in_order_and_whole() {
    let (network, board) = card();
    assert_eq!(board.config_read(2, 0, 4), 0x1000_1af4);
    assert_eq!(board.config_read(2, 8, 4) >> 16, 0x0200, "an Ethernet controller");
    let mut driver = Driver::new(PciTransport::new(&board)).expect("the driver starts");
    assert_eq!(driver.mac_address(), [2, 0, 0, 1, 2, 3]);
    let frames: Vec<Vec<u8>> =
        [14, 60, 1000, FRAME_MAX].iter().map(|&len| (0..len).map(|i| i as u8).collect()).collect();
    for frame in &frames {
        driver.send(frame).expect("sent");
    }
    assert_eq!(network.sent(), frames);
    // What isn't a frame gets its buffer back, too.
    driver.send(&[1; 13]).expect("taken");
    driver.send(&[1; FRAME_MAX + 1]).expect("taken");
    assert_eq!(network.sent().len(), frames.len());

    for frame in &frames {
        network.deliver(frame);
    }
    let mut buffer = [0xff; 2048];
    for frame in &frames {
        let (header, len) = driver.receive_wait(&mut buffer).expect("received");
        assert_eq!(header, 12);
        assert_eq!(buffer[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(&buffer[12..12 + len], &frame[..]);
    }
    eventually("INTx", || board.sink.level(18));
}

/// A driver by hand: both queues with 16 entries; receive buffers lie in one page, transmit ones in another.
struct ByHand {
    driver: PciTransport,
    rings: [u64; 2],
    buffers: u64,
}

impl ByHand {
    fn new(board: &Arc<Board>) -> Self {
        Self::with_features(board, 0)
    }

    fn with_features(board: &Arc<Board>, more: u64) -> Self {
        let driver = PciTransport::new(board);
        assert!(driver.negotiate(1 << 32 | 1 << 5 | 1 << 16 | more));
        let rings = [alloc(3 * 4096), alloc(3 * 4096)];
        for (queue, ring) in rings.into_iter().enumerate() {
            driver.write(0x16, 2, queue as u64);
            driver.write(0x18, 2, 16);
            driver.write(0x20, 8, ring);
            driver.write(0x28, 8, ring + 0x1000);
            driver.write(0x30, 8, ring + 0x2000);
            driver.write(0x1c, 2, 1);
        }
        driver.write(0x14, 1, 0xf);
        Self { driver, rings, buffers: alloc(16 * 4096) }
    }

    /// Offers `descriptors` (length, flags) of chain `head`; returns the first buffer's address.
    fn offer(&self, queue: usize, head: u16, descriptors: &[(u32, u16)]) -> u64 {
        let ring = self.rings[queue];
        let first = self.buffers + 4096 * u64::from(head);
        let mut address = first;
        for (i, &(len, flags)) in (head..).zip(descriptors) {
            let at = GuestAddress(ring + 16 * u64::from(i));
            let words = [address, u64::from(len) | u64::from(flags) << 32 | u64::from(i + 1) << 48];
            RAM.write_obj(words, at).expect("in RAM");
            address += u64::from(len);
        }
        let index: u16 = RAM.read_obj(GuestAddress(ring + 0x1002)).expect("in RAM");
        let slot = GuestAddress(ring + 0x1004 + 2 * u64::from(index % 16));
        RAM.write_obj(head, slot).expect("in RAM");
        RAM.write_obj(index + 1, GuestAddress(ring + 0x1002)).expect("in RAM");
        self.driver.notify_queue(queue as u16);
        first
    }

    /// The used ring's index, and the length of its last entry.
    fn used(&self, queue: usize) -> (u16, u32) {
        let ring = self.rings[queue] + 0x2000;
        let index: u16 = RAM.read_obj(GuestAddress(ring + 2)).expect("in RAM");
        let last = 8 * u64::from(index.wrapping_sub(1) % 16);
        (index, RAM.read_obj(GuestAddress(ring + 8 + last)).expect("in RAM"))
    }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;

#[test]
fn a_frame_waits_for_a_buffer_and_one_too_small_comes_back_empty() {
    let (network, board) = card();
    let driver = ByHand::new(&board);
    network.deliver(&[0xaa; 100]);
    network.deliver(&[0xbb; 100]);
    network.deliver(&[0xcc; 100]);
    assert_eq!(driver.used(0).0, 0);
    assert_eq!(network.waiting(), 3);
    // Header and frame need 112 bytes.
    driver.offer(0, 0, &[(111, WRITE)]);
    eventually("the small buffer", || driver.used(0) == (1, 0));
    let at = driver.offer(0, 1, &[(12, WRITE | NEXT), (50, WRITE | NEXT), (60, WRITE)]);
    eventually("the large one", || driver.used(0) == (2, 112));
    let mut bytes = [0; 113];
    RAM.read_slice(&mut bytes, GuestAddress(at)).expect("in RAM");
    assert_eq!(bytes[10], 1, "num_buffers");
    assert_eq!(bytes[12..], [[0xbb; 100].as_slice(), &[0]].concat());
    assert_eq!(network.waiting(), 1, "the next waits");
    driver.driver.write(0x14, 1, 0);
}

#[test]
fn packets_wait_while_the_network_has_no_room() {
    let (network, board) = card();
    let driver = ByHand::new(&board);
    network.set_room(Some(1));
    for head in [0, 2, 4] {
        let at = driver.offer(1, head, &[(12, NEXT), (60, 0)]);
        RAM.write_slice(&[0; 12], GuestAddress(at)).expect("in RAM");
    }
    eventually("the first", || driver.used(1).0 == 1);
    assert_eq!(network.sent().len(), 1);
    network.set_room(Some(2));
    eventually("the others", || driver.used(1).0 == 3);
    assert_eq!(network.sent().len(), 3);
    driver.driver.write(0x14, 1, 0);
}

#[test]
fn what_needs_an_offload_is_not_sent_and_half_a_header_needs_a_reset() {
    let (network, board) = card();
    let driver = ByHand::new(&board);
    for (head, header) in [(0, [1, 0]), (1, [0, 1]), (2, [0, 0])] {
        let at = driver.buffers + 4096 * u64::from(head);
        RAM.write_slice(&[0; 100], GuestAddress(at)).expect("in RAM");
        RAM.write_slice(&header, GuestAddress(at)).expect("in RAM");
        driver.offer(1, head, &[(72, 0)]);
        eventually("it is given back", || driver.used(1).0 == head + 1);
    }
    assert_eq!(network.sent(), [[0; 60]]);
    driver.offer(1, 3, &[(11, 0)]);
    eventually("a request for a reset", || driver.driver.read(0x14, 1) & 0x40 != 0);
    assert_eq!(driver.used(1).0, 3);
    driver.driver.write(0x14, 1, 0);
}

/// VIRTIO_NET_F_CSUM and VIRTIO_NET_F_HOST_TSO4.
const OFFLOADS: u64 = 1 << 0 | 1 << 11;

/// A packet's header: flags, segmentation, and where the checksum begins and goes.
fn header(flags: u8, segmentation: u8, start: u16, offset: u16) -> Vec<u8> {
    let mut header = vec![flags, segmentation, 0, 0, 0, 0];
    header.extend(start.to_le_bytes());
    header.extend(offset.to_le_bytes());
    header.extend([0, 0]);
    header
}

#[test]
fn checksums_are_completed_and_long_segments_sent_whole() {
    let (network, board) = card();
    let driver = ByHand::with_features(&board, OFFLOADS);
    let memory = alloc(17 * 4096);
    let send = |head: u16, header: &[u8], frame: &[u8]| {
        let packet = [header, frame].concat();
        RAM.write_slice(&packet, GuestAddress(memory)).expect("in RAM");
        let at = GuestAddress(driver.rings[1] + 16 * u64::from(head));
        RAM.write_obj([memory, packet.len() as u64], at).expect("in RAM");
        let index: u16 = RAM.read_obj(GuestAddress(driver.rings[1] + 0x1002)).expect("in RAM");
        let slot = GuestAddress(driver.rings[1] + 0x1004 + 2 * u64::from(index % 16));
        RAM.write_obj(head, slot).expect("in RAM");
        RAM.write_obj(index + 1, GuestAddress(driver.rings[1] + 0x1002)).expect("in RAM");
        driver.driver.notify_queue(1);
        eventually("it is given back", || driver.used(1).0 == index + 1);
        network.take_sent()
    };
    // RFC 1071, "Numerical Examples": the sum of these is ddf2.
    let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    let mut frame = vec![0xee; 60];
    frame[34..].fill(0);
    frame[40..48].copy_from_slice(&example);
    let sent = send(0, &header(1, 0, 34, 16), &frame);
    frame[50..52].copy_from_slice(&[0x22, 0x0d]);
    assert_eq!(sent, [frame.clone()]);
    // An odd length; a sum of zero.
    frame.truncate(49);
    frame[48] = 0x22;
    frame[36..38].copy_from_slice(&[0, 0x0d]);
    let sent = send(1, &header(1, 0, 34, 0), &frame);
    assert_eq!(sent[0][34..36], [0xff, 0xff]);
    // Fields outside the frame, and what wasn't negotiated: not sent.
    for bad in [
        header(1, 0, 48, 0),
        header(1, 0, 50, 0),
        header(1, 0, 0xffff, 0xffff),
        header(0, 3, 0, 0),
        header(1, 0x81, 34, 16),
    ] {
        assert_eq!(send(2, &bad, &frame), [[0u8; 0]; 0], "{bad:?}");
    }
    let mut segment = vec![0x11; 14 + 65_535];
    segment[50..52].fill(0);
    assert_eq!(send(3, &header(0, 0, 0, 0), &segment), [[0u8; 0]; 0], "not without segmentation");
    let sent = send(4, &header(1, 1, 34, 16), &segment);
    assert_eq!((sent.len(), sent[0].len()), (1, segment.len()));
    let words = sent[0][34..]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    assert_eq!((sum % 0xffff, sum > 0), (0, true), "the sum over all is that of zero");
    driver.driver.write(0x14, 1, 0);
}
