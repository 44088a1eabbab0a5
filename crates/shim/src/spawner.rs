//! The spawner: a small process with one thread that copies itself once for each sandbox.
//!
//! A copy is a shim without an exec: its start costs page tables and nothing else, and what neither changes is shared. The spawner
//! knows no sandbox: it waits for none, and its end ends none.

use std::os::fd::{AsFd, OwnedFd};

use atoll_sys::forking::{
    EndedChildren, Forked, SingleThread, exit_copy, set_ended_children, take_inherited,
};
use atoll_sys::helper_program::INHERITED_DESCRIPTOR;
use atoll_sys::packet::{MAX_PACKET_DESCRIPTORS, receive_packet};
use atoll_wire::shim::{
    DescriptorRole, Launch, MAX_SPAWN_DESCRIPTORS, MAX_SPAWN_PACKET_BYTES, SHIM_PROTOCOL_VERSION,
    SpawnRequest,
};

use crate::engine::{Engine, EngineError, Resources};
use crate::shim;

const _: () = assert!(MAX_SPAWN_DESCRIPTORS <= MAX_PACKET_DESCRIPTORS);

/// Makes the engine that a launch names.
pub type MakeEngine = fn(&Launch, Resources) -> Result<Box<dyn Engine>, EngineError>;

/// Serves requests on descriptor 3 until its other side is closed.
///
/// # Errors
/// The socket is missing or broken, or this process has threads.
pub fn run(make_engine: MakeEngine) -> std::io::Result<()> {
    let socket = take_inherited(INHERITED_DESCRIPTOR)?;
    let alone = SingleThread::verify()?;
    set_ended_children(EndedChildren::Vanish)?;
    // Inherited by all shims and what they start: what crashes in a sandbox is not for the host's root to parse.
    atoll_sys::process::forbid_core_dumps().map_err(std::io::Error::other)?;
    // A shim that ends quickly must not wait for its server to look: nobody asks how shims end.
    let mut packet = vec![0; MAX_SPAWN_PACKET_BYTES];
    loop {
        let (length, descriptors) = match receive_packet(socket.as_fd(), &mut packet) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                complain(&format!("a request was refused: {error}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        let (request, given) = match read_request(&packet[..length], descriptors) {
            Ok(read) => read,
            Err(why) => {
                complain(&format!("a request was refused: {why}"));
                continue;
            }
        };
        match alone.fork() {
            Ok(Forked::Parent(_)) => {}
            Ok(Forked::Child) => {
                drop(socket);
                drop(packet);
                exit_copy(shim::main(&request, given, make_engine));
            }
            // The conversation is closed with `given`: the server sees that nobody took the request.
            Err(error) => complain(&format!("cannot start a shim: {error}")),
        }
    }
}

/// What came with a request.
#[derive(Debug)]
pub struct Given {
    /// The shim's first connection.
    pub conversation: Option<OwnedFd>,
    /// For the engine.
    pub resources: Resources,
}

fn read_request(packet: &[u8], descriptors: Vec<OwnedFd>) -> Result<(SpawnRequest, Given), String> {
    let request: SpawnRequest =
        serde_json::from_slice(packet).map_err(|error| error.to_string())?;
    if request.version != SHIM_PROTOCOL_VERSION {
        return Err(format!(
            "version {} of the protocol is not known; this program speaks {SHIM_PROTOCOL_VERSION}",
            request.version
        ));
    }
    if request.descriptors.len() != descriptors.len() {
        return Err(format!(
            "{} descriptors were announced and {} came",
            request.descriptors.len(),
            descriptors.len()
        ));
    }
    let mut given = Given { conversation: None, resources: Resources::default() };
    for (role, descriptor) in request.descriptors.iter().zip(descriptors) {
        match role {
            DescriptorRole::Conversation => given.conversation = Some(descriptor),
            DescriptorRole::NetworkNamespace => {
                given.resources.network_namespace = Some(descriptor);
            }
            DescriptorRole::Sysfs => given.resources.sysfs = Some(descriptor),
            DescriptorRole::Disk(name) => given.resources.disks.push((name.clone(), descriptor)),
            DescriptorRole::Volume(name) => {
                given.resources.volumes.push((name.clone(), descriptor));
            }
        }
    }
    Ok((request, given))
}

/// A line for whoever started the spawner; lost when nobody reads it.
fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "atoll-shim spawner: {text}");
}
