//! Credentials that a program hands out, as `users[].user.exec` of a kubeconfig says.
//!
//! The contract is `client.authentication.k8s.io`: the program learns what is asked in
//! `KUBERNETES_EXEC_INFO`, and prints an `ExecCredential`. Entry point: [`Exec::credential`].

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, ensure};
use http::HeaderValue;
use jiff::{SignedDuration, Timestamp};
use kube::config::ExecConfig;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::credentials::bearer;

/// A credential is renewed this long before it expires.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);

pub(super) struct Exec {
    config: ExecConfig,
    command: String,
    last: Mutex<Option<Arc<Credential>>>,
}

/// What the program printed.
#[derive(Debug)]
pub(super) struct Credential {
    pub(super) header: Option<HeaderValue>,
    /// Certificate and key in PEM.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    expires: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Printed {
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<Timestamp>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

impl Exec {
    pub(super) fn new(config: ExecConfig) -> anyhow::Result<Self> {
        let command = config.command.clone().filter(|command| !command.is_empty());
        Ok(Self {
            command: command.context("exec names no command")?,
            config,
            last: Mutex::default(),
        })
    }

    /// The credential that counts now; the program is run if there is none, or it has expired.
    pub(super) async fn credential(&self) -> anyhow::Result<Arc<Credential>> {
        let mut last = self.last.lock().await;
        if let Some(credential) = &*last
            && credential
                .expires
                .is_none_or(|expires| calendar_time() + MARGIN < expires)
        {
            return Ok(credential.clone());
        }
        let credential = self
            .run()
            .await
            .with_context(|| format!("credentials from {}", self.command))?;
        Ok(last.insert(Arc::new(credential)).clone())
    }

    /// Has the program run again when a credential is wanted.
    pub(super) async fn forget(&self) {
        *self.last.lock().await = None;
    }

    async fn run(&self) -> anyhow::Result<Credential> {
        let config = &self.config;
        let mut spec = json!({"interactive": false});
        if config.provide_cluster_info {
            spec["cluster"] = serde_json::to_value(&config.cluster)?;
        }
        let info = json!({
            "apiVersion": config.api_version,
            "kind": "ExecCredential",
            "spec": spec,
        });
        let mut command = tokio::process::Command::new(&self.command);
        command.args(config.args.iter().flatten());
        for variable in config.env.iter().flatten() {
            if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
                command.env(name, value);
            }
        }
        for name in config.drop_env.iter().flatten() {
            command.env_remove(name);
        }
        command
            .env("KUBERNETES_EXEC_INFO", info.to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await.context("running it")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{}: {}",
            output.status,
            complaint.lines().next().unwrap_or_default()
        );
        Credential::parse(&output.stdout)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "programs say when a credential expires by the calendar"
)]
fn calendar_time() -> Timestamp {
    Timestamp::now()
}

impl Credential {
    fn parse(printed: &[u8]) -> anyhow::Result<Self> {
        // Some print YAML, which JSON is.
        let printed: Printed =
            serde_norway::from_slice(printed).context("what it printed is no ExecCredential")?;
        let status = printed.status.context("what it printed has no status")?;
        let token = status.token.filter(|token| !token.is_empty());
        let header = token.map(|token| bearer(&token).context("its token"));
        let identity = status.client_certificate_data.zip(status.client_key_data);
        Ok(Self {
            header: header.transpose()?,
            identity: identity.map(|(cert, key)| (cert.into_bytes(), key.into_bytes())),
            expires: status.expiration_timestamp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(script: &str) -> Exec {
        let yaml = format!("{{command: sh, args: [-c, {}]}}", json!(script));
        Exec::new(serde_norway::from_str(&yaml).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_program_is_asked_again_once_its_token_expires_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        let script = |expires: &str| {
            format!(
                "echo x >> {0}; echo '{{\"status\": {{\"token\": \"t'$(wc -l < {0})'\"{1}}}}}'",
                runs.display(),
                expires
            )
        };
        let token = async |exec: &Exec| {
            let credential = exec.credential().await.unwrap();
            let header = credential.header.clone().unwrap();
            header.to_str().unwrap().to_owned()
        };
        let lasting = exec(&script(""));
        assert_eq!(token(&lasting).await, "Bearer t1");
        assert_eq!(token(&lasting).await, "Bearer t1");
        lasting.forget().await;
        assert_eq!(token(&lasting).await, "Bearer t2");
        let expiring = exec(&script(
            ", \"expirationTimestamp\": \"2020-01-01T00:00:00Z\"",
        ));
        assert_eq!(token(&expiring).await, "Bearer t3");
        assert_eq!(token(&expiring).await, "Bearer t4");
    }

    #[tokio::test]
    async fn failures_name_the_program() {
        for script in [
            "exit 3",
            "echo no",
            "echo '{}'",
            "echo 'status: {token: \"a\\u0001b\"}'",
        ] {
            let error = exec(script).credential().await.unwrap_err();
            assert!(format!("{error:#}").contains("from sh"), "{error:#}");
        }
    }
}
