//! The keeper as a program of its own, for tests: in a release the `atoll` binary plays this part. With `attach DIRECTORY PORT TARGET` it is a
//! server that publishes a port and lives until it is killed.

use std::process::ExitCode;

use atoll_keeper::{
    Addresses, KeeperClient, Member, Names, PROGRAM_ARGUMENT, Port, PortHold, Protocol,
    StartOptions,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        [PROGRAM_ARGUMENT, ..] => atoll_keeper::program_main(),
        ["attach", data_dir, host_port, target_port] => {
            match serve(&arguments[0], data_dir, host_port, target_port) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(%error, "cannot publish");
                    ExitCode::FAILURE
                }
            }
        }
        _ => ExitCode::FAILURE,
    }
}

fn serve(
    program: &str,
    data_dir: &str,
    host_port: &str,
    target_port: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let keeper = KeeperClient::start_or_attach(&StartOptions::new(program, data_dir))?;
    let hold = PortHold { protocol: Protocol::Tcp, host_port: host_port.parse()? };
    keeper.put(&Member {
        uid: "served".into(),
        addresses: Some(Addresses { ipv4: [127, 0, 0, 1].into(), ipv6: "::1".parse()? }),
        names: Names::Refuse,
        ports: vec![Port { hold, target_port: target_port.parse()?, open: true }],
    })?;
    keeper.wait_for_end();
    Ok(())
}
