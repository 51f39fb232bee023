//! What can go wrong with an API server. Entry points: [`strike`] and [`heal`].

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use integration::apiserver::{Fault, Resource, Rule, StreamingLists};
use integration::netns::Namespace;

use crate::api::{Api, any_encodings};
use crate::journal::Journal;
use crate::objects::one_of;

/// Has something go wrong, or brings a server back that was stopped.
pub(crate) fn strike(
    api: &mut Api,
    host: &Namespace,
    rng: &mut Rng,
    journal: &mut Journal,
) -> Result<()> {
    let Some(server) = api.server() else {
        journal.note("api", "back");
        return api.restart(host, any_encodings(rng));
    };
    let what = match rng.u8(..16) {
        0 | 1 => {
            api.stop();
            "stopped"
        }
        2 | 3 => {
            server.cut_connections();
            "connections cut"
        }
        4 => {
            server.disconnect_watches();
            "watches cut"
        }
        5 => {
            server.compact();
            "forgot versions"
        }
        6 => {
            server.compact();
            server.cut_connections();
            "forgot versions, connections cut"
        }
        7 => {
            server.set_expired_watch_is_http_error(rng.bool());
            server.compact();
            server.disconnect_watches();
            "forgot versions, watches cut"
        }
        8 => {
            server.set_delay(Duration::from_millis(rng.u64(1..800)));
            "lags"
        }
        9 => {
            server.refuse(true);
            "refuses"
        }
        10 => {
            server.silence_connections();
            "connections silent"
        }
        11 => {
            server.freeze(true);
            server.cut_connections();
            "frozen"
        }
        12 => {
            let served = [
                StreamingLists::Served,
                StreamingLists::WithoutStorage,
                StreamingLists::SwitchedOff,
                StreamingLists::Unknown,
                StreamingLists::Ignored,
            ];
            server.set_streaming_lists(one_of(rng, &served));
            server.cut_connections();
            "another version"
        }
        13 => {
            server.bookmark();
            "bookmarks"
        }
        _ => {
            let fault = match rng.u8(..6) {
                0 => Fault::captive_portal(),
                1 => Fault::overload(1),
                2 => Fault::Cut {
                    after: rng.usize(..20_000),
                },
                3 => Fault::Truncate {
                    after: rng.usize(..20_000),
                },
                4 => Fault::EndWatch {
                    after: rng.usize(..10),
                },
                _ => Fault::HugeFrame {
                    after: rng.usize(..10),
                    length: rng.u32(1 << 20..),
                },
            };
            let told = format!("{fault:?}");
            let name = told.split([' ', '(']).next().unwrap_or_default();
            journal.note("fault", name);
            let rule = Rule::new(fault).times(rng.usize(1..4));
            server.inject(rule.on(one_of(rng, &Resource::ALL)));
            server.disconnect_watches();
            "requests fail"
        }
    };
    journal.note("api", what);
    Ok(())
}

/// Ends whatever is wrong.
pub(crate) fn heal(api: &mut Api, host: &Namespace, rng: &mut Rng) -> Result<()> {
    api.restart(host, any_encodings(rng))?;
    if let Some(server) = api.server() {
        server.heal();
        server.refuse(false);
        server.freeze(false);
        server.set_delay(Duration::ZERO);
        server.set_streaming_lists(StreamingLists::Served);
        // A silent connection is given up after 35 s, which is as long as most soaks would wait.
        server.cut_connections();
    }
    Ok(())
}
