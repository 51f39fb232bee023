//! What another proxy's table remembers of clients. Entry point:
//! [`Netlink::list_predecessors_memory`].

use std::time::Duration;

use super::Netlink;
use super::attribute::{attributes, find, put_str, string};
use super::constants::*;
use crate::apply::ApplyError;
use crate::compile::Learned;
use crate::model::Family;
use crate::ruleset::Table;

impl Netlink {
    /// Reads the clients of all sets of the table that have them; `None` if there is no such table.
    ///
    /// It takes a request for each set. That proxy may be running still, and what it does meanwhile
    /// may be missed.
    pub(super) fn list_predecessors_memory<F: Family>(
        &mut self,
        table: &Table,
    ) -> Result<Option<Vec<Learned<F>>>, ApplyError> {
        let mut is_there = false;
        self.dump::<F>(
            NFT_MSG_GETTABLE,
            "table",
            |_| {},
            |message| {
                let name = find(message, NFTA_TABLE_NAME).and_then(string);
                is_there |= name == Some(table.name());
            },
        )?;
        if !is_there {
            return Ok(None);
        }
        let mut sets = Vec::new();
        self.dump::<F>(
            NFT_MSG_GETSET,
            "set",
            |out| put_str(out, NFTA_SET_TABLE, table.name()),
            |message| {
                let is_of_table =
                    find(message, NFTA_SET_TABLE).and_then(string) == Some(table.name());
                let name = find(message, NFTA_SET_NAME).and_then(string);
                let name = name.filter(|_| is_of_table).unwrap_or_default();
                sets.extend(Learned::<F>::of_set(name).map(|learned| (name.to_owned(), learned)));
            },
        )?;
        let mut all = Vec::with_capacity(sets.len());
        for (name, mut learned) in sets {
            let clients = &mut learned.clients;
            self.dump::<F>(
                NFT_MSG_GETSETELEM,
                &name,
                |out| {
                    put_str(out, NFTA_SET_ELEM_LIST_TABLE, table.name());
                    put_str(out, NFTA_SET_ELEM_LIST_SET, &name);
                },
                |message| {
                    let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                    clients.extend(attributes(list).filter_map(|(_, it)| client::<F>(it)));
                },
            )?;
            all.push(learned);
        }
        Ok(Some(all))
    }
}

/// A client, and for how long it is still remembered.
fn client<F: Family>(element: &[u8]) -> Option<(F::Address, Duration)> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let expires = find(element, NFTA_SET_ELEM_EXPIRATION)?.try_into().ok()?;
    let expires = Duration::from_millis(u64::from_be_bytes(expires));
    // The kernel would take nought for no limit.
    (!expires.is_zero()).then_some((F::read_address(key)?, expires))
}
