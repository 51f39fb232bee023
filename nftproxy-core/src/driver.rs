//! An [`Engine`] on a plain thread, for whoever has no loop of his own.
//!
//! [`Driver::start`] takes an engine and an observer; a [`Handle`] sends events to it from any
//! thread. There is no async runtime in it, and nothing global: several run side by side.
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use nftproxy_core::driver::Driver;
//! use nftproxy_core::engine::{Engine, Event, Kernels, Options, Outcome};
//! # use nftproxy_core::apply::{fake::FakeKernel, netlink::conntrack::Conntrack};
//! # use nftproxy_core::model::{Service, ServiceName, V4, V6};
//!
//! # let kernels = Kernels {
//! #     v4: Some(FakeKernel::<V4>::default()),
//! #     v6: Some(FakeKernel::<V6>::default()),
//! #     flows: None::<Conntrack>,
//! # };
//! # let engine = Engine::new(kernels, Options::default(), Instant::now());
//! # let services = vec![Service::new(ServiceName::new("shop", "api")?)];
//! // let engine = Engine::open(Options::default(), Instant::now())?;
//! let driver = Driver::start(engine, |outcome| {
//!     if let Outcome::Failed { family, error } = outcome {
//!         eprintln!("{family}: {error}");
//!     }
//! })?;
//! let handle = driver.handle();
//! handle.send(Event::Replaced { services, slices: Vec::new() })?;
//! handle.wait_until_synced(Duration::from_secs(10))?;
//! assert!(handle.has_synced());
//! driver.stop()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::apply::netlink::conntrack::Conntrack;
use crate::apply::netlink::{Monitor, Netlink};
use crate::apply::{ApplyError, Kernel};
use crate::engine::flows::{FlowTable, Flows, Forgetter};
use crate::engine::{Engine, Event, Health, Outcome, Task};
use crate::model::{V4, V6};

/// Messages that are taken before what is due is done, so that a flood of them cannot hold it up.
const MESSAGES_MAX: usize = 10_000;

/// A thread that drives an engine, and one that forgets UDP flows, so that no sync waits for it.
///
/// Dropping it tells both to end, and does not wait; the rules stay in the kernel.
#[derive(Debug)]
pub struct Driver<K4 = Netlink, K6 = Netlink, T = Conntrack> {
    handle: Handle<K4, K6, T>,
    thread: Option<JoinHandle<Result<(), ApplyError>>>,
    _watch: Option<Watch>,
}

/// Sends events to a [`Driver`], and asks it. Clones go to any thread.
pub struct Handle<K4 = Netlink, K6 = Netlink, T = Conntrack> {
    messages: Sender<Message<Engine<K4, K6, T>>>,
    has_synced: Arc<AtomicBool>,
    health: Health,
}

type Question<E> = Box<dyn FnOnce(&E) + Send>;

enum Message<E> {
    Event(Event),
    /// To be told once everything before this message is in the kernel.
    Reach(Sender<()>),
    Ask(Question<E>),
    Stop,
}

/// The driver has ended, and takes no more events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the driver has stopped")]
pub struct Stopped;

/// Why waiting for a driver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// What was sent is not in the kernel yet.
    #[error("the kernel does not hold it yet")]
    TimedOut,
    /// The driver has ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a driver ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel refused in a way that no retry can mend.
    #[error("syncing the rules")]
    Apply(#[from] ApplyError),
    /// The engine or the observer panicked.
    #[error("the driver's thread panicked")]
    Panicked,
}

