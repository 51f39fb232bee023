//! Servers that say who they are, and probes that tell what became of a connection attempt.
//!
//! Everything works between any two [`Namespace`]s and knows nothing of the network between them.
//! Read [`Server`] and [`probe`] first.
//!
//! The protocol is text: a server answers a connection, each further line on it, and each datagram
//! with the line `NAME SOURCE`, its own name and the address the client seemed to have. The answer
//! to a datagram is filled up with empty lines to the length of the question.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{
    self, BufRead as _, BufReader, ErrorKind, PipeReader, PipeWriter, Read as _, Write as _,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    listen, setsockopt, socket, sockopt,
};

use crate::netns::Namespace;

/// A transport protocol Services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, in its one-to-one style; many kernels lack it.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A server on a thread of its own; dropping it closes its socket and all its connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
    /// Closing it wakes the thread up and ends it.
    stop: Option<PipeWriter>,
}

impl Server {
    /// Listens on `address` in the namespace, and answers from then on.
    ///
    /// The IPv6 wildcard address serves both families. UDP answers leave from `address`, or, where
    /// that is a wildcard, from whichever address the routes choose.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] when the kernel lacks the protocol; otherwise whatever the kernel
    /// says about `address`.
    pub fn start(
        namespace: &Namespace,
        name: &str,
        protocol: Protocol,
        address: SocketAddr,
    ) -> io::Result<Self> {
        let context = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("serve {protocol} on {address}: {error}"),
            )
        };
        let (stopped, stop) = io::pipe()?;
        let name = name.to_owned();
        let (address, thread) = match protocol {
            Protocol::Udp => {
                let socket = namespace.run(|| bind_datagrams(address)).map_err(context)?;
                let address = socket.local_addr()?;
                (
                    address,
                    thread::spawn(move || serve_datagrams(&socket, &name, &stopped)),
                )
            }
            Protocol::Tcp | Protocol::Sctp => {
                let listener = namespace
                    .run(|| listen_on(protocol, address))
                    .map_err(context)?;
                let address = listener.local_addr()?;
                (
                    address,
                    thread::spawn(move || serve_connections(&listener, &name, &stopped)),
                )
            }
        };
        Ok(Self {
            address,
            thread: Some(thread),
            stop: Some(stop),
        })
    }

    /// Where the server listens: the address it was given, with the port the kernel chose if that
    /// was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; a second one here would abort the test run.
            let _ = thread.join();
        }
    }
}

fn serve_datagrams(socket: &UdpSocket, name: &str, stopped: &PipeReader) {
    let mut buffer = [0; 2048];
    loop {
        if wait_readable(&[stopped.as_fd(), socket.as_fd()])[0] {
            return;
        }
        // An error here is an ICMP message about an earlier answer: its client has gone.
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let mut answer = answer(name, client).into_bytes();
            answer.resize(answer.len().max(length), b'\n');
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn serve_connections(listener: &TcpListener, name: &str, stopped: &PipeReader) {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let mut sources = vec![stopped.as_fd(), listener.as_fd()];
        sources.extend(
            connections
                .iter()
                .map(|connection| connection.stream.as_fd()),
        );
        let readable = wait_readable(&sources);
        if readable[0] {
            return;
        }
        let mut has_input = readable[2..].iter();
        connections.retain_mut(|connection| {
            let has_input = has_input.next().is_some_and(|readable| *readable);
            !has_input || connection.answer_input().is_ok()
        });
        // Accepting fails when the client has given up in between.
        if readable[1]
            && let Ok((stream, client)) = listener.accept()
        {
            let mut connection = Connection {
                stream,
                answer: answer(name, client),
            };
            if connection.answer_lines(1).is_ok() {
                connections.push(connection);
            }
        }
    }
}

struct Connection {
    stream: TcpStream,
    answer: String,
}

impl Connection {
    /// Reads what there is and answers each line of it; an error means the connection has ended.
    fn answer_input(&mut self) -> io::Result<()> {
        let mut buffer = [0; 2048];
        let length = self.stream.read(&mut buffer)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.answer_lines(
            buffer[..length]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count(),
        )
    }

    fn answer_lines(&mut self, n_lines: usize) -> io::Result<()> {
        self.stream
            .write_all(self.answer.repeat(n_lines).as_bytes())
    }
}

/// Waits until at least one of the files can be read or has failed, and says which ones.
fn wait_readable(sources: &[BorrowedFd<'_>]) -> Vec<bool> {
    let mut files: Vec<_> = sources
        .iter()
        .map(|source| PollFd::new(*source, PollFlags::POLLIN))
        .collect();
    while let Err(error) = poll(&mut files, PollTimeout::NONE) {
        assert_eq!(error, Errno::EINTR, "poll {} open files", files.len());
    }
    files
        .iter()
        .map(|file| file.any().unwrap_or(true))
        .collect()
}

fn answer(name: &str, client: SocketAddr) -> String {
    // An IPv6 socket shows IPv4 clients as mapped addresses.
    format!("{name} {}\n", client.ip().to_canonical())
}

fn parse_answer(line: &str) -> io::Result<(String, IpAddr)> {
    line.trim_end_matches('\n')
        .rsplit_once(' ')
        .and_then(|(server, source)| Some((server.to_owned(), source.parse().ok()?)))
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("parse answer {line:?}")))
}

