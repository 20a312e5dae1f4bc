//! Who asks: root, at the Unix socket, or a provider with a token, from anywhere.
//!
//! A provider sees and touches its own apps. Of others it does not learn that they are there,
//! but for one thing: names, addresses and routes that are taken are refused.

use crate::manifest::Manifest;
use crate::node::Node;
use crate::proxy::rules::Route;
use axum::Extension;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use control::{Control, Provider};
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

    /// The same as it is known now: a request may take its time, and what a provider may do
    /// is decided meanwhile.
    pub fn again(self, control: &Control) -> Result<Caller> {
        let Caller::Provider(before) = &self else {
            return Ok(self);
        };
        let gone = || Error::refused("you may not use this node").because("you are no provider of it any more");
        match control.provider(&before.name) {
            Ok(now) if now.created_unix_ms == before.created_unix_ms => Ok(Caller::Provider(now)),
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Err(gone().state("nothing was changed")),
        }
    }

    /// Whether a version may serve again that was deployed before: less may be allowed since.
    pub fn may_turn_to(&self, manifest: &Manifest) -> Result<()> {
        let mut judged = manifest.clone();
        // What says nothing was deployed by root, and runs as root.
        judged.start.user.get_or_insert_with(|| "root".to_owned());
        self.may_deploy(&mut judged)
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
        // Programs that run as root read files by their paths: whoever may lead these elsewhere
        // is root. And an appshot may be anybody's.
        let roots = [
            (!manifest.place.is_empty(), "[[place]] leads paths elsewhere"),
            (
                manifest.start.appshot.is_some(),
                "start.appshot names an appshot of the node",
            ),
        ];
        if let Some((_, because)) = roots.into_iter().find(|(is_roots, _)| *is_roots) {
            return Err(refused(format!("{because}, which is for the node's owner")).fix("leave it out"));
        }
        // The HTTP entry connects as root: a path could lead it to any socket of the node.
        let at_path = |route: &&Route| {
            let target = route.target(&manifest.listen);
            target.is_some_and(|listen| listen.unix.is_some())
        };
        if let Some(route) = manifest.route.iter().find(at_path) {
            let shown = format!("{}{}", route.host, route.path.as_str());
            return Err(refused(format!(
                "the route {shown} leads to a unix listener, which is for the node's owner"
            ))
            .fix("have the app listen at a TCP port of 127.0.0.1, and the route lead there"));
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTED: &str = "app = \"web\"\n[start]\ncommand = [\"web\"]\n[[listen]]\ntcp = \"127.0.0.1:80\"\n\
                          [[listen]]\nunix = \"/run/web.sock\"\n[[route]]\nhost = \"web.example\"\n";

    fn provider(users: &[&str]) -> Caller {
        Caller::Provider(Provider {
            name: "acme".to_owned(),
            users: users.iter().map(|user| (*user).to_owned()).collect(),
            created_unix_ms: 1,
            rotated_unix_ms: 1,
            quota: control::Quota::default(),
        })
    }

    #[test]
    fn routes_of_providers_lead_to_no_path() {
        let acme = provider(&["nobody"]);
        let mut manifest = Manifest::parse(ROUTED).unwrap();
        acme.may_deploy(&mut manifest).unwrap();
        let mut manifest = Manifest::parse(&format!("{ROUTED}to = \"/run/web.sock\"\n")).unwrap();
        Caller::Root.may_deploy(&mut manifest).unwrap();
        let error = acme.may_deploy(&mut manifest).unwrap_err();
        assert!(
            error.kind == Kind::Refused && error.to_string().contains("web.example/"),
            "{error}"
        );
    }

    #[test]
    fn what_is_the_owners_is_no_providers() {
        let acme = provider(&["nobody"]);
        for (text, told) in [
            (
                format!("{ROUTED}[[place]]\nat = \"/etc\"\nto = \"/tmp/etc\"\n"),
                "leads paths elsewhere",
            ),
            (
                ROUTED
                    .replace("command = [\"web\"]", "appshot = \"other\"")
                    .replace("[[listen]]\nunix = \"/run/web.sock\"\n", ""),
                "an appshot of the node",
            ),
        ] {
            let mut manifest = Manifest::parse(&text).unwrap();
            Caller::Root.may_deploy(&mut manifest).unwrap();
            let error = acme.may_deploy(&mut manifest).unwrap_err();
            assert!(
                error.kind == Kind::Refused && error.to_string().contains(told),
                "{error}"
            );
        }
    }

    #[test]
    fn who_is_allowed_less_turns_back_to_less() {
        let mut manifest = Manifest::parse(ROUTED).unwrap();
        provider(&["nobody"]).may_deploy(&mut manifest).unwrap();
        assert!(provider(&["root", "nobody"]).may_turn_to(&manifest).is_ok());
        assert!(provider(&["root"]).may_turn_to(&manifest).is_err());
        assert!(Caller::Root.may_turn_to(&manifest).is_ok());
        // As root deployed it.
        manifest.start.user = None;
        assert!(provider(&["nobody"]).may_turn_to(&manifest).is_err());
    }

    #[test]
    fn who_is_no_provider_any_more_may_do_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        let acme = Caller::Provider(
            control
                .add_provider("acme", vec!["root".to_owned()], control::Quota::default())
                .unwrap()
                .provider,
        );
        control.allow("acme", vec!["nobody".to_owned()]).unwrap();
        match acme.clone().again(&control).unwrap() {
            Caller::Provider(now) => assert_eq!(now.users, ["nobody"]),
            Caller::Root => panic!("it is root now"),
        }
        control.remove_provider("acme").unwrap();
        assert_eq!(acme.again(&control).unwrap_err().kind, Kind::Refused);
        assert!(Caller::Root.again(&control).is_ok());
    }
}
