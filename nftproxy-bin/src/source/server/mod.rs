//! An API server as something that can be asked: connections, credentials, limits, failover.
//!
//! It knows nothing of lists and watches. Entry points: [`Server::open`] and [`Server::get`].

mod address;
mod config;
mod connector;
mod identity;
mod limit;
mod proxy;
mod token;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::ConfigExt as _;
use tower::util::{BoxCloneSyncService, Either};
use tower::{Layer as _, Service as _, ServiceExt as _};
use tracing::{info, warn};

use super::wire::frame::{Encoding, status};
use crate::config::Settings;
use crate::error::chain;
use config::Connection;
use connector::{Connector, KEEPALIVE, KEEPALIVE_TIMEOUT};
use identity::Identity;
use limit::Limit;
use token::Token;

/// A server that has not begun to answer by then does not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often files with certificates are looked at.
const REFRESH: Duration = Duration::from_secs(60);
/// What is read of an answer that is an error.
const ERROR_MAX_LEN: usize = 64 * 1024;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Body = Empty<Bytes>;
type HttpClient = BoxCloneSyncService<Request<Body>, http::Response<Incoming>, Error>;

/// One API server, or several that are the same to us.
pub(crate) struct Server {
    urls: Vec<Uri>,
    /// The URL that is asked.
    current: AtomicUsize,
    connector: Connector,
    token: Token,
    identity: Option<Arc<Identity>>,
    kube: kube::Config,
    /// Fixed headers of each request.
    headers: HeaderMap,
    limit: Limit,
    client: Mutex<Pooled>,
}

/// A client with its connections.
struct Pooled {
    client: HttpClient,
    /// When the certificates were looked at.
    refreshed: Instant,
}

/// An answer that has begun.
pub(crate) struct Answer {
    pub(crate) encoding: Encoding,
    pub(crate) body: Incoming,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server cannot be reached, or cannot serve for now.
    Unreachable {
        cause: String,
        /// What the server says how long to wait.
        retry_after: Option<Duration>,
    },
    /// The server does not do what was asked.
    Refused {
        code: u16,
        cause: String,
        /// What the server says how long to wait.
        retry_after: Option<Duration>,
    },
    /// What came makes no sense, or not enough.
    Broken { cause: String },
}

impl Failure {
    pub(crate) fn unreachable(cause: impl Into<String>) -> Self {
        Self::Unreachable {
            cause: cause.into(),
            retry_after: None,
        }
    }

    pub(crate) fn broken(cause: impl Into<String>) -> Self {
        Self::Broken {
            cause: cause.into(),
        }
    }

    pub(crate) fn cause(&self) -> &str {
        match self {
            Self::Unreachable { cause, .. }
            | Self::Refused { cause, .. }
            | Self::Broken { cause } => cause,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unreachable { retry_after, .. } | Self::Refused { retry_after, .. } => {
                *retry_after
            }
            Self::Broken { .. } => None,
        }
    }

    /// What a `Status` means, in an answer of its own or in a watch.
    pub(super) fn of_status(
        code: u16,
        status: Option<&super::wire::Status>,
        retry_after: Option<Duration>,
    ) -> Self {
        let code = match status {
            Some(status) if status.code != 0 => u16::try_from(status.code).unwrap_or(code),
            _ => code,
        };
        let cause = match status {
            Some(status) if !status.message.is_empty() => {
                format!("{code} {}: {}", status.reason, status.message)
            }
            _ => {
                let status = StatusCode::from_u16(code).ok();
                let reason = status.and_then(|status| status.canonical_reason());
                format!("{code} {}", reason.unwrap_or_default())
            }
        };
        let details = status.and_then(|status| status.details.as_ref());
        let seconds = details.map_or(0, |details| details.retry_after_seconds);
        let retry_after = retry_after.or_else(|| {
            let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
            seconds.map(Duration::from_secs)
        });
        match code {
            // 410 is an answer; these say that there will be one later.
            429 | 500 | 502..=504 => Self::Unreachable { cause, retry_after },
            _ => Self::Refused {
                code,
                cause,
                retry_after,
            },
        }
    }
}

