//! Speaking to a registry: manifests and blobs of one repository, read only.
//!
//! A thin client of our own over reqwest: the registry is hostile, so that every answer is bounded before it is read, redirects are
//! followed by hand (credentials never leave the registry's origin), and a token is asked for only over TLS or on this machine.
//!
//! SOURCE: OCI distribution-spec 1.1; docs of distribution, "Token Authentication".

mod auth;
mod certificates;
mod error;
mod tags;

use std::path::Path;
use std::time::Duration;

use atoll_model::image_reference::{ImageReference, registry_is_loopback};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode, Url};

use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST};

pub use error::RegistryError;

/// A connection must stand after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most redirects of one request. SOURCE: what browsers and Go follow, halved.
const MAX_REDIRECTS: usize = 5;
/// How often a request for a manifest or configuration is repeated when that may help, and the pause before the first repetition.
const MAX_REPETITIONS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(250);
/// How much of an error's body is looked at.
const MAX_ERROR_BYTES: u64 = 8 * 1024;

/// How to reach registries.
pub(crate) struct ClientOptions<'a> {
    pub(crate) plain_http: bool,
    /// A connection on which nothing comes for this long is dead.
    pub(crate) idle_timeout: Duration,
    pub(crate) certificates_directory: &'a Path,
    pub(crate) credentials: Option<Credentials>,
}

/// One repository of one registry.
pub(crate) struct Client {
    http: reqwest::Client,
    registry: String,
    repository: String,
    base: Url,
    plain_http: bool,
    credentials: Option<Credentials>,
    /// What the registry accepted last: `Basic ...` or `Bearer ...`.
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

/// A manifest as the registry sent it.
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
}

/// A blob that is coming.
pub(crate) struct BlobStream {
    pub(crate) response: Response,
    /// The registry begins at the offset that was asked for; else at 0.
    pub(crate) resumed: bool,
}

impl Client {
    pub(crate) fn new(
        reference: &ImageReference,
        options: ClientOptions<'_>,
    ) -> Result<Self, RegistryError> {
        let registry = reference.registry().to_owned();
        if options.plain_http && !registry_is_loopback(&registry) {
            return Err(RegistryError::PlainHttp { registry });
        }
        // The name that everybody writes is not where Docker Hub's registry is.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { &registry };
        let scheme = if options.plain_http { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/"))
            .map_err(|error| RegistryError::Protocol { detail: error.to_string() })?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("atoll/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(options.idle_timeout)
            .https_only(!options.plain_http)
            .tls_certs_merge(certificates::load(options.certificates_directory, &registry)?)
            .build()
            .map_err(|error| RegistryError::Protocol { detail: error::chain(&error) })?;
        Ok(Self {
            http,
            registry,
            repository: reference.repository().to_owned(),
            base,
            plain_http: options.plain_http,
            credentials: options.credentials,
            authorization: tokio::sync::Mutex::new(None),
        })
    }

    /// Fetches a manifest or index by tag or digest. A digest is verified, and the registry's own word on it too.
    pub(crate) async fn manifest(
        &self,
        tag_or_digest: &str,
    ) -> Result<FetchedManifest, RegistryError> {
        let mut attempt = 0;
        loop {
            match self.manifest_once(tag_or_digest).await {
                Err(error) if error.is_transient() && attempt < MAX_REPETITIONS => attempt += 1,
                Err(RegistryError::NotFound { registry, name, .. })
                    if tag_or_digest.parse::<Digest>().is_err() =>
                {
                    let advice = Some(self.advice_without(tag_or_digest).await);
                    return Err(RegistryError::NotFound { registry, name, advice });
                }
                result => return result,
            }
            tokio::time::sleep(PAUSE * attempt).await;
        }
    }

    async fn manifest_once(&self, tag_or_digest: &str) -> Result<FetchedManifest, RegistryError> {
        let accept = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
        let headers = [(ACCEPT, accept)];
        let response = self.get(&format!("manifests/{tag_or_digest}"), &headers).await?;
        let response = self.expect(response, &[StatusCode::OK], tag_or_digest).await?;
        let promised = response.headers().get("docker-content-digest").cloned();
        let bytes = read_bounded(response, MAX_MANIFEST_BYTES).await?;
        let digest = Digest::of(&bytes);
        let promised =
            promised.as_ref().and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        for expected in [promised, tag_or_digest.parse().ok()].into_iter().flatten() {
            if expected != digest {
                return Err(RegistryError::Digest {
                    what: "the manifest".to_owned(),
                    expected,
                    actual: digest,
                });
            }
        }
        Ok(FetchedManifest { bytes, digest })
    }

    /// Fetches a small blob whole, and verifies it.
    pub(crate) async fn small_blob(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut attempt = 0;
        loop {
            match self.small_blob_once(digest, limit).await {
                Err(error) if error.is_transient() && attempt < MAX_REPETITIONS => attempt += 1,
                result => return result,
            }
            tokio::time::sleep(PAUSE * attempt).await;
        }
    }

    async fn small_blob_once(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let stream = self.blob(digest, 0).await?;
        let bytes = read_bounded(stream.response, limit).await?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            let what = "the image's configuration".to_owned();
            return Err(RegistryError::Digest { what, expected: digest.clone(), actual });
        }
        Ok(bytes)
    }

    /// Begins to fetch a blob, from `offset` on where the registry can.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let range = (RANGE, format!("bytes={offset}-"));
        let headers = if offset > 0 { std::slice::from_ref(&range) } else { &[] };
        let response = self.get(&format!("blobs/{digest}"), headers).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && offset > 0 {
            let response = self.get(&format!("blobs/{digest}"), &[]).await?;
            let response = self.expect(response, &[StatusCode::OK], &digest.to_string()).await?;
            return Ok(BlobStream { response, resumed: false });
        }
        let accepted = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let response = self.expect(response, &accepted, &digest.to_string()).await?;
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT;
        if resumed && !begins_at(&response, offset) {
            return Err(RegistryError::Protocol {
                detail: "it sent another part of a blob than was asked for".into(),
            });
        }
        Ok(BlobStream { response, resumed })
    }

