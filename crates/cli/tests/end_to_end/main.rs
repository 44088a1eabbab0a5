//! The real binary, real images, real isolation: what a user relies on, from the command line.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "test programs fail by panics and tell what they skip"
)]

#[path = "../support/mod.rs"]
mod support;

mod abandoned;
mod alone;
mod bad_input;
mod bench;
mod boosts;
mod clients;
mod command_line;
mod data_directory;
mod examples;
mod files;
mod host_processes;
mod hostile_images;
mod images;
mod lifecycle;
mod lives;
mod network;
mod no_id_mapping;
mod objects;
mod page_cache;
mod ports;
mod private_authority;
mod privileges;
mod probes;
mod progress;
mod read_only;
mod reports;
mod running;
mod running_ends;
mod sbxctl;
mod terminal;
mod volumes;
