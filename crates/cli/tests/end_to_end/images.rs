//! `atoll image`.

use crate::support::{IMAGE, archive, instance_with_image};

#[test]
fn an_image_is_listed_shown_used_and_removed() {
    let Some(instance) = instance_with_image("images") else { return };
    let table = instance.atoll(["image", "ls"]).succeeded();
    assert!(table.lines().any(|line| line.starts_with(IMAGE)), "{table}");
    let list = instance.atoll(["image", "ls", "-o", "json"]).json();
    let digest = list["items"][0]["digest"].as_str().expect("a digest").to_owned();
    let shown = instance.atoll(["image", "inspect", IMAGE]).json();
    assert_eq!(shown["digest"], digest.as_str());
    assert!(shown["config"].is_object(), "{shown}");
    let text = format!(
        "kind: Sandbox\nid: user\nspec:\n  containers:\n    - {{name: main, image: {IMAGE}, args: [sleep, '1000']}}\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    let used = instance.atoll(["image", "rm", IMAGE]);
    used.ended_with(1);
    used.complains("user");
    instance.atoll(["delete", "sandbox/user"]).succeeded();
    let again = instance
        .atoll_with_input(["image", "import", "-", "other:1"], archive().unwrap_or_default());
    assert!(again.succeeded().starts_with("busybox"), "the same content has both names: {again:?}");
    instance.atoll(["image", "rm", IMAGE]).succeeded();
    instance.atoll(["run", "--pull", "never", "other:1", "--", "true"]).succeeded();
    let gone = instance.atoll(["run", "--pull", "never", IMAGE, "--", "true"]);
    gone.ended_with(125);
    instance.atoll(["image", "gc"]).succeeded();
    let empty = instance.atoll(["image", "ls", "-o", "json"]).json();
    assert_eq!(empty["items"].as_array().map(Vec::len), Some(0), "{empty}");
    instance.end();
}

#[test]
fn what_is_no_image_is_refused_and_nothing_stays() {
    let Some(instance) = instance_with_image("bad_images") else { return };
    let bad = instance.atoll_with_input(["image", "import", "-", "bad"], b"this is no archive");
    bad.ended_with(1);
    assert!(!bad.stderr.is_empty());
    let missing = instance.atoll(["image", "inspect", "bad"]);
    missing.ended_with(1);
    missing.complains("bad");
    let unreachable = instance.atoll(["image", "pull", "--plain-http", "127.0.0.1:1/none:1"]);
    unreachable.ended_with(1);
    unreachable.complains("127.0.0.1:1");
    instance.end();
}

#[test]
fn credentials_are_stored_and_forgotten_and_never_shown() {
    let Some(instance) = instance_with_image("login") else { return };
    let login = ["login", "registry.example:5000", "-u", "me", "--password-stdin"];
    let stored = instance.atoll_with_input(login, b"s3cret\n");
    assert!(!stored.succeeded().contains("s3cret"));
    assert!(!instance.server_log().contains("s3cret"));
    instance.atoll(["logout", "registry.example:5000"]).succeeded();
    instance.atoll(["logout", "registry.example:5000"]).ended_with(1);
    let silent = instance.atoll(["login", "registry.example", "-u", "me"]);
    silent.ended_with(1);
    silent.complains("--password-stdin");
    instance.end();
}
