//! `atoll cp`: files into a sandbox and out of it, as tar streams.
//!
//! What comes out of a sandbox is hostile: it is unpacked in a directory of its own and only then moved to where it shall be.

mod download;
mod upload;

use std::path::PathBuf;

use super::{Outcome, connect};
use crate::args::{ConnectionArgs, CopyArgs};
use crate::client::{Client, sandbox_path, with_query};

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A tar stream on standard input or output.
    Stream,
    /// Here.
    Local(PathBuf),
    /// In a sandbox.
    Sandbox { name: String, path: String },
}

/// A container's files.
struct Remote<'a> {
    client: &'a Client,
    name: String,
    container: Option<String>,
    /// Absolute.
    path: String,
}

impl Remote<'_> {
    fn url(&self, path: &str) -> String {
        with_query(
            &format!("{}/files", sandbox_path(&self.name)),
            &[("container", self.container.as_deref()), ("path", Some(path))],
        )
    }
}

impl Place {
    /// `NAME:PATH` is in a sandbox unless a slash comes before the colon: `./a:b` is a file here.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            // `.` and `..` are no sandboxes either.
            Some((name, path)) if !matches!(name, "" | "." | "..") && !name.contains('/') => {
                Self::Sandbox { name: name.to_owned(), path: path.to_owned() }
            }
            _ => Self::Local(PathBuf::from(text)),
        }
    }
}

/// Copies in either direction.
pub(super) async fn copy(args: CopyArgs, connection: &ConnectionArgs) -> Outcome {
    let source = Place::parse(&args.source);
    let destination = Place::parse(&args.destination);
    let client = connect(connection)?;
    let remote = |name: &str, path: &str| -> anyhow::Result<Remote<'_>> {
        anyhow::ensure!(
            path.starts_with('/'),
            "the path in a sandbox must be absolute: write {name}:/{path}"
        );
        Ok(Remote {
            client: &client,
            name: name.to_owned(),
            container: args.container.clone(),
            path: path.to_owned(),
        })
    };
    match (source, destination) {
        (Place::Sandbox { name, path }, Place::Stream) => {
            download::to_stream(&remote(&name, &path)?).await
        }
        (Place::Sandbox { name, path }, Place::Local(local)) => {
            download::to_path(&remote(&name, &path)?, &local).await
        }
        (Place::Stream, Place::Sandbox { name, path }) => {
            upload::from_stream(&remote(&name, &path)?).await
        }
        (Place::Local(local), Place::Sandbox { name, path }) => {
            upload::from_path(&local, &remote(&name, &path)?).await
        }
        (Place::Sandbox { .. }, Place::Sandbox { .. }) => anyhow::bail!(
            "one side must be here: to copy between sandboxes, write `atoll cp A:/path - | atoll cp - B:/path`"
        ),
        _ => anyhow::bail!("one side must be SANDBOX:PATH, for example work:/srv"),
    }
}

/// The last part of a path in a sandbox; nothing for `/`.
fn last_part(path: &str) -> Option<&str> {
    path.trim_end_matches('/').rsplit('/').next().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_means_a_sandbox_unless_a_slash_comes_first() {
        let sandbox =
            |name: &str, path: &str| Place::Sandbox { name: name.into(), path: path.into() };
        assert_eq!(Place::parse("work:/a:b"), sandbox("work", "/a:b"));
        assert_eq!(Place::parse("./a:b"), Place::Local("./a:b".into()));
        assert_eq!(Place::parse("/x"), Place::Local("/x".into()));
        assert_eq!(Place::parse(":x"), Place::Local(":x".into()));
        assert_eq!(Place::parse("-"), Place::Stream);
    }

    #[test]
    fn the_last_part_ignores_slashes_at_the_end() {
        assert_eq!(last_part("/a/b/"), Some("b"));
        assert_eq!(last_part("/"), None);
    }
}
