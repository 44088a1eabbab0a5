//! Network namespaces prepared before the measurement, and the mount namespace that older versions of runsc need on newer kernels.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use super::{complete, program};

/// A named network namespace with its loopback up; removed when dropped.
pub(super) struct NetworkNamespace {
    name: String,
}

impl NetworkNamespace {
    /// Makes one.
    pub(super) async fn create(name: &str) -> anyhow::Result<Self> {
        let ip = program("ip")?;
        complete(&ip, &["netns", "add", name]).await?;
        let namespace = Self { name: name.to_owned() };
        complete(&ip, &["-n", name, "link", "set", "lo", "up"]).await?;
        Ok(namespace)
    }

    /// Where it can be opened.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        if let Ok(ip) = program("ip") {
            let _ =
                Command::new(ip).args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
        }
    }
}

/// In its private mount namespace /proc/sys has no `net`: what older runsc takes for the sign of the root network namespace.
const HIDE_NET_SYSCTLS: &str = r#"
set -e
mount --make-rprivate /
d=$(mktemp -d)
mount -t tmpfs tmpfs "$d"
for name in vm kernel fs; do
    mkdir "$d/$name"
    mount --rbind "/proc/sys/$name" "$d/$name"
done
mount --rbind "$d" /proc/sys
umount -l "$d"
rmdir "$d"
echo ready
exec sleep infinity
"#;

/// A mount namespace without network sysctls, held by a process that ends when this is dropped.
pub(super) struct WithoutNetSysctls {
    holder: Child,
}

impl WithoutNetSysctls {
    /// Makes one.
    pub(super) fn create() -> anyhow::Result<Self> {
        let mut holder = Command::new(program("unshare")?)
            .args(["--mount", "sh", "-c", HIDE_NET_SYSCTLS])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare")?;
        let mut line = String::new();
        if let Some(stdout) = holder.stdout.take() {
            use std::io::BufRead as _;
            std::io::BufReader::new(stdout).read_line(&mut line)?;
        }
        let namespace = Self { holder };
        anyhow::ensure!(line.trim() == "ready", "cannot hide /proc/sys/net in a mount namespace");
        Ok(namespace)
    }

    /// Where it can be entered.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/mnt", self.holder.id()))
    }
}

impl Drop for WithoutNetSysctls {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
