//! Offsets and bits of the registers that do something here, by their names in the manual.

pub const CTRL: u32 = 0x0000;
pub const STATUS: u32 = 0x0008;
pub const EECD: u32 = 0x0010;
pub const EERD: u32 = 0x0014;
pub const CTRL_EXT: u32 = 0x0018;
pub const MDIC: u32 = 0x0020;
pub const VET: u32 = 0x0038;
pub const ICR: u32 = 0x00c0;
pub const ICS: u32 = 0x00c8;
pub const IMS: u32 = 0x00d0;
pub const IMC: u32 = 0x00d8;
pub const RCTL: u32 = 0x0100;
pub const TCTL: u32 = 0x0400;
pub const TIPG: u32 = 0x0410;
pub const LEDCTL: u32 = 0x0e00;
pub const PBA: u32 = 0x1000;
pub const RDBAL: u32 = 0x2800;
pub const RDBAH: u32 = 0x2804;
pub const RDLEN: u32 = 0x2808;
pub const RDH: u32 = 0x2810;
pub const RDT: u32 = 0x2818;
pub const TDBAL: u32 = 0x3800;
pub const TDBAH: u32 = 0x3804;
pub const TDLEN: u32 = 0x3808;
pub const TDH: u32 = 0x3810;
pub const TDT: u32 = 0x3818;
/// Statistics, cleared when read.
pub const STATISTICS: u32 = 0x4000;
pub const STATISTICS_END: u32 = 0x4128;
pub const GPRC: u32 = 0x4074;
pub const BPRC: u32 = 0x4078;
pub const MPRC: u32 = 0x407c;
pub const GPTC: u32 = 0x4080;
pub const GORCL: u32 = 0x4088;
pub const GOTCL: u32 = 0x4090;
pub const TORL: u32 = 0x40c0;
pub const TOTL: u32 = 0x40c8;
pub const TPR: u32 = 0x40d0;
pub const TPT: u32 = 0x40d4;
pub const MPTC: u32 = 0x40f0;
pub const BPTC: u32 = 0x40f4;
pub const TSCTC: u32 = 0x40f8;
pub const RXCSUM: u32 = 0x5000;
/// Multicast table, 128 words.
pub const MTA: u32 = 0x5200;
/// Receive addresses, 16 pairs.
pub const RAL: u32 = 0x5400;
pub const RECEIVE_ADDRESSES: u32 = 16;
/// VLAN filter table, 128 words.
pub const VFTA: u32 = 0x5600;
/// End of what is stored.
pub const END: u32 = 0x6000;

pub const CTRL_FD: u32 = 1 << 0;
pub const CTRL_SPEED_1000: u32 = 2 << 8;
pub const CTRL_RST: u32 = 1 << 26;
pub const CTRL_VME: u32 = 1 << 30;
pub const CTRL_PHY_RST: u32 = 1 << 31;
pub const CTRL_EXT_EE_RST: u32 = 1 << 13;
/// Full duplex, link up, 1,000 Mb/s, as the PHY found.
pub const STATUS_VALUE: u32 = 1 << 0 | 1 << 1 | 2 << 6 | 2 << 8;
pub const MDIC_INTERRUPT: u32 = 1 << 29;

/// Interrupt causes.
pub const CAUSE_TXDW: u32 = 1 << 0;
pub const CAUSE_TXQE: u32 = 1 << 1;
pub const CAUSE_LSC: u32 = 1 << 2;
pub const CAUSE_RXDMT0: u32 = 1 << 4;
pub const CAUSE_RXT0: u32 = 1 << 7;
pub const CAUSE_MDAC: u32 = 1 << 9;
/// Those that there are.
pub const CAUSES: u32 = 0x0001_fedf;

pub const RCTL_EN: u32 = 1 << 1;
pub const RCTL_UPE: u32 = 1 << 3;
pub const RCTL_MPE: u32 = 1 << 4;
pub const RCTL_BAM: u32 = 1 << 15;
pub const RCTL_VFE: u32 = 1 << 18;
pub const RCTL_CFIEN: u32 = 1 << 19;
pub const RCTL_CFI: u32 = 1 << 20;
pub const RCTL_BSEX: u32 = 1 << 25;
pub const RCTL_SECRC: u32 = 1 << 26;
pub const TCTL_EN: u32 = 1 << 1;
pub const RAH_VALID: u32 = 1 << 31;

/// Whether a register does nothing but keep what is written.
pub fn is_plain(register: u32) -> bool {
    matches!(
        register,
        // Flash, flow control, VLAN type, transmit configuration, throttling.
        0x001c | 0x0028..=0x0038 | 0x0170 | 0x0178 | 0x00c4
            | TIPG | 0x0458 | LEDCTL | PBA | 0x2160 | 0x2168
            | RDBAH | 0x2820 | 0x2828 | 0x282c | 0x2c00
            | TDBAH | 0x3820 | 0x3828 | 0x382c | 0x3830
            | RXCSUM | MTA..0x5480 | VFTA..0x5800
            // Waking up.
            | 0x5800 | 0x5808 | 0x5810 | 0x5838 | 0x5840..0x5860 | 0x5900 | 0x5a00..0x5a80
            | 0x5f00..0x6000
    )
}
