//! Another proxy's table in a batch of ours: it goes, and what it remembers stays.

use nftnl::nftnl_sys as sys;

use super::super::attribute::{begin_nest, end_message, end_nest, put};
use super::super::constants::*;
use super::super::ffi;
use super::{ELEMENTS_MAX_LEN, Encoder, Operation, write_data, write_key};
use crate::compile::Remembered;
use crate::model::Family;
use crate::ruleset::name::SetName;

impl<F: Family> Encoder<'_, F> {
    /// Deletes a table that may be gone already: it is added first, which changes none that exists.
    pub(super) fn delete_other_table(&mut self, name: &str) {
        for (message_type, flags) in [(NFT_MSG_NEWTABLE, NLM_F_CREATE), (NFT_MSG_DELTABLE, 0)] {
            let mut table = ffi::Table::new();
            table.str(sys::NFTNL_TABLE_NAME, name);
            self.message(
                message_type,
                flags,
                &table,
                Operation::OtherTable(name.into()),
            );
        }
    }

    /// Adds elements to `affinity` that time takes, as it does those that rules add.
    pub(super) fn remember(&mut self, mut rest: &[Remembered<F>]) {
        while !rest.is_empty() {
            let len = self.remember_message(rest);
            rest = &rest[len..];
        }
    }

    /// Writes one message with as many as fit, and returns how many did.
    fn remember_message(&mut self, remembered: &[Remembered<F>]) -> usize {
        let set = SetName::Affinity;
        let (start, list) = self.begin_elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set);
        let out = &mut self.batch.bytes;
        let mut len = 0;
        for Remembered {
            element,
            timeout,
            expires,
        } in remembered
        {
            if out.len() - list > ELEMENTS_MAX_LEN {
                break;
            }
            let nest = begin_nest(out, NFTA_LIST_ELEM);
            write_key(element, &mut self.key, out);
            write_data(element.data(), &mut self.key, out);
            for (attribute, time) in [
                (NFTA_SET_ELEM_TIMEOUT, timeout),
                (NFTA_SET_ELEM_EXPIRATION, expires),
            ] {
                let milliseconds = time.as_millis() as u64;
                put(out, attribute, &milliseconds.to_be_bytes());
            }
            end_nest(out, nest);
            len += 1;
        }
        end_nest(out, list);
        end_message(out, start);
        self.last = start;
        self.batch.operations.push(Operation::Remembered(len));
        len
    }
}
