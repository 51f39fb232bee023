//! TLS, client certificates and HTTP/2.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ::http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration::apiserver::{ApiServer, Resource, StreamingLists};
use integration::tls::{Authority, Clients, Identity, Tls};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::cluster::{NODES, TIMEOUT, parse, wait_until};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn start(tls: &Tls) -> ApiServer {
    let server = ApiServer::bind_tls(SocketAddr::from(LOOPBACK), tls).unwrap();
    server.load_list(Resource::Nodes, NODES).unwrap();
    server
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// What a client trusts, shows and speaks.
struct Client<'a> {
    authority: &'a str,
    identity: Option<&'a Identity>,
    protocol: &'static str,
}

impl Client<'_> {
    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(der(self.authority)).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(vec![der(certificate)], key)
                    .unwrap()
            }
        };
        config.alpn_protocols = vec![self.protocol.as_bytes().to_vec()];
        config
    }

    /// The answer to a request on a connection of its own, or why there is none.
    async fn get(&self, addr: SocketAddr, path: &str) -> anyhow::Result<hyper::Response<Incoming>> {
        let socket = TcpStream::connect(addr).await?;
        let name = ServerName::from(addr.ip());
        let connector = TlsConnector::from(Arc::new(self.config()));
        let stream = TokioIo::new(connector.connect(name, socket).await?);
        if self.protocol == "h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            let request = Request::get(format!("https://{addr}{path}"));
            Ok(sender
                .send_request(request.body(Empty::<Bytes>::new())?)
                .await?)
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            let request = Request::get(path).header("Host", "mock");
            Ok(sender
                .send_request(request.body(Empty::<Bytes>::new())?)
                .await?)
        }
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, test).await.unwrap() })
}

async fn json_of(response: hyper::Response<Incoming>) -> Value {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn both_versions_of_http_are_served() {
    let tls = Tls::loopback().unwrap();
    let server = start(&tls);
    for (protocol, version, recorded) in [
        ("http/1.1", Version::HTTP_11, "1.1"),
        ("h2", Version::HTTP_2, "2"),
    ] {
        let client = Client {
            authority: &tls.authority,
            identity: None,
            protocol,
        };
        let response = run(async {
            let response = client.get(server.addr(), "/api/v1/nodes").await.unwrap();
            assert_eq!(response.version(), version);
            json_of(response).await
        });
        assert_eq!(response, parse(NODES));
        assert_eq!(server.requests().last().unwrap().http_version, recorded);
    }
    assert!(server.url().starts_with("https://127.0.0.1:"));
    let without = Tls {
        http2: false,
        ..tls
    };
    let server = start(&without);
    let client = Client {
        authority: &without.authority,
        identity: None,
        protocol: "h2",
    };
    assert!(run(client.get(server.addr(), "/version")).is_err());
}

#[test]
fn a_watch_over_http2_goes_on_and_breaks_off() {
    let tls = Tls::loopback().unwrap();
    let server = start(&tls);
    server.set_streaming_lists(StreamingLists::Served);
    let client = Client {
        authority: &tls.authority,
        identity: None,
        protocol: "h2",
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = "/api/v1/nodes?watch=true&resourceVersion=329";
    let response = runtime.block_on(client.get(server.addr(), path)).unwrap();
    let mut body = response.into_body();
    assert!(server.wait_for_watches(1, TIMEOUT));
    server.delete(Resource::Nodes, "", "node-1").unwrap();
    let frame = runtime.block_on(body.frame()).unwrap().unwrap();
    let event: Value = serde_json::from_slice(frame.data_ref().unwrap()).unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(server.open_connections(), 1);
    server.disconnect_watches();
    assert!(runtime.block_on(body.frame()).unwrap().is_err());
}

#[test]
fn clients_show_what_they_are_asked_for() {
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    let good = ours
        .client("system:kube-proxy", "system:node-proxier")
        .unwrap();
    let bad = theirs
        .client("system:kube-proxy", "system:node-proxier")
        .unwrap();
    let certificate = ours.certificate().to_owned();
    for (clients, may_decline) in [
        (Clients::Asked(certificate.clone()), true),
        (Clients::Required(certificate), false),
    ] {
        let tls = Tls {
            clients,
            ..Tls::loopback().unwrap()
        };
        let server = start(&tls);
        let ask = |identity| {
            let client = Client {
                authority: &tls.authority,
                identity,
                protocol: "http/1.1",
            };
            run(client.get(server.addr(), "/version")).is_ok()
        };
        assert!(ask(Some(&good)));
        let shown = server.requests()[0].client_certificate.clone();
        assert_eq!(shown.as_deref(), Some(&*der(&good.certificate)));
        assert_eq!(ask(None), may_decline);
        assert!(!ask(Some(&bad)));
        let n_answered = 1 + usize::from(may_decline);
        assert_eq!(server.requests().len(), n_answered);
        wait_until("all connections to be gone", || {
            server.open_connections() == 0
        });
    }
}

#[test]
fn a_server_may_be_one_that_nobody_trusts() {
    let tls = Tls::loopback().unwrap();
    let other = Authority::new().unwrap();
    let named = Tls {
        identity: other.server(&["kubernetes.default.svc"]).unwrap(),
        ..tls.clone()
    };
    for (tls, authority) in [(&tls, other.certificate()), (&named, other.certificate())] {
        let server = start(tls);
        let client = Client {
            authority,
            identity: None,
            protocol: "http/1.1",
        };
        assert!(run(client.get(server.addr(), "/version")).is_err());
        assert_eq!(server.requests(), []);
    }
    let broken = Tls {
        identity: Identity {
            certificate: "none".to_owned(),
            ..tls.identity.clone()
        },
        ..tls
    };
    assert!(ApiServer::bind_tls(SocketAddr::from(LOOPBACK), &broken).is_err());
}

#[test]
fn the_kubeconfig_leads_to_the_server() {
    let tls = Tls::loopback().unwrap();
    let server = start(&tls);
    server.require_token(Some("secret"));
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&server.kubeconfig()).unwrap();
    let version = run(async {
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        let client = kube::Client::try_from(config).unwrap();
        client.apiserver_version().await.unwrap()
    });
    assert_eq!(json!(version.major), "1");
    let request = server.requests().pop().unwrap();
    assert_eq!(request.headers["authorization"], "Bearer secret");
}
