//! The REST API. Bodies are `atoll_wire::rest` shapes; every error is an `ErrorBody`. All paths but `/healthz` need
//! `Authorization: Bearer TOKEN`. A list or object with `?watch=true` is a stream of newline-delimited JSON.
//!
//! | method path | query, body | answer |
//! |---|---|---|
//! | GET `/healthz` | – | 200 `{"ok":true}` |
//! | GET `/metrics` | – | Prometheus text |
//! | GET `/api/v1/version` | – | `VersionInfo` |
//! | GET `/api/v1/node` | – | `NodeInfo` |
//! | POST `/api/v1/shutdown` | `Shutdown` | 202 `{"ok":true}`; the server ends afterwards |
//! | POST `/api/v1/sandboxes` | `CreateSandbox` (JSON), or a `Manifest` (JSON, or YAML with content type `application/yaml`); `wait`, `timeout_seconds` | 201 `SandboxEnvelope` |
//! | GET `/api/v1/sandboxes` | `label=K=V` (repeatable); `watch`, `resource_version` | `Items<Sandbox>`, or lines of `WatchEvent<Sandbox>` |
//! | GET `/api/v1/sandboxes/ID` | `wait`, `timeout_seconds`; or `watch` | `SandboxEnvelope` (`Deleted` for `wait=deleted`) |
//! | DELETE `/api/v1/sandboxes/ID` | `wait=false` answers as soon as the deletion is recorded; `grace_seconds` (0) | 200 `Deleted`, once nothing is left of it |
//! | POST `/api/v1/sandboxes/ID/stop` | `StopSandbox` | 202 `SandboxEnvelope`; the record stays |
//! | POST `/api/v1/sandboxes/ID/signal` | `SignalSandbox` | 200 `{"ok":true}` |
//! | GET `/api/v1/sandboxes/ID/exec` | WebSocket, `wire::rest::stream` | |
//! | GET `/api/v1/sandboxes/ID/attach` | WebSocket, `wire::rest::stream` | |
//! | GET `/api/v1/sandboxes/ID/logs` | `container` (first), `follow`, `tail=LINES`, `format=text` (default: the bytes as written) or `records` (`wire::log` lines: time, stream, text) | `text/plain`; with `follow` until the container has ended |
//! | GET `/api/v1/sandboxes/ID/files` | `container`, `path` (absolute) | `application/x-tar`: the file or directory as single top entry. An error on the way breaks the transfer off |
//! | PUT `/api/v1/sandboxes/ID/files` | `container`, `path` (directory to unpack into), `user`; body: tar | 200 `{"ok":true}` |
//! | GET `/api/v1/sandboxes/ID/processes` | `container` | `Items<Process>` |
//! | GET `/api/v1/events` | `object=sandbox/ID`; `watch`, `resource_version` | `Items<Event>`, or lines of `WatchEvent<Event>` |
//! | GET `/api/v1/images` | – | `Items<ImageInfo>` |
//! | GET `/api/v1/images/inspect` | `reference` | `ImageInfo` with `config` |
//! | DELETE `/api/v1/images` | `reference` | 200 `Deleted`; 409 while a sandbox uses it |
//! | POST `/api/v1/images/pull` | `PullImage` | lines of `ImageProgress` |
//! | POST `/api/v1/images/import` | `reference` (for archives that name none); body: the archive, streamed | lines of `ImageProgress` |
//! | POST `/api/v1/images/gc` | – | `CollectedImages` |
//! | GET `/api/v1/registries` | – | `Items<Registry>` |
//! | PUT `/api/v1/registries/REGISTRY/credentials` | `RegistryCredentials` | 200 `{"ok":true}` |
//! | DELETE `/api/v1/registries/REGISTRY/credentials` | – | 200 `Deleted` |
//!
//! `wait` is `running`, `ready`, `succeeded`, `failed`, `ended` or `deleted`: the answer comes as soon as that holds **or can no longer
//! hold** (the client looks at the status), or with 408 (`timeout`) after `timeout_seconds` (30 when left out, 600 at most).
//!
//! Codes: 400 `malformed` (not JSON or YAML, bad query), 401 `unauthorized`, 404 `not_found`, 405 `method_not_allowed`, 408 `timeout`,
//! 409 `already_exists` or `conflict` (not in this state, in use), 410 `gone` (a watch from a version that is no longer kept: list
//! again), 413 `too_large`, 422 `invalid` or `not_enforced` with `fields`, 429 `too_many`, 500 `internal`, 502 `image_pull`, 503 `unavailable` (its shim
//! cannot be reached, or the server is ending).
