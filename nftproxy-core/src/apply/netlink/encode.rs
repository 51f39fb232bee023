//! From delta to batch.
//!
//! Tables, chains, sets and rules go through libnftnl, as there are few of them. Elements are
//! written here, straight into the batch.

mod batch;
mod expression;
mod take_over;
mod types;

use std::collections::BTreeSet;

use nftnl::nftnl_sys as sys;

use super::attribute::{begin_message, begin_nest, end_message, end_nest, put, put_str};
use super::constants::*;
use super::ffi::{self, Message, Writer};
use super::hold::HELD;
use super::{nfproto, userdata};
use crate::apply::Verb;
use crate::diff::{Delta, Sizes, TableChange, for_each_set};
use crate::model::{EndpointAddress, Family};
use crate::ruleset::element::{Data, Element, write_port};
use crate::ruleset::expr::{Expr, Verdict};
use crate::ruleset::name::{ChainName, SetName, TABLE_COMMENT};
use crate::ruleset::schema::{AFFINITY_MAX_CLIENTS, schema};
use crate::ruleset::{Comment, Rule, SetOptions, Table};
use batch::{ElementRange, FIRST_SEQUENCE};
use expression::expression;

pub use batch::Batch;
pub(super) use batch::Operation;
pub(super) use expression::reject_code;
pub(super) use types::{data_type, fields_type, set_flags, verdict_code};

/// The payload of an attribute has a 16-bit length; an element takes far less than what is left.
const ELEMENTS_MAX_LEN: usize = 65000;

/// What an IPv4 element takes of a batch, more or less.
const ELEMENT_LEN_ABOUT: usize = 48;

/// Encodes a delta.
///
/// With `can_destroy`, what is to be forgotten may be gone already; that takes a kernel of 6.3. With
/// `holds`, a table that is made or claimed is held by the socket that sends this.
pub(super) fn batch<F: Family>(
    delta: &Delta<F>,
    table: &Table,
    can_destroy: bool,
    holds: bool,
) -> Batch {
    let mut encoder = Encoder::<F>::new(table, can_destroy);
    encoder.holds = holds;
    // A large one would be copied each time it has outgrown its room, and take twice as much.
    let n_elements = delta.counts().elements();
    encoder.batch.bytes.reserve(n_elements * ELEMENT_LEN_ABOUT);
    encoder.begin();
    encoder.delta(delta);
    encoder.end()
}

/// Writes a batch, message by message.
pub(super) struct Encoder<'a, F> {
    table: &'a Table,
    can_destroy: bool,
    /// Whether the table is to be held.
    pub(super) holds: bool,
    batch: Batch,
    writer: Writer,
    /// Where the message that was written last starts.
    last: usize,
    key: Vec<u8>,
    family: std::marker::PhantomData<F>,
}

impl<'a, F: Family> Encoder<'a, F> {
    pub(super) fn new(table: &'a Table, can_destroy: bool) -> Self {
        let batch = Batch {
            bytes: Vec::new(),
            operations: Vec::new(),
            acknowledged: 0,
        };
        Self {
            table,
            can_destroy,
            holds: false,
            batch,
            writer: Writer::new(),
            last: 0,
            key: Vec::new(),
            family: std::marker::PhantomData,
        }
    }

    pub(super) fn sequence(&self) -> u32 {
        FIRST_SEQUENCE + self.batch.operations.len() as u32
    }

    pub(super) fn begin(&mut self) {
        self.boundary(NFNL_MSG_BATCH_BEGIN, Operation::Begin);
    }

