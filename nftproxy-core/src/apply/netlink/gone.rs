//! A table beside the proxy's that tells clients of endpoints that are gone.
//!
//! A connection to an endpoint that is gone hangs until TCP gives up, as its packets are led there
//! still and nobody answers. While there are such endpoints, this table answers in their place:
//!
//! ```nft
//! table ip nftproxy-gone {
//!         set gone {
//!                 type ipv4_addr . inet_proto . inet_service
//!                 flags timeout
//!                 elements = { 10.244.1.5 . tcp . 8080 timeout 5m }
//!         }
//!         chain forward {
//!                 type filter hook forward priority filter; policy accept;
//!                 ct status dnat ct direction original ip daddr . meta l4proto . th dport @gone reject with tcp reset
//!         }
//!         chain output { … the same for the node's own processes … }
//! }
//! ```
//!
//! It is a table of its own, so that it costs nothing while it is not there, and so that whatever
//! becomes of it harms nobody.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Netlink;
use super::attribute::{begin_nest, end_nest, find, put, put_str};
use super::constants::*;
use super::encode::fields_type;
use super::small::{SmallBatch, compare, expression, has_bit, load, number, value};
use crate::apply::{ApplyError, Operation, Verb};
use crate::model::{EndpointAddress, Family, Protocol, V4, V6};
use crate::ruleset::Table;
use crate::ruleset::element::write_port;
use crate::ruleset::expr::CT_STATUS_DNAT;
use crate::ruleset::schema::Field;

const SET: &str = "gone";
/// Chains with the numbers of their hooks, `NF_INET_FORWARD` and `NF_INET_LOCAL_OUT`.
const CHAINS: [(&str, u32); 2] = [("forward", 2), ("output", 3)];
/// `NF_IP_PRI_FILTER`: destinations are translated by then.
const PRIORITY: i32 = 0;
/// Elements in a message at most.
const ELEMENTS_MAX: usize = 500;
/// `NFT_SET_TIMEOUT`
const SET_TIMEOUT: u32 = 0x10;
/// `NFT_CT_DIRECTION`
const CT_DIRECTION: u32 = 1;

/// The table that tells clients of endpoints that are gone, in one network namespace.
#[derive(Debug)]
pub struct GoneTable(Netlink);

impl GoneTable {
    /// Opens a socket for the table beside this one, in a network namespace: that of the descriptor,
    /// else that of this thread. It changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Netlink::open_table`].
    pub fn open(beside: &Table, namespace: Option<BorrowedFd<'_>>) -> Result<Self, ApplyError> {
        Netlink::open_table(beside.of_gone(), namespace).map(Self)
    }

