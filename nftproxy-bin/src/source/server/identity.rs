//! Client certificates: presented as they are, and read anew when their files change.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tracing::warn;

/// Where one half of an identity is, in PEM.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Given(Vec<u8>),
    File(PathBuf),
}

impl Source {
    fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Given(pem) => Ok(pem.clone()),
            Self::File(path) => {
                fs::read(path).with_context(|| format!("reading {}", path.display()))
            }
        }
    }
}

/// A client certificate with its key.
///
/// Whether it is a good one is for the server to say: of version 1, which rustls does not take as a
/// client's, it is presented like any other.
#[derive(Debug)]
pub(super) struct Identity {
    certificate: Source,
    key: Source,
    provider: Arc<CryptoProvider>,
    /// What was read last, and what came of it.
    current: Mutex<(Vec<u8>, Arc<CertifiedKey>)>,
}

impl Identity {
    /// Reads an identity.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is not PEM, or the key is of a kind that is not supported.
    pub(super) fn new(
        certificate: Source,
        key: Source,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Self> {
        let (certificate_pem, key_pem) = (certificate.read()?, key.read()?);
        let certified = certified(&certificate_pem, &key_pem, provider)?;
        Ok(Self {
            certificate,
            key,
            provider: provider.clone(),
            current: Mutex::new(([certificate_pem, key_pem].concat(), certified)),
        })
    }

    /// Reads the files again; whether there is something new in them. What cannot be used is warned
    /// of, and the one before stays.
    pub(super) fn refresh(&self) -> bool {
        let read = || anyhow::Ok((self.certificate.read()?, self.key.read()?));
        let changed = read().and_then(|(certificate, key)| {
            let pem = [certificate.as_slice(), key.as_slice()].concat();
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.0 == pem {
                return Ok(false);
            }
            let certified = certified(&certificate, &key, &self.provider)?;
            *current = (pem, certified);
            Ok(true)
        });
        changed.unwrap_or_else(|error| {
            warn!("the client certificate cannot be used, and the one before is: {error:#}");
            false
        })
    }
}

fn certified(
    certificate: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> anyhow::Result<Arc<CertifiedKey>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .context("the client certificate is not PEM")?;
    ensure!(!chain.is_empty(), "the client certificate is not PEM");
    let key = PrivateKeyDer::from_pem_slice(key).context("the client key is not PEM")?;
    let Ok(key) = provider.key_provider.load_private_key(key) else {
        bail!("the client key is of a kind that is not supported");
    };
    let certified = CertifiedKey::new(chain, key);
    // Certificates of version 1 cannot be compared.
    if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) =
        certified.keys_match()
    {
        bail!("the client key does not belong to the client certificate");
    }
    Ok(Arc::new(certified))
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Some(current.1.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