    /// The same batch, to go on with the other family's table.
    pub(super) fn in_family<G: Family>(self) -> Encoder<'a, G> {
        let Self {
            table,
            can_destroy,
            holds,
            batch,
            writer,
            last,
            key,
            family: _,
        } = self;
        Encoder {
            table,
            can_destroy,
            holds,
            batch,
            writer,
            last,
            key,
            family: std::marker::PhantomData,
        }
    }

    pub(super) fn end(mut self) -> Batch {
        self.acknowledge();
        self.boundary(NFNL_MSG_BATCH_END, Operation::End);
        self.batch
    }

    /// A batch that the kernel checks and undoes.
    pub(super) fn without_end(mut self) -> Batch {
        self.acknowledge();
        self.batch
    }

    fn acknowledge(&mut self) {
        // One acknowledgement for all: errors come anyway. It cannot be that of the end message,
        // which kernels before 6.10 do not acknowledge.
        self.batch.acknowledged = self.sequence() - 1;
        let flags = self.last + 6;
        let with_ack =
            u16::from_ne_bytes([self.batch.bytes[flags], self.batch.bytes[flags + 1]]) | NLM_F_ACK;
        self.batch.bytes[flags..flags + 2].copy_from_slice(&with_ack.to_ne_bytes());
    }

    fn boundary(&mut self, message_type: u16, operation: Operation) {
        // nfgenmsg: family, version, and the subsystem in network byte order.
        let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        let sequence = self.sequence();
        let bytes = &mut self.batch.bytes;
        let start = begin_message(
            bytes,
            message_type,
            NLM_F_REQUEST,
            sequence,
            [0, 0, high, low],
        );
        end_message(bytes, start);
        self.batch.operations.push(operation);
    }

    pub(super) fn message(
        &mut self,
        message_type: u16,
        flags: u16,
        body: &dyn Message,
        operation: Operation,
    ) {
        self.last = self.batch.bytes.len();
        let sequence = self.sequence();
        self.writer.message(
            &mut self.batch.bytes,
            message_type,
            nfproto(F::FAMILY),
            flags,
            sequence,
            body,
        );
        self.batch.operations.push(operation);
    }

    fn delta(&mut self, delta: &Delta<F>) {
        let Delta {
            take_over,
            table,
            sizes,
            set_options,
            add_sets,
            add_chains,
            set_rules,
            forget,
            delete_elements,
            add_elements,
            remember,
            delete_chains,
            about,
        } = delta;
        if let Some(table) = take_over {
            self.delete_other_table(table.name());
        }
        match table {
            TableChange::Keep => {}
            TableChange::Claim => self.claim_table(),
            TableChange::Create => self.create_table(sizes, *set_options),
            TableChange::Recreate => {
                self.message(
                    NFT_MSG_DELTABLE,
                    0,
                    &self.bare_table(),
                    Operation::Table(Verb::Delete),
                );
                self.create_table(sizes, *set_options);
            }
        }
        let mut ids = SetName::ALL.len() as u32 + 1..;
        for (set, id) in add_sets.iter().zip(&mut ids) {
            self.add_set(*set, id, sizes.get(set).copied(), *set_options);
        }
        for chain in add_chains {
            self.add_chain(*chain);
        }
        let new: BTreeSet<_> = add_chains.iter().collect();
        let flushed = set_rules.iter().map(|(chain, _)| chain);
        for chain in flushed.filter(|chain| !new.contains(chain)) {
            self.flush_chain(*chain);
        }
        if !table.is_new() {
            let remade = sizes.iter().filter(|(set, _)| !add_sets.contains(set));
            for ((set, size), id) in remade.zip(&mut ids) {
                self.delete_set(*set);
                self.add_set(*set, id, Some(*size), *set_options);
            }
        }
        for (chain, rules) in set_rules {
            for rule in rules {
                self.add_rule(*chain, rule);
            }
        }
        let forget_message = if self.can_destroy {
            NFT_MSG_DESTROYSETELEM
        } else {
            NFT_MSG_DELSETELEM
        };
        self.elements(Verb::Forget, forget_message, 0, forget);
        self.elements(Verb::Delete, NFT_MSG_DELSETELEM, 0, delete_elements);
        self.elements(
            Verb::Add,
            NFT_MSG_NEWSETELEM,
            NLM_F_CREATE | NLM_F_EXCL,
            add_elements,
        );
        self.remember(remember);
        for chain in delete_chains {
            let object = self.named_chain(*chain);
            self.message(
                NFT_MSG_DELCHAIN,
                0,
                &object,
                Operation::Chain(Verb::Delete, *chain),
            );
        }
        if let Some(about) = about {
            self.write_about(about);
        }
    }

    /// Writes the line that tells of the table, in the place of what is there.
    fn write_about(&mut self, about: &Comment) {
        let chain = ChainName::About;
        let (adding, flushing) = (
            Operation::Chain(Verb::Add, chain),
            Operation::Chain(Verb::Flush, chain),
        );
        self.message(
            NFT_MSG_NEWCHAIN,
            NLM_F_CREATE,
            &self.named_chain(chain),
            adding,
        );
        self.message(NFT_MSG_DELRULE, 0, &self.rule_of(chain), flushing);
        let mut rule = self.rule_of(chain);
        let verdict = Expr::Verdict(Verdict::Return);
        if let Some(expression) = expression::<F>(&verdict) {
            rule.push(expression);
        }
        let comment = userdata::comment(about.as_str());
        rule.bytes(sys::NFTNL_RULE_USERDATA, &comment);
        self.message(
            NFT_MSG_NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            &rule,
            Operation::Rule(chain, format!("return comment \"{about}\"")),
        );
    }

    fn create_table(&mut self, sizes: &Sizes, options: SetOptions) {
        let mut table = self.bare_table();
        table.bytes(sys::NFTNL_TABLE_USERDATA, &userdata::comment(TABLE_COMMENT));
        if self.holds {
            table.u32(sys::NFTNL_TABLE_FLAGS, HELD);
        }
        self.message(
            NFT_MSG_NEWTABLE,
            NLM_F_CREATE | NLM_F_EXCL,
            &table,
            Operation::Table(Verb::Add),
        );
        for (id, set) in (1..).zip(SetName::ALL) {
            self.add_set(set, id, sizes.get(&set).copied(), options);
        }
    }

    fn named_set(&self, set: SetName) -> ffi::Set {
        let mut object = ffi::Set::new();
        object.str(sys::NFTNL_SET_TABLE, self.table.name());
        object.str(sys::NFTNL_SET_NAME, set.as_str());
        object.u32(sys::NFTNL_SET_FAMILY, nfproto(F::FAMILY).into());
        object
    }

    fn delete_set(&mut self, set: SetName) {
        let object = self.named_set(set);
        self.message(NFT_MSG_DELSET, 0, &object, Operation::Set(set));
    }

    pub(super) fn add_set(
        &mut self,
        set: SetName,
        id: u32,
        size: Option<u32>,
        options: SetOptions,
    ) {
        let schema = schema(set);
        let mut object = self.named_set(set);
        object.u32(sys::NFTNL_SET_ID, id);
        object.u32(sys::NFTNL_SET_KEY_TYPE, fields_type::<F>(schema.key));
        object.u32(sys::NFTNL_SET_KEY_LEN, schema.key_len::<F>() as u32);
        object.u32(sys::NFTNL_SET_FLAGS, set_flags(&schema));
        if schema.is_interval() {
            let lengths: Vec<u8> = schema
                .key
                .iter()
                .map(|field| field.byte_len::<F>() as u8)
                .collect();
            object.bytes(sys::NFTNL_SET_DESC_CONCAT, &lengths);
        }
        let affinity = schema.is_dynamic().then_some(AFFINITY_MAX_CLIENTS);
        if let Some(size) = size.or(affinity) {
            object.u32(sys::NFTNL_SET_DESC_SIZE, size);
        }
        if let Some(data_type) = data_type::<F>(schema.data) {
            object.u32(sys::NFTNL_SET_DATA_TYPE, data_type);
            object.u32(sys::NFTNL_SET_DATA_LEN, schema.data_len::<F>() as u32);
        }
        object.bytes(sys::NFTNL_SET_USERDATA, &userdata::set::<F>(&schema));
        self.message(
            NFT_MSG_NEWSET,
            NLM_F_CREATE | NLM_F_EXCL,
            &object,
            Operation::Set(set),
        );
        if options.counts(set) {
            self.add_counter();
        }
    }

    /// Has the elements of the set in the last message count. Each that is added gets a counter of
    /// its own.
    fn add_counter(&mut self) {
        let out = &mut self.batch.bytes;
        let expression = begin_nest(out, NFTA_SET_EXPR);
        put_str(out, NFTA_EXPR_NAME, "counter");
        let data = begin_nest(out, NFTA_EXPR_DATA);
        end_nest(out, data);
        end_nest(out, expression);
        end_message(out, self.last);
    }

    pub(super) fn add_chain(&mut self, chain: ChainName) {
        let mut object = self.named_chain(chain);
        if let Some(base) = self.table.base_chain(chain) {
            object.str(sys::NFTNL_CHAIN_TYPE, "nat");
            object.u32(sys::NFTNL_CHAIN_HOOKNUM, base.hook.number());
            object.bytes(sys::NFTNL_CHAIN_PRIO, &base.priority.to_ne_bytes());
            object.u32(sys::NFTNL_CHAIN_POLICY, NF_ACCEPT as u32);
        }
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.message(
            NFT_MSG_NEWCHAIN,
            flags,
            &object,
            Operation::Chain(Verb::Add, chain),
        );
    }

    fn flush_chain(&mut self, chain: ChainName) {
        let rule = self.rule_of(chain);
        self.message(
            NFT_MSG_DELRULE,
            0,
            &rule,
            Operation::Chain(Verb::Flush, chain),
        );
    }

    pub(super) fn add_rule(&mut self, chain: ChainName, rule: &Rule) {
        let mut object = self.rule_of(chain);
        for expr in &rule.exprs {
            if let Some(expression) = expression::<F>(expr) {
                object.push(expression);
            }
        }
        let operation = Operation::Rule(chain, rule.text.clone());
        self.message(
            NFT_MSG_NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            &object,
            operation,
        );
    }

    pub(super) fn elements(
        &mut self,
        verb: Verb,
        message_type: u16,
        flags: u16,
        elements: &[Element<F>],
    ) {
        let mut first = 0;
        for_each_set(elements, |set, elements| {
            let mut rest = elements;
            while !rest.is_empty() {
                let len = self.element_message(verb, message_type, flags, set, rest, first);
                rest = &rest[len..];
                first += len;
            }
        });
    }

    /// Begins a message with elements of a set. Returns where it starts, and where its list does.
    fn begin_elements(&mut self, message_type: u16, flags: u16, set: SetName) -> (usize, usize) {
        let sequence = self.sequence();
        let table = self.table.name();
        let out = &mut self.batch.bytes;
        let nfgenmsg = [nfproto(F::FAMILY) as u8, 0, 0, 0];
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | message_type;
        let start = begin_message(out, message_type, NLM_F_REQUEST | flags, sequence, nfgenmsg);
        put_str(out, NFTA_SET_ELEM_LIST_TABLE, table);
        put_str(out, NFTA_SET_ELEM_LIST_SET, set.as_str());
        (start, begin_nest(out, NFTA_SET_ELEM_LIST_ELEMENTS))
    }

    /// Writes one message with as many of the elements as fit, and returns how many did.
    fn element_message(
        &mut self,
        verb: Verb,
        message_type: u16,
        flags: u16,
        set: SetName,
        elements: &[Element<F>],
        first: usize,
    ) -> usize {
        let (start, list) = self.begin_elements(message_type, flags, set);
        let out = &mut self.batch.bytes;
        let mut len = 0;
        for element in elements {
            if out.len() - list > ELEMENTS_MAX_LEN {
                break;
            }
            let nest = begin_nest(out, NFTA_LIST_ELEM);
            write_key(element, &mut self.key, out);
            self.key.clear();
            if element.write_key_end(&mut self.key) {
                let key_end = begin_nest(out, NFTA_SET_ELEM_KEY_END);
                put(out, NFTA_DATA_VALUE, &self.key);
                end_nest(out, key_end);
            }
            if flags & NLM_F_CREATE != 0 {
                write_data(element.data(), &mut self.key, out);
                if let Some(comment) = element.comment() {
                    put(
                        out,
                        NFTA_SET_ELEM_USERDATA,
                        &userdata::comment(comment.as_str()),
                    );
                }
            }
            end_nest(out, nest);
            len += 1;
        }
        end_nest(out, list);
        end_message(out, start);
        self.last = start;
        let names = ElementRange { first, len };
        self.batch.operations.push(Operation::Elements {
            verb,
            set,
            start,
            names,
        });
        len
    }

    pub(super) fn bare_table(&self) -> ffi::Table {
        let mut table = ffi::Table::new();
        table.str(sys::NFTNL_TABLE_NAME, self.table.name());
        table
    }

    fn named_chain(&self, chain: ChainName) -> ffi::Chain {
        let mut object = ffi::Chain::new();
        object.str(sys::NFTNL_CHAIN_TABLE, self.table.name());
        object.str(sys::NFTNL_CHAIN_NAME, &chain.to_string());
        object
    }

    fn rule_of(&self, chain: ChainName) -> ffi::Rule {
        let mut object = ffi::Rule::new();
        object.str(sys::NFTNL_RULE_TABLE, self.table.name());
        object.str(sys::NFTNL_RULE_CHAIN, &chain.to_string());
        object
    }
}

