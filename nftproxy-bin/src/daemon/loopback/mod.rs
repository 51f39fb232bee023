//! NodePorts on loopback, for whoever asks for them with `nodePortAddresses: [localhost]`.
//!
//! Rules cannot lead a connection from loopback to a pod without a sysctl that opens the node to
//! others on its network. So this program listens there and relays to the Service's ClusterIP, like
//! any other process of the node that uses the Service; the rules are those that they are without.
//! A task of its own owns the listeners. Entry points: [`start`] and [`changes`].

mod tcp;
mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use nftproxy_core::model::{
    IpFamily, Protocol, Service, ServiceName, ServicePort, ServicePortName, State, V4, V6,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tracing::{debug, error, info};

/// So many connections and UDP clients are relayed at once; newcomers beyond are turned away.
const MAX: usize = 4096;

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    protocol: Protocol,
    at: SocketAddr,
}

/// What Services of one family are to have on loopback since a sync: for each, where to listen, and
/// where that leads.
#[derive(Debug)]
pub(crate) struct Changes(Vec<(ServiceName, IpFamily, BTreeMap<Port, SocketAddr>)>);

/// What is to be had of the Services that have changed.
pub(crate) fn changes(state: &State, family: IpFamily, changed: &BTreeSet<ServiceName>) -> Changes {
    let of = |name: &ServiceName| {
        let ports = state.service(name).map(|service| ports(service, family));
        (name.clone(), family, ports.unwrap_or_default())
    };
    Changes(changed.iter().map(of).collect())
}

fn ports(service: &Service, family: IpFamily) -> BTreeMap<Port, SocketAddr> {
    let (cluster_ip, loopback): (Option<IpAddr>, IpAddr) = match family {
        IpFamily::V4 => (
            service.cluster_ip::<V4>().map(Into::into),
            Ipv4Addr::LOCALHOST.into(),
        ),
        IpFamily::V6 => (
            service.cluster_ip::<V6>().map(Into::into),
            Ipv6Addr::LOCALHOST.into(),
        ),
    };
    let Some(cluster_ip) = cluster_ip else {
        return BTreeMap::new();
    };
    let relayed = service.ports.iter().filter_map(|port| {
        let number = port.node_port.filter(|_| port.protocol != Protocol::Sctp)?;
        let listen = Port {
            protocol: port.protocol,
            at: SocketAddr::new(loopback, number.get()),
        };
        Some((listen, SocketAddr::new(cluster_ip, port.port.get())))
    });
    relayed.collect()
}

/// The Service port that has this NodePort on loopback, and where that leads: of several the first
/// by name.
pub(crate) fn relayed(
    state: &State,
    protocol: Protocol,
    at: SocketAddr,
) -> Option<(ServicePortName, SocketAddr)> {
    let listen = Port { protocol, at };
    state.services().find_map(|service| {
        let to = *ports(service, IpFamily::of(at.ip())).get(&listen)?;
        let is_it = |port: &&ServicePort| {
            port.protocol == protocol && port.node_port.is_some_and(|it| it.get() == at.port())
        };
        let port = service.ports.iter().find(is_it)?;
        let name = ServicePortName {
            service: service.name.clone(),
            port: port.name.as_str().into(),
        };
        Some((name, to))
    })
}

/// Starts the task on a runtime. It ends, and all connections with it, when all senders are gone.
pub(crate) fn start(runtime: &Handle) -> UnboundedSender<Changes> {
    let (sender, receiver) = unbounded_channel();
    runtime.spawn(run(receiver, Arc::new(Semaphore::new(MAX))));
    sender
}

async fn run(mut changes: UnboundedReceiver<Changes>, room: Arc<Semaphore>) {
    let mut relays = Relays {
        room,
        services: BTreeMap::new(),
        listeners: BTreeMap::new(),
    };
    while let Some(Changes(changed)) = changes.recv().await {
        for (service, family, wanted) in changed {
            if wanted.is_empty() {
                relays.services.remove(&(service, family));
            } else {
                relays.services.insert((service, family), wanted);
            }
        }
        relays.listen().await;
    }
}

