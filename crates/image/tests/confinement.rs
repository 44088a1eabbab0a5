//! The helper can touch nothing but its directory, and whatever becomes of it leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use atoll_image::{ImageErrorKind, UnpackHelper};
use support::{Tar, helper, scratch_with};

/// Runs a program for which landlock_create_ruleset (444 on every architecture) does not exist: what a kernel without Landlock answers.
const WITHOUT_LANDLOCK: &str = "
import ctypes, os, struct, sys
ENOSYS = 38
program = b''.join(struct.pack('HBBI', *each) for each in [
    (0x20, 0, 0, 0),                      # load the number of the call
    (0x15, 0, 1, 444),                    # another one: skip
    (0x06, 0, 0, 0x00050000 | ENOSYS),    # an error
    (0x06, 0, 0, 0x7fff0000),             # allowed
])
text = ctypes.create_string_buffer(program)
filter = struct.pack('HxxxxxxP', len(program) // 8, ctypes.addressof(text))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):
    sys.exit('no filter: ' + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn nothing_that_must_not_be_possible_is() {
    helper().check().unwrap();
}

/// A helper that is in the middle of a file: what the kernel says about it.
#[test]
fn a_working_helper_has_no_more_than_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let request = serde_json::json!({
        "mode": {"layer": {"lowest": true, "require_end_mark": true}},
        "limits": {"max_entries": 10, "max_bytes": 100 << 20, "min_free_bytes": 0},
        "parent_pid": std::process::id(),
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_atoll-unpack-helper"))
        .arg(request.to_string())
        .current_dir(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let archive = Tar::new().file("a", &vec![1; 4 << 20]).finish();
    // More than the pipe and the helper's buffer hold: once it is written, the helper has begun to unpack.
    input.write_all(&archive[..2 << 20]).unwrap();

    let proc = format!("/proc/{}", child.id());
    let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP.
    assert_eq!(field("CapEff"), "000000008000001b");
    assert_eq!(field("CapPrm"), "000000008000001b");
    assert_eq!(
        (field("CapBnd"), field("CapInh"), field("CapAmb")),
        ("0".repeat(16), "0".repeat(16), "0".repeat(16))
    );
    assert_eq!(
        (field("NoNewPrivs"), field("Threads"), field("Groups")),
        ("1".into(), "1".into(), String::new())
    );
    assert_eq!(
        (field("Uid"), field("Gid")),
        ("65534 65534 65534 65534".into(), "65534 65534 65534 65534".into())
    );
    for namespace in ["net", "ipc", "uts", "mnt"] {
        let of = |process: &str| std::fs::read_link(format!("{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&proc), of("/proc/self"), "{namespace}");
    }
    let root = std::fs::metadata(format!("{proc}/root")).unwrap();
    let own = std::fs::metadata(directory.path()).unwrap();
    assert_eq!((root.dev(), root.ino()), (own.dev(), own.ino()));

    input.write_all(&archive[2 << 20..]).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(r#"{"unpacked""#), "{output:?}");
    assert_eq!(std::fs::metadata(directory.path().join("a")).unwrap().len(), 4 << 20);
}

#[test]
fn a_helper_without_its_parent_does_not_begin() {
    let directory = tempfile::tempdir().unwrap();
    let request = serde_json::json!({
        "mode": {"layer": {"lowest": true, "require_end_mark": true}},
        "limits": {"max_entries": 10, "max_bytes": 1000, "min_free_bytes": 0},
        "parent_pid": 1,
    });
    let output = Command::new(env!("CARGO_BIN_EXE_atoll-unpack-helper"))
        .arg(request.to_string())
        .current_dir(&directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(answer.contains("confinement") && answer.contains("parent"), "{answer}");
}

#[tokio::test]
async fn a_helper_that_dies_hangs_or_lies_leaves_nothing() {
    let shell = |script: &str| {
        let mut helper = UnpackHelper::program("/bin/sh", &["-c", script]);
        helper.timeout = Duration::from_millis(300);
        helper
    };
    // What a helper that was taken over could say: paths that lead out, in base64.
    let up = "Li4vLi4vLi4vLi4vLi4vLi4vLi4vLi4vZXRj"; // ../../../../../../../../etc
    let taken_over = format!(
        r#"{{"unpacked":{{"diff_id":"sha256:{}","archive_bytes":1,"content_bytes":1,"entries":1,"skipped_devices":0,"skipped_xattrs":0,"root_described":true,"opaque":["{up}"],"implicit":["{up}"]}}}}"#,
        "0".repeat(64)
    );
    let staged = r#"{"staged":{"image_archive":false,"files":[]}}"#;
    let stage_then = |answer: &str| {
        format!("case \"$0\" in *stage*) echo '{staged}';; *) echo '{answer}';; esac")
    };
    let cases = [
        ("signal 9", shell("kill -9 $$")),
        ("exit code 3: no luck", shell("echo no luck >&2; exit 3")),
        ("longer than", shell("exec sleep 60")),
        ("makes no sense", shell("echo nonsense")),
        ("another question", shell(&stage_then(staged))),
        ("cannot complete", shell(&stage_then(&taken_over))),
        (
            "signal 15",
            shell(&format!(
                "case \"$0\" in *stage*) echo '{staged}';; *) echo half > half; kill $$;; esac"
            )),
        ),
        ("cannot start", UnpackHelper::program("/nonexistent/helper", &[])),
    ];
    for (expected, helper) in cases {
        let scratch = scratch_with(|options| options.helper = helper).await;
        let begin = Instant::now();
        let error = scratch.import(&Tar::new().file("a", b"x").finish(), "x:1").await.unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(30), "{expected}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert_eq!(error.kind(), ImageErrorKind::Internal, "{error}");
        scratch.assert_nothing_half_made();
    }
    assert!(rustix::fs::lgetxattr("/etc", "trusted.overlay.opaque", &mut [0; 1]).is_err());
}

/// Unpacking is refused where it cannot be confined: there is no way to have it all the same.
#[tokio::test]
async fn without_landlock_nothing_is_unpacked() {
    let program = env!("CARGO_BIN_EXE_atoll-unpack-helper");
    let helper = UnpackHelper::program("/usr/bin/python3", &["-c", WITHOUT_LANDLOCK, program]);
    let checked = helper.check().unwrap_err().to_string();
    assert!(checked.contains("(Landlock)") && checked.contains("lsm="), "{checked}");
    let scratch = scratch_with(|options| options.helper = helper).await;
    let error = scratch.import(&Tar::new().file("a", b"x").finish(), "x:1").await.unwrap_err();
    assert!(error.to_string().contains("a kernel with Landlock"), "{error}");
    scratch.assert_nothing_half_made();
}
