//! Every operation: its path, what it takes, what it answers. The words are here, the shapes come from the types.

use atoll_wire::rest::{
    CollectedImages, CreateExternal, CreateNamedVolume, CreateSandbox, Deleted, Event, External,
    ExternalEnvelope, ImageInfo, ImageProgress, Items, Manifest, NamedVolume, NamedVolumeEnvelope,
    Node, NodeEnvelope, NodeInfo, Page, PatchSandbox, Process, PullImage, Registry,
    RegistryCredentials, Sandbox, SandboxEnvelope, Shutdown, SignalSandbox, StopSandbox,
    VersionInfo, WatchEvent,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::super::{Done, externals, files, images, logs, node, sandboxes, volumes, wait};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const LINES: &str = "application/x-ndjson";
const TEXT: &str = "text/plain";
const TAR: &str = "application/x-tar";
const BYTES: &str = "application/octet-stream";

/// An answer that is no error.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) says: &'static str,
    /// By media type.
    pub(super) content: Vec<(&'static str, Value)>,
}

/// A path and a method.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// Needs no token.
    pub(super) open: bool,
    query: Option<Value>,
    headers: Vec<&'static str>,
    /// By media type.
    pub(super) body: Vec<(&'static str, Value)>,
    pub(super) body_needed: bool,
    pub(super) answers: Vec<Answer>,
}

/// Makes operations with the schemas of their types.
struct Maker<'a>(&'a mut SchemaGenerator);

impl Maker<'_> {
    fn of<T: JsonSchema>(&mut self) -> Value {
        self.0.subschema_for::<T>().to_value()
    }

    fn query<T: JsonSchema>(&self) -> Value {
        // Parameters are listed one by one, each with all of its type: the types themselves are nobody's.
        let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
        settings.into_generator().into_root_schema_for::<T>().to_value()
    }

    fn get<T: JsonSchema>(&mut self, path: &'static str, summary: &'static str) -> Operation {
        Operation::new("get", path, summary).answers(200, "It", JSON, self.of::<T>())
    }

    fn delete(&mut self, path: &'static str, summary: &'static str) -> Operation {
        Operation::new("delete", path, summary).answers(
            200,
            "It is gone",
            JSON,
            self.of::<Deleted>(),
        )
    }

    fn send<B: JsonSchema, T: JsonSchema>(
        &mut self,
        method: &'static str,
        path: &'static str,
        status: u16,
        summary: &'static str,
    ) -> Operation {
        let operation = Operation::new(method, path, summary).takes(JSON, self.of::<B>());
        operation.answers(status, "Done", JSON, self.of::<T>())
    }
}

impl Operation {
    fn new(method: &'static str, path: &'static str, summary: &'static str) -> Self {
        Self {
            method,
            path,
            summary,
            open: false,
            query: None,
            headers: Vec::new(),
            body: Vec::new(),
            body_needed: true,
            answers: Vec::new(),
        }
    }

    fn open(self) -> Self {
        Self { open: true, ..self }
    }

    fn query(self, schema: Value) -> Self {
        Self { query: Some(schema), ..self }
    }

    fn header(mut self, name: &'static str) -> Self {
        self.headers.push(name);
        self
    }

    fn takes(mut self, kind: &'static str, schema: Value) -> Self {
        self.body.push((kind, schema));
        self
    }

    fn maybe(self) -> Self {
        Self { body_needed: false, ..self }
    }

    fn answers(
        mut self,
        status: u16,
        says: &'static str,
        kind: &'static str,
        schema: Value,
    ) -> Self {
        match self.answers.iter_mut().find(|answer| answer.status == status) {
            Some(answer) => answer.content.push((kind, schema)),
            None => self.answers.push(Answer { status, says, content: vec![(kind, schema)] }),
        }
        self
    }

    /// A WebSocket, which OpenAPI has no words for.
    fn socket(mut self) -> Self {
        let says = "A WebSocket: the first message is a text with what is wanted, then bytes with the channel in front (0 input, 1 output, 2 errors) and texts";
        self.answers.push(Answer { status: 101, says, content: Vec::new() });
        self
    }

    /// A name for programs: `get_api_v1_sandboxes_id`.
    pub(super) fn id(&self) -> String {
        let words = self.path.split(|c: char| !c.is_ascii_alphanumeric());
        let words = words.filter(|word| !word.is_empty());
        std::iter::once(self.method).chain(words).collect::<Vec<_>>().join("_")
    }

    /// What it is about.
    pub(super) fn tag(&self) -> &'static str {
        let path = self.path.strip_prefix("/api/v1/").unwrap_or("server");
        path.split('/').next().unwrap_or("server")
    }

    /// Of the path, the query and the headers.
    pub(super) fn parameters(&self) -> Vec<Value> {
        let of_path = self.path.split('{').skip(1).filter_map(|part| part.split('}').next());
        let mut all: Vec<Value> = of_path
            .map(|name| {
                json!({
                    "name": name, "in": "path", "required": true, "schema": {"type": "string"},
                    "description": explained(name),
                })
            })
            .collect();
        let none = Vec::new();
        let query = self.query.as_ref();
        let required = query.and_then(|it| it["required"].as_array()).unwrap_or(&none);
        for (name, schema) in
            query.and_then(|it| it["properties"].as_object()).into_iter().flatten()
        {
            all.push(json!({
                "name": name, "in": "query", "required": required.iter().any(|it| it == name),
                "schema": schema, "description": explained(name),
            }));
        }
        all.extend(self.headers.iter().map(|name| {
            json!({
                "name": name, "in": "header", "schema": {"type": "string"},
                "description": explained(name),
            })
        }));
        all
    }
}

