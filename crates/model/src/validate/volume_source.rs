//! Where the files of a sandbox's volume are: exactly one of the ways that can be written.

use super::{MAX_BYTES, Refused, bytes_between, refuse};
use crate::ids::ObjectName;
use crate::spec::VolumeSource;
use crate::units::Bytes;

/// What was written of a volume, beside its name.
#[derive(Debug, Clone, Copy, Default)]
pub struct WrittenSource<'a> {
    /// `ephemeral_storage`: the size of a memory file system.
    pub ephemeral_storage: Option<&'a str>,
    /// `volume`: the name of a volume that outlives sandboxes.
    pub volume: Option<&'a str>,
}

/// Reads a volume's source. The field that is wrong comes with the reason; empty where it is none alone.
///
/// # Errors
/// The field, and [`Refused`].
pub fn volume_source(written: WrittenSource<'_>) -> Result<VolumeSource, (&'static str, Refused)> {
    match written {
        WrittenSource { ephemeral_storage: Some(size), volume: None } => {
            let size = bytes_between(size, Bytes(4096), MAX_BYTES);
            let size = size.map_err(|refused| ("ephemeral_storage", refused))?;
            Ok(VolumeSource::Memory { size })
        }
        WrittenSource { ephemeral_storage: None, volume: Some(name) } => name
            .parse::<ObjectName>()
            .map(VolumeSource::Named)
            .map_err(|error| ("volume", Refused(error.to_string()))),
        _ => refuse("needs exactly one of ephemeral_storage (memory, gone with the sandbox) and volume (the id of a volume)")
            .map_err(|refused| ("", refused)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_exactly_one_source() {
        let of =
            |ephemeral_storage, volume| volume_source(WrittenSource { ephemeral_storage, volume });
        assert_eq!(of(Some("1Mi"), None), Ok(VolumeSource::Memory { size: Bytes(1 << 20) }));
        assert_eq!(of(None, Some("a.b")), Ok(VolumeSource::Named("a.b".parse().unwrap())));
        for (ephemeral_storage, volume, field) in [
            (None, None, ""),
            (Some("1Mi"), Some("a"), ""),
            (Some("0"), None, "ephemeral_storage"),
            (Some("x"), None, "ephemeral_storage"),
            (None, Some(""), "volume"),
            (None, Some("../a"), "volume"),
        ] {
            let refused = of(ephemeral_storage, volume).unwrap_err();
            assert_eq!(refused.0, field, "{ephemeral_storage:?} {volume:?}");
        }
    }
}
