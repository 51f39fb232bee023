//! Who we are to the API server: the headers that say so.
//!
//! Token files are read for every request, which are few: what rotates is never out of date.
//! Entry point: [`Credentials::header`].

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use kube::config::AuthInfo;
use secrecy::ExposeSecret;
use tracing::warn;

use super::exec::Exec;

/// Where the header `Authorization` comes from.
pub(super) enum Credentials {
    /// There is none; a client certificate may do.
    None,
    Fixed(HeaderValue),
    TokenFile(TokenFile),
    /// A program hands out tokens, or certificates.
    Exec(Box<Exec>),
}

impl Credentials {
    /// Takes what a kubeconfig says, and reads the token file once.
    pub(super) fn new(user: &AuthInfo) -> anyhow::Result<Self> {
        if let Some(provider) = &user.auth_provider {
            bail!(
                "the auth-provider {:?} is not supported; use exec instead",
                provider.name
            );
        }
        let token = user.token.as_ref().map(ExposeSecret::expose_secret);
        let token = token.filter(|token| !token.is_empty());
        if let Some(path) = user.token_file.as_ref().filter(|path| !path.is_empty()) {
            return TokenFile::new(path.into(), token).map(Self::TokenFile);
        }
        if let Some(token) = token {
            return bearer(token).context("token").map(Self::Fixed);
        }
        if let Some(name) = user.username.as_ref().filter(|name| !name.is_empty()) {
            let password = user.password.as_ref().map_or("", |p| p.expose_secret());
            let text = BASE64_STANDARD.encode(format!("{name}:{password}"));
            return sensitive(format!("Basic {text}"))
                .context("username")
                .map(Self::Fixed);
        }
        if let Some(exec) = &user.exec {
            return Ok(Self::Exec(Box::new(Exec::new(exec.clone())?)));
        }
        Ok(Self::None)
    }

    /// The value of `Authorization`, as of now.
    pub(super) async fn header(&self) -> anyhow::Result<Option<HeaderValue>> {
        Ok(match self {
            Self::None => None,
            Self::Fixed(value) => Some(value.clone()),
            Self::TokenFile(file) => Some(file.header()),
            Self::Exec(exec) => exec.credential().await?.header.clone(),
        })
    }

    /// The server does not know us: what may have changed is fetched anew with the next request.
    /// Whether there is something that may.
    pub(super) async fn refused(&self) -> bool {
        match self {
            Self::None | Self::Fixed(_) => false,
            Self::TokenFile(_) => true,
            Self::Exec(exec) => {
                exec.forget().await;
                true
            }
        }
    }
}

/// A file with a token, and the last good one that was in it.
pub(super) struct TokenFile {
    path: PathBuf,
    last: Mutex<Last>,
}

struct Last {
    header: HeaderValue,
    /// Why the file is no good now, as it was logged.
    problem: Option<String>,
}

impl TokenFile {
    /// `inline` stands in until the file can be read.
    fn new(path: PathBuf, inline: Option<&str>) -> anyhow::Result<Self> {
        let header = match (read(&path), inline) {
            (Ok(header), _) => header,
            (Err(_), Some(token)) => bearer(token).context("token")?,
            (Err(error), None) => return Err(error),
        };
        let problem = None;
        let last = Mutex::new(Last { header, problem });
        Ok(Self { path, last })
    }

    fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.path) {
            Ok(header) => {
                last.header = header;
                last.problem = None;
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if last.problem.as_ref() != Some(&problem) {
                    warn!("{problem}; the last good token stays in use");
                }
                last.problem = Some(problem);
            }
        }
        last.header.clone()
    }
}

fn read(path: &PathBuf) -> anyhow::Result<HeaderValue> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading token file {}", path.display()))?;
    let token = text.trim();
    ensure!(!token.is_empty(), "token file {} is empty", path.display());
    bearer(token).with_context(|| format!("token file {}", path.display()))
}

/// The header for a token.
pub(super) fn bearer(token: &str) -> anyhow::Result<HeaderValue> {
    sensitive(format!("Bearer {token}"))
}

fn sensitive(text: String) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| anyhow::anyhow!("it has characters that no HTTP header can carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(yaml: &str) -> AuthInfo {
        serde_norway::from_str(yaml).unwrap()
    }

    async fn header(credentials: &Credentials) -> String {
        let header = credentials.header().await.unwrap().unwrap();
        assert!(header.is_sensitive());
        header.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn token_files_are_trimmed_and_followed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("tok\r\n");
        let user = user(&format!("tokenFile: {}\ntoken: other", path.display()));
        let credentials = Credentials::new(&user).unwrap();
        assert_eq!(header(&credentials).await, "Bearer tok");
        write("next\n");
        assert_eq!(header(&credentials).await, "Bearer next");
        for bad in ["", " \n", "a\nb\n"] {
            write(bad);
            assert_eq!(header(&credentials).await, "Bearer next");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(header(&credentials).await, "Bearer next");
    }

    #[test]
    fn what_cannot_be_sent_is_named_without_its_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = format!("tokenFile: {}", file.path().display());
        for (yaml, culprit) in [
            ("token: \"s3cret\\n\"", "token"),
            ("tokenFile: /nonexistent/token", "/nonexistent/token"),
            (&empty, "is empty"),
            ("auth-provider: {name: gcp, config: {}}", "gcp"),
        ] {
            let error = Credentials::new(&user(yaml)).err().unwrap();
            let error = format!("{error:#}");
            assert!(error.contains(culprit), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn names_and_passwords_are_basic() {
        let credentials = Credentials::new(&user("{username: a, password: b}")).unwrap();
        assert_eq!(header(&credentials).await, "Basic YTpi");
        let none = Credentials::new(&user("{}")).unwrap();
        assert!(none.header().await.unwrap().is_none());
    }
}
