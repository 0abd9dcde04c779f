//! Who we are to a registry: its challenge, a token for it, and where a login comes from.

use serde::Deserialize;
use ureq::Agent;

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

/// The `authorization` header that answers a challenge; `None` if the registry wants a login and there is none.
///
/// # Errors
/// What went wrong with the server of tokens, in words.
pub fn answer(agent: &Agent, challenge: &Challenge, login: Option<&str>) -> Result<Option<String>, String> {
    let basic = login.map(|login| format!("Basic {login}"));
    let Challenge::Bearer { realm, parameters } = challenge else { return Ok(basic) };
    let mut call = agent.get(realm);
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

/// The login for a registry, as the `Basic` scheme writes it: from the environment, else from docker's configuration.
pub fn login(registry: &str) -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(user), Some(password)) = (variable("HOB_REGISTRY_USER"), variable("HOB_REGISTRY_PASSWORD")) {
        return Some(base64(format!("{user}:{password}").as_bytes()));
    }
    let folder = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| format!("{home}/.docker")))?;
    let text = std::fs::read_to_string(format!("{folder}/config.json")).ok()?;
    docker_login(&text, registry)
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
}
