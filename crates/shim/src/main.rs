//! Spawner and shim: starts sandboxes and stays their parent.

fn main() {}
