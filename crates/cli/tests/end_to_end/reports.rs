//! What `describe` and `doctor` tell a person: figures that add up, and what to do where something is missing.

use crate::support::{IMAGE, Instance, in_each_class, skipped};

/// A time as people read it, in microseconds, and how far rounding may have moved it.
fn micros(text: &str) -> (f64, f64) {
    let (figure, unit) = text.split_once(' ').unwrap_or_else(|| panic!("{text:?} is no time"));
    let scale = match unit {
        "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => panic!("{text:?} is no time"),
    };
    let places = figure.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let step = (0..places).fold(scale, |step, _| step / 10.0);
    (figure.parse::<f64>().unwrap() * scale, step / 2.0)
}

#[test]
fn the_disk_of_a_running_sandbox_is_told_with_limit_and_backend() {
    in_each_class("disk_told", |instance, class| {
        let name = format!("disk-told-{class}");
        let script =
            "dd if=/dev/zero of=/big bs=1M count=20 conv=fsync && echo written; sleep 1000";
        let run =
            ["run", "--class", class, "--keep", "--name", &name, "--disk", "64Mi", IMAGE, "--"];
        let mut run = instance.begin(run.into_iter().chain(["sh", "-c", script]));
        run.line_with("written");
        let sandbox = instance.atoll(["get", &format!("sandbox/{name}"), "-o", "json"]).json();
        let disk = &sandbox["status"]["containers"][0]["disk"];
        let figure =
            |name: &str| disk[name].as_u64().unwrap_or_else(|| panic!("{name}: {sandbox}"));
        let (used, limit) = (figure("used_bytes"), figure("limit_bytes"));
        assert!((20 << 20..limit).contains(&used) && limit <= 64 << 20, "{disk}");
        let text = instance.atoll(["describe", &format!("sandbox/{name}")]).succeeded();
        let line = text.lines().find(|line| line.trim_start().starts_with("Disk:"));
        let line = line.unwrap_or_else(|| panic!("no disk in {text}"));
        let backend = disk["backend"].as_str().expect("a backend");
        assert!(line.ends_with(&format!("used ({backend})")), "{line}");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        run.finish();
    });
}

#[test]
fn the_timeline_that_describe_shows_adds_up_to_its_total() {
    in_each_class("described", |instance, class| {
        let name = format!("described-{class}");
        let run = ["run", "--class", class, "--keep", "--name", &name, IMAGE, "--", "true"];
        instance.atoll(run).succeeded();
        let text = instance.atoll(["describe", &format!("sandbox/{name}")]).succeeded();
        let table = text.split_once("\nTimeline\n").expect("a timeline").1;
        let rows: Vec<(String, String, u64)> = table
            .lines()
            .skip(1)
            .take_while(|line| !line.is_empty())
            .map(|line| {
                let mut words = line.split_whitespace();
                let mut word = || words.next().unwrap_or_else(|| panic!("{line:?}"));
                let (phase, figure, unit, share) = (word(), word(), word(), word());
                (phase.to_owned(), format!("{figure} {unit}"), share.parse().unwrap())
            })
            .collect();
        let (total, phases) = rows.split_last().expect("rows");
        assert_eq!((total.0.as_str(), total.2), ("total", 100), "{text}");
        let told = &instance.sandbox(&name).expect("it was kept")["status"]["timeline"];
        let names: Vec<&str> = phases.iter().map(|(phase, _, _)| phase.as_str()).collect();
        let expected: Vec<&str> = told["phases"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|it| it["name"].as_str())
            .collect();
        assert_eq!(names, expected, "all phases in their order: {text}");
        let (sum, slack) = phases
            .iter()
            .map(|(_, time, _)| micros(time))
            .fold((0.0, 0.0), |sum, phase| (sum.0 + phase.0, sum.1 + phase.1));
        let (shown, rounding) = micros(&total.1);
        assert!((sum - shown).abs() <= slack + rounding + 0.001, "{sum} is not {shown}: {text}");
        let api = told["total_micros"].as_f64().unwrap();
        assert!((api - shown).abs() <= rounding + 0.001, "{api} is not {shown}: {text}");
        // Shares are cut to whole per cent.
        let shares: u64 = phases.iter().map(|(_, _, share)| share).sum();
        assert!((100 - phases.len() as u64..=100).contains(&shares), "{shares} %: {text}");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

/// Takes programs away from this thread and from what it starts, and from nobody else.
fn hide(programs: &[&str]) -> Result<(), String> {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    let said = |error: rustix::io::Errno| error.to_string();
    atoll_sys::clone::unshare(rustix::thread::UnshareFlags::NEWNS)
        .map_err(|error| error.to_string())?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(said)?;
    for program in programs {
        for directory in ["/usr/local/bin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
            let path = std::path::Path::new(directory).join(program);
            // What is no regular file is no program; two names may be one.
            if path.is_file() {
                mount_bind("/dev/null", &path).map_err(said)?;
            }
        }
    }
    Ok(())
}

#[test]
fn doctor_fails_where_nothing_would_run_and_says_what_to_install() {
    if !rustix::process::geteuid().is_root() {
        return skipped("doctor_missing", "needs root");
    }
    let instance = Instance::not_started();
    let before = instance.atoll(["doctor", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&before.stdout).unwrap();
    let check = |report: &serde_json::Value, name: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).cloned().unwrap_or_default()
    };
    if before.code != Some(0) || !check(&report, "disks")["found"].to_string().contains("ext4") {
        return skipped(
            "doctor_missing",
            "its disks need no program here, or it cannot run sandboxes at all",
        );
    }
    // Without gVisor one class is left: worth knowing, no failure.
    if let Err(why) = hide(&["runsc"]) {
        return skipped("doctor_missing", &format!("programs cannot be hidden: {why}"));
    }
    let limited = instance.atoll(["doctor"]);
    let text = limited.succeeded();
    assert!(text.contains("\nlimited") && text.contains("\nWhat to do\n"), "{text}");
    let advice = |text: &str, name: &str| {
        let start = format!("  {name}: ");
        text.lines().find(|line| line.starts_with(&start)).unwrap_or_default().to_owned()
    };
    let gvisor = advice(&text, "gVisor");
    assert!(gvisor.contains("class gvisor cannot be had") && gvisor.contains("nstall"), "{text}");
    assert_eq!(instance.atoll(["doctor", "--classes"]).succeeded(), "container\n");

    // Without disks there is no class at all: a failure that names the package.
    hide(&["mkfs.ext4"]).unwrap();
    let missing = instance.atoll(["doctor"]);
    let text = missing.ended_with(1);
    assert!(text.contains("missing") && text.contains("\nWhat to do\n"), "{text}");
    let disks = advice(&text, "disks");
    assert!(
        disks.contains("class container cannot be had") && disks.contains("e2fsprogs"),
        "{text}"
    );
    let missing = instance.atoll(["doctor", "-o", "json"]);
    assert_eq!(missing.code, Some(1), "the same for programs: {missing:?}");
    let report: serde_json::Value = serde_json::from_slice(&missing.stdout).unwrap();
    let disks = check(&report, "disks");
    assert_eq!(disks["verdict"], "missing", "{report}");
    assert!(disks["remedy"].to_string().contains("e2fsprogs"), "{report}");
    let none = instance.atoll(["doctor", "--classes"]);
    assert_eq!((none.code, none.text().as_str()), (Some(1), ""), "{none:?}");
}
