//! Starts sandboxes and stays their parent.
fn main() {}
