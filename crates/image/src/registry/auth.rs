//! Answering a registry's challenge: basic authentication, or a token from its token service.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;

use super::{Client, RegistryError, read_bounded};
use crate::credentials::Credentials;

/// Largest answer of a token service (guess: tokens have some kilobytes).
const MAX_TOKEN_BYTES: u64 = 256 * 1024;

/// A challenge that we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Client {
    /// The `Authorization` that answers one of these challenges.
    pub(super) async fn answer(
        &self,
        challenges: &[HeaderValue],
    ) -> Result<HeaderValue, RegistryError> {
        let parsed: Vec<Challenge> =
            challenges.iter().filter_map(|value| value.to_str().ok()).filter_map(parse).collect();
        let bearer = parsed.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        match (bearer.or(parsed.first()), &self.credentials) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                self.token(realm, service.as_deref()).await
            }
            (Some(Challenge::Basic), Some(credentials)) => basic(credentials),
            _ => Err(self.unauthorized("it wants to know who asks")),
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
    ) -> Result<HeaderValue, RegistryError> {
        let mut url = Url::parse(realm).map_err(|error| RegistryError::Protocol {
            detail: format!("its token service's address: {error}"),
        })?;
        self.check_url(&url).map_err(|detail| RegistryError::Protocol {
            detail: format!("its token service leads {detail}"),
        })?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:pull", self.repository));
        }
        let mut request = self.http.get(url.clone());
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, basic(credentials)?);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&url, &error))?;
        let status = response.status();
        if matches!(status.as_u16(), 401 | 403) {
            return Err(self.unauthorized("its token service refuses"));
        }
        // Redirects too: credentials were sent, and must not travel on.
        if !status.is_success() {
            return Err(RegistryError::Status {
                registry: self.registry.clone(),
                status: status.as_u16(),
                detail: "from its token service".to_owned(),
            });
        }
        let body = read_bounded(response, MAX_TOKEN_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| {
            RegistryError::Protocol { detail: "its token service's answer is no JSON".to_owned() }
        })?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| RegistryError::Protocol {
            detail: "its token service gives no token".to_owned(),
        })?;
        secret(&format!("Bearer {token}"))
    }

    fn unauthorized(&self, detail: &str) -> RegistryError {
        RegistryError::Unauthorized {
            registry: self.registry.clone(),
            known: self.credentials.is_some(),
            detail: detail.to_owned(),
        }
    }
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, RegistryError> {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    secret(&format!("Basic {}", STANDARD.encode(pair)))
}

fn secret(text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| RegistryError::Protocol {
        detail: "a token with control characters".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Parses `Bearer realm="...",service="..."`. Several challenges in one header are not read beyond the first: registries send one.
fn parse(header: &str) -> Option<Challenge> {
    let (scheme, parameters) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    let mut rest = parameters;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match name.trim_matches([',', ' ']) {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = next;
    }
    Some(Challenge::Bearer { realm: realm?, service })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        let header = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        assert_eq!(parse(header), bearer("https://auth.example/token", Some("r.example")));
        assert_eq!(parse("bearer  scope=\"a,b\" , realm=https://x/ "), bearer("https://x/ ", None));
        assert_eq!(parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        for header in ["", "Negotiate", "Bearer", "Bearer service=\"x\"", "Bearer realm=\"unclosed"]
        {
            assert_eq!(parse(header), None, "{header}");
        }
    }
}
