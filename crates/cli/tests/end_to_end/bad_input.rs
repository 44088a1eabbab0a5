//! What a user sends wrongly or on purpose, through the real binary: a precise word, the right exit code, nothing half-made.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::support::{IMAGE, Instance, archive, instance_with_image};

/// Nothing was made: no sandbox, and no directory of one.
fn assert_untouched(instance: &Instance) {
    instance.has_no_sandboxes();
    assert_eq!(instance.leftovers().directories, Vec::<std::path::PathBuf>::new());
}

#[test]
fn manifests_that_are_wrong_are_refused_with_their_place() {
    let Some(instance) = instance_with_image("bad_input") else { return };
    let directory = tempfile::tempdir().unwrap();
    let manifest = |id: &str, more: &str| {
        format!(
            "kind: Sandbox\nid: {id}\nspec:\n  containers:\n    - name: main\n      image: {IMAGE}\n      args: [sleep, '1000']\n{more}"
        )
    };
    let many: String =
        (0..10_000).map(|n| format!("    - {{name: c{n}, image: {IMAGE}}}\n")).collect();
    let resource = |text: &str| manifest("a", &format!("      resource: {{memory: {text}}}\n"));
    let nested = format!("kind: Sandbox\nid: {}a{}\n", "[".repeat(200), "]".repeat(200));
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let previous = vec![format!("*a{}", level - 1); 10].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
    }
    let memory = "spec.containers[0].resource.memory";
    for (what, text, expected) in [
        ("not YAML", "kind: [".to_owned(), "document 1"),
        ("no manifest", "just words".to_owned(), "is no manifest"),
        ("nothing", "# nothing\n".to_owned(), "is empty"),
        ("an unknown field", manifest("a", "      comand: [x]\n"), "spec.containers[0].comand"),
        ("its nearest name", manifest("a", "      comand: [x]\n"), "did you mean \"command\"?"),
        ("a key twice", manifest("a", "      image: other\n"), "\"image\" is there twice"),
        ("-1", resource("'-1'"), memory),
        ("1e400", resource("1e400"), memory),
        ("0", resource("0"), memory),
        ("NaN", resource("NaN"), memory),
        ("a number that is none", resource(".nan"), "not finite"),
        (
            "10,000 containers",
            format!("{}{many}", manifest("a", "")),
            "are 10001, at most 32 are allowed",
        ),
        ("dots", manifest("../../etc", ""), "id"),
        ("300 characters", manifest(&"x".repeat(300), ""), "id"),
        ("NUL", manifest("\"a\\0b\"", ""), "id"),
        (
            "an image that is none",
            manifest("a", "").replace(IMAGE, "'Not An Image'"),
            "spec.containers[0].image",
        ),
        ("another kind", manifest("a", "").replace("Sandbox", "Pod"), "Pod"),
        ("deep nesting", nested, "nested deeper"),
        ("a bomb of aliases", bomb, "document 1"),
        (
            "ports",
            format!("{}  ports: [{{container_port: 80}}]\n", manifest("a", "")),
            "cannot be enforced",
        ),
        ("egress", format!("{}  egress: true\n", manifest("a", "")), "cannot be enforced"),
    ] {
        let refused = instance.atoll_with_input(["create", "-f", "-"], text.as_bytes());
        assert_eq!(refused.code, Some(1), "{what}: {refused:?}");
        refused.complains(expected);
        assert!(refused.stderr.len() < 2000, "{what}: for people: {}", refused.stderr);
        assert!(!refused.stderr.contains(['\0', '\x1b']), "{what}");
    }
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let large = file("large.yaml", &vec![b'#'; 9 << 20]);
    let binary = file("binary.yaml", b"kind: \xff\xfe");
    let here = directory.path().display().to_string();
    for (path, expected) in [
        (large.as_str(), "larger than 8 MiB"),
        ("/dev/zero", "larger than 8 MiB"),
        (&binary, "binary.yaml"),
        (&here, "directory"),
        ("/nonexistent/x.yaml", "/nonexistent/x.yaml"),
    ] {
        let refused = instance.atoll(["create", "-f", path]);
        assert_eq!(refused.code, Some(1), "{path}: {refused:?}");
        refused.complains(expected);
    }
    // Of several documents none is created when one cannot be read.
    let half = format!("{}---\nkind: [", manifest("half", ""));
    instance.atoll_with_input(["create", "-f", "-"], half.as_bytes()).ended_with(1);
    assert_untouched(&instance);
    instance.end();
}

