use super::*;

#[test]
fn mounts_never_cover_the_isolation_or_the_root() {
    for bad in [
        "/",
        "",
        "data",
        "/proc",
        "/proc/self",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/shm",
        "/.atoll/x",
        "/a/../proc",
        "/a//b",
        "/a/",
        "/./a",
        "/a/.",
        "/usr",
        "/etc",
        "/a\0b",
        &format!("/{}", "x".repeat(256)),
        &"/x".repeat(2500),
    ] {
        for rule in [MountPathRule::Tmpfs, MountPathRule::Volume] {
            assert!(mount_path(bad, rule).is_err(), "{bad}");
        }
    }
    for good in ["/data", "/procfs", "/devices", "/usr/local", "/etc/app", "/a.b/..c"] {
        assert_eq!(mount_path(good, MountPathRule::Volume), Ok(good.to_owned()));
    }
    assert!(mount_path("/tmp/x", MountPathRule::Volume).is_err());
    assert!(mount_path("/tmp", MountPathRule::Tmpfs).is_ok());
}

#[test]
fn tmpfs_options_are_read_and_the_dangerous_ones_refused() {
    let options = tmpfs_options("ro,nosuid, noexec,mode=0700,size=64m").unwrap();
    let expected = TmpfsOptions {
        size: Some(Bytes::from_mib(64)),
        mode: 0o700,
        read_only: true,
        no_exec: true,
    };
    assert_eq!(options, expected);
    assert_eq!(tmpfs_options("size:2kib").unwrap().size, Some(Bytes(2048)));
    for bad in [
        "suid",
        "dev",
        "size=0",
        "size=-1",
        "size=1e9",
        "size=",
        "mode=8",
        "mode=4755",
        "mode=+777",
        "uid=0",
        "size=99999999999t",
        "huge=always",
    ] {
        assert!(tmpfs_options(bad).is_err(), "{bad}");
    }
}

#[test]
fn quantities_have_bounds() {
    let memory = |text: &str| bytes_between(text, MIN_MEMORY, MAX_BYTES);
    assert_eq!(memory("64Mi"), Ok(Bytes::from_mib(64)));
    for bad in ["-1", "1e400", "0", "1", "100Ti", "64MB", ""] {
        assert!(memory(bad).is_err(), "{bad}");
    }
    for bad in ["-1", "0", "1e400", "1m", "5000", "x"] {
        assert!(cpu(bad).is_err(), "{bad}");
    }
}

#[test]
fn security_options_say_what_holds_anyway_or_what_the_node_allows() {
    let not_here = Err("not here");
    for (good, said) in [
        ("no-new-privileges", Some(true)),
        ("no-new-privileges:true", Some(true)),
        ("no-new-privileges=1", Some(true)),
        ("seccomp=runtime/default", None),
        ("apparmor:default", None),
    ] {
        assert_eq!(security_option(good, not_here), Ok(said), "{good}");
    }
    for bad in [
        "no-new-privileges=maybe",
        "seccomp=unconfined",
        "seccomp=localhost//x.json",
        "apparmor=unconfined",
        "label=disable",
        "",
    ] {
        assert!(security_option(bad, Ok(())).is_err(), "{bad}");
    }
    for off in ["no-new-privileges:false", "no-new-privileges=0"] {
        assert_eq!(security_option(off, Ok(())), Ok(Some(false)));
        assert!(security_option(off, not_here).unwrap_err().to_string().contains("not here"));
    }
}

#[test]
fn capabilities_beyond_the_default_are_refused_by_name_unless_the_node_allows_them() {
    let known = ["CHOWN", "SYS_ADMIN", "NET_RAW"];
    let allowed = |name: &str| matches!(name, "CHOWN" | "NET_RAW");
    assert_eq!(added_capability("cap_chown", &known, allowed).as_deref(), Ok("CHOWN"));
    assert_eq!(added_capability("net_raw", &known, allowed).as_deref(), Ok("NET_RAW"));
    for bad in ["SYS_ADMIN", "ALL", "all", "NOT_ONE", "", "CAP_"] {
        assert!(added_capability(bad, &known, allowed).is_err(), "{bad}");
    }
    let refusal = added_capability("SYS_ADMIN", &known, allowed).unwrap_err().to_string();
    assert!(refusal.contains("--allow-capability SYS_ADMIN"), "{refusal}");
    assert_eq!(dropped_capability("all", &known).as_deref(), Ok("ALL"));
    assert!(dropped_capability("CHOWN,SYS_ADMIN", &known).is_err());
}

#[test]
fn users_are_names_or_numbers_within_the_sandbox() {
    for good in ["0", "1000:1000", "nobody", "www-data:adm", "65535"] {
        assert!(user(good).is_ok(), "{good}");
    }
    for bad in ["", ":", "a:", ":b", "a:b:c", "65536", "99999999999", "-1 0", "a b", "root\n"] {
        assert!(user(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_flood_of_problems_is_cut_and_counted() {
    let mut problems = Problems::default();
    for index in 0..10_000 {
        problems.add(format!("spec.containers[{index}].name"), "is wrong");
    }
    let told = problems.into_vec();
    assert_eq!(told.len(), MAX_PROBLEMS + 1);
    assert_eq!(told.last().map(|it| it.message.as_str()), Some("and 9900 more problems"));
}

proptest::proptest! {
    #[test]
    fn no_rule_panics_and_accepted_paths_stay_where_they_are(text in "\\PC{0,40}|[/.a-z]{0,12}") {
        let _ = (user(&text), hostname(&text), env_entry(&text), tmpfs_options(&text), security_option(&text, Ok(())), cpu(&text));
        if let Ok(path) = mount_path(&text, MountPathRule::Tmpfs) {
            assert!(path.starts_with('/') && path.len() > 1 && !path.split('/').any(|part| part == ".."));
            assert!(!path.starts_with("/proc/") && path != "/proc");
        }
    }
}
