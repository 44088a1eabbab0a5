//! Image references as people write them: registry, repository, tag, digest.
//!
//! Owns parsing, the canonical and the familiar spelling. It must never look anything up: whether an image exists, and
//! where, is the image store's business. SOURCE: the grammar of github.com/distribution/reference and the defaults of
//! docker (`docker.io`, `library/`, `latest`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The registry meant when none is written.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag meant when neither tag nor digest is written.
pub const DEFAULT_TAG: &str = "latest";
/// Longest text looked at: name (255) + tag (129) + digest (72), rounded up.
pub const MAX_REFERENCE_BYTES: usize = 512;
/// Longest registry and repository together. SOURCE: distribution/reference, RepositoryNameTotalLengthMax.
const MAX_NAME_BYTES: usize = 255;
/// Longest tag. SOURCE: distribution/reference, tag grammar.
const MAX_TAG_BYTES: usize = 128;
/// What Docker Hub's images without an organisation live under.
const OFFICIAL_PREFIX: &str = "library/";

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageReferenceError {
    /// Nothing was written.
    #[error(
        "image reference is empty: write for example busybox, or registry.example/team/app:1.2"
    )]
    Empty,
    /// Longer than any registry accepts.
    #[error("image reference is {actual} bytes long, at most {limit} are allowed")]
    TooLong {
        /// Bytes found.
        actual: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The part before the first slash is no host or host:port.
    #[error("image registry {registry:?} is not HOST or HOST:PORT")]
    BadRegistry {
        /// The part that was refused.
        registry: String,
    },
    /// The repository breaks the grammar.
    #[error(
        "image repository {repository:?} is not valid: lower-case letters and digits, separated by '.', '_', '__', '-' or '/'"
    )]
    BadRepository {
        /// The part that was refused.
        repository: String,
    },
    /// The tag breaks the grammar.
    #[error(
        "image tag {tag:?} is not valid: up to 128 letters, digits, '_', '.', '-', not beginning with '.' or '-'"
    )]
    BadTag {
        /// The part that was refused.
        tag: String,
    },
    /// The digest is not `sha256:` and 64 hexadecimal digits.
    #[error(
        "image digest {digest:?} is not 'sha256:' followed by 64 lower-case hexadecimal digits"
    )]
    BadDigest {
        /// The part that was refused.
        digest: String,
    },
}

/// A parsed, normalised image reference. Has a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageReference {
    /// Host, or `host:port`, in lower case; `docker.io` when none was written.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry, such as `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag; `None` only when a digest alone was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, `sha256:` and 64 digits.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The same name with this digest instead of any tag.
    ///
    /// # Errors
    /// [`ImageReferenceError::BadDigest`].
    pub fn with_digest(&self, digest: &str) -> Result<Self, ImageReferenceError> {
        check_digest(digest)?;
        Ok(Self { tag: None, digest: Some(digest.to_owned()), ..self.clone() })
    }

    /// Whether the registry is this machine by name or address, the only place where plain HTTP may be spoken.
    #[must_use]
    pub fn registry_is_loopback(&self) -> bool {
        registry_is_loopback(&self.registry)
    }

    /// The short spelling that people expect: `busybox:latest`, `team/app:1`, `registry.example/app:1`. Parses back to
    /// the same reference.
    #[must_use]
    pub fn familiar(&self) -> String {
        let name = if self.registry == DEFAULT_REGISTRY {
            let short = match self.repository.strip_prefix(OFFICIAL_PREFIX) {
                Some(rest) if !rest.contains('/') && !is_image_id(rest) => rest,
                _ => self.repository.as_str(),
            };
            match short.split_once('/') {
                Some((first, _)) if is_registry(first) => self.name(),
                _ => short.to_owned(),
            }
        } else {
            self.name()
        };
        self.with_suffix(name)
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest);
        }
        text
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl FromStr for ImageReference {
    type Err = ImageReferenceError;

    fn from_str(text: &str) -> Result<Self, ImageReferenceError> {
        if text.is_empty() {
            return Err(ImageReferenceError::Empty);
        }
        check_length(text, MAX_REFERENCE_BYTES)?;
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                check_digest(digest)?;
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        let last_component_at = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[last_component_at..].rfind(':') {
            Some(colon) => {
                let at = last_component_at + colon;
                check_tag(&rest[at + 1..])?;
                (&rest[..at], Some(rest[at + 1..].to_owned()))
            }
            None => (rest, None),
        };
        let (registry, repository) = split_name(name)?;
        check_length(&format!("{registry}/{repository}"), MAX_NAME_BYTES)?;
        let tag = match (&tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            _ => tag,
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Whether a registry (`host` or `host:port`) is this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
#[must_use]
pub fn registry_is_loopback(registry: &str) -> bool {
    let host = registry_host(registry);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| match address {
            IpAddr::V4(address) => address.is_loopback(),
            IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST,
        })
}

/// Normalises a registry as written in `atoll login`: lower case, Docker Hub's other names folded into `docker.io`.
///
/// # Errors
/// [`ImageReferenceError::BadRegistry`] when it is not `HOST` or `HOST:PORT`.
pub fn parse_registry(text: &str) -> Result<String, ImageReferenceError> {
    let bad = || ImageReferenceError::BadRegistry { registry: text.chars().take(80).collect() };
    if text.len() > MAX_NAME_BYTES {
        return Err(bad());
    }
    let registry = text.to_ascii_lowercase();
    let host = registry_host(&registry);
    let port = if registry.starts_with('[') {
        let close = registry.find(']').ok_or_else(bad)?;
        host.parse::<Ipv6Addr>().map_err(|_| bad())?;
        &registry[close + 1..]
    } else {
        let labels_are_good = !host.is_empty()
            && host.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            });
        let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if !labels_are_good || (numeric && host.parse::<Ipv4Addr>().is_err()) {
            return Err(bad());
        }
        &registry[host.len()..]
    };
    if !port.is_empty() {
        let digits = port.strip_prefix(':').ok_or_else(bad)?;
        let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
        if !all_digits || !digits.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(bad());
        }
    }
    Ok(match registry.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        _ => registry,
    })
}

