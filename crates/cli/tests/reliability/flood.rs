//! A sandbox that writes a gigabyte of output: its files stay bounded, what is dropped is counted, nobody else notices.

use std::path::Path;

use crate::support::{IMAGE, instance_with_image, skipped, wait_until};

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
