//! A node between a client and a sink, and the time it takes to get packets through it.
//!
//! ```text
//!    client           node           sink
//!      eth0 ───── client  sink ───── eth0
//! ```
//!
//! The node forwards everything to the sink, whose interface has another Ethernet address than the
//! frames, so that it drops them at once. A veth pair hands packets over on the CPU that sends
//! them: when a send returns, its packets have reached the sink, and the time it took is what all
//! of the way cost. Nothing here knows what rules the node has. Read [`Forwarder::send`] first.

use std::fs;
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use integration::netns::Namespace;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType,
    SockaddrLike as _, bind, recv, send, sendmmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::frame::{self, Mac};

/// The range of addresses that are the client's.
pub(super) const CLIENT_RANGE: &str = "10.245.0.0/16";
/// The node's address.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The node's Ethernet address on both sides.
pub(super) const NODE_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// How many frames go into one call. It takes about a millisecond, so that most calls are not
/// interrupted.
const BURST: usize = 200;
/// Longer than any reply takes.
const REPLY_TIMEOUT_S: i64 = 5;

/// The node, and sockets at both ends.
#[derive(Debug)]
pub(super) struct Forwarder {
    /// The namespace for rules.
    pub(super) node: Namespace,
    sink: Namespace,
    client_socket: OwnedFd,
    sink_socket: OwnedFd,
}

impl Forwarder {
    /// Builds the namespaces.
    pub(super) fn new() -> Result<Self> {
        let (client, node, sink) = (host("client")?, host("node")?, host("sink")?);
        let [a, b, c, d, e, f] = NODE_MAC;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        // Nobody answers ARP, nor has the address.
        let neighbour = "lladdr 02:00:00:00:00:02 nud permanent";
        node.exec_with_input(
            &["ip", "-batch", "-"],
            &format!(
                "link add client address {mac} type veth peer name eth0 netns {}
                 link add sink address {mac} type veth peer name eth0 netns {}
                 addr add {NODE}/32 dev client
                 link set client up
                 link set sink up
                 neigh add 192.0.2.1 dev client {neighbour}
                 neigh add 192.0.2.2 dev sink {neighbour}",
                client.path(),
                sink.path(),
            ),
        )?;
        for end in [&client, &sink] {
            end.exec(&["ip", "link", "set", "eth0", "up"])?;
        }
        node.exec_with_input(
            &["ip", "-batch", "-"],
            &format!(
                "route add {CLIENT_RANGE} via 192.0.2.1 dev client onlink
                 route add default via 192.0.2.2 dev sink onlink"
            ),
        )?;
        node.sysctl("net.ipv4.ip_forward", "1")?;
        let client_socket = client.run(|| packet_socket(None))?;
        let sink_socket = sink.run(|| packet_socket(None))?;
        Ok(Self {
            node,
            sink,
            client_socket,
            sink_socket,
        })
    }

    /// Sends frames through the node, and returns how long each took, one figure per burst. It is an
    /// error if not all of them reach the sink.
    pub(super) fn send(&self, frames: &[Vec<u8>]) -> Result<Vec<Duration>> {
        let slices: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let mut headers = MultiHeaders::<LinkAddr>::preallocate(BURST, None);
        let mut durations = Vec::new();
        let before = self.arrived()?;
        for burst in slices.chunks(BURST) {
            let start = Instant::now();
            let sent = sendmmsg(
                self.client_socket.as_raw_fd(),
                &mut headers,
                burst,
                [None; BURST],
                [],
                MsgFlags::empty(),
            )
            .context("sending a burst of frames")?
            .count();
            let elapsed = start.elapsed();
            ensure!(sent == burst.len(), "only {sent} of a burst were sent");
            durations.push(elapsed / sent as u32);
        }
        let arrived = self.arrived()? - before;
        let n_frames = frames.len();
        ensure!(
            arrived == n_frames as u64,
            "{arrived} of {n_frames} frames reached the sink"
        );
        Ok(durations)
    }

    /// Sends a frame and lets the sink reply, so that its flow is established. Returns the frame
    /// as the sink got it.
    pub(super) fn establish(&self, frame: &[u8]) -> Result<Vec<u8>> {
        let listener = self
            .sink
            .run(|| packet_socket(Some(SockProtocol::EthAll)))?;
        setsockopt(
            &listener,
            sockopt::ReceiveTimeout,
            &TimeVal::new(REPLY_TIMEOUT_S, 0),
        )
        .context("setting a timeout")?;
        send(self.client_socket.as_raw_fd(), frame, MsgFlags::empty())
            .context("sending a frame")?;
        let mut buffer = [0; 2048];
        let got = loop {
            let len = recv(listener.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .context("waiting for a frame at the sink")?;
            if frame::is_udp(&buffer[..len]) {
                break buffer[..len].to_vec();
            }
        };
        let reply = frame::reply(&got, NODE_MAC);
        send(self.sink_socket.as_raw_fd(), &reply, MsgFlags::empty())
            .context("sending the reply")?;
        Ok(got)
    }

    /// Makes the node forget all flows.
    pub(super) fn flush_flows(&self) -> Result<()> {
        self.node.exec(&["conntrack", "-F"]).map(drop)
    }

    /// How many flows the node tracks.
    pub(super) fn flows(&self) -> Result<usize> {
        let path = "/proc/sys/net/netfilter/nf_conntrack_count";
        let text = self
            .node
            .run(|| fs::read_to_string(path))
            .with_context(|| format!("reading {path}"))?;
        text.trim()
            .parse()
            .with_context(|| format!("reading a number from {path}"))
    }

    /// How many packets have arrived at the sink so far.
    fn arrived(&self) -> Result<u64> {
        let path = "/proc/thread-self/net/dev";
        let text = self
            .sink
            .run(|| fs::read_to_string(path))
            .with_context(|| format!("reading {path}"))?;
        let packets = text.lines().find_map(|line| {
            let numbers = line.trim().strip_prefix("eth0:")?;
            numbers.split_whitespace().nth(1)?.parse().ok()
        });
        packets.with_context(|| format!("finding the packets of eth0 in {path}"))
    }
}

/// A namespace that sends nothing of its own accord.
fn host(label: &str) -> Result<Namespace> {
    let namespace = Namespace::new(label)?;
    for scope in ["all", "default"] {
        namespace.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1")?;
        namespace.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
    }
    Ok(namespace)
}

/// A socket for whole frames at `eth0` of the calling thread's namespace; it receives those of the
/// given protocol.
fn packet_socket(receive: Option<SockProtocol>) -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        receive,
    )
    .context("opening a packet socket")?;
    let address = getifaddrs()
        .context("listing interfaces")?
        .filter(|interface| interface.interface_name == "eth0")
        .filter_map(|interface| interface.address)
        .find(|address| address.family() == Some(AddressFamily::Packet));
    let Some(address) = address else {
        bail!("there is no interface eth0");
    };
    bind(socket.as_raw_fd(), &address).context("binding a packet socket to eth0")?;
    Ok(socket)
}
