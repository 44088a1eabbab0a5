//! A server in this process, over class `sim`, with a client that speaks real HTTP.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atoll_model::image_reference::ImageReference;
use atoll_model::rate::RateLimit;
use atoll_runtime::sim::{SimHost, SimRuntime};
use atoll_server::{
    DataDir, ImageConfig, ImageSource, ImageSourceError, Progress, ResolvedImage, ResolvedUser,
    ServerConfig, ServerError,
};
use atoll_wire::guest::UserIds;
use atoll_wire::rest::{
    CollectedImages, ErrorBody, ImageInfo, ImageProgress, Registry, RegistryCredentials, Sandbox,
    SandboxEnvelope,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Images by name: `busybox` is there, `remote` can be pulled, others cannot.
#[derive(Default)]
pub(crate) struct FakeImages {
    pub(crate) leases: Mutex<HashSet<(String, String)>>,
    pub(crate) imported: Mutex<Vec<(Option<String>, u64)>>,
    pub(crate) pulled: Mutex<Vec<String>>,
    /// Whether each of them was to come by plain HTTP.
    pub(crate) pulled_plainly: Mutex<Vec<bool>>,
}

pub(crate) const DIGEST: &str =
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn image() -> ResolvedImage {
    let config = ImageConfig {
        cmd: vec!["sleep".into(), "1000".into()],
        env: vec!["FROM=image".into()],
        ..ImageConfig::default()
    };
    ResolvedImage { digest: DIGEST.into(), layers: vec![PathBuf::from("/layers/a")], config }
}

fn info() -> ImageInfo {
    ImageInfo {
        references: vec!["busybox:latest".into()],
        digest: DIGEST.into(),
        platform: "linux/amd64".into(),
        size_bytes: 1,
        imported_at: "2026-01-01T00:00:00Z".into(),
        last_used_at: None,
        used_by: Vec::new(),
        layers: 1,
        config: None,
    }
}

fn missing(what: &str) -> ImageSourceError {
    ImageSourceError::NotFound { message: format!("{what} is not here; pull or import it") }
}

#[async_trait]
impl ImageSource for FakeImages {
    async fn find(
        &self,
        reference: &ImageReference,
    ) -> Result<Option<ResolvedImage>, ImageSourceError> {
        Ok((reference.familiar() == "busybox:latest" || reference.familiar() == "busybox")
            .then(image))
    }

    async fn pull(
        &self,
        reference: &ImageReference,
        plain_http: bool,
        progress: Progress,
    ) -> Result<ResolvedImage, ImageSourceError> {
        progress(ImageProgress { status: "downloading".into(), ..ImageProgress::default() });
        self.pulled.lock().unwrap().push(reference.familiar());
        self.pulled_plainly.lock().unwrap().push(plain_http);
        match reference.repository() {
            "library/remote" => Ok(image()),
            "library/slow" => std::future::pending().await,
            other => {
                Err(ImageSourceError::Failed { message: format!("the registry knows no {other}") })
            }
        }
    }

    async fn by_digest(&self, digest: &str) -> Result<Option<ResolvedImage>, ImageSourceError> {
        Ok((digest == DIGEST).then(image))
    }

    async fn lease(&self, digest: &str, holder: &str) -> Result<(), ImageSourceError> {
        self.leases.lock().unwrap().insert((digest.into(), holder.into()));
        Ok(())
    }

    async fn release(&self, holder: &str) -> Result<(), ImageSourceError> {
        self.leases.lock().unwrap().retain(|(_, it)| it != holder);
        Ok(())
    }

    async fn retain_leases(&self, holders: &HashSet<String>) -> Result<(), ImageSourceError> {
        self.leases.lock().unwrap().retain(|(_, it)| holders.contains(it));
        Ok(())
    }

    async fn resolve_user(&self, _: &str, user: &str) -> Result<ResolvedUser, ImageSourceError> {
        let uid = match user {
            "" | "root" | "0" => 0,
            "nobody" => 65_534,
            other => {
                return Err(ImageSourceError::Invalid {
                    message: format!("the image has no user {other:?}"),
                });
            }
        };
        Ok(ResolvedUser {
            ids: UserIds { uid, gid: uid, supplementary_gids: Vec::new() },
            home: None,
        })
    }

    async fn list(&self) -> Result<Vec<ImageInfo>, ImageSourceError> {
        Ok(vec![info()])
    }

    async fn inspect(&self, reference: &ImageReference) -> Result<ImageInfo, ImageSourceError> {
        self.find(reference).await?.map(|_| info()).ok_or_else(|| missing(&reference.familiar()))
    }

    async fn remove(&self, reference: &ImageReference) -> Result<(), ImageSourceError> {
        self.inspect(reference).await.map(|_| ())
    }

    async fn import(
        &self,
        mut archive: Box<dyn AsyncRead + Send + Unpin>,
        reference: Option<&ImageReference>,
        _: Progress,
    ) -> Result<Vec<ImageInfo>, ImageSourceError> {
        let (mut total, mut buffer) = (0, vec![0; 65536]);
        loop {
            match archive.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => total += count as u64,
                Err(error) => return Err(ImageSourceError::Failed { message: error.to_string() }),
            }
        }
        self.imported.lock().unwrap().push((reference.map(ImageReference::familiar), total));
        Ok(vec![info()])
    }

    async fn collect(&self) -> Result<CollectedImages, ImageSourceError> {
        Ok(CollectedImages { removed: vec!["old".into()], freed_bytes: 5 })
    }

    async fn registries(&self) -> Result<Vec<Registry>, ImageSourceError> {
        Ok(Vec::new())
    }

    async fn set_credentials(
        &self,
        _: &str,
        _: &RegistryCredentials,
    ) -> Result<(), ImageSourceError> {
        Ok(())
    }

    async fn remove_credentials(&self, _: &str) -> Result<bool, ImageSourceError> {
        Ok(false)
    }
}

