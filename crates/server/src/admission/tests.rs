use atoll_model::spec::Command;

use super::container::{DEFAULT_CPU, DEFAULT_MEMORY};
use atoll_sys::capabilities::CapabilitySet;

use super::*;

fn offer() -> Offer {
    let class =
        |class, image_init| OfferedClass { class, image_init, privileges: Privileges::default() };
    Offer {
        classes: vec![class(Class::Container, true), class(Class::Sim, false)],
        missing: vec![(Class::Gvisor, "runsc is not installed: apt install runsc".into())],
        network: Err("started without".into()),
        grants: Vec::new(),
    }
}

fn container(name: &str) -> rest::ContainerSpec {
    rest::ContainerSpec { name: name.into(), image: "busybox".into(), ..Default::default() }
}

fn request(containers: Vec<rest::ContainerSpec>) -> rest::CreateSandbox {
    let spec = rest::SandboxSpec { containers, ..Default::default() };
    rest::CreateSandbox { id: Some("box".into()), metadata: rest::Metadata::default(), spec }
}

/// Paths of the problems after a change to a good request.
fn paths(change: impl FnOnce(&mut rest::CreateSandbox)) -> Vec<String> {
    let mut request = request(vec![container("main")]);
    change(&mut request);
    match admit(&request, &offer()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(|it| it.path).collect(),
    }
}

#[test]
fn a_small_request_gets_the_documented_defaults() {
    let admitted = admit(&request(vec![container("main")]), &offer()).unwrap();
    assert_eq!(admitted.class, Class::Container, "the strongest");
    assert_eq!(admitted.spec.boost_seconds, 10);
    let resources = admitted.spec.containers[0].resources;
    assert_eq!(
        (resources.cpu, resources.memory, resources.disk, resources.pids),
        (DEFAULT_CPU, DEFAULT_MEMORY, DEFAULT_DISK, 128)
    );
}

#[test]
fn every_problem_is_told_with_its_path() {
    let found = paths(|it| {
        it.id = Some("a..b".into());
        it.spec.ttl_seconds = -1;
        let main = &mut it.spec.containers[0];
        main.name = "../x".into();
        main.image = "UPPER CASE".into();
        main.resource.memory = Some("1e400".into());
        main.resource.cpu = Some("-1".into());
        main.resource.ephemeral_storage = Some("0".into());
        main.resource.pids = Some(0);
        main.env = vec!["NOVALUE".into()];
        main.cap_add = vec!["SYS_ADMIN".into()];
        main.security_opt = vec!["seccomp=unconfined".into()];
        main.tmpfs =
            vec![rest::TmpfsSpec { mount_path: "/proc".into(), options: Some("suid".into()) }];
        main.volume_mounts = vec![rest::VolumeMountSpec {
            name: "nope".into(),
            mount_path: "/".into(),
            read_only: false,
        }];
        main.stop_signal = Some("SIGWHAT".into());
        main.pull = Some("sometimes".into());
    });
    for path in [
        "id",
        "spec.ttl_seconds",
        "spec.containers[0].name",
        "spec.containers[0].image",
        "spec.containers[0].resource.memory",
        "spec.containers[0].resource.cpu",
        "spec.containers[0].resource.ephemeral_storage",
        "spec.containers[0].resource.pids",
        "spec.containers[0].env[0]",
        "spec.containers[0].cap_add[0]",
        "spec.containers[0].security_opt[0]",
        "spec.containers[0].tmpfs[0].mount_path",
        "spec.containers[0].tmpfs[0].options",
        "spec.containers[0].volume_mounts[0].mount_path",
        "spec.containers[0].volume_mounts[0].name",
        "spec.containers[0].stop_signal",
        "spec.containers[0].pull",
    ] {
        assert!(found.iter().any(|it| it == path), "{path} in {found:?}");
    }
    assert_eq!(found.len(), 17, "{found:?}");
}

