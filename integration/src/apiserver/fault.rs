//! Misfortunes that requests meet with: what happens, to which requests, and how often.
//!
//! It must not know how an answer is made. Entry points: [`Fault`] and [`Rule`].

use bytes::Bytes;

use super::resource::Resource;
use super::status::Status;

/// What becomes of a request or its answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is refused.
    Refuse(Status),
    /// It is answered by these very words, as by something that is no API server.
    Verbatim {
        /// The HTTP status code.
        status: u16,
        /// Names and values of headers, the type of the content among them.
        headers: Vec<(&'static str, String)>,
        /// The whole body.
        body: Bytes,
    },
    /// It is never answered, while its connection stays.
    Silence,
    /// The connection is cut after so many bytes of the body.
    ///
    /// Over HTTP/2 it is the stream that is reset. A body that is not longer ends as ever.
    Cut {
        /// Bytes that are still sent.
        after: usize,
    },
    /// The body ends in good order after so many bytes, as if it were complete.
    Truncate {
        /// Bytes that are sent.
        after: usize,
    },
    /// The watch ends in good order after so many events.
    EndWatch {
        /// Events that are sent; 0 for a body that is empty.
        after: usize,
    },
    /// The watch ends with an ERROR event after so many other events.
    FailWatch {
        /// Events that are sent before.
        after: usize,
        /// The object of the ERROR event.
        status: Status,
    },
    /// After so many events the watch announces a frame of so many bytes and sends nothing more.
    ///
    /// As JSON it is a line of that length, which is sent and never ends.
    HugeFrame {
        /// Events that are sent before.
        after: usize,
        /// The length of the frame in bytes.
        length: u32,
    },
}

impl Fault {
    /// The log-in page of a network, with status 200.
    pub fn captive_portal() -> Self {
        Self::Verbatim {
            status: 200,
            headers: vec![("content-type", "text/html".to_owned())],
            body: Bytes::from_static(
                b"<!DOCTYPE html><html><head><title>Welcome</title></head>\
                  <body>Please log in to use this network.</body></html>\n",
            ),
        }
    }

    /// Status 429 as a kube-apiserver says it that has too much to do: it takes no time to make
    /// an object, and answers in plain text.
    pub fn overload(retry_after: u32) -> Self {
        Self::Verbatim {
            status: 429,
            headers: vec![
                ("content-type", "text/plain; charset=utf-8".to_owned()),
                ("x-content-type-options", "nosniff".to_owned()),
                ("retry-after", retry_after.to_string()),
            ],
            body: Bytes::from_static(b"Too many requests, please try again later.\n"),
        }
    }

    fn is_possible_for(&self, verb: Verb) -> bool {
        match self {
            Self::Refuse(_)
            | Self::Verbatim { .. }
            | Self::Silence
            | Self::Cut { .. }
            | Self::Truncate { .. } => true,
            Self::EndWatch { .. } | Self::FailWatch { .. } | Self::HugeFrame { .. } => {
                verb == Verb::Watch
            }
        }
    }
}

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// One object, or the version of the server.
    Get,
    /// A list, or a page of one.
    List,
    /// A watch, be it a streaming list or not.
    Watch,
}

/// A fault and the requests that meet with it: all of them for ever, unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    resource: Option<Resource>,
    verb: Option<Verb>,
    left: Option<usize>,
    skip: usize,
}

impl Rule {
    /// A fault that every request meets with.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            resource: None,
            verb: None,
            left: None,
            skip: 0,
        }
    }

    /// Only requests for this resource.
    #[must_use]
    pub fn on(mut self, resource: Resource) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Only requests with this verb.
    #[must_use]
    pub fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Only so many of those that would meet with it.
    #[must_use]
    pub fn times(mut self, n: usize) -> Self {
        self.left = Some(n);
        self
    }

    /// Not the first so many of those that would meet with it.
    #[must_use]
    pub fn skip(mut self, n: usize) -> Self {
        self.skip = n;
        self
    }

    fn strikes(&mut self, resource: Option<Resource>, verb: Verb) -> bool {
        let fits = self.resource.is_none_or(|r| resource == Some(r))
            && self.verb.is_none_or(|v| verb == v)
            && self.fault.is_possible_for(verb)
            && self.left != Some(0);
        if fits && self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if fits && let Some(left) = &mut self.left {
            *left -= 1;
        }
        fits
    }
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self::new(fault)
    }
}

/// The fault that a request meets with: that of the first rule for it.
pub(super) fn strike(rules: &mut [Rule], resource: Option<Resource>, verb: Verb) -> Option<Fault> {
    let rule = rules
        .iter_mut()
        .find_map(|rule| rule.strikes(resource, verb).then_some(&*rule));
    rule.map(|rule| rule.fault.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_strike_what_they_name_as_often_as_they_say() {
        let mut rules = [
            Rule::new(Fault::EndWatch { after: 0 }).times(1),
            Rule::new(Fault::Silence)
                .on(Resource::Nodes)
                .verb(Verb::List)
                .skip(1)
                .times(2),
        ];
        let mut struck = |resource, verb| strike(&mut rules, Some(resource), verb).is_some();
        assert!(!struck(Resource::Services, Verb::List));
        assert!(struck(Resource::Services, Verb::Watch));
        assert!(!struck(Resource::Services, Verb::Watch));
        assert!(!struck(Resource::Nodes, Verb::Watch));
        let lists = [(); 4].map(|()| struck(Resource::Nodes, Verb::List));
        assert_eq!(lists, [false, true, true, false]);
    }
}
