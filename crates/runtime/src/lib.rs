//! The Runtime trait and its classes container, gvisor, sim; spawner and shim.
