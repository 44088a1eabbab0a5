//! What containers with `init: image` need of the engine.

use atoll_sys::process::Exit;
use atoll_wire::guest::Exited;

use super::Shim;
use super::container::MAIN;
use crate::end_reason::Seen;
use crate::peer::{Need, Peer};

impl Shim {
    /// Does what is needed now.
    pub(super) fn fulfil_needs(&mut self) {
        for at in 0..self.containers.len() {
            while let Peer::Outside(outside) = &mut self.containers[at].peer
                && let Some(need) = outside.next_need()
            {
                match need {
                    Need::Start { stream, process, streams } => {
                        let begun = self
                            .engine
                            .exec_from_outside(at, &process, streams)
                            .map_err(|error| error.to_string());
                        if let Peer::Outside(outside) = &mut self.containers[at].peer {
                            outside.started(stream, begun);
                        }
                    }
                    // What has ended takes no signal, and will be seen to have ended.
                    Need::Signal(signal) => drop(self.engine.signal(at, signal)),
                    Need::Kill => drop(self.engine.kill(at)),
                }
            }
            if self.containers[at].has_messages() {
                self.take_messages(at);
            }
        }
    }

    /// The image's own first process has ended: the kernel knows how, if this shim is its parent.
    pub(super) fn image_gone(&mut self, at: usize) {
        let exited = match self.engine.evidence(at).init_exit {
            Some(Exit::Code(code)) => Exited { code: Some(code), signal: None, pids_limit: false },
            Some(Exit::Signal(signal)) => {
                Exited { code: None, signal: Some(signal), pids_limit: false }
            }
            None if self.stop_asked => return self.end_container(at, Seen::FirstProcessGone),
            None => return self.end_container(at, Seen::Nobody),
        };
        let container = &mut self.containers[at];
        container.ended = None;
        if let Peer::Outside(outside) = &mut container.peer {
            outside.main_ended(exited, &mut self.scratch);
        }
        self.take_messages(at);
    }

    /// There is nobody to say so: a container with `init: image` has started when its first process has.
    pub(super) fn start_image(&mut self, at: usize) {
        self.containers[at].add_main_stream();
        let pid = self.containers[at].init.as_ref().map_or(MAIN.cast_signed(), |init| init.pid);
        self.main_started(at, atoll_wire::guest::Started { pid });
    }
}
