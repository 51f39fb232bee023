//! A client for the API server, as kubeconfig, flags or the pod's own account say.

use std::path::Path;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tracing::info;

use crate::config::Settings;

/// Makes the client. Nothing is asked yet.
pub(crate) async fn client(settings: &Settings) -> anyhow::Result<kube::Client> {
    let mut config = match (&settings.kubeconfig, &settings.master) {
        (Some(path), _) => kubeconfig(path).await?,
        (None, Some(master)) => kube::Config::new(parse_url(master)?),
        (None, None) => {
            info!("neither kubeconfig nor master URL is given; using the in-cluster configuration");
            kube::Config::incluster().context(
                "this is not a pod, so there is no in-cluster configuration; \
                 give --kubeconfig, --config or --manifests",
            )?
        }
    };
    if let Some(master) = &settings.master {
        config.cluster_url = parse_url(master)?;
    }
    // The watches retry by themselves, and say so.
    config.default_retry = false;
    kube::Client::try_from(config).context("making a client for the API server")
}

async fn kubeconfig(path: &Path) -> anyhow::Result<kube::Config> {
    let file = Kubeconfig::read_from(path)
        .with_context(|| format!("reading kubeconfig {}", path.display()))?;
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("using kubeconfig {}", path.display()))
}

fn parse_url(master: &str) -> anyhow::Result<http::Uri> {
    // kube-proxy takes a bare host and port as well.
    let url = if master.contains("://") {
        master.to_owned()
    } else {
        format!("http://{master}")
    };
    url.parse()
        .with_context(|| format!("--master {master:?} is not a URL"))
}
