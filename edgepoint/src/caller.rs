//! Who asks: root, at the Unix socket, or a provider with a token, from anywhere.
//!
//! A provider sees and touches its own apps. Of others it does not learn that they are there,
//! but for one thing: names, addresses and routes that are taken are refused.

use crate::manifest::Manifest;
use crate::node::Node;
use axum::Extension;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use control::Provider;
use libsnap::error::{Error, Kind, Result};
use nodekit::args::User;
use nodekit::reply::Failure;

#[derive(Clone, Debug)]
pub enum Caller {
    Root,
    Provider(Provider),
}

impl Caller {
    /// Whether apps of this provider are its business.
    pub fn sees(&self, provider: &str) -> bool {
        self.only().is_none_or(|own| own == provider)
    }

    /// The provider whose apps it sees, where it does not see all.
    pub fn only(&self) -> Option<&str> {
        match self {
            Caller::Root => None,
            Caller::Provider(provider) => Some(&provider.name),
        }
    }

    /// What it is told of an app of this provider.
    pub fn calls(&self, app: &str, provider: &str) -> String {
        match self.sees(provider) {
            true => format!("app {app}"),
            false => "an app of somebody else".to_owned(),
        }
    }

    /// Who it is, for the log of events.
    pub fn name(&self) -> &str {
        self.only().unwrap_or("root")
    }

    /// What it may deploy: apps of its own, that run as whom they may.
    pub fn may_deploy(&self, manifest: &mut Manifest) -> Result<()> {
        let Caller::Provider(provider) = self else {
            return Ok(());
        };
        let refused = |because: String| {
            Error::refused(format!("cannot deploy {}", manifest.app))
                .because(because)
                .state("nothing was changed")
        };
        if manifest.provider != provider.name && !manifest.is_local() {
            return Err(refused(format!(
                "it is of provider {}, and you are {}",
                manifest.provider, provider.name
            ))
            .fix("leave provider out of the manifest"));
        }
        let allowed = || provider.users.join(", ");
        let user = match &manifest.start.user {
            None => provider.users.first().cloned(),
            Some(wanted) => {
                let parse = |text: &str| text.parse::<User>().ok();
                let same = |user: &&String| parse(user).is_some() && parse(user) == parse(wanted);
                provider.users.iter().find(same).cloned()
            }
        };
        let Some(user) = user else {
            return Err(refused("it may not run as this user".to_owned())
                .needs(format!("start.user to be one of: {}", allowed()))
                .fix("name one of these, or have the node's owner allow more: `appshot provider allow`"));
        };
        manifest.start.user = Some(user);
        manifest.provider.clone_from(&provider.name);
        Ok(())
    }
}

/// What is the node's.
pub async fn root_only(
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    match caller {
        Caller::Root => Ok(next.run(request).await),
        Caller::Provider(_) => Err(Failure(
            Error::refused("this is for the node's owner").fix("ask at the node's Unix socket"),
        )),
    }
}

/// Apps of others are not there.
pub async fn own_only(
    State(node): State<Node>,
    Extension(caller): Extension<Caller>,
    params: RawPathParams,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let app = params
        .iter()
        .find(|(key, _)| *key == "name")
        .map(|(_, app)| app.to_owned());
    if let Some(app) = app
        && let Some(provider) = node.provider_of(&app)
        && !caller.sees(&provider)
    {
        let would_be_made = request.method() == Method::PUT && path.as_str() == "/v1/apps/{name}";
        return Err(Failure(match would_be_made {
            true => Error::new(Kind::Conflict, format!("cannot deploy {app}"))
                .because("the name is taken on this node")
                .fix("name it otherwise")
                .state("nothing was changed"),
            false => node.unknown(&app, &caller),
        }));
    }
    Ok(next.run(request).await)
}
