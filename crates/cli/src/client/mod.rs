//! Speaks to an atoll: requests, streams of lines, and process streams over WebSockets. Knows no command and prints nothing.

mod error;
mod lines;
mod process;

use std::time::Duration;

use atoll_wire::rest::{
    CreateSandbox, Deleted, Items, NamedVolume, NamedVolumeEnvelope, Sandbox, SandboxEnvelope,
};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::instance::Instance;

pub(crate) use error::ClientError;
pub(crate) use lines::LineStream;
pub(crate) use process::{ProcessConnection, ProcessEvent, ProcessOutput};

/// How long a connection may take to come about: it is on this machine, or near it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of one atoll.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    instance: Instance,
}

impl Client {
    /// A client of this instance. Connects to nothing yet.
    pub(crate) fn new(instance: Instance) -> Result<Self, ClientError> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .tls_certs_only([])
            .connect_timeout(CONNECT_TIMEOUT);
        let builder = match &instance.address {
            crate::instance::Address::Unix(path) => builder.unix_socket(path.as_path()),
            crate::instance::Address::Tcp(_) => builder,
        };
        let http = builder.build().map_err(|error| ClientError::setup(&error))?;
        Ok(Self { http, instance })
    }

    /// The instance that it speaks to.
    pub(crate) fn instance(&self) -> &Instance {
        &self.instance
    }

    /// A request with the token; `path` begins with `/`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.instance.address.base_url()))
            .bearer_auth(&self.instance.token)
    }

    /// Sends a request; an answer other than 2xx is an error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response =
            request.send().await.map_err(|error| ClientError::transport(&self.instance, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap_or_default();
        Err(ClientError::refused(status, &body))
    }

    /// Sends a request and reads the JSON of its answer.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let body = response
            .bytes()
            .await
            .map_err(|error| ClientError::transport(&self.instance, &error))?;
        serde_json::from_slice(&body).map_err(|error| ClientError::answer(&error))
    }

    /// Gets JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path)).await
    }

    /// Posts JSON and gets JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// Sends a request whose answer is a stream of lines.
    pub(crate) async fn lines(&self, request: RequestBuilder) -> Result<LineStream, ClientError> {
        Ok(LineStream::new(self.send(request).await?, self.instance.clone()))
    }

    /// Creates a sandbox.
    pub(crate) async fn create_sandbox(
        &self,
        sandbox: &CreateSandbox,
    ) -> Result<Sandbox, ClientError> {
        let envelope: SandboxEnvelope = self.post("/api/v1/sandboxes", sandbox).await?;
        Ok(envelope.sandbox)
    }

    /// A sandbox.
    pub(crate) async fn sandbox(&self, name: &str) -> Result<Sandbox, ClientError> {
        let envelope: SandboxEnvelope = self.get(&sandbox_path(name)).await?;
        Ok(envelope.sandbox)
    }

    /// All sandboxes.
    pub(crate) async fn sandboxes(&self) -> Result<Items<Sandbox>, ClientError> {
        self.get("/api/v1/sandboxes").await
    }

    /// A volume.
    pub(crate) async fn volume(&self, name: &str) -> Result<NamedVolume, ClientError> {
        let envelope: NamedVolumeEnvelope = self.get(&volume_path(name)).await?;
        Ok(envelope.volume)
    }

    /// All volumes.
    pub(crate) async fn volumes(&self) -> Result<Items<NamedVolume>, ClientError> {
        self.get("/api/v1/volumes").await
    }

    /// Deletes a sandbox; returns once nothing is left of it.
    pub(crate) async fn delete_sandbox(&self, name: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &sandbox_path(name));
        let _: Deleted = self.json(request).await?;
        Ok(())
    }
}

/// The path of a sandbox.
pub(crate) fn sandbox_path(name: &str) -> String {
    format!("/api/v1/sandboxes/{}", encoded(name))
}

/// The path of a volume.
pub(crate) fn volume_path(name: &str) -> String {
    format!("/api/v1/volumes/{}", encoded(name))
}

/// A path with a query; values are encoded, entries with `None` are left out.
pub(crate) fn with_query(path: &str, entries: &[(&str, Option<&str>)]) -> String {
    let mut url = path.to_owned();
    let mut separator = '?';
    for (key, value) in entries {
        if let Some(value) = value {
            url.push(separator);
            url.push_str(key);
            url.push('=');
            url.push_str(&encoded(value));
            separator = '&';
        }
    }
    url
}

/// Percent-encodes what is not unreserved. SOURCE: RFC 3986, section 2.3.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_writes_never_changes_the_path() {
        assert_eq!(sandbox_path("../x?y#z"), "/api/v1/sandboxes/..%2Fx%3Fy%23z");
        assert_eq!(
            with_query("/p", &[("a", Some("b c&d=ä")), ("none", None), ("e", Some("f"))]),
            "/p?a=b%20c%26d%3D%C3%A4&e=f"
        );
        assert_eq!(with_query("/p", &[("a", None)]), "/p");
    }
}