/// What a parameter means. One name means one thing everywhere.
pub(super) fn explained(name: &str) -> &'static str {
    match name {
        "id" => "The object's name",
        "registry" => "Host and port of the registry",
        "any" => "Any path",
        "label" | "label_selector" => {
            "KEY=VALUE, KEY!=VALUE, KEY or !KEY, several separated by commas: all must hold"
        }
        "limit" => "Most objects of a page, 1 to 1000; all objects when left out",
        "cursor" => "Where the page begins: next_cursor of the page before",
        "watch" => "Go on with a line for each change instead",
        "resource_version" => {
            "Watch from this version on instead of from now; 410 when that is too old"
        }
        "wait" => "Answer once this holds or can no longer hold; for DELETE false answers at once",
        "timeout_seconds" => "Longest wait: 30 when left out, at most 600; then 408",
        "grace_seconds" => "Seconds from the stop signal to SIGKILL",
        "container" => "The container; the first when left out",
        "follow" => "Go on until the container has ended",
        "tail" => "Only so many last lines",
        "format" => {
            "text: the bytes as written; records: a line of JSON for each, with time and stream"
        }
        "path" => "Absolute path inside",
        "user" => "Whose the files are to be",
        "reference" => "An image reference",
        "object" => "Only events of this object: sandbox/NAME",
        "Idempotency-Key" => {
            "Sent again with the same body within 24 hours it creates nothing and answers with the same sandbox; 422 with another body"
        }
        _ => "",
    }
}

/// All of them, in the router's order.
pub(super) fn all(generator: &mut SchemaGenerator) -> Vec<Operation> {
    let mut all = of_the_server(generator);
    all.extend(of_sandboxes(generator));
    all.extend(of_sandboxes_inside(generator));
    all.extend(of_volumes(generator));
    all.extend(of_images(generator));
    all
}

fn of_the_server(generator: &mut SchemaGenerator) -> Vec<Operation> {
    let mut it = Maker(generator);
    let any = json!({"type": "object"});
    let page = json!({"type": "string"});
    let new = Operation::new;
    vec![
        it.get::<Done>("/healthz", "Whether it serves").open(),
        new("get", "/openapi.json", "This document").open().answers(
            200,
            "OpenAPI",
            JSON,
            any.clone(),
        ),
        new("get", "/docs", "This document, for people").open().answers(
            200,
            "A page",
            "text/html",
            page.clone(),
        ),
        new("get", "/swagger/{any}", "The same where sandboxd-o has it")
            .open()
            .answers(200, "A page", "text/html", page)
            .answers(200, "OpenAPI", JSON, any),
        new("get", "/metrics", "Metrics for Prometheus").answers(
            200,
            "Metrics",
            "application/openmetrics-text",
            json!({"type": "string"}),
        ),
        it.get::<VersionInfo>("/api/v1/version", "The server's version"),
        it.get::<NodeInfo>("/api/v1/node", "What this machine is and offers"),
        it.get::<Items<Node>>("/api/v1/nodes", "This machine, as sandboxd-o lists nodes"),
        it.get::<NodeEnvelope>("/api/v1/nodes/{id}", "This machine, as sandboxd-o shows a node"),
        it.send::<Shutdown, Done>("post", "/api/v1/shutdown", 202, "Ends the server").maybe(),
        it.get::<Page<Event>>("/api/v1/events", "What happened")
            .query(it.query::<node::EventParams>())
            .answers(200, "It", LINES, it.of::<WatchEvent<Event>>()),
        it.get::<Page<External>>("/api/v1/externals", "By which names nodes are reached")
            .query(it.query::<externals::ListParams>()),
        it.send::<CreateExternal, Done>(
            "post",
            "/api/v1/externals",
            200,
            "Makes an external, or changes it; 409 where it or its node belongs to another",
        )
        .takes(YAML, it.of::<CreateExternal>()),
        it.get::<ExternalEnvelope>("/api/v1/externals/{id}", "One external"),
        it.delete("/api/v1/externals/{id}", "Deletes an external"),
    ]
}

