//! The body of an answer: whole or event by event, counted, and at need broken off.
//!
//! It must not know what is in it. Entry point: [`Body`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc::UnboundedReceiver;

/// Part of the body of a watch, or the error that cuts it short.
pub(super) type Chunk = io::Result<Bytes>;

/// How a body ends that is not sent to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The connection is lost.
    Cut,
    /// As if it were complete.
    Truncated,
}

pub(super) struct Body {
    source: Source,
    /// Bytes that may still be sent, and what comes then.
    limit: Option<(usize, Ending)>,
    /// Whether the bytes within the limit have had the time to leave.
    is_flushed: bool,
    bytes: Option<Arc<AtomicU64>>,
}

enum Source {
    Whole(Bytes),
    Stream(UnboundedReceiver<Chunk>),
}

impl Body {
    pub(super) fn stream(chunks: UnboundedReceiver<Chunk>) -> Self {
        Source::Stream(chunks).into()
    }

    /// Adds what is sent to a counter.
    pub(super) fn counted(mut self, bytes: Arc<AtomicU64>) -> Self {
        self.bytes = Some(bytes);
        self
    }

    pub(super) fn limited(mut self, length: usize, ending: Ending) -> Self {
        self.limit = Some((length, ending));
        self
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        match &mut self.source {
            Source::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Source::Stream(chunks) => chunks.poll_recv(cx),
        }
    }

    fn poll_limited(&mut self, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        match self.limit {
            Some((0, Ending::Truncated)) => return Poll::Ready(None),
            Some((0, Ending::Cut)) if self.is_flushed => {
                return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
            }
            Some((0, Ending::Cut)) => {
                // An error loses what is not yet on its way; a pause has it sent.
                self.is_flushed = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        let mut chunk = ready!(self.poll_source(cx));
        if let (Some(Ok(bytes)), Some((left, _))) = (&mut chunk, &mut self.limit) {
            bytes.truncate(*left);
            *left -= bytes.len();
        }
        Poll::Ready(chunk)
    }
}

impl From<Source> for Body {
    fn from(source: Source) -> Self {
        Self {
            source,
            limit: None,
            is_flushed: false,
            bytes: None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Source::Whole(bytes).into()
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let chunk = ready!(this.poll_limited(cx));
        if let (Some(Ok(bytes)), Some(counter)) = (&chunk, &this.bytes) {
            counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, self.limit) {
            // A length that is announced must be kept, or the end is no good one.
            (Source::Stream(_), _) | (_, Some((_, Ending::Truncated))) => SizeHint::default(),
            (Source::Whole(bytes), _) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}
