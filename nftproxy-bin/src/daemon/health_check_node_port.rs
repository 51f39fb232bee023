//! Answers on the health-check node ports of Services: has this node ready endpoints for them?
//!
//! A task of its own owns the listeners and is told by [`HealthChecks`] what they are to be, so that
//! no sync waits for a socket. It knows nothing of rules, nor of how endpoints are counted or what
//! is answered. Read [`start`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use nftproxy_core::compile::HealthCheck;
use nftproxy_core::engine::{Health, HealthCheckAnswer, HealthChecks};
use nftproxy_core::model::{IpFamily, ServiceName};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::source::api::{Occurrence, Recorder, Regarding};

use super::http::{Handler, Response, full, listen_for_family, serve};

/// Starts the task on a runtime. It ends when all senders are gone.
pub(crate) fn start(
    runtime: &Handle,
    health: Health,
    node_name: String,
    recorder: Recorder,
) -> UnboundedSender<HealthChecks> {
    let (sender, receiver) = unbounded_channel();
    runtime.spawn(run(
        health,
        Witness {
            node_name,
            recorder,
        },
        receiver,
    ));
    sender
}

/// Tells of ports that cannot be had.
#[derive(Clone, Default)]
struct Witness {
    node_name: String,
    recorder: Recorder,
}

impl Witness {
    /// kube-proxy's Event.
    fn failed(&self, service: &ServiceName, port: NonZeroU16, error: &io::Error) {
        let node = &self.node_name;
        let (namespace, name) = service.parts();
        self.recorder.record(Occurrence {
            regarding: Regarding::Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            is_warning: true,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!(
                "node {node} failed to start healthcheck \"{service}\" on port {port}: {error}"
            ),
        });
    }
}

async fn run(health: Health, witness: Witness, mut updates: UnboundedReceiver<HealthChecks>) {
    let mut v4 = Ports::new(IpFamily::V4, health.clone(), witness.clone());
    let mut v6 = Ports::new(IpFamily::V6, health, witness);
    while let Some(update) = updates.recv().await {
        match update.family {
            IpFamily::V4 => v4.apply(update).await,
            IpFamily::V6 => v6.apply(update).await,
        }
    }
}

/// The health-check node ports of one family.
struct Ports {
    family: IpFamily,
    health: Health,
    witness: Witness,
    addresses: BTreeSet<IpAddr>,
    services: BTreeMap<ServiceName, Port>,
}

impl Ports {
    fn new(family: IpFamily, health: Health, witness: Witness) -> Self {
        Self {
            family,
            health,
            witness,
            addresses: BTreeSet::new(),
            services: BTreeMap::new(),
        }
    }

    /// Makes everything as the update has it, and tries again what has failed before.
    async fn apply(&mut self, update: HealthChecks) {
        let mut may_be_nowhere = self.addresses != update.addresses;
        self.addresses = update.addresses;
        // All ports that are given up come first, as another Service may have one of them now.
        for (service, wanted) in update.changed {
            match (self.services.get(&service), wanted) {
                (Some(port), Some(wanted)) if port.number == wanted.port => {
                    port.answer.set_n_local_endpoints(wanted.n_local_ready);
                }
                (_, wanted) => {
                    if let Some(mut gone) = self.services.remove(&service) {
                        let (family, port) = (self.family, gone.number);
                        debug!(%family, %service, port, "Closing healthcheck");
                        gone.close().await;
                    }
                    if let Some(wanted) = wanted {
                        may_be_nowhere = true;
                        let port = Port::new(&service, wanted, self.health.clone());
                        self.services.insert(service, port);
                    }
                }
            }
        }
        for (service, port) in &mut self.services {
            let result = port.listen_at(&self.addresses, self.family, service).await;
            if let Err(error) = result {
                self.witness.failed(service, port.number, &error);
            }
        }
        if may_be_nowhere && self.addresses.is_empty() && !self.services.is_empty() {
            warn!(
                family = %self.family, services = ?self.services.keys(),
                "no address of this node accepts NodePorts, so health-check node ports are not served"
            );
        }
    }
}

