//! The PHY: registers behind MDIC that say that the cable is in and a gigabit was agreed on.
//!
//! Invariant: whatever is written, the link stays up and negotiation is over at once. Source: manual ch. 13,
//! "MDI Control Register"; IEEE 802.3, "MII management register set"; the PHY's own registers in ch. 11.

const DATA: u32 = 0xffff;
const REGISTER_SHIFT: u32 = 16;
const ADDRESS_SHIFT: u32 = 21;
/// The PHY's address on the management bus.
const ADDRESS: u32 = 1;
const WRITE: u32 = 0b01;
const READ: u32 = 0b10;
const READY: u32 = 1 << 28;
const ERROR: u32 = 1 << 30;

const CONTROL: usize = 0;
const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_RESTART: u16 = 1 << 9;

#[derive(Debug)]
pub struct Phy {
    registers: [u16; 32],
    /// MDIC.
    access: u32,
}

impl Default for Phy {
    fn default() -> Self {
        let mut registers = [0; 32];
        for (register, value) in [
            // Negotiation on, a gigabit, full duplex.
            (CONTROL, 0x1140),
            // All of 10 and 100 Mb/s and more; negotiation complete, link up.
            (1, 0x796d),
            // Marvell 88E1011.
            (2, 0x0141),
            (3, 0x0c20),
            // What this and the other end offer.
            (4, 0x0de1),
            (5, 0xcde1),
            (6, 0x000f),
            (7, 0x2001),
            (9, 0x0e00),
            (10, 0x7c00),
            (15, 0x3000),
            (16, 0x0078),
            // A gigabit, full duplex, resolved, link up.
            (17, 0xac08),
            (20, 0x0c60),
        ] {
            registers[register] = value;
        }
        Self { registers, access: READY }
    }
}

impl Phy {
    pub fn read_access(&self) -> u32 {
        self.access
    }

    /// MDIC is written. True if the link was negotiated anew.
    pub fn access(&mut self, value: u32) -> bool {
        let register = (value >> REGISTER_SHIFT & 31) as usize;
        self.access = value & !(ERROR | READY) | READY;
        if value >> ADDRESS_SHIFT & 31 != ADDRESS {
            self.access |= ERROR;
            return false;
        }
        match value >> 26 & 3 {
            READ => {
                self.access = self.access & !DATA | u32::from(self.registers[register]);
                false
            }
            WRITE => self.write(register, (value & DATA) as u16),
            _ => {
                self.access |= ERROR;
                false
            }
        }
    }

    fn write(&mut self, register: usize, value: u16) -> bool {
        match register {
            CONTROL => {
                if value & CONTROL_RESET != 0 {
                    let access = self.access;
                    *self = Self { access, ..Self::default() };
                } else {
                    self.registers[CONTROL] = value & !CONTROL_RESTART;
                }
                value & (CONTROL_RESET | CONTROL_RESTART) != 0
            }
            // Status and identity.
            1..=3 | 5 | 6 | 8 | 10 | 15 | 17 | 19 | 21 => false,
            _ => {
                self.registers[register] = value;
                false
            }
        }
    }
}
