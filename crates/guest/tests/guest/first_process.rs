//! The guest as what it is: the first process of a pid namespace, with a workload that attacks it.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use atoll_sys::capabilities::CapabilitySet;
use atoll_wire::guest::*;

use crate::support::*;

/// How the namespaces are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    /// The machine's own.
    Host,
    /// A user namespace as sandboxes have: root inside is nobody in particular outside.
    Own,
}

/// First host id of the user namespaces. Nobody needs to own it: nothing is written as these users.
const FIRST_HOST_ID: u32 = 1_879_048_192;

/// A guest in namespaces of its own, booted; `None` (and a word why) where this machine does not allow that.
fn contained(test: &str, users: Users) -> Option<Host> {
    contained_by(test, users, &[])
}

/// The same, with the guest started by another command in the namespaces.
fn contained_by(test: &str, users: Users, starter: &[&str]) -> Option<Host> {
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: {test}: needs root");
        return None;
    }
    // Where users of the namespace can reach it.
    let directory =
        tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let program = directory.path().join("atoll-guest");
    std::fs::copy(env!("CARGO_BIN_EXE_atoll-guest"), &program).unwrap();
    let mut command = Command::new("unshare");
    if users == Users::Own {
        let Some(namespace) = UserNamespace::new() else {
            eprintln!("SKIPPED: {test}: no user namespaces here");
            return None;
        };
        command = Command::new("nsenter");
        command.arg(format!("--user=/proc/{}/ns/user", namespace.holder.id())).arg("unshare");
        let host = begin(&mut command, starter, &program);
        drop(namespace);
        return Some(host);
    }
    Some(begin(&mut command, starter, &program))
}

fn begin(command: &mut Command, starter: &[&str], program: &Path) -> Host {
    command.args(["--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]);
    let mut host = Host::begin(command.args(starter).arg(program));
    host.hello(1);
    host.send(0, HostMessage::Boot(Boot { hostname: Some("island".into()), ..boot() }));
    host
}

/// A process that holds a user namespace until somebody else has entered it.
struct UserNamespace {
    holder: Child,
}

impl UserNamespace {
    fn new() -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "sh", "-c", "echo ready; exec sleep 1000"]).stdout(Stdio::piped());
        let mut namespace = Self { holder: command.spawn().ok()? };
        let mut ready = [0; 6];
        namespace.holder.stdout.take()?.read_exact(&mut ready).ok()?;
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", namespace.holder.id());
            std::fs::write(path, format!("0 {FIRST_HOST_ID} 65536\n")).ok()?;
        }
        Some(namespace)
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn default_capabilities() -> u64 {
    CapabilitySet::container_default().mask()
}

fn as_root(script: &str) -> ProcessSpec {
    let user = UserIds::default();
    ProcessSpec { user, capabilities: default_capabilities(), ..shell(script) }
}

fn as_nobody(script: &str) -> ProcessSpec {
    let user = UserIds { uid: 65534, gid: 65534, supplementary_gids: Vec::new() };
    ProcessSpec { user, capabilities: default_capabilities(), ..shell(script) }
}

/// Who attacks where: everybody that a workload can be.
fn attackers(test: &str, script: &str) -> Vec<(Host, ProcessSpec)> {
    let cases = [
        (Users::Host, as_root(script)),
        (Users::Host, as_nobody(script)),
        (Users::Own, as_root(script)),
        (Users::Own, as_nobody(script)),
    ];
    let ordinary =
        cases.into_iter().filter_map(|(users, spec)| Some((contained(test, users)?, spec)));
    // The strongest: root with every capability that the guest itself has, where neither has CAP_SYS_PTRACE. Here only that the guest is
    // not dumpable is left to protect it. (In the machine's own user namespace CAP_SYS_ADMIN would see through that: nobody gets it.)
    let strongest = contained_by(test, Users::Own, &["setpriv", "--bounding-set=-sys_ptrace"])
        .map(|host| (host, ProcessSpec { capabilities: u64::MAX, ..as_root(script) }));
    ordinary.chain(strongest).collect()
}

#[test]
fn no_signal_from_inside_reaches_the_guest() {
    let script = "i=1; while [ $i -le 64 ]; do kill -$i 1 2>/dev/null; i=$((i+1)); done; kill -9 1; kill -STOP 1; kill -9 -1; echo here";
    for (mut host, spec) in attackers("no_signal_from_inside_reaches_the_guest", script) {
        host.send(0, HostMessage::Start(as_root("sleep 1000")));
        assert!(matches!(host.event(0), GuestMessage::Started(_)));
        let ran = host.run(1, spec);
        assert!(ran.exited.is_some());
        assert_eq!(host.run(2, as_root("echo well")).text(), "well\n");
    }
}

