//! TLS settings, made anew when the files they come from change.
//!
//! Entry point: [`Tls::config`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kube::config::{AuthInfo, Cluster};
use secrecy::ExposeSecret;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, RootCertStore, SignatureScheme,
};
use tracing::warn;

/// The protocols that are offered, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where the certificates are, and what they last came to.
pub(super) struct Tls {
    /// None means those of this host.
    ca: Option<Source>,
    /// The client's certificate and its key.
    identity: Option<(Source, Source)>,
    is_insecure: bool,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    good: Option<(Material, Arc<ClientConfig>)>,
    /// What is wrong with the files now, as it was logged.
    problem: Option<String>,
}

/// PEM, or a file of it.
enum Source {
    Data(Vec<u8>),
    File(PathBuf),
}

/// What was read.
#[derive(PartialEq)]
struct Material {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Source {
    fn new(name: &str, data: Option<&str>, file: Option<&str>) -> anyhow::Result<Option<Self>> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let bytes = BASE64_STANDARD.decode(data.trim());
            return Ok(Some(Self::Data(
                bytes.with_context(|| format!("{name}-data is not base64"))?,
            )));
        }
        let file = file.filter(|file| !file.is_empty());
        Ok(file.map(|file| Self::File(file.into())))
    }

    fn read(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Data(bytes) => Ok(bytes.clone()),
            Self::File(path) => {
                std::fs::read(path).with_context(|| format!("reading {name} {}", path.display()))
            }
        }
    }
}

impl Tls {
    /// Takes what a kubeconfig says.
    pub(super) fn new(
        cluster: &Cluster,
        ca_file: Option<&Path>,
        user: &AuthInfo,
    ) -> anyhow::Result<Self> {
        let ca_file = ca_file.and_then(Path::to_str);
        let ca = Source::new(
            "certificate-authority",
            cluster.certificate_authority_data.as_deref(),
            ca_file.or(cluster.certificate_authority.as_deref()),
        )?;
        let certificate = Source::new(
            "client-certificate",
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_deref(),
        )?;
        let key = user.client_key_data.as_ref();
        let key = Source::new(
            "client-key",
            key.map(ExposeSecret::expose_secret),
            user.client_key.as_deref(),
        )?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => bail!("there is a client-certificate and no client-key"),
            (None, Some(_)) => bail!("there is a client-key and no client-certificate"),
        };
        Ok(Self {
            ca,
            identity,
            is_insecure: cluster.insecure_skip_tls_verify.unwrap_or(false),
            last: Mutex::default(),
        })
    }

    /// Whether there is a setting that only TLS has a use for.
    pub(super) fn is_configured(&self) -> bool {
        self.ca.is_some() || self.identity.is_some() || self.is_insecure
    }

    /// The settings as of now; the same as last time if nothing changed. Files that are no good
    /// leave the last good settings in use.
    pub(super) fn config(
        &self,
        exec_identity: Option<&(Vec<u8>, Vec<u8>)>,
    ) -> anyhow::Result<Arc<ClientConfig>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = self
            .read(exec_identity)
            .and_then(|material| match &last.good {
                Some((known, config)) if *known == material => Ok((material, config.clone())),
                _ => client_config(&material, self.is_insecure).map(|config| (material, config)),
            });
        match fresh {
            Ok((material, config)) => {
                last.problem = None;
                last.good = Some((material, config.clone()));
                Ok(config)
            }
            Err(error) => {
                let Some((_, config)) = last.good.as_ref() else {
                    return Err(error);
                };
                let config = config.clone();
                let problem = format!("{error:#}");
                if last.problem.as_ref() != Some(&problem) {
                    warn!("{problem}; the last good certificates stay in use");
                }
                last.problem = Some(problem);
                Ok(config)
            }
        }
    }

    fn read(&self, exec_identity: Option<&(Vec<u8>, Vec<u8>)>) -> anyhow::Result<Material> {
        let ca = self.ca.as_ref();
        let identity = self.identity.as_ref().map(|(certificate, key)| {
            anyhow::Ok((
                certificate.read("client-certificate")?,
                key.read("client-key")?,
            ))
        });
        Ok(Material {
            ca: ca.map(|ca| ca.read("certificate-authority")).transpose()?,
            identity: identity.transpose()?.or_else(|| exec_identity.cloned()),
        })
    }
}

fn client_config(material: &Material, is_insecure: bool) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?;
    let builder = if is_insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerifier(provider.clone())))
    } else {
        builder.with_root_certificates(roots(material.ca.as_deref())?)
    };
    let mut config = match &material.identity {
        Some((certificate, key)) => {
            builder.with_client_cert_resolver(identity(certificate, key, &provider)?)
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

/// The authorities that may vouch for the server: those given, or else those of this host.
fn roots(ca: Option<&[u8]>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = ca else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        ensure!(
            !roots.is_empty(),
            "no certificate authority is given, and this host has none"
        );
        return Ok(roots);
    };
    let certificates = certificates("certificate-authority", pem)?;
    let (n_good, _) = roots.add_parsable_certificates(certificates);
    ensure!(n_good > 0, "certificate-authority holds nothing to trust");
    Ok(roots)
}

fn certificates(name: &str, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates =
        certificates.map_err(|error| anyhow::anyhow!("{name} is not PEM: {error}"))?;
    ensure!(!certificates.is_empty(), "{name} holds no certificate");
    Ok(certificates)
}

/// The certificate that we show. It is for the server to judge: as we need nothing of it but its
/// bytes, X.509 v1 will do, which MicroK8s and plain `openssl x509 -req` issue.
fn identity(
    certificate: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> anyhow::Result<Arc<dyn ResolvesClientCert>> {
    let chain = certificates("client-certificate", certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| anyhow::anyhow!("client-key holds no private key: {error}"))?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .context("client-key is of no kind that can be used")?;
    let identity = CertifiedKey::new(chain, key);
    if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = identity.keys_match() {
        bail!("client-key is not that of client-certificate");
    }
    Ok(Arc::new(SingleCertAndKey::from(identity)))
}

/// Takes any certificate, as `insecure-skip-tls-verify` asks for.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
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
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Settings for a proxy that is spoken to by TLS: this host's authorities, and HTTP/1.
pub(super) fn for_proxies() -> anyhow::Result<Arc<ClientConfig>> {
    let material = Material {
        ca: None,
        identity: None,
    };
    let config = client_config(&material, false)?;
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols.clear();
    Ok(Arc::new(config))
}