impl<K4, K6, T> Driver<K4, K6, T>
where
    K4: Kernel<V4> + Send + 'static,
    K6: Kernel<V6> + Send + 'static,
    T: FlowTable + Send + 'static,
{
    /// Starts the threads. `observer` is called with everything that the engine does, one call at a
    /// time per thread; it holds the engine up while it runs.
    ///
    /// # Errors
    ///
    /// If there are no threads to be had.
    pub fn start(
        mut engine: Engine<K4, K6, T>,
        observer: impl Fn(&Outcome) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let observer = Arc::new(observer);
        let flows = engine
            .take_forgetter()
            .map(|forgetter| {
                let observer = observer.clone();
                forget_in_background(forgetter, move |outcome| observer(outcome))
            })
            .transpose()?;
        let (messages, receiver) = mpsc::channel();
        let has_synced = Arc::new(AtomicBool::new(false));
        let handle = Handle {
            messages,
            has_synced: has_synced.clone(),
            health: engine.health().clone(),
        };
        let watch = match engine.take_monitor() {
            Some(monitor) => {
                let messages = handle.messages.clone();
                Some(watch_in_background(monitor, move |event| {
                    messages.send(Message::Event(event)).is_ok()
                })?)
            }
            None => None,
        };
        let run = move || {
            let mut looped = Loop {
                engine,
                waiting: Vec::new(),
                flows,
                has_synced,
            };
            looped.run(&receiver, &*observer)
        };
        let thread = std::thread::Builder::new()
            .name("nftproxy".into())
            .spawn(run)?;
        Ok(Self {
            handle,
            thread: Some(thread),
            _watch: watch,
        })
    }

    /// A handle to it.
    pub fn handle(&self) -> Handle<K4, K6, T> {
        self.handle.clone()
    }

    /// Ends it, without doing what is still due, and waits for that. The rules stay in the kernel.
    ///
    /// # Errors
    ///
    /// If it had ended by itself before.
    pub fn stop(self) -> Result<(), DriverError> {
        // If it has ended already, `join` says why.
        let _ = self.handle.messages.send(Message::Stop);
        self.join()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    ///
    /// Says why it ended.
    pub fn join(mut self) -> Result<(), DriverError> {
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error.into()),
            Some(Err(_)) => Err(DriverError::Panicked),
        }
    }
}

impl<K4, K6, T> Drop for Driver<K4, K6, T> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.handle.messages.send(Message::Stop);
    }
}

impl<K4, K6, T> Handle<K4, K6, T> {
    /// Hands an event over. What is sent at once is synced together.
    ///
    /// # Errors
    ///
    /// If the driver has ended.
    pub fn send(&self, event: Event) -> Result<(), Stopped> {
        self.messages
            .send(Message::Event(event))
            .map_err(|_| Stopped)
    }

    /// Whether the tables of all families have been in step once.
    pub fn has_synced(&self) -> bool {
        self.has_synced.load(Ordering::Relaxed)
    }

    /// Whether the rules keep up with what is sent; see [`Health::is_healthy`].
    pub fn is_healthy(&self) -> bool {
        self.health.is_healthy(Instant::now())
    }

    /// Waits until everything that was sent before, through this handle, is in the kernel.
    ///
    /// # Errors
    ///
    /// If it is not within that time, or never will be, as the driver has ended.
    pub fn wait_until_synced(&self, timeout: Duration) -> Result<(), WaitError> {
        let (sender, receiver) = mpsc::channel();
        self.messages
            .send(Message::Reach(sender))
            .map_err(|_| Stopped)?;
        receiver.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => WaitError::TimedOut,
            RecvTimeoutError::Disconnected => WaitError::Stopped(Stopped),
        })
    }

    /// Has the engine asked something, between two of its tasks: the notes in force, whether an
    /// endpoint is live.
    ///
    /// # Errors
    ///
    /// If the driver has ended.
    pub fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&Engine<K4, K6, T>) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (sender, receiver) = mpsc::channel();
        let question: Question<_> = Box::new(move |engine| {
            // Whoever asked may have gone.
            let _ = sender.send(question(engine));
        });
        self.messages
            .send(Message::Ask(question))
            .map_err(|_| Stopped)?;
        receiver.recv().map_err(|_| Stopped)
    }
}

impl<K4, K6, T> Clone for Handle<K4, K6, T> {
    fn clone(&self) -> Self {
        let Self {
            messages,
            has_synced,
            health,
        } = self;
        Self {
            messages: messages.clone(),
            has_synced: has_synced.clone(),
            health: health.clone(),
        }
    }
}

impl<K4, K6, T> fmt::Debug for Handle<K4, K6, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("has_synced", &self.has_synced)
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

struct Loop<K4, K6, T> {
    engine: Engine<K4, K6, T>,
    /// Who waits for which revision to be in the kernel.
    waiting: Vec<(u64, Sender<()>)>,
    flows: Option<Sender<Flows>>,
    has_synced: Arc<AtomicBool>,
}

