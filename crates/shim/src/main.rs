//! The program `atoll-shim`.

fn main() {}
