//! Comments of elements.

use std::fmt;
use std::sync::Arc;

use super::name::COMMENT_MAX_LEN;

/// What stands for whatever a comment cannot hold.
const SUBSTITUTE: char = '?';

/// The comment of an element: the Service port it belongs to. Cheap to clone; ordered by its text.
///
/// Whatever it is made of, nft(8) can read it in quotes, and takes it for a comment and nothing
/// else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Comment(Arc<str>);

impl Comment {
    /// Makes a comment of a text: quotes, backslashes, braces and control characters become `?`,
    /// and what is longer than nft(8) takes is cut off.
    ///
    /// ```
    /// # use nftproxy_core::ruleset::Comment;
    /// assert_eq!(Comment::new("shop/api:http").as_str(), "shop/api:http");
    /// assert_eq!(Comment::new("a\" : drop }\n").as_str(), "a? : drop ??");
    /// ```
    pub fn new(text: &str) -> Self {
        let is_bad = |c: char| c.is_control() || matches!(c, '"' | '\\' | '{' | '}');
        // Legal names reach 191 bytes, and are ASCII; anything else is cut at a character's start.
        let end = (0..=COMMENT_MAX_LEN.min(text.len()))
            .rev()
            .find(|end| text.is_char_boundary(*end));
        let text = &text[..end.unwrap_or_default()];
        // Nearly all are plain, which is seen faster in bytes.
        let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !is_bad(char::from(*byte));
        if !text.as_bytes().iter().all(is_plain) && text.contains(is_bad) {
            return Self(text.replace(is_bad, &SUBSTITUTE.to_string()).into());
        }
        Self(text.into())
    }

    /// The text, of at most 128 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
