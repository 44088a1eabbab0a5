//! An atoll of its own for each test, and what is left of it afterwards: nothing, whatever the test did.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(unreachable_pub, reason = "a module of test programs, not of a library")]

mod busybox;
mod instance;
mod leftovers;
mod program;
mod registry;
pub mod world;

#[allow(unused_imports, reason = "each test program uses its own part")]
pub use busybox::{IMAGE, archive};
#[allow(unused_imports, reason = "each test program uses its own part")]
pub use instance::{Instance, wait_until};
#[allow(unused_imports, reason = "each test program uses its own part")]
pub use leftovers::processes_of;
#[allow(unused_imports, reason = "each test program uses its own part")]
pub use program::{Finished, LIMIT, Running, atoll, finish};
#[allow(unused_imports, reason = "each test program uses its own part")]
pub use registry::{Behaviour, Registry, Served};

/// Classes that run real programs.
pub const REAL_CLASSES: [&str; 2] = ["container", "gvisor"];

/// Says that a test cannot run here.
pub fn skipped(test: &str, why: &str) {
    println!("SKIPPED: {test}: {why}");
}

/// Starts an instance with the busybox image, or says why not.
pub fn instance_with_image(test: &str) -> Option<Instance> {
    if !rustix::process::geteuid().is_root() {
        skipped(test, "needs root");
        return None;
    }
    let Some(archive) = archive() else {
        skipped(test, "busybox-static is not installed");
        return None;
    };
    let instance = Instance::start();
    import(&instance, archive);
    Some(instance)
}

/// Gives an instance the busybox image.
pub fn import(instance: &Instance, archive: &[u8]) {
    instance.atoll_with_input(["image", "import", "-", IMAGE], archive).succeeded();
}

/// Runs a test in each real class that the instance has; says which it has not.
pub fn in_each_class(test: &str, run: impl Fn(&Instance, &str)) {
    let Some(instance) = instance_with_image(test) else { return };
    in_each_class_of(&instance, test, run);
    instance.end();
}

/// Runs a test in each real class of an instance; says which it has not.
pub fn in_each_class_of(instance: &Instance, test: &str, run: impl Fn(&Instance, &str)) {
    let available = instance.available_classes();
    for class in REAL_CLASSES {
        if available.iter().any(|name| name == class) {
            println!("class {class}");
            run(instance, class);
        } else {
            skipped(&format!("{class}/{test}"), "the class is not available here");
        }
    }
}
