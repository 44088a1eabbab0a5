//! What a sandbox calls itself and whom it asks for other names: /etc/hostname, /etc/hosts and /etc/resolv.conf.

use std::fmt::Write as _;

use atoll_wire::shim::NetworkPlacement;

use crate::engine::EngineError;
use crate::image_root::ImageRoot;

/// Writes the files onto the container's disk, over what the image has.
///
/// # Errors
/// [`EngineError`] with the path.
pub(crate) fn write(
    root: &ImageRoot,
    hostname: &str,
    place: Option<&NetworkPlacement>,
) -> Result<(), EngineError> {
    root.write_file("/etc", "hostname", &format!("{hostname}\n"))?;
    root.write_file("/etc", "hosts", &hosts(hostname, place))?;
    root.write_file("/etc", "resolv.conf", &resolver(place))
}

fn hosts(hostname: &str, place: Option<&NetworkPlacement>) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    // Writing to a string cannot fail.
    let _ = match place {
        Some(place) => write!(text, "{}\t{hostname}\n{}\t{hostname}\n", place.ipv4, place.ipv6),
        None => writeln!(text, "127.0.1.1\t{hostname}"),
    };
    text
}

/// Without a network nobody can be asked: an empty file makes resolvers ask this very sandbox, which refuses at once.
fn resolver(place: Option<&NetworkPlacement>) -> String {
    place.map_or_else(String::new, |place| {
        format!("nameserver {}\nnameserver {}\n", place.gateway_ipv4, place.gateway_ipv6)
    })
}