#[test]
fn privileges_are_had_where_the_node_allows_them_by_name_and_refused_elsewhere() {
    let request = |class: &str| {
        let mut request = request(vec![container("main")]);
        request.spec.class = Some(class.into());
        let main = &mut request.spec.containers[0];
        main.cap_add = vec!["CAP_NET_ADMIN".into(), "chown".into()];
        main.security_opt = vec!["no-new-privileges:false".into()];
        request
    };
    let refused = admit(&request("container"), &offer()).unwrap_err();
    let paths: Vec<&str> = refused.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["spec.containers[0].cap_add[0]", "spec.containers[0].security_opt[0]"]);
    assert!(refused[0].message.contains("--allow-capability NET_ADMIN"), "{refused:?}");
    assert!(refused[1].message.contains("--allow-new-privileges"), "{refused:?}");
    let mut generous = offer();
    let sentry = OfferedClass { class: Class::Gvisor, ..generous.classes[0] };
    generous.classes.push(sentry);
    for class in &mut generous.classes {
        class.privileges = Privileges {
            capabilities: CapabilitySet::parse(["NET_ADMIN"]).unwrap(),
            new_privileges: true,
        };
    }
    let admitted = admit(&request("container"), &generous).unwrap();
    let main = &admitted.spec.containers[0];
    assert_eq!(
        (main.cap_add.as_slice(), main.new_privileges),
        (&["NET_ADMIN".to_owned(), "CHOWN".to_owned()][..], true)
    );
    let refused = admit(&request("gvisor"), &generous).unwrap_err();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].message.contains("class gvisor"), "{refused:?}");
    // All only where all is allowed.
    let mut all = request("container");
    all.spec.containers[0].cap_add = vec!["ALL".into()];
    assert!(admit(&all, &generous).is_err());
    generous.classes.iter_mut().for_each(|it| it.privileges.capabilities = CapabilitySet::ALL);
    assert!(admit(&all, &generous).is_ok());
}

#[test]
fn what_would_not_be_enforced_is_refused_as_such() {
    let mut it = request(vec![container("main")]);
    it.spec.egress = true;
    it.spec.ports = vec![rest::PortSpec { container_port: 80, ..Default::default() }];
    it.spec.readiness_probe = Some(probe("tcp"));
    let problems = admit(&it, &offer()).unwrap_err();
    assert_eq!(problems.len(), 3);
    assert!(problems.iter().all(|it| it.not_enforced && it.message.contains("cannot be enforced")));
}

fn probe(protocol: &str) -> rest::ProbeSpec {
    rest::ProbeSpec {
        protocol: protocol.into(),
        port: Some(80),
        path: None,
        command: Vec::new(),
        initial_delay_seconds: 1,
        period_seconds: 1,
        timeout_seconds: 1,
        success_threshold: 1,
        failure_threshold: 1,
    }
}

#[test]
fn ports_and_probes_are_checked_field_by_field() {
    let offer = Offer { network: Ok(()), ..offer() };
    let found = |change: fn(&mut rest::SandboxSpec)| {
        let mut it = request(vec![container("main")]);
        it.spec.class = Some("container".into());
        change(&mut it.spec);
        match admit(&it, &offer) {
            Ok(admitted) => Ok(admitted.spec),
            Err(problems) => Err(problems.into_iter().map(|it| it.path).collect::<Vec<_>>()),
        }
    };
    let spec = found(|it| {
        it.ports =
            vec![rest::PortSpec { container_port: 80, host_port: Some(-7), ..Default::default() }];
        it.readiness_probe = Some(rest::ProbeSpec { path: Some("/ok".into()), ..probe("http") });
    });
    let spec = spec.unwrap();
    assert_eq!((spec.network, spec.ports.len(), spec.probes.len()), (Network::Isolated, 1, 1));
    assert_eq!(spec.ports[0].published_port, None, "host_port is ignored");
    let exec = found(|it| {
        it.containers[0].readiness_probe =
            Some(rest::ProbeSpec { port: None, command: vec!["true".into()], ..probe("exec") });
    });
    assert_eq!(exec.unwrap().network, Network::Loopback, "a command needs no network");
    type Change = fn(&mut rest::SandboxSpec);
    let bad: [(Change, &str); 9] = [
        (|it| it.ports = vec![rest::PortSpec::default()], "spec.ports[0].container_port"),
        (
            |it| {
                it.ports = vec![rest::PortSpec {
                    container_port: 1,
                    published_port: Some(65_536),
                    ..Default::default()
                }];
            },
            "spec.ports[0].published_port",
        ),
        (
            |it| {
                it.ports = vec![rest::PortSpec {
                    container_port: 1,
                    protocol: Some("TCP".into()),
                    ..Default::default()
                }];
            },
            "spec.ports[0].protocol",
        ),
        (
            |it| it.ports = vec![rest::PortSpec { container_port: 1, ..Default::default() }; 65],
            "spec.ports",
        ),
        (|it| it.readiness_probe = Some(probe("exec")), "spec.readiness_probe.protocol"),
        (|it| it.readiness_probe = Some(probe("http")), "spec.readiness_probe.path"),
        (
            |it| it.readiness_probe = Some(rest::ProbeSpec { port: None, ..probe("tcp") }),
            "spec.readiness_probe.port",
        ),
        (
            |it| it.readiness_probe = Some(rest::ProbeSpec { period_seconds: 0, ..probe("tcp") }),
            "spec.readiness_probe.period_seconds",
        ),
        (
            |it| {
                it.containers[0].readiness_probe =
                    Some(rest::ProbeSpec { port: None, ..probe("exec") });
            },
            "spec.containers[0].readiness_probe.command",
        ),
    ];
    for (change, path) in bad {
        assert_eq!(found(change).unwrap_err(), [path]);
    }
}

