#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn dates_are_found_in_the_versions_that_releases_and_debian_use() {
    assert_eq!(date_in("release-20240729.0"), Some(20_240_729));
    assert_eq!(date_in("0.0~20240729.0-4~bpo12+1"), Some(20_240_729));
    assert_eq!(date_in("VERSION_MISSING"), None);
    assert_eq!(date_in("release-120240729.0"), None);
}

#[test]
fn the_runsc_of_this_host_works_and_the_answer_is_remembered() {
    let Some(program) = find() else {
        eprintln!(
            "SKIPPED: the_runsc_of_this_host_works_and_the_answer_is_remembered: runsc missing"
        );
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let host = detect(directory.path()).unwrap();
    assert_eq!(host.runsc, program);
    assert!(host.date.is_none_or(|date| date >= OLDEST_USABLE), "{host:?}");
    assert!(PLATFORMS.contains(&host.platform.as_str()));
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "only the answer stays: {left:?}");

    // What is remembered is told again without a probe: another answer under the same key.
    let path = directory.path().join("gvisor-host.json");
    let marked = fs::read_to_string(&path).unwrap().replace(&host.version, "as remembered");
    fs::write(&path, marked).unwrap();
    assert_eq!(detect(directory.path()).unwrap().version, "as remembered");
    // A torn answer is found out anew.
    fs::write(&path, "{").unwrap();
    assert_eq!(detect(directory.path()).unwrap(), host);
}

/// Written by another process: a descriptor that is open for writing, copied by a fork of a test beside this one, would keep the script
/// from being executed.
fn script(directory: &Path, text: &str) -> PathBuf {
    let (source, path) = (directory.join("source"), directory.join("runsc"));
    fs::write(&source, text).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    let copied = Command::new("cp").arg("-p").arg(&source).arg(&path).status().unwrap();
    assert!(copied.success());
    path
}

#[test]
fn a_broken_or_old_runsc_is_told_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let old = script(directory.path(), "#!/bin/sh\necho 'runsc version release-20220101.0'\n");
    let missing = detect_program(&old, directory.path()).unwrap_err();
    assert_eq!(missing, GvisorMissing::TooOld { path: old, date: 20_220_101 });
    assert!(missing.to_string().contains("install runsc"), "{missing}");

    let silent = script(directory.path(), "#!/bin/sh\nexit 3\n");
    let missing = detect_program(&silent, directory.path()).unwrap_err();
    assert!(matches!(missing, GvisorMissing::Broken { .. }), "{missing}");

    let text = "#!/bin/sh\ncase $1 in --version) echo 'runsc version release-20250101.0';;\n*) echo no luck >&2; exit 1;; esac\n";
    let failing = script(directory.path(), text);
    let missing = detect_program(&failing, directory.path()).unwrap_err();
    assert!(missing.to_string().contains("platform ptrace: no luck"), "{missing}");
}
