//! The program `atoll-shim`.

use std::process::ExitCode;

use atoll_shim::engine::{Engine, EngineError, Resources};
use atoll_shim::{container, gvisor, spawner};
use atoll_wire::shim::{self, Launch};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let answer = match (arguments.next().as_deref(), arguments.next()) {
        (Some("spawner"), None) => spawner::run(engine).map_err(|error| error.to_string()),
        _ => Err("atoll starts this program itself: atoll-shim spawner".into()),
    };
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "atoll-shim: {why}");
            ExitCode::from(2)
        }
    }
}

fn engine(launch: &Launch, resources: Resources) -> Result<Box<dyn Engine>, EngineError> {
    match launch.placement.engine {
        shim::Engine::Container => container::engine(launch, resources),
        shim::Engine::Gvisor => gvisor::engine(launch, resources),
    }
}
