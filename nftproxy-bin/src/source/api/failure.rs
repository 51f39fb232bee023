//! What can go wrong between us and an API server.

use std::fmt;
use std::time::Duration;

/// Why a request, or a watch, came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no server. It has been logged, and the next request waits for its turn.
    Unreachable,
    /// The server refuses, by a status or by an event.
    Answer {
        code: u16,
        reason: String,
        message: String,
        retry_after: Option<Duration>,
    },
    /// The connection ended too early.
    Broken(String),
    /// Nothing came in time.
    Silent(String),
    /// What came cannot be read.
    Unreadable(String),
    /// A list that was to be streamed never became complete.
    NoList,
    /// A list broke off.
    ListBroken(String),
    /// A watch ended so soon that the next one must wait.
    Short,
    /// Our own credentials cannot be had.
    Local(String),
}

impl Failure {
    /// Whether versions are no longer known, so that only a new list can help.
    pub(super) fn is_expired(&self) -> bool {
        matches!(self, Self::Answer { code: 410, .. })
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }

    /// Whether the server has no objects of this kind at all.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Answer { code: 404, .. })
    }

    /// Whether it may not be the same server, or not the same state of it, that answers next.
    pub(super) fn is_of_server(&self) -> bool {
        match self {
            Self::Answer { code, .. } => matches!(code, 401 | 403 | 500..),
            Self::Unreachable | Self::Broken(_) | Self::Silent(_) | Self::ListBroken(_) => true,
            Self::Unreadable(_) | Self::NoList | Self::Short | Self::Local(_) => false,
        }
    }

    /// Whether the request was understood, and refused for what it asks.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Answer { code, .. } => {
                !matches!(code, 401 | 403 | 404 | 408 | 410 | 429 | 502 | 503 | 504)
            }
            Self::NoList => true,
            _ => false,
        }
    }

    /// Whether the server is in trouble, so that another way to ask is hardly better.
    pub(super) fn is_trouble(&self) -> bool {
        matches!(self, Self::Answer { code: 500.., .. })
    }

    /// The same while a list was coming.
    pub(super) fn of_list(self) -> Self {
        match self {
            Self::Broken(text) => Self::ListBroken(text),
            Self::Silent(_) => Self::NoList,
            other => other,
        }
    }

    /// Whether it may be over from one moment to the next, when the server has started or is
    /// reachable again.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Answer { code, .. } => matches!(code, 401 | 403 | 429 | 500..),
            Self::Broken(_) | Self::Silent(_) | Self::Local(_) => true,
            // Lists are what costs a server most: none is asked for once a second.
            Self::NoList | Self::ListBroken(_) => false,
            Self::Unreachable | Self::Unreadable(_) | Self::Short => false,
        }
    }

    /// What tells failures of one kind from those of another.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Answer {
                code,
                reason,
                message,
                ..
            } => format!("{code} {reason} {}", cause(message)),
            other => cause(&other.to_string()),
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("the API server cannot be reached"),
            Self::Answer {
                code,
                reason,
                message,
                ..
            } => {
                write!(f, "the API server answers {code}")?;
                if !reason.is_empty() {
                    write!(f, " {reason}")?;
                }
                if !message.is_empty() {
                    write!(f, ": {message}")?;
                }
                Ok(())
            }
            Self::Broken(text) => write!(f, "the connection broke: {text}"),
            Self::Silent(text) => write!(f, "{text} came in time"),
            Self::Unreadable(text) => write!(f, "the answer cannot be read: {text}"),
            Self::NoList => f.write_str("a list does not end"),
            Self::ListBroken(text) => write!(f, "a list broke off: {text}"),
            Self::Short => f.write_str("watches end as soon as they begin"),
            Self::Local(text) => f.write_str(text),
        }
    }
}

/// An error's text without what differs each time: two of the same kind are equal.
pub(super) fn cause(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_of_one_kind_are_equal() {
        let answer = |code, version| Failure::Answer {
            code,
            reason: "Expired".into(),
            message: format!("too old resource version: {version} (99)"),
            retry_after: None,
        };
        let text = |failure: Failure| failure.cause();
        assert_eq!(text(answer(410, 7)), text(answer(410, 12)));
        assert_ne!(text(answer(410, 7)), text(Failure::Short));
    }
}
