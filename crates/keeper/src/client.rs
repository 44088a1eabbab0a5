//! A server's side of its keeper: begins one where none lives, attaches, says what is wanted.
//!
//! Calls block, for a millisecond or so, and can be made from any thread. A keeper that dies is noticed by the next call, and by
//! [`KeeperClient::wait_for_end`]; whoever owns the wanted state begins another and says all of it again.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use atoll_sys::helper_program::start_program;
use atoll_sys::process::{Wait, reap};
use atoll_wire::frame::Decoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::member::{Holding, Member, PortHold, ResolverPlace};
use crate::place::Place;
use crate::protocol::{Answer, Request, VERSION, answer_of, put_request};

/// How long a keeper may take to begin: two orders more than it does on a busy machine.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often it is tried to attach to one that ends at that moment, and to begin another.
const ATTEMPTS: usize = 5;

/// How a keeper is begun.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// The program, whose `main` calls [`crate::program_main`].
    pub program: PathBuf,
    /// Of the instance. Its directory `network` exists.
    pub data_dir: PathBuf,
}

/// Why a keeper has not done something.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A port that somebody has. Nothing has changed.
    #[error("{hold} of this host is taken by {}", .by.as_deref().map_or_else(|| "a program outside of atoll".to_owned(), |uid| format!("sandbox {uid}")))]
    Taken {
        /// The port.
        hold: PortHold,
        /// The sandbox that has it; `None`: another program.
        by: Option<String>,
    },
    /// One of another release lives, and this one cannot speak with it.
    #[error(
        "the keeper that runs speaks version {keeper} of its protocol, this server version {VERSION}; end it (its published connections break): kill {pid}"
    )]
    Version {
        /// Its version.
        keeper: u32,
        /// The process.
        pid: u32,
    },
    /// The keeper could not do it.
    #[error("the network keeper: {message}")]
    Failed {
        /// What it says.
        message: String,
    },
    /// None could be begun.
    #[error("the network keeper does not start ({log} may say why): {message}", log = log.display())]
    NotStarted {
        /// Where it writes.
        log: PathBuf,
        /// What was seen of it.
        message: String,
    },
    /// It is dead, or as good as. Begin another.
    #[error("the network keeper does not answer")]
    Gone(#[source] std::io::Error),
}

/// A conversation with a keeper.
#[derive(Debug)]
pub struct KeeperClient {
    conversation: Mutex<Conversation>,
    /// To see its end without disturbing the conversation.
    watch: UnixStream,
    pid: u32,
    begun: bool,
}

#[derive(Debug)]
struct Conversation {
    stream: UnixStream,
    decoder: Decoder,
}

impl KeeperClient {
    /// Attaches to the keeper of an instance; begins one where none lives.
    ///
    /// # Errors
    /// [`KeeperError::NotStarted`], [`KeeperError::Version`], [`KeeperError::Gone`].
    pub fn start_or_attach(options: &StartOptions) -> Result<Self, KeeperError> {
        let place = Place::of(&options.data_dir);
        let mut last = std::io::Error::from(ErrorKind::NotFound);
        let mut begun = false;
        for _ in 0..ATTEMPTS {
            match place.with_address(|address| UnixStream::connect(address)) {
                Ok(stream) => match Self::attach(stream, begun) {
                    Err(KeeperError::Gone(error)) => last = error,
                    other => return other,
                },
                Err(error) if is_nobody(&error) => {
                    begin(options, &place)?;
                    begun = true;
                    last = error;
                }
                Err(error) => return Err(KeeperError::Gone(error)),
            }
        }
        if begun && is_nobody(&last) {
            let message = "it ends at once".to_owned();
            return Err(KeeperError::NotStarted { log: place.log(), message });
        }
        Err(KeeperError::Gone(last))
    }

    /// Attaches to the keeper of an instance where one lives.
    ///
    /// # Errors
    /// [`KeeperError::Version`], [`KeeperError::Gone`].
    pub fn attach_only(data_dir: impl Into<PathBuf>) -> Result<Option<Self>, KeeperError> {
        let place = Place::of(&data_dir.into());
        match place.with_address(|address| UnixStream::connect(address)) {
            Ok(stream) => Self::attach(stream, false).map(Some),
            Err(error) if is_nobody(&error) => Ok(None),
            Err(error) => Err(KeeperError::Gone(error)),
        }
    }