    /// The endpoints that the table has, of a process before this one; none if there is no table.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn list<F: Family>(&mut self) -> Result<Vec<EndpointAddress<F>>, ApplyError> {
        let mut endpoints = Vec::new();
        let take = |element: &[u8]| endpoints.extend(read_key::<F>(element));
        let listed = self.0.dump_set::<F>(SET, take);
        match listed {
            Err(ApplyError::Refused(refusal)) if refusal.is_not_found() => Ok(Vec::new()),
            listed => listed.map(|()| endpoints),
        }
    }

    /// Makes the table, in place of one that may be there, with these endpoints, each for so long.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; nothing has changed then.
    pub fn make<F: Family>(
        &mut self,
        gone: &[(EndpointAddress<F>, Duration)],
    ) -> Result<(), ApplyError> {
        let table = self.0.table().name().to_owned();
        let mut batch = Batch::<F>::new(&table);
        batch.delete_table();
        batch.create_table();
        batch.elements(NFT_MSG_NEWSETELEM, gone);
        self.send(batch)
    }

    /// Adds endpoints to the table that there is, each for so long.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; nothing has changed then.
    pub fn add<F: Family>(
        &mut self,
        gone: &[(EndpointAddress<F>, Duration)],
    ) -> Result<(), ApplyError> {
        let table = self.0.table().name().to_owned();
        let mut batch = Batch::<F>::new(&table);
        batch.elements(NFT_MSG_NEWSETELEM, gone);
        self.send(batch)
    }

    /// Takes endpoints out of the table that are there again. Time may have taken some already.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; nothing has changed then.
    pub fn take_out<F: Family>(&mut self, back: &[EndpointAddress<F>]) -> Result<(), ApplyError> {
        let table = self.0.table().name().to_owned();
        let mut batch = Batch::<F>::new(&table);
        // What is added may be deleted, whether or not it was there; kernels before 6.3 know no
        // other way.
        let back: Vec<_> = back
            .iter()
            .map(|at| (*at, Duration::from_secs(1)))
            .collect();
        batch.elements(NFT_MSG_NEWSETELEM, &back);
        batch.elements(NFT_MSG_DELSETELEM, &back);
        self.send(batch)
    }

    /// Deletes the table. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn remove<F: Family>(&mut self) -> Result<bool, ApplyError> {
        self.0.remove::<F>()
    }

    /// Deletes what a process before this one may have left, for who is to tell nobody. What cannot be
    /// deleted times out by itself.
    pub fn discard(mut self) {
        let _ = self.remove::<V4>();
        let _ = self.remove::<V6>();
    }

    fn send<F: Family>(&mut self, batch: Batch<'_, F>) -> Result<(), ApplyError> {
        let Batch {
            mut messages,
            operations,
            ..
        } = batch;
        if operations.is_empty() {
            return Ok(());
        }
        messages.acknowledge_last();
        self.0.send_small(messages, &operations)
    }
}

/// What is sent of it at a time.
struct Batch<'a, F> {
    table: &'a str,
    messages: SmallBatch<F>,
    operations: Vec<Operation>,
}

impl<'a, F: Family> Batch<'a, F> {
    fn new(table: &'a str) -> Self {
        Self {
            table,
            messages: SmallBatch::new(),
            operations: Vec::new(),
        }
    }

    /// Deletes the table; what is added first may be deleted, whether or not it was there.
    fn delete_table(&mut self) {
        for (message_type, flags) in [(NFT_MSG_NEWTABLE, NLM_F_CREATE), (NFT_MSG_DELTABLE, 0)] {
            self.messages.message(message_type, flags, |out| {
                put_str(out, NFTA_TABLE_NAME, self.table);
            });
            self.operations.push(Operation::Table(Verb::Delete));
        }
    }

    fn create_table(&mut self) {
        let table = self.table;
        let create = NLM_F_CREATE | NLM_F_EXCL;
        self.messages.message(NFT_MSG_NEWTABLE, create, |out| {
            put_str(out, NFTA_TABLE_NAME, table);
        });
        self.messages.message(NFT_MSG_NEWSET, create, |out| {
            put_str(out, NFTA_SET_TABLE, table);
            put_str(out, NFTA_SET_NAME, SET);
            number(out, NFTA_SET_FLAGS, SET_TIMEOUT);
            number(out, NFTA_SET_KEY_TYPE, fields_type::<F>(&KEY));
            number(out, NFTA_SET_KEY_LEN, key_len::<F>());
            number(out, NFTA_SET_ID, 1);
        });
        for (chain, hook) in CHAINS {
            self.messages.message(NFT_MSG_NEWCHAIN, create, |out| {
                put_str(out, NFTA_CHAIN_TABLE, table);
                put_str(out, NFTA_CHAIN_NAME, chain);
                let nest = begin_nest(out, NFTA_CHAIN_HOOK);
                number(out, NFTA_HOOK_HOOKNUM, hook);
                put(out, NFTA_HOOK_PRIORITY, &PRIORITY.to_be_bytes());
                end_nest(out, nest);
                put_str(out, NFTA_CHAIN_TYPE, "filter");
            });
            let append = NLM_F_CREATE | NLM_F_APPEND;
            self.messages.message(NFT_MSG_NEWRULE, append, |out| {
                put_str(out, NFTA_RULE_TABLE, table);
                put_str(out, NFTA_RULE_CHAIN, chain);
                let nest = begin_nest(out, NFTA_RULE_EXPRESSIONS);
                answer::<F>(out);
                end_nest(out, nest);
            });
        }
        let n_messages = 2 + 2 * CHAINS.len();
        self.operations
            .extend(vec![Operation::Table(Verb::Add); n_messages]);
    }

