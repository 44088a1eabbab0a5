//! One stream of a guest: who takes its output, and how much may still come.
//!
//! What is under way is bounded at every place: the guest gets no more credit than its slowest taker has room, and than the shim is
//! willing to keep for that taker.

use std::collections::VecDeque;
use std::time::Duration;

use atoll_wire::guest::{GuestMessage, INITIAL_STDIN_WINDOW_BYTES, INITIAL_WINDOW_BYTES};

/// A conversation's number.
pub(crate) type ConversationId = u64;

const WINDOW: u64 = INITIAL_WINDOW_BYTES as u64;
/// Credit is sent in no smaller parts, unless the guest is about to stop.
const CREDIT_STEP: u64 = WINDOW / 4;

/// How long a process waits for a client that only looks on and takes nothing. Its log has all that it missed.
pub(crate) const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The container's main process.
    Main,
    /// A process that a client started.
    Process,
    /// A copy into or out of the container.
    Transfer,
    /// A question whose answer goes back as a reply.
    Question,
}

/// A conversation that takes output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taker {
    pub(crate) conversation: ConversationId,
    /// Up to where in the stream (both outputs counted together) it has said that it takes.
    limit: u64,
    /// The stream was made for it: it may let the process wait, as a pipe may.
    patient: bool,
    /// Since when the process waits for it.
    stuck_since: Option<Duration>,
}

/// Output that waits for the first taker of the main process.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) messages: Vec<GuestMessage>,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) purpose: Purpose,
    pub(crate) takers: Vec<Taker>,
    pub(crate) held: Option<Held>,
    received: u64,
    allowed: u64,
    input_room: u64,
    /// Who sent the input for which the guest will give credit back, in order.
    input_debts: VecDeque<(ConversationId, u32)>,
}

impl Stream {
    pub(crate) fn new(purpose: Purpose) -> Self {
        Self {
            purpose,
            takers: Vec::new(),
            held: None,
            received: 0,
            allowed: WINDOW,
            input_room: u64::from(INITIAL_STDIN_WINDOW_BYTES),
            input_debts: VecDeque::new(),
        }
    }

    /// A stream that a guest told of when it was taken over: its windows begin anew.
    pub(crate) fn taken_over(purpose: Purpose) -> Self {
        Self { input_room: 0, ..Self::new(purpose) }
    }

    /// A client takes output from now on, or from the beginning of what is held.
    pub(crate) fn add_taker(&mut self, conversation: ConversationId, from_start: bool) {
        let base = if from_start { 0 } else { self.received };
        let limit = base.saturating_add(WINDOW);
        self.takers.push(Taker { conversation, limit, patient: from_start, stuck_since: None });
    }

    /// Takers for which the process has waited too long are left out from now on, and given; and when to look again.
    pub(crate) fn drop_stuck(
        &mut self,
        now: Duration,
        waiting: impl Fn(ConversationId) -> usize,
    ) -> (Vec<ConversationId>, Option<Duration>) {
        let received = self.received;
        let mut next: Option<Duration> = None;
        let mut dropped = Vec::new();
        self.takers.retain_mut(|taker| {
            let stuck = taker.limit <= received || waiting(taker.conversation) as u64 >= WINDOW;
            if taker.patient || !stuck {
                taker.stuck_since = None;
                return true;
            }
            let until = *taker.stuck_since.get_or_insert(now) + TAKEN_WITHIN;
            if until <= now {
                dropped.push(taker.conversation);
                return false;
            }
            next = Some(next.map_or(until, |other| other.min(until)));
            true
        });
        (dropped, next)
    }

    /// Whether that client was one.
    pub(crate) fn remove_taker(&mut self, conversation: ConversationId) -> bool {
        let before = self.takers.len();
        self.takers.retain(|taker| taker.conversation != conversation);
        before != self.takers.len()
    }

    /// A client takes so much more.
    pub(crate) fn client_credit(&mut self, conversation: ConversationId, bytes: u32) {
        for taker in &mut self.takers {
            if taker.conversation == conversation {
                taker.limit = taker.limit.saturating_add(u64::from(bytes));
            }
        }
    }

    /// Output came. `false`: more than was allowed.
    pub(crate) fn receive(&mut self, bytes: usize) -> bool {
        self.received = self.received.saturating_add(bytes as u64);
        self.received <= self.allowed
    }

    /// The credit to send to the guest now, given how many bytes wait for each taker; 0 for none.
    pub(crate) fn credit_due(&mut self, waiting: impl Fn(ConversationId) -> usize) -> u32 {
        if self.held.is_some() {
            return 0;
        }
        let most = self.received.saturating_add(WINDOW);
        let target = self.takers.iter().fold(most, |target, taker| {
            let room = most.saturating_sub(waiting(taker.conversation) as u64);
            target.min(taker.limit).min(room)
        });
        let due = target.saturating_sub(self.allowed);
        let left = self.allowed.saturating_sub(self.received);
        if due == 0 || (due < CREDIT_STEP && left > CREDIT_STEP) {
            return 0;
        }
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        self.allowed = self.allowed.saturating_add(u64::from(due));
        due
    }

