//! What another proxy's table remembers of clients, and what it does with connections. Entry points:
//! [`Netlink::list_predecessors_memory`] and [`Netlink::list_served`].

use std::num::NonZeroU16;
use std::time::Duration;

use super::Netlink;
use super::attribute::{attributes, be32, find, put_str, string};
use super::constants::*;
use crate::apply::ApplyError;
use crate::compile::Learned;
use crate::model::{Family, Protocol};
use crate::neighbour::{Served, Treatment};
use crate::ruleset::Table;
use crate::ruleset::element::Destination;

impl Netlink {
    /// Reads the clients of all sets of the table that have them; `None` if there is no such table.
    ///
    /// It takes a request for each set. That proxy may be running still, and what it does meanwhile
    /// may be missed.
    pub(super) fn list_predecessors_memory<F: Family>(
        &mut self,
        table: &Table,
    ) -> Result<Option<Vec<Learned<F>>>, ApplyError> {
        if !self.has_table::<F>(table)? {
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

    /// Reads what kube-proxy in nftables mode does with connections, from its table; `None` if there
    /// is no such table.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, or the table changes meanwhile.
    pub fn list_served<F: Family>(
        &mut self,
        table: &Table,
    ) -> Result<Option<Served<F>>, ApplyError> {
        if !self.has_table::<F>(table)? {
            return Ok(None);
        }
        let mut served = Served::default();
        self.dump::<F>(
            NFT_MSG_GETCHAIN,
            "chain",
            |_| {},
            |message| {
                let of_table = find(message, NFTA_CHAIN_TABLE).and_then(string);
                let name = find(message, NFTA_CHAIN_NAME).and_then(string);
                // Chains that are to go are empty, and nothing leads to them.
                let is_used = find(message, NFTA_CHAIN_USE).and_then(be32) != Some(0);
                let endpoint = name
                    .filter(|_| is_used && of_table == Some(table.name()))
                    .and_then(|name| Learned::<F>::of_name(name.strip_prefix("endpoint-")?));
                if let Some(learned) = endpoint {
                    let service_port = learned.comment().to_string();
                    let endpoints = served.endpoints.entry(service_port).or_default();
                    endpoints.insert(learned.endpoint);
                }
            },
        )?;
        // What is served to some counts as served.
        for map in [
            "no-endpoint-services",
            "no-endpoint-nodeports",
            "service-ips",
            "service-nodeports",
        ] {
            self.dump::<F>(
                NFT_MSG_GETSETELEM,
                map,
                |out| {
                    put_str(out, NFTA_SET_ELEM_LIST_TABLE, table.name());
                    put_str(out, NFTA_SET_ELEM_LIST_SET, map);
                },
                |message| {
                    let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                    let elements = attributes(list);
                    let destinations = &mut served.destinations;
                    destinations.extend(elements.filter_map(|(_, it)| destination::<F>(it)));
                },
            )?;
        }
        Ok(Some(served))
    }

    fn has_table<F: Family>(&mut self, table: &Table) -> Result<bool, ApplyError> {
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
        Ok(is_there)
    }
}

/// A destination, and what becomes of its connections.
fn destination<F: Family>(element: &[u8]) -> Option<(Destination<F>, Treatment)> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    // Each field takes words of four bytes.
    let (address, rest) = match key.len() {
        8 => (None, key),
        len => {
            let (address, rest) = key.split_at_checked(len.checked_sub(8)?)?;
            (Some(F::read_address(address)?), rest)
        }
    };
    let destination = Destination {
        address,
        protocol: Protocol::from_number(*rest.first()?)?,
        port: NonZeroU16::new(u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?))?,
    };
    let verdict = find(find(element, NFTA_SET_ELEM_DATA)?, NFTA_DATA_VERDICT)?;
    let code = find(verdict, NFTA_VERDICT_CODE).and_then(be32)? as i32;
    let chain = find(verdict, NFTA_VERDICT_CHAIN).and_then(string);
    let treatment = match (code, chain) {
        (NF_DROP, _) => Treatment::Dropped,
        (NFT_GOTO, Some("reject-chain")) => Treatment::Refused,
        (NFT_GOTO, Some(_)) => Treatment::Served,
        _ => return None,
    };
    Some((destination, treatment))
}

/// A client, and for how long it is still remembered.
fn client<F: Family>(element: &[u8]) -> Option<(F::Address, Duration)> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let expires = find(element, NFTA_SET_ELEM_EXPIRATION)?.try_into().ok()?;
    let expires = Duration::from_millis(u64::from_be_bytes(expires));
    // The kernel would take nought for no limit.
    (!expires.is_zero()).then_some((F::read_address(key)?, expires))
}
