//! Where events come from: an API server, files, this host's interfaces.
//!
//! A source turns what it watches into [`Event`]s and hands them to a channel. It may use
//! `config` and the library, and knows nothing of who reads the events, nor of rules.

pub(crate) mod addresses;
pub(crate) mod api;
pub(crate) mod convert;
mod event;
pub(crate) mod files;
pub(crate) mod manifests;
pub(crate) mod once;

pub(crate) use event::Event;
