//! Certificates for servers and clients of tests, made on the spot, and how a server uses them.
//!
//! It must not know what is served. Entry points: [`Authority`] and [`Tls`].

use std::sync::Arc;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its private key, both as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, with those that lead to its authority if need be.
    pub certificate: String,
    /// The private key in PKCS #8.
    pub key: String,
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("making the key of an authority")?;
        let mut params = CertificateParams::new([])?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .context("signing the certificate of an authority")?;
        Ok(Self {
            certificate: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The certificate of the authority as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The identity of a server with these DNS names and IP addresses.
    pub fn server(&self, names: &[&str]) -> anyhow::Result<Identity> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).context("reading the names of a server")?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// The identity of a client: its user name is the common name, its group the organization.
    pub fn client(&self, user: &str, group: &str) -> anyhow::Result<Identity> {
        let mut params = CertificateParams::new([])?;
        params.distinguished_name.push(DnType::CommonName, user);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> anyhow::Result<Identity> {
        let key = KeyPair::generate().context("making a key")?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("signing a certificate")?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// How a server does TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// What the server shows.
    pub identity: Identity,
    /// The certificate, as PEM, of the authority that clients are to trust.
    pub authority: String,
    /// Whether clients are to show certificates.
    pub clients: Clients,
    /// Whether HTTP/2 is offered besides HTTP/1.1.
    pub http2: bool,
}

/// Whether clients are to show certificates.
#[derive(Debug, Clone)]
pub enum Clients {
    /// They are not asked.
    NotAsked,
    /// They are asked and may decline; what they show must be of the authority with this
    /// certificate, as PEM.
    Asked(String),
    /// They must show one of the authority with this certificate, as PEM.
    Required(String),
}

impl Tls {
    /// A server at the loopback addresses, by a new authority, with HTTP/2, for any client.
    pub fn loopback() -> anyhow::Result<Self> {
        let authority = Authority::new()?;
        Ok(Self {
            identity: authority.server(&["localhost", "127.0.0.1", "::1"])?,
            authority: authority.certificate().to_owned(),
            clients: Clients::NotAsked,
            http2: true,
        })
    }

    pub(crate) fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("choosing versions of TLS")?;
        let builder = match &self.clients {
            Clients::NotAsked => builder.with_no_client_auth(),
            Clients::Asked(authority) => {
                let verifier = verifier(authority, provider)?.allow_unauthenticated();
                builder.with_client_cert_verifier(verifier.build()?)
            }
            Clients::Required(authority) => {
                builder.with_client_cert_verifier(verifier(authority, provider)?.build()?)
            }
        };
        let chain = certificates(&self.identity.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(self.identity.key.as_bytes())
            .context("reading the server's private key")?;
        let mut config = builder
            .with_single_cert(chain, key)
            .context("using the server's certificate")?;
        if self.http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn verifier(
    authority: &str,
    provider: Arc<CryptoProvider>,
) -> anyhow::Result<tokio_rustls::rustls::server::ClientCertVerifierBuilder> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots
            .add(certificate)
            .context("using the certificate of the clients' authority")?;
    }
    Ok(WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider,
    ))
}

fn certificates(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("reading certificates")
}
