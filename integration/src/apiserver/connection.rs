//! Connections: those that are open, and the ways to lose one.
//!
//! It must not know what goes over them. Entry points: [`Connection`] and [`Wire`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// One open connection, seen from outside.
#[derive(Default)]
pub(super) struct Connection {
    is_silent: AtomicBool,
    cut: Notify,
}

impl Connection {
    pub(super) fn new(is_silent: bool) -> Arc<Self> {
        Arc::new(Self {
            is_silent: is_silent.into(),
            cut: Notify::new(),
        })
    }

    /// Neither reads nor writes any more, for ever.
    pub(super) fn silence(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// Closes it at once.
    pub(super) fn cut(&self) {
        self.cut.notify_one();
    }

    /// Returns once it is to be closed.
    pub(super) async fn cut_asked(&self) {
        self.cut.notified().await;
    }
}

/// The socket of a connection, which is dead to both ends once the connection is silent: the
/// kernel goes on to acknowledge what it takes, but nothing is read, written or closed.
pub(super) struct Wire {
    pub(super) socket: TcpStream,
    pub(super) connection: Arc<Connection>,
}

impl Wire {
    fn is_silent(&self) -> bool {
        self.connection.is_silent.load(Ordering::Relaxed)
    }
}

// A silent connection never wakes anybody, which is why nothing registers to be woken.
impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_silent() {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_silent() {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_silent() {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_silent() {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
