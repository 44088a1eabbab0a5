//! The one crate where unsafe code lives: clone3, mounts, cgroups, seccomp, namespaces, loop devices.
#![allow(
    unsafe_code,
    reason = "the crate exists to hold the workspace's unsafe code; each block says why it is sound"
)]

pub mod capabilities;
pub mod cgroup;
pub mod clone;
pub mod disk_image;
pub mod forking;
pub mod id_map;
pub mod loop_device;
pub mod mount;
pub mod network_namespace;
pub mod packet;
pub mod placed_child;
pub mod poll_set;
pub mod process;
pub mod program_start;
pub mod seccomp;
pub mod signals;
pub mod spawn;
pub mod user_namespace;
