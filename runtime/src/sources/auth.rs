//! Who we are to a registry: its challenge, a token for it, and where a login comes from.

use serde::Deserialize;
use url::Url;

use super::web::{Agents, is_local, leads_here, shown};

/// Whose login `HOB_REGISTRY_USER` and `HOB_REGISTRY_PASSWORD` are.
const REGISTRY: &str = "HOB_REGISTRY";
const USER: &str = "HOB_REGISTRY_USER";
const PASSWORD: &str = "HOB_REGISTRY_PASSWORD";

/// What a registry asks for, from its `www-authenticate` header.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token, from a server of tokens.
    Bearer {
        /// Where tokens are.
        realm: String,
        /// For what: parameters of the request for one.
        parameters: Vec<(String, String)>,
    },
    /// The login itself.
    Basic,
}

impl Challenge {
    /// What the header says; `None` if that is nothing we can do.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        let at = parameters.iter().position(|(name, _)| name == "realm")?;
        let (_, realm) = parameters.remove(at);
        parameters.retain(|(name, _)| name == "service" || name == "scope");
        Some(Self::Bearer { realm, parameters })
    }
}

/// `a="b,c",d="e"`: commas within quotes separate nothing.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        parameters.push((name.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned()));
        text = after;
    }
    parameters
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The `authorization` header that answers a challenge of `registry`; `None` if it wants a login and there is none.
///
/// # Errors
/// What went wrong with the server of tokens, in words.
pub(crate) fn answer(
    agents: &Agents,
    registry: &Url,
    challenge: &Challenge,
    login: Option<&str>,
) -> Result<Option<String>, String> {
    let basic = login.map(|login| format!("Basic {login}"));
    let Challenge::Bearer { realm, parameters } = challenge else { return Ok(basic) };
    let place = token_server(realm, registry)?;
    let (mut call, realm) = (agents.of(&place).get(place.as_str()), shown(&place));
    for (name, value) in parameters {
        call = call.query(name, value);
    }
    if let Some(basic) = basic {
        call = call.header("authorization", basic);
    }
    let mut answer = call.call().map_err(|error| format!("{realm} does not answer: {error}"))?;
    if [401, 403].contains(&answer.status().as_u16()) {
        return Ok(None);
    }
    if !answer.status().is_success() {
        return Err(format!("{realm} answers {}", answer.status()));
    }
    let token: Token =
        answer.body_mut().read_json().map_err(|error| format!("{realm} answers with no token: {error}"))?;
    let token = token.token.or(token.access_token).ok_or_else(|| format!("{realm} answers with no token"))?;
    Ok(Some(format!("Bearer {token}")))
}

/// Where `registry` says that tokens are. A login goes there: not in the clear, and to this machine only if the registry is
/// on it too.
fn token_server(realm: &str, registry: &Url) -> Result<Url, String> {
    let mut url: Url = realm.parse().map_err(|_| format!("it names `{realm}` for tokens, which is no URL"))?;
    // A login that a server puts into an address is not ours.
    let _ = (url.set_username(""), url.set_password(None));
    let secure = url.scheme() == "https" || url.origin() == registry.origin() || is_local(&url);
    match () {
        () if leads_here(&url) && !is_local(registry) => {
            Err(format!("it names {} for tokens, which is this machine itself", shown(&url)))
        }
        () if !secure => Err(format!("it names {} for tokens, which is not https", shown(&url))),
        () => Ok(url),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The login for a registry, as the `Basic` scheme writes it: from the environment, else from docker's configuration.
pub fn login(registry: &str) -> Option<String> {
    if let Some(login) = said_login(registry, &variable) {
        return Some(login);
    }
    let folder = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| format!("{home}/.docker")))?;
    let text = std::fs::read_to_string(format!("{folder}/config.json")).ok()?;
    docker_login(&text, &host(registry))
}

/// What the environment says, if it says it of this registry.
fn said_login(registry: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let theirs = host(&variable(REGISTRY)?) == host(registry);
    let (user, password) = (variable(USER)?, variable(PASSWORD)?);
    theirs.then(|| base64(format!("{user}:{password}").as_bytes()))
}

/// What to do when a registry wants a login, and was given none or one that it does not take.
pub fn way_in(registry: &str) -> String {
    way(&host(registry), &variable)
}

fn way(registry: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let said = variable(USER).and(variable(PASSWORD)).is_some();
    match variable(REGISTRY) {
        None if said => {
            format!(
                "{USER} and {PASSWORD} were not sent, because {REGISTRY} does not say whose they are: set it to {registry}"
            )
        }
        Some(other) if said && host(&other) != registry => {
            format!(
                "{USER} and {PASSWORD} are for {}, as {REGISTRY} says: set it to {registry}, or log in with docker",
                host(&other)
            )
        }
        _ => format!("set {REGISTRY}={registry}, {USER} and {PASSWORD}, or log in with docker"),
    }
}

