//! What kubeconfig, flags and the pod's own account say of API servers and of who we are to them.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use http::Uri;
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use rustls::ClientConfig;
use secrecy::ExposeSecret as _;
use tracing::info;

use super::address;
use super::identity::{Identity, Source};
use super::proxy::Proxies;
use super::token::Token;
use crate::config::Settings;

/// Where to connect, and as whom.
pub(super) struct Connection {
    /// In order of preference; never empty.
    pub(super) urls: Vec<Uri>,
    pub(super) proxies: Proxies,
    pub(super) token: Token,
    pub(super) identity: Option<std::sync::Arc<Identity>>,
    /// `None` where no URL is https.
    pub(super) tls: Option<ClientConfig>,
    /// What the client library does: other credentials, and impersonation.
    pub(super) config: Config,
}

/// Reads it all. Nothing is asked yet.
pub(super) async fn connection(settings: &Settings) -> anyhow::Result<Connection> {
    let (mut config, proxy_url) = match (&settings.kubeconfig, &settings.master) {
        (Some(path), _) => kubeconfig(path)
            .await
            .with_context(|| format!("using kubeconfig {}", path.display()))?,
        (None, Some(master)) => {
            let url = address::parse(master, false).context("--master")?;
            (Config::new(url), None)
        }
        (None, None) => {
            info!("neither kubeconfig nor master URL is given; using the in-cluster configuration");
            let config = Config::incluster().context(
                "this is not a pod, so there is no in-cluster configuration; \
                 give --kubeconfig, --config or --manifests",
            )?;
            (config, None)
        }
    };
    let has_tls = has_tls(&config);
    let urls = if !settings.api_servers.is_empty() {
        let parse = |url: &String| address::parse(url, has_tls).context("--api-servers");
        settings
            .api_servers
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()?
    } else if let Some(master) = &settings.master {
        vec![address::parse(master, has_tls).context("--master")?]
    } else {
        vec![config.cluster_url.clone()]
    };

    let auth = &mut config.auth_info;
    let token = Token::new(
        auth.token
            .take()
            .as_ref()
            .map(|token| token.expose_secret()),
        auth.token_file.take().as_deref().map(Path::new),
    )?;
    let certificate = half(
        auth.client_certificate_data.take(),
        auth.client_certificate.take(),
    )?;
    let key_data = auth.client_key_data.take();
    let key = half(
        key_data.map(|data| data.expose_secret().to_owned()),
        auth.client_key.take(),
    )?;
    let is_https = |url: &Uri| url.scheme_str() == Some("https");
    let (mut tls, mut identity) = (None, None);
    if urls.iter().any(is_https) {
        let mut tls_config = config
            .rustls_client_config()
            .context("reading what TLS needs (certificate-authority, the system's CAs)")?;
        if let (Some(certificate), Some(key)) = (certificate, key) {
            let new = Identity::new(certificate, key, tls_config.crypto_provider())?;
            let new = std::sync::Arc::new(new);
            tls_config.client_auth_cert_resolver = new.clone();
            identity = Some(new);
        }
        tls_config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        tls = Some(tls_config);
    }
    Ok(Connection {
        urls,
        proxies: Proxies::new(proxy_url.as_deref()).map_err(anyhow::Error::msg)?,
        token,
        identity,
        tls,
        config,
    })
}

/// Reads a kubeconfig, with the proxy that it names.
async fn kubeconfig(path: &Path) -> anyhow::Result<(Config, Option<String>)> {
    let mut file = Kubeconfig::read_from(path)?;
    let context = file.current_context.clone().unwrap_or_default();
    let find = |contexts: &[kube::config::NamedContext]| {
        let context = contexts.iter().find(|named| named.name == context)?;
        context.context.clone()
    };
    let context = find(&file.contexts);
    let user = context.as_ref().and_then(|context| context.user.clone());
    let user = file
        .auth_infos
        .iter()
        .find(|named| Some(&named.name) == user.as_ref())
        .and_then(|named| named.auth_info.clone());
    let cluster_name = context.map(|context| context.cluster).unwrap_or_default();
    let cluster = file
        .clusters
        .iter_mut()
        .find(|named| named.name == cluster_name)
        .and_then(|named| named.cluster.as_mut());
    let (mut proxy_url, mut authority) = (None, None);
    if let Some(cluster) = cluster {
        let is_given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_tls = is_given(&cluster.certificate_authority)
            || is_given(&cluster.certificate_authority_data)
            || cluster.insecure_skip_tls_verify == Some(true)
            || user.as_ref().is_some_and(has_certificate);
        if let Some(server) = &mut cluster.server {
            *server = address::parse(server, has_tls)?.to_string();
        }
        if !is_given(&cluster.certificate_authority_data) {
            authority = cluster.certificate_authority.clone();
        }
        // The library would look at the environment by rules of its own.
        proxy_url = cluster.proxy_url.replace("http://unused".into());
    }
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    config.root_cert_file = authority.filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok((config, proxy_url))
}

/// Whether there is anything to do TLS with, which is how client-go guesses a scheme.
fn has_tls(config: &Config) -> bool {
    config.root_cert.is_some()
        || config.root_cert_file.is_some()
        || config.accept_invalid_certs
        || has_certificate(&config.auth_info)
}

fn has_certificate(auth: &AuthInfo) -> bool {
    auth.client_certificate.is_some() || auth.client_certificate_data.is_some()
}

/// One half of an identity; data counts more than a file.
fn half(data: Option<String>, file: Option<String>) -> anyhow::Result<Option<Source>> {
    use base64::Engine as _;
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let pem = base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .ok()
            .context("client-certificate-data or client-key-data is not base64")?;
        ensure!(!pem.is_empty(), "client-certificate-data is empty");
        return Ok(Some(Source::Given(pem)));
    }
    let file = file.filter(|path| !path.is_empty());
    Ok(file.map(|path| Source::File(path.into())))
}
