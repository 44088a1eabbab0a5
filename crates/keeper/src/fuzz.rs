//! Bodies of the fuzz targets of this crate.

use std::net::{IpAddr, Ipv4Addr};

use crate::resolver::message::{Question, answer};

/// A message that a sandbox sends, and the same bytes as an upstream server's answer. Must not panic; what is answered is an answer.
pub fn names(bytes: &[u8]) {
    if let Ok(question) = Question::read(bytes) {
        let query = question.for_upstream(4711);
        assert!(query.len() <= 512, "a question fits the smallest datagram");
        drop(answer(&question, 4711, bytes, &|_: IpAddr| false));
        // Its own echo is no answer.
        assert!(answer(&question, 4711, &query, &|_| true).is_none());
    }
    let known = Question::read(&KNOWN).ok();
    if let Some(known) = known
        && let Some(message) =
            answer(&known, 0x1234, bytes, &|address| address == IpAddr::V4(Ipv4Addr::LOCALHOST))
    {
        drop(message.bytes(Some(512)));
    }
}

/// A question for the address of `example.com`.
const KNOWN: [u8; 29] = [
    0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7, b'e', b'x', b'a', b'm', b'p', b'l', b'e', 3, b'c',
    b'o', b'm', 0, 0, 1, 0, 1,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_messages_do_no_harm() {
        names(&KNOWN);
        for cut in 0..KNOWN.len() {
            names(&KNOWN[..cut]);
        }
        // A name that points at itself, and one that points forward.
        for pointer in [12, 14, 255] {
            let mut loops = KNOWN[..12].to_vec();
            loops.extend([0xc0, pointer, 0, 1, 0, 1]);
            names(&loops);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(0_u8.., 0..600)) {
            names(&bytes);
        }

        #[test]
        fn any_changes_of_a_question_do_no_harm(at in 0..29_usize, to in 0_u8.., more in proptest::collection::vec(0_u8.., 0..64)) {
            let mut bytes = KNOWN.to_vec();
            bytes[at] = to;
            bytes.extend(more);
            names(&bytes);
        }
    }
}