#[test]
fn floods_and_repetitions_are_refused() {
    let many = request((0..10_000).map(|index| container(&format!("c{index}"))).collect());
    let problems = admit(&many, &offer()).unwrap_err();
    assert_eq!(problems[0].message, "are 10000, at most 32 are allowed");
    assert_eq!(paths(|it| it.spec.containers.push(container("main"))), ["spec.containers[1].name"]);
    assert_eq!(paths(|it| it.spec.containers.clear()), ["spec.containers"]);
    for name in ["logs", "a.b", "shim.sock", &"x".repeat(64)] {
        assert!(paths(|it| it.spec.containers[0].name = name.into()).is_empty(), "{name}");
    }
    for name in ["", ".a", "a..b", "a/b", &"x".repeat(65)] {
        assert_eq!(
            paths(|it| it.spec.containers[0].name = name.into()),
            ["spec.containers[0].name"]
        );
    }
    assert_eq!(paths(|it| it.id = Some("x".repeat(300))), ["id"]);
    assert_eq!(
        paths(|it| it.spec.containers[0].args = vec!["x".repeat(2 << 20)]),
        ["spec.containers[0]"]
    );
    let volume = |size: &str| rest::VolumeSpec {
        name: "v".into(),
        ephemeral_storage: Some(size.into()),
        volume: None,
    };
    assert_eq!(
        paths(|it| it.spec.volumes = vec![volume("1Mi"), volume("1Mi")]),
        ["spec.volumes[1].name"]
    );
    assert_eq!(
        paths(|it| it.spec.volumes =
            vec![rest::VolumeSpec { name: "v".into(), ..Default::default() }]),
        ["spec.volumes[0]"]
    );
    let both = rest::VolumeSpec { volume: Some("data".into()), ..volume("1Mi") };
    assert_eq!(paths(|it| it.spec.volumes = vec![both.clone()]), ["spec.volumes[0]"]);
    let named = |number: usize| rest::VolumeSpec {
        name: format!("v{number}"),
        ephemeral_storage: None,
        volume: Some("data".into()),
    };
    assert_eq!(
        paths(|it| it.spec.volumes = (0..=rules::MAX_NAMED_VOLUMES).map(named).collect()),
        ["spec.volumes"]
    );
    let tmpfs = || rest::TmpfsSpec { mount_path: "/a".into(), options: None };
    assert_eq!(
        paths(|it| it.spec.containers[0].tmpfs = vec![tmpfs(), tmpfs()]),
        ["spec.containers[0].tmpfs[1].mount_path"]
    );
}

#[test]
fn a_class_that_is_missing_says_what_to_install() {
    let mut it = request(vec![container("main")]);
    it.spec.class = Some("gvisor".into());
    let problems = admit(&it, &offer()).unwrap_err();
    assert!(problems[0].message.contains("apt install runsc"), "{problems:?}");
    let image_init = paths(|it| {
        it.spec.class = Some("sim".into());
        it.spec.containers[0].init = Some("image".into());
    });
    assert_eq!(image_init, ["spec.containers[0].init"]);
    let terminal = paths(|it| {
        it.spec.class = Some("container".into());
        it.spec.containers[0].init = Some("image".into());
        it.spec.containers[0].tty = true;
    });
    assert_eq!(terminal, ["spec.containers[0].tty"]);
}

#[test]
fn an_unknown_class_is_told_with_those_that_isolate() {
    let mut it = request(vec![container("main")]);
    it.spec.class = Some("vm".into());
    let problems = admit(&it, &offer()).unwrap_err();
    let told: Vec<_> = problems.iter().map(|it| (it.path.as_str(), it.message.as_str())).collect();
    assert_eq!(told, [("spec.class", "\"vm\" is no class; known: container, gvisor")]);
}

