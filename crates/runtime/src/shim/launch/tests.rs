//! What the first words of a shim that is to take a sandbox over come to.

use std::time::Duration;

use atoll_wire::frame::Frame;
use atoll_wire::shim::{EVENT_KIND, REPLY_KIND, ShimEvent, ShimReply};
use tokio::net::UnixStream;

use super::super::connection::{FrameWriter, frames};
use super::{FirstWord, first_event, first_state};

fn event(event: &ShimEvent) -> Frame {
    Frame { kind: EVENT_KIND, stream: 0, payload: serde_json::to_vec(event).unwrap() }
}

fn refusal(message: &str) -> Frame {
    let reply = ShimReply::Refused { message: message.into() };
    Frame { kind: REPLY_KIND, stream: 0, payload: serde_json::to_vec(&reply).unwrap() }
}

async fn said(frames_said: &[Frame]) -> (super::FrameReader, FrameWriter) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_, mut writer) = frames(theirs);
    for frame in frames_said {
        writer.send(frame).await.unwrap();
    }
    let (reader, ours) = frames(ours);
    // Who only closes its half has said all.
    drop(writer);
    (reader, ours)
}

async fn first_word(frames_said: &[Frame]) -> Result<FirstWord, String> {
    let (mut reader, _writer) = said(frames_said).await;
    tokio::time::timeout(Duration::from_secs(10), first_state(&mut reader)).await.unwrap()
}

#[tokio::test]
async fn a_shim_that_was_spawned_and_then_refuses_has_refused() {
    let spawned = event(&ShimEvent::Spawned { at_monotonic_micros: 1 });
    let word = first_word(&[spawned, refusal("its record is of version 9")]).await;
    assert!(matches!(word, Ok(FirstWord::Refused(why)) if why == "its record is of version 9"));
}

#[tokio::test]
async fn an_end_before_any_state_is_an_end() {
    let spawned = || event(&ShimEvent::Spawned { at_monotonic_micros: 1 });
    assert!(matches!(
        first_word(&[spawned(), event(&ShimEvent::Ended)]).await,
        Ok(FirstWord::Over)
    ));
    let failed = ShimEvent::LaunchFailed { message: "lost".into() };
    assert!(matches!(first_word(&[spawned(), event(&failed)]).await, Ok(FirstWord::Over)));
}

#[tokio::test]
async fn a_shim_that_dies_or_talks_nonsense_has_said_nothing() {
    let spawned = || event(&ShimEvent::Spawned { at_monotonic_micros: 1 });
    let nonsense = |kind| Frame { kind, stream: 0, payload: b"{\"state\":".to_vec() };
    let done = serde_json::to_vec(&ShimReply::Ok).unwrap();
    let unasked = Frame { kind: REPLY_KIND, stream: 0, payload: done };
    for words in [
        vec![],
        vec![spawned()],
        vec![nonsense(REPLY_KIND)],
        vec![spawned(), nonsense(EVENT_KIND)],
        vec![spawned(), unasked],
    ] {
        assert!(first_word(&words).await.is_err(), "{words:?}");
    }
}

/// At a launch: a failure is the first word, and an answer to nothing is passed over.
#[tokio::test]
async fn a_launch_that_failed_says_so_at_once() {
    let failed = ShimEvent::LaunchFailed { message: "no disk".into() };
    let (mut reader, _writer) = said(&[refusal("not now"), event(&failed)]).await;
    assert_eq!(first_event(&mut reader).await, Ok(failed));
    let (mut reader, _writer) = said(&[]).await;
    assert!(first_event(&mut reader).await.unwrap_err().contains("closed"));
}
