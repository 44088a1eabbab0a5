//! The fuzz bodies over a corpus: good inputs, and thousands of ways to break each of them. The same ways in every run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use atoll_image::{fuzz_manifest, fuzz_tar, fuzz_users};
use support::{Built, Tar, gzip};

/// Changes, cuts, doubles and moves bytes.
struct Mutator(u64);

impl Mutator {
    fn next(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap()
    }

    fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.next(4) {
            let at = self.next(bytes.len());
            match self.next(5) {
                0 if !bytes.is_empty() => bytes[at] = u8::try_from(self.next(256)).unwrap(),
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.next(8),
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + self.next(600)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = self.next(bytes.len() + 1);
                    bytes.splice(to..to, piece);
                }
                _ => {
                    let end = (at + self.next(600)).min(bytes.len());
                    bytes.drain(at..end);
                }
            }
        }
        bytes
    }
}

fn archives() -> Vec<Vec<u8>> {
    let many = Tar::new()
        .directory("./")
        .directory("etc/")
        .file("etc/passwd", b"root:x:0:0::/:\n")
        .symlink("bin", "usr/bin")
        .hard_link("etc/again", "etc/passwd")
        .file("bin/below", b"x")
        .file("etc/.wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .pax(&[
            ("path", b"long\nname"),
            ("SCHILY.xattr.user.a", b"b"),
            ("mtime", b"1.5"),
            ("uid", b"7"),
        ])
        .file("short", b"data")
        .file(&"deep/".repeat(30), b"")
        .entry(tar::EntryType::Fifo, b"fifo", b"", b"", |_| {})
        .entry(tar::EntryType::Char, b"device", b"", b"", |_| {})
        .finish();
    let sparse = Tar::new()
        .entry(tar::EntryType::GNUSparse, b"s", b"", b"data", |header| {
            let gnu = header.as_gnu_mut().unwrap();
            gnu.realsize = *b"00000001000\0";
            gnu.sparse[0].offset = *b"00000000100\0";
            gnu.sparse[0].numbytes = *b"00000000004\0";
        })
        .finish();
    let image =
        Built::new(&[Tar::new().file("a", b"a").finish()], serde_json::json!({"Cmd": ["a"]}))
            .layout("x:1");
    vec![
        gzip(&many),
        zstd::encode_all(many.as_slice(), 1).unwrap(),
        many,
        sparse,
        image,
        Vec::new(),
    ]
}

#[test]
fn archives_broken_in_every_way_are_errors() {
    let seeds = archives();
    let mut mutator = Mutator(0x5eed_0001);
    for seed in &seeds {
        fuzz_tar(seed);
    }
    for round in 0..300 {
        fuzz_tar(&mutator.mutate(&seeds[round % seeds.len()]));
    }
}

#[test]
fn documents_broken_in_every_way_are_errors() {
    let built = Built::new(
        &[Vec::new()],
        serde_json::json!({"Volumes": {"/a": {}}, "Env": ["A=1"], "WorkingDir": "/b/../c", "User": "1:2"}),
    );
    let index =
        serde_json::json!({"schemaVersion": 2, "manifests": [support::descriptor("x", b"y")]})
            .to_string();
    let seeds = [built.manifest, built.config, index.into_bytes(), b"{}".to_vec()];
    let mut mutator = Mutator(0x5eed_0002);
    for round in 0..20_000 {
        fuzz_manifest(&mutator.mutate(&seeds[round % seeds.len()]));
    }
}

#[test]
fn user_files_broken_in_every_way_are_errors() {
    let seed = b"web:log\0root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:\n\0log:x:4:web,adm\nweb:x:33:\n";
    let mut mutator = Mutator(0x5eed_0003);
    for _ in 0..20_000 {
        fuzz_users(&mutator.mutate(seed));
    }
}