/// What became of one connection attempt or datagram.
///
/// Its text is the server's name, `refused`, `timeout`, or the error.
#[derive(Debug)]
pub enum Outcome {
    /// A server answered.
    Answer {
        /// The name it was started with.
        server: String,
        /// The client's address as it arrived there.
        seen_source: IpAddr,
    },
    /// The other side, or a firewall, said no.
    Refused,
    /// Nobody answered in time; this is what a drop looks like.
    Timeout,
    /// Anything else, such as a missing route.
    Other(io::Error),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { server, .. } => f.write_str(server),
            Self::Refused => f.write_str("refused"),
            Self::Timeout => f.write_str("timeout"),
            Self::Other(error) => error.fmt(f),
        }
    }
}

impl From<io::Result<(String, IpAddr)>> for Outcome {
    fn from(result: io::Result<(String, IpAddr)>) -> Self {
        match result {
            Ok((server, seen_source)) => Self::Answer {
                server,
                seen_source,
            },
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Self::Refused,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Timeout,
                _ => Self::Other(error),
            },
        }
    }
}

/// How often each [`Outcome`] came up, by its text.
pub type Counts = BTreeMap<String, usize>;

/// How to probe.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOptions {
    /// The address and port to probe from; the kernel chooses if there is none.
    pub from: Option<SocketAddr>,
    /// How long to wait for each step: the connection, then the answer.
    pub timeout: Duration,
}

impl Default for ProbeOptions {
    /// From anywhere, with [`patience`] for an answer.
    fn default() -> Self {
        Self {
            from: None,
            timeout: patience(),
        }
    }
}

/// How long an answer may take that is expected: a second, and in an emulated machine so long that
/// SCTP, which waits for three seconds, can send once more what was lost under load.
pub fn patience() -> Duration {
    let is_emulated = std::env::var_os("NFTPROXY_VM").is_some();
    Duration::from_secs(if is_emulated { 5 } else { 1 })
}

/// Connects, or sends one datagram, to `to` from inside the namespace.
pub fn probe(
    namespace: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    options: ProbeOptions,
) -> Outcome {
    namespace.run(|| probe_here(protocol, to, options))
}

/// Probes `n_probes` times, one after the other, each from a port of its own.
pub fn probe_many(
    namespace: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    n_probes: usize,
) -> Counts {
    namespace.run(|| {
        let mut counts = Counts::new();
        for _ in 0..n_probes {
            let outcome = probe_here(protocol, to, ProbeOptions::default());
            *counts.entry(outcome.to_string()).or_default() += 1;
        }
        counts
    })
}

/// Like [`probe`], from the namespace of the calling thread.
pub fn probe_here(protocol: Protocol, to: SocketAddr, options: ProbeOptions) -> Outcome {
    let answer = match protocol {
        Protocol::Udp => ask_datagram(to, options, b"probe\n"),
        Protocol::Tcp | Protocol::Sctp => connect_stream(protocol, to, options)
            .and_then(|stream| read_answer(&mut BufReader::new(stream))),
    };
    answer.into()
}

fn ask_datagram(
    to: SocketAddr,
    options: ProbeOptions,
    question: &[u8],
) -> io::Result<(String, IpAddr)> {
    let socket = bind_datagrams(options.from.unwrap_or(anywhere(to)))?;
    let answer = exchange(&socket, to, options.timeout, question)?;
    if answer.len() < question.len() {
        let error = format!("{} bytes instead of {}", answer.len(), question.len());
        return Err(io::Error::new(ErrorKind::UnexpectedEof, error));
    }
    parse_answer(&String::from_utf8_lossy(&answer))
}