/// The health-check node port of one Service.
struct Port {
    number: NonZeroU16,
    answer: Arc<Answer>,
    /// One for each address, or none if it has failed.
    listeners: Listeners,
}

/// Listeners by their addresses.
type Listeners = BTreeMap<IpAddr, JoinHandle<()>>;

impl Port {
    fn new(service: &ServiceName, wanted: HealthCheck, health: Health) -> Self {
        Self {
            number: wanted.port,
            answer: Arc::new(Answer {
                service: service.clone(),
                n_local_endpoints: wanted.n_local_ready.into(),
                health,
            }),
            listeners: Listeners::new(),
        }
    }

    /// Listens at these addresses and no others; if that fails at one of them, nowhere.
    async fn listen_at(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        family: IpFamily,
        service: &ServiceName,
    ) -> io::Result<()> {
        if self.listeners.keys().eq(addresses) {
            return Ok(());
        }
        let port = self.number;
        debug!(%family, %service, port, ?addresses, "Opening healthcheck");
        let (kept, gone) = std::mem::take(&mut self.listeners)
            .into_iter()
            .partition(|(ip, _)| addresses.contains(ip));
        self.listeners = kept;
        close(gone).await;
        for ip in addresses {
            if self.listeners.contains_key(ip) {
                continue;
            }
            match listen_for_family((*ip, port.get()).into()) {
                Ok(listener) => {
                    let task = tokio::spawn(serve(listener, self.answer.clone()));
                    self.listeners.insert(*ip, task);
                }
                Err(error) => {
                    error!(
                        %family, %service, port, %ip, %error,
                        "Failed to start healthcheck; retrying at the next sync"
                    );
                    self.close().await;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn close(&mut self) {
        close(std::mem::take(&mut self.listeners)).await;
    }
}

/// Ends listeners with their connections. When it is done, their ports are free.
async fn close(listeners: Listeners) {
    for listener in listeners.into_values() {
        listener.abort();
        // It was cancelled, and says so.
        let _ = listener.await;
    }
}

/// What a Service's listeners say, whatever they are asked.
struct Answer {
    service: ServiceName,
    n_local_endpoints: AtomicUsize,
    health: Health,
}

impl Answer {
    fn set_n_local_endpoints(&self, n: usize) {
        self.n_local_endpoints.store(n, Ordering::Relaxed);
    }

    fn response(&self) -> Response {
        let answer = HealthCheckAnswer {
            service: &self.service,
            local_endpoints: self.n_local_endpoints.load(Ordering::Relaxed),
            is_healthy: self.health.is_healthy(Instant::now().into_std()),
        };
        let mut response = http::Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            response = response.header(name, value);
        }
        response
            .body(full(answer.body()))
            .expect("status and headers are those of a valid answer")
    }
}

impl Handler for Answer {
    async fn respond(&self, _: http::Request<Incoming>) -> Response {
        self.response()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::advance;

    use super::super::http::testing;
    use super::*;

    const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
    const SYNC_PERIOD: Duration = Duration::from_secs(30);

    fn ports(family: IpFamily) -> Ports {
        Ports::new(family, Health::new(SYNC_PERIOD), Witness::default())
    }

    /// A port that nobody listens on, and that nobody is likely to be given soon.
    fn free_port() -> NonZeroU16 {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let listener = std::net::TcpListener::bind(any).unwrap();
        let port = listener.local_addr().unwrap().port();
        port.try_into().unwrap()
    }

    fn check(port: NonZeroU16, n_local_ready: usize) -> Option<HealthCheck> {
        Some(HealthCheck {
            port,
            n_local_ready,
        })
    }

    impl Ports {
        /// Applies an update with these Services of namespace `ns`.
        async fn update(&mut self, addresses: &[IpAddr], changed: &[(&str, Option<HealthCheck>)]) {
            let changed = changed.iter();
            self.apply(HealthChecks {
                family: self.family,
                addresses: addresses.iter().copied().collect(),
                changed: changed
                    .map(|(name, wanted)| (ServiceName::new("ns", name).unwrap(), *wanted))
                    .collect(),
            })
            .await;
        }
    }

    async fn connect(ip: IpAddr, port: NonZeroU16) -> Option<TcpStream> {
        match TcpStream::connect((ip, port.get())).await {
            Ok(stream) => Some(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
            Err(error) => panic!("connecting to {ip}, port {port}: {error}"),
        }
    }

    /// The whole answer but its date.
    async fn ask(mut stream: TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let lines = answer.split_inclusive('\n');
        lines.filter(|line| !line.starts_with("Date: ")).collect()
    }

    /// The weight that is answered; `None` if nobody listens.
    async fn weight(ip: IpAddr, port: NonZeroU16) -> Option<usize> {
        let answer = ask(
            connect(ip, port).await?,
            "GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n",
        )
        .await;
        let mut lines = answer.lines();
        let weight = lines.find_map(|line| line.strip_prefix("X-Load-Balancing-Endpoint-Weight: "));
        Some(weight.unwrap().parse().unwrap())
    }

    const TWO_ENDPOINTS: &str = r#"{
	"service": {
		"namespace": "ns",
		"name": "web"
	},
	"localEndpoints": 2,
	"serviceProxyHealthy": true
}"#;

    /// O-121: byte for byte, whatever the path and method.
    #[tokio::test]
    async fn every_request_gets_the_same_answer() {
        let (mut ports, port) = (ports(IpFamily::V4), free_port());
        ports.update(&[FIRST], &[("web", check(port, 2))]).await;
        for request in [
            "GET /",
            "GET /healthz?verbose",
            "POST /",
            "DELETE /a/b",
            "OPTIONS *",
        ] {
            let request = format!("{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
            let answer = ask(connect(FIRST, port).await.unwrap(), &request).await;
            let expected = format!(
                "HTTP/1.1 200 OK\r\n\
                 Content-Type: application/json\r\n\
                 X-Content-Type-Options: nosniff\r\n\
                 X-Load-Balancing-Endpoint-Weight: 2\r\n\
                 Connection: close\r\n\
                 Content-Length: {}\r\n\
                 \r\n\
                 {TWO_ENDPOINTS}",
                TWO_ENDPOINTS.len()
            );
            let sorted = |text: &str| {
                text.split("\r\n")
                    .map(str::to_owned)
                    .collect::<BTreeSet<_>>()
            };
            assert_eq!(sorted(&answer), sorted(&expected), "{request}");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
    }

    /// O-121: as recorded of kube-proxy.
    #[tokio::test]
    async fn the_answer_is_the_recorded_one() {
        let (mut ports, port) = (ports(IpFamily::V4), free_port());
        let name = ServiceName::new("default", "lb").unwrap();
        ports
            .apply(HealthChecks {
                family: IpFamily::V4,
                addresses: [FIRST].into(),
                changed: vec![(name, check(port, 0))],
            })
            .await;
        let address = SocketAddr::new(FIRST, port.get());
        let answer = testing::ask(address, "GET /healthz", &[]).await;
        assert_eq!(answer, testing::recorded("hcnp-local-none.txt"));
    }

    /// O-121: both families count for the health, and the weight is told whether or not it is good.
    #[tokio::test(start_paused = true)]
    async fn the_status_is_good_with_endpoints_and_a_healthy_proxy() {
        let health = Health::new(SYNC_PERIOD);
        let answer = |n: usize| Answer {
            service: ServiceName::new("ns", "web").unwrap(),
            n_local_endpoints: n.into(),
            health: health.clone(),
        };
        let check = |n: usize, status: u16, is_healthy: bool| {
            let (response, body) = answer(n).response().into_parts();
            assert_eq!(response.status.as_u16(), status);
            let weight = &response.headers["x-load-balancing-endpoint-weight"];
            assert_eq!(weight, &n.to_string());
            let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["localEndpoints"], n);
            assert_eq!(body["serviceProxyHealthy"], is_healthy);
        };
        check(1, 200, true);
        check(0, 503, true);
        health.changed(IpFamily::V6, Instant::now().into_std());
        advance(2 * SYNC_PERIOD).await;
        check(1, 503, false);
        check(0, 503, false);
        health.synced(IpFamily::V6);
        check(3, 200, true);
    }

    #[tokio::test]
    async fn another_count_disturbs_no_connection() {
        let (mut ports, port) = (ports(IpFamily::V4), free_port());
        ports.update(&[FIRST], &[("web", check(port, 1))]).await;
        let before = connect(FIRST, port).await.unwrap();
        // Once a later one is answered, this one has been accepted.
        assert_eq!(weight(FIRST, port).await, Some(1));
        ports.update(&[FIRST], &[("web", check(port, 0))]).await;
        ports.update(&[FIRST], &[]).await;
        assert_eq!(weight(FIRST, port).await, Some(0));
        let answer = ask(before, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
    }

    /// O-120: a change of port closes and opens, in any order of the Services concerned.
    #[tokio::test]
    async fn ports_change_hands_in_one_update() {
        let (mut ports, (a, b)) = (ports(IpFamily::V4), (free_port(), free_port()));
        ports
            .update(&[FIRST], &[("one", check(a, 1)), ("two", check(b, 2))])
            .await;
        assert_eq!(weight(FIRST, a).await, Some(1));
        assert_eq!(weight(FIRST, b).await, Some(2));
        ports
            .update(&[FIRST], &[("one", check(b, 1)), ("two", check(a, 2))])
            .await;
        assert_eq!(weight(FIRST, a).await, Some(2));
        assert_eq!(weight(FIRST, b).await, Some(1));

        let waiting = connect(FIRST, a).await.unwrap();
        assert_eq!(weight(FIRST, a).await, Some(2));
        ports
            .update(&[FIRST], &[("three", check(a, 3)), ("two", None)])
            .await;
        assert_eq!(weight(FIRST, a).await, Some(3));
        let is_cut = async |mut stream: TcpStream| {
            let read = stream.read(&mut [0; 8]).await;
            matches!(read, Ok(0) | Err(_))
        };
        assert!(is_cut(waiting).await, "its listener is gone");
        ports
            .update(&[FIRST], &[("one", None), ("three", None)])
            .await;
        assert_eq!(
            (weight(FIRST, a).await, weight(FIRST, b).await),
            (None, None)
        );
    }

    /// O-120: at all addresses or at none, and again at the next sync.
    #[tokio::test]
    async fn a_failed_bind_closes_the_service_and_is_retried() {
        let (mut ports, (taken, free)) = (ports(IpFamily::V4), (free_port(), free_port()));
        let occupant = std::net::TcpListener::bind((SECOND, taken.get())).unwrap();
        let both = [FIRST, SECOND];
        ports
            .update(&both, &[("bad", check(taken, 1)), ("good", check(free, 2))])
            .await;
        assert_eq!(weight(FIRST, taken).await, None);
        assert_eq!(weight(SECOND, free).await, Some(2));
        ports.update(&both, &[]).await;
        assert_eq!(weight(FIRST, taken).await, None);
        drop(occupant);
        ports.update(&both, &[]).await;
        assert_eq!(weight(FIRST, taken).await, Some(1));
        assert_eq!(weight(SECOND, taken).await, Some(1));
    }

    /// O-120
    #[tokio::test]
    async fn listeners_follow_the_addresses() {
        let (mut ports, port) = (ports(IpFamily::V4), free_port());
        ports.update(&[], &[("web", check(port, 1))]).await;
        assert_eq!(weight(FIRST, port).await, None);
        let any = Ipv4Addr::UNSPECIFIED.into();
        for (addresses, at_first, at_second) in [
            (&[FIRST][..], Some(1), None),
            (&[FIRST, SECOND], Some(1), Some(1)),
            (&[SECOND], None, Some(1)),
            (&[any], Some(1), Some(1)),
            (&[FIRST], Some(1), None),
            (&[], None, None),
        ] {
            ports.update(addresses, &[]).await;
            assert_eq!(weight(FIRST, port).await, at_first, "{addresses:?}");
            assert_eq!(weight(SECOND, port).await, at_second, "{addresses:?}");
        }
    }
}
