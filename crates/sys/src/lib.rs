//! The one crate where unsafe code lives: clone3, mounts, cgroups, seccomp, namespaces, loop devices.
