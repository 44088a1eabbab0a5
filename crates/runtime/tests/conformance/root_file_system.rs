//! What a container sees as its files, and as whom.

use atoll_wire::guest::UserIds;
use atoll_wire::shim::{TmpfsPlan, VolumeMountPlan, VolumePlan};

use crate::bench::{Bench, MIB, shell};
use crate::running::Running;

pub(crate) async fn read_only_root(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].read_only_root = true;
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let refused = running.script("touch /etc/new").await;
    assert_ne!(refused.code(), Some(0), "the root is read-only");
    assert!(refused.errors().contains("Read-only"), "{}", refused.errors());
    let tmp = running.script("echo fine > /tmp/new && cat /tmp/new").await;
    assert_eq!(tmp.text(), "fine\n", "/tmp is writable all the same: {}", tmp.errors());
}

pub(crate) async fn users(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    plan.containers[0].process.user =
        UserIds { uid: 1000, gid: 1001, supplementary_gids: vec![2000] };
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let mut spec = shell("id -u; id -g; id -G; touch /etc/x 2>/dev/null || echo refused");
    spec.user = UserIds { uid: 1000, gid: 1001, supplementary_gids: vec![2000] };
    spec.capabilities = 0;
    let outcome = running.exec("main", spec, b"").await;
    assert_eq!(outcome.text(), "1000\n1001\n1001 2000\nrefused\n", "{}", outcome.errors());
    let root = running.script("id -u; echo x > /etc/x && echo written").await;
    assert_eq!(root.text(), "0\nwritten\n", "{}", root.errors());
    // The command itself has the plan's user.
    let main = running.sandbox.processes("main").await.unwrap();
    let of_command = main.iter().find(|process| process.command.contains("sleep"));
    assert_eq!(of_command.map(|process| process.uid), Some(1000), "{main:?}");
}

pub(crate) async fn tmpfs(bench: &mut Bench) {
    let mut plan = bench.plan("sleep 1000");
    let (path, size_bytes) = ("/scratch".to_owned(), 2 * MIB);
    plan.containers[0].tmpfs =
        vec![TmpfsPlan { path, size_bytes, mode: 0o1777, read_only: false, no_exec: true }];
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    let small = running.script("echo fits > /scratch/a && cat /scratch/a").await;
    assert_eq!(small.text(), "fits\n", "{}", small.errors());
    let large = running.script("dd if=/dev/zero of=/scratch/b bs=1M count=8").await;
    assert_ne!(large.code(), Some(0), "its size is a limit");
    assert!(large.errors().contains("No space left"), "{}", large.errors());
    let executed = running.script("cp /bin/busybox /scratch/true; rm /scratch/b; cp /bin/busybox /scratch/true; /scratch/true").await;
    assert_eq!(executed.code(), Some(126), "nothing is executed there: {}", executed.errors());
}

/// A volume at /shared that container `main` writes and container `reader` only reads.
async fn written_and_read(bench: &Bench) -> Running {
    let mut plan = bench.plan("sleep 1000");
    plan.containers.push(bench.container("reader", "sleep 1000"));
    plan.volumes =
        vec![VolumePlan { name: "both".into(), size_bytes: 4 * MIB, ..VolumePlan::default() }];
    for (container, read_only) in plan.containers.iter_mut().zip([false, true]) {
        let (volume, path) = ("both".to_owned(), "/shared".to_owned());
        container.volume_mounts = vec![VolumeMountPlan { volume, path, read_only }];
    }
    let mut running = bench.launch(plan).await;
    running.started("main").await;
    running.started("reader").await;
    running
}

pub(crate) async fn shared_volume(bench: &mut Bench) {
    let running = written_and_read(bench).await;
    let written = running.script("echo news > /shared/note").await;
    assert_eq!(written.code(), Some(0), "{}", written.errors());
    let read = running.exec("reader", shell("cat /shared/note; touch /shared/mine"), b"").await;
    assert_eq!(read.text(), "news\n", "{}", read.errors());
    assert!(read.errors().contains("Read-only"), "{}", read.errors());
}

/// Not only what is in it: modes, owners and times too.
pub(crate) async fn read_only_volume_as_it_was(bench: &mut Bench) {
    let running = written_and_read(bench).await;
    let look = "stat -c '%n %a %u %g %y' /shared /shared/note; cat /shared/note";
    let before = running.script(&format!("echo news > /shared/note; {look}")).await.text();
    assert!(before.ends_with("news\n"), "{before}");
    let attack = "chmod 777 /shared; chmod 777 /shared/note; chown 1:1 /shared; chown 1:1 /shared/note; touch -d '2001-01-01 00:00:00' /shared /shared/note";
    let refused = running.exec("reader", shell(attack), b"").await.errors();
    assert_eq!(running.script(look).await.text(), before, "{refused}");
    assert_eq!(refused.matches("Read-only").count(), 6, "{refused}");
}
