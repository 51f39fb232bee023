//! What an audit finds.

use std::fmt;

use crate::model::IpFamily;

/// Something that is not as it should be, or good to know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What it means for traffic.
    pub severity: Severity,
    /// What kind of thing it is.
    pub kind: Kind,
    /// The family of the table; none for what concerns both.
    pub family: Option<IpFamily>,
    /// The Service port that it is about, `namespace/name:port`, if it is known.
    pub service_port: Option<String>,
    /// The object: `map services`, `chain guard`, `table ip nat`.
    pub object: String,
    /// What is so.
    pub message: String,
    /// What traffic experiences by it, or what to do about it; may be empty.
    pub effect: String,
}

/// What a finding means for traffic. The order is that of importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// New connections do not go where they should.
    Error,
    /// They may not, or will not when something changes.
    Warning,
    /// Good to know; nothing is wrong.
    Note,
}

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A table, chain, rule or element is not there.
    Missing,
    /// An element or chain is there that nothing asks for.
    Extra,
    /// An element or chain holds something else than it should.
    Different,
    /// The slots of a destination have a gap, or an endpoint more than one.
    Slots,
    /// Something in our table that is none of ours.
    Foreign,
    /// A verdict leads to a chain that does not exist.
    Dangling,
    /// No packet comes to a chain.
    Unreachable,
    /// Somebody else's chain comes first and may decide over Service traffic.
    Preempted,
    /// kube-proxy's rules are there.
    KubeProxy,
    /// The rules leave out something that the cluster asks for.
    LeftOut,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Missing,
        Self::Extra,
        Self::Different,
        Self::Slots,
        Self::Foreign,
        Self::Dangling,
        Self::Unreachable,
        Self::Preempted,
        Self::KubeProxy,
        Self::LeftOut,
    ];

    /// One word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
            Self::Slots => "slots",
            Self::Foreign => "foreign",
            Self::Dangling => "dangling",
            Self::Unreachable => "unreachable",
            Self::Preempted => "preempted",
            Self::KubeProxy => "kube-proxy",
            Self::LeftOut => "left-out",
        }
    }
}

impl Severity {
    /// One word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One line without severity and kind.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service_port) = &self.service_port {
            write!(f, "{service_port}: ")?;
        }
        write!(f, "{}: {}", self.object, self.message)?;
        if !self.effect.is_empty() {
            write!(f, "; {}", self.effect)?;
        }
        Ok(())
    }
}
