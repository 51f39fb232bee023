//! Why the kernel could not be listed or changed.

use std::fmt;
use std::io;

use crate::model::{IpFamily, ServicePortName};
use crate::ruleset::name::{ChainName, SetName};

/// Why the kernel could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No netlink socket could be had.
    #[error("opening a netfilter netlink socket (does this kernel have CONFIG_NF_TABLES?)")]
    Open(#[source] io::Error),
    /// The network namespace could not be entered, which takes CAP_SYS_ADMIN.
    #[error("entering the network namespace")]
    Namespace(#[source] io::Error),
    /// The process may not change the ruleset.
    #[error("not permitted to change nftables; run as root or with CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel has no nf_tables.
    #[error("this kernel has no nf_tables for {0} (CONFIG_NF_TABLES, CONFIG_NF_NAT)")]
    Unsupported(IpFamily),
    /// The kernel's connection tracking cannot be asked.
    #[error("this kernel cannot be asked for its connections (CONFIG_NF_CT_NETLINK)")]
    NoConntrack,
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
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// Another process holds the table, and nobody else can change it until that ends.
    #[error(
        "the table for {family} is held by another process (its netlink socket has number \
         {port_id}, which is mostly the process id); that one has to end first"
    )]
    Held {
        /// The table's family.
        family: IpFamily,
        /// The number of the socket that holds it.
        port_id: u32,
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
    /// What the kernel refused, if it refused something.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Which of the delta's `add_elements` the kernel refuses for what it is; without it, the rest
    /// may succeed.
    pub fn culprit(&self) -> Option<usize> {
        let refusal = self.refusal()?;
        let is_want_of_memory = refusal.source.kind() == io::ErrorKind::OutOfMemory;
        refusal.culprit.filter(|_| !is_want_of_memory)
    }

    /// Whether the same may succeed later without anyone's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open(_)
            | Self::Namespace(_)
            | Self::NotPermitted
            | Self::Unsupported(_)
            | Self::NoConntrack => false,
            Self::Send { .. }
            | Self::Held { .. }
            | Self::Receive(_)
            | Self::Refused(_)
            | Self::Unstable
            | Self::Malformed { .. } => true,
        }
    }
}

/// A request that the kernel refused, and what it said.
#[derive(Debug)]
pub struct Refusal {
    /// The table's family.
    pub family: IpFamily,
    /// The table's name, if it was about one.
    pub table: Option<Box<str>>,
    /// What was asked for.
    pub operation: Operation,
    /// The Service port that it was asked for, if it was for one.
    pub service_port: Option<ServicePortName>,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), if it had any.
    pub kernel_message: Option<Box<str>>,
    /// Which of the delta's `add_elements` was refused, if the kernel said so.
    pub culprit: Option<usize>,
    /// The error number; [`io::Error::raw_os_error`] has it as a number.
    pub source: io::Error,
}

impl Refusal {
    /// The error number, as in `errno.h`.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or_default()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            operation,
            service_port,
            kernel_message,
            culprit: _,
            source: _,
        } = self;
        let family = family.nft_name();
        write!(f, "the kernel refused {operation}")?;
        if let Some(table) = table {
            write!(f, " in table {family} {table}")?;
        }
        if let Some(service_port) = service_port {
            write!(f, " for service port {service_port}")?;
        }
        match kernel_message {
            Some(message) => write!(f, " ({message})"),
            None if matches!(operation, Operation::Rule { .. }) && self.is_not_found() => {
                f.write_str(" (this kernel may lack an expression that the rule needs)")
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Refusal {
    /// Whether the kernel said that there is no such thing (`ENOENT`).
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// What was asked of the kernel. Displayed as in "adding chain pick-3".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// To read something, in words.
    List(Box<str>),
    /// A batch as a whole.
    Batch,
    /// The table itself.
    Table(Verb),
    /// To delete another proxy's table, of this name.
    OtherTable(Box<str>),
    /// To add a set or map.
    Set(SetName),
    /// A chain.
    Chain(Verb, ChainName),
    /// To add a rule.
    Rule {
        /// To which chain.
        chain: ChainName,
        /// The rule, as nft(8) writes it.
        text: Box<str>,
    },
    /// One element.
    Element {
        /// What with it.
        verb: Verb,
        /// Of which set or map.
        set: SetName,
        /// The element, as nft(8) writes it.
        element: Box<str>,
    },
    /// Several elements, of which the kernel did not say which.
    Elements {
        /// What with them.
        verb: Verb,
        /// Of which set or map.
        set: SetName,
        /// How many.
        count: usize,
    },
    /// To delete a connection tracking entry.
    Flow,
}

/// What was to be done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// To make it.
    Add,
    /// To remove it.
    Delete,
    /// To empty it.
    Flush,
    /// To remove what rules have learned.
    Forget,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "adding",
            Self::Delete => "deleting",
            Self::Flush => "flushing",
            Self::Forget => "forgetting",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(what) => write!(f, "listing {what}"),
            Self::Batch => f.write_str("the batch as a whole"),
            Self::Table(verb) => write!(f, "{verb} the table"),
            Self::OtherTable(name) => write!(f, "deleting table {name} in favour of what is"),
            Self::Set(set) => write!(f, "adding set {set}"),
            Self::Chain(verb, chain) => write!(f, "{verb} chain {chain}"),
            Self::Rule { chain, text } => write!(f, "adding rule \"{text}\" to chain {chain}"),
            Self::Element { verb, set, element } => {
                write!(f, "{verb} element {{ {element} }} of {set}")
            }
            Self::Elements { verb, set, count } => write!(f, "{verb} {count} elements of {set}"),
            Self::Flow => f.write_str("deleting a connection tracking entry"),
        }
    }
}
