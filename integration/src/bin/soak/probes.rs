//! Connections to the stable Services, all the time, from every class of source.
//!
//! Each source has a thread for each family and protocol, which opens one connection after the
//! other, and keeps another one that it uses now and then. They know nothing of what is done to
//! the proxy, and tell of each failure when it was. Entry point: [`Probes`].

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use integration::lab::{CLIENT, Dual, Lab, NODE, NODE2, PODS, REMOTE_POD};
use integration::netns::Namespace;
use integration::traffic::{Flow, Outcome, ProbeOptions, Protocol, probe_here};

use crate::stable::{PROTOCOLS, targets};

/// Between two connections of a thread.
const PAUSE: Duration = Duration::from_millis(40);
/// For any answer. A busy machine may take seconds; what is lost is seen by datagrams, which nobody
/// sends again.
const PATIENCE: Duration = Duration::from_secs(5);
/// The kept connection is used with every so many new ones.
const KEPT_EVERY: usize = 5;
/// Ports to connect from, in turn: none is used again while connection tracking knows it, so that
/// what was sent while there were no rules does not spoil a connection minutes later.
const PORTS: std::ops::Range<u16> = 11_000..30_000;

/// A connection or exchange that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
    pub(crate) what: String,
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    n_connections: AtomicUsize,
    n_exchanges: AtomicUsize,
    failures: Mutex<Vec<Failure>>,
}

/// The running threads; dropping it ends them.
#[derive(Default)]
pub(crate) struct Probes {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Probes {
    /// Starts them all.
    pub(crate) fn start(lab: &Lab, rng: &mut fastrand::Rng) -> Self {
        let shared = Arc::new(Shared::default());
        let sources: [(&'static str, &Namespace, Dual); 6] = [
            // An endpoint itself, so that it may be sent back to where it came from.
            ("pod1", &lab.pods[0], PODS[0]),
            ("pod3", &lab.pods[2], PODS[2]),
            ("node", &lab.node, NODE),
            ("client", &lab.client, CLIENT),
            ("remote pod", &lab.remote_pod, REMOTE_POD),
            ("node2", &lab.node2, NODE2),
        ];
        let mut threads = Vec::new();
        for (source, host, address) in sources {
            for (is_ipv6, ip) in [false, true].into_iter().zip(address.both()) {
                for protocol in PROTOCOLS {
                    let mut prober = Prober {
                        source,
                        ip,
                        protocol,
                        targets: targets(is_ipv6, address != REMOTE_POD),
                        port: rng.u16(PORTS),
                        rng: rng.fork(),
                        shared: Arc::clone(&shared),
                    };
                    threads.push(host.run(|| thread::spawn(move || prober.run())));
                }
            }
        }
        Self { shared, threads }
    }

    /// How many new connections there were, and how many exchanges on those that were kept.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let count = |n: &AtomicUsize| n.load(Ordering::Relaxed);
        (
            count(&self.shared.n_connections),
            count(&self.shared.n_exchanges),
        )
    }

    /// The failures since the last call.
    pub(crate) fn take_failures(&self) -> Vec<Failure> {
        std::mem::take(&mut *self.shared.failures())
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in there has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn failures(&self) -> std::sync::MutexGuard<'_, Vec<Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread's work.
struct Prober {
    source: &'static str,
    ip: IpAddr,
    protocol: Protocol,
    targets: Vec<SocketAddr>,
    port: u16,
    rng: fastrand::Rng,
    shared: Arc<Shared>,
}

impl Prober {
    fn run(&mut self) {
        let mut kept = None;
        let mut n = 0;
        while !self.shared.is_stopped.load(Ordering::Relaxed) {
            self.connect();
            n += 1;
            if n % KEPT_EVERY == 0 {
                kept = self.exchange(kept);
            }
            thread::sleep(PAUSE);
        }
    }

    fn connect(&mut self) {
        let to = self.target();
        let options = ProbeOptions {
            from: Some(self.next_source()),
            timeout: PATIENCE,
        };
        let from = Instant::now();
        let outcome = probe_here(self.protocol, to, options);
        self.shared.n_connections.fetch_add(1, Ordering::Relaxed);
        if !matches!(outcome, Outcome::Answer { .. }) {
            self.failed("new", to, from, &outcome.to_string());
        }
    }

    /// Uses the connection that is kept, or opens one, which is then kept.
    fn exchange(&mut self, kept: Option<(SocketAddr, Kept)>) -> Option<(SocketAddr, Kept)> {
        let from = Instant::now();
        let (to, result) = match kept {
            Some((to, mut kept)) => (to, kept.exchange().map(|()| kept)),
            None => {
                let to = self.target();
                (to, Kept::open(self.protocol, to))
            }
        };
        self.shared.n_exchanges.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(kept) => Some((to, kept)),
            Err(error) => {
                self.failed("kept", to, from, &error.to_string());
                None
            }
        }
    }

    fn target(&mut self) -> SocketAddr {
        self.targets[self.rng.usize(..self.targets.len())]
    }

    fn next_source(&mut self) -> SocketAddr {
        self.port += 1;
        if !PORTS.contains(&self.port) {
            self.port = PORTS.start;
        }
        (self.ip, self.port).into()
    }

    fn failed(&self, kind: &str, to: SocketAddr, from: Instant, why: &str) {
        let Self {
            source, protocol, ..
        } = self;
        let failure = Failure {
            from,
            to: Instant::now(),
            what: format!("{kind} {protocol} from {source} to {to}: {why}"),
        };
        self.shared.failures().push(failure);
    }
}

/// A connection that stays open, or datagrams that keep their port.
enum Kept {
    Tcp(Flow),
    Udp(UdpSocket),
}

impl Kept {
    fn open(protocol: Protocol, to: SocketAddr) -> io::Result<Self> {
        let mut kept = match protocol {
            Protocol::Udp => {
                let any: IpAddr = match to {
                    SocketAddr::V4(_) => [0; 4].into(),
                    SocketAddr::V6(_) => [0; 16].into(),
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Self::Udp(socket)
            }
            Protocol::Tcp | Protocol::Sctp => {
                let flow = Flow::open_here(protocol, to)?;
                flow.set_timeout(PATIENCE)?;
                Self::Tcp(flow)
            }
        };
        kept.exchange()?;
        Ok(kept)
    }

    fn exchange(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(flow) => flow.ping().map(drop),
            Self::Udp(socket) => {
                socket.send(b"kept\n")?;
                let mut answer = [0; 256];
                socket.recv(&mut answer).map(drop)
            }
        }
    }
}
