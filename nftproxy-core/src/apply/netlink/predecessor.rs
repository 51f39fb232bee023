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

/// kube-proxy's chain that refuses.
const REJECT_CHAIN: &str = "reject-chain";

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
        let mut chains = Vec::new();
        // What is served to some counts as served.
        for map in [
            "no-endpoint-services",
            "no-endpoint-nodeports",
            "service-ips",
            "service-nodeports",
        ] {
            let destinations = &mut served.destinations;
            self.dump_map(table, map, |destination, element| {
                if let Some(treatment) = treatment(element) {
                    destinations.insert(destination, treatment);
                }
                if let Some(chain) = goto(element).filter(|chain| *chain != REJECT_CHAIN) {
                    chains.push((destination, chain.to_owned()));
                }
            })?;
        }
        served.details = Some(self.list_details(table, &chains)?);
        Ok(Some(served))
    }

    /// Takes the elements of a map from destinations to verdicts.
    pub(super) fn dump_map<F: Family>(
        &mut self,
        table: &Table,
        map: &str,
        mut take: impl FnMut(Destination<F>, &[u8]),
    ) -> Result<(), ApplyError> {
        self.dump::<F>(
            NFT_MSG_GETSETELEM,
            map,
            |out| {
                put_str(out, NFTA_SET_ELEM_LIST_TABLE, table.name());
                put_str(out, NFTA_SET_ELEM_LIST_SET, map);
            },
            |message| {
                let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                for (_, element) in attributes(list) {
                    if let Some(destination) = destination(element) {
                        take(destination, element);
                    }
                }
            },
        )
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

/// The destination that is an element's key.
fn destination<F: Family>(element: &[u8]) -> Option<Destination<F>> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    // Each field takes words of four bytes.
    let (address, rest) = match key.len() {
        8 => (None, key),
        len => {
            let (address, rest) = key.split_at_checked(len.checked_sub(8)?)?;
            (Some(F::read_address(address)?), rest)
        }
    };
    Some(Destination {
        address,
        protocol: Protocol::from_number(*rest.first()?)?,
        port: NonZeroU16::new(u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?))?,
    })
}

/// What becomes of an element's connections.
fn treatment(element: &[u8]) -> Option<Treatment> {
    match (verdict(element)?, goto(element)) {
        (NF_DROP, _) => Some(Treatment::Dropped),
        (NFT_GOTO, Some(REJECT_CHAIN)) => Some(Treatment::Refused),
        (NFT_GOTO, Some(_)) => Some(Treatment::Served),
        _ => None,
    }
}

fn verdict(element: &[u8]) -> Option<i32> {
    let verdict = find(find(element, NFTA_SET_ELEM_DATA)?, NFTA_DATA_VERDICT)?;
    find(verdict, NFTA_VERDICT_CODE)
        .and_then(be32)
        .map(u32::cast_signed)
}

/// The chain that an element leads to.
pub(super) fn goto(element: &[u8]) -> Option<&str> {
    let verdict = find(find(element, NFTA_SET_ELEM_DATA)?, NFTA_DATA_VERDICT)?;
    find(verdict, NFTA_VERDICT_CHAIN).and_then(string)
}

/// A client, and for how long it is still remembered.
fn client<F: Family>(element: &[u8]) -> Option<(F::Address, Duration)> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let expires = find(element, NFTA_SET_ELEM_EXPIRATION)?.try_into().ok()?;
    let expires = Duration::from_millis(u64::from_be_bytes(expires));
    // The kernel would take nought for no limit.
    (!expires.is_zero()).then_some((F::read_address(key)?, expires))
}