    /// Whether the guest takes so much input now; if so, it is under way.
    pub(crate) fn send_input(&mut self, conversation: ConversationId, bytes: usize) -> bool {
        let Some(room) = self.input_room.checked_sub(bytes as u64) else { return false };
        let Ok(bytes) = u32::try_from(bytes) else { return false };
        self.input_room = room;
        self.input_debts.push_back((conversation, bytes));
        true
    }

    /// The guest takes so much more input: who is to be told of how much of it. What it was not owed (the guest lies, or a client of an
    /// earlier shim is gone) is room for all, up to a window.
    pub(crate) fn guest_credit(&mut self, bytes: u32) -> Vec<(ConversationId, u32)> {
        let most = u64::from(INITIAL_STDIN_WINDOW_BYTES);
        self.input_room = self.input_room.saturating_add(u64::from(bytes)).min(most);
        let mut rest = bytes;
        let mut paid: Vec<(ConversationId, u32)> = Vec::new();
        while rest > 0 {
            let Some((conversation, debt)) = self.input_debts.front_mut() else { break };
            let part = rest.min(*debt);
            rest -= part;
            *debt -= part;
            match paid.last_mut() {
                Some((last, sum)) if last == conversation => *sum += part,
                _ => paid.push((*conversation, part)),
            }
            if *debt == 0 {
                self.input_debts.pop_front();
            }
        }
        paid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_taker_decides_and_nobody_at_all_takes_everything() {
        let mut stream = Stream::new(Purpose::Main);
        assert!(stream.receive(WINDOW as usize));
        assert_eq!(u64::from(stream.credit_due(|_| 0)), WINDOW, "only the log takes it");
        stream.add_taker(1, false);
        stream.add_taker(2, false);
        assert!(stream.receive(WINDOW as usize));
        assert_eq!(stream.credit_due(|_| 0), 0, "neither client has said a word");
        stream.client_credit(1, INITIAL_WINDOW_BYTES);
        assert_eq!(stream.credit_due(|_| 0), 0, "the other one has not");
        stream.client_credit(2, u32::MAX);
        assert_eq!(stream.credit_due(|id| if id == 2 { WINDOW as usize } else { 0 }), 0);
        assert_eq!(
            u64::from(stream.credit_due(|_| 0)),
            WINDOW,
            "credit of 4 GiB is given in windows"
        );
        assert!(stream.remove_taker(1) && !stream.remove_taker(1));
        assert!(!stream.receive(WINDOW as usize + 1), "more than was allowed");
    }

    #[test]
    fn who_only_looks_on_lets_nobody_wait_for_ever() {
        let at = Duration::from_secs;
        let mut stream = Stream::new(Purpose::Main);
        stream.add_taker(1, true);
        stream.add_taker(2, false);
        stream.add_taker(3, false);
        assert_eq!(stream.drop_stuck(at(1), |_| 0), (vec![], None), "nothing is to be taken");
        assert!(stream.receive(WINDOW as usize));
        assert_eq!(stream.drop_stuck(at(2), |_| 0), (vec![], Some(at(12))));
        stream.client_credit(3, 1);
        assert_eq!(stream.drop_stuck(at(5), |_| 0), (vec![], Some(at(12))));
        assert_eq!(
            stream.drop_stuck(at(6), |id| if id == 3 { WINDOW as usize } else { 0 }),
            (vec![], Some(at(12))),
        );
        assert_eq!(stream.drop_stuck(at(12), |_| 0), (vec![2], None), "3 takes, 1 may wait");
        assert_eq!(stream.credit_due(|_| 0), 0, "the one it was made for");
        assert!(stream.remove_taker(1) && stream.remove_taker(3) && !stream.remove_taker(2));
    }

    #[test]
    fn what_is_held_waits_for_its_client() {
        let mut stream = Stream::new(Purpose::Main);
        stream.held = Some(Held::default());
        assert!(stream.receive(WINDOW as usize));
        assert_eq!(stream.credit_due(|_| 0), 0);
        stream.held = None;
        stream.add_taker(1, true);
        assert_eq!(stream.credit_due(|_| 0), 0, "the client got a window's worth already");
        stream.client_credit(1, 1000);
        assert_eq!(stream.credit_due(|_| 0), 1000);
    }

    #[test]
    fn input_credit_goes_to_who_sent_the_input() {
        let mut stream = Stream::new(Purpose::Main);
        assert!(stream.send_input(1, 100) && stream.send_input(2, 50) && stream.send_input(2, 50));
        assert!(!stream.send_input(1, INITIAL_STDIN_WINDOW_BYTES as usize), "no room for it now");
        assert_eq!(stream.guest_credit(120), [(1, 100), (2, 20)]);
        assert_eq!(stream.guest_credit(u32::MAX), [(2, 80)]);
        assert!(stream.send_input(1, INITIAL_STDIN_WINDOW_BYTES as usize));
        assert!(!stream.send_input(1, 1), "a lie about credit gives no more than a window");
        assert!(!Stream::taken_over(Purpose::Main).send_input(1, 1));
    }
}
