//! A spawner whose engine isolates nothing but process ids: for tests of the shim's core, which must hold with every engine.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use atoll_shim::engine::{Begun, EndEvidence, Engine, EngineError, Resources, StandardStreams};
use atoll_shim::spawner;
use atoll_sys::clone;
use atoll_sys::process::{ProcessIdentity, Wait, peek_exit, reap, send_signal};
use atoll_wire::guest::{Boot, ProcessSpec};
use atoll_wire::record::ShimRecord;
use atoll_wire::shim::{ContainerPlan, Init, Launch};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::UnshareFlags;

fn main() -> std::io::Result<()> {
    spawner::run(|launch, resources| Ok(Box::new(Bare::new(launch, resources))))
}

/// Each container is a process in a pid namespace; with it goes everything that it started.
struct Bare {
    guest: PathBuf,
    containers: Vec<ContainerPlan>,
    from_outside: Vec<ProcessIdentity>,
    first: Vec<Option<First>>,
    /// A file whose presence makes `prepare` fail.
    refuse: PathBuf,
    /// A file that tells of the boost's end.
    boost_ended: PathBuf,
    _resources: Resources,
}

struct First {
    identity: ProcessIdentity,
    child: bool,
}

impl Bare {
    fn new(launch: &Launch, resources: Resources) -> Self {
        Self {
            guest: launch.placement.guest_binary.clone(),
            containers: launch.plan.containers.clone(),
            from_outside: Vec::new(),
            first: launch.plan.containers.iter().map(|_| None).collect(),
            refuse: launch.placement.directory.join("refuse"),
            boost_ended: launch.placement.directory.join("boost-ended"),
            _resources: resources,
        }
    }
}

fn failed(operation: &str) -> impl Fn(&dyn std::fmt::Display) -> EngineError {
    move |error| EngineError::new(operation, error)
}

fn start(
    namespaces: UnshareFlags,
    arguments: Vec<Vec<u8>>,
    streams: StandardStreams,
) -> Result<clone::Child, EngineError> {
    let failed = failed("start a process");
    let arguments: Vec<CString> = arguments.into_iter().flat_map(CString::new).collect();
    let program = arguments.first().cloned().ok_or_else(|| failed(&"it has no name"))?;
    clone::start(namespaces, None, || {
        let _ = rustix::stdio::dup2_stdin(&streams.input);
        let _ = rustix::stdio::dup2_stdout(&streams.output);
        let _ = rustix::stdio::dup2_stderr(&streams.diagnostics);
        let environment = [c"PATH=/usr/bin:/bin".to_owned()];
        for directory in ["/", "/usr/bin/", "/bin/"] {
            let mut path = directory.as_bytes().to_vec();
            path.extend_from_slice(program.as_bytes());
            if let Ok(path) = CString::new(path) {
                let _ = clone::execute_path(&path, &arguments, &environment);
            }
        }
        126
    })
    .map_err(|e| failed(&e))
}

impl Engine for Bare {
    fn prepare(&mut self) -> Result<(), EngineError> {
        if self.refuse.exists() {
            return Err(EngineError::new("prepare the sandbox", "the test wants it so"));
        }
        Ok(())
    }

    fn begin(&mut self, container: usize, streams: StandardStreams) -> Result<Begun, EngineError> {
        let failed = failed("begin a container");
        let plan = &self.containers[container];
        let arguments = match plan.init {
            Init::Guest => vec![self.guest.as_os_str().as_bytes().to_vec()],
            Init::Image => plan.process.args.iter().map(|one| one.clone().into_bytes()).collect(),
        };
        let child = start(UnshareFlags::NEWPID, arguments, streams)?;
        let identity = ProcessIdentity::of(child.pid)
            .map_err(|e| failed(&e))?
            .ok_or_else(|| failed(&"it is gone"))?;
        self.first[container] = Some(First { identity: identity.clone(), child: true });
        Ok(Begun { init: identity, ended: child.pidfd })
    }

    fn boot(&mut self, _container: usize) -> Result<Boot, EngineError> {
        Ok(Boot {
            hostname: None,
            seccomp_filter_base64: String::new(),
            pids_limit: None,
            user_limits: None,
        })
    }

    fn adopt(&mut self, record: &ShimRecord) -> Result<Vec<Option<Begun>>, EngineError> {
        let failed = failed("take over");
        let mut begun = Vec::new();
        for (at, first) in self.first.iter_mut().enumerate() {
            let Some(one) = record.containers.get(at) else {
                begun.push(None);
                continue;
            };
            let identity = ProcessIdentity {
                pid: one.init.pid,
                start_time_ticks: one.init.start_time_ticks,
                boot_id: one.init.boot_id.clone(),
            };
            let ended = identity.open().map_err(|e| failed(&e))?;
            if ended.is_some() {
                *first = Some(First { identity: identity.clone(), child: false });
            }
            begun.push(ended.map(|ended| Begun { init: identity, ended }));
        }
        Ok(begun)
    }

    fn exec_from_outside(
        &mut self,
        _container: usize,
        process: &ProcessSpec,
        streams: StandardStreams,
    ) -> Result<Begun, EngineError> {
        let failed = failed("start a process from outside");
        let arguments = process.args.iter().map(|one| one.clone().into_bytes()).collect();
        let child = start(UnshareFlags::empty(), arguments, streams)?;
        let init = ProcessIdentity::of(child.pid)
            .map_err(|e| failed(&e))?
            .ok_or_else(|| failed(&"it is gone"))?;
        self.from_outside.push(init.clone());
        Ok(Begun { init, ended: child.pidfd })
    }

    fn kill(&mut self, container: usize) -> Result<(), EngineError> {
        self.signal(container, 9)
    }

    fn signal(&mut self, container: usize, signal: i32) -> Result<(), EngineError> {
        let failed = failed("send a signal");
        if let Some(first) = &self.first[container]
            && let Some(process) = first.identity.open().map_err(|e| failed(&e))?
        {
            send_signal(process.as_fd(), signal).map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    fn end_boost(&mut self) -> Result<(), EngineError> {
        std::fs::write(&self.boost_ended, "").map_err(|error| failed("end the boost")(&error))
    }

    fn evidence(&mut self, container: usize) -> EndEvidence {
        let child = self.first[container].as_ref().filter(|first| first.child);
        let init_exit =
            child.and_then(|first| peek_exit(first.identity.pid, Wait::Now).ok().flatten());
        EndEvidence { init_exit, ..EndEvidence::default() }
    }

    fn remove(&mut self) -> Result<(), EngineError> {
        for process in self.from_outside.drain(..) {
            if let Ok(Some(process)) = process.open() {
                let _ = send_signal(process.as_fd(), 9);
            }
        }
        for at in 0..self.first.len() {
            self.kill(at)?;
            let Some(first) = self.first[at].take() else { continue };
            let failed = failed("wait for a container");
            if first.child {
                reap(first.identity.pid, Wait::Block).map_err(|e| failed(&e))?;
            } else if let Some(process) = first.identity.open().map_err(|e| failed(&e))? {
                poll(&mut [PollFd::new(&process, PollFlags::IN)], None).map_err(|e| failed(&e))?;
            }
        }
        Ok(())
    }
}
