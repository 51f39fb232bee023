//! Where rulesets meet the kernel.
//!
//! [`Kernel`] is what [`crate::sync`] needs of one: [`netlink::Netlink`] is the real one,
//! [`fake::FakeKernel`] one in memory.

pub mod fake;
pub mod netlink;

use std::io;
use std::time::Duration;

use crate::diff::{Delta, Observed};
use crate::model::{Family, IpFamily};
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

/// Why the kernel could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No netlink socket could be had.
    #[error("opening a netfilter netlink socket (does this kernel have CONFIG_NF_TABLES?)")]
    Open(#[source] io::Error),
    /// The process may not change the ruleset.
    #[error("not permitted to change nftables; run as root or with CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel has no nf_tables.
    #[error("this kernel has no nf_tables for {0} (CONFIG_NF_TABLES, CONFIG_NF_NAT)")]
    Unsupported(IpFamily),
    /// A request could not be sent.
    #[error("sending {bytes} bytes to the kernel")]
    Send {
        /// How much it was.
        bytes: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An answer could not be received.
    #[error("receiving an answer from the kernel")]
    Receive(#[source] io::Error),
    /// The kernel refused a request.
    #[error(
        "the kernel refused {operation} in table {table} nftproxy{hint}",
        table = .family.nft_name(),
        hint = .hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default(),
    )]
    Refused {
        /// The table's family.
        family: IpFamily,
        /// What was asked for, with the name of the object.
        operation: String,
        /// What the kernel said beyond its error number, or what it may mean.
        hint: Option<String>,
        /// Which of the delta's `add_elements` was refused, if the kernel said so.
        culprit: Option<usize>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// The ruleset changed during each attempt to list it.
    #[error("the ruleset kept changing while it was listed")]
    Unstable,
    /// The kernel's answer made no sense.
    #[error("the kernel's answer to {request} made no sense")]
    Malformed {
        /// What was asked for.
        request: String,
    },
}

impl ApplyError {
    /// Which of the delta's `add_elements` the kernel refuses for what it is; without it, the rest
    /// may succeed.
    pub fn culprit(&self) -> Option<usize> {
        match self {
            Self::Refused {
                culprit, source, ..
            } if source.kind() != io::ErrorKind::OutOfMemory => *culprit,
            _ => None,
        }
    }

    /// Whether the same may succeed later without anyone's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open(_) | Self::NotPermitted | Self::Unsupported(_) => false,
            Self::Send { .. }
            | Self::Receive(_)
            | Self::Refused { .. }
            | Self::Unstable
            | Self::Malformed { .. } => true,
        }
    }
}
