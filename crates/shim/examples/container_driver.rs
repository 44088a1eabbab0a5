//! Drives engine `container` by hand, for its tests and for measuring it: one single-threaded process, as a shim is.
//!
//! ```text
//! container_driver DIRECTORY            reads DIRECTORY/launch.json, then commands from standard input, one answer a line
//! container_driver --bench DIRECTORY N  prints how long N sandboxes of that launch took, phase by phase
//! ```
//!
//! Commands: `prepare`, `begin N`, `wait N`, `kill N`, `signal N SIGNAL`, `evidence N`, `exec N PROCESS-AS-JSON`, `end_boost`,
//! `adopt RECORD-AS-JSON`, `remove`. A container reads DIRECTORY/N.in, where it exists, and writes DIRECTORY/N.out and N.err; a process
//! from outside writes DIRECTORY/exec.out and exec.err. Answers are `ok ...` or `error ...`.
#![allow(
    clippy::print_stdout,
    reason = "a program for tests and measurements answers on its output"
)]

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_shim::engine::{Begun, Engine, Resources, StandardStreams};
use atoll_sys::disk_image::{TemplateImage, mount_image};
use atoll_sys::mount::{Attributes, new_file_system};
use atoll_sys::{clone, process};
use atoll_wire::record::ShimRecord;
use atoll_wire::shim::Launch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::UnshareFlags;

/// No container of the tests takes longer.
const LONGEST_WAIT: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [directory] => answer_commands(Path::new(directory)),
        ["--bench", directory, count] => bench(Path::new(directory), count.parse()?),
        _ => Err("usage: container_driver DIRECTORY | --bench DIRECTORY N".into()),
    }
}

fn answer_commands(directory: &Path) -> Outcome<()> {
    let launch: Launch = serde_json::from_slice(&fs::read(directory.join("launch.json"))?)?;
    let mut driver = Driver::new(directory, &launch)?;
    for line in std::io::stdin().lock().lines() {
        match driver.command(&line?) {
            Ok(answer) => println!("ok {answer}"),
            Err(error) => println!("error {}", error.to_string().replace('\n', " ")),
        }
    }
    // A test that failed half-way leaves nothing either.
    driver.engine.remove()?;
    Ok(())
}

struct Driver {
    directory: PathBuf,
    engine: Box<dyn Engine>,
    begun: Vec<Option<OwnedFd>>,
}

impl Driver {
    fn new(directory: &Path, launch: &Launch) -> Outcome<Self> {
        let engine = atoll_shim::container::engine(launch, resources(directory, launch)?)?;
        let begun = launch.plan.containers.iter().map(|_| None).collect();
        Ok(Self { directory: directory.into(), engine, begun })
    }

    fn command(&mut self, line: &str) -> Outcome<String> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let number = number.parse().unwrap_or(0);
        match verb {
            "prepare" => self.engine.prepare()?,
            "begin" => return self.begin(number),
            "wait" => self.wait(number)?,
            "kill" => self.engine.kill(number)?,
            "signal" => self.engine.signal(number, rest.parse()?)?,
            "evidence" => return Ok(format!("{:?}", self.engine.evidence(number))),
            "exec" => {
                let streams = streams(&self.directory, "exec")?;
                let spec = serde_json::from_str(rest)?;
                let begun = self.engine.exec_from_outside(number, &spec, streams)?;
                wait_for(&begun.ended)?;
                let exit = process::reap(begun.init.pid, process::Wait::Block)?;
                return Ok(format!("{exit:?}"));
            }
            "end_boost" => self.engine.end_boost()?,
            "adopt" => {
                let json = line.split_once(' ').map_or("", |(_, json)| json);
                let record: ShimRecord = serde_json::from_str(json)?;
                let adopted = self.engine.adopt(&record)?;
                let shown: Vec<bool> = adopted.iter().map(Option::is_some).collect();
                self.begun = adopted.into_iter().map(|one| one.map(|begun| begun.ended)).collect();
                return Ok(format!("{shown:?}"));
            }
            "remove" => self.engine.remove()?,
            _ => return Err(format!("unknown command {verb:?}").into()),
        }
        Ok(String::new())
    }

    fn begin(&mut self, number: usize) -> Outcome<String> {
        let streams = streams(&self.directory, &number.to_string())?;
        let Begun { init, ended } = self.engine.begin(number, streams)?;
        if let Some(slot) = self.begun.get_mut(number) {
            *slot = Some(ended);
        }
        Ok(format!("{} {} {}", init.pid, init.start_time_ticks, init.boot_id))
    }

    fn wait(&self, number: usize) -> Outcome<()> {
        let ended = self.begun.get(number).and_then(Option::as_ref);
        wait_for(ended.ok_or("that container was not begun")?)
    }
}