impl Server {
    /// Reads the configuration. Nothing is asked yet.
    pub(crate) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let Connection {
            urls,
            proxies,
            token,
            identity,
            tls,
            config,
        } = config::connection(settings).await?;
        let connector = Connector::new(proxies, tls, config.tls_server_name.as_deref());
        let mut headers = HeaderMap::new();
        let accept = HeaderValue::try_from(&settings.accept)
            .context("clientConnection.acceptContentTypes cannot be sent")?;
        headers.insert(ACCEPT, accept);
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("nftproxy/", env!("CARGO_PKG_VERSION"))),
        );
        let pooled = Pooled {
            client: client(&connector, &config)?,
            refreshed: Instant::now(),
        };
        Ok(Self {
            urls,
            current: AtomicUsize::new(0),
            connector,
            token,
            identity,
            kube: config,
            headers,
            limit: Limit::new(settings.qps, settings.burst, Instant::now()),
            client: Mutex::new(pooled),
        })
    }

    /// Asks for a path with its query.
    pub(crate) async fn get(&self, path_and_query: &str) -> Result<Answer, Failure> {
        tokio::time::sleep(self.limit.take(Instant::now())).await;
        let current = self.current.load(Ordering::Relaxed);
        let result = self.get_from(current, path_and_query).await;
        match &result {
            Err(Failure::Refused { code: 401, .. }) => {
                self.token.refused();
                self.forget_connections();
            }
            Err(Failure::Unreachable { .. }) => self.turn_away(current),
            _ => {}
        }
        result
    }

    async fn get_from(&self, current: usize, path_and_query: &str) -> Result<Answer, Failure> {
        let malformed = |error: http::Error| Failure::broken(error.to_string());
        let url = address::join(&self.urls[current], path_and_query).map_err(malformed)?;
        let mut request = Request::get(url).body(Body::new()).map_err(malformed)?;
        request.headers_mut().clone_from(&self.headers);
        if let Some(token) = self.token.header() {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        let mut client = self.client();
        let asked = async { client.ready().await?.call(request).await };
        let response = tokio::time::timeout(ANSWER_TIMEOUT, asked)
            .await
            .map_err(|_| {
                let seconds = ANSWER_TIMEOUT.as_secs();
                Failure::unreachable(format!("the API server has not answered for {seconds} s"))
            })?
            .map_err(|error| Failure::unreachable(chain(&*error)))?;
        let encoding = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| Encoding::of(value.to_str().ok()?));
        if response.status() != StatusCode::OK {
            return Err(refusal(response, encoding).await);
        }
        let Some(encoding) = encoding else {
            let content_type = response.headers().get(CONTENT_TYPE);
            return Err(Failure::broken(format!(
                "this is not an API server: it answers with {content_type:?}"
            )));
        };
        Ok(Answer {
            encoding,
            body: response.into_body(),
        })
    }

    /// The client, with new connections if the certificates have changed.
    fn client(&self) -> HttpClient {
        let mut pooled = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if pooled.refreshed.elapsed() >= REFRESH {
            pooled.refreshed = Instant::now();
            if self
                .identity
                .as_ref()
                .is_some_and(|identity| identity.refresh())
            {
                info!("the client certificate has changed");
                self.renew(&mut pooled);
            }
        }
        pooled.client.clone()
    }

    /// The server does not know us: the certificates may have changed.
    fn forget_connections(&self) {
        let mut pooled = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = &self.identity {
            identity.refresh();
            self.renew(&mut pooled);
        }
    }

    fn renew(&self, pooled: &mut Pooled) {
        match client(&self.connector, &self.kube) {
            Ok(client) => pooled.client = client,
            Err(error) => warn!("new connections cannot be made: {error:#}"),
        }
    }

    /// Has the next request go to another server than this, if there is one.
    fn turn_away(&self, from: usize) {
        let to = (from + 1) % self.urls.len();
        let turned = self
            .current
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        if from != to && turned.is_ok() {
            info!(from = %self.urls[from], to = %self.urls[to], "going on with another API server");
        }
    }
}

/// A client without connections.
fn client(connector: &Connector, config: &kube::Config) -> anyhow::Result<HttpClient> {
    let client: Client<_, Body> = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(KEEPALIVE)
        .http2_keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .build(connector.clone());
    let client = client.map_err(Error::from);
    // Tokens and certificates of ours are no more in there.
    let client = match config.auth_layer().context("the credentials")? {
        Some(layer) => Either::Left(layer.layer(client).map_err(Error::from)),
        None => Either::Right(client),
    };
    let client = config
        .extra_headers_layer()
        .context("whom to impersonate")?
        .layer(client);
    Ok(BoxCloneSyncService::new(client.map_err(Error::from)))
}

/// What a server says with an error code.
async fn refusal(response: http::Response<Incoming>, encoding: Option<Encoding>) -> Failure {
    let code = response.status().as_u16();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let body = Limited::new(response.into_body(), ERROR_MAX_LEN).collect();
    let body = match tokio::time::timeout(ANSWER_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    Failure::of_status(code, status(encoding, &body).as_ref(), retry_after)
}
