//! TLS of the HTTP entry: rustls with ring, which need neither cmake nor a C library of the host.
//!
//! One PEM file holds the certificate, its chain and its key. It is read again after it has
//! changed; one that cannot be read then leaves the former in its place.

use libsnap::error::{Error, OrFail, Result};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio_rustls::TlsAcceptor;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// What clients are shown, whatever name they ask for.
#[derive(Debug)]
pub struct Certificate {
    path: PathBuf,
    now: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Certificate {
    /// Refuses a file without a certificate, without a key, and with the key of another.
    pub fn read(path: &Path) -> Result<Arc<Certificate>> {
        let now = RwLock::new(Arc::new(read(path)?));
        let path = path.to_owned();
        Ok(Arc::new(Certificate { path, now }))
    }

    /// SHA-256 of the certificate itself, by which a client can know it.
    pub fn fingerprint(&self) -> String {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner).clone();
        nodekit::fingerprint::of(now.cert.first().map_or(&[], |first| first.as_ref()))
    }

    /// For these protocols.
    pub fn acceptor(self: &Arc<Certificate>, protocols: &[&[u8]]) -> Result<TlsAcceptor> {
        let failed = || "cannot offer TLS";
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().or_fail(failed)?;
        let mut config = config.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reads it again whenever it has changed.
    pub async fn follow(self: Arc<Certificate>) {
        let mut before = changed(&self.path);
        loop {
            tokio::time::sleep(LOOK).await;
            let now = changed(&self.path);
            if now == before {
                continue;
            }
            before = now;
            match read(&self.path) {
                Ok(read) => {
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
                    tracing::info!(path = %self.path.display(), "another certificate");
                }
                Err(error) => tracing::error!(%error, "the certificate stays as it was"),
            }
        }
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|meta| meta.modified()).ok()
}

fn read(path: &Path) -> Result<CertifiedKey> {
    let what = || format!("cannot take the certificate of {}", path.display());
    let wrong = |because: &dyn std::fmt::Display| {
        Error::failed(what())
            .because(because)
            .needs("one PEM file with the certificate, its chain and its key")
    };
    let text = std::fs::read(path).or_fail(what)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| wrong(&error))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls.pem");
        assert!(Certificate::read(&path).is_err());
        for text in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Certificate::read(&path).unwrap_err();
            assert!(error.to_string().contains("PEM"), "{error}");
        }
    }
}
