//! The guest as the first process of a gVisor sandbox: the kernel that is not Linux must keep the same promises.

use std::path::Path;
use std::process::Command;

use atoll_sys::capabilities::{CapabilitySet, number};
use atoll_wire::guest::*;

use crate::support::*;

/// Processes and threads that the workload may have.
const LIMIT: u64 = 40;

/// A guest in a Sentry of its own, with this machine's files read-only.
struct Sandbox {
    host: Option<Host>,
    id: String,
    directory: tempfile::TempDir,
}

impl Sandbox {
    fn new(test: &str) -> Option<Self> {
        let usable = rustix::process::getuid().is_root()
            && Command::new("runsc")
                .arg("--version")
                .output()
                .is_ok_and(|output| output.status.success());
        if !usable {
            eprintln!("SKIPPED: {test}: needs root and runsc");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let capabilities = ["SYS_ADMIN"]
            .into_iter()
            .filter_map(number)
            .fold(CapabilitySet::container_default(), CapabilitySet::with)
            .names();
        let configuration = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/dev/guest", "alone"],
                "env": [],
                "cwd": "/",
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": "/", "readonly": true},
            "hostname": "before",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                // The build may lie below /tmp, which is covered.
                {"destination": "/dev/guest", "type": "bind", "source": env!("CARGO_BIN_EXE_atoll-guest"), "options": ["ro"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            ],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]},
        });
        std::fs::write(directory.path().join("config.json"), configuration.to_string()).unwrap();
        let id = format!("guest-{}-{test}", std::process::id());
        let mut command = runsc(directory.path());
        command.arg("run").arg("-bundle").arg(directory.path()).arg(&id);
        let mut sandbox = Self { host: None, id, directory };
        let mut host = Host::begin(&mut command);
        host.hello(1);
        host.send(
            0,
            HostMessage::Boot(Boot {
                hostname: Some("island".into()),
                pids_limit: Some(LIMIT),
                user_limits: Some(UserLimits { root: LIMIT + 1, other: LIMIT - 1 }),
                ..boot()
            }),
        );
        sandbox.host = Some(host);
        Some(sandbox)
    }

    fn host(&mut self) -> &mut Host {
        self.host.as_mut().expect("set by new")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = runsc(self.directory.path()).args(["kill", &self.id, "KILL"]).output();
        self.host = None;
        let _ = runsc(self.directory.path()).args(["delete", "-force", &self.id]).output();
    }
}

fn runsc(directory: &Path) -> Command {
    let mut command = Command::new("runsc");
    command.arg("--root").arg(directory.join("root"));
    command.args(["--platform=systrap", "--network=none", "--ignore-cgroups", "--host-uds=none"]);
    command
}

fn as_root(script: &str) -> ProcessSpec {
    ProcessSpec {
        user: UserIds::default(),
        capabilities: CapabilitySet::container_default().mask(),
        ..shell(script)
    }
}

fn as_nobody(script: &str) -> ProcessSpec {
    ProcessSpec {
        user: UserIds { uid: 65534, gid: 65534, supplementary_gids: vec![12] },
        ..as_root(script)
    }
}

#[test]
fn everything_that_the_guest_does_works_in_gvisor() {
    let Some(mut sandbox) = Sandbox::new("everything") else { return };
    let host = sandbox.host();
    let ran = host.run(1, as_nobody("cat /proc/sys/kernel/hostname; id -u; id -G; umask; grep -E 'Cap(Eff|Bnd)' /proc/self/status; exit 7"));
    let expected = "island\n65534\n65534 12\n0022\nCapEff:\t0000000000000000\n";
    assert!(
        ran.text().starts_with(expected),
        "{} {}",
        ran.text(),
        String::from_utf8_lossy(&ran.stderr)
    );
    assert_eq!(ran.code(), Some(7));
    let ran = host.run(2, as_root("grep CapBnd /proc/self/status; ls /proc/self/fd | wc -l"));
    let bounding = format!("CapBnd:\t{:016x}\n4\n", CapabilitySet::container_default().mask());
    assert_eq!(ran.text(), bounding);
    // Input, a terminal, orphans, failures, processes, a signal for everyone.
    host.send(3, HostMessage::Exec(ProcessSpec { stdin: true, ..as_root("cat") }));
    host.send(3, HostMessage::Stdin(b"through".to_vec()));
    host.send(3, HostMessage::StdinEnd);
    assert_eq!(host.follow(3).text(), "through");
    let terminal = Some(TerminalSize { rows: 33, columns: 101 });
    let ran = host.run(4, ProcessSpec { terminal, ..as_nobody("stty size; seq 1 3000") });
    assert!(
        ran.text().starts_with("33 101\r\n") && ran.text().ends_with("3000\r\n"),
        "{}",
        ran.text()
    );
    assert_eq!(
        host.run(5, spec(&["no-such-program"])).failure.unwrap().kind,
        StartFailureKind::NotFound
    );
    assert_eq!(host.run(6, as_root("(sleep 1000 &) & exit 0")).exited, Some(SUCCESS));
    host.send(7, HostMessage::Exec(as_nobody("exec sleep 1000")));
    assert!(matches!(host.event(7), GuestMessage::Started(_)));
    host.send(8, HostMessage::ListProcesses);
    let GuestMessage::Processes(processes) = host.event(8) else { panic!("no list") };
    assert!(
        processes
            .iter()
            .any(|process| process.command.contains("sleep 1000") && process.uid == 65534),
        "{processes:?}"
    );
    host.send(0, HostMessage::Signal(SignalRequest { signal: 9, everyone: true }));
    assert_eq!(
        host.event(7),
        GuestMessage::Exited(Exited { code: None, signal: Some(9), pids_limit: false })
    );
    host.send(
        9,
        HostMessage::Download(TransferRequest {
            path: "/etc/hostname".into(),
            user: UserIds::default(),
        }),
    );
    let ran = host.follow(9);
    assert_eq!(ran.transferred.unwrap().error, None);
    host.send(
        10,
        HostMessage::Upload(TransferRequest { path: "/tmp".into(), user: UserIds::default() }),
    );
    host.send(10, HostMessage::Stdin(ran.stdout));
    host.send(10, HostMessage::StdinEnd);
    assert_eq!(host.follow(10).transferred.unwrap().error, None);
    assert_eq!(host.run(11, as_root("cmp /tmp/hostname /etc/hostname")).exited, Some(SUCCESS));
    // A new host, and the end.
    host.send(0, HostMessage::Start(as_root("exit 9")));
    assert!(matches!(host.event(0), GuestMessage::Started(_)));
    let ack = host.take_over(77);
    let exited = ack.streams.first().and_then(|state| state.exited);
    if exited.is_none() {
        assert_eq!(host.event(0), GuestMessage::Credit(INITIAL_STDIN_WINDOW_BYTES));
        assert!(matches!(host.event(0), GuestMessage::Exited(Exited { code: Some(9), .. })));
    }
    host.send(0, HostMessage::ExitAck);
    assert_eq!(host.guest.wait().unwrap().code(), Some(9));
}