fn wait_for(ended: &OwnedFd) -> Outcome<()> {
    match poll(&mut [PollFd::new(ended, PollFlags::IN)], Some(&LONGEST_WAIT))? {
        0 => Err("it has not ended".into()),
        _ => Ok(()),
    }
}

fn streams(directory: &Path, name: &str) -> Outcome<StandardStreams> {
    let output = |end: &str| -> Outcome<OwnedFd> {
        let path = directory.join(format!("{name}.{end}"));
        Ok(OpenOptions::new().create(true).append(true).open(path)?.into())
    };
    let input = directory.join(format!("{name}.in"));
    let input = if input.exists() { input } else { "/dev/null".into() };
    let input = OpenOptions::new().read(true).write(true).open(input)?;
    Ok(StandardStreams { input: input.into(), output: output("out")?, diagnostics: output("err")? })
}

/// What a server would have prepared.
fn resources(directory: &Path, launch: &Launch) -> Outcome<Resources> {
    let open = || File::open("/proc/self/ns/net");
    let own = open()?;
    clone::unshare(UnshareFlags::NEWNET)?;
    let network: OwnedFd = open()?.into();
    let sysfs = new_file_system("sysfs", &[], Attributes::MOUNT_ATTR_RDONLY);
    clone::enter(own.as_fd())?;
    let mut disks = Vec::new();
    for container in &launch.plan.containers {
        let template = TemplateImage::prepare(directory, container.disk_bytes)?;
        let path = directory.join(format!("{}.ext4", container.name));
        let image = template.instantiate(&path)?;
        // Open or mounted, it stays; its name is not needed.
        fs::remove_file(&path)?;
        disks.push((container.name.clone(), mount_image(&image, &path)?));
    }
    let (network_namespace, sysfs) = (Some(network), Some(sysfs?));
    Ok(Resources { network_namespace, sysfs, disks, ..Resources::default() })
}

/// One process a sandbox, as a spawner does it.
fn bench(directory: &Path, count: usize) -> Outcome<()> {
    let launch: Launch = serde_json::from_slice(&fs::read(directory.join("launch.json"))?)?;
    let results = directory.join("bench");
    fs::write(&results, "")?;
    for number in 0..count {
        let child = clone::start(UnshareFlags::empty(), None, || {
            i32::from(one_round(directory, &launch, number, &results).is_err())
        })?;
        let exit = process::reap(child.pid, process::Wait::Block)?;
        if exit != Some(process::Exit::Code(0)) {
            return Err(format!("round {number} failed: {exit:?}").into());
        }
    }
    let text = fs::read_to_string(&results)?;
    println!(
        "{:<10} {:>10} {:>10} {:>10} {:>10}",
        "phase", "least us", "p50 us", "p95 us", "max us"
    );
    for phase in ["prepare", "begin", "remove"] {
        let mut micros: Vec<u64> =
            text.lines().filter_map(|line| line.strip_prefix(phase)?.trim().parse().ok()).collect();
        micros.sort_unstable();
        let at = |part: usize| micros.get(micros.len() * part / 100).copied().unwrap_or(0);
        println!(
            "{phase:<10} {:>10} {:>10} {:>10} {:>10}",
            at(0),
            at(50),
            at(95),
            micros.last().unwrap_or(&0)
        );
    }
    Ok(())
}

fn one_round(directory: &Path, launch: &Launch, number: usize, results: &Path) -> Outcome<()> {
    let mut launch = launch.clone();
    launch.plan.uid = format!("{number:016x}");
    let mut driver = Driver::new(directory, &launch)?;
    let mut measured = Vec::new();
    let mut measure = |phase, step: &mut dyn FnMut() -> Outcome<()>| -> Outcome<()> {
        let start = Instant::now();
        step()?;
        measured.push((phase, start.elapsed()));
        Ok(())
    };
    let mut outcome = measure("prepare", &mut || Ok(driver.engine.prepare()?))
        .and_then(|()| measure("begin", &mut || driver.begin(0).map(drop)));
    if outcome.is_ok() {
        outcome = driver.wait(0);
    }
    let removed = measure("remove", &mut || Ok(driver.engine.remove()?));
    let lines: Vec<String> = measured
        .iter()
        .map(|(phase, took): &(&str, Duration)| format!("{phase} {}\n", took.as_micros()))
        .collect();
    let file = OpenOptions::new().append(true).open(results)?;
    std::io::Write::write_all(&mut &file, lines.concat().as_bytes())?;
    if let Err(error) = &outcome {
        println!("{error}");
    }
    outcome.and(removed)
}
