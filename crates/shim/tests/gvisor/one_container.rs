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
