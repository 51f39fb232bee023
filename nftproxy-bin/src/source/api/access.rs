//! Where the API servers are and how they are talked to, as kubeconfig, flags, environment or the
//! pod's own account say.
//!
//! Nothing is connected here. Entry point: [`Access::new`].

use std::path::PathBuf;

use anyhow::{Context, ensure};
use http::{HeaderName, HeaderValue, Uri};
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use tracing::{info, warn};

use super::credentials::Credentials;
use super::proxy::{Proxies, Proxy};
use super::tls::Tls;
use super::url;
use crate::config::Settings;
use crate::error::chain;

/// One way to the API: a server, and what lies between.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) url: Uri,
    pub(super) proxy: Option<Proxy>,
}

/// All that it takes to send requests.
pub(super) struct Access {
    /// At least one.
    pub(super) servers: Vec<Server>,
    pub(super) tls: Tls,
    /// The name that the server's certificate must have, if not that of its URL.
    pub(super) tls_server_name: Option<String>,
    pub(super) credentials: Credentials,
    /// For each request: whom we impersonate.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a kubeconfig comes down to.
#[derive(Default)]
struct Target {
    cluster: Cluster,
    user: AuthInfo,
    ca_file: Option<PathBuf>,
}

impl Access {
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let has_urls = settings.master.is_some() || !settings.api_servers.is_empty();
        match &settings.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| {
                    // What follows the first line is a picture of the place.
                    let text = chain(&error);
                    let line = text.lines().next().unwrap_or_default();
                    anyhow::anyhow!("reading kubeconfig {}: {line}", path.display())
                })?;
                from_kubeconfig(file)
                    .and_then(|target| Self::of(target, settings))
                    .with_context(|| format!("using kubeconfig {}", path.display()))
            }
            None if has_urls => Self::of(Target::default(), settings),
            None => {
                info!(
                    "neither kubeconfig nor master URL is given; using the in-cluster configuration"
                );
                Self::of(in_cluster()?, settings)
            }
        }
    }

    fn of(target: Target, settings: &Settings) -> anyhow::Result<Self> {
        let Target {
            cluster,
            user,
            ca_file,
        } = target;
        let tls = Tls::new(&cluster, ca_file.as_deref(), &user)?;
        let parse = |name: &str, text: &str| {
            url::parse(text, tls.is_configured()).with_context(|| name.to_owned())
        };
        let urls: Vec<Uri> = if !settings.api_servers.is_empty() {
            let texts = settings.api_servers.iter();
            texts
                .map(|text| parse("--api-servers", text))
                .collect::<anyhow::Result<_>>()?
        } else if let Some(master) = &settings.master {
            vec![parse("--master", master)?]
        } else {
            let server = cluster.server.as_deref().unwrap_or_default();
            ensure!(!server.is_empty(), "its cluster has no server");
            vec![parse("server", server)?]
        };
        let credentials = Credentials::new(&user)?;
        let is_https = |url: &Uri| url.scheme_str() == Some("https");
        if urls.iter().any(is_https) && !matches!(credentials, Credentials::Exec(_)) {
            // What is no good now is told now.
            tls.config(None)?;
        }
        let environment = |name: &str| std::env::var(name).ok();
        let proxies = Proxies::new(cluster.proxy_url.as_deref(), environment, |problem| {
            warn!("{problem}");
        })?;
        let servers = urls.into_iter().map(|url| Server {
            proxy: proxies.of(&url).cloned(),
            url,
        });
        Ok(Self {
            servers: servers.collect(),
            tls,
            tls_server_name: cluster.tls_server_name.filter(|name| !name.is_empty()),
            credentials,
            headers: impersonation(&user)?,
        })
    }
}

fn from_kubeconfig(file: Kubeconfig) -> anyhow::Result<Target> {
    let name = file.current_context.context("it sets no current-context")?;
    let context = file
        .contexts
        .into_iter()
        .find(|context| context.name == name)
        .and_then(|context| context.context)
        .with_context(|| format!("there is no context {name:?}"))?;
    let cluster = file
        .clusters
        .into_iter()
        .find(|cluster| cluster.name == context.cluster)
        .and_then(|cluster| cluster.cluster)
        .with_context(|| format!("there is no cluster {:?}", context.cluster))?;
    // Go's clients go on as nobody if the user is missing.
    let mut user = file
        .auth_infos
        .into_iter()
        .find(|user| Some(&user.name) == context.user.as_ref())
        .and_then(|user| user.auth_info)
        .unwrap_or_default();
    if let Some(exec) = user.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        exec.cluster = Some((&cluster).try_into()?);
    }
    Ok(Target {
        cluster,
        user,
        ca_file: None,
    })
}

fn in_cluster() -> anyhow::Result<Target> {
    let config = kube::Config::incluster().context(
        "this is not a pod, so there is no in-cluster configuration; \
         give --kubeconfig, --config or --manifests",
    )?;
    let cluster = Cluster {
        server: Some(config.cluster_url.to_string()),
        ..Cluster::default()
    };
    Ok(Target {
        cluster,
        user: config.auth_info,
        ca_file: config.root_cert_file,
    })
}

fn impersonation(user: &AuthInfo) -> anyhow::Result<Vec<(HeaderName, HeaderValue)>> {
    let mut headers = Vec::new();
    let mut add = |name: &str, value: &str| -> anyhow::Result<()> {
        let cannot_be_sent = || format!("{name}: {value:?} cannot be a header");
        headers.push((
            name.parse().with_context(cannot_be_sent)?,
            value.parse().with_context(cannot_be_sent)?,
        ));
        Ok(())
    };
    if let Some(name) = &user.impersonate {
        add("impersonate-user", name)?;
    }
    if let Some(uid) = &user.impersonate_uid {
        add("impersonate-uid", uid)?;
    }
    for group in user.impersonate_groups.iter().flatten() {
        add("impersonate-group", group)?;
    }
    for (key, values) in user.impersonate_user_extra.iter().flatten() {
        for value in values {
            add(&format!("impersonate-extra-{key}"), value)?;
        }
    }
    Ok(headers)
}
