//! What can be written on sbxctl's command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "sbxctl", version, about = "sandboxd-o's client, by atoll")]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct CommandLine {
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which server, and how to print.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct GlobalArgs {
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The server's address
    #[arg(long, global = true, value_name = "URL", env = "SBXCTL_SERVER", hide_env_values = true)]
    pub(super) server: Option<String>,
    /// The shared secret: atoll's token
    #[arg(long, global = true, env = "SBX_SHARED_SECRET", hide_env_values = true)]
    pub(super) secret: Option<String>,
    /// Ask this node through the server
    #[arg(long, global = true, value_name = "ID")]
    pub(super) node: Option<String>,
    /// Longest wait for an answer
    #[arg(long, global = true, value_name = "DURATION", value_parser = crate::args::duration)]
    pub(super) timeout: Option<Duration>,
    /// How to print
    #[arg(short, long, global = true, value_enum)]
    pub(super) output: Option<Format>,
    /// Objects of a list from a node
    #[arg(long, global = true, value_name = "N")]
    pub(super) limit: Option<u32>,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Json,
    Yaml,
    Wide,
}

/// A verb.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List objects, or show one
    #[command(visible_alias = "g")]
    Get {
        /// KIND[,KIND] or KIND/NAME
        #[arg(value_name = "KINDS")]
        objects: String,
        /// Labels of nodes, too
        #[arg(long)]
        show_labels: bool,
    },
    /// Print a sandbox's manifest
    Spec {
        /// The sandbox
        #[arg(value_name = "SANDBOX")]
        sandbox: Reference,
    },
    /// Create what a file says
    #[command(visible_alias = "c")]
    Create {
        /// The file; - is standard input
        #[arg(short, long = "file", value_name = "FILE")]
        filename: PathBuf,
    },
    /// Delete an object
    #[command(visible_alias = "d")]
    Delete {
        /// The object
        #[arg(value_name = "KIND/NAME")]
        object: Reference,
        /// Nodes only: without asking the node
        #[arg(long)]
        force: bool,
    },
    /// Place no more sandboxes on a node
    Cordon {
        /// The node
        #[arg(value_name = "node/ID")]
        object: Reference,
    },
    /// Place sandboxes on a node again
    Uncordon {
        /// The node
        #[arg(value_name = "node/ID")]
        object: Reference,
    },
    /// Set or remove a node's label
    Label {
        /// The node
        #[arg(value_name = "node/ID")]
        object: Reference,
        /// KEY=VALUE, or KEY-
        #[arg(allow_hyphen_values = true)]
        label: String,
    },
    /// Print what a sandbox has written
    #[command(visible_aliases = ["log", "l"])]
    Logs {
        /// The sandbox
        #[arg(value_name = "sandbox/ID")]
        sandbox: Reference,
        /// The container; all of them when left out
        container: Option<String>,
        /// Go on
        #[arg(short, long)]
        watch: bool,
    },
    /// Print a completion script
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sandbox,
    Node,
    External,
}

impl Kind {
    /// Where such objects are.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Sandbox => "/api/v1/sandboxes",
            Self::Node => "/api/v1/nodes",
            Self::External => "/api/v1/externals",
        }
    }

    /// The word for several of them.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Sandbox => "sandboxes",
            Self::Node => "nodes",
            Self::External => "externals",
        }
    }

    /// The word in an answer for one of them.
    pub(super) const fn singular(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Node => "node",
            Self::External => "external",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "sandbox" | "sandboxes" | "sbx" | "s" => Ok(Self::Sandbox),
            "node" | "nodes" | "n" => Ok(Self::Node),
            "external" | "externals" | "ext" | "e" => Ok(Self::External),
            _ => Err(format!("{text:?} is no kind: there are sandbox, node and external")),
        }
    }
}

/// One object: `KIND/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) kind: Kind,
    pub(super) name: String,
}

impl Reference {
    /// Its name, where it is of this kind.
    pub(super) fn of(&self, kind: Kind) -> anyhow::Result<&str> {
        anyhow::ensure!(self.kind == kind, "this is for a {0}: write {0}/NAME", kind.singular());
        Ok(&self.name)
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').unwrap_or(("sandbox", text));
        match name {
            "" | "." | ".." => Err(format!("write KIND/NAME, for example sandbox/{kind}")),
            _ => Ok(Self { kind: kind.parse()?, name: name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_read_whatever_the_flags_around_it() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
        for line in [
            "get sandbox/a -o yaml",
            "g s,n,e --show-labels",
            "spec a",
            "create -f a.yaml",
            "d node/a --force",
            "cordon node/a",
            "uncordon node/a",
            "label node/a key-",
            "label node/a key=value",
            "logs sandbox/a main -w",
            "completion bash",
        ] {
            let words = std::iter::once("sbxctl").chain(line.split(' '));
            let read = CommandLine::try_parse_from(words.chain(["--server", "x", "--node", "n"]));
            assert!(read.is_ok(), "{line}: {read:?}");
        }
        assert!("pod/a".parse::<Reference>().is_err() && "s/..".parse::<Reference>().is_err());
    }
}
