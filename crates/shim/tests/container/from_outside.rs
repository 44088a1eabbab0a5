//! Processes that enter a container from outside: for a moment a program of the host is inside. What a hostile container can take hold
//! of in that moment (CVE-2019-5736), and what it can have the process begin in (CVE-2024-21626).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use atoll_wire::guest::ProcessSpec;

use super::harness::{Prepared, Sandbox, can_run, process};

fn exec(sandbox: &mut Sandbox, spec: &ProcessSpec) -> String {
    let spec = serde_json::to_string(spec).unwrap();
    sandbox.command(&format!("exec 0 {spec}"))
}

/// A container whose first process looks into every other that appears, until `/end` is there.
fn watched(with_users: bool) -> Sandbox {
    let mut prepared = Prepared::new("exec probe steal /end");
    if !with_users {
        prepared.launch.placement.first_host_id = None;
    }
    // The trick of the published attack: whoever runs this runs the program that it was itself.
    let trap = prepared.layer().join("bin/trap");
    fs::write(&trap, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&trap, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(prepared.layer().join("bin/busybox"), prepared.layer().join("bin/stranger")).unwrap();
    let mut sandbox = prepared.start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    sandbox
}

#[test]
fn cve_2019_5736_who_enters_from_outside_brings_no_program_of_the_host() {
    if !can_run("cve-2019-5736-outside") {
        return;
    }
    for with_users in [true, false] {
        let mut sandbox = watched(with_users);
        for _ in 0..20 {
            assert_eq!(exec(&mut sandbox, &process("exec true")), "ok Some(Code(0))");
            let mut trap = process("unused");
            trap.args = vec!["/bin/trap".into()];
            assert_ne!(exec(&mut sandbox, &trap), "ok Some(Code(0))", "users: {with_users}");
        }
        // Whoever looks does see: a program that it does not know is found, however slow the machine.
        for _ in 0..100 {
            let stranger = process("ln -sf /bin/stranger /tmp/sleep; exec /tmp/sleep 0.5");
            assert_eq!(exec(&mut sandbox, &stranger), "ok Some(Code(0))");
            if sandbox.output("0").contains("stole exe: /bin/stranger") {
                break;
            }
        }
        assert_eq!(exec(&mut sandbox, &process("touch /end")), "ok Some(Code(0))");
        sandbox.ok("wait 0");
        let output = sandbox.output("0");
        assert!(output.starts_with("watching\n"), "{output}");
        let (stranger, other): (Vec<&str>, Vec<&str>) = output
            .lines()
            .filter(|line| line.starts_with("stole") || line.starts_with("can write"))
            .partition(|line| line.ends_with(" /bin/stranger"));
        assert!(stranger.contains(&"stole exe: /bin/stranger"), "users: {with_users}: {output}");
        assert_eq!(other, Vec::<&str>::new(), "users: {with_users}: {output}");
        sandbox.ok("remove");
        sandbox.assert_nothing_left();
    }
}

#[test]
fn cve_2024_21626_who_enters_from_outside_begins_nowhere_but_inside() {
    if !can_run("cve-2024-21626-outside") {
        return;
    }
    let prepared = Prepared::new("sleep 60");
    symlink("/proc/self/fd/7", prepared.layer().join("start")).unwrap();
    let mut sandbox = prepared.start();
    sandbox.ok("prepare");
    sandbox.ok("begin 0");
    let links = ["/start", "/proc/self/cwd", "/proc/1/cwd", "/proc/self/fd/9/../.."];
    let numbers: Vec<String> = (0..24).map(|number| format!("/proc/self/fd/{number}")).collect();
    for directory in links.into_iter().chain(numbers.iter().map(String::as_str)) {
        let mut spec = process("echo I am in $(pwd); ls -a . ..");
        spec.working_directory = directory.into();
        let answer = exec(&mut sandbox, &spec);
        assert!(!answer.contains("Code(0)"), "{directory}: {answer}: {}", sandbox.output("exec"));
        assert!(!sandbox.output("exec").contains("I am in"), "{directory} ran something");
    }
    // The same place works when it is one.
    let mut spec = process("echo I am in $(pwd)");
    spec.working_directory = "/root".into();
    assert_eq!(exec(&mut sandbox, &spec), "ok Some(Code(0))");
    assert_eq!(sandbox.output("exec"), "I am in /root\n");
    sandbox.ok("kill 0");
    sandbox.ok("remove");
    sandbox.assert_nothing_left();
}