fn registry_host(registry: &str) -> &str {
    if let Some(rest) = registry.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    registry.split(':').next().unwrap_or(registry)
}

fn is_registry(first_component: &str) -> bool {
    first_component.contains(['.', ':']) || first_component.eq_ignore_ascii_case("localhost")
}

fn split_name(name: &str) -> Result<(String, String), ImageReferenceError> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (parse_registry(first)?, rest),
        _ => (DEFAULT_REGISTRY.to_owned(), name),
    };
    check_repository(repository)?;
    // INVARIANT: a bare digest never reads as a name, so that commands may take either.
    if !name.contains('/') && is_image_id(repository) {
        return Err(ImageReferenceError::BadRepository { repository: repository.to_owned() });
    }
    let official = registry == DEFAULT_REGISTRY && !repository.contains('/');
    let prefix = if official { OFFICIAL_PREFIX } else { "" };
    Ok((registry, format!("{prefix}{repository}")))
}

fn check_length(text: &str, limit: usize) -> Result<(), ImageReferenceError> {
    if text.len() > limit {
        return Err(ImageReferenceError::TooLong { actual: text.len(), limit });
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), ImageReferenceError> {
    if repository.split('/').all(component_is_good) {
        return Ok(());
    }
    Err(ImageReferenceError::BadRepository { repository: repository.to_owned() })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn component_is_good(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(is_word)
        && component.ends_with(is_word)
        && component.split(is_word).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn check_tag(tag: &str) -> Result<(), ImageReferenceError> {
    let good = (1..=MAX_TAG_BYTES).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if good { Ok(()) } else { Err(ImageReferenceError::BadTag { tag: tag.to_owned() }) }
}

fn check_digest(digest: &str) -> Result<(), ImageReferenceError> {
    let good = digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(is_lower_hex));
    if good { Ok(()) } else { Err(ImageReferenceError::BadDigest { digest: digest.to_owned() }) }
}

/// What people take for an image's id, and no name may look like when it stands alone.
fn is_image_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(is_lower_hex)
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Fuzz body: whatever parses must survive both of its spellings.
///
/// # Panics
/// When a spelling does not parse back to the same reference: a bug that the fuzzer is to find.
pub fn fuzz_reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(reference) = text.parse::<ImageReference>() else { return };
    assert_eq!(reference.to_string().parse(), Ok(reference.clone()), "canonical of {text:?}");
    assert_eq!(reference.familiar().parse(), Ok(reference.clone()), "familiar of {text:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_official_repository_named_like_an_id_keeps_its_prefix() {
        let text = format!("library/{}:1", "07".repeat(32));
        assert_eq!(parts(&text).1, text);
        fuzz_reference(text.as_bytes());
    }

    fn parts(text: &str) -> (String, String) {
        let reference: ImageReference = text.parse().unwrap();
        (reference.to_string(), reference.familiar())
    }

    #[test]
    fn defaults_are_dockers() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, canonical, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("team/app:1.2", "docker.io/team/app:1.2", "team/app:1.2"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("[::1]:5000/a/b", "[::1]:5000/a/b:latest", "[::1]:5000/a/b:latest"),
            ("Example.COM/a", "example.com/a:latest", "example.com/a:latest"),
            ("docker.io/foo.bar/x", "docker.io/foo.bar/x:latest", "docker.io/foo.bar/x:latest"),
            ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest", "a__b/c-d.e:latest"),
        ] {
            assert_eq!(parts(text), (canonical.to_owned(), familiar.to_owned()), "{text}");
        }
        let (canonical, familiar) = parts(&format!("h.example:1/x:t@{digest}"));
        assert_eq!(canonical, format!("h.example:1/x:t@{digest}"));
        assert_eq!(familiar, canonical);
        assert_eq!(parts(&format!("x@{digest}")).1, format!("x@{digest}"));
    }

    #[test]
    fn what_no_registry_accepts_is_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "-a",
            "a:",
            "a:.x",
            "a@",
            "a@sha256:12",
            "a@sha512:00",
            "a b",
            "../a",
            "a/../b",
            "host.example:99999/a",
            "host.example:0/a",
            "[::g]/a",
            "1.2.3/a",
            "-h.example/a",
            "h.example:/a",
            "a:b:c",
            "é",
            "x@sha256:AB",
            "http://h.example/a",
            "a\0b",
            &long,
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn loopback_is_told_from_what_looks_like_it() {
        for (registry, expected) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9", true),
            ("[::1]:5", true),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1:5000", false),
            ("[::2]:5", false),
        ] {
            assert_eq!(registry_is_loopback(registry), expected, "{registry}");
        }
    }
}