#[test]
fn names_that_are_paths_or_commands_to_a_terminal_find_nothing() {
    let Some(instance) = instance_with_image("bad_names") else { return };
    let long = "x".repeat(300);
    for name in [
        "../..",
        "../../../etc/passwd",
        "a/b",
        "%2e%2e",
        "%00",
        "\u{1b}[31mred",
        "a\nb",
        "\u{1f3dd}",
        &long,
        " ",
    ] {
        let object = format!("sandbox/{name}");
        for arguments in [
            &["get", &object][..],
            &["describe", &object],
            &["delete", &object],
            &["logs", name],
            &["attach", name],
            &["wait", &object, "--for", "ready", "--timeout", "5s"],
        ] {
            let refused = instance.atoll(arguments);
            assert_eq!(refused.code, Some(1), "{arguments:?}: {refused:?}");
            refused.complains("there is no sandbox");
            assert!(!refused.stderr.contains('\u{1b}'), "{arguments:?}: {refused:?}");
        }
        instance.atoll(["exec", name, "--", "true"]).ended_with(125);
        let run = instance.atoll(["run", "--name", name, IMAGE, "--", "true"]);
        assert_eq!(run.code, Some(125), "{name:?}: {run:?}");
        run.complains("id");
    }
    for image in
        ["Not An Image", "../../etc", "a:b:c", "@sha256:0", "http://x/y", "\u{1b}[31m", &long]
    {
        let pull = instance.atoll(["image", "pull", image]);
        assert_eq!(pull.code, Some(1), "{image:?}: {pull:?}");
        assert!(!pull.stderr.contains('\u{1b}'), "{pull:?}");
        instance.atoll(["run", image, "--", "true"]).ended_with(125);
    }
    assert_untouched(&instance);
    instance.end();
}

