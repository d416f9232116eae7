//! The driver's side of the keyboard controller, as Linux's i8042, atkbd and psmouse do it.

use super::*;
use crate::clock::lock;
use crate::fake::{FakeIrqs, Random};

struct Rig {
    ports: Bus,
    device: Arc<Mutex<I8042>>,
    irqs: Arc<FakeIrqs>,
    a20: A20Gate,
    power: PowerEvents,
}

impl Rig {
    fn new() -> Self {
        let (irqs, a20, power) = (FakeIrqs::new(), A20Gate::new(|_| ()), PowerEvents::new());
        let device = Arc::new(Mutex::new(I8042::new(
            irqs.line(KEYBOARD_IRQ),
            irqs.line(MOUSE_IRQ),
            a20.clone(),
            power.clone(),
        )));
        let mut ports = Bus::new();
        I8042::attach(&device, &mut ports).expect("an empty bus");
        Self { ports, device, irqs, a20, power }
    }
    fn status(&self) -> u8 {
        self.ports.read(STATUS_PORT, 1) as u8
    }
    fn data(&self) -> u8 {
        self.ports.read(DATA_PORT, 1) as u8
    }
    fn command(&self, command: u8) {
        self.ports.write(STATUS_PORT, 1, command.into());
    }
    fn send(&self, byte: u8) {
        self.ports.write(DATA_PORT, 1, byte.into());
    }
    fn ask(&self, command: u8) -> u8 {
        self.command(command);
        assert_eq!(self.status() & 0x21, 0x01, "a reply to {command:#x}");
        self.data()
    }
    /// Everything that comes, with the expected source.
    fn drain(&self, mouse: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.status() & STATUS_OUTPUT_FULL != 0 {
            assert_eq!(self.status() & STATUS_MOUSE_FULL != 0, mouse);
            bytes.push(self.data());
            assert!(bytes.len() < 1000);
        }
        bytes
    }
    fn keyboard(&self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            self.send(byte);
        }
        self.drain(false)
    }
    fn mouse(&self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            self.command(0xd4);
            self.send(byte);
        }
        self.drain(true)
    }
    fn set_command_byte(&self, value: u8) {
        self.command(0x60);
        self.send(value);
    }
}

#[test]
fn linux_controller_probe() {
    let rig = Rig::new();
    assert!(rig.drain(false).is_empty(), "nothing to flush");
    assert_eq!(rig.ask(0xaa), 0x55);
    assert_eq!(rig.ask(0xab), 0x00);
    assert_eq!(rig.ask(0xa9), 0x00);
    let command_byte = rig.ask(0x20);
    assert_ne!(command_byte & COMMAND_TRANSLATE, 0, "else Linux takes it for untranslated");
    assert_ne!(rig.status() & STATUS_UNLOCKED, 0, "else Linux warns of a keylock");
    rig.set_command_byte(command_byte | COMMAND_KEYBOARD_OFF);
    assert_eq!(rig.ask(0x20), command_byte | COMMAND_KEYBOARD_OFF);
    // The aux loop, which is no multiplexer.
    for byte in [0x5a, 0xf0, 0x56, 0xa4] {
        rig.command(0xd3);
        rig.send(byte);
        assert_eq!(rig.drain(true), [byte]);
    }
    rig.command(0xa7);
    assert_ne!(rig.ask(0x20) & COMMAND_MOUSE_OFF, 0);
    rig.command(0xa8);
    assert_eq!(rig.ask(0x20) & COMMAND_MOUSE_OFF, 0);
    // Delivery of IRQ 12.
    rig.set_command_byte(COMMAND_MOUSE_IRQ | COMMAND_KEYBOARD_OFF);
    rig.command(0xd3);
    rig.send(0xa5);
    assert!(rig.irqs.level(MOUSE_IRQ));
    assert!(!rig.irqs.level(KEYBOARD_IRQ));
    assert_eq!(rig.data(), 0xa5);
    assert!(!rig.irqs.level(MOUSE_IRQ));
}

