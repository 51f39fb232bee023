//! Changes of this host's addresses, as events.

use std::io;

use nftproxy_core::host::AddressChanges;
use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::Event;

/// Starts a thread that sends [`Event::AddressesChanged`] for each change, until the receiver is
/// gone. It sleeps in the kernel meanwhile.
pub(crate) fn watch(events: Sender<Event>) -> io::Result<()> {
    let changes = AddressChanges::open()?;
    let follow = move || {
        loop {
            if let Err(error) = changes.wait() {
                warn!(%error, "changes of this host's addresses are no longer noticed");
                return;
            }
            if events.blocking_send(Event::AddressesChanged).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("addresses".into())
        .spawn(follow)
        .map(drop)
}
