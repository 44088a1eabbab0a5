//! What every class must do, in the same words for all of them. A class that does not run a case says why in `skips.rs`.
//! What holds for disks is asked of every backend, on a file system that can have it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests, and what is skipped is shown"
)]

mod bench;
mod disk_place;
mod disks;
mod exec;
mod leaks;
mod lifecycle;
mod limits;
mod order;
mod recovery;
mod root_file_system;
mod running;
mod skips;
mod watchdog;

macro_rules! suite {
    ($($module:ident: $($case:ident),+;)+) => {
        suite!(@class sim, Sim, $($($module $case)+)+);
        suite!(@class container, Container, $($($module $case)+)+);
        suite!(@class gvisor, Gvisor, $($($module $case)+)+);
    };
    (@class $class:ident, $variant:ident, $($module:ident $case:ident)+) => {
        mod $class {
            $(
                #[test]
                fn $case() {
                    let class = atoll_runtime::RuntimeClass::$variant;
                    crate::bench::run(class, stringify!($case), crate::$module::$case);
                }
            )+
        }
    };
}

suite! {
    lifecycle: lifecycle, exit_codes, command_not_found, stop_with_grace, containers_end_apart, containers_share;
    exec: exec_output_and_codes, exec_input, exec_terminal, exec_not_found, attach_lossless, attach_input, slow_reader, transfers;
    root_file_system: read_only_root, users, tmpfs, shared_volume, read_only_volume_as_it_was;
    limits: memory_limit, cpu_limit, pids_limit, disk_limit, disk_usage, inode_limit, sparse_file, zombies, shm_limit, log_limit;
    recovery: server_restarted, ended_while_away, shim_killed, guest_silent, ended_without_shim, guest_killed, sentry_killed, all_killed, damaged_directory,
        host_started_anew, launch_given_up, destroyed_at_any_time, spawner_killed;
    order: held_container, held_container_stopped;
    leaks: quick_exits;
}

macro_rules! disk_suite {
    ($($class:ident: $($place:ident),+;)+) => {
        $(disk_suite!(@class $class [$($place)+] [full apart files many_and_deep another_choice killed volume]);)+
    };
    (@class $class:ident [$($place:ident)+] $cases:tt) => {
        $(disk_suite!(@place $class $place $cases);)+
    };
    (@place $class:ident $place:ident [$($case:ident)+]) => {
        mod $place {
            $(
                #[test]
                fn $case() {
                    let test = concat!(module_path!(), "::", stringify!($case));
                    let (class, place) = (stringify!($class), stringify!($place));
                    crate::disk_place::run(test, class, place, crate::disks::$case);
                }
            )+
        }
    };
}

mod disks_of_container {
    disk_suite! { container: image_on_btrfs, btrfs, ext4_projects, xfs_projects; }
}

mod disks_of_gvisor {
    disk_suite! { gvisor: btrfs, ext4_projects, xfs_projects; }
}
