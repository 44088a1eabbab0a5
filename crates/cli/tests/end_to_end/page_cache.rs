//! A layer is one file on the host for all sandboxes that use it: none of them can change what the others read, neither through the
//! file system nor through the pages that the kernel keeps of it (what CVE-2022-0847, "Dirty Pipe", did).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Instance, finish, in_each_class, skipped};

const ORIGINAL: &str = "shared by all\n";

/// Overwrites what it can of the file that it is given, in every way that has worked on some kernel, and prints what the file holds then.
const ATTACKER: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>
int main(int count, char **arguments) {
    char page[4096], text[64];
    int file = open(arguments[1], O_RDONLY), ends[2];
    if (file < 0 || pipe(ends)) return 1;
    /* Every buffer of the pipe has held data that may be added to. SOURCE: the report of CVE-2022-0847. */
    int size = fcntl(ends[1], F_GETPIPE_SZ);
    for (int left = size; left > 0; left -= sizeof page) if (write(ends[1], page, sizeof page) < 0) return 2;
    for (int left = size; left > 0; left -= sizeof page) if (read(ends[0], page, sizeof page) < 0) return 3;
    loff_t begin = 0;
    if (splice(file, &begin, ends[1], NULL, 1, 0) != 1) return 4;
    if (write(ends[1], "EVIL", 4) != 4) return 5;
    /* Pages of a file that may only be read. */
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map != MAP_FAILED) { memcpy(map, "EVIL", 4); msync(map, 4096, MS_SYNC); }
    map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED && mprotect(map, 4096, PROT_READ | PROT_WRITE) == 0) memcpy(map, "EVIL", 4);
    int read_length = pread(file, text, sizeof text, 0);
    if (read_length < 0) return 6;
    fwrite(text, 1, read_length, stdout);
    return 0;
}
"#;

/// The attacker, static, so that it runs in an image of its own.
fn attacker(directory: &Path) -> Option<PathBuf> {
    let (source, program) = (directory.join("attacker.c"), directory.join("attacker"));
    std::fs::write(&source, ATTACKER).unwrap();
    let mut build = Command::new("gcc");
    build.args(["-static", "-O1", "-w", "-o"]).args([&program, &source]);
    Command::new("gcc").arg("--version").output().ok()?;
    finish(build, b"").succeeded();
    Some(program)
}

fn image(attacker: &Path) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    add("bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap());
    add("bin/attacker", 0o755, &std::fs::read(attacker).unwrap());
    add("victim", 0o644, ORIGINAL.as_bytes());
    archive.into_inner().unwrap()
}

/// The one copy of the file on the host.
fn on_the_host(instance: &Instance) -> PathBuf {
    let found = finish(
        {
            let mut command = Command::new("find");
            command.arg(instance.data_dir().join("images")).args(["-name", "victim", "-type", "f"]);
            command
        },
        b"",
    )
    .succeeded();
    assert_eq!(found.lines().count(), 1, "one for all: {found}");
    found.trim().into()
}

#[test]
fn no_sandbox_changes_what_others_read_of_a_shared_layer() {
    let directory = tempfile::tempdir().unwrap();
    let Some(attacker) = attacker(directory.path()) else {
        return skipped("shared_layer", "gcc is not installed");
    };
    in_each_class("shared_layer", |instance, class| {
        let image = image(&attacker);
        instance.atoll_with_input(["image", "import", "-", "shared:1"], &image).succeeded();
        let text = |name: &str| {
            format!(
                "kind: Sandbox\nid: {name}\nspec:\n  class: {class}\n  containers:\n    - {{name: main, image: 'shared:1', command: [/bin/busybox], args: [sleep, '1000']}}\n"
            )
        };
        for name in ["attacker", "neighbour"] {
            instance
                .atoll_with_input(["create", "--wait", "-f", "-"], text(name).as_bytes())
                .succeeded();
        }
        let read = |name: &str| {
            instance.atoll(["exec", name, "--", "/bin/busybox", "cat", "/victim"]).succeeded()
        };
        let host = on_the_host(instance);
        // It is in the page cache before, for everybody.
        assert_eq!(read("neighbour"), ORIGINAL);
        for user in ["0", "65534"] {
            let tried =
                instance.atoll(["exec", "-u", user, "attacker", "--", "/bin/attacker", "/victim"]);
            assert_eq!(tried.succeeded(), ORIGINAL, "as {user}");
            assert_eq!(read("neighbour"), ORIGINAL, "as {user}");
            assert_eq!(std::fs::read_to_string(&host).unwrap(), ORIGINAL, "as {user}");
        }
        // Written honestly, the file is the writer's own from then on.
        let write = "echo mine > /victim; /bin/busybox cat /victim";
        let wrote = instance.atoll(["exec", "attacker", "--", "/bin/busybox", "sh", "-c", write]);
        assert_eq!(wrote.succeeded(), "mine\n");
        assert_eq!(read("neighbour"), ORIGINAL);
        assert_eq!(std::fs::read_to_string(&host).unwrap(), ORIGINAL);
        let later = instance.atoll([
            "run",
            "--class",
            class,
            "shared:1",
            "--",
            "/bin/busybox",
            "cat",
            "/victim",
        ]);
        assert_eq!(later.succeeded(), ORIGINAL);
        for name in ["attacker", "neighbour"] {
            instance.atoll(["delete", &format!("sandbox/{name}")]).succeeded();
        }
    });
}
