//! Privileges beyond the default: had where the node allows them by name, refused elsewhere, and never more than was asked for.

use atoll_sys::capabilities::CapabilitySet;

use crate::support::{
    IMAGE, Instance, import, in_each_class, in_each_class_of, instance_with_image,
};

/// What a sandbox that wants this says of its own process.
fn create(instance: &Instance, name: &str, class: &str, wants: &str) -> crate::support::Finished {
    let script = "cat /proc/self/status; touch /written && echo root is writable; sleep 1000";
    let text = format!(
        "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sh, -c, \"{script}\"]\n{wants}"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes())
}

fn status(instance: &Instance, name: &str, field: &str) -> String {
    let shown = instance.atoll(["exec", name, "--", "cat", "/proc/self/status"]).succeeded();
    let line = shown.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("{field} is missing in {shown}"))
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

fn effective(instance: &Instance, name: &str) -> CapabilitySet {
    CapabilitySet::from_mask(
        u64::from_str_radix(&status(instance, name, "CapEff"), 16).expect("a mask"),
    )
}

#[test]
fn a_node_that_allows_nothing_names_the_field_and_its_setting() {
    in_each_class("privileges_refused", |instance, class| {
        for (wants, field, setting) in [
            ("      cap_add: [SYS_NICE]\n", "cap_add[0]", "--allow-capability SYS_NICE"),
            ("      cap_add: [ALL]\n", "cap_add[0]", "--allow-capability ALL"),
            ("      security_opt: ['seccomp=unconfined']\n", "security_opt[0]", "no node setting"),
            (
                "      security_opt: ['seccomp=localhost//etc/x']\n",
                "security_opt[0]",
                "no node setting",
            ),
            ("      security_opt: ['apparmor=unconfined']\n", "security_opt[0]", "no node setting"),
        ] {
            let refused = create(instance, "refused", class, wants);
            refused.ended_with(1);
            refused.complains(field).complains(setting);
        }
        let refused =
            create(instance, "refused", class, "      security_opt: ['no-new-privileges:false']\n");
        refused.ended_with(1);
        let why = if class == "container" { "--allow-new-privileges" } else { "class gvisor" };
        refused.complains("security_opt[0]").complains(why);
        instance.has_no_sandboxes();
    });
}

#[test]
fn what_the_node_allows_is_in_force_inside_and_nothing_besides() {
    let Some(archive) = crate::support::archive() else { return };
    let Some(refusing) = instance_with_image("privileges_allowed") else { return };
    refusing.end();
    let mut instance = Instance::not_started();
    instance.set_server_environment("ATOLL_ALLOW_CAPABILITY", "SYS_NICE,cap_sys_ptrace");
    instance.set_server_environment("ATOLL_ALLOW_NEW_PRIVILEGES", "true");
    instance.up();
    import(&instance, archive);
    in_each_class_of(&instance, "privileges_allowed", |instance, class| {
        let default = CapabilitySet::container_default();
        let nice = CapabilitySet::parse(["SYS_NICE"]).expect("a capability");
        let add = format!("add-{class}");
        create(instance, &add, class, "      cap_add: [SYS_NICE]\n").succeeded();
        assert_eq!(effective(instance, &add), default.with_all_of(nice), "{class}");
        let only = format!("only-{class}");
        create(instance, &only, class, "      cap_drop: [ALL]\n      cap_add: [SYS_NICE]\n")
            .succeeded();
        assert_eq!(effective(instance, &only), nice, "{class}");
        let none = format!("none-{class}");
        create(instance, &none, class, "      cap_drop: [ALL]\n").succeeded();
        assert_eq!(effective(instance, &none), CapabilitySet::EMPTY, "{class}");
        let read_only = format!("read-only-{class}");
        create(instance, &read_only, class, "      read_only: true\n").succeeded();
        let log = instance.atoll(["logs", &read_only]).succeeded();
        assert!(!log.contains("root is writable"), "{class}: {log}");
        if class == "container" {
            assert_eq!(status(instance, &add, "NoNewPrivs"), "1");
            let gains = "      security_opt: ['no-new-privileges:false']\n";
            create(instance, "gains", class, gains).succeeded();
            assert_eq!(status(instance, "gains", "NoNewPrivs"), "0");
            assert_eq!(status(instance, "gains", "Seccomp"), "2", "the filter stays");
            assert_eq!(effective(instance, "gains"), default);
        }
    });
    instance.atoll(["delete", "sandboxes", "--all"]).succeeded();
    instance.end();
}