    /// A request with whatever authorization the registry wants.
    async fn get(
        &self,
        path: &str,
        headers: &[(reqwest::header::HeaderName, String)],
    ) -> Result<Response, RegistryError> {
        let url = self
            .base
            .join(&format!("{}/{path}", self.repository))
            .map_err(|error| RegistryError::Protocol { detail: error.to_string() })?;
        let mut plain = HeaderMap::new();
        for (name, value) in headers {
            let value = HeaderValue::from_str(value)
                .map_err(|error| RegistryError::Protocol { detail: error.to_string() })?;
            plain.insert(name.clone(), value);
        }
        let used = self.authorization.lock().await.clone();
        let response = self.follow(url.clone(), &plain, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !same_origin(response.url(), &self.base)
        {
            return Ok(response);
        }
        let challenges: Vec<HeaderValue> =
            response.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect();
        drop(response);
        let fresh = self.authorize(&challenges, used.as_ref()).await?;
        self.follow(url, &plain, Some(&fresh)).await
    }

    /// Answers a challenge; what another request got meanwhile is taken.
    async fn authorize(
        &self,
        challenges: &[HeaderValue],
        used: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryError> {
        let mut authorization = self.authorization.lock().await;
        if let Some(newer) = authorization.as_ref()
            && Some(newer) != used
        {
            return Ok(newer.clone());
        }
        let fresh = self.answer(challenges).await?;
        *authorization = Some(fresh.clone());
        Ok(fresh)
    }

    /// Sends a request and follows redirects. Authorization goes to the registry's own origin only.
    async fn follow(
        &self,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut trusted = true;
        for _ in 0..=MAX_REDIRECTS {
            trusted = trusted && same_origin(&url, &self.base);
            let mut request = self.http.get(url.clone()).headers(headers.clone());
            if let Some(authorization) = authorization.filter(|_| trusted) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let response = request.send().await.map_err(|error| self.unreachable(&url, &error))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = self.redirect_target(&url, response.headers().get(LOCATION))?;
        }
        Err(RegistryError::Redirect { detail: format!("more than {MAX_REDIRECTS} in a row") })
    }

    fn redirect_target(
        &self,
        from: &Url,
        location: Option<&HeaderValue>,
    ) -> Result<Url, RegistryError> {
        let refused = |detail: String| RegistryError::Redirect { detail };
        let location = location.and_then(|value| value.to_str().ok()).unwrap_or_default();
        if location.is_empty() {
            return Err(refused("one without a target".to_owned()));
        }
        let target = from.join(location).map_err(|error| refused(error.to_string()))?;
        self.check_url(&target).map_err(refused)?;
        Ok(target)
    }

    /// What a registry may send us to: TLS, or plain HTTP on this machine when that was asked for. A registry elsewhere cannot make
    /// us speak to addresses of this machine or its link.
    fn check_url(&self, url: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        let local = registry_is_loopback(host);
        let scheme_is_good = match url.scheme() {
            "https" => true,
            "http" => self.plain_http && local,
            _ => false,
        };
        if !scheme_is_good {
            return Err(format!("to {}://{host}, which is not TLS", url.scheme()));
        }
        if !registry_is_loopback(&self.registry) && (local || is_link_local(host)) {
            return Err(format!("to {host}, an address of this machine"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("to {host}, with credentials in the address"));
        }
        Ok(())
    }

    fn unreachable(&self, url: &Url, error: &reqwest::Error) -> RegistryError {
        let host = authority(url).unwrap_or_else(|| self.registry.clone());
        RegistryError::no_answer(host, error)
    }

    /// Gives the response back when its status is one of these, else what it means.
    async fn expect(
        &self,
        response: Response,
        statuses: &[StatusCode],
        what: &str,
    ) -> Result<Response, RegistryError> {
        let status = response.status();
        if statuses.contains(&status) {
            return Ok(response);
        }
        let body = read_bounded(response, MAX_ERROR_BYTES).await.unwrap_or_default();
        let detail = error::printable(&body);
        Err(match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound {
                registry: self.registry.clone(),
                name: {
                    let separator = if what.parse::<Digest>().is_ok() { '@' } else { ':' };
                    format!("{}{separator}{what}", self.repository)
                },
                advice: None,
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
                registry: self.registry.clone(),
                known: self.credentials.is_some(),
                detail,
            },
            _ => RegistryError::Status {
                registry: self.registry.clone(),
                status: status.as_u16(),
                detail,
            },
        })
    }
}

/// Reads a body that must not be longer than `limit`.
pub(crate) async fn read_bounded(
    mut response: Response,
    limit: u64,
) -> Result<Vec<u8>, RegistryError> {
    let too_large = || RegistryError::TooLarge { limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| RegistryError::cut(&error))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Host and port, as people tell who was meant; without the port where the scheme says it.
fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin()
}

fn is_link_local(host: &str) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(address)) => address.is_link_local() || address.is_unspecified(),
        Ok(std::net::IpAddr::V6(address)) => {
            (address.segments()[0] & 0xffc0) == 0xfe80
                || address.is_unspecified()
                || address
                    .to_ipv4_mapped()
                    .is_some_and(|address| address.is_loopback() || address.is_link_local())
        }
        Err(_) => false,
    }
}

fn begins_at(response: &Response, offset: u64) -> bool {
    response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok()?.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(start, _)| start.parse() == Ok(offset))
}
