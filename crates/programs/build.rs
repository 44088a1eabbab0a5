//! Builds guest and shim as static programs, in a target directory of their own, so that `cargo build` makes one binary that
//! carries all it needs. Cargo's own way (artifact dependencies) is not stable.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 2] = ["atoll-guest", "atoll-shim"];
/// What the programs are made of.
const SOURCES: [&str; 5] = ["guest", "shim", "wire", "sys", "model"];

fn main() {
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let crates = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("..");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", crates.join(source).display());
    }
    println!("cargo::rerun-if-changed={}", crates.join("../Cargo.toml").display());
    let target = var("TARGET");
    // What is shipped is small; what is tested is built in a fraction of the time.
    let profile = if var("PROFILE") == "release" { "program" } else { "program-quick" };
    let target_dir = Path::new(&var("OUT_DIR")).join("target");
    let mut build = Command::new(var("CARGO"));
    build
        .current_dir(&crates)
        .args(["build", "--locked", "--profile", profile, "--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        // A static program starts faster and needs nothing of the image it is mounted into.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static")
        // What a caller's `cargo clippy` sets would check instead of build.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CLIPPY_ARGS");
    for program in PROGRAMS {
        build.args(["--package", program]);
    }
    let status = build.status().expect("cargo can be started again");
    assert!(status.success(), "building {PROGRAMS:?} failed: see above");
    for program in PROGRAMS {
        let name = program.trim_start_matches("atoll-").to_uppercase();
        let path = target_dir.join(&target).join(profile).join(program);
        println!("cargo::rustc-env=ATOLL_{name}_PROGRAM={}", path.display());
    }
}