/// Writes an element's key, by way of a buffer whose content is lost.
fn write_key<F: Family>(element: &Element<F>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    scratch.clear();
    element.write_key(scratch);
    let key = begin_nest(out, NFTA_SET_ELEM_KEY);
    put(out, NFTA_DATA_VALUE, scratch);
    end_nest(out, key);
}

fn write_data<F: Family>(data: &Data<F>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    match data {
        Data::None => {}
        Data::Endpoint(EndpointAddress { address, port }) => {
            scratch.clear();
            F::write_address(*address, scratch);
            write_port(*port, scratch);
            let nest = begin_nest(out, NFTA_SET_ELEM_DATA);
            put(out, NFTA_DATA_VALUE, scratch);
            end_nest(out, nest);
        }
        Data::Verdict(verdict) => {
            let data = begin_nest(out, NFTA_SET_ELEM_DATA);
            let nest = begin_nest(out, NFTA_DATA_VERDICT);
            put(
                out,
                NFTA_VERDICT_CODE,
                &verdict_code(*verdict).to_be_bytes(),
            );
            if let Some(chain) = verdict.chain() {
                put_str(out, NFTA_VERDICT_CHAIN, &chain.to_string());
            }
            end_nest(out, nest);
            end_nest(out, data);
        }
    }
}
