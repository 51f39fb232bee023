//! A packet on its way, with the registers of the rules that it meets.

use super::{Packet, Step};
use crate::model::{EndpointAddress, Family};
use crate::ruleset::expr::PayloadBase;

/// What rules can change of a packet on its way.
pub(super) struct Flight<F: Family> {
    pub(super) packet: Packet<F>,
    /// Address and port, before any translation.
    pub(super) sent_to: (F::Address, u16),
    pub(super) dnat: Option<EndpointAddress<F>>,
    pub(super) masquerade: bool,
    pub(super) registers: [u8; 64],
    pub(super) steps: Vec<Step>,
}

impl<F: Family> Flight<F> {
    /// Loads a value; the rest of its last register becomes 0.
    pub(super) fn load(&mut self, register: u8, value: &[u8]) {
        let start = usize::from(register) * 4;
        let end = start + value.len().next_multiple_of(4);
        if let Some(registers) = self.registers.get_mut(start..end) {
            registers.fill(0);
            registers[..value.len()].copy_from_slice(value);
        }
    }

    pub(super) fn value(&self, register: u8, len: usize) -> &[u8] {
        let start = usize::from(register) * 4;
        self.registers.get(start..start + len).unwrap_or_default()
    }

    pub(super) fn payload(&self, base: PayloadBase, offset: usize, len: usize) -> Option<Vec<u8>> {
        let mut header = [0; 40];
        match base {
            PayloadBase::Network => {
                for (at, address) in [
                    (F::SADDR_OFFSET, self.packet.source),
                    (F::DADDR_OFFSET, self.packet.destination),
                ] {
                    let mut bytes = Vec::new();
                    F::write_address(address, &mut bytes);
                    let at = at as usize;
                    header[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            PayloadBase::Transport => {
                header[2..4].copy_from_slice(&self.packet.destination_port.to_be_bytes());
            }
        }
        header.get(offset..offset + len).map(<[u8]>::to_vec)
    }
}
