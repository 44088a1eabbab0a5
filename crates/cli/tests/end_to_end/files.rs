//! `atoll cp` in both directions.

use std::fs;

use crate::support::{IMAGE, Instance, in_each_class};

fn resident(instance: &Instance, class: &str) -> String {
    let name = format!("files-{class}");
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    name
}

#[test]
fn files_and_directories_go_in_and_come_out() {
    in_each_class("cp", |instance, class| {
        let name = resident(instance, class);
        let here = tempfile::tempdir().unwrap();
        let path = |name: &str| here.path().join(name).display().to_string();
        let inside = |script: &str| instance.atoll(["exec", &name, "--", "sh", "-c", script]);
        fs::create_dir_all(here.path().join("tree/sub")).unwrap();
        fs::write(here.path().join("tree/sub/file"), "text\n").unwrap();
        std::os::unix::fs::symlink("sub/file", here.path().join("tree/link")).unwrap();
        let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
        fs::write(here.path().join("big"), &big).unwrap();

        // Into a directory that is there: below it; as a name that is not: as that.
        instance.atoll(["cp", &path("tree"), &format!("{name}:/tmp")]).succeeded();
        assert_eq!(inside("cat /tmp/tree/link").succeeded(), "text\n");
        instance.atoll(["cp", &path("tree"), &format!("{name}:/tmp/renamed")]).succeeded();
        assert_eq!(inside("ls /tmp/renamed").succeeded(), "link\nsub\n");
        instance.atoll(["cp", &path("big"), &format!("{name}:/tmp/large")]).succeeded();
        assert_eq!(inside("wc -c < /tmp/large").succeeded().trim(), "3000000");

        instance.atoll(["cp", &format!("{name}:/tmp/large"), &path("back")]).succeeded();
        assert!(fs::read(here.path().join("back")).unwrap() == big);
        inside("echo more > /tmp/tree/sub/more").succeeded();
        instance.atoll(["cp", &format!("{name}:/tmp/tree"), &path("")]).succeeded();
        assert_eq!(fs::read_to_string(here.path().join("tree/sub/more")).unwrap(), "more\n");
        assert_eq!(fs::read_to_string(here.path().join("tree/link")).unwrap(), "text\n");

        let tar = instance.atoll(["cp", &format!("{name}:/tmp/tree"), "-"]);
        tar.succeeded();
        instance.atoll(["exec", &name, "--", "mkdir", "/tmp/again"]).succeeded();
        instance
            .atoll_with_input(["cp", "-", &format!("{name}:/tmp/again")], &tar.stdout)
            .succeeded();
        assert_eq!(inside("cat /tmp/again/tree/sub/more").succeeded(), "more\n");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn what_cannot_be_copied_is_told_and_leaves_nothing_half_made() {
    in_each_class("cp_errors", |instance, class| {
        let name = resident(instance, class);
        let here = tempfile::tempdir().unwrap();
        let target = here.path().join("x").display().to_string();
        let missing = instance.atoll(["cp", &format!("{name}:/no/such/file"), &target]);
        missing.ended_with(1);
        missing.complains("/no/such/file");
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0, "nothing is left here");
        instance.atoll(["cp", "/no/such/file", &format!("{name}:/tmp")]).complains("/no/such/file");
        instance.atoll(["cp", &target, &format!("{name}:relative")]).complains("absolute");
        instance.atoll(["cp", "a:/x", "b:/y"]).complains("one side must be here");
        fs::write(here.path().join("big"), vec![1; 40 << 20]).unwrap();
        let big = here.path().join("big").display().to_string();
        let small = instance.atoll([
            "run",
            "--class",
            class,
            "--keep",
            "--name",
            &format!("small-{class}"),
            "--disk",
            "16Mi",
            IMAGE,
            "--",
            "true",
        ]);
        small.succeeded();
        let other = format!("tiny-{class}");
        let text = format!(
            "kind: Sandbox\nid: {other}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n      resource: {{ephemeral_storage: 16Mi}}\n"
        );
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
        let full = instance.atoll(["cp", &big, &format!("{other}:/tmp/")]);
        full.ended_with(1);
        full.complains("space");
        instance.atoll(["exec", &other, "--", "true"]).succeeded();
        instance.atoll(["delete", "sandboxes", "--all"]).succeeded();
    });
}