struct Relays {
    room: Arc<Semaphore>,
    services: BTreeMap<(ServiceName, IpFamily), BTreeMap<Port, SocketAddr>>,
    listeners: BTreeMap<Port, Listener>,
}

/// A listener, with those who came by it.
struct Listener {
    to: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relays {
    /// Makes the listeners what the Services are to have, and tries again what has failed before.
    /// The first Service by name has a port that several want, which the API server does not allow.
    async fn listen(&mut self) {
        let mut wanted = BTreeMap::new();
        for ports in self.services.values() {
            for (port, to) in ports {
                wanted.entry(*port).or_insert(*to);
            }
        }
        self.listeners
            .retain(|port, listener| wanted.get(port) == Some(&listener.to));
        for (port, to) in wanted {
            if self.listeners.contains_key(&port) {
                continue;
            }
            let (protocol, at) = (port.protocol.nft_name(), port.at);
            match open(port, to, self.room.clone()).await {
                Ok(task) => {
                    debug!(protocol, %at, %to, "relaying a NodePort on loopback");
                    self.listeners.insert(port, Listener { to, task });
                }
                // Without the family there is nobody to be served.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    info!(protocol, %at, %error, "no NodePorts on loopback");
                }
                Err(error) => {
                    error!(
                        protocol, %at, %error,
                        "a NodePort on loopback is not served; it is tried again with the next change"
                    );
                }
            }
        }
    }
}

async fn open(port: Port, to: SocketAddr, room: Arc<Semaphore>) -> io::Result<JoinHandle<()>> {
    match port.protocol {
        Protocol::Udp => udp::listen(port.at, to, room).await,
        _ => tcp::listen(port.at, to, room).await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UdpSocket};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A port that nobody has for now.
    fn free() -> SocketAddr {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    }

    async fn relay(protocol: Protocol, to: SocketAddr, room: &Arc<Semaphore>) -> SocketAddr {
        let at = free();
        let port = Port { protocol, at };
        open(port, to, room.clone()).await.unwrap();
        at
    }

    /// Whoever finds no room is turned away at once, and gets in when another has left.
    #[tokio::test]
    async fn connections_are_limited() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = server.accept().await {
                tokio::spawn(async move {
                    client.write_all(b"hello").await.unwrap();
                    // Until the client has had enough.
                    let _ = client.read(&mut [0]).await;
                });
            }
        });
        let room = Arc::new(Semaphore::new(1));
        let at = relay(Protocol::Tcp, to, &room).await;
        let greeting = async || {
            let mut client = TcpStream::connect(at).await.unwrap();
            let mut text = [0; 5];
            let read = timeout(PATIENCE, client.read_exact(&mut text))
                .await
                .unwrap();
            read.map(|_| client)
        };
        let first = greeting().await.unwrap();
        assert!(greeting().await.is_err(), "there is no room");
        drop(first);
        let _place = timeout(PATIENCE, room.acquire()).await.unwrap();
    }

    /// UDP clients have a socket each, and get their own answers; those beyond the limit get none.
    #[tokio::test]
    async fn udp_clients_are_told_apart_and_limited() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut text = [0; 16];
            while let Ok((len, client)) = server.recv_from(&mut text).await {
                server.send_to(&text[..len], client).await.unwrap();
            }
        });
        let room = Arc::new(Semaphore::new(2));
        let at = relay(Protocol::Udp, to, &room).await;
        let mut clients = Vec::new();
        for text in [b"one", b"two"] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(text, at).await.unwrap();
            let mut answer = [0; 16];
            let received = timeout(PATIENCE, client.recv_from(&mut answer)).await;
            assert_eq!(received.unwrap().unwrap(), (3, at));
            assert_eq!(&answer[..3], text);
            clients.push(client);
        }
        assert_eq!(room.available_permits(), 0);
        let third = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        third.send_to(b"three", at).await.unwrap();
        let nothing = timeout(Duration::from_millis(100), third.recv(&mut [0; 16])).await;
        assert!(nothing.is_err(), "there is no room");
    }
}
