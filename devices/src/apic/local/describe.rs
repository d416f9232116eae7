//! A local APIC's registers for people.
//!
//! Nothing here changes a register, not even those that move when they are read: a run that was looked at goes
//! on as one that was not. Any thread, under the APIC's lock.

use super::{Local, SVR_ENABLE};
use crate::apic::bits::Bits;
use crate::apic::timer::Mode;
use crate::apic::{describe_entry, describe_set};

const LVT_NAMES: [&str; 6] = ["LVTT", "LVTTHMR", "LVTPC", "LVT0", "LVT1", "LVTERR"];

fn vectors(bits: &Bits) -> String {
    describe_set((0u8..=255).filter(|&vector| bits.get(vector)).map(u32::from))
}

impl Local {
    /// The registers, a line or two each.
    pub(in crate::apic) fn describe(&self) -> String {
        let mode = match (self.enabled(), self.x2apic()) {
            (false, _) => "off",
            (true, false) => "xAPIC",
            (true, true) => "x2APIC",
        };
        let mut text = format!("local APIC {} ({mode}), base {:#x}\n", self.id, self.base & !0xfff);
        for (name, &entry) in LVT_NAMES.iter().zip(&self.lvt) {
            text += &format!("{name:<8} {entry:#010x} {}", describe_entry(entry).trim_end());
            if *name == "LVTT" {
                text += match Mode::of(entry) {
                    Mode::OneShot => " one-shot",
                    Mode::Periodic => " periodic",
                    Mode::TscDeadline => " tsc-deadline",
                    Mode::Reserved => " reserved mode",
                };
            }
            text.push('\n');
        }
        let now_ns = self.clock.now_ns();
        text += &format!(
            "Timer    DCR={:#x} initial_count={} current_count={} tsc_deadline={:#x}\n",
            self.timer.divide(),
            self.timer.initial(),
            self.timer.current(now_ns),
            self.timer.tsc_deadline()
        );
        let enabled = if self.svr & SVR_ENABLE != 0 { "enabled" } else { "disabled" };
        text += &format!("SPIV     {:#010x} APIC {enabled}\n", self.svr);
        text += &format!("ICR      {:#018x}\n", self.icr);
        text += &format!("ESR      {:#010x}\n", self.esr);
        text += &format!("ISR     {}\n", vectors(&self.isr));
        text += &format!("IRR     {}\n", vectors(&self.irr));
        text += &format!("TMR     {}\n", vectors(&self.tmr));
        text + &format!(
            "TPR {:#04x} PPR {:#04x} DFR {:#010x} LDR {:#010x} LINT0={} LINT1={} INTR={}\n",
            self.tpr,
            self.ppr(),
            self.dfr,
            self.logical_id(),
            u8::from(self.lint[0]),
            u8::from(self.lint[1]),
            u8::from(self.intr)
        )
    }
}
