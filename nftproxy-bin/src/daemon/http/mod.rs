//! What is served over HTTP: health, metrics, and pages for whoever looks into the proxy.
//!
//! [`server`] serves any [`Handler`], and [`listen`] opens the sockets; the pages know nothing of
//! either. Everything runs on a thread of its own, so that clients, however many and however slow,
//! hold nothing else up. Entry point: [`Thread::start`].

pub(crate) mod health;
mod listen;
pub(crate) mod metrics;
mod respond;
mod server;
#[cfg(test)]
pub(crate) mod testing;
mod zpages;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

pub(super) use listen::listen_for_family;
use listen::serve_at;
pub(crate) use listen::{Failed, Server};
pub(super) use respond::{Response, full};
pub(super) use server::{Handler, serve};

/// The thread that serves.
pub(crate) struct Thread(Handle);

impl Thread {
    /// Starts it; it runs until the process ends.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("http".into())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(Self(handle))
    }

    /// Serves at an address, and says so if that had to work and does not.
    pub(crate) fn serve<H: Handler>(
        &self,
        server: Server,
        address: SocketAddr,
        is_hard: bool,
        handler: H,
        failures: Sender<Failed>,
    ) {
        self.0.spawn(async move {
            let Err(failed) = serve_at(server, address, is_hard, Arc::new(handler)).await;
            // If nobody listens, the process is at its end already.
            let _ = failures.send(failed).await;
        });
    }

    /// Where to spawn what serves.
    pub(crate) fn handle(&self) -> &Handle {
        &self.0
    }
}
