//! `atoll down`: ends an instance and everything that runs in it. Returns once nothing is left.
//!
//! Where the server was killed, its sandboxes may still run: then a server is started for a moment, which finds and ends them.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use atoll_runtime::shim::ShimHost;
use atoll_server::ListenAddress;
use atoll_sys::process::{ProcessIdentity, ProcessState};
use atoll_wire::rest::{ServerRecord, Shutdown};
use reqwest::Method;
use rustix::event::{PollFd, PollFlags, poll};

use super::{Outcome, SUCCESS, detached};
use crate::args::{ConnectionArgs, DownArgs};
use crate::client::Client;
use crate::instance::{Instance, server_record};
use crate::output::{self, Spinner};

/// Ends an instance.
pub(super) async fn down(args: DownArgs, connection: &ConnectionArgs) -> Outcome {
    let directory = &connection.data_dir;
    let mut record = live_record(directory)?;
    if record.is_none() && has_left_something(directory) {
        output::note("The server is not there, but it may have left sandboxes: looking for them.");
        let anywhere: ListenAddress = "127.0.0.1:0".parse()?;
        // With every class, so that whatever there is can be ended. A network that is there is taken over all the same.
        let flags = ["--enable-sim", "--network=off"].map(str::to_owned);
        detached::start(directory, &anywhere, &flags)?;
        record = live_record(directory)?;
    }
    let Some(record) = record else {
        output::print(&format!("no atoll runs for data directory {}\n", directory.display()))?;
        return Ok(SUCCESS);
    };
    let ended = tokio::time::timeout(args.timeout, end(directory, &record)).await;
    match ended {
        Ok(result) => result?,
        Err(_) => anyhow::bail!(
            "the server (pid {}) has not ended within {:?}: see {}",
            record.process.pid,
            args.timeout,
            detached::log_path(directory).display()
        ),
    }
    output::print(&format!("atoll has ended (data directory {})\n", directory.display()))?;
    Ok(SUCCESS)
}

/// The record of the server of a data directory, if that server is alive.
fn live_record(directory: &Path) -> anyhow::Result<Option<ServerRecord>> {
    let Some(record) = server_record(directory)? else { return Ok(None) };
    // A zombie is no server: whoever started it has not asked for its end.
    Ok((identity(&record).state()? == ProcessState::Running).then_some(record))
}

fn identity(record: &ServerRecord) -> ProcessIdentity {
    ProcessIdentity {
        pid: record.process.pid,
        start_time_ticks: record.process.start_time_ticks,
        boot_id: record.process.boot_id.clone(),
    }
}

/// Whether a server of this data directory has left sandboxes or a network on this machine.
fn has_left_something(directory: &Path) -> bool {
    let mut sandboxes = std::fs::read_dir(directory.join("sandboxes")).into_iter().flatten();
    sandboxes.next().is_some() || ShimHost::has_network(directory)
}

async fn end(directory: &Path, record: &ServerRecord) -> anyhow::Result<()> {
    // Opened before it is told to end, so that its pid cannot be another's.
    let Some(process) = identity(record).open()? else { return Ok(()) };
    let spinner = Spinner::new("ending the sandboxes and the server");
    let client = Client::new(Instance::of_data_dir(directory, None)?)?;
    let request =
        client.request(Method::POST, "/api/v1/shutdown").json(&Shutdown { delete_sandboxes: true });
    client.send(request).await?;
    // A thread of its own may block; it is left behind when the time is over.
    tokio::task::spawn_blocking(move || wait_for_end(&process))
        .await
        .context("cannot wait for the server's end")??;
    drop(spinner);
    Ok(())
}

/// Blocks until a process has ended: then its pidfd is readable. SOURCE: pidfd_open(2).
fn wait_for_end(process: &OwnedFd) -> anyhow::Result<()> {
    let mut waiting = [PollFd::new(process, PollFlags::IN)];
    loop {
        match poll(&mut waiting, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the server's end"),
        }
    }
}