    fn elements(&mut self, message_type: u16, gone: &[(EndpointAddress<F>, Duration)]) {
        let is_new = message_type == NFT_MSG_NEWSETELEM;
        let flags = if is_new { NLM_F_CREATE } else { 0 };
        for chunk in gone.chunks(ELEMENTS_MAX) {
            self.messages.message(message_type, flags, |out| {
                put_str(out, NFTA_SET_ELEM_LIST_TABLE, self.table);
                put_str(out, NFTA_SET_ELEM_LIST_SET, SET);
                let list = begin_nest(out, NFTA_SET_ELEM_LIST_ELEMENTS);
                for (endpoint, timeout) in chunk {
                    let element = begin_nest(out, NFTA_LIST_ELEM);
                    value(out, NFTA_SET_ELEM_KEY, &key(*endpoint));
                    if is_new {
                        let milliseconds = timeout.as_millis() as u64;
                        put(out, NFTA_SET_ELEM_TIMEOUT, &milliseconds.to_be_bytes());
                    }
                    end_nest(out, element);
                }
                end_nest(out, list);
            });
            self.operations.push(Operation::Batch);
        }
    }
}

const KEY: [Field; 3] = [Field::Daddr, Field::L4Proto, Field::Dport];

fn key_len<F: Family>() -> u32 {
    F::ADDRESS_LEN as u32 + 8
}

/// Address, protocol and port, each padded to a register.
fn key<F: Family>(endpoint: EndpointAddress<F>) -> Vec<u8> {
    let mut key = Vec::new();
    F::write_address(endpoint.address, &mut key);
    key.extend_from_slice(&[Protocol::Tcp.number(), 0, 0, 0]);
    write_port(endpoint.port, &mut key);
    key
}

fn read_key<F: Family>(element: &[u8]) -> Option<EndpointAddress<F>> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let (address, rest) = key.split_at_checked(F::ADDRESS_LEN)?;
    let [_, _, _, _, high, low, _, _] = rest.try_into().ok()?;
    Some(EndpointAddress {
        address: F::read_address(address)?,
        port: u16::from_be_bytes([high, low]).try_into().ok()?,
    })
}

/// `ct status dnat ct direction original ip daddr . meta l4proto . th dport @gone reject with tcp
/// reset`
fn answer<F: Family>(out: &mut Vec<u8>) {
    // 32-bit registers have numbers from 8 on.
    const FIRST: u32 = 8;
    let after_address = FIRST + F::ADDRESS_LEN as u32 / 4;
    expression(out, "meta", |out| {
        number(out, 1, FIRST);
        number(out, 2, NFT_META_L4PROTO);
    });
    compare(out, FIRST, NFT_CMP_EQ, &[Protocol::Tcp.number()]);
    expression(out, "ct", |out| {
        number(out, 1, FIRST);
        number(out, 2, NFT_CT_STATUS);
    });
    has_bit(out, FIRST, CT_STATUS_DNAT);
    expression(out, "ct", |out| {
        number(out, 1, FIRST);
        number(out, 2, CT_DIRECTION);
    });
    compare(out, FIRST, NFT_CMP_EQ, &[IP_CT_DIR_ORIGINAL]);
    let address_len = F::ADDRESS_LEN as u32;
    load(
        out,
        FIRST,
        NFT_PAYLOAD_NETWORK_HEADER,
        F::DADDR_OFFSET,
        address_len,
    );
    expression(out, "meta", |out| {
        number(out, 1, after_address);
        number(out, 2, NFT_META_L4PROTO);
    });
    load(out, after_address + 1, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
    expression(out, "lookup", |out| {
        put_str(out, 1, SET);
        number(out, 2, FIRST);
        number(out, 4, 1);
    });
    expression(out, "reject", |out| {
        number(out, 1, NFT_REJECT_TCP_RST);
        put(out, 2, &[0]);
    });
}
