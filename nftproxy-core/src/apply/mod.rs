//! Where rulesets meet the kernel.
//!
//! [`Kernel`] is what [`crate::sync`] needs of one: [`netlink::Netlink`] is the real one,
//! [`fake::FakeKernel`] one in memory.

mod error;
pub mod fake;
mod incident;
pub mod netlink;

use std::time::Duration;

pub use error::{ApplyError, Operation, Refusal, Verb};
pub use incident::{Change, Culprit, Incident, Keys, Object, Scope};

use crate::compile::{Learned, Remembered};
use crate::diff::{Delta, Observed};
use crate::model::Family;
use crate::ruleset::Table;
use crate::ruleset::element::Element;

/// Something that holds one family's table.
pub trait Kernel<F: Family> {
    /// Reads the table; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked; see [`ApplyError::is_retryable`].
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError>;

    /// Reads the table, but of its elements only those of a scope; `None` if there is none.
    ///
    /// # Errors
    ///
    /// As [`Kernel::list`].
    fn list_part(&mut self, scope: &Scope) -> Result<Option<Observed<F>>, ApplyError> {
        let mut observed = self.list()?;
        if let Some(observed) = &mut observed {
            let mut scratch = Vec::new();
            let elements = &mut observed.ruleset.elements;
            elements.retain(|element| scope.contains(element, &mut scratch));
        }
        Ok(observed)
    }

    /// Reads what `affinity` has learned.
    ///
    /// # Errors
    ///
    /// As [`Kernel::list`]; and if there is no table.
    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError>;

    /// Reads what `affinity` has learned, and how long each of it stays.
    ///
    /// # Errors
    ///
    /// As [`Kernel::list_affinity`].
    fn list_memory(&mut self) -> Result<Vec<Remembered<F>>, ApplyError> {
        Ok(Vec::new())
    }

    /// Reads what another proxy's table remembers of clients, as far as that can be understood;
    /// `None` if there is no such table, or none can be there.
    ///
    /// # Errors
    ///
    /// As [`Kernel::list`].
    fn list_predecessor(&mut self, table: &Table) -> Result<Option<Vec<Learned<F>>>, ApplyError> {
        let _ = table;
        Ok(None)
    }

    /// Applies a delta, wholly or not at all.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, nothing has changed.
    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError>;

    /// Whether tables that are made are held against others; see [`netlink::Netlink::hold`].
    fn holds(&self) -> bool {
        false
    }

    /// A number that changes with each commit of anybody, to any table; `None` if the kernel does
    /// not say.
    ///
    /// # Errors
    ///
    /// As [`Kernel::list`].
    fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
        Ok(None)
    }
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
    /// Whether somebody else may have committed meanwhile, of which [`netlink::Monitor`] tells
    /// nothing.
    pub is_overheard: bool,
}

impl Committed {
    /// Both of two commits.
    pub(crate) fn and(self, next: Self) -> Self {
        Self {
            bytes: self.bytes + next.bytes,
            messages: self.messages + next.messages,
            encode: self.encode + next.encode,
            kernel: self.kernel + next.kernel,
            is_overheard: self.is_overheard || next.is_overheard,
        }
    }
}