fn bind_datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    once_free(|| UdpSocket::bind(address))
}

/// Waits for a port that was just closed.
///
/// A process that another thread is about to start holds copies of all sockets until its program
/// runs, those included that are closed meanwhile.
fn once_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            bound => return bound,
        }
    }
}

fn anywhere(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Sends one datagram and waits for the one that answers it.
fn exchange(
    socket: &UdpSocket,
    to: SocketAddr,
    timeout: Duration,
    question: &[u8],
) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(timeout))?;
    socket.connect(to)?;
    match socket.send(question) {
        // A local firewall stopped the datagram. Dropping and rejecting look alike here, but only
        // rejecting has sent the ICMP message that the next receive reports.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    let mut buffer = vec![0; 2048];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Sends a datagram of this length, up to 2048, to `to` from inside the namespace; the answer has
/// to be as long. What is longer than the network's packets travels in fragments.
pub fn probe_datagram(namespace: &Namespace, to: SocketAddr, length: usize) -> Outcome {
    let question = vec![b'\n'; length];
    namespace
        .run(|| ask_datagram(to, ProbeOptions::default(), &question))
        .into()
}

/// Sends an ICMP echo request to `to` from inside the namespace. Who answers is called `echo`.
pub fn ping(namespace: &Namespace, to: IpAddr, timeout: Duration) -> Outcome {
    // Type, code, checksum, identifier and number; the kernel fills in what is its own.
    let (protocol, family, request) = match to {
        IpAddr::V4(_) => (
            SockProtocol::Icmp,
            AddressFamily::Inet,
            [8, 0, 0, 0, 0, 0, 0, 1],
        ),
        IpAddr::V6(_) => (
            SockProtocol::IcmpV6,
            AddressFamily::Inet6,
            [128, 0, 0, 0, 0, 0, 0, 1],
        ),
    };
    // The groups that may have such a socket.
    let allowed = namespace.sysctl("net.ipv4.ping_group_range", "0 0");
    let answer = allowed.map_err(io::Error::other).and_then(|()| {
        namespace.run(|| {
            let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
            // What the standard library does with a UDP socket works with this one just as well.
            exchange(&socket.into(), (to, 0).into(), timeout, &request)
        })
    });
    answer.map(|_| ("echo".to_owned(), to)).into()
}

fn read_answer(reader: &mut BufReader<TcpStream>) -> io::Result<(String, IpAddr)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    parse_answer(&line)
}

/// A TCP or SCTP connection kept open, to see whether it survives what happens to the rules.
#[derive(Debug)]
pub struct Flow {
    reader: BufReader<TcpStream>,
}

impl Flow {
    /// Connects to a [`Server`] from inside the namespace.
    ///
    /// # Errors
    ///
    /// Fails where a probe would not be answered.
    pub fn open(namespace: &Namespace, to: SocketAddr) -> io::Result<Self> {
        Self::open_by(namespace, Protocol::Tcp, to)
    }

    /// Like [`open`](Self::open), by a protocol that has connections.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_by(namespace: &Namespace, protocol: Protocol, to: SocketAddr) -> io::Result<Self> {
        namespace.run(|| Self::open_here(protocol, to))
    }

    /// Like [`open_by`](Self::open_by), from the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_here(protocol: Protocol, to: SocketAddr) -> io::Result<Self> {
        let stream = connect_stream(protocol, to, ProbeOptions::default())?;
        let mut reader = BufReader::new(stream);
        read_answer(&mut reader)?;
        Ok(Self { reader })
    }

    /// How long [`ping`](Self::ping) waits from now on.
    ///
    /// # Errors
    ///
    /// Fails for no time at all.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(Some(timeout))
    }

    /// Makes the server answer once more, and returns its name.
    ///
    /// # Errors
    ///
    /// Fails when the connection is broken, or when no answer comes within a second.
    pub fn ping(&mut self) -> io::Result<String> {
        self.reader.get_mut().write_all(b"ping\n")?;
        let (server, _) = read_answer(&mut self.reader)?;
        Ok(server)
    }
}

/// Probes one after the other on a background thread, to see whether there is ever a gap.
#[derive(Debug)]
pub struct Stream {
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<Counts>>,
}

