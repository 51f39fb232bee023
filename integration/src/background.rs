//! A listening socket served on a thread of its own, until that is dropped.
//!
//! It must not know what is served. Entry point: [`Background`].

use std::io;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A running server; dropping it closes the port and drops every task, and with it every
/// connection.
///
/// The socket is bound and the thread started on the calling thread, and so both live in its
/// network namespace.
pub(crate) struct Background {
    addr: SocketAddr,
    runtime: Handle,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Background {
    /// Listens on `addr` and hands every connection over, in the context of the runtime.
    pub(crate) fn start(
        name: &str,
        addr: SocketAddr,
        serve: impl Fn(TcpStream) + Send + 'static,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, serve) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            addr,
            runtime: handle,
            running: Some((stop, thread)),
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where further tasks can be started.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            // The thread waits for the other end to go; a panic there has been reported already.
            drop(stop);
            drop(thread.join());
        }
    }
}

async fn accept(listener: TcpListener, serve: impl Fn(TcpStream)) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => serve(socket),
            // For want of file descriptors, or for the client's haste; the next may succeed.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