fn of_sandboxes(generator: &mut SchemaGenerator) -> Vec<Operation> {
    let mut it = Maker(generator);
    let one = "/api/v1/sandboxes/{id}";
    let creation = json!({"anyOf": [it.of::<CreateSandbox>(), it.of::<Manifest>()]});
    let manifest = it.of::<Manifest>();
    vec![
        it.get::<Page<Sandbox>>("/api/v1/sandboxes", "Sandboxes, in order of creation")
            .query(it.query::<sandboxes::ListParams>())
            .answers(200, "It", LINES, it.of::<WatchEvent<Sandbox>>()),
        Operation::new("post", "/api/v1/sandboxes", "Creates a sandbox")
            .query(it.query::<wait::WaitParams>())
            .header("Idempotency-Key")
            .takes(JSON, creation)
            .takes(YAML, manifest)
            .answers(201, "It is in the store", JSON, it.of::<SandboxEnvelope>()),
        it.get::<SandboxEnvelope>(one, "One sandbox, with what its disks hold")
            .query(it.query::<sandboxes::GetParams>())
            .answers(200, "It", LINES, it.of::<WatchEvent<Sandbox>>()),
        it.send::<PatchSandbox, SandboxEnvelope>("patch", one, 200, "Gives it a new time to live"),
        it.delete(one, "Deletes a sandbox; answers once nothing is left of it")
            .query(it.query::<sandboxes::DeleteParams>()),
        it.send::<StopSandbox, SandboxEnvelope>(
            "post",
            "/api/v1/sandboxes/{id}/stop",
            202,
            "Ends what runs; the record stays",
        )
        .maybe(),
    ]
}

fn of_sandboxes_inside(generator: &mut SchemaGenerator) -> Vec<Operation> {
    let mut it = Maker(generator);
    let files = "/api/v1/sandboxes/{id}/files";
    let new = Operation::new;
    let text = || json!({"type": "string"});
    vec![
        it.send::<SignalSandbox, Done>(
            "post",
            "/api/v1/sandboxes/{id}/signal",
            200,
            "Sends a signal",
        ),
        it.get::<Items<Process>>("/api/v1/sandboxes/{id}/processes", "Processes of a container")
            .query(it.query::<sandboxes::ContainerParams>()),
        new("get", "/api/v1/sandboxes/{id}/exec", "Runs a command inside").socket(),
        new("get", "/api/v1/sandboxes/{id}/attach", "Connects to the main process").socket(),
        new("get", "/api/v1/sandboxes/{id}/logs", "What a container has written")
            .query(it.query::<logs::LogParams>())
            .answers(200, "Its output", TEXT, text()),
        new("get", files, "Copies a file or directory out, as tar")
            .query(it.query::<files::FileParams>())
            .answers(200, "An archive", TAR, text()),
        it.send::<(), Done>("put", files, 200, "Unpacks a tar archive into a directory inside")
            .only(TAR)
            .query(it.query::<files::FileParams>()),
    ]
}

impl Operation {
    /// Takes bytes of this kind and nothing else.
    fn only(self, kind: &'static str) -> Self {
        Self { body: vec![(kind, json!({"type": "string"}))], ..self }
    }
}

fn of_volumes(generator: &mut SchemaGenerator) -> Vec<Operation> {
    let mut it = Maker(generator);
    let one = "/api/v1/volumes/{id}";
    vec![
        it.get::<Page<NamedVolume>>("/api/v1/volumes", "Named volumes, in order of creation")
            .query(it.query::<volumes::ListParams>()),
        it.send::<CreateNamedVolume, NamedVolumeEnvelope>(
            "post",
            "/api/v1/volumes",
            201,
            "Creates a volume that outlives sandboxes",
        )
        .takes(YAML, it.of::<CreateNamedVolume>()),
        it.get::<NamedVolumeEnvelope>(one, "One volume, with what its disk holds"),
        it.delete(one, "Deletes a volume; 409 while sandboxes have it"),
    ]
}

fn of_images(generator: &mut SchemaGenerator) -> Vec<Operation> {
    let mut it = Maker(generator);
    let credentials = "/api/v1/registries/{registry}/credentials";
    let new = Operation::new;
    vec![
        it.get::<Items<ImageInfo>>("/api/v1/images", "Images that are here"),
        it.delete("/api/v1/images", "Removes an image; 409 while a sandbox uses it")
            .query(it.query::<images::ReferenceParams>()),
        it.get::<ImageInfo>("/api/v1/images/inspect", "One image, with its configuration")
            .query(it.query::<images::ReferenceParams>()),
        new("post", "/api/v1/images/pull", "Pulls an image")
            .takes(JSON, it.of::<PullImage>())
            .answers(
                200,
                "Progress; the last line has done or error",
                LINES,
                it.of::<ImageProgress>(),
            ),
        new("post", "/api/v1/images/import", "Imports an archive")
            .query(it.query::<images::ImportParams>())
            .only(BYTES)
            .answers(
                200,
                "Progress; the last line has done or error",
                LINES,
                it.of::<ImageProgress>(),
            ),
        new("post", "/api/v1/images/gc", "Removes what no sandbox uses").answers(
            200,
            "What went",
            JSON,
            it.of::<CollectedImages>(),
        ),
        it.get::<Items<Registry>>(
            "/api/v1/registries",
            "Registries with credentials, without the secrets",
        ),
        it.send::<RegistryCredentials, Done>(
            "put",
            credentials,
            200,
            "Keeps credentials for a registry",
        ),
        it.delete(credentials, "Forgets them"),
    ]
}