impl Stream {
    /// The pause between probes. Each TCP probe leaves its port in use for a minute: at this pace a
    /// client does not run out of them.
    const PAUSE: Duration = Duration::from_millis(3);

    /// Starts probing `to` from inside the namespace.
    pub fn start(namespace: &Namespace, protocol: Protocol, to: SocketAddr) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen_by_thread = Arc::clone(&stopped);
        let thread = namespace.run(|| {
            thread::spawn(move || {
                let mut counts = Counts::new();
                while !seen_by_thread.load(Ordering::Relaxed) {
                    let outcome = probe_here(protocol, to, ProbeOptions::default());
                    *counts.entry(outcome.to_string()).or_default() += 1;
                    thread::sleep(Self::PAUSE);
                }
                counts
            })
        });
        Self {
            stopped,
            thread: Some(thread),
        }
    }

    /// Finishes the current probe and returns the outcome of all.
    pub fn stop(mut self) -> Counts {
        self.stopped.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .take()
            .expect("only `stop` takes the thread, once");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// A TCP or SCTP socket for addresses like `address`.
///
/// The standard library's TCP types serve for both: the calls on a one-to-one SCTP socket are the
/// same, and only its creation differs.
fn stream_socket(protocol: Protocol, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let number = match protocol {
        Protocol::Tcp => SockProtocol::Tcp,
        Protocol::Sctp => SockProtocol::Sctp,
        Protocol::Udp => unreachable!("UDP has no connections"),
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, number);
    let socket = socket.map_err(|errno| match errno {
        Errno::EPROTONOSUPPORT => io::Error::new(
            ErrorKind::Unsupported,
            format!("this kernel has no {protocol}"),
        ),
        other => other.into(),
    })?;
    // Ports of closed connections are to be usable again at once.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    Ok(socket)
}

/// Binds to a port that no socket of this process has had for as long as can be.
///
/// The kernel's choice may be a port whose last association is still known to connection tracking.
/// Unlike TCP's, such an entry is not given up for a new association, which so goes where the old
/// one went, or is dropped as it does not fit.
fn bind_fresh(stream: &TcpStream, to: SocketAddr) -> io::Result<()> {
    const PORTS: std::ops::Range<u16> = 33_000..61_000;
    static COUNT: AtomicU16 = AtomicU16::new(0);
    // Of a host's other addresses nobody is to be told; see docs/PLATFORM.md.
    let route = UdpSocket::bind(anywhere(to))?;
    route.connect(to)?;
    let mut from = route.local_addr()?;
    for _ in PORTS {
        from.set_port(PORTS.start + COUNT.fetch_add(1, Ordering::Relaxed) % PORTS.len() as u16);
        match bind(stream.as_raw_fd(), &SockaddrStorage::from(from)) {
            Err(Errno::EADDRINUSE) => {}
            bound => return Ok(bound?),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

fn listen_on(protocol: Protocol, address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::from(stream_socket(protocol, address)?);
    once_free(|| Ok(bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?))?;
    listen(&listener, Backlog::MAXCONN)?;
    // A client that gives up between poll and accept must not block the thread.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn connect_stream(
    protocol: Protocol,
    to: SocketAddr,
    options: ProbeOptions,
) -> io::Result<TcpStream> {
    let stream = TcpStream::from(stream_socket(protocol, to)?);
    stream.set_read_timeout(Some(options.timeout))?;
    stream.set_write_timeout(Some(options.timeout))?;
    match (options.from, protocol) {
        (Some(from), _) => bind(stream.as_raw_fd(), &SockaddrStorage::from(from))?,
        (None, Protocol::Sctp) => bind_fresh(&stream, to)?,
        (None, _) => {}
    }
    let check = || {
        stream
            .take_error()
            .and_then(|error| error.map_or(Ok(()), Err))
    };

    stream.set_nonblocking(true)?;
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => {}
        connected => connected?,
    }
    // Between namespaces of one machine an ICMP rejection often arrives before `connect` returns.
    // The kernel then only takes note of it, and would fail the attempt a second later, when it has
    // sent again and is rejected again.
    check()?;
    let timeout = PollTimeout::try_from(options.timeout).map_err(io::Error::other)?;
    if poll(
        &mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)],
        timeout,
    )? == 0
    {
        return Err(ErrorKind::TimedOut.into());
    }
    check()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}
