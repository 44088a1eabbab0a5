//! The API's description: OpenAPI 3.1, made from the types that are sent and read, and a page that shows it without any other server.
//!
//! INVARIANT: the operations described are exactly the router's (tested): whoever adds a route adds its description.

mod operations;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::App;
use operations::{Answer, Operation};

/// Shows `/openapi.json`, which it gets from where it came from.
const PAGE: &str = include_str!("document/page.html");
/// The page's own style and script, and nothing from elsewhere.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'",
);
/// Where the document lies. SOURCE: the last is gin-swagger's, which sandboxd-o serves.
const DOCUMENTS: [&str; 2] = ["/openapi.json", "/swagger/doc.json"];

/// A router that knows its paths.
pub(super) struct Routes {
    router: Router<Arc<App>>,
    paths: Vec<String>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self { router: Router::new(), paths: Vec::new() }
    }

    /// As the router's own.
    pub(super) fn route(mut self, path: &str, methods: MethodRouter<Arc<App>>) -> Self {
        // OpenAPI has no word for a parameter that takes the rest of a path.
        self.paths.push(path.replace("{*", "{"));
        Self { router: self.router.route(path, methods), paths: self.paths }
    }

    pub(super) fn into_router(self) -> Router<Arc<App>> {
        self.router
    }

    #[cfg(test)]
    pub(super) fn into_paths(self) -> Vec<String> {
        self.paths
    }
}

/// Whether a path shows the description, which is nobody's secret. SOURCE: sandboxd-o's `/swagger/` needs no token.
pub(super) fn is_open(path: &str) -> bool {
    path == "/docs" || path.starts_with("/swagger/") || DOCUMENTS.contains(&path)
}

/// `GET /openapi.json`.
pub(super) async fn document() -> Response {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let text = TEXT.get_or_init(|| Bytes::from(build().to_string()));
    ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response()
}

/// `GET /docs`.
pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
    ];
    (headers, PAGE).into_response()
}

/// `GET /swagger/*any`: the document for those who look for it there, else the page.
pub(super) async fn swagger(uri: axum::http::Uri) -> Response {
    if DOCUMENTS.contains(&uri.path()) { document().await } else { page().await }
}

/// The whole document.
fn build() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let operations = operations::all(&mut generator);
    let mut paths: Map<String, Value> = Map::new();
    for operation in &operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
    }
    let error = generator.subschema_for::<atoll_wire::rest::ErrorBody>().to_value();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "atoll",
            "version": crate::VERSION,
            "description": "Sandboxes on this machine, in the shapes of sandboxd-o's REST (sandboxd.o/v1) and beyond them. \
                Every answer has an X-Request-Id: the client's own where it sent one.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {"Error": {
                "description": "What went wrong, in one shape whatever it is; 429 has Retry-After",
                "content": {"application/json": {"schema": error}},
            }},
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "The data directory's token; the word Bearer may be left out",
            }},
        },
    })
}

fn described(operation: &Operation) -> Value {
    let mut answers: Map<String, Value> = Map::new();
    for Answer { status, says, content } in &operation.answers {
        let content: Map<String, Value> = content
            .iter()
            .map(|(kind, schema)| ((*kind).to_owned(), json!({"schema": schema})))
            .collect();
        let mut answer = json!({"description": says});
        if !content.is_empty() {
            answer["content"] = Value::Object(content);
        }
        answers.insert(status.to_string(), answer);
    }
    answers.insert("default".to_owned(), json!({"$ref": "#/components/responses/Error"}));
    let mut shown = json!({
        "operationId": operation.id(),
        "summary": operation.summary,
        "tags": [operation.tag()],
        "parameters": operation.parameters(),
        "responses": answers,
    });
    if operation.open {
        shown["security"] = json!([]);
    }
    if !operation.body.is_empty() {
        let content: Map<String, Value> = operation
            .body
            .iter()
            .map(|(kind, schema)| ((*kind).to_owned(), json!({"schema": schema})))
            .collect();
        shown["requestBody"] = json!({"content": content, "required": operation.body_needed});
    }
    shown
}

#[cfg(test)]
mod tests;