/// Names in a directory and all below it.
fn tree(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && found.len() < 2000 {
            found.extend(tree(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn archives_that_lie_are_refused_and_the_store_is_as_it_was() {
    let Some(instance) = instance_with_image("lying_archives") else { return };
    let store = instance.data_dir().join("images");
    let (images, before) =
        (instance.atoll(["image", "ls", "-o", "json"]).succeeded(), tree(&store));
    let good = archive().unwrap_or_default();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        bytes
    };
    // A header's size field and its checksum. SOURCE: tar(5).
    let with_size = |size: &'static [u8; 12]| {
        changed(&move |bytes: &mut Vec<u8>| {
            let at = 512
                * bytes.chunks(512).position(|block| block.starts_with(b"bin/busybox\0")).unwrap();
            bytes[at + 124..at + 136].copy_from_slice(size);
            bytes[at + 148..at + 156].fill(b' ');
            let sum: u32 = bytes[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
            bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        })
    };
    for (what, bytes, expected) in [
        ("a size beyond the end", with_size(b"00777777777\0"), "damaged"),
        ("a size beyond all bounds", with_size(b"77777777777\0"), "damaged"),
        ("a size that is too small", with_size(b"00000000001\0"), "no tar archive"),
        ("a size that is no number", with_size(b"zzzzzzzzzzz\0"), "damaged"),
        ("a wrong checksum", changed(&|bytes| bytes[0] ^= 1), "checksum"),
        ("cut in a header", changed(&|bytes| bytes.truncate(700)), "damaged"),
        ("cut in a file", changed(&|bytes| bytes.truncate(bytes.len() / 2)), "damaged"),
        (
            "without its end",
            changed(&|bytes| bytes.truncate(bytes.len() / 1024 * 1024 - 10 * 1024)),
            "damaged",
        ),
        ("nothing", Vec::new(), "damaged"),
        ("an image without its parts", image_without_parts(), "layer"),
    ] {
        let refused = instance.atoll_with_input(["image", "import", "-", "bad:1"], &bytes);
        println!("{what}: {}", refused.stderr.trim());
        assert_eq!(refused.code, Some(1), "{what}: {refused:?}");
        assert!(refused.stderr.contains(expected), "{what}: {refused:?}");
        assert_eq!(instance.atoll(["image", "ls", "-o", "json"]).succeeded(), images, "{what}");
        assert_eq!(tree(&store), before, "{what}");
    }
    assert_eq!(instance.atoll(["run", IMAGE, "--", "echo", "fine"]).succeeded(), "fine\n");
    instance.end();
}

fn image_without_parts() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in [
        (
            "manifest.json",
            r#"[{"Config":"config.json","RepoTags":["bad:1"],"Layers":["layer.tar"]}]"#,
        ),
        (
            "config.json",
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
        ),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// The most memory that the server has had, in KiB.
fn most_kib(instance: &Instance) -> u64 {
    let pid = instance.server_pid().expect("it runs").as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn connect(instance: &Instance) -> TcpStream {
    let record = std::fs::read(instance.data_dir().join("server.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let address = record["address"].as_str().unwrap().strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn head(instance: &Instance, line: &str, headers: &str) -> String {
    let token = std::fs::read_to_string(instance.data_dir().join("token")).unwrap();
    format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{headers}\r\n", token.trim())
}

/// Sends chunks of a megabyte until a gigabyte is sent or the server takes no more; says how many it took.
fn send_gigabyte(instance: &Instance, head: &str) -> u32 {
    let mut stream = connect(instance);
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    (0..1024).take_while(|_| stream.write_all(&chunk).is_ok()).count().try_into().unwrap()
}

#[test]
fn a_gigabyte_in_every_way_costs_the_server_no_memory() {
    let instance = Instance::start();
    let before = most_kib(&instance);
    let chunked = "transfer-encoding: chunked\r\n";
    let announced = "content-length: 1073741824\r\n";
    std::thread::scope(|scope| {
        for _ in 0..16 {
            for line in [
                "POST /api/v1/sandboxes",
                "POST /api/v1/images/pull",
                "PUT /api/v1/sandboxes/none/files?path=/",
                "PUT /api/v1/registries/x/credentials",
            ] {
                let instance = &instance;
                scope.spawn(move || {
                    let taken = send_gigabyte(instance, &head(instance, line, chunked));
                    assert!(taken < 64, "{line}: {taken} MiB were taken");
                });
            }
        }
        // Without a token nothing is read; an announced one is refused by its size.
        let instance = &instance;
        scope.spawn(move || {
            let anonymous = format!("POST /api/v1/sandboxes HTTP/1.1\r\nhost: x\r\n{chunked}\r\n");
            assert!(send_gigabyte(instance, &anonymous) < 64);
            let mut stream = connect(instance);
            stream
                .write_all(head(instance, "POST /api/v1/sandboxes", announced).as_bytes())
                .unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 413");
        });
    });
    let after = most_kib(&instance);
    println!("at most {before} KiB before, {after} KiB after");
    // Eight documents of four megabytes at a time, and buffers.
    assert!(after - before < 128 << 10, "{before} KiB, then {after} KiB");
    instance.has_no_sandboxes();
    instance.end();
}

#[test]
fn who_never_reads_its_output_costs_the_server_no_memory() {
    let Some(instance) = instance_with_image("never_reads") else { return };
    let text = format!(
        "kind: Sandbox\nid: loud\nspec:\n  containers:\n    - {{name: main, image: {IMAGE}, args: [sleep, '1000']}}\n"
    );
    instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes()).succeeded();
    let before = most_kib(&instance);
    let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let request = br#"{"command":["cat","/dev/zero"]}"#;
    let mut silent: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = connect(&instance);
            stream
                .write_all(head(&instance, "GET /api/v1/sandboxes/loud/exec", upgrade).as_bytes())
                .unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 101");
            // A text frame with a mask of zeros. SOURCE: RFC 6455, 5.2.
            let frame =
                [&[0x81, 0x80 | u8::try_from(request.len()).unwrap(), 0, 0, 0, 0], &request[..]]
                    .concat();
            stream.write_all(&frame).unwrap();
            stream
        })
        .collect();
    // Each has begun: its first bytes are there.
    for stream in &mut silent {
        stream.read_exact(&mut [0; 4096]).unwrap();
    }
    // Others go on meanwhile, for as long as it takes to move a good part of a gigabyte.
    for _ in 0..3 {
        let more = instance.atoll(["exec", "loud", "--", "sh", "-c", "head -c 30000000 /dev/zero"]);
        more.succeeded();
        assert_eq!(more.stdout.len(), 30_000_000);
    }
    let after = most_kib(&instance);
    println!("at most {before} KiB before, {after} KiB after");
    assert!(after - before < 96 << 10, "{before} KiB, then {after} KiB");
    drop(silent);
    instance.atoll(["delete", "sandbox/loud"]).succeeded();
    instance.end();
}
