//! One container in a Sentry.

use std::io::Write;

use atoll_sys::process::Exit;

use crate::harness::{Sandbox, container, runsc};

#[test]
fn input_output_environment_and_exit_code_pass() {
    let Some(runsc) = runsc("input_output_environment_and_exit_code_pass") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let script = "read line; echo $line $GREETING; id -u; hostname; echo oops >&2; exit 7";
        let mut one = container("main", layer, script);
        one.process.user.uid = 1000;
        vec![one]
    });
    let (begun, mut input) = sandbox.begin(0);
    input.write_all(b"typed\n").unwrap();
    let (output, exit) = sandbox.finish(&begun);
    assert_eq!(output, "typed hello\n1000\nisland\noops\n");
    assert_eq!(exit, Exit::Code(7));
    let evidence = sandbox.engine.evidence(0);
    assert_eq!(evidence.init_exit, Some(Exit::Code(7)));
    assert!(!evidence.out_of_memory && !evidence.sentry_died && !evidence.host_pids_backstop);
}

#[test]
fn a_read_only_root_leaves_tmp_writable() {
    let Some(runsc) = runsc("a_read_only_root_leaves_tmp_writable") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let script = "echo x > /file || echo refused; echo kept > /tmp/file && cat /tmp/file";
        let mut one = container("main", layer, script);
        one.read_only_root = true;
        vec![one]
    });
    let (begun, _input) = sandbox.begin(0);
    let (output, exit) = sandbox.finish(&begun);
    assert!(output.ends_with("refused\nkept\n"), "{output}");
    assert_eq!(exit, Exit::Code(0));
}

#[test]
fn what_the_image_has_in_tmp_stays_and_layers_are_not_changed() {
    let Some(runsc) = runsc("what_the_image_has_in_tmp_stays_and_layers_are_not_changed") else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        std::fs::create_dir(layer.join("tmp")).unwrap();
        std::fs::write(layer.join("tmp/of-the-image"), "image\n").unwrap();
        let script =
            "cat /tmp/of-the-image; echo changed > /tmp/of-the-image; cat /tmp/of-the-image";
        vec![container("main", layer, script)]
    });
    let (begun, _input) = sandbox.begin(0);
    let (output, _) = sandbox.finish(&begun);
    assert_eq!(output, "image\nchanged\n");
    let layer = sandbox.path().join("layer/tmp/of-the-image");
    assert_eq!(std::fs::read_to_string(layer).unwrap(), "image\n");
}

#[test]
fn links_of_an_image_lead_nowhere_on_the_host() {
    let Some(runsc) = runsc("links_of_an_image_lead_nowhere_on_the_host") else { return };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        let target = layer.parent().unwrap().join("target");
        std::fs::create_dir(&target).unwrap();
        for name in ["tmp", "dev"] {
            std::os::unix::fs::symlink(&target, layer.join(name)).unwrap();
        }
        vec![container("main", layer, "echo stray > /tmp/stray; echo ran")]
    });
    // Refused or contained: both are fine, as long as the host's directory stays empty.
    let (streams, _input, _output) = crate::harness::streams();
    if let Ok(begun) = sandbox.engine.begin(0, streams) {
        crate::harness::wait(&begun);
    }
    let target = sandbox.path().join("target");
    assert_eq!(std::fs::read_dir(target).unwrap().count(), 0);
}

#[test]
fn processes_enter_from_outside_beside_the_images_first_process() {
    let Some(runsc) = runsc("processes_enter_from_outside_beside_the_images_first_process") else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        vec![container("main", layer, "echo first > /tmp/state; read stop")]
    });
    let (begun, input) = sandbox.begin(0);
    let mut spec = crate::harness::shell("read line; cat /tmp/state; echo $line; id -u; exit 5");
    spec.user.uid = 77;
    let (streams, mut entered_input, output) = crate::harness::streams();
    let entered = sandbox.engine.exec_from_outside(0, &spec, streams).unwrap();
    entered_input.write_all(b"typed\n").unwrap();
    assert_eq!(crate::harness::read_all(output), "first\ntyped\n77\n");
    crate::harness::wait(&entered);
    let exit = atoll_sys::process::reap(entered.init.pid, atoll_sys::process::Wait::Block).unwrap();
    assert_eq!(exit, Some(Exit::Code(5)));
    drop(input);
    crate::harness::wait(&begun);
}

#[test]
fn the_topmost_layer_describes_the_root_and_what_it_removes_is_gone() {
    let Some(runsc) = runsc("the_topmost_layer_describes_the_root_and_what_it_removes_is_gone")
    else {
        return;
    };
    let mut sandbox = Sandbox::prepare(runsc, |layer| {
        use rustix::fs::{CWD, FileType, Gid, Mode, Uid, XattrFlags};
        let top = layer.with_file_name("top");
        for directory in [layer.join("opaque"), top.join("opaque")] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(layer.join("opaque/hidden"), "").unwrap();
        std::fs::write(top.join("opaque/shown"), "").unwrap();
        std::fs::write(layer.join("gone"), "").unwrap();
        rustix::fs::setxattr(
            top.join("opaque"),
            "trusted.overlay.opaque",
            b"y",
            XattrFlags::empty(),
        )
        .unwrap();
        rustix::fs::mknodat(CWD, top.join("gone"), FileType::CharacterDevice, Mode::empty(), 0)
            .unwrap();
        rustix::fs::chown(&top, Some(Uid::from_raw(1000)), Some(Gid::from_raw(1001))).unwrap();
        rustix::fs::chmod(&top, Mode::from_raw_mode(0o711)).unwrap();
        let script =
            "busybox stat -c '%a %u %g' /; busybox ls /opaque; busybox ls -d /gone || echo gone";
        let mut one = container("main", layer, script);
        one.layers.insert(0, top);
        vec![one]
    });
    let (begun, _input) = sandbox.begin(0);
    let (output, _) = sandbox.finish(&begun);
    assert!(output.starts_with("711 1000 1001\nshown\n"), "{output}");
    assert!(output.contains("gone\n") && !output.contains("hidden"), "{output}");
}
