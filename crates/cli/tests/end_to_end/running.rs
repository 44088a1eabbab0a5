//! `atoll run` and `atoll exec`: input, output, exit codes, users, environment.

use crate::support::{IMAGE, Instance, in_each_class};

fn run(class: &str, more: &[&str]) -> Vec<String> {
    let mut arguments = vec!["run", "--class", class];
    arguments.extend(more);
    arguments.into_iter().map(str::to_owned).collect()
}

fn shell(class: &str, script: &str) -> Vec<String> {
    run(class, &[IMAGE, "--", "sh", "-c", script])
}

#[test]
fn input_output_and_exit_codes_pass_through_and_nothing_stays() {
    in_each_class("input_output_and_exit_codes", |instance, class| {
        let cat = instance.atoll_with_input(run(class, &["-i", IMAGE, "--", "cat"]), b"hi\n");
        assert_eq!(cat.succeeded(), "hi\n");
        let both = instance.atoll(shell(class, "echo out; echo err >&2; exit 7"));
        assert_eq!(both.ended_with(7), "out\n");
        assert_eq!(both.stderr, "err\n");
        instance.atoll(shell(class, "kill -9 $$")).ended_with(137);
        instance.atoll(shell(class, "kill -TERM $$")).ended_with(143);
        instance.atoll(run(class, &[IMAGE, "--", "no-such-program"])).ended_with(127);
        instance.atoll(run(class, &[IMAGE, "--", "/etc/passwd"])).ended_with(126);
        instance.atoll(run(class, &[IMAGE, "--", "true"])).succeeded();
        instance.has_no_sandboxes();
    });
}

#[test]
fn environment_directory_and_user_are_those_asked_for() {
    in_each_class("environment_directory_and_user", |instance, class| {
        let arguments =
            ["-e", "A=b c", "-e", "GREETING", "-w", "/tmp", "-u", "nobody", IMAGE, "--"];
        let mut arguments = run(class, &arguments);
        arguments
            .extend(["sh", "-c", "echo $A; echo $GREETING; pwd; id -u; id -g"].map(str::to_owned));
        let mut command = instance.command(&arguments);
        command.env("GREETING", "hello");
        let finished = crate::support::finish(command, b"");
        assert_eq!(finished.succeeded(), "b c\nhello\n/tmp\n65534\n65534\n");
        let numbers = run(class, &["-u", "123:456", IMAGE, "--", "sh", "-c", "id -u; id -g"]);
        assert_eq!(instance.atoll(numbers).succeeded(), "123\n456\n");
    });
}

#[test]
fn no_byte_of_much_output_or_input_is_lost() {
    in_each_class("no_byte_is_lost", |instance, class| {
        let script = "i=0; while [ $i -lt 64 ]; do head -c 65536 /dev/zero | tr '\\0' 'x'; i=$((i+1)); done; echo end";
        let output = instance.atoll(shell(class, script));
        output.succeeded();
        assert_eq!(output.stdout.len(), 64 * 65536 + 4);
        assert!(output.stdout.ends_with(b"xend\n"));
        let input: Vec<u8> = (0..3_000_000_u32).flat_map(|n| [(n % 251) as u8]).collect();
        let echoed = instance.atoll_with_input(run(class, &["-i", IMAGE, "--", "cat"]), &input);
        echoed.succeeded();
        assert!(
            echoed.stdout == input,
            "{} of {} bytes came back",
            echoed.stdout.len(),
            input.len()
        );
    });
}

#[test]
fn limits_that_make_no_sense_and_images_that_are_not_there_are_told() {
    in_each_class("bad_requests", |instance, class| {
        let bad = instance.atoll(run(class, &["--memory", "-1", IMAGE, "--", "true"]));
        bad.ended_with(125);
        bad.complains("memory");
        let missing =
            instance.atoll(run(class, &["--pull", "never", "no/such-image", "--", "true"]));
        missing.ended_with(125);
        missing.complains("no/such-image");
        let unknown = instance.atoll(["run", "--class", "vapour", IMAGE, "--", "true"]);
        unknown.ended_with(125);
        unknown.complains("vapour");
        instance.has_no_sandboxes();
    });
}

