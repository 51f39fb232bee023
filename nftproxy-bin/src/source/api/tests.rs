//! Connections and requests against servers in this process: TLS, both versions of HTTP, proxies.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::config::{AuthInfo, Cluster};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
};

use super::access::{Access, Server};
use super::client::Client;
use super::credentials::Credentials;
use super::failure::Failure;
use super::limit::Limit;
use super::proxy::Proxies;
use super::tls::Tls;
use crate::metrics::Metrics;

const CA: &str = include_str!("testdata/ca.crt");
const SERVER: &[u8] = include_bytes!("testdata/server.crt");
const SERVER_KEY: &[u8] = include_bytes!("testdata/server.key");
const CLIENT_V1: &str = include_str!("testdata/client-v1.crt");
const CLIENT_V1_KEY: &str = include_str!("testdata/client-v1.key");

/// What a server has seen.
#[derive(Default)]
struct Seen {
    n_connections: usize,
    requests: Vec<Request<()>>,
    client_certificates: Vec<CertificateDer<'static>>,
}

/// Takes any client certificate, as Go's servers take X.509 v1.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Starts a server with TLS that answers everything, and speaks these protocols.
async fn serve(protocols: &'static [&'static str]) -> (SocketAddr, Arc<Mutex<Seen>>) {
    let provider = Arc::new(ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(SERVER).map(Result::unwrap);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyClient))
        .with_single_cert(
            chain.collect(),
            PrivateKeyDer::from_pem_slice(SERVER_KEY).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let shared = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, seen) = (acceptor.clone(), shared.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let (_, session) = stream.get_ref();
                let is_http2 = session.alpn_protocol() == Some(b"h2");
                {
                    let mut seen = seen.lock().unwrap();
                    seen.n_connections += 1;
                    let certificates = session.peer_certificates().unwrap_or_default();
                    seen.client_certificates
                        .extend(certificates.iter().map(|c| c.clone().into_owned()));
                }
                let service = service_fn(move |request: Request<Incoming>| {
                    let request = request.map(|_| ());
                    seen.lock().unwrap().requests.push(request);
                    async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello")))) }
                });
                let io = TokioIo::new(stream);
                // The client may go at any time.
                if is_http2 {
                    let server = http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(io, service).await;
                } else {
                    let _ = http1::Builder::new().serve_connection(io, service).await;
                }
            });
        }
    });
    (addr, seen)
}

fn user_v1() -> AuthInfo {
    use base64::Engine as _;
    let base64 = |text: &str| base64::prelude::BASE64_STANDARD.encode(text);
    let (certificate, key) = (base64(CLIENT_V1), base64(CLIENT_V1_KEY));
    let yaml = format!("{{client-certificate-data: {certificate}, client-key-data: {key}}}");
    serde_norway::from_str(&yaml).unwrap()
}

fn client(url: &str, proxy_url: Option<&str>, user: &AuthInfo) -> Client {
    use base64::Engine as _;
    let cluster = Cluster {
        certificate_authority_data: Some(base64::prelude::BASE64_STANDARD.encode(CA)),
        ..Cluster::default()
    };
    let url: http::Uri = url.parse().unwrap();
    let proxies = Proxies::new(proxy_url, |_| None, |_| {}).unwrap();
    let access = Access {
        servers: vec![Server {
            proxy: proxies.of(&url).cloned(),
            url,
        }],
        tls: Tls::new(&cluster, None, user).unwrap(),
        tls_server_name: None,
        credentials: Credentials::new(user).unwrap(),
        headers: Vec::new(),
    };
    let accept = HeaderValue::from_static("application/json");
    Client::new(
        access,
        accept,
        Limit::new(-1.0, 1),
        Metrics::new(&[], &[]).api,
    )
}