    fn attach(stream: UnixStream, begun: bool) -> Result<Self, KeeperError> {
        let peer = rustix::net::sockopt::socket_peercred(&stream)
            .map_err(|errno| KeeperError::Gone(errno.into()))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(KeeperError::Gone)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN)).map_err(KeeperError::Gone)?;
        let watch = stream.try_clone().map_err(KeeperError::Gone)?;
        let mut conversation = Conversation { stream, decoder: Decoder::new() };
        let pid = peer.pid.as_raw_nonzero().get().cast_unsigned();
        match conversation.ask(&Request::Hello { version: VERSION })? {
            Answer::Welcome { version, pid } if version <= VERSION => {
                Ok(Self { conversation: Mutex::new(conversation), watch, pid, begun })
            }
            Answer::Welcome { version, .. } | Answer::TooNew { version } => {
                Err(KeeperError::Version { keeper: version, pid })
            }
            answer => Err(unexpected(&answer)),
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this call began it: it holds nothing yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.begun
    }

    /// Holds ports for a sandbox besides those that it has, closed: all of them or none.
    ///
    /// # Errors
    /// [`KeeperError::Taken`] for the first that somebody else has.
    pub fn hold(&self, uid: &str, ports: &[PortHold]) -> Result<(), KeeperError> {
        self.done(&Request::Hold { uid: uid.to_owned(), ports: ports.to_vec() })
    }

    /// Serves names at the gateway of a ring, or nowhere.
    ///
    /// # Errors
    /// [`KeeperError::Failed`]: without a resolver then.
    pub fn resolve(&self, place: Option<&ResolverPlace>) -> Result<(), KeeperError> {
        self.done(&Request::Resolve { place: place.cloned() })
    }

    /// Makes true what is wanted of a sandbox: ports are held, opened, closed and given back, names answered. The same again changes nothing.
    ///
    /// # Errors
    /// [`KeeperError::Taken`] when a port of it is not held yet and not to be had.
    pub fn put(&self, member: &Member) -> Result<(), KeeperError> {
        self.done(&Request::Put { member: member.clone() })
    }

    /// Lets everything of a sandbox go. Its connections are cut, its ports free.
    ///
    /// # Errors
    /// [`KeeperError::Gone`].
    pub fn remove(&self, uid: &str) -> Result<(), KeeperError> {
        self.done(&Request::Remove { uid: uid.to_owned() })
    }

    /// Makes true the whole wanted state: who is not in `members` goes, the others are put. What cannot be is answered for each; the rest is done.
    ///
    /// # Errors
    /// [`KeeperError::Gone`].
    pub fn set(&self, members: &[Member]) -> Result<Vec<(String, KeeperError)>, KeeperError> {
        let uids = members.iter().map(|member| member.uid.clone()).collect();
        self.done(&Request::Retain { uids })?;
        let mut refused = Vec::new();
        for member in members {
            match self.put(member) {
                Ok(()) => {}
                Err(error @ KeeperError::Gone(_)) => return Err(error),
                Err(error) => refused.push((member.uid.clone(), error)),
            }
        }
        Ok(refused)
    }

    /// What it holds.
    ///
    /// # Errors
    /// [`KeeperError::Gone`].
    pub fn inventory(&self) -> Result<Vec<Holding>, KeeperError> {
        let mut conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        conversation.say(&Request::Inventory)?;
        let mut holdings = Vec::new();
        loop {
            match conversation.hear()? {
                Answer::Holding { holding } => holdings.push(holding),
                Answer::Done => return Ok(holdings),
                answer => return Err(unexpected(&answer)),
            }
        }
    }

    /// Ends it; everything is let go.
    ///
    /// # Errors
    /// [`KeeperError::Gone`], which is an end as well.
    pub fn retire(&self) -> Result<(), KeeperError> {
        self.done(&Request::Retire)?;
        self.wait_for_end();
        Ok(())
    }

    /// Ends the conversation; the keeper goes on. Wakes who waits for its end.
    pub fn detach(&self) {
        // One that is over already cannot be ended.
        let _ = self.watch.shutdown(std::net::Shutdown::Both);
    }

    /// Waits until the keeper is gone, or attached to somebody else.
    pub fn wait_for_end(&self) {
        loop {
            let mut ends = [PollFd::from_borrowed_fd(self.watch.as_fd(), PollFlags::RDHUP)];
            // Interrupted: once more. Anything else cannot happen to an open descriptor, and would be an end.
            if poll(&mut ends, None) != Err(rustix::io::Errno::INTR) {
                return;
            }
        }
    }

    fn done(&self, request: &Request) -> Result<(), KeeperError> {
        let mut conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        match conversation.ask(request)? {
            Answer::Done => Ok(()),
            Answer::Taken { hold, by } => Err(KeeperError::Taken { hold, by }),
            Answer::Failed { message } => Err(KeeperError::Failed { message }),
            answer => Err(unexpected(&answer)),
        }
    }
}

