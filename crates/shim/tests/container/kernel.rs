//! Ways of the kernel to more rights that need no call which the filter refuses: sockets of rare families, attributes of files, and
//! what overlayfs copies up.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use atoll_wire::guest::UserIds;

use super::harness::{Prepared, can_run, process};

/// Effective rights in the text of /proc/PID/status.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"))?;
    u64::from_str_radix(line, 16).ok()
}

#[test]
fn four_kinds_of_sockets_can_be_opened_and_no_others() {
    if !can_run("sockets") {
        return;
    }
    for uid in [0, 65534] {
        let mut prepared = Prepared::new("exec probe sockets");
        prepared.main().process.user = UserIds { uid, gid: uid, supplementary_gids: vec![] };
        // Unix, IPv4, IPv6 and route netlink. SOURCE: AF_* of socket.h; the reasons are in the filter's profile.
        assert_eq!(prepared.run().output, "1\n2\n10\nnetlink/0\n", "user {uid}");
    }
}

#[test]
fn nobody_inside_gives_a_file_attributes_that_are_obeyed() {
    if !can_run("attributes") {
        return;
    }
    for with_users in [true, false] {
        let mut prepared = Prepared::new(
            "touch /new; probe mark /new; mkdir /dir; probe mark /dir; probe mark /bin",
        );
        if !with_users {
            prepared.launch.placement.first_host_id = None;
        }
        let output = prepared.run().output;
        assert_eq!(output.lines().count(), 21, "{output}");
        for line in output.lines() {
            assert!(!line.ends_with("=0"), "{line} (users: {with_users}): {output}");
        }
    }
}

#[test]
fn rights_that_a_file_of_the_image_claims_are_not_given() {
    if !can_run("file-capabilities") {
        return;
    }
    // All rights, effective, for whoever runs it. SOURCE: struct vfs_cap_data in include/uapi/linux/capability.h.
    let words: [u32; 5] = [0x0200_0001, u32::MAX, 0, 0x1ff, 0];
    let claim: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for (with_users, no_new_privileges) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        for uid in [0, 65534] {
            let mut prepared = Prepared::new("/strong/cat /proc/self/status 2>&1; echo end");
            let layer = prepared.layer();
            fs::create_dir(layer.join("strong")).unwrap();
            let strong = layer.join("strong/cat");
            fs::copy(layer.join("bin/busybox"), &strong).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            if rustix::fs::setxattr(&strong, "security.capability", &claim, flags).is_err() {
                println!("SKIPPED: container/file-capabilities: no such attributes here");
                return;
            }
            if !with_users {
                prepared.launch.placement.first_host_id = None;
            }
            prepared.main().process.no_new_privileges = no_new_privileges;
            prepared.main().process.user = UserIds { uid, gid: uid, supplementary_gids: vec![] };
            let output = prepared.run().output;
            let case = format!("{uid} {with_users} {no_new_privileges}: {output}");
            assert!(output.ends_with("end\n"), "{case}");
            // It may not run at all; when it does, it has nothing beyond a container's own.
            if let Some(rights) = effective(&output) {
                assert_eq!(rights & !0x405fb, 0, "{case}");
            } else {
                assert!(output.contains("not permitted"), "{case}");
            }
        }
    }
}

/// What CVE-2023-0386 used: a file that overlayfs copies up keeps owner and mode, and with them the right to become its owner.
#[test]
fn a_set_user_id_program_that_was_copied_up_gains_nothing() {
    if !can_run("copied-up") {
        return;
    }
    let prepared = Prepared::new("touch /bin/gain; chmod 6755 /bin/gain; touch /ready; sleep 60");
    let layer = prepared.layer();
    fs::copy(layer.join("bin/probe"), layer.join("bin/gain")).unwrap();
    fs::set_permissions(layer.join("bin/gain"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(layer.join("secret"), "of root\n").unwrap();
    fs::set_permissions(layer.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut sandbox = prepared.start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    let mut spec =
        process("until [ -e /ready ]; do sleep 0.05; done; exec /bin/gain rights /secret");
    spec.user = UserIds { uid: 1000, gid: 1000, supplementary_gids: vec![] };
    let spec = serde_json::to_string(&spec).unwrap();
    assert_eq!(sandbox.ok(&format!("exec 0 {spec}")), "Some(Code(0))");
    let refused = rustix::io::Errno::ACCESS.raw_os_error();
    assert_eq!(sandbox.output("exec"), format!("euid 1000 egid 1000\nopen={refused}\n"));
    sandbox.ok("kill 0");
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}