async fn body(client: &Client, path: &str) -> Result<Bytes, Failure> {
    let response = client.get(path).await?;
    Ok(response.body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn http2_needs_one_connection_for_all() {
    let (addr, seen) = serve(&["h2", "http/1.1"]).await;
    let client = client(
        &format!("https://{addr}/prefix/"),
        None,
        &AuthInfo::default(),
    );
    let bodies = futures::future::join_all((0..4).map(|_| body(&client, "/a?b=c"))).await;
    for body in bodies {
        assert_eq!(body.unwrap(), "hello");
    }
    let seen = seen.lock().unwrap();
    assert_eq!((seen.n_connections, seen.requests.len()), (1, 4));
    for request in &seen.requests {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(
            request.uri().to_string(),
            format!("https://{addr}/prefix/a?b=c")
        );
        let agent = request.headers()["user-agent"].to_str().unwrap();
        // O-85: the name that this program was called by, as Go's clients have it.
        let (name, rest) = agent.split_once('/').unwrap();
        assert!(name.starts_with("nftproxy"), "{agent}");
        let version = env!("CARGO_PKG_VERSION");
        assert!(rest.starts_with(&format!("{version} (linux/")), "{agent}");
        assert!(rest.contains(") kubernetes/"), "{agent}");
    }
}

#[tokio::test]
async fn http1_connections_are_used_again() {
    let (addr, seen) = serve(&["http/1.1"]).await;
    let client = client(&format!("https://{addr}"), None, &AuthInfo::default());
    for _ in 0..3 {
        assert_eq!(body(&client, "/a").await.unwrap(), "hello");
    }
    let bodies = futures::future::join_all((0..4).map(|_| body(&client, "/a"))).await;
    assert!(bodies.iter().all(Result::is_ok));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.requests.len(), 7);
    assert!(seen.n_connections <= 4, "{}", seen.n_connections);
    assert_eq!(seen.requests[0].headers()["host"], addr.to_string());
    assert_eq!(seen.requests[0].uri(), "/a");
}

/// MicroK8s and plain `openssl x509 -req` make such certificates, and Go's clients show them.
#[tokio::test]
async fn a_client_certificate_of_x509_v1_is_shown() {
    let (addr, seen) = serve(&["h2"]).await;
    let client = client(&format!("https://{addr}"), None, &user_v1());
    body(&client, "/").await.unwrap();
    let shown = CertificateDer::from_pem_slice(CLIENT_V1.as_bytes()).unwrap();
    assert_eq!(seen.lock().unwrap().client_certificates, [shown]);
}

#[tokio::test]
async fn certificates_are_read_anew_when_their_files_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &[u8]| std::fs::write(path(name), text).unwrap();
    write("crt", CLIENT_V1.as_bytes());
    write("key", CLIENT_V1_KEY.as_bytes());
    let user = AuthInfo {
        client_certificate: Some(path("crt")),
        client_key: Some(path("key")),
        ..AuthInfo::default()
    };
    let (addr, seen) = serve(&["h2"]).await;
    let client = client(&format!("https://{addr}"), None, &user);
    body(&client, "/").await.unwrap();
    body(&client, "/").await.unwrap();
    assert_eq!(seen.lock().unwrap().n_connections, 1);
    // Half of a rotation is none.
    write("crt", SERVER);
    body(&client, "/").await.unwrap();
    assert_eq!(seen.lock().unwrap().n_connections, 1);
    write("key", SERVER_KEY);
    body(&client, "/").await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.n_connections, 2);
    let shown = CertificateDer::from_pem_slice(SERVER).unwrap();
    assert_eq!(seen.client_certificates[1], shown);
}

/// A proxy that knows one connection, and returns what it was asked.
async fn proxy(to: SocketAddr, answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let shared = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            *shared.lock().unwrap() = lines;
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut server = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move {
                // Either end may go.
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
    (addr, asked)
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let (server, seen) = serve(&["h2"]).await;
    let (proxy, asked) = proxy(server, "HTTP/1.1 200 OK\r\nx: y\r\n\r\n").await;
    let proxy = format!("http://user:pass@{proxy}");
    // The name need not be known here: it is the proxy's to look up.
    let client = client("https://api.test:6443", Some(&proxy), &AuthInfo::default());
    assert_eq!(body(&client, "/").await.unwrap(), "hello");
    assert_eq!(
        *asked.lock().unwrap(),
        [
            "CONNECT api.test:6443 HTTP/1.1",
            "Host: api.test:6443",
            "Proxy-Authorization: Basic dXNlcjpwYXNz"
        ]
    );
    assert_eq!(seen.lock().unwrap().requests.len(), 1);
}

#[tokio::test]
async fn http_is_asked_of_the_proxy_itself() {
    let (server, _) = serve(&["h2"]).await;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    let (proxy, asked) = proxy(server, answer).await;
    let client = client(
        "http://api.test",
        Some(&format!("http://{proxy}")),
        &AuthInfo::default(),
    );
    assert_eq!(body(&client, "/a").await.unwrap(), "hi");
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0], "GET http://api.test/a HTTP/1.1");
    assert!(asked.contains(&"host: api.test".to_owned()), "{asked:?}");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_a_server_out_of_reach() {
    let (server, _) = serve(&["h2"]).await;
    let (proxy, _) = proxy(server, "HTTP/1.1 407 Who are you\r\n\r\n").await;
    let proxy = format!("http://{proxy}");
    let client = client("https://api.test", Some(&proxy), &AuthInfo::default());
    let failure = body(&client, "/").await.unwrap_err();
    assert!(matches!(failure, Failure::Unreachable), "{failure}");
}
