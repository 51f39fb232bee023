//! Tables taken away whole: ours when the proxy goes for good, another proxy's when we take over.

use nix::libc::{ENOENT, EPERM};

use super::constants::NFT_MSG_DELTABLE;
use super::encode::{self, Encoder};
use super::{Netlink, refused};
use crate::apply::{ApplyError, Operation, Verb};
use crate::model::Family;

impl Netlink {
    /// Deletes this socket's table in the family, whatever it holds. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; the table is as it was then. [`ApplyError::Held`] if another process
    /// holds it.
    pub fn remove<F: Family>(&mut self) -> Result<bool, ApplyError> {
        let table = self.table.clone();
        let mut encoder = Encoder::<F>::new(&table, false);
        encoder.begin();
        let body = encoder.bare_table();
        encoder.message(
            NFT_MSG_DELTABLE,
            0,
            &body,
            encode::Operation::Table(Verb::Delete),
        );
        let batch = encoder.end();
        self.connection.send(&batch.bytes)?;
        match self.answers(batch.acknowledged)?.into_iter().next() {
            None => Ok(true),
            Some(refusal) if refusal.errno == ENOENT => Ok(false),
            Some(refusal) => {
                let operation = Operation::Table(Verb::Delete);
                let error = refused(F::FAMILY, operation, refusal.message, refusal.errno);
                Err(if refusal.errno == EPERM {
                    self.or_held::<F>(error)
                } else {
                    error
                })
            }
        }
    }
}
