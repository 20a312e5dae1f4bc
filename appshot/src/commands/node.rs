//! The node that is asked: this one at its socket, or another one over TLS.

use crate::cli;
use libsnap::error::{Error, Kind, OrFail, Result};
use nodekit::args::Dirs;
use nodekit::client::Client;
use nodekit::out;
use nodekit::remote::{Remote, Trust};
use std::time::Duration;

const TOKEN_ENV: &str = "APPSHOT_TOKEN";
/// Before a daemon that has gone is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// A socket that is named is asked whatever the environment says.
pub fn is_elsewhere(node: &cli::Node) -> bool {
    node.socket.is_none() && node.api.is_some()
}

pub fn client(dirs: &Dirs, node: &cli::Node) -> Result<Client> {
    let Some(url) = node.api.as_ref().filter(|_| is_elsewhere(node)) else {
        return Ok(Client::new(dirs.socket(node.socket.clone(), "edgepointd")));
    };
    let token = match (&node.token_file, std::env::var(TOKEN_ENV)) {
        (Some(path), _) => {
            std::fs::read_to_string(path).or_fail(|| format!("cannot read the token of {}", path.display()))?
        }
        (None, Ok(token)) => token,
        (None, Err(_)) => {
            return Err(Error::new(Kind::Usage, format!("cannot ask {url}"))
                .because("there is no token")
                .fix(format!("--token-file, or the environment variable {TOKEN_ENV}")));
        }
    };
    let trust = match (&node.api_ca, &node.api_fingerprint) {
        (_, Some(fingerprint)) => Trust::Fingerprint(fingerprint),
        (Some(path), None) => Trust::Authority(path),
        (None, None) => Trust::System,
    };
    Remote::new(url, &token, &trust).map(Client::elsewhere)
}

/// Asks again where nobody answers any more, or not to the end: a daemon may be started again.
pub fn patiently<T>(ask: impl Fn() -> Result<T>) -> Result<T> {
    let mut told = false;
    loop {
        match ask() {
            Err(error) if [Kind::Unavailable, Kind::Failed].contains(&error.kind) => {
                if !told {
                    out::warn(&format!("{error}\n  it is tried again until Ctrl-C"));
                }
                told = true;
                std::thread::sleep(PAUSE);
            }
            answered => return answered,
        }
    }
}
