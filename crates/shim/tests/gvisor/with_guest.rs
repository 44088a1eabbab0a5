//! A container with atoll's guest as its first process.

use atoll_sys::capabilities::CapabilitySet;
use atoll_sys::process::Exit;
use atoll_wire::guest::{HostMessage, ProcessSpec};
use atoll_wire::shim::Init;

use crate::guest_channel::Guest;
use crate::harness::{Sandbox, container, runsc, shell, wait};

#[test]
fn a_guest_works_in_an_image_that_holds_nothing_of_its_own() {
    let Some(runsc) = runsc("a_guest_works_in_an_image_that_holds_nothing_of_its_own") else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let empty = layer.parent().unwrap().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let mut one = container("main", &empty, "");
        one.init = Init::Guest;
        vec![one]
    });
    let mut guest = Guest::begin(&mut sandbox, 0);
    guest.start(shell("true"));
    let failure = guest.follow(0, |_| false).failure.expect("there is no busybox in it");
    assert_eq!(failure.kind.exit_code(), 127, "{failure:?}");
    guest.acknowledge();
    wait(&guest.begun);
    assert_eq!(sandbox.engine.evidence(0).init_exit, Some(Exit::Code(127)));
}

#[test]
fn the_workload_has_its_user_and_no_way_to_the_guest_or_out() {
    let Some(runsc) = runsc("the_workload_has_its_user_and_no_way_to_the_guest_or_out") else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let mut one = container("main", layer, "");
        one.init = Init::Guest;
        vec![one]
    });
    let mut guest = Guest::begin(&mut sandbox, 0);
    // Each line that is said is a door that was open.
    let attacks = "id -u; hostname; \
        for pid in 1; do \
          for dir in /proc/$pid /proc/$pid/task/$pid; do for fd in 0 1 2; do \
            (echo x > $dir/fd/$fd) 2>/dev/null && echo wrote $dir/fd/$fd; \
            busybox timeout 1 dd if=$dir/fd/$fd bs=1 count=1 2>/dev/null | busybox grep -q . && echo read $dir/fd/$fd; \
          done; busybox umount $dir/fd 2>/dev/null && echo uncovered $dir; done; \
          busybox dd if=/proc/$pid/mem bs=1 count=1 >/dev/null 2>&1 && echo inspected $pid; \
          kill -9 $pid 2>/dev/null; kill -STOP $pid 2>/dev/null; \
        done; \
        (echo x > /dev/.atoll-guest) 2>/dev/null && echo overwrote the guest; \
        busybox umount /dev/.atoll-guest 2>/dev/null && echo unmounted the guest; \
        (ulimit -u 1000) 2>/dev/null && echo raised the limits; \
        busybox mount -t proc none /tmp 2>/dev/null && echo mounted; \
        busybox unshare -Ur true 2>/dev/null && echo namespace; echo end";
    guest.start(shell("read forever"));
    for uid in [0, 1000] {
        let mut spec = shell(attacks);
        spec.user.uid = uid;
        // Root as an image's root is: able to pass over permissions of files.
        spec.capabilities = CapabilitySet::container_default().mask();
        let ran = guest.exec(spec);
        assert_eq!(ran.output, format!("{uid}\nisland\nend\n"));
        assert_eq!(ran.exited.unwrap().code, Some(0));
    }
    assert_eq!(guest.exec(shell("echo well")).output, "well\n", "nobody killed or stopped it");
    sandbox.engine.kill(0).unwrap();
    wait(&guest.begun);
}

#[test]
fn a_fork_bomb_is_refused_above_the_sandboxs_own_pids_limit() {
    let Some(runsc) = runsc("a_fork_bomb_is_refused_above_the_sandboxs_own_pids_limit") else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let mut one = container("main", layer, "");
        one.init = Init::Guest;
        one.limits.pids = 32;
        vec![one]
    });
    let mut guest = Guest::begin(&mut sandbox, 0);
    // A shell that is refused a process gives up: this one starts no more than the first of them.
    let bomb = "(bomb() { bomb | bomb & }; bomb) 2>&1 & read _; exit 3";
    guest.start(ProcessSpec { stdin: true, ..shell(bomb) });
    let ran = guest.follow(0, |text| text.contains("fork"));
    assert!(ran.output.contains("fork"), "some are refused: {ran:?}");
    guest.send(0, HostMessage::Stdin(b"\n".to_vec()));
    let exited = guest.follow(0, |_| false).exited.expect("it ends");
    assert_eq!((exited.code, exited.pids_limit), (Some(3), false));
    let evidence = sandbox.engine.evidence(0);
    assert!(!evidence.host_pids_backstop && !evidence.out_of_memory, "{evidence:?}");
    guest.acknowledge();
    wait(&guest.begun);
}
