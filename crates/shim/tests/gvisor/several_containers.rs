//! Several containers in one Sentry.

use atoll_wire::shim::{ContainerPlan, Init, VolumeMountPlan, VolumePlan};

use crate::guest_channel::Guest;
use crate::harness::{Sandbox, container, runsc, shell, wait};

fn two(layer: &std::path::Path) -> Vec<ContainerPlan> {
    ["first", "second"]
        .map(|name| {
            let mut one = container(name, layer, "");
            one.init = Init::Guest;
            one
        })
        .to_vec()
}

#[test]
fn two_containers_share_network_hostname_memory_and_a_volume_but_not_files() {
    let test = "two_containers_share_network_hostname_memory_and_a_volume_but_not_files";
    let Some(runsc) = runsc(test) else { return };
    let mut sandbox = Sandbox::prepare_with(runsc, two, |launch| {
        launch.plan.volumes = vec![VolumePlan {
            name: "shared".into(),
            size_bytes: 1 << 20,
            ..VolumePlan::default()
        }];
        for (index, container) in launch.plan.containers.iter_mut().enumerate() {
            container.volume_mounts = vec![VolumeMountPlan {
                volume: "shared".into(),
                path: format!("/volume{index}"),
                read_only: index == 1,
            }];
        }
    });
    let mut first = Guest::begin(&mut sandbox, 0);
    let mut second = Guest::begin(&mut sandbox, 1);
    let serve = "echo of-first > /volume0/a; echo in-shm > /dev/shm/a; echo mine > /tmp/a; \
        echo up; busybox nc -l -p 7000 -e busybox echo served";
    first.start(shell(serve));
    first.follow(0, |output| output.contains("up\n"));
    let look = "cat /volume1/a; cat /dev/shm/a; hostname; ls /tmp/a 2>/dev/null; \
        echo x 2>/dev/null > /volume1/b || echo refused; \
        until busybox nc 127.0.0.1 7000 2>/dev/null; do :; done; exit 3";
    second.start(shell(look));
    let ran = second.follow(0, |_| false);
    assert_eq!(ran.output, "of-first\nin-shm\nisland\nrefused\nserved\n");
    assert_eq!(ran.exited.unwrap().code, Some(3));
    let fill = "dd if=/dev/zero of=/volume0/big bs=64k 2>&1 | busybox grep -o 'No space left'";
    assert_eq!(first.exec(shell(fill)).output, "No space left\n", "a volume has its size");
}

#[test]
fn containers_end_in_any_order_and_one_is_killed_alone() {
    let Some(runsc) = runsc("containers_end_in_any_order_and_one_is_killed_alone") else { return };
    let mut sandbox = Sandbox::prepare(runsc, two);
    let mut first = Guest::begin(&mut sandbox, 0);
    let mut second = Guest::begin(&mut sandbox, 1);
    first.start(shell("exit 4"));
    second.start(shell("read forever"));
    assert_eq!(first.follow(0, |_| false).exited.unwrap().code, Some(4));
    first.acknowledge();
    wait(&first.begun);
    assert!(!sandbox.engine.evidence(0).sentry_died);
    let alive = second.exec(shell("echo alive"));
    assert_eq!(alive.output, "alive\n", "the second does not notice");
    sandbox.engine.kill(0).expect("it has ended already");
    sandbox.engine.kill(1).unwrap();
    wait(&second.begun);
    assert!(!sandbox.engine.evidence(1).sentry_died);
    sandbox.engine.remove().unwrap();
    sandbox.assert_nothing_left();
}

#[test]
fn the_sentrys_death_ends_all_containers_and_is_told() {
    let Some(runsc) = runsc("the_sentrys_death_ends_all_containers_and_is_told") else { return };
    let mut sandbox = Sandbox::prepare(runsc, two);
    let first = Guest::begin(&mut sandbox, 0);
    let second = Guest::begin(&mut sandbox, 1);
    let sentry = first.begun.init.open().unwrap().unwrap();
    atoll_sys::process::send_signal(std::os::fd::AsFd::as_fd(&sentry), 9).unwrap();
    for (index, guest) in [&first, &second].into_iter().enumerate() {
        wait(&guest.begun);
        assert!(sandbox.engine.evidence(index).sentry_died);
    }
    sandbox.engine.remove().unwrap();
    sandbox.assert_nothing_left();
}
