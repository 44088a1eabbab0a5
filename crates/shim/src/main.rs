//! Spawner and shim: starts sandboxes and stays their parent.

mod engine;

fn main() {}
