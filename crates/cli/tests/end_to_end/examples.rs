//! The repository's examples, as they are: real programs from Debian packages, seen from the world.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::world::{HOST, World, on_a_host};
use crate::support::{Instance, skipped};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The images' archives; made once, kept with what is built. `None`: this machine cannot make them.
fn images(test: &str, names: &[&str]) -> Option<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    if Command::new("mmdebstrap").arg("--version").output().is_err() {
        skipped(test, "needs mmdebstrap");
        return None;
    }
    let made = Command::new(repository().join("scripts/make-images.sh"))
        .arg(&directory)
        .args(names)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(names.iter().map(|name| directory.join(format!("{name}.tar"))).collect())
}

/// Creates an example in a class, and waits until it is ready; gives where the world finds it.
fn begin(instance: &Instance, class: &str, example: &str, name: &str) -> SocketAddr {
    let path = repository().join("examples").join(example);
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("\nspec:\n", &format!("\nspec:\n  class: {class}\n"));
    let created = instance.atoll_with_input(["create", "--wait", "-f", "-"], text.as_bytes());
    created.succeeded();
    let sandbox = instance.sandbox(name).unwrap();
    assert_eq!(sandbox["status"]["phase"], "Running", "{sandbox}");
    let port = sandbox["status"]["assigned_ports"][0]["host_port"].as_u64().unwrap();
    SocketAddr::new(HOST.parse().unwrap(), u16::try_from(port).unwrap())
}

/// What a web server answers to a request.
fn ask(world: &World, to: SocketAddr, request: &str) -> String {
    let mut stream = world.connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: atoll.example\r\n\r\n")
}

#[test]
fn a_web_server_answers_the_world() {
    let test = "a_web_server_answers_the_world";
    let Some(images) = images(test, &["nginx"]) else { return };
    on_a_host(test, move |instance, class, world| {
        instance.atoll(["image".as_ref(), "import".as_ref(), images[0].as_os_str()]).succeeded();
        let web = begin(instance, class, "nginx.yaml", "web");
        let answer = ask(world, web, &get("/"));
        assert!(answer.contains("200 OK") && answer.contains("it works"), "{answer}");
        assert_eq!(ask(world, web, &get("/1m")).matches('a').count() / 1_048_576, 1);
        instance.atoll(["delete", "sandbox/web"]).succeeded();
        let bench = ["bench", "provision", "--service", "nginx", "--count", "2", "--json", "-"];
        let report = instance.atoll(bench.iter().chain(&["--class", class])).json();
        let ours = &report["contenders"][0];
        assert_eq!(ours["failures"].as_array().map(Vec::len), Some(0), "{ours}");
        let stages = ours["stages"].as_array().unwrap();
        for row in report["published"][0]["stages"].as_array().unwrap() {
            let stage = stages.iter().find(|stage| stage["name"] == row["stage"]);
            assert_eq!(stage.map(|it| &it["summary"]["n"]), Some(&2.into()), "{row}");
        }
    });
}

#[test]
fn what_one_container_writes_another_serves() {
    on_a_host("what_one_container_writes_another_serves", |instance, class, world| {
        let shared = begin(instance, class, "shared-volume.yaml", "shared");
        let answer = ask(world, shared, &get("/"));
        assert!(answer.contains("200 OK") && answer.contains("UTC"), "{answer}");
        let write = ["exec", "shared", "-c", "server", "--", "touch", "/pages/mine"];
        assert_ne!(instance.atoll(write).code, Some(0), "read-only there");
        instance.atoll(["delete", "sandbox/shared"]).succeeded();
    });
}

#[test]
fn a_site_starts_after_its_database_and_keeps_what_it_is_told() {
    let test = "a_site_starts_after_its_database";
    let Some(images) = images(test, &["mysql", "wordpress"]) else { return };
    on_a_host(test, move |instance, class, world| {
        for image in &images {
            instance.atoll(["image".as_ref(), "import".as_ref(), image.as_os_str()]).succeeded();
        }
        let site = begin(instance, class, "wordpress.yaml", "wordpress");
        let form = "weblog_title=Atoll+of+Tests&user_name=admin&admin_password=a-Long-pass-phrase-1&\
                    admin_password2=a-Long-pass-phrase-1&pw_weak=1&admin_email=a%40example.com&blog_public=0";
        let install = format!(
            "POST /wp-admin/install.php?step=2 HTTP/1.0\r\nHost: {site}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{form}",
            form.len()
        );
        let installed = ask(world, site, &install);
        assert!(installed.contains("200 OK") && installed.contains("Success"), "{installed}");
        let login =
            ask(world, site, &format!("GET /wp-login.php HTTP/1.0\r\nHost: {site}\r\n\r\n"));
        assert!(login.contains("Atoll of Tests"), "{login}");
        let database = SocketAddr::new(site.ip(), 3306);
        assert!(world.connect(database).is_err(), "the database is nobody else's");
        instance.atoll(["delete", "sandbox/wordpress"]).succeeded();
    });
}
