//! What was left out of a ruleset, and why.

use std::fmt;

use crate::model::{ServiceAddress, ServicePortName};
use crate::ruleset::name::SetName;

/// Something that was left out of the ruleset, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// Two Service ports claim the same address, protocol and port.
    Conflict {
        /// The one that is left out there.
        loser: ServicePortName,
        /// The one that has it.
        winner: ServicePortName,
        /// What both claim.
        destination: ServiceAddress,
    },
    /// The kernel refuses an element, again and again.
    Refused {
        /// The Service port it belongs to, if it belongs to one.
        service_port: Option<ServicePortName>,
        /// The set or map it belongs in.
        set: SetName,
        /// The element, as nft(8) writes it.
        element: Box<str>,
        /// The kernel's error number, as in `errno.h`; 0 if it gave none.
        errno: i32,
        /// The kernel's own words, if it had any.
        kernel_message: Option<Box<str>>,
    },
    /// The kernel cannot hash clients' addresses, so that they do not decide as the Service asks.
    NoHash {
        /// The Service port whose endpoints are chosen at random.
        service_port: ServicePortName,
    },
}

impl Note {
    /// The Service port that is not served as its Service asks for, if it is known.
    pub fn service_port(&self) -> Option<&ServicePortName> {
        match self {
            Self::Conflict { loser, .. } => Some(loser),
            Self::Refused { service_port, .. } => service_port.as_ref(),
            Self::NoHash { service_port } => Some(service_port),
        }
    }

    /// What is left out where, whatever the reason is by now: notes with the same subject say the
    /// same to whoever has read one of them.
    pub(crate) fn subject(&self) -> Subject<'_> {
        match self {
            Self::Conflict {
                loser,
                winner: _,
                destination,
            } => Subject::Destination(loser, destination),
            Self::Refused {
                service_port: _,
                set,
                element,
                errno: _,
                kernel_message: _,
            } => Subject::Element(*set, element),
            Self::NoHash { service_port } => Subject::Choice(service_port),
        }
    }

    /// One word for the kind of note, for labels of metrics and reasons of Events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "Conflict",
            Self::Refused { .. } => "Refused",
            Self::NoHash { .. } => "NoHash",
        }
    }
}

/// What a [`Note`] is about.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject<'a> {
    Destination(&'a ServicePortName, &'a ServiceAddress),
    Element(SetName, &'a str),
    Choice(&'a ServicePortName),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict {
                loser,
                winner,
                destination,
            } => write!(
                f,
                "service port {loser} is not reachable at {destination}, which {winner} has already"
            ),
            Self::NoHash { service_port } => write!(
                f,
                "endpoints of service port {service_port} are chosen at random, as this kernel has \
                 no jhash expressions (module nft_hash)"
            ),
            Self::Refused {
                service_port,
                set,
                element,
                errno,
                kernel_message,
            } => {
                if let Some(service_port) = service_port {
                    write!(f, "service port {service_port} is not complete: ")?;
                }
                let reason = std::io::Error::from_raw_os_error(*errno);
                write!(f, "the kernel refuses {{ {element} }} of {set}: {reason}")?;
                match kernel_message {
                    Some(message) => write!(f, " ({message})"),
                    None => Ok(()),
                }
            }
        }
    }
}
