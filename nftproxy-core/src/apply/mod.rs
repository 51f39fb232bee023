//! Where rulesets meet the kernel.
//!
//! [`Kernel`] is what [`crate::sync`] needs of one: [`netlink::Netlink`] is the real one,
//! [`fake::FakeKernel`] one in memory.

mod error;
pub mod fake;
pub mod netlink;

use std::time::Duration;

pub use error::{ApplyError, Operation, Refusal, Verb};

use crate::diff::{Delta, Observed};
use crate::model::Family;
use crate::ruleset::element::Element;

/// Something that holds one family's table.
pub trait Kernel<F: Family> {
    /// Reads the table; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked; see [`ApplyError::is_retryable`].
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError>;

    /// Reads what `affinity` has learned.
    ///
    /// # Errors
    ///
    /// As [`Kernel::list`]; and if there is no table.
    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError>;

    /// Applies a delta, wholly or not at all.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, nothing has changed.
    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError>;
}

/// What a commit cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// Bytes in the batch.
    pub bytes: usize,
    /// Netlink messages in the batch.
    pub messages: usize,
    /// Time to write the batch.
    pub encode: Duration,
    /// Time from sending the batch to the kernel's consent.
    pub kernel: Duration,
}
