//! `atoll bench`: the figures are there and add up; how large they are is no test's business.

use crate::support::{IMAGE, in_each_class};

#[test]
fn a_bench_reports_every_stage_of_every_run() {
    in_each_class("bench", |instance, class| {
        let arguments = [
            "bench",
            "provision",
            "--class",
            class,
            "--count",
            "3",
            "--concurrency",
            "2",
            "--image",
            IMAGE,
            "--json",
            "-",
        ];
        let report = instance.atoll(arguments).json();
        let burst = &report["bursts"][0];
        assert_eq!(burst["failures"].as_array().map(Vec::len), Some(0), "{burst}");
        assert!(burst["all_started_micros"].as_u64() > Some(0), "{burst}");
        assert!(burst["ratio"].as_f64() > Some(0.0), "{burst}");
        let ours = &report["contenders"][0];
        assert_eq!(ours["failures"].as_array().map(Vec::len), Some(0), "{ours}");
        let stages = ours["stages"].as_array().expect("stages");
        for wanted in ["phase store", "phases together", "first output", "ended", "gone"] {
            let stage = stages.iter().find(|stage| stage["name"] == wanted);
            let summary = &stage.unwrap_or_else(|| panic!("{wanted} is missing"))["summary"];
            assert_eq!(summary["n"], 3, "{wanted}: {summary}");
            assert!(summary["p50_micros"].as_u64() <= summary["max_micros"].as_u64());
        }
        let arguments =
            ["bench", "exec", "--class", class, "--count", "3", "--image", IMAGE, "--json", "-"];
        let report = instance.atoll(arguments).json();
        assert_eq!(report["contenders"][0]["stages"][0]["summary"]["n"], 3, "{report}");
        assert!(report["disk_fdatasync"]["p99_micros"].as_u64() > Some(0), "{report}");
        instance.has_no_sandboxes();
    });
}
