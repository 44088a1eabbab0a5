//! A container with atoll's guest as its first process.

use atoll_sys::process::Exit;
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
fn a_guest_that_root_inside_kills_is_told_apart_from_a_dead_sentry() {
    let Some(runsc) = runsc("a_guest_that_root_inside_kills_is_told_apart_from_a_dead_sentry")
    else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let mut one = container("main", layer, "");
        one.init = Init::Guest;
        vec![one]
    });
    let mut guest = Guest::begin(&mut sandbox, 0);
    guest.start(shell("kill -9 1; read forever"));
    wait(&guest.begun);
    let evidence = sandbox.engine.evidence(0);
    assert_eq!(evidence.init_exit, Some(Exit::Code(128 + 9)));
    assert!(!evidence.sentry_died, "{evidence:?}");
}
