//! Saved listings, read back: `nft list ruleset` and `nft -j list ruleset`, of nft 1.0.5 and up.
//! Versions before abort at our maps of slots.
//!
//! ```text
//!  text ─ text.rs ──┐ sets, elements, chains, rules   ┌─ ours.rs ─▶ Observed   our tables
//!                   ├────────────────────────────────▶┤
//!  JSON ─ json.rs ──┘ each as the words of text       └─ others.rs ▶ Neighbour  those of others
//! ```
//!
//! Rules and elements of our tables come down to what [`crate::apply::netlink`] makes of them in
//! the kernel, so whoever compares need not know where a table comes from. What cannot be read is
//! never guessed: it ends up in [`Listing::unread`] or, as a rule or object that is none of ours,
//! in the [`Observed`]. Entry point: [`read`].

mod json;
mod others;
mod ours;
mod port;
mod rule;
mod text;
mod token;

use std::fmt;

use crate::diff::Observed;
use crate::model::{V4, V6};
use crate::neighbour::Neighbour;
use crate::ruleset::Table;

/// What a listing holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Our table of IPv4; `None` if there is none.
    pub v4: Option<Observed<V4>>,
    /// Our table of IPv6; `None` if there is none.
    pub v6: Option<Observed<V6>>,
    /// Everybody else's tables, in order.
    pub neighbours: Vec<Neighbour>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// A piece of a listing that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unread {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, why } = self;
        write!(f, "line {line}: {why}")
    }
}

/// Reads a listing, text or JSON, in which our tables have this name.
///
/// ```
/// # use nftproxy_core::compile::compile;
/// # use nftproxy_core::model::{Node, State};
/// # use nftproxy_core::{listing, render};
/// # use nftproxy_core::ruleset::Table;
/// let ruleset = compile(&State::default(), &Node::default()).v4;
/// let listing = listing::read(&render::listing(&ruleset), &Table::default());
/// assert_eq!(listing.unread, []);
/// assert_eq!(listing.v4.map(|observed| observed.ruleset), Some(ruleset));
/// ```
pub fn read(text: &str, table: &Table) -> Listing {
    let mut reading = Reading {
        table,
        v4: None,
        v6: None,
        neighbours: Vec::new(),
        unread: Vec::new(),
    };
    if text.trim().is_empty() {
        // What a program prints that has failed.
        reading.unread(
            1,
            "it is empty: there is no table at all, or nft has failed",
        );
    } else if text.trim_start().starts_with('{') {
        json::read(text, &mut reading);
    } else {
        text::read(text, &mut reading);
    }
    let Reading {
        v4,
        v6,
        neighbours,
        unread,
        ..
    } = reading;
    Listing {
        v4: v4.map(ours::Ours::finish),
        v6: v6.map(ours::Ours::finish),
        neighbours: neighbours.into_iter().map(others::Other::finish).collect(),
        unread,
    }
}

/// What has been read so far.
struct Reading<'a> {
    table: &'a Table,
    v4: Option<ours::Ours<'a, V4>>,
    v6: Option<ours::Ours<'a, V6>>,
    neighbours: Vec<others::Other>,
    unread: Vec<Unread>,
}

impl<'a> Reading<'a> {
    /// Whoever takes what a table of this family and name holds.
    fn table(&mut self, family: &str, name: &str) -> &mut dyn Sink {
        if name == self.table.name() {
            match family {
                "ip" => return self.v4.get_or_insert_with(|| ours::Ours::new(self.table)),
                "ip6" => return self.v6.get_or_insert_with(|| ours::Ours::new(self.table)),
                _ => {}
            }
        }
        let known = |other: &others::Other| other.is(family, name);
        let index = self.neighbours.iter().position(known).unwrap_or_else(|| {
            self.neighbours.push(others::Other::new(family, name));
            self.neighbours.len() - 1
        });
        &mut self.neighbours[index]
    }

    fn unread(&mut self, line: usize, why: impl Into<String>) {
        let why = why.into();
        self.unread.push(Unread { line, why });
    }
}

/// Takes what a table holds, in either form.
trait Sink {
    /// A flag of the table, such as `dormant`.
    fn table_flag(&mut self, flag: &str);
    /// A set or map; its elements follow.
    fn set(&mut self, set: &SetHead);
    /// An element of a set, as text has it.
    fn element(&mut self, set: &str, words: &[token::Token<'_>]);
    /// A chain.
    fn chain(&mut self, name: &str, base: Option<Base>);
    /// A rule of a chain that has been seen.
    fn rule(&mut self, chain: &str, rule: &RuleText<'_>);
    /// Something else: a flowtable, a counter.
    fn other(&mut self, what: String);
}

/// The type of a set or map.
#[derive(Debug, Default)]
struct SetHead {
    name: String,
    /// `set` or `map`.
    kind: String,
    /// Names of types, as in `ipv4_addr . inet_service`.
    key: Vec<String>,
    /// The same of what it maps to, or `verdict`.
    data: Vec<String>,
    flags: Vec<String>,
    size: Option<u32>,
    /// Whether its elements go by themselves.
    has_timeout: bool,
    /// Whether its elements count.
    counts: bool,
}

/// The place of a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    chain_type: String,
    hook: String,
    priority: i32,
    /// `accept` or `drop`.
    policy: String,
}

impl Base {
    /// The hook's number, `NF_INET_…`.
    fn hook_number(&self) -> u32 {
        match self.hook.as_str() {
            "prerouting" => 0,
            "input" => 1,
            "forward" => 2,
            "output" => 3,
            "postrouting" => 4,
            "ingress" => 5,
            _ => 6,
        }
    }
}

/// A rule, in words and as it stands there.
struct RuleText<'a> {
    words: &'a [token::Token<'a>],
    raw: &'a str,
    line: usize,
}
