use std::path::PathBuf;

use atoll_wire::guest::{ProcessSpec, UserIds};
use atoll_wire::shim::{
    ContainerLimits, ContainerPlan, DiskBackend, Engine, Init, Placement, SandboxPlan,
};

use super::*;

fn container(name: &str) -> ContainerPlan {
    ContainerPlan {
        name: name.into(),
        layers: Vec::new(),
        read_only_root: false,
        disk_bytes: 0,
        log_bytes: 0,
        process: ProcessSpec {
            args: vec!["true".into()],
            env: Vec::new(),
            working_directory: "/".into(),
            make_working_directory: false,
            user: UserIds::default(),
            capabilities: 0,
            no_new_privileges: true,
            stdin: false,
            terminal: None,
            umask: 0o022,
            oom_score_adj: 0,
            open_files: None,
        },
        init: Init::Guest,
        limits: ContainerLimits { cpu_millis: 1, memory_bytes: 1, pids: 1 },
        tmpfs: Vec::new(),
        volume_mounts: Vec::new(),
        stop_signal: 15,
        await_attach: false,
        held: false,
    }
}

fn launch(names: &[&str]) -> Launch {
    Launch {
        version: SHIM_PROTOCOL_VERSION,
        plan: SandboxPlan {
            uid: "0123456789abcdef".into(),
            hostname: "box".into(),
            containers: names.iter().map(|name| container(name)).collect(),
            volumes: Vec::new(),
            shm_bytes: 0,
            boost_millis: 0,
            network: atoll_wire::shim::NetworkPlan::Loopback,
            grants: Vec::new(),
            ports: Vec::new(),
        },
        placement: Placement {
            engine: Engine::Container,
            directory: PathBuf::from("/sandboxes/0123456789abcdef"),
            cgroup_instance: "test".into(),
            first_host_id: None,
            guest_binary: PathBuf::from("/guest"),
            gvisor: None,
            disk_backend: DiskBackend::Image,
            network: None,
        },
    }
}

#[test]
fn names_in_a_launch_can_be_used_as_parts_of_paths() {
    let directory = Path::new("/sandboxes/0123456789abcdef");
    let long = "x".repeat(64);
    let good = ["main", "side-car.2", "logs", "shim.sock", "launch.json", &long];
    assert_eq!(check_launch(&launch(&good), directory), Ok(()));
    let longer = "x".repeat(65);
    for bad in ["", ".", "..", "../x", "a..b", "a/b", "-a", "a b", "a\n", &longer] {
        assert!(check_launch(&launch(&[bad]), directory).is_err(), "{bad:?}");
    }
    assert!(check_launch(&launch(&[]), directory).is_err());
    assert!(check_launch(&launch(&["a", "a"]), directory).is_err());
    assert!(check_launch(&launch(&["a"]), Path::new("/sandboxes/other")).is_err());
    let newer = Launch { version: SHIM_PROTOCOL_VERSION + 1, ..launch(&["a"]) };
    assert!(check_launch(&newer, directory).unwrap_err().contains("newer"));
    let mut unnamed = launch(&["a"]);
    unnamed.plan.uid = "../etc".into();
    assert!(check_launch(&unnamed, directory).is_err());
}