#[test]
fn memory_beyond_the_limit_is_told_as_such() {
    in_each_class("out_of_memory", |instance, class| {
        // Keeps all of a line that never ends.
        let arguments = run(class, &["--memory", "48Mi", IMAGE, "--", "tail", "/dev/zero"]);
        let finished = instance.atoll(arguments);
        assert_eq!(finished.code, Some(137), "{finished:?}");
        finished.complains("memory limit");
    });
}

#[test]
fn output_of_a_command_that_ended_before_its_client_came_is_all_there() {
    in_each_class("attach_after_the_end", |instance, class| {
        let name = format!("quick-{class}");
        let manifest = format!(
            "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      await_attach: true\n      args: [sh, -c, 'echo out; echo err >&2; exit 7']\n"
        );
        let create =
            instance.atoll_with_input(["create", "--wait", "-f", "-"], manifest.as_bytes());
        assert!(create.code.is_some_and(|code| code <= 1), "{create:?}");
        instance.atoll(["wait", &format!("sandbox/{name}"), "--for", "failed"]).succeeded();
        for _ in 0..2 {
            let attached = instance.atoll(["attach", &name]);
            assert_eq!(attached.ended_with(7), "out\n");
            assert_eq!(attached.stderr, "err\n");
            // And once more after a restart, with the shim still there.
            instance.kill_server();
            instance.up();
        }
        let sandbox = instance.sandbox(&name).expect("its record stays");
        assert_eq!(sandbox["status"]["phase"], "Failed", "{sandbox}");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}

#[test]
fn many_quick_commands_at_a_time_all_end_well() {
    // gVisor's starts take a hundred times as long: a few show as much.
    in_each_class("many_quick_commands", |instance, class| {
        let count = if class == "gvisor" { 8 } else { 50 };
        let begin = |index: usize| {
            let word = format!("ready-{index}");
            (instance.begin(run(class, &[IMAGE, "--", "echo", &word])), word)
        };
        let runs: Vec<_> = (0..count).map(begin).collect();
        for (run, word) in runs {
            assert_eq!(run.finish().succeeded(), format!("{word}\n"));
        }
        instance.has_no_sandboxes();
    });
}

fn keep(instance: &Instance, class: &str, name: &str, script: &str) {
    let manifest = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, '{script}']\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], manifest.as_bytes()).succeeded();
}

#[test]
fn exec_runs_beside_the_main_process() {
    in_each_class("exec", |instance, class| {
        let name = format!("exec-{class}");
        keep(instance, class, &name, "echo $$ > /tmp/main; sleep 1000");
        let exec = |more: &[&str], input: &[u8]| {
            let mut arguments = vec!["exec"];
            arguments.extend(more);
            instance.atoll_with_input(arguments, input)
        };
        let echo = exec(&["-i", &name, "--", "cat"], b"through\n");
        assert_eq!(echo.succeeded(), "through\n");
        let code = exec(&[&name, "--", "sh", "-c", "echo o; echo e >&2; exit 9"], b"");
        assert_eq!(code.ended_with(9), "o\n");
        assert_eq!(code.stderr, "e\n");
        let set = exec(
            &[
                "-e",
                "K=v",
                "-w",
                "/etc",
                "-u",
                "nobody",
                &name,
                "--",
                "sh",
                "-c",
                "echo $K $(pwd) $(id -u)",
            ],
            b"",
        );
        assert_eq!(set.succeeded(), "v /etc 65534\n");
        exec(&[&name, "--", "nothing-of-that-name"], b"").ended_with(127);
        let shared =
            exec(&[&name, "--", "sh", "-c", "kill -0 $(cat /tmp/main) && echo alive"], b"");
        assert_eq!(shared.succeeded(), "alive\n");
        let wrong = exec(&["-c", "other", &name, "--", "true"], b"");
        assert_eq!(wrong.code, Some(125), "{wrong:?}");
        wrong.complains("other");
        let absent = exec(&["nobody-knows", "--", "true"], b"");
        assert_eq!(absent.code, Some(125), "{absent:?}");
        absent.complains("nobody-knows");
        instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
    });
}
