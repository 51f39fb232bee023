//! Tables that a socket holds: nobody else may change them, `nft flush ruleset` passes them by, and
//! when the socket closes they stay, to be claimed by the next. Entry point: [`Netlink::hold`].
//!
//! The kernel can from 6.9 on.

use nftnl::nftnl_sys as sys;

use super::Netlink;
use super::attribute::{be32, find, string};
use super::constants::*;
use super::encode::{Encoder, Operation};
use crate::apply::{ApplyError, Verb};
use crate::diff::Holder;
use crate::model::{Family, V4, V6};
use crate::ruleset::Table;

/// The flags of a table that a socket holds.
pub(super) const HELD: u32 = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST;

/// What the kernel says of a table itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableState {
    flags: u32,
    /// The number of the socket that holds it.
    holder: Option<u32>,
}

impl TableState {
    /// Reads a message of a table dump; `None` if it is of another table.
    pub(super) fn read(table: &Table, message: &[u8]) -> Option<Self> {
        let name = find(message, NFTA_TABLE_NAME).and_then(string)?;
        let number = |attribute| find(message, attribute).and_then(be32);
        (name == table.name()).then(|| Self {
            flags: number(NFTA_TABLE_FLAGS).unwrap_or_default(),
            holder: number(NFTA_TABLE_OWNER),
        })
    }

    /// Who keeps others from changing it, seen from the socket with this number; `None` if it has
    /// flags that we would not give it.
    pub(super) fn holder(self, port_id: u32) -> Option<Holder> {
        match (self.flags, self.holder) {
            (flags, Some(holder)) if flags & NFT_TABLE_F_OWNER != 0 && holder != port_id => {
                Some(Holder::Another(holder))
            }
            (HELD, _) => Some(Holder::Us),
            (NFT_TABLE_F_PERSIST, _) => Some(Holder::Gone),
            (0, _) => Some(Holder::Nobody),
            _ => None,
        }
    }

    pub(super) fn flags(self) -> u32 {
        self.flags
    }
}

impl Netlink {
    /// From now on this socket holds the table that it makes or claims, for as long as it is open:
    /// nobody else can change it. Returns whether this kernel can do that, which is tried here; if
    /// not, nothing changes.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn hold(&mut self) -> Result<bool, ApplyError> {
        // Whichever family this kernel has.
        self.holds = self.try_hold::<V4>()? || self.try_hold::<V6>()?;
        Ok(self.holds)
    }

    fn try_hold<F: Family>(&mut self) -> Result<bool, ApplyError> {
        let scratch = super::probe::scratch();
        let mut encoder = Encoder::<F>::new(&scratch, false);
        encoder.begin();
        encoder.table_with_flags(NLM_F_CREATE | NLM_F_EXCL, HELD | NFT_TABLE_F_DORMANT);
        Ok(self.try_batch(encoder)?.is_empty())
    }

    /// The error if another socket holds the table; `other` otherwise.
    pub(super) fn or_held<F: Family>(&mut self, other: ApplyError) -> ApplyError {
        let table = self.table.clone();
        let mut state = None;
        let dump = self.dump::<F>(
            NFT_MSG_GETTABLE,
            "table",
            |_| {},
            |message| state = state.or(TableState::read(&table, message)),
        );
        let holder = state.and_then(|state| state.holder(self.connection.port_id()));
        match (dump, holder) {
            (Ok(()), Some(Holder::Another(port_id))) => ApplyError::Held {
                family: F::FAMILY,
                port_id,
            },
            _ => other,
        }
    }
}

impl<F: Family> Encoder<'_, F> {
    /// Makes the table that is there ours to hold.
    pub(super) fn claim_table(&mut self) {
        self.table_with_flags(0, HELD);
    }

    fn table_with_flags(&mut self, message_flags: u16, flags: u32) {
        let mut table = self.bare_table();
        table.u32(sys::NFTNL_TABLE_FLAGS, flags);
        let operation = Operation::Table(Verb::Add);
        self.message(NFT_MSG_NEWTABLE, message_flags, &table, operation);
    }
}

#[cfg(test)]
mod tests {
    use super::Holder::*;
    use super::*;

    #[test]
    fn a_table_tells_who_holds_it() {
        let table = |flags, holder| TableState { flags, holder };
        for (state, expected) in [
            (table(0, None), Some(Nobody)),
            (table(HELD, Some(7)), Some(Us)),
            (table(HELD, Some(8)), Some(Another(8))),
            (table(NFT_TABLE_F_OWNER, Some(8)), Some(Another(8))),
            // It would go with its socket.
            (table(NFT_TABLE_F_OWNER, Some(7)), None),
            (table(NFT_TABLE_F_PERSIST, None), Some(Gone)),
            (table(NFT_TABLE_F_DORMANT, None), None),
            (table(NFT_TABLE_F_PERSIST | NFT_TABLE_F_DORMANT, None), None),
        ] {
            assert_eq!(state.holder(7), expected, "{state:?}");
        }
    }
}
