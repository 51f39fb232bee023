//! Names that may reach rules, and what the API server and the kernel let them be. A value of one
//! of these types is legal, so nothing after this has to be careful with it.

use std::fmt;
use std::str::FromStr;

/// `IFNAMSIZ` of `linux/if.h`, without the NUL at the end.
const INTERFACE_MAX_LEN: usize = 15;
const LABEL_MAX_LEN: usize = 63;
const SUBDOMAIN_MAX_LEN: usize = 253;

/// Why a name cannot be. The text is on one line, whatever the name holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {}", kind.describe())]
pub struct NameError {
    text: Box<str>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Label,
    Subdomain,
    LabelValue,
    Interface,
}

impl Kind {
    fn describe(self) -> &'static str {
        match self {
            Self::Label => {
                "a DNS label: up to 63 lower-case letters, digits and \"-\", \
                 with a letter or digit at both ends"
            }
            Self::Subdomain => {
                "a DNS name: up to 253 bytes of DNS labels (lower-case letters, digits, \"-\") \
                 with \".\" between them"
            }
            Self::LabelValue => {
                "a label's value: up to 63 letters, digits and any of \"-_.\", \
                 with a letter or digit at both ends"
            }
            Self::Interface => {
                "an interface name: 1 to 15 bytes, without white space and any of \
                 / : * \\ \" { }"
            }
        }
    }

    fn check(self, text: &str) -> Result<(), NameError> {
        let is_fine = match self {
            Self::Label => is_label(text),
            Self::Subdomain => text.len() <= SUBDOMAIN_MAX_LEN && text.split('.').all(is_dns_word),
            Self::LabelValue => is_label_value(text),
            Self::Interface => is_interface(text),
        };
        is_fine.then_some(()).ok_or_else(|| NameError {
            text: text.into(),
            kind: self,
        })
    }
}

/// Checks that a text is a DNS label (RFC 1123), as names of namespaces, Services and their ports
/// are. Names of Services had to start with a letter (RFC 1035) before Kubernetes 1.34.
pub(super) fn check_label(text: &str) -> Result<(), NameError> {
    Kind::Label.check(text)
}

/// Checks that a text is a DNS subdomain (RFC 1123), as names of most objects are: slices, nodes,
/// ServiceCIDRs.
///
/// # Errors
///
/// If it is not.
pub fn check_subdomain(text: &str) -> Result<(), NameError> {
    Kind::Subdomain.check(text)
}

/// Checks that a text is what a label can have as its value, such as the name of a zone. It may be
/// empty.
///
/// # Errors
///
/// If it is not.
pub fn check_label_value(text: &str) -> Result<(), NameError> {
    Kind::LabelValue.check(text)
}

fn is_label(text: &str) -> bool {
    text.len() <= LABEL_MAX_LEN && is_dns_word(text)
}

fn is_dns_word(text: &str) -> bool {
    let is_end =
        |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
    let bytes = text.as_bytes();
    is_end(bytes.first())
        && is_end(bytes.last())
        && bytes
            .iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn is_label_value(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= LABEL_MAX_LEN
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// What `dev_valid_name()` of the kernel allows, without what nft(8) cannot read back in quotes.
fn is_interface(text: &str) -> bool {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || "/:*\\\"{}".contains(c);
    (1..=INTERFACE_MAX_LEN).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(is_bad)
}

/// The name of a port of a Service or slice: empty, or a DNS label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PortName(Box<str>);

impl PortName {
    /// Takes a name; the empty one is that of an unnamed port.
    ///
    /// # Errors
    ///
    /// If it is neither empty nor a DNS label of up to 63 bytes.
    ///
    /// ```
    /// # use nftproxy_core::model::PortName;
    /// assert_eq!(PortName::new("http")?.as_str(), "http");
    /// assert_eq!(PortName::new("")?, PortName::default());
    /// assert!(PortName::new("http\" : drop").is_err());
    /// # Ok::<(), nftproxy_core::model::NameError>(())
    /// ```
    pub fn new(name: &str) -> Result<Self, NameError> {
        if !name.is_empty() {
            check_label(name)?;
        }
        Ok(Self(name.into()))
    }

    /// The name, empty if the port is unnamed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the port is unnamed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for PortName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// The name of a network interface, or what the names of several start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// Takes a name.
    ///
    /// # Errors
    ///
    /// If no interface can have it, or if nft(8) could not read it: it has 1 to 15 bytes, no white
    /// space or control characters, and none of `/ : * \ " { }`.
    ///
    /// ```
    /// # use nftproxy_core::model::InterfaceName;
    /// assert_eq!(InterfaceName::new("cni0")?.as_str(), "cni0");
    /// assert!(InterfaceName::new("a-very-long-name").is_err());
    /// # Ok::<(), nftproxy_core::model::NameError>(())
    /// ```
    pub fn new(name: &str) -> Result<Self, NameError> {
        Kind::Interface.check(name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(kind: Kind, expected: bool, texts: &[&str]) {
        for text in texts {
            assert_eq!(kind.check(text).is_ok(), expected, "{kind:?} {text:?}");
        }
    }

    #[test]
    fn dns_labels_are_those_of_kubernetes() {
        let (longest, longer) = ("a".repeat(63), "a".repeat(64));
        let good = ["a", "0", "a-b", "1a", "a--b", "web-2", &longest];
        all(Kind::Label, true, &good);
        all(Kind::Subdomain, true, &good);
        let bad = [
            "", "-", "-a", "a-", "A", "a_b", "a b", "ä", "a\n", "\na", "a\"", "a}", "a/b", "a:b",
            "a\0",
        ];
        all(Kind::Label, false, &bad);
        all(Kind::Subdomain, false, &bad);
        all(Kind::Label, false, &["a.b", &longer]);
        all(Kind::Subdomain, true, &["a.b", "node-1.example.com"]);
        let long = vec!["a"; 127].join(".");
        assert_eq!(long.len(), SUBDOMAIN_MAX_LEN);
        all(Kind::Subdomain, true, &[&long]);
        all(
            Kind::Subdomain,
            false,
            &[&format!("{long}a"), ".", "a.", ".a", "a..b", "a.-b"],
        );
    }

    #[test]
    fn label_values_are_those_of_kubernetes() {
        let (longest, longer) = ("a".repeat(63), "a".repeat(64));
        all(Kind::LabelValue, true, &["", "a", "Zone_1.b", &longest]);
        all(
            Kind::LabelValue,
            false,
            &["-a", "a-", "a b", "ä", "a/b", "a\"", "a\n", &longer],
        );
    }

    #[test]
    fn interface_names_are_those_that_kernel_and_nft_can_read() {
        all(
            Kind::Interface,
            true,
            &[
                "e",
                "eth0",
                "eth0.100",
                "veth-123_x",
                "br@1",
                "...",
                "123456789012345",
                "brücke",
            ],
        );
        all(
            Kind::Interface,
            false,
            &[
                "",
                ".",
                "..",
                "a b",
                "a\tb",
                "a\n",
                "a/b",
                "a:b",
                "pod*",
                "a\\",
                "a\"b",
                "a{",
                "a}",
                "a\0",
                "a\u{a0}b",
                "1234567890123456",
                "brückebrückebr",
            ],
        );
    }

    #[test]
    fn errors_stay_on_one_line() {
        let error = PortName::new("x\" : drop }\nflush ruleset\n#").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"x\\\" : drop }\\nflush ruleset\\n#\" is not a DNS label: up to 63 lower-case letters, \
             digits and \"-\", with a letter or digit at both ends"
        );
    }
}
