//! Server and node of one machine: store, sandbox owners, REST API, metrics.
