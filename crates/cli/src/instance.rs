//! Finds the atoll that is meant: the instance of a data directory on this machine, or one by its address. Starts and ends nothing.

use std::path::{Path, PathBuf};

use atoll_wire::rest::{SERVER_RECORD_VERSION, ServerRecord};

use crate::args::ConnectionArgs;

/// Where an atoll serves, and what opens it.
#[derive(Clone)]
pub(crate) struct Instance {
    /// How to reach it.
    pub(crate) address: Address,
    /// The bearer token.
    pub(crate) token: String,
    /// Its data directory, when it was found by that.
    pub(crate) data_dir: Option<PathBuf>,
}

/// How to reach an atoll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `host:port`, plain HTTP.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why no instance was found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceError {
    /// No server has this data directory.
    #[error(
        "no atoll runs for data directory {directory}: start one with `atoll up --data-dir {directory} --detach`"
    )]
    NotRunning {
        /// The data directory.
        directory: String,
    },
    /// A file of the data directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not what atoll writes.
    #[error("{} cannot be understood ({message}): is the atoll that serves there newer than this one?", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// No usable address.
    #[error(
        "{text:?} is not the address of an atoll: write for example http://127.0.0.1:8082 or unix:/run/atoll.sock"
    )]
    BadAddress {
        /// As given.
        text: String,
    },
    /// An address without a token.
    #[error(
        "no token for {server}: set ATOLL_TOKEN, or give --token-file FILE (the server's own is `token` in its data directory)"
    )]
    NoToken {
        /// As given.
        server: String,
    },
}

impl Instance {
    /// The instance that the command line and the environment mean.
    pub(crate) fn find(connection: &ConnectionArgs) -> Result<Self, InstanceError> {
        match &connection.server {
            Some(server) => Self::by_address(server, connection),
            None => Self::of_data_dir(&connection.data_dir, connection.token_file.as_deref()),
        }
    }

    /// The one at this address, opened by this token.
    pub(crate) fn known(server: &str, token: &str) -> Result<Self, InstanceError> {
        Ok(Self { address: Address::parse(server)?, token: token.to_owned(), data_dir: None })
    }

    fn by_address(server: &str, connection: &ConnectionArgs) -> Result<Self, InstanceError> {
        let address = Address::parse(server)?;
        let token = match &connection.token_file {
            Some(path) => read_token(path)?,
            None => std::env::var("ATOLL_TOKEN")
                .map_err(|_| InstanceError::NoToken { server: server.to_owned() })?,
        };
        Ok(Self { address, token: token.trim().to_owned(), data_dir: None })
    }

    /// The instance that serves from a data directory.
    pub(crate) fn of_data_dir(
        directory: &Path,
        token_file: Option<&Path>,
    ) -> Result<Self, InstanceError> {
        let record = server_record(directory)?.ok_or_else(|| not_running(directory))?;
        let token_path = directory.join("token");
        let token = read_token(token_file.unwrap_or(&token_path))?;
        Ok(Self {
            address: Address::parse(&record.address)?,
            token,
            data_dir: Some(directory.to_owned()),
        })
    }
}

/// The error for a data directory that no atoll serves.
pub(crate) fn not_running(directory: &Path) -> InstanceError {
    InstanceError::NotRunning { directory: directory.display().to_string() }
}

/// What the server of a data directory wrote about itself; `None` when there is nothing. The process may have died since.
pub(crate) fn server_record(directory: &Path) -> Result<Option<ServerRecord>, InstanceError> {
    let path = directory.join("server.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(InstanceError::Unreadable { path, source }),
    };
    let malformed = |message: String| InstanceError::Malformed { path: path.clone(), message };
    let record: ServerRecord =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    if record.version > SERVER_RECORD_VERSION {
        return Err(malformed(format!("version {}", record.version)));
    }
    Ok(Some(record))
}

fn read_token(path: &Path) -> Result<String, InstanceError> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| InstanceError::Unreadable { path: path.to_owned(), source })
}

impl Address {
    /// Reads `http://host:port`, `host:port` or `unix:/path`.
    fn parse(text: &str) -> Result<Self, InstanceError> {
        let bad = || InstanceError::BadAddress { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(bad()) };
        }
        let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self::Tcp(authority.to_owned()))
    }

    /// What stands before a path in a URL.
    pub(crate) fn base_url(&self) -> String {
        match self {
            Self::Tcp(authority) => format!("http://{authority}"),
            Self::Unix(_) => "http://atoll".to_owned(),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_each_form() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        assert_eq!(Address::parse("http://127.0.0.1:8082/").unwrap(), tcp("127.0.0.1:8082"));
        assert_eq!(Address::parse("[::1]:9").unwrap(), tcp("[::1]:9"));
        assert_eq!(Address::parse("unix:/a/b").unwrap(), Address::Unix("/a/b".into()));
        for wrong in ["", "localhost", "https://a:1", "http://a", "unix:a", "a:99999"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_directory_without_a_server_says_how_to_start_one() {
        let directory = tempfile::tempdir().unwrap();
        let Err(error) = Instance::of_data_dir(directory.path(), None) else {
            panic!("found an instance in an empty directory");
        };
        let expected = format!("atoll up --data-dir {} --detach", directory.path().display());
        assert!(error.to_string().contains(&expected), "{error}");
    }

    #[test]
    fn a_record_of_a_newer_atoll_is_not_guessed_at() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "{", r#"{"version":999}"#] {
            std::fs::write(directory.path().join("server.json"), text).unwrap();
            let error = server_record(directory.path()).unwrap_err();
            assert!(matches!(error, InstanceError::Malformed { .. }), "{error}");
        }
    }
}