#[test]
fn nothing_of_the_guest_can_be_read_or_written_from_inside() {
    let script = r#"
        for path in fd/0 fdinfo/0 map_files root/ cwd/; do ls /proc/1/$path >/dev/null 2>&1 && echo OPEN $path; done
        for path in environ mem maps smaps stack syscall auxv io; do cat /proc/1/$path >/dev/null 2>&1 && echo OPEN $path; done
        for number in 0 1 2; do
            readlink /proc/1/fd/$number && echo OPEN link $number
            (: < /proc/1/fd/$number) 2>/dev/null && echo OPEN read $number
            (: > /proc/1/fd/$number) 2>/dev/null && echo OPEN write $number
        done
        (echo 500 > /proc/1/oom_score_adj) 2>/dev/null && [ $(id -u) != 0 ] && echo OPEN oom_score_adj
        echo looked"#;
    for (mut host, spec) in
        attackers("nothing_of_the_guest_can_be_read_or_written_from_inside", script)
    {
        assert_eq!(host.run(1, spec).text(), "looked\n");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_guest_cannot_be_traced_nor_its_descriptors_taken() {
    // SOURCE: numbers of arch/x86/entry/syscalls/syscall_64.tbl: ptrace (16 attach, 0x4206 seize), process_vm_readv, pidfd_open, pidfd_getfd, prlimit64.
    let script = r#"perl -e '
        for my $how (16, 0x4206) { print "TRACED\n" if syscall(101, $how, 1, 0, 0) == 0; }
        my $buffer = "x" x 8; my $vec = pack("PQ", $buffer, 8); my $far = pack("QQ", 0x400000, 8);
        print "READ\n" if syscall(310, 1, $vec, 1, $far, 1, 0) > 0;
        my $pidfd = syscall(434, 1, 0);
        for my $fd (0..4) { print "TAKEN $fd\n" if $pidfd >= 0 && syscall(438, $pidfd, $fd, 0) >= 0; }
        my $limits = pack("QQ", 3, 3);
        for my $limit (0..15) { print "LIMITED $limit\n" if syscall(302, 1, $limit, $limits, 0) == 0; }
        print "tried\n";'"#;
    for (mut host, spec) in
        attackers("the_guest_cannot_be_traced_nor_its_descriptors_taken", script)
    {
        let ran = host.run(1, spec);
        assert_eq!(ran.text(), "tried\n", "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(host.run(2, as_root("echo well")).text(), "well\n");
    }
}

#[test]
fn a_process_has_no_descriptor_of_the_channel() {
    let script = "for fd in /proc/self/fd/*; do readlink $fd; done | sort | uniq -c | sort -rn; ls -l /proc/self/fd | grep -c /in\\$";
    for (mut host, spec) in attackers("a_process_has_no_descriptor_of_the_channel", script) {
        let ran = host.run(1, spec);
        assert!(!ran.text().contains("/out") && ran.text().ends_with("\n0\n"), "{}", ran.text());
    }
}

#[test]
fn everyone_but_the_guest_takes_a_signal_for_everyone() {
    let Some(mut host) =
        contained("everyone_but_the_guest_takes_a_signal_for_everyone", Users::Host)
    else {
        return;
    };
    host.send(
        0,
        HostMessage::Start(as_root("setsid sh -c 'trap \"\" TERM; sleep 1000' & sleep 1000")),
    );
    assert!(matches!(host.event(0), GuestMessage::Started(_)));
    host.send(1, HostMessage::Exec(as_nobody("sleep 1000")));
    assert!(matches!(host.event(1), GuestMessage::Started(_)));
    host.send(0, HostMessage::Signal(SignalRequest { signal: 9, everyone: true }));
    let mut ended = Vec::new();
    while ended.len() < 2 {
        if let (stream, GuestMessage::Exited(exited)) = host.next_message() {
            assert_eq!(exited.signal, Some(9));
            ended.push(stream);
        }
    }
    host.send(2, HostMessage::ListProcesses);
    for stream in 3..1000 {
        host.send(stream, HostMessage::ListProcesses);
        let GuestMessage::Processes(processes) = host.event(stream) else { panic!("no list") };
        if processes.is_empty() {
            return;
        }
        // The guest tells the end of what it was asked to start, not that of others' children.
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("somebody is left");
}

#[test]
fn the_end_of_the_command_is_the_end_of_everything_inside() {
    let Some(mut host) =
        contained("the_end_of_the_command_is_the_end_of_everything_inside", Users::Own)
    else {
        return;
    };
    host.send(
        0,
        HostMessage::Start(as_root("cat /proc/sys/kernel/hostname; setsid sleep 1000 & exit 5")),
    );
    let ran = host.follow(0);
    assert_eq!((ran.text(), ran.code()), ("island\n", Some(5)));
    host.send(1, HostMessage::SetHostname("reef".into()));
    assert_eq!(host.event(1), GuestMessage::Done);
    assert_eq!(host.run(2, as_root("cat /proc/sys/kernel/hostname")).text(), "reef\n");
    host.send(3, HostMessage::SetHostname("x".repeat(65)));
    assert!(matches!(host.event(3), GuestMessage::Refused(_)));
    let inside = descendants(host.guest.id());
    assert!(inside.len() >= 2, "the guest and the sleeper: {inside:?}");
    host.send(0, HostMessage::ExitAck);
    assert_eq!(host.guest.wait().unwrap().code(), Some(5), "unshare passes the guest's code on");
    assert!(inside.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}/root/")).exists()));
}

#[test]
fn a_user_that_is_not_mapped_is_a_failure_and_not_root() {
    let Some(mut host) =
        contained("a_user_that_is_not_mapped_is_a_failure_and_not_root", Users::Own)
    else {
        return;
    };
    let user = UserIds { uid: 70_000, gid: 70_000, supplementary_gids: Vec::new() };
    let failure = host.run(1, ProcessSpec { user, ..as_root("id -u") }).failure.unwrap();
    assert_eq!(failure.kind, StartFailureKind::Other);
    assert!(failure.message.contains("Identity"), "{}", failure.message);
}