impl Conversation {
    fn ask(&mut self, request: &Request) -> Result<Answer, KeeperError> {
        self.say(request)?;
        self.hear()
    }

    fn say(&mut self, request: &Request) -> Result<(), KeeperError> {
        let mut out = Vec::new();
        put_request(&mut out, request)
            .map_err(|error| KeeperError::Failed { message: error.to_string() })?;
        self.stream.write_all(&out).map_err(KeeperError::Gone)
    }

    fn hear(&mut self) -> Result<Answer, KeeperError> {
        let mut buffer = [0; 8 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                let nonsense = || KeeperError::Gone(ErrorKind::InvalidData.into());
                return answer_of(&frame).ok_or_else(nonsense);
            }
            match self.stream.read(&mut buffer).map_err(|error| self.broken(error))? {
                0 => return Err(KeeperError::Gone(ErrorKind::UnexpectedEof.into())),
                count => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// An answer that comes too late must not be taken for that to the next request.
    fn broken(&self, error: std::io::Error) -> KeeperError {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        KeeperError::Gone(error)
    }
}

fn unexpected(answer: &Answer) -> KeeperError {
    KeeperError::Failed { message: format!("an answer to another question: {answer:?}") }
}

fn is_nobody(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// Begins a keeper and waits until it can be reached.
fn begin(options: &StartOptions, place: &Place) -> Result<(), KeeperError> {
    let failed = |message: String| KeeperError::NotStarted { log: place.log(), message };
    let io_failed = |error: std::io::Error| failed(error.to_string());
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(place.log())
        .map_err(io_failed)?;
    let (reader, writer) = std::io::pipe().map_err(io_failed)?;
    let arguments = options.arguments();
    let arguments = arguments.ok_or_else(|| failed("its data directory is no UTF-8".into()))?;
    let pid = start_program(&options.program, &arguments, writer.as_fd(), log.as_fd())
        .map_err(io_failed)?;
    drop(writer);
    // Only its parent can reap it; it holds nothing, and ends with this process at the latest.
    let reaper = std::thread::Builder::new().name("keeper".into()).stack_size(64 * 1024);
    drop(reaper.spawn(move || reap(pid, Wait::Block)));
    wait_until_ready(reader).map_err(failed)
}

fn wait_until_ready(mut reader: std::io::PipeReader) -> Result<(), String> {
    let deadline = Instant::now() + BEGIN_WITHIN;
    let mut text = Vec::new();
    while !text.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|error| error.to_string())?;
        let mut ready = [PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN)];
        match poll(&mut ready, Some(&left)) {
            Ok(0) => return Err(format!("it says nothing for {} s", BEGIN_WITHIN.as_secs())),
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.to_string()),
            Ok(_) => {}
        }
        let mut buffer = [0; 64];
        match reader.read(&mut buffer) {
            // Another one may have been quicker: whether somebody answers is seen next.
            Ok(0) => return Ok(()),
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
