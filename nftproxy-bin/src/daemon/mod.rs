//! What runs: the loop around the library's engine, and the servers beside it.
//!
//! It may use `config`, the events of `source`, `leftovers` and the library. Entry point: [`run_loop`].

pub(crate) mod config_watch;
pub(crate) mod flows;
pub(crate) mod health_check_node_port;
pub(crate) mod http;
pub(crate) mod logging;
pub(crate) mod loopback;
pub(crate) mod node;
pub(crate) mod notify;
pub(crate) mod report;
pub(crate) mod run_loop;
pub(crate) mod shadow;
pub(crate) mod standing;
pub(crate) mod tally;