/// A registry by the name that logins to it are kept under, however it is written.
fn host(registry: &str) -> String {
    let host = registry.trim().split_once("://").map_or(registry.trim(), |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "docker.io" | "registry-1.docker.io" => "index.docker.io".into(),
        _ => host,
    }
}

/// Logins that docker keeps in its own file; those in a keychain are out of reach.
fn docker_login(text: &str, registry: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_str(text).ok()?;
    let hosts = [registry.to_owned(), format!("https://{registry}"), format!("https://{registry}/v1/")];
    hosts.iter().find_map(|host| Some(config["auths"][host]["auth"].as_str()?.to_owned()))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().chain([&0, &0]).take(3).fold(0_usize, |word, byte| word << 8 | usize::from(*byte));
        for n in 0..4 {
            let digit = ALPHABET[word >> (18 - 6 * n) & 63];
            text.push(if n <= three.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let header = r#"Bearer realm="https://auth.x/token",service="x",scope="repository:a/b:pull,push",error="y""#;
        let parameters = vec![("service".into(), "x".into()), ("scope".into(), "repository:a/b:pull,push".into())];
        assert_eq!(
            Challenge::parse(header),
            Some(Challenge::Bearer { realm: "https://auth.x/token".into(), parameters })
        );
        assert_eq!(Challenge::parse("basic realm=\"x\""), Some(Challenge::Basic));
        for bad in ["", "Bearer", "Bearer service=\"x\"", "Negotiate", "Bearer realm", "Bearer \"=\"="] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn logins() {
        let known = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("user:pass", "dXNlcjpwYXNz")];
        for (plain, encoded) in known {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        let text = r#"{"auths":{"ghcr.io":{"auth":"QQ=="},"https://index.docker.io/v1/":{"auth":"Qg=="}}}"#;
        assert_eq!(docker_login(text, "ghcr.io").as_deref(), Some("QQ=="));
        assert_eq!(docker_login(text, "index.docker.io").as_deref(), Some("Qg=="));
        assert_eq!(docker_login(text, "other"), None);
        assert_eq!(docker_login("[", "other"), None);
    }

    fn environment(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_login_goes_to_the_registry_that_it_is_for() {
        let whose = environment(&[(USER, "u"), (PASSWORD, "p"), (REGISTRY, "https://GHCR.io/")]);
        assert_eq!(said_login("ghcr.io", &whose).as_deref(), Some("dTpw"));
        for other in ["evil.example", "ghcr.io:5000", "ghcr.io.evil.example"] {
            assert_eq!(said_login(other, &whose), None, "{other}");
        }
        assert!(way("evil.example", &whose).contains("are for ghcr.io"));
        let nobodys = environment(&[(USER, "u"), (PASSWORD, "p")]);
        assert_eq!(said_login("ghcr.io", &nobodys), None);
        assert!(
            way("ghcr.io", &nobodys).contains("were not sent")
                && way("ghcr.io", &nobodys).contains("set it to ghcr.io")
        );
        let docker = environment(&[(USER, "u"), (PASSWORD, "p"), (REGISTRY, "docker.io")]);
        assert!(said_login("registry-1.docker.io", &docker).is_some());
        assert!(way("ghcr.io", &environment(&[])).starts_with("set HOB_REGISTRY=ghcr.io, "));
    }

    #[test]
    fn tokens_are_where_a_login_may_go() {
        let server = |realm: &str, registry: &str| token_server(realm, &registry.parse().unwrap());
        for (realm, registry) in [
            ("https://auth.example/token", "https://ghcr.io/"),
            ("http://mirror.example:8080/token", "http://mirror.example:8080/v2/"),
            ("http://localhost:5001/token", "http://127.0.0.1:5000/"),
        ] {
            assert_eq!(server(realm, registry).unwrap().as_str(), realm);
        }
        for (realm, registry, why) in [
            ("http://auth.example/", "https://ghcr.io/", "not https"),
            ("http://auth.example/", "http://localhost:5000/", "not https"),
            ("https://localhost/", "https://ghcr.io/", "this machine"),
            ("http://127.0.0.1:2375/", "https://ghcr.io/", "this machine"),
            ("https://[::ffff:127.0.0.1]/", "https://ghcr.io/", "this machine"),
            ("token", "https://ghcr.io/", "no URL"),
        ] {
            assert!(server(realm, registry).unwrap_err().contains(why), "{realm}");
        }
        assert_eq!(server("https://u:p@a.example/", "https://b.example/").unwrap().as_str(), "https://a.example/");
    }
}