impl<K4: Kernel<V4>, K6: Kernel<V6>, T: FlowTable> Loop<K4, K6, T> {
    /// Runs until it is told to stop, everybody who could tell it is gone, or the kernel refuses in
    /// a way that no retry can mend.
    fn run(
        &mut self,
        messages: &Receiver<Message<Engine<K4, K6, T>>>,
        observer: &dyn Fn(&Outcome),
    ) -> Result<(), ApplyError> {
        loop {
            for message in messages.try_iter().take(MESSAGES_MAX) {
                if !self.take(message) {
                    return Ok(());
                }
            }
            self.release();
            let now = Instant::now();
            let received = match self.engine.next(now) {
                Some(due) if due.at <= now => {
                    self.perform(due.task, observer)?;
                    continue;
                }
                Some(due) => messages.recv_timeout(due.at - now),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let goes_on = match received {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Takes a message; whether to go on.
    fn take(&mut self, message: Message<Engine<K4, K6, T>>) -> bool {
        match message {
            Message::Event(event) => self.engine.apply(event, Instant::now()),
            Message::Reach(sender) => self.waiting.push((self.engine.revision(), sender)),
            Message::Ask(question) => question(&self.engine),
            Message::Stop => return false,
        }
        true
    }

    fn perform(&mut self, task: Task, observer: &dyn Fn(&Outcome)) -> Result<(), ApplyError> {
        let outcomes = self.engine.perform(task, Instant::now());
        self.has_synced
            .store(self.engine.has_synced(), Ordering::Relaxed);
        for outcome in outcomes {
            match (outcome, &self.flows) {
                (Outcome::FlowsLeft(flows), Some(thread)) => {
                    // It ends only when this does, or by a panic, which was printed.
                    let _ = thread.send(flows);
                }
                (outcome, _) => {
                    observer(&outcome);
                    if let Outcome::Failed { error, .. } = outcome
                        && !error.is_retryable()
                    {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells those who wait for what is in the kernel by now.
    fn release(&mut self) {
        if !self.engine.has_synced() {
            return;
        }
        let reached = self.engine.synced_revision();
        self.waiting.retain(|(revision, sender)| {
            let is_reached = *revision <= reached;
            if is_reached {
                // Whoever waited may have given up.
                let _ = sender.send(());
            }
            !is_reached
        });
    }
}

/// A thread that reads a [`Monitor`]; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    _stop: io::PipeWriter,
}

/// Starts a thread that tells an engine what others do to its tables: `tell` is called with
/// [`Event::Watched`] and [`Event::Touched`] until it returns `false` or the result is dropped.
///
/// # Errors
///
/// If there is no thread or no pipe to be had.
pub fn watch_in_background(
    mut monitor: Monitor,
    mut tell: impl FnMut(Event) -> bool + Send + 'static,
) -> io::Result<Watch> {
    let (stopped, stop) = io::pipe()?;
    let run = move || {
        if !tell(Event::Watched(true)) {
            return;
        }
        loop {
            let incidents = match monitor.wait(stopped.as_fd()) {
                Ok(true) => monitor.read(),
                Ok(false) => return,
                Err(error) => Err(error),
            };
            match incidents {
                Ok(incidents) => {
                    for incident in incidents {
                        if !tell(Event::Touched(incident)) {
                            return;
                        }
                    }
                }
                Err(_) => {
                    // From now on the engine looks by itself.
                    tell(Event::Watched(false));
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("nftproxy-watch".into())
        .spawn(run)?;
    Ok(Watch { _stop: stop })
}

/// Starts a thread that has the flows forgotten which it is sent, until all senders are gone.
/// `observer` is called with [`Outcome::FlowsForgotten`] and [`Outcome::FlowsFailed`].
///
/// # Errors
///
/// If there is no thread to be had.
pub fn forget_in_background<T: FlowTable + Send + 'static>(
    mut forgetter: Forgetter<T>,
    observer: impl Fn(&Outcome) + Send + 'static,
) -> io::Result<Sender<Flows>> {
    let (sender, receiver) = mpsc::channel();
    let run = move || {
        loop {
            let now = Instant::now();
            let received = match forgetter.next() {
                Some(at) => receiver.recv_timeout(at.saturating_duration_since(now)),
                None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(flows) => {
                    let now = Instant::now();
                    forgetter.add(flows, now);
                    receiver
                        .try_iter()
                        .for_each(|flows| forgetter.add(flows, now));
                }
                Err(RecvTimeoutError::Timeout) => match forgetter.perform(Instant::now()) {
                    Ok(0) => {}
                    Ok(count) => observer(&Outcome::FlowsForgotten { count }),
                    Err(error) => observer(&Outcome::FlowsFailed { error }),
                },
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    };
    std::thread::Builder::new()
        .name("nftproxy-flows".into())
        .spawn(run)?;
    Ok(sender)
}
