//! Images whose configuration and layers are made to do harm, through the whole path: import, plan, engine, guest.

use serde_json::{Value, json};

use crate::support::{Finished, Instance, archive, finish, in_each_class};

/// An archive as `docker save` makes it: these layers, the lowest first, and this configuration.
fn saved(config: &Value, layers: &[&[u8]]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).expect("an entry");
    };
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer);
    }
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let described = json!({
        "architecture": machine, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    add("config.json", described.to_string().as_bytes());
    let manifest = json!([{"Config": "config.json", "RepoTags": ["hostile:1"], "Layers": names}]);
    add("manifest.json", manifest.to_string().as_bytes());
    archive.into_inner().expect("the archive's end")
}

fn digest(bytes: &[u8]) -> String {
    let mut command = std::process::Command::new("sha256sum");
    command.arg("-");
    let sum = finish(command, bytes).text();
    format!("sha256:{}", sum.split(' ').next().unwrap_or_default())
}

/// A layer of directories (a name that ends with a slash) and files, with owner and mode.
fn layer(entries: &[(&str, u64, u32)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, owner, mode) in entries {
        let mut header = tar::Header::new_gnu();
        let is_directory = name.ends_with('/');
        header.set_entry_type(if is_directory {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mode(*mode);
        header.set_size(0);
        archive.append_data(&mut header, name, std::io::empty()).expect("an entry");
    }
    archive.into_inner().expect("the archive's end")
}

fn import(instance: &Instance, config: &Value, more: &[&[u8]]) -> Finished {
    let mut layers = vec![archive().unwrap_or_default()];
    layers.extend(more);
    instance.atoll_with_input(["image", "import", "-", "hostile:1"], &saved(config, &layers))
}

/// Runs a script in the image.
fn run(instance: &Instance, class: &str, script: &str) -> Finished {
    instance.atoll([
        "run",
        "--class",
        class,
        "--pull",
        "never",
        "hostile:1",
        "--",
        "sh",
        "-c",
        script,
    ])
}

#[test]
fn removed_files_stay_removed_and_the_root_is_as_the_last_layer_says() {
    in_each_class("layers_end_to_end", |instance, class| {
        let lower = layer(&[
            ("./", 0, 0o755),
            ("gone", 0, 0o644),
            ("kept", 0, 0o644),
            ("opaque/", 0, 0o755),
            ("opaque/hidden", 0, 0o644),
            ("whole/", 0, 0o755),
            ("whole/inner", 0, 0o644),
        ]);
        let upper = layer(&[
            ("./", 1000, 0o711),
            (".wh.gone", 0, 0o644),
            ("opaque/", 7, 0o750),
            ("opaque/.wh..wh..opq", 0, 0o644),
            ("opaque/shown", 8, 0o640),
            (".wh.whole", 0, 0o644),
        ]);
        let last = layer(&[("opaque/late", 9, 0o600)]);
        import(instance, &json!({}), &[&lower, &upper, &last]).succeeded();
        let script = "stat -c '%a %u %g' / /opaque /opaque/*; ls -d /gone /whole /kept 2>/dev/null; \
            touch /new /opaque/new && rm /kept /opaque/shown && ls /opaque";
        assert_eq!(
            run(instance, class, script).succeeded(),
            "711 1000 1000\n750 7 7\n600 9 9\n640 8 8\n/kept\nlate\nnew\n"
        );
    });
}

#[test]
fn hostile_configuration_is_refused_with_a_reason_or_does_nothing() {
    in_each_class("hostile_configuration", |instance, class| {
        // What the import refuses is refused; the rest is run.
        let outcome = |config: Value| {
            let imported = import(instance, &config, &[]);
            if imported.code == Some(0) { run(instance, class, "id -u; pwd") } else { imported }
        };
        let refused = |config: Value, why: &str| {
            let outcome = outcome(config);
            assert_ne!(outcome.code, Some(0), "{outcome:?}");
            assert_eq!(outcome.text(), "", "nothing ran");
            outcome.complains(why);
        };
        // CVE-2024-21626: a descriptor as working directory, directly and by ways around.
        refused(json!({"WorkingDir": "/proc/self/fd/8"}), "working directory");
        refused(json!({"WorkingDir": "/proc/self/fd/3/.."}), "WorkingDir");
        refused(json!({"WorkingDir": "/proc/1/cwd/../../fd/7"}), "WorkingDir");
        // Users that are no users, or would wrap around to root.
        for user in ["4294967296", "-1", "0x0", "nobody:4294967296", "99999999999:0"] {
            refused(json!({"User": user}), "image hostile:1");
        }
        for user in ["root\n0", "\u{0}"] {
            refused(json!({"User": user}), "config.User");
        }
        // Entries of "Env", or "environment": more than fits is told, and a zero byte is no end of a word.
        refused(json!({"Env": [format!("BIG={}", "x".repeat(400_000))]}), "nv");
        refused(json!({"Env": ["A=b\0c"]}), "nv");
        // Labels, volumes and signals of an image are told and never followed.
        let harmless = outcome(json!({
            "Labels": {"containerd.io/log": "binary:///bin/sh", "io.kubernetes.cri.container-type": "sandbox"},
            "Volumes": {"/proc": {}, "/": {}}, "StopSignal": "SIGNONSENSE-4294967305",
        }));
        assert!(
            harmless.code != Some(0) || harmless.text() == "0\n/\n",
            "refused, or nothing but what was asked for: {harmless:?}"
        );
        instance.has_no_sandboxes();
    });
}
