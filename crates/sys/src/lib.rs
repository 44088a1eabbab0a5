//! The one crate where unsafe code lives: clone3, mounts, cgroups, seccomp, namespaces, loop devices.
//!
//! Owns what the kernel is asked, and knows nothing of images, plans or protocols. Several modules start processes; which one is right
//! depends on who starts what:
//!
//! | module | starts | for |
//! |---|---|---|
//! | [`helper_program`] | a program with one descriptor, by posix_spawn | the server, which has threads: its spawners |
//! | [`forking`] | a copy of a process with one thread | the spawner: its shims |
//! | [`clone`] | a copy in new namespaces and a control group, known by a pidfd | the shim, engine `container`: first processes |
//! | [`placed_child`] | a `Command` in a sandbox's group and network namespace | the shim, engine `gvisor`: runsc |
//! | [`workload`] | a program as a lesser user, confined before its first instruction | the guest: commands, file transfers |
//!
//! About processes that exist: [`process`] (by identity and pidfd: everybody), [`signals`] (by number: a parent, a first process),
//! [`poll_set`] (waiting for descriptors and children at once: the guest). Between processes: [`packet`], and [`clock`], since they compare times.
//!
//! What a sandbox consists of: [`cgroup`], [`capabilities`], [`seccomp`], [`mount`], a disk ([`disk_image`] on a [`loop_device`],
//! [`project_quota`] or [`btrfs`]),
//! [`network_namespace`], [`shared_namespaces`] (users, IPC, hostname), [`id_map`] (which ids it has). Of the host: [`interface_binding`]
//! (ports that are held and not served).
#![allow(
    unsafe_code,
    reason = "the crate exists to hold the workspace's unsafe code; each block says why it is sound"
)]

mod bare;
pub mod btrfs;
pub mod capabilities;
pub mod cgroup;
pub mod clock;
pub mod clone;
pub mod disk_image;
mod errno;
pub mod forking;
pub mod helper_program;
pub mod id_map;
pub mod interface_binding;
pub mod loop_device;
pub mod mount;
pub mod network_namespace;
pub mod packet;
pub mod placed_child;
pub mod poll_set;
pub mod process;
pub mod project_quota;
pub mod seccomp;
pub mod shared_namespaces;
pub mod signals;
pub mod workload;
