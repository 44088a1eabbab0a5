//! The profile as data, the compiled filter by a small interpreter, and the filter for real on a thread of its own (a filter
//! binds the thread that installs it and what that thread starts, so no test process is spoilt).

use std::process::Command;

use super::profile::{Decision, Refusal};
use super::*;

const ALLOW: u32 = 0x7FFF_0000;
const KILL: u32 = 0x8000_0000;

fn errno(number: i32) -> u32 {
    0x0005_0000 | number.cast_unsigned()
}

/// Runs a filter as the kernel would, for the instructions that the compiler makes.
fn run(filter: &[u8], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    for _ in 0..4096 {
        let bytes = &filter[at * 8..at * 8 + 8];
        let (jump_true, jump_false) = (usize::from(bytes[2]), usize::from(bytes[3]));
        let value = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        at += 1;
        match u16::from_le_bytes([bytes[0], bytes[1]]) {
            0x20 => accumulator = word(value as usize),
            0x54 => accumulator &= value,
            0x05 => at += value as usize,
            0x15 => at += if accumulator == value { jump_true } else { jump_false },
            0x35 => at += if accumulator >= value { jump_true } else { jump_false },
            0x06 => return value,
            code => panic!("instruction {code:#x}"),
        }
    }
    panic!("no end")
}

fn names() -> Vec<&'static str> {
    let x86 = syscalls::x86_64::Sysno::iter().map(|one| one.name());
    let mut names: Vec<_> =
        x86.chain(syscalls::aarch64::Sysno::iter().map(|one| one.name())).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn every_known_system_call_is_decided_once_with_a_reason() {
    let profile = Profile::container_default().unwrap();
    let decided = profile.by_name().unwrap();
    let undecided: Vec<_> =
        names().into_iter().filter(|name| !decided.contains_key(name)).collect();
    assert_eq!(undecided, Vec::<&str>::new(), "decide these in seccomp/container.json");
    assert!(decided.len() > 300);
}