#[test]
fn command_and_args_replace_what_the_image_says() {
    let mut main = container("main");
    main.args = vec!["-c".into(), "true".into()];
    assert_eq!(
        admit(&request(vec![main.clone()]), &offer()).unwrap().spec.containers[0].command,
        Command::Replace(vec!["-c".into(), "true".into()])
    );
    main.command = vec!["sh".into()];
    assert_eq!(
        admit(&request(vec![main]), &offer()).unwrap().spec.containers[0].command,
        Command::Replace(vec!["sh".into(), "-c".into(), "true".into()])
    );
}

#[test]
fn what_was_admitted_reads_again_even_when_its_class_is_gone() {
    let mut it = request(vec![container("main")]);
    it.spec.class = Some("container".into());
    let admitted = admit(&it, &offer()).unwrap();
    assert_eq!(read_admitted(&it.spec).unwrap(), admitted.spec);
}

#[test]
fn private_destinations_must_be_allowed_by_the_node() {
    let offer =
        Offer { network: Ok(()), grants: vec!["10.0.0.0/8:5432".parse().unwrap()], ..offer() };
    let admitted = |egress_allow: Vec<rest::EgressSpec>| {
        let mut request = request(vec![container("main")]);
        request.spec.egress_allow = egress_allow;
        let problems = |problems: Vec<Problem>| problems.into_iter().map(|it| it.path).collect();
        admit(&request, &offer).map_err(problems)
    };
    let one =
        |cidr: &str, port: i64| rest::EgressSpec { cidr: cidr.into(), port, ..Default::default() };
    let admitted_one = admitted(vec![one("10.1.2.3", 5432)]).unwrap();
    assert_eq!(admitted_one.spec.network, Network::Isolated, "it has an address to come from");
    assert_eq!(admitted_one.spec.grants.len(), 1);
    for (wanted, path) in [
        (one("10.1.2.3", 5433), "spec.egress_allow[0]"),
        (one("11.0.0.0/8", 5432), "spec.egress_allow[0]"),
        (one("10.1.2.3/8", 5432), "spec.egress_allow[0].cidr"),
        (one("169.254.169.254", 5432), "spec.egress_allow[0].cidr"),
        (one("x".repeat(5000).as_str(), 5432), "spec.egress_allow[0].cidr"),
        (one("10.0.0.0/8", 0), "spec.egress_allow[0].port"),
        (one("10.0.0.0/8", 70_000), "spec.egress_allow[0].port"),
        (
            rest::EgressSpec { end_port: Some(1), ..one("10.0.0.0/8", 5432) },
            "spec.egress_allow[0].end_port",
        ),
        (
            rest::EgressSpec { protocol: Some("icmp".into()), ..one("10.0.0.0/8", 5432) },
            "spec.egress_allow[0].protocol",
        ),
    ] {
        let problems: Vec<String> = admitted(vec![wanted]).unwrap_err();
        assert_eq!(problems, [path]);
    }
    let many = vec![one("10.0.0.0/8", 5432); 33];
    assert_eq!(admitted(many).unwrap_err(), ["spec.egress_allow"]);
}

#[test]
fn dependencies_that_can_never_be_ready_are_refused_where_they_are_written() {
    let with = |wanted: &[(&str, &[&str])]| {
        paths(|it| {
            let one = |(name, on): &(&str, &[&str])| rest::ContainerSpec {
                depends_on: on.iter().map(|name| (*name).to_owned()).collect(),
                ..container(name)
            };
            it.spec.containers = wanted.iter().map(one).collect();
        })
    };
    assert_eq!(with(&[("web", &["db"]), ("db", &[])]), Vec::<String>::new());
    assert_eq!(with(&[("web", &["nobody"])]), ["spec.containers[0].depends_on[0]"]);
    for second in ["web", "db"] {
        let twice_or_itself = with(&[("db", &[]), ("web", &["db", second])]);
        assert_eq!(twice_or_itself, ["spec.containers[1].depends_on[1]"], "{second}");
    }
    let circle = with(&[("a", &["b"]), ("b", &["a"])]);
    assert_eq!(circle, ["spec.containers[0].depends_on[0]", "spec.containers[1].depends_on[0]"]);
    let many: Vec<String> = (0..100_000).map(|number| format!("c{number}")).collect();
    assert_eq!(paths(|it| it.spec.containers[0].depends_on = many).len(), 2, "told, and bounded");
    let image_init = paths(|it| {
        let init = Some("image".to_owned());
        let web = rest::ContainerSpec { depends_on: vec!["main".into()], init, ..container("web") };
        it.spec.containers.push(web);
    });
    assert_eq!(image_init, ["spec.containers[1].depends_on"]);
}
