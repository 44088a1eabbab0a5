//! The real binary, real images, real isolation: what a user relies on, from the command line.

#[path = "../support/mod.rs"]
mod support;

mod alone;
mod files;
mod images;
mod lifecycle;
mod objects;
mod running;
mod running_ends;
mod terminal;