#[test]
fn a_profile_with_a_flaw_is_refused_by_name() {
    let profile = |allowed: &str, conditional: &str| {
        let text = format!(
            r#"{{"version":1,"reviewed_through":"mseal","allowed":[{allowed}],
                "conditional":[{conditional}],"denied":[]}}"#
        );
        Profile::parse(&text).unwrap_err().to_string()
    };
    let family = |reason: &str, name: &str| {
        format!(r#"{{"family":"f","reason":"{reason}","syscalls":["{name}"]}}"#)
    };
    let rule = |condition: &str| {
        format!(
            r#"{{"syscall":"ioctl","reason":"r","allow_when":[[{condition}]],"otherwise":"EPERM"}}"#
        )
    };
    assert!(profile(&family(" ", "read"), "").contains("no reason"));
    assert!(profile(&family("r", "raed"), "").contains("raed"));
    let twice = format!("{},{}", family("r", "read"), family("r", "read"));
    assert!(profile(&twice, "").contains("twice"));
    assert!(profile("", &rule("")).contains("always or never"));
    assert!(profile("", &rule(r#"{"arg":6,"one_of":["0x1"]}"#)).contains("above 5"));
    assert!(profile("", &rule(r#"{"arg":1}"#)).contains("exactly one"));
    assert!(profile("", &rule(r#"{"arg":1,"one_of":["1"]}"#)).contains("malformed"));
    assert!(Profile::parse("{}").is_err());
}

#[test]
fn the_filter_answers_each_call_as_the_profile_says_on_both_architectures() {
    let profile = Profile::container_default().unwrap();
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let filter = compile(&profile, arch).unwrap();
        for (name, decision) in profile.by_name().unwrap() {
            let Some(number) = arch.number(name) else { continue };
            let expected = match decision {
                Decision::Allow => ALLOW,
                Decision::Refuse(refusal) => 0x0005_0000 | refusal.errno(),
                Decision::When { .. } => continue,
            };
            assert_eq!(run(&filter, arch.audit(), number, [0; 6]), expected, "{name}");
        }
        for unknown in [470, 1000, 0x3FFF_FFFF, 0x4000_0000, 0x4000_0027, u32::MAX] {
            let answer = run(&filter, arch.audit(), unknown, [0; 6]);
            assert_eq!(answer, errno(libc::ENOSYS), "{unknown:#x}");
        }
        // i386 and 32-bit ARM. SOURCE: AUDIT_ARCH_* in include/uapi/linux/audit.h.
        for foreign in [0x4000_0003, 0x4000_0028, 0] {
            assert_eq!(run(&filter, foreign, 1, [0; 6]), KILL);
        }
    }
}

#[test]
fn arguments_decide_about_sockets_namespaces_terminals_and_personalities() {
    let filter = container_filter().unwrap();
    let ask = |name: &str, args: [u64; 3]| {
        let [a, b, c] = args;
        let number = Arch::NATIVE.number(name).unwrap();
        run(filter, Arch::NATIVE.audit(), number, [a, b, c, 0, 0, 0])
    };
    let family = errno(libc::EAFNOSUPPORT);
    let upper = 1_u64 << 32;
    let no_memory = errno(libc::ENOMEM);
    // Only reading RLIMIT_CORE; a pointer whose low half is zero is a pointer.
    for (name, args, expected) in [
        ("prlimit64", [0, 7, 0x1000], ALLOW),
        ("prlimit64", [0, 4, 0], ALLOW),
        ("prlimit64", [0, 4, 0x1000], errno(0)),
        ("prlimit64", [0, 4 | upper, upper], errno(0)),
        ("setrlimit", [4, 0x1000, 0], errno(0)),
        ("setrlimit", [7, 0x1000, 0], ALLOW),
        ("memfd_create", [0, 1, 0], ALLOW),
        ("memfd_create", [0, 5, 0], no_memory),
        ("shmget", [0, 4096, 0o1600], ALLOW),
        ("shmget", [0, 4096, 0o5600], no_memory),
    ] {
        assert_eq!(ask(name, args), expected, "{name} {args:x?}");
    }
    let map = |flags| {
        let number = Arch::NATIVE.number("mmap").unwrap();
        run(filter, Arch::NATIVE.audit(), number, [0, 4096, 3, flags, u64::MAX, 0])
    };
    assert_eq!((map(0x22), map(0x40022), map(0x40022 | upper)), (ALLOW, no_memory, no_memory));
    for (args, expected) in [
        ([1, 1, 0], ALLOW),
        ([1 | upper, 1, 0], ALLOW),
        ([2, 1 | 0x80800, 6], ALLOW),
        ([2, 2, 0], ALLOW),
        ([2, 1, 132], family),
        ([2, 5, 0], family),
        ([10, 1, 0], ALLOW),
        ([10, 2, 58], ALLOW),
        ([16, 3, 0], ALLOW),
        ([16, 3, 15], family),
        ([16 | upper, 3, 9], family),
        ([17, 3, 0], family),
        ([38, 5, 0], family),
        ([40, 1, 0], family),
        ([0, 0, 0], family),
    ] {
        assert_eq!(ask("socket", args), expected, "socket{args:?}");
    }
    assert_eq!(ask("clone", [0x0001_0f00, 0, 0]), ALLOW, "a thread");
    for bit in [17, 25, 26, 27, 28, 29, 30] {
        assert_eq!(ask("clone", [1 << bit | 17, 0, 0]), errno(libc::EPERM), "bit {bit}");
    }
    assert_eq!(ask("ioctl", [0, 0x5413, 0]), ALLOW);
    // A terminal's input; ways out of a disk's quota: project ids, subvolumes and snapshots of btrfs.
    let quota = [0x401c_5820, 0x5000_940e, 0x5000_9418, 0x5000_9401, 0x5000_9417];
    for push in [0x5412, 0x541c, 0x5412 | upper].into_iter().chain(quota) {
        assert_eq!(ask("ioctl", [0, push, 0]), errno(libc::EPERM));
    }
    assert_eq!(ask("personality", [0xffff_ffff, 0, 0]), ALLOW);
    assert_eq!(ask("personality", [0x0040_0000, 0, 0]), errno(libc::EPERM));
}

/// Runs `body` on a thread that has the container filter.
fn filtered<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(container_filter().unwrap()).unwrap();
            body()
        });
        thread.join().unwrap()
    })
}

/// One system call with harmless arguments (null pointers, bad descriptors): without a filter it would fail otherwise.
fn call(number: i64, args: [u64; 3]) -> i32 {
    // SAFETY: every caller passes nulls and plain numbers, which no called function can turn into an access to this
    // process's memory.
    let answer = unsafe { libc::syscall(number, args[0], args[1], args[2], 0_u64, 0_u64) };
    if answer >= 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

#[test]
fn the_kernel_refuses_each_denied_family() {
    let bad = u64::MAX;
    let probes = [
        (libc::SYS_io_uring_setup, [0, 0, 0], libc::EPERM),
        (libc::SYS_io_uring_enter, [bad, 0, 0], libc::EPERM),
        (libc::SYS_bpf, [bad, 0, 0], libc::EPERM),
        (libc::SYS_perf_event_open, [0, 0, 0], libc::EPERM),
        (libc::SYS_userfaultfd, [bad, 0, 0], libc::EPERM),
        (libc::SYS_keyctl, [bad, 0, 0], libc::EPERM),
        (libc::SYS_add_key, [0, 0, 0], libc::EPERM),
        (libc::SYS_request_key, [0, 0, 0], libc::EPERM),
        (libc::SYS_clone3, [0, 0, 0], libc::ENOSYS),
        (libc::SYS_unshare, [0x1000_0000, 0, 0], libc::EPERM),
        (libc::SYS_setns, [bad, 0, 0], libc::EPERM),
        (libc::SYS_mount, [0, 0, 0], libc::EPERM),
        (libc::SYS_fsopen, [0, 0, 0], libc::EPERM),
        (libc::SYS_pivot_root, [0, 0, 0], libc::EPERM),
        (libc::SYS_kexec_load, [0, 0, 0], libc::EPERM),
        (libc::SYS_init_module, [0, 0, 0], libc::EPERM),
        (libc::SYS_delete_module, [0, 0, 0], libc::EPERM),
        (libc::SYS_open_by_handle_at, [bad, 0, 0], libc::EPERM),
        (libc::SYS_quotactl, [bad, 0, 0], libc::EPERM),
        (libc::SYS_settimeofday, [1, 1, 0], libc::EPERM),
        (libc::SYS_swapon, [0, 0, 0], libc::EPERM),
        (libc::SYS_reboot, [0, 0, 0], libc::EPERM),
        (libc::SYS_fanotify_init, [bad, 0, 0], libc::EPERM),
        (libc::SYS_socket, [38, 5, 0], libc::EAFNOSUPPORT),
        (libc::SYS_socket, [40, 1, 0], libc::EAFNOSUPPORT),
        (libc::SYS_socket, [17, 3, 0], libc::EAFNOSUPPORT),
        (libc::SYS_socket, [16, 3, 15], libc::EAFNOSUPPORT),
        (libc::SYS_prlimit64, [0, 4, 8], 0),
        (libc::SYS_ioctl, [bad, 0x5412, 0], libc::EPERM),
        (libc::SYS_ioctl, [bad, 0x5412 | 1 << 32, 0], libc::EPERM),
        (libc::SYS_ioctl, [bad, 0x5413, 0], libc::EBADF),
        (libc::SYS_personality, [0x0040_0000, 0, 0], libc::EPERM),
        (1000, [0, 0, 0], libc::ENOSYS),
        (libc::SYS_getpid, [0, 0, 0], 0),
    ];
    filtered(|| {
        for (number, args, expected) in probes {
            assert_eq!(call(number, args), expected, "system call {number} {args:x?}");
        }
    });
    // A new user namespace by clone: the stack is null and the flags share nothing, so a filter that let it through would make a
    // plain child; none may come.
    let flags = 0x1000_0000_u64 | libc::SIGCHLD.cast_unsigned() as u64;
    assert_eq!(filtered(|| call(libc::SYS_clone, [flags, 0, 0])), libc::EPERM);
}

#[test]
fn ordinary_programs_run_under_the_filter() {
    let programs: [(&str, &[&str], &str); 3] = [
        ("busybox", &["sh", "-c", "echo a | cat; (exit 0)"], "a\n"),
        ("sh", &["-c", "x=$(ls / | wc -l); test $x -gt 3 && echo yes"], "yes\n"),
        (
            "python3",
            &[
                "-c",
                "import threading,subprocess,socket,tempfile\n\
                 t=threading.Thread(target=lambda:None);t.start();t.join()\n\
                 s=socket.socket();s.bind(('127.0.0.1',0));socket.socketpair()\n\
                 tempfile.TemporaryFile().write(b'x')\n\
                 print(subprocess.check_output(['echo','ok']).decode(),end='')",
            ],
            "ok\n",
        ),
    ];
    for (program, args, expected) in programs {
        let output = filtered(|| Command::new(program).args(args).output());
        match output {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let complained = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{program}: {complained}");
                assert_eq!(said, expected, "{program}: {complained}");
            }
            Err(error) => println!("SKIPPED: sys/filtered-program: {program}: {error}"),
        }
    }
}

#[test]
fn bytes_that_are_no_filter_are_refused() {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            for bytes in [&[][..], &[1, 2, 3], &[0xff; 16], &[0; 8 * 70_000]] {
                assert!(matches!(install(bytes), Err(SeccompError::Refused { .. })));
            }
        });
    });
    assert_eq!(Refusal::NotPermitted.errno(), 1);
}
