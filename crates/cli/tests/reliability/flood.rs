//! A sandbox that writes a gigabyte of output: its files stay bounded, what is dropped is counted, nobody else notices.

use std::path::Path;

use crate::support::{IMAGE, in_each_class, instance_with_image, skipped, wait_until};

/// In MiB.
const WRITTEN: u64 = 1024;
/// What a sandbox's logs may take in all, beside the file that is being begun: their share of the default disk limit of 128 MiB.
const MOST_ON_DISK: u64 = 64 << 20;

fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[test]
fn a_gigabyte_of_output_is_bounded_and_counted_and_harms_nobody() {
    let Some(instance) = instance_with_image("log_flood") else { return };
    if !instance.available_classes().iter().any(|class| class == "container") {
        return skipped("container/log_flood", "the class is not available here");
    }
    let create = |name: &str, script: &str| {
        let text = format!(
            "kind: Sandbox\nid: {name}\nspec:\n  class: container\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, '{script}']\n"
        );
        instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    };
    create("neighbour", "sleep 1000");
    // Lines of 64 bytes: `yes` repeats its words.
    let line = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde";
    create(
        "flood",
        &format!("yes {line} | dd bs=1M count={WRITTEN} iflag=fullblock 2>/dev/null; echo the end"),
    );
    let uid = instance.sandbox("flood").expect("it is there")["uid"].as_str().unwrap().to_owned();
    let logs = instance.data_dir().join("sandboxes").join(uid).join("logs");
    let (mut answers, mut most) = (0, 0);
    wait_until("the flood is over", || {
        // While it writes, others are served.
        assert_eq!(
            instance.atoll(["exec", "neighbour", "--", "echo", "here"]).succeeded(),
            "here\n"
        );
        most = most.max(bytes_below(&logs));
        let flood = instance.sandbox("flood").expect("it is there");
        let over = flood["status"]["phase"] == "Succeeded";
        answers += u32::from(!over);
        over
    });
    assert!(answers > 0, "the neighbour was asked while the flood went on");
    assert!(most <= MOST_ON_DISK, "{most} bytes of logs at once");
    let flood = instance.sandbox("flood").expect("it is there");
    let dropped = flood["status"]["containers"][0]["log_dropped_bytes"].as_u64().unwrap_or(0);
    let kept = instance.atoll(["logs", "flood"]).succeeded();
    assert!(kept.ends_with("the end\n"), "the newest output is kept");
    let written = (WRITTEN << 20) + "the end\n".len() as u64;
    assert_eq!(dropped + kept.len() as u64, written, "what is not there was counted");
    instance.atoll(["delete", "sandbox/flood"]).succeeded();
    instance.atoll(["delete", "sandbox/neighbour"]).succeeded();
    instance.end();
}

#[test]
fn the_oldest_lines_go_first_and_what_went_is_counted_to_the_byte() {
    in_each_class("log_rotation", |instance, class| {
        let name = format!("lines-{class}");
        // An eighth of the disk is the logs': a record of such a line takes about 50 bytes, so that a third of them fits.
        let (lines, share) = (60_000, 1 << 20);
        let text = format!(
            "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, 'seq 1 {lines}; echo last']\n      resource: {{ephemeral_storage: 8Mi}}\n"
        );
        instance.atoll_with_input(["create", "-f", "-"], text.as_bytes()).succeeded();
        let sandbox = format!("sandbox/{name}");
        instance
            .atoll(["wait", sandbox.as_str(), "--for", "succeeded", "--timeout", "100s"])
            .succeeded();
        let mut written: String = (1..=lines).map(|line| format!("{line}\n")).collect();
        written += "last\n";
        let dropped = || {
            let shown = instance.sandbox(&name).expect("it is there");
            shown["status"]["containers"][0]["log_dropped_bytes"].as_u64().unwrap_or(0)
        };
        // To the byte, not to the line: the first that is kept may be the rest of one.
        let check = || {
            let kept = instance.atoll(["logs", &name]).succeeded();
            let missing =
                written.strip_suffix(&kept).expect("the newest lines, all of them, in order");
            assert!(kept.len() > written.len() / 8, "{} bytes are all that is kept", kept.len());
            assert_eq!(dropped(), missing.len() as u64);
        };
        check();
        let uid = instance.sandbox(&name).expect("it is there")["uid"].as_str().unwrap().to_owned();
        let on_disk = bytes_below(&instance.data_dir().join("sandboxes").join(uid).join("logs"));
        assert!(on_disk <= share + 4096, "{on_disk} bytes of a share of {share}");
        // The next server knows it too.
        instance.kill_server();
        instance.up();
        check();
        instance.atoll(["delete", &sandbox]).succeeded();
    });
}
