//! The records of a pax extended header, read by their length prefixes: a value may hold newlines.

use super::{UnpackError, damaged};

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// Most extended attributes of one entry (guess: real files have one or two).
const MAX_XATTRS: usize = 64;

/// What a pax header says instead of the entry's own header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Parses a header's block of `LENGTH KEY=VALUE\n` records.
pub(super) fn parse(mut block: &[u8]) -> Result<Overrides, UnpackError> {
    let mut overrides = Overrides::default();
    while !block.is_empty() {
        let (record, rest) =
            split_record(block).ok_or_else(|| damaged("a pax record's length is wrong"))?;
        block = rest;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(|| damaged("a pax record without '='"))?;
        take(&mut overrides, &record[..equals], &record[equals + 1..])?;
    }
    Ok(overrides)
}

/// Cuts the first record, without its length and newline.
fn split_record(block: &[u8]) -> Option<(&[u8], &[u8])> {
    // A length has at most 7 digits: the block has at most 1 MiB.
    let space = block.iter().take(8).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&block[..space])?).ok()?;
    if length < space + 2 || length > block.len() || block[length - 1] != b'\n' {
        return None;
    }
    Some((&block[space + 1..length - 1], &block[length..]))
}

fn take(overrides: &mut Overrides, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
    let number = || decimal(value).ok_or_else(|| damaged("a pax number is none"));
    match key {
        b"path" => overrides.path = Some(value.to_vec()),
        b"linkpath" => overrides.link = Some(value.to_vec()),
        b"size" => overrides.size = Some(number()?),
        b"uid" => overrides.uid = Some(number()?),
        b"gid" => overrides.gid = Some(number()?),
        b"mtime" => overrides.mtime = time(value),
        _ if key.starts_with(b"GNU.sparse.") => {
            return Err(damaged(
                "a sparse file in pax form, which is not supported: write the archive without --sparse",
            ));
        }
        _ => {
            if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                if overrides.xattrs.len() == MAX_XATTRS {
                    return Err(UnpackError::TooLarge {
                        what: "extended attributes of an entry".to_owned(),
                        limit: MAX_XATTRS as u64,
                    });
                }
                overrides.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `1700000000.123456789`; what is none is ignored: nothing depends on it.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = seconds.parse::<i64>().ok()?;
    let digits: String = fraction.chars().take(9).collect();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((seconds, format!("{digits:0<9}").parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_cut_by_their_length() {
        let overrides = parse(b"18 path=a\n9 size=7\n11 mtime=1.5\n").unwrap_err();
        assert!(overrides.to_string().contains("pax"), "18 is longer than the record");
        let overrides = parse(b"20 path=a\n9 size=7\n\n13 mtime=1.5\n12 uid=1000\n").unwrap();
        assert_eq!(
            overrides.path.as_deref(),
            Some(b"a\n9 size=7\n".as_slice()),
            "a newline is no end"
        );
        assert_eq!((overrides.mtime, overrides.uid), (Some((1, 500_000_000)), Some(1000)));
    }

    #[test]
    fn lies_are_refused() {
        for block in [
            b"0 a=b\n".as_slice(),
            b"99999999999999999999 a=b\n",
            b"9999999 a=b\n",
            b"-6 a=b\n",
            b"6 a=bX",
            b" a=b\n",
            b"6 aab\n",
            b"10 uid=-1\n",
            b"28 uid=99999999999999999999\n",
        ] {
            assert!(parse(block).is_err(), "{}", block.escape_ascii());
        }
    }
}
