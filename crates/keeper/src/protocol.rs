//! The conversation between a server and its keeper, which may be of an older release: it outlives servers.
//!
//! Requests and answers are JSON in the frames of `atoll_wire::frame`, one answer after each request. A server speaks first and says its
//! version; what a newer version adds, an older side must be able to ignore (fields) or never gets (requests, by the version of the other).

use atoll_wire::frame::{Frame, PayloadTooLarge};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::member::{Holding, Member, PortHold, ResolverPlace};

/// What this release speaks.
pub(crate) const VERSION: u32 = 1;
/// Kinds of frames.
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

/// From a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// The first.
    Hello { version: u32 },
    /// Serve names there; `None`: nowhere.
    Resolve { place: Option<ResolverPlace> },
    /// Hold these ports besides what is held for this sandbox, all of them or none.
    Hold { uid: String, ports: Vec<PortHold> },
    /// This is what is wanted of a sandbox from now on.
    Put { member: Member },
    /// Nothing is wanted of a sandbox any more.
    Remove { uid: String },
    /// Nothing is wanted of any but these.
    Retain { uids: Vec<String> },
    /// What is held?
    Inventory,
    /// End, and let everything go.
    Retire,
}

/// From the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To Hello.
    Welcome { version: u32, pid: u32 },
    /// To Hello, when the server's version is newer: the keeper understands up to its own.
    TooNew { version: u32 },
    /// It is so.
    Done,
    /// A port could not be taken; nothing has changed.
    Taken { hold: PortHold, by: Option<String> },
    /// Something of it could not be done; asked again, it is tried again.
    Failed { message: String },
    /// A part of the inventory; `Done` follows the last.
    Holding { holding: Holding },
}

/// Appends a request to what is sent.
pub(crate) fn put_request(out: &mut Vec<u8>, request: &Request) -> Result<(), PayloadTooLarge> {
    put(out, REQUEST, request)
}

/// Appends an answer to what is sent.
pub(crate) fn put_answer(out: &mut Vec<u8>, answer: &Answer) -> Result<(), PayloadTooLarge> {
    put(out, ANSWER, answer)
}

/// The request in a frame; `None`: it is none that this release knows.
pub(crate) fn request_of(frame: &Frame) -> Option<Request> {
    of(frame, REQUEST)
}

/// The answer in a frame; `None`: it is none that this release knows.
pub(crate) fn answer_of(frame: &Frame) -> Option<Answer> {
    of(frame, ANSWER)
}

fn put(out: &mut Vec<u8>, kind: u8, message: &impl Serialize) -> Result<(), PayloadTooLarge> {
    // Numbers, texts and lists of them always serialise.
    let payload = serde_json::to_vec(message).unwrap_or_default();
    Frame { kind, stream: 0, payload }.encode(out)
}

fn of<T: DeserializeOwned>(frame: &Frame, kind: u8) -> Option<T> {
    if frame.kind != kind {
        return None;
    }
    serde_json::from_slice(&frame.payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{Addresses, Names, Port, Protocol};

    /// What version 1 looks like for ever: an older keeper reads it.
    #[test]
    fn the_shape_of_version_1() {
        let member = Member {
            uid: "0123456789abcdef".into(),
            addresses: Some(Addresses {
                ipv4: [10, 128, 1, 1].into(),
                ipv6: "fd00::1:1".parse().unwrap(),
            }),
            names: Names::Forward {
                granted: vec!["10.0.0.0".parse().unwrap()..="10.0.0.255".parse().unwrap()],
            },
            ports: vec![Port {
                hold: PortHold { protocol: Protocol::Tcp, host_port: 10_000 },
                target_port: 80,
                open: true,
            }],
        };
        let text = r#"{"request":"put","member":{"uid":"0123456789abcdef","addresses":{"ipv4":"10.128.1.1","ipv6":"fd00::1:1"},"names":{"forward":{"granted":[{"start":"10.0.0.0","end":"10.0.0.255"}]}},"ports":[{"hold":{"protocol":"tcp","host_port":10000},"target_port":80,"open":true}]}}"#;
        let request = Request::Put { member };
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        let hello = r#"{"request":"hello","version":2,"new":"is ignored"}"#;
        assert_eq!(
            serde_json::from_str::<Request>(hello).unwrap(),
            Request::Hello { version: 2 },
            "a later Hello is understood"
        );
    }
}