#[test]
fn the_guest_is_out_of_reach_in_gvisor() {
    let Some(mut sandbox) = Sandbox::new("attacks") else { return };
    let host = sandbox.host();
    let script = r#"
        for path in mem; do head -c 100 /proc/1/$path 2>/dev/null | grep -q . && echo OPEN $path; done
        for number in /proc/1/fd/* /proc/1/task/1/fd/*; do
            readlink $number >/dev/null && echo OPEN link $number
            (: < $number) 2>/dev/null && echo OPEN read $number
            (: > $number) 2>/dev/null && echo OPEN write $number
        done
        umount /proc/1/fd 2>/dev/null && echo UNCOVERED
        mount -t proc proc /tmp 2>/dev/null && echo ANOTHER PROC
        perl -e 'use Fcntl;
            for my $how (16, 0x4206) { print "TRACED\n" if syscall(101, $how, 1, 0, 0) == 0; }
            my $buffer = "x" x 8; my $vec = pack("PQ", $buffer, 8); my $far = pack("QQ", 0x400000, 8);
            print "READ\n" if syscall(310, 1, $vec, 1, $far, 1, 0) > 0;
            for my $signal (1..64) {
                syscall(62, 1, $signal); syscall(200, 1, $signal); syscall(234, 1, 1, $signal); syscall(62, 4294967296 + 1, $signal);
                my $info = pack("llllllQQ", $signal, 0, -1, 0, 0, 0, 0, 0) . ("\0" x 88);
                syscall(129, 1, $signal, $info); syscall(297, 1, 1, $signal, $info);
                pipe(R, W); fcntl(R, F_SETOWN, 1); fcntl(R, 10, $signal); fcntl(R, F_SETFL, O_ASYNC | O_NONBLOCK); syswrite(W, "x");
            }
            if (!fork()) { if (syscall(56, 9, 0, 0, 0, 0) == 0) { select(undef, undef, undef, 0.1) } exit 0 } wait;'
        echo looked"#;
    for (stream, spec) in (1..).zip([as_root(script), as_nobody(script)]) {
        let ran = host.run(stream, spec);
        assert_eq!(ran.text(), "looked\n", "{stream}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    assert_eq!(host.run(100, as_root("echo well")).text(), "well\n");
}

/// A process just forked has what its parent has open until it executes its program: there must be nothing of the channel in it.
#[test]
fn no_child_of_the_guest_shows_the_channel_in_gvisor() {
    let Some(mut sandbox) = Sandbox::new("window") else { return };
    let host = sandbox.host();
    // Looks until its input ends. The channel's ends are files of the host, a workload's are pipes of the Sentry's own.
    let script = r#"$| = 1; my (%seen, $opened); print "begun\n";
        vec(my $input, 0, 1) = 1;
        until (select(my $ready = $input, undef, undef, 0)) {
            opendir(my $proc, "/proc");
            for my $pid (grep { /^\d+$/ && $_ > 1 && $_ != $$ } readdir $proc) {
                for my $number (0 .. 40) {
                    my $path = "/proc/$pid/fd/$number";
                    my $link = readlink $path or next;
                    (my $kind = $link) =~ s/\d+/N/g;
                    $seen{$kind}++;
                    $opened++ if $link =~ /^socket/ && open(my $file, "<", $path);
                }
            }
        }
        print "looked: ", join(" ", grep { /host/ } keys %seen), ($opened ? " opened" : ""), ($seen{"pipe:[N]"} ? "" : " nothing"), "\n";"#;
    let args = vec!["perl".into(), "-e".into(), script.into()];
    host.send(1, HostMessage::Exec(ProcessSpec { args, stdin: true, ..as_root("") }));
    while !matches!(host.next_message(), (1, GuestMessage::Stdout { .. })) {}
    for stream in 2..40 {
        assert_eq!(host.run(stream, as_root(":")).exited, Some(SUCCESS));
    }
    host.send(1, HostMessage::StdinEnd);
    let looked = loop {
        match host.next_message() {
            (1, GuestMessage::Stdout { data, .. }) => break data,
            (1, GuestMessage::Exited(exited)) => panic!("it says nothing: {exited:?}"),
            _ => {}
        }
    };
    assert_eq!(String::from_utf8_lossy(&looked), "looked: \n");
}

/// Perl: as many children as can be, then how many there were and why no more; `kind` says how each is made and what it does.
fn until_refused(most: u64) -> String {
    format!(
        r#"$| = 1; my @made; my $refused = ""; for (1..{most}) {{ my $pid = fork(); if (!defined $pid) {{ $refused = $!; last }}
        if (!$pid) {{ sleep 1000; exit }} push @made, $pid }} print "made ", scalar(@made), ": $refused\n";
        kill 9, @made; waitpid($_, 0) for @made;"#
    )
}

fn perl(script: &str, user: ProcessSpec) -> ProcessSpec {
    ProcessSpec { args: vec!["perl".into(), "-e".into(), script.into()], ..user }
}

#[test]
fn a_workload_at_its_pids_limit_in_gvisor_is_told_to_try_again() {
    let Some(mut sandbox) = Sandbox::new("pids") else { return };
    let host = sandbox.host();
    // Of the 40 one is perl itself.
    let expected = "made 39: Resource temporarily unavailable\n";
    for (stream, user) in (1..).zip([as_root(""), as_nobody(""), as_root("")]) {
        let ran = host.run(stream, perl(&until_refused(60), user));
        assert_eq!((ran.text(), ran.exited), (expected, Some(SUCCESS)), "{stream}");
    }
    // Children that nobody reaps count as well, and so do threads.
    let zombies = r#"my ($made, $refused) = (0, 0); for (1..200) { my $pid = fork(); if (!defined $pid) { $refused++; next } exit if !$pid; $made++ }
        print "made $made, refused $refused\n";"#;
    assert_eq!(host.run(5, perl(zombies, as_root(""))).text(), "made 39, refused 161\n");
    assert_eq!(host.run(6, as_root("echo well")).text(), "well\n");
}

#[test]
fn a_fork_bomb_in_gvisor_stays_within_its_limit() {
    let Some(mut sandbox) = Sandbox::new("bomb") else { return };
    let host = sandbox.host();
    // Many that fork at once, and go on when they are refused, as they do who want more than their share.
    let bomb = r#"for (1..6) { fork() } while (1) { my $pid = fork(); select(undef, undef, undef, 0.1); }"#;
    host.send(1, HostMessage::Exec(perl(bomb, as_root(""))));
    assert!(matches!(host.event(1), GuestMessage::Started(_)));
    let mut most = 0;
    for stream in 2..12 {
        host.send(stream, HostMessage::ListProcesses);
        match host.next_message() {
            (of, GuestMessage::Processes(processes)) if of == stream => {
                most = most.max(processes.len())
            }
            (1, GuestMessage::Exited(exited)) => {
                panic!("it kept its limit and was ended: {exited:?}")
            }
            (of, message) => panic!("{of}: {message:?}"),
        }
        // Nothing tells how many there are by now: it is asked for over half a second, in which the bomb meets its limit again and again.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(most as u64, LIMIT, "it reached its limit, and no more");
    host.send(0, HostMessage::Signal(SignalRequest { signal: 9, everyone: true }));
    assert!(matches!(host.event(1), GuestMessage::Exited(_)));
    assert_eq!(host.run(100, as_root("echo well")).text(), "well\n");
}

/// Each user has a limit of its own in gVisor's kernel: root, who may become anybody, has no more for that.
#[test]
fn who_forks_as_many_users_in_gvisor_is_ended_by_the_guest() {
    let Some(mut sandbox) = Sandbox::new("users") else { return };
    let host = sandbox.host();
    let script = r#"for my $uid (1..4) { if (!fork()) { $< = $> = $uid; for (1..30) { fork() || sleep 1000 } sleep 1000 } } sleep 1000"#;
    host.send(1, HostMessage::Exec(perl(script, as_root(""))));
    let ran = host.follow(1);
    assert_eq!(ran.exited, Some(Exited { code: None, signal: Some(9), pids_limit: true }));
    assert_eq!(host.run(2, as_root("echo well")).text(), "well\n");
}
