//! A daemon that is elsewhere: asked over TCP with TLS, and with a token.
//!
//! Whoever answers must be known: by a certificate authority (those of the system, or of a
//! file), or, where nobody vouches for it, by the fingerprint of its certificate. What is
//! neither gets no token.

use crate::client::converse;
use crate::fingerprint;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use libsnap::error::{Error, Kind, OrFail, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where Debian has those of the system (ca-certificates(7)).
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";
const CONNECT: Duration = Duration::from_secs(10);

/// How whoever answers is known.
#[derive(Clone, Debug)]
pub enum Trust<'a> {
    System,
    /// Certificates in a PEM file.
    Authority(&'a Path),
    Fingerprint(&'a str),
}

pub struct Remote {
    host: String,
    port: u16,
    tls: TlsConnector,
    token: HeaderValue,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not its token.
        write!(f, "Remote({}:{})", self.host, self.port)
    }
}

impl Remote {
    pub fn new(url: &str, token: &str, trust: &Trust<'_>) -> Result<Remote> {
        let wrong = |because: &str| {
            Error::new(Kind::Usage, format!("cannot ask {url}"))
                .because(because)
                .fix("https://HOST:PORT, as `edgepointd --api` tells it")
        };
        let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong(
                "it does not begin with https://: a token is not sent in the clear",
            ));
        }
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(wrong("it has a path"));
        }
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| wrong("it names no host"))?;
        let token = token.trim();
        let mut header: HeaderValue = format!("Bearer {token}")
            .parse()
            .ok()
            .filter(|_| !token.is_empty() && !token.contains(char::is_whitespace))
            .ok_or_else(|| {
                Error::new(Kind::Usage, format!("cannot ask {url}"))
                    .because("the token is empty, or no token")
                    .fix("one line, as `appshot provider add` has told it")
            })?;
        header.set_sensitive(true);
        Ok(Remote {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(443),
            tls: TlsConnector::from(Arc::new(config(trust)?)),
            token: header,
        })
    }

    /// One request and its answer.
    pub async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
        let Remote { host, port, .. } = self;
        let unreachable = |because: &dyn std::fmt::Display| {
            Error::new(Kind::Unavailable, format!("cannot reach the node at {host}:{port}")).because(because)
        };
        let name = ServerName::try_from(host.clone()).map_err(|error| unreachable(&error))?;
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let authority = authority.parse().or_fail(|| "cannot write the request")?;
        request.headers_mut().insert(HOST, authority);
        request.headers_mut().insert(AUTHORIZATION, self.token.clone());
        let connect = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await;
            let stream =
                stream.map_err(|error| unreachable(&error).fix("is it the right URL, and edgepointd there?"))?;
            self.tls.connect(name, stream).await.map_err(|error| {
                unreachable(&error).fix("name its certificate: --api-fingerprint, or --api-ca with a file")
            })
        };
        let connected = tokio::time::timeout(CONNECT, connect).await;
        let stream = connected.map_err(|_| unreachable(&"it does not answer in time"))??;
        converse(stream, request).await.map_err(|error| match error.because {
            Some(because) => unreachable(&because),
            None => error,
        })
    }
}

fn config(trust: &Trust<'_>) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone());
    let config = config
        .with_safe_default_protocol_versions()
        .or_fail(|| "cannot speak TLS")?;
    let (path, fix) = match trust {
        Trust::Fingerprint(text) => {
            let wanted = fingerprint::parse(text)
                .map_err(|because| Error::new(Kind::Usage, format!("cannot know {text}")).because(because))?;
            let verifier = Arc::new(Pinned { wanted, provider });
            let config = config.dangerous().with_custom_certificate_verifier(verifier);
            return Ok(config.with_no_client_auth());
        }
        Trust::Authority(path) => (*path, "name a PEM file"),
        Trust::System => (
            Path::new(SYSTEM),
            "install ca-certificates, or name the certificate: --api-fingerprint, or --api-ca with a file",
        ),
    };
    let what = || format!("cannot take the certificates of {}", path.display());
    let wrong = |because: &dyn std::fmt::Display| Error::failed(what()).because(because).fix(fix);
    let text = std::fs::read(path).map_err(|error| wrong(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        let added = roots.add(certificate);
        // The system may have some that are of no use.
        if !matches!(trust, Trust::System) {
            added.map_err(|error| wrong(&error))?;
        }
    }
    match roots.is_empty() {
        true => Err(wrong(&"there is none in it")),
        false => Ok(config.with_root_certificates(roots).with_no_client_auth()),
    }
}

/// Takes the one certificate that was told of, and no other; whoever shows it must have its
/// key, as ever.
#[derive(Debug)]
struct Pinned {
    wanted: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = fingerprint::of(certificate);
        match shown == self.wanted {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General(format!("it shows another certificate: {shown}"))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
