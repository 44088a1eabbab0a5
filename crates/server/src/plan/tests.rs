use super::*;
use crate::admission::read_admitted;
use atoll_wire::guest::UserIds;
use atoll_wire::rest;

fn image(config: ImageConfig) -> PlannedImage {
    let image =
        ResolvedImage { digest: "sha256:0".into(), layers: vec!["/layers/a".into()], config };
    PlannedImage { image, user: ResolvedUser::default() }
}

fn config() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["A=image".into(), "B=image".into(), "junk".into(), "=x".into()],
        working_dir: "/srv".into(),
        user: String::new(),
        stop_signal: "SIGQUIT".into(),
    }
}

fn planned(
    change: impl FnOnce(&mut rest::SandboxSpec),
    image: PlannedImage,
) -> Result<SandboxPlan, PlanError> {
    let container =
        rest::ContainerSpec { name: "main".into(), image: "busybox".into(), ..Default::default() };
    let mut spec = rest::SandboxSpec { containers: vec![container], ..Default::default() };
    change(&mut spec);
    plan(
        SandboxUid::from_random(7),
        &"my_box.1".parse().unwrap(),
        &read_admitted(&spec).unwrap(),
        &[image],
        &NamedVolumes::new(),
    )
}

#[test]
fn an_image_says_what_its_user_does_not() {
    let plan = planned(|_| {}, image(config())).unwrap();
    let main = &plan.containers[0];
    assert_eq!(plan.hostname, "my-box-1");
    assert_eq!(main.process.args, ["/entry", "serve"]);
    assert_eq!(main.process.working_directory, "/srv");
    assert_eq!(main.stop_signal, 3);
    assert_eq!(
        main.process.env,
        [&format!("PATH={DEFAULT_PATH}"), "HOSTNAME=my-box-1", "HOME=/root", "A=image", "B=image"]
    );
    assert!(main.process.no_new_privileges);
    assert_eq!(main.process.capabilities, CapabilitySet::container_default().mask());
}

#[test]
fn a_user_overrides_an_image() {
    let mut image = image(config());
    image.user = ResolvedUser {
        ids: UserIds { uid: 33, gid: 33, supplementary_gids: vec![4] },
        home: Some("/var/www".into()),
    };
    let plan = planned(
        |spec| {
            spec.hostname = Some("web".into());
            let main = &mut spec.containers[0];
            main.args = vec!["true".into()];
            main.env = vec!["A=user".into(), "PATH=/bin".into(), "A=again".into()];
            main.work_dir = Some("/tmp".into());
            main.stop_signal = Some("INT".into());
            main.tty = true;
            main.cap_drop = vec!["ALL".into()];
        },
        image,
    )
    .unwrap();
    let process = &plan.containers[0].process;
    assert_eq!(process.args, ["true"]);
    assert_eq!(
        process.env,
        ["PATH=/bin", "HOSTNAME=web", "HOME=/var/www", "TERM=xterm", "A=again", "B=image"]
    );
    assert_eq!((process.working_directory.as_str(), plan.containers[0].stop_signal), ("/tmp", 2));
    assert_eq!((process.user.uid, process.capabilities, process.terminal.is_some()), (33, 0, true));
}

#[test]
fn limits_are_shared_out_and_bounded() {
    let plan = planned(
        |spec| {
            spec.containers[0].resource.memory = Some("32Mi".into());
            spec.containers[0].tmpfs =
                vec![rest::TmpfsSpec { mount_path: "/scratch".into(), options: None }];
        },
        image(config()),
    )
    .unwrap();
    let main = &plan.containers[0];
    assert_eq!(plan.shm_bytes, 32 << 20, "no more than the memory limit");
    assert_eq!(main.tmpfs[0].size_bytes, 32 << 20);
    assert_eq!(
        (main.disk_bytes, main.log_bytes),
        (112 << 20, 16 << 20),
        "together the default of 128Mi"
    );
    assert_eq!(plan.boost_millis, 2000);
    let plan = planned(|spec| spec.boost_seconds = Some(0), image(config())).unwrap();
    assert_eq!((plan.boost_millis, plan.shm_bytes), (0, 64 << 20));
}

#[test]
fn an_image_without_a_command_needs_one() {
    let nothing = ImageConfig { entrypoint: Vec::new(), cmd: Vec::new(), ..config() };
    let error = planned(|_| {}, image(nothing.clone())).unwrap_err();
    assert_eq!(error, PlanError::NoCommand { container: "main".into() });
    assert!(planned(|spec| spec.containers[0].args = vec!["x".into()], image(nothing)).is_ok());
}

#[test]
fn what_no_message_has_room_for_is_refused_by_name_and_size() {
    let entry = |letters: usize| format!("BIG={}", "x".repeat(letters));
    let of_image = |bytes| image(ImageConfig { env: vec![entry(bytes)], ..config() });
    assert!(planned(|_| {}, of_image(200_000)).is_ok());
    let error = planned(|_| {}, of_image(300_000)).unwrap_err().to_string();
    assert!(error.starts_with("container main: ") && error.contains("too large: 300"), "{error}");
    // Together: neither alone is too much. Control characters are sent as six bytes each.
    let both = |spec: &mut rest::SandboxSpec| {
        spec.containers[0].env = vec![format!("MORE={}", "\u{1}".repeat(20_000))];
    };
    assert!(planned(both, of_image(100_000)).is_ok());
    assert!(matches!(planned(both, of_image(150_000)), Err(PlanError::TooLarge { .. })));
}

proptest::proptest! {
    #[test]
    fn hostnames_are_hostnames_whatever_the_name(name in "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}") {
        if let Ok(name) = name.parse() {
            let host = hostname_of(&name);
            assert!(atoll_model::validate::hostname(&host).is_ok(), "{host}");
        }
    }

    #[test]
    fn shares_of_a_disk_sum_to_it(disk in 4_u64 << 20..1 << 45) {
        let (files, logs) = disk_shares(Bytes(disk));
        assert!(files + logs == disk && logs <= 16 << 20 && logs > 0);
    }
}
