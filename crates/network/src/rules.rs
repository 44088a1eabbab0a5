//! The rules of ring and host: two texts, loaded whole by `nft` at the start and on repair. No sandbox ever costs a process.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::elements::Element;
use crate::error::NetworkError;
use crate::namespace::Namespace;
use crate::subnet::Subnet;

/// The ring's table.
pub(crate) const RING_TABLE: &str = "atoll";
/// The uplink's name in the ring.
pub(crate) const UPLINK_IN_RING: &str = "uplink";
/// Most connections of a sandbox, and most to it, open at a time. Guess: an order above what a busy browser has; a sixty-fourth of
/// the kernel's default table of 262,144, which all share.
pub const MAX_CONNECTIONS: u32 = 4096;
/// Where nft lives, whatever PATH a service manager gave.
const TOOL_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

const RING: &str = include_str!("rules/ring.nft");
const HOST: &str = include_str!("rules/host.nft");
const RING_SETS: [&str; 9] =
    ["sources4", "sources6", "slots", "grants4", "grants6", "doors4", "doors6", "host4", "host6"];
const HOST_SETS: [&str; 2] = ["published4", "published6"];

/// The ring's rules with these elements.
pub(crate) fn ring(subnet: &Subnet, elements: &[Element]) -> String {
    let gateway = subnet.gateway();
    let text = with_elements(RING, &RING_SETS, elements);
    text.replace("@UPLINK@", UPLINK_IN_RING)
        .replace("@GATEWAY4@", &gateway.ipv4.to_string())
        .replace("@GATEWAY6@", &gateway.ipv6.to_string())
        .replace("@CONNECTIONS@", &MAX_CONNECTIONS.to_string())
}

/// The host's rules with these elements.
pub(crate) fn host(names: &HostNames, subnet: &Subnet, elements: &[Element]) -> String {
    let ((ipv4, length4), (ipv6, length6)) = (subnet.ipv4(), subnet.ipv6());
    let text = with_elements(HOST, &HOST_SETS, elements);
    text.replace("@TABLE@", &names.table)
        .replace("@UPLINK@", &names.uplink)
        .replace("@SUBNET4@", &format!("{ipv4}/{length4}"))
        .replace("@SUBNET6@", &format!("{ipv6}/{length6}"))
}

/// What takes the host's rules away, there or not.
pub(crate) fn unloading(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// What an instance has on the host, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostNames {
    pub(crate) table: String,
    pub(crate) uplink: String,
}

impl HostNames {
    /// SOURCE: a name of an interface has 15 bytes at most; an instance's has 12.
    pub(crate) fn of(instance: &str) -> Self {
        let short: String = instance.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        Self { table: format!("atoll_{short}"), uplink: format!("at-{short}") }
    }
}

fn with_elements(text: &str, sets: &[&str], elements: &[Element]) -> String {
    let mut text = text.to_owned();
    for set in sets {
        let texts: Vec<String> =
            elements.iter().filter(|it| it.set == *set).map(Element::text).collect();
        let line = if texts.is_empty() {
            String::new()
        } else {
            format!("elements = {{ {} }}", texts.join(", "))
        };
        text = text.replace(&format!("@{set}@"), &line);
    }
    text
}

/// Gives `nft` a text, in a namespace; all of it holds afterwards, or nothing of it.
pub(crate) fn load(namespace: &Namespace, text: &str) -> Result<(), NetworkError> {
    run(namespace, &["-f", "-"], text).map(drop)
}

/// What `nft` answers to a question.
pub(crate) fn list(namespace: &Namespace, arguments: &[&str]) -> Result<String, NetworkError> {
    run(namespace, arguments, "")
}

fn run(namespace: &Namespace, arguments: &[&str], text: &str) -> Result<String, NetworkError> {
    namespace.inside(|| {
        let failed = || NetworkError::kernel("run nft");
        let mut nft = Command::new("nft")
            .args(arguments)
            .env_clear()
            .env("PATH", TOOL_PATH)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| NetworkError::Unavailable {
                message: format!("nft cannot be started ({error}): install the package nftables"),
            })?;
        if let Some(mut stdin) = nft.stdin.take() {
            stdin.write_all(text.as_bytes()).map_err(failed())?;
        }
        let output = nft.wait_with_output().map_err(failed())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said: String = String::from_utf8_lossy(&output.stderr).chars().take(600).collect();
        Err(NetworkError::Unavailable {
            message: format!(
                "nft refused its rules; this kernel may lack a part of nf_tables: {said}"
            ),
        })
    })
}