/// A server that runs in this process.
pub(crate) struct TestServer {
    pub(crate) address: String,
    pub(crate) token: String,
    pub(crate) host: Arc<SimHost>,
    pub(crate) images: Arc<FakeImages>,
    pub(crate) directory: Arc<tempfile::TempDir>,
    pub(crate) client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServerError>>,
}

impl TestServer {
    /// On a new data directory and host.
    pub(crate) async fn start() -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let host = SimHost::with_logs(directory.path().join("sandboxes"));
        Self::start_on(directory, host).await
    }

    /// On a data directory and a host that an earlier one left.
    pub(crate) async fn start_on(directory: Arc<tempfile::TempDir>, host: Arc<SimHost>) -> Self {
        Self::start_labelled(directory, host, &[]).await
    }

    /// The same where so many sandboxes may be created.
    pub(crate) async fn start_limited(per_second: u32, burst: u32) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let host = SimHost::with_logs(directory.path().join("sandboxes"));
        let number = |it| std::num::NonZero::new(it).unwrap();
        let limit = RateLimit { per_second: number(per_second), burst: number(burst) };
        Self::start_as(directory, host, &[], Some(limit)).await
    }

    /// The same on a machine with these labels.
    pub(crate) async fn start_labelled(
        directory: Arc<tempfile::TempDir>,
        host: Arc<SimHost>,
        labels: &[(&str, &str)],
    ) -> Self {
        Self::start_as(directory, host, labels, None).await
    }

    async fn start_as(
        directory: Arc<tempfile::TempDir>,
        host: Arc<SimHost>,
        labels: &[(&str, &str)],
        create_limit: Option<RateLimit>,
    ) -> Self {
        let images = Arc::new(FakeImages::default());
        let (told, address) = oneshot::channel();
        let config = ServerConfig {
            data_dir: open_locked(directory.path()).await,
            listen: "127.0.0.1:0".parse().unwrap(),
            node_name: "test-node".into(),
            runtimes: vec![Arc::new(SimRuntime::new(Arc::clone(&host)))],
            missing_classes: vec![(
                atoll_runtime::RuntimeClass::Gvisor,
                "runsc is not installed".into(),
            )],
            network: Err("started without".into()),
            sandbox_network: None,
            volume_disks: None,
            node_labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            port_range: atoll_model::ports::DEFAULT_PORT_RANGE,
            egress_grants: Vec::new(),
            images: Arc::clone(&images) as Arc<dyn ImageSource>,
            concurrent_launches: None,
            create_limit,
            privileges: atoll_server::Privileges::default(),
            on_serving: Some(Box::new(move |address| told.send(address.to_owned()).unwrap())),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(atoll_server::run(config, async move {
            stopped.await.ok();
        }));
        let address = tokio::time::timeout(PATIENCE, address).await.unwrap().unwrap();
        let token =
            std::fs::read_to_string(directory.path().join("token")).unwrap().trim().to_owned();
        // One for the process; whoever comes first.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        Self { address, token, host, images, directory, client, stop: Some(stop), serving }
    }

    /// Ends it in order; sandboxes stay.
    pub(crate) async fn stop(mut self) -> (Arc<tempfile::TempDir>, Arc<SimHost>) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(PATIENCE, &mut self.serving).await.unwrap().unwrap().unwrap();
        (self.directory, self.host)
    }

    /// The next server on the same data directory and host.
    pub(crate) async fn restart(self) -> Self {
        let (directory, host) = self.stop().await;
        Self::start_on(directory, host).await
    }

    /// Waits for it to end by itself.
    pub(crate) async fn ended(mut self) {
        tokio::time::timeout(PATIENCE, &mut self.serving).await.unwrap().unwrap().unwrap();
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.address)).bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        answer(request.body(body.to_string())).await
    }

    /// Creates a sandbox that runs these words, and waits until it runs.
    pub(crate) async fn create(&self, id: &str, args: &[&str]) -> Sandbox {
        let (status, body) = self.post("/api/v1/sandboxes?wait=running", manifest(id, args)).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        serde_json::from_value::<SandboxEnvelope>(body).unwrap().sandbox
    }

    pub(crate) async fn sandbox(&self, id: &str) -> Sandbox {
        let (status, body) = self.get(&format!("/api/v1/sandboxes/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_value::<SandboxEnvelope>(body).unwrap().sandbox
    }

    /// Waits for a goal of the API.
    pub(crate) async fn wait(&self, id: &str, goal: &str) -> Sandbox {
        let (status, body) =
            self.get(&format!("/api/v1/sandboxes/{id}?wait={goal}&timeout_seconds=15")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_value::<SandboxEnvelope>(body).unwrap().sandbox
    }

    /// Waits until a sandbox is as wanted, however it gets there.
    pub(crate) async fn until(&self, id: &str, wanted: impl Fn(&Sandbox) -> bool) -> Sandbox {
        let response = self
            .request(Method::GET, &format!("/api/v1/sandboxes/{id}?watch=true"))
            .send()
            .await
            .unwrap();
        let mut lines = Lines::of(response);
        loop {
            let line = lines.next().await.expect("the watch ended");
            if let Ok(sandbox) = serde_json::from_value::<Sandbox>(line["object"].clone())
                && wanted(&sandbox)
            {
                return sandbox;
            }
        }
    }

    /// The words of all events of a sandbox.
    pub(crate) async fn events(&self, id: &str) -> Vec<String> {
        let (_, body) = self.get(&format!("/api/v1/events?object=sandbox/{id}")).await;
        body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["reason"].as_str().unwrap().to_owned())
            .collect()
    }
}

async fn open_locked(path: &Path) -> DataDir {
    // The last server's lock goes with its last task.
    for _ in 0..200 {
        match DataDir::open(path) {
            Ok(data_dir) => return data_dir,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    DataDir::open(path).unwrap()
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// A creation's body.
pub(crate) fn manifest(id: &str, args: &[&str]) -> Value {
    json!({"id": id, "spec": {"containers": [{"name": "main", "image": "busybox", "args": args}]}})
}

pub(crate) fn error(body: &Value) -> ErrorBody {
    serde_json::from_value(body.clone()).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// Lines of a stream, read as they come.
pub(crate) struct Lines {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        Self { response, buffer: Vec::new() }
    }

    /// `None`: the stream is over.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk())
                .await
                .expect("nothing came")
                .unwrap()?;
            self.buffer.extend_from_slice(&chunk);
        }
    }
}