#[test]
fn atkbd_probe_and_leds() {
    let rig = Rig::new();
    assert_eq!(rig.keyboard(&[0xf2]), [0xfa, 0xab, 0x41], "translated");
    rig.set_command_byte(0x05);
    assert_eq!(rig.keyboard(&[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(rig.keyboard(&[0xed]), [0xfa]);
    assert_eq!(rig.keyboard(&[0x02]), [0xfa]);
    assert_eq!(lock(&rig.device).leds(), 2);
    assert_eq!(rig.keyboard(&[0xf3]), [0xfa]);
    assert_eq!(rig.keyboard(&[0x00]), [0xfa]);
    assert_eq!(rig.keyboard(&[0xf0]), [0xfa]);
    assert_eq!(rig.keyboard(&[0x00]), [0xfa, 0x02]);
    assert_eq!(rig.keyboard(&[0xf0]), [0xfa]);
    assert_eq!(rig.keyboard(&[0x03]), [0xfe], "no set 3");
    assert_eq!(rig.keyboard(&[0xee]), [0xee]);
    assert_eq!(rig.keyboard(&[0xff]), [0xfa, 0xaa]);
    assert_eq!(rig.keyboard(&[0x01]), [0xfe]);
    assert_eq!(rig.keyboard(&[0xf4]), [0xfa]);
}

#[test]
fn each_key_byte_is_an_edge_of_irq_1() {
    let rig = Rig::new();
    assert!(lock(&rig.device).key(Key(0xe048), true)); // Up
    assert!(lock(&rig.device).key(Key(0xe048), false));
    for (count, byte) in [0xe0, 0x48, 0xe0, 0xc8].into_iter().enumerate() {
        assert!(rig.irqs.level(KEYBOARD_IRQ));
        assert_eq!(rig.irqs.edges(KEYBOARD_IRQ), count + 1);
        assert_eq!(rig.data(), byte);
    }
    assert!(!rig.irqs.level(KEYBOARD_IRQ));
}

#[test]
fn scan_code_sets_and_translation_agree() {
    let rig = Rig::new();
    let type_all = |expect_translated: bool| {
        for code in 1..=0x7fu8 {
            lock(&rig.device).key(Key(code.into()), true);
            lock(&rig.device).key(Key(code.into()), false);
            let bytes = rig.drain(false);
            if expect_translated {
                assert_eq!(bytes, [code, code | 0x80]);
            } else {
                assert_eq!((bytes.len(), bytes[1], bytes[0]), (3, 0xf0, bytes[2]));
            }
        }
    };
    type_all(true);
    rig.set_command_byte(0x05);
    type_all(false);
    assert_eq!(rig.keyboard(&[0xf0]), [0xfa]);
    assert_eq!(rig.keyboard(&[0x01]), [0xfa]);
    type_all(true);
    rig.keyboard(&[0xf6]);
    lock(&rig.device).key(Key(0x1e), true); // A
    assert_eq!(rig.drain(false), [0x1c]);
    lock(&rig.device).key(Key::PAUSE, true);
    assert_eq!(rig.drain(false), [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]);
    rig.set_command_byte(0x45);
    lock(&rig.device).key(Key::PAUSE, true);
    lock(&rig.device).key(Key::PAUSE, false);
    assert_eq!(rig.drain(false), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
}

#[test]
fn keys_wait_for_a_disabled_port_and_answers_go_first() {
    let rig = Rig::new();
    rig.command(0xad);
    lock(&rig.device).key(Key(0x1e), true);
    assert_eq!(rig.status() & STATUS_OUTPUT_FULL, 0);
    assert_eq!(rig.keyboard(&[0xee]), [0xee, 0x1e]);
    rig.keyboard(&[0xf5]);
    assert!(!lock(&rig.device).key(Key(0x1e), true), "not scanning");
    rig.keyboard(&[0xf4]);
    let taken = (0..1000).filter(|_| lock(&rig.device).key(Key(0x1e), true)).count();
    assert!((200..300).contains(&taken), "{taken}");
}

#[test]
fn psmouse_probe_reaches_five_buttons() {
    let rig = Rig::new();
    assert_eq!(rig.mouse(&[0xff]), [0xfa, 0xaa, 0x00]);
    assert_eq!(rig.mouse(&[0xf2]), [0xfa, 0x00]);
    // Synaptics and others look at the status after four resolutions.
    for byte in [0xe8, 0x00, 0xe8, 0x00, 0xe8, 0x00, 0xe8, 0x00] {
        assert_eq!(rig.mouse(&[byte]), [0xfa]);
    }
    assert_eq!(rig.mouse(&[0xe9]), [0xfa, 0x00, 0x00, 100]);
    for (knock, id) in [([200, 100, 80], 3), ([200, 200, 80], 4)] {
        for rate in knock {
            assert_eq!(rig.mouse(&[0xf3]), [0xfa]);
            assert_eq!(rig.mouse(&[rate]), [0xfa]);
        }
        assert_eq!(rig.mouse(&[0xf2]), [0xfa, id]);
    }
    assert_eq!(rig.mouse(&[0xe1]), [0xfe], "no track point");
    assert_eq!(rig.mouse(&[0xf4]), [0xfa]);
    assert_eq!(rig.mouse(&[0xe9]), [0xfa, 0x20, 0x00, 80]);
    lock(&rig.device).mouse(5, 3, -1, Buttons::LEFT | Buttons::SIDE);
    assert_eq!(rig.drain(true), [0x29, 5, 0xfd, 0x1f]);
}

#[test]
fn motion_adds_up_and_clicks_survive() {
    let rig = Rig::new();
    rig.mouse(&[0xf4]);
    for _ in 0..3 {
        lock(&rig.device).mouse(100, -100, 0, Buttons::empty());
    }
    // The first move left at once; the rest went together.
    assert_eq!(rig.drain(true), [0x08, 100, 100, 0x08, 200, 200]);
    let buttons = [Buttons::LEFT, Buttons::empty(), Buttons::LEFT, Buttons::empty()];
    for state in buttons {
        lock(&rig.device).mouse(0, 0, 0, state);
    }
    assert_eq!(rig.drain(true), [9, 0, 0, 8, 0, 0, 9, 0, 0, 8, 0, 0]);
    lock(&rig.device).mouse(i32::MIN, i32::MAX, 0, Buttons::empty());
    lock(&rig.device).mouse(i32::MIN, i32::MAX, i32::MAX, Buttons::empty());
    assert_eq!(rig.data(), 0x38);
    assert_eq!(rig.mouse(&[0xf5]).last(), Some(&0xfa));
}

#[test]
fn wrap_and_remote_mode() {
    let rig = Rig::new();
    rig.command(0xa8);
    assert_eq!(rig.mouse(&[0xee]), [0xfa]);
    assert_eq!(rig.mouse(&[0xe9]), [0xe9]);
    assert_eq!(rig.mouse(&[0xec]), [0xfa]);
    assert_eq!(rig.mouse(&[0xf0]), [0xfa]);
    lock(&rig.device).mouse(1, 1, 0, Buttons::empty());
    assert!(rig.drain(true).is_empty());
    assert_eq!(rig.mouse(&[0xeb]), [0xfa, 0x28, 1, 0xff]);
}

#[test]
fn output_port_gates_a20_and_resets() {
    let rig = Rig::new();
    assert_eq!(rig.ask(0xd0) & 0x03, 0x03);
    rig.command(0xd1);
    rig.send(0xdd);
    assert!(!rig.a20.is_open());
    rig.command(0xdf);
    assert!(rig.a20.is_open());
    rig.command(0xdd);
    assert!(!rig.a20.is_open());
    rig.command(0xff);
    assert!(!rig.power.is_raised());
    rig.command(0xfe);
    assert_eq!(rig.power.take(), Some(PowerEvent::Reset));
    rig.command(0xd1);
    rig.send(0x02);
    assert_eq!(rig.power.take(), Some(PowerEvent::Reset));
    lock(&rig.device).key(Key(1), true);
    lock(&rig.device).reset();
    assert!(!rig.irqs.level(KEYBOARD_IRQ));
    assert_eq!(rig.status() & STATUS_OUTPUT_FULL, 0);
}

#[test]
fn random_register_traffic_is_harmless() {
    let rig = Rig::new();
    let mut random = Random(42);
    for _ in 0..200_000 {
        let n = random.next();
        let (byte, port) = ((n >> 8) as u8, if n & 8 == 0 { DATA_PORT } else { STATUS_PORT });
        match n & 7 {
            0..=3 => rig.ports.write(port, 1, byte.into()),
            4 | 5 => drop(rig.ports.read(port, 1)),
            6 => drop(lock(&rig.device).key(Key((n >> 16) as u16), n & 16 != 0)),
            _ => lock(&rig.device).mouse(
                (n >> 16) as i32,
                (n >> 24) as i32,
                (n >> 30) as i32,
                Buttons::from_bits_truncate(byte),
            ),
        }
        let device = lock(&rig.device);
        assert_eq!(device.lines, [rig.irqs.level(KEYBOARD_IRQ), rig.irqs.level(MOUSE_IRQ)]);
    }
}
