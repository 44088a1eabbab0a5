//! Turning an image's `USER` into numbers, through the image's own /etc/passwd and /etc/group.
//!
//! Both files are hostile: bounded, and a line that makes no sense is passed over. INVARIANT: a text of digits is an id, whatever
//! names the image's files hold, and no number wraps: who asks for user 1000 never gets user 0.

use std::path::PathBuf;

use crate::merged::Merged;

/// Largest id: a sandbox has 65,536 of them.
pub const MAX_ID: u32 = 65_535;
/// Largest /etc/passwd or /etc/group read (guess: 20,000 users).
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most supplementary groups taken (guess: real images have fewer than ten).
const MAX_SUPPLEMENTARY_GROUPS: usize = 256;
/// Longest user or group name. SOURCE: LOGIN_NAME_MAX of limits.h.
const MAX_NAME_BYTES: usize = 256;

/// Who a process runs as, inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserIds {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, ascending.
    pub supplementary_gids: Vec<u32>,
    /// The user's home directory, an absolute path; `/` when the image names none.
    pub home: String,
    /// The user's name, when the image names one.
    pub name: Option<String>,
}

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Not `user` or `user:group`.
    #[error("user {user:?} is not USER or USER:GROUP, each a name or a number")]
    Malformed {
        /// What was asked, cut.
        user: String,
    },
    /// A number beyond the ids of a sandbox.
    #[error("id {id:?} is too large: ids end at {MAX_ID}")]
    IdTooLarge {
        /// The number as written, cut.
        id: String,
    },
    /// A name that the image does not know.
    #[error(
        "{kind} {name:?} is not in the image's {file}: write its number, or add it to the image"
    )]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
    },
    /// One of the files cannot be read.
    #[error("cannot read the image's {file}: {source}")]
    File {
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Resolves `user` or `user:group` (names or numbers; empty: root) in an image of these layers, topmost first. Reads a few small
/// files: blocks shortly.
///
/// # Errors
/// [`UserError`].
pub fn resolve(user: &str, layers: &[PathBuf]) -> Result<UserIds, UserError> {
    let read = |file: &'static str| {
        let content = Merged::open(layers)
            .and_then(|merged| merged.read_file(file.as_bytes(), MAX_FILE_BYTES));
        content.map(Option::unwrap_or_default).map_err(|source| UserError::File { file, source })
    };
    resolve_in(user, || read(PASSWD), || read(GROUP))
}

/// As [`resolve`], with the files' contents at hand.
pub(crate) fn resolve_in(
    user: &str,
    passwd: impl FnOnce() -> Result<Vec<u8>, UserError>,
    group: impl FnOnce() -> Result<Vec<u8>, UserError>,
) -> Result<UserIds, UserError> {
    let (wanted_user, wanted_group) = split(user)?;
    let passwd = passwd()?;
    let account = match &wanted_user {
        Wanted::Id(uid) => accounts(&passwd).find(|account| account.uid == *uid),
        Wanted::Name(name) => {
            Some(accounts(&passwd).find(|account| account.name == *name).ok_or_else(|| {
                UserError::Unknown { kind: "user", name: (*name).to_owned(), file: PASSWD }
            })?)
        }
    };
    let uid = match (&wanted_user, &account) {
        (Wanted::Id(uid), _) => *uid,
        (Wanted::Name(_), Some(account)) => account.uid,
        (Wanted::Name(_), None) => return Err(malformed(user)),
    };
    let mut ids = UserIds { uid, home: "/".to_owned(), ..UserIds::default() };
    if let Some(account) = &account {
        ids.gid = account.gid;
        ids.name = Some(account.name.to_owned());
        if account.home.starts_with('/') && !account.home.contains('\0') {
            account.home.clone_into(&mut ids.home);
        }
    }
    match wanted_group {
        Some(Wanted::Id(gid)) => ids.gid = gid,
        Some(Wanted::Name(name)) => {
            ids.gid = groups(&group()?)
                .find(|group| group.name == name)
                .map(|group| group.gid)
                .ok_or_else(|| UserError::Unknown {
                    kind: "group",
                    name: name.to_owned(),
                    file: GROUP,
                })?;
        }
        // Only who names no group gets those that the image gives the user.
        None => {
            if let Some(account) = &account {
                ids.supplementary_gids = supplementary(&group()?, account.name);
            }
        }
    }
    Ok(ids)
}

enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

fn split(user: &str) -> Result<(Wanted<'_>, Option<Wanted<'_>>), UserError> {
    let (user_part, group_part) = match user.split_once(':') {
        Some((user_part, group_part)) => {
            (user_part, Some(group_part).filter(|part| !part.is_empty()))
        }
        None => (user, None),
    };
    let user_part = if user_part.is_empty() { Wanted::Id(0) } else { wanted(user_part, user)? };
    Ok((user_part, group_part.map(|part| wanted(part, user)).transpose()?))
}

fn wanted<'a>(text: &'a str, whole: &str) -> Result<Wanted<'a>, UserError> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse::<u32>() {
            Ok(id) if id <= MAX_ID => Ok(Wanted::Id(id)),
            _ => Err(UserError::IdTooLarge { id: text.chars().take(40).collect() }),
        };
    }
    // `-1`, `+0`, `0x0`: numbers to some parsers, so not names here.
    let looks_numeric = text.starts_with(['-', '+'])
        || text.starts_with(|first: char| first.is_ascii_digit()) && {
            text.starts_with("0x") || text.starts_with("0X") || text.contains(['.', ','])
        };
    let bad = text.len() > MAX_NAME_BYTES
        || text.contains([':', '/', '\n', '\0'])
        || text.contains(char::is_whitespace);
    if bad || looks_numeric {
        return Err(malformed(whole));
    }
    Ok(Wanted::Name(text))
}

fn malformed(user: &str) -> UserError {
    UserError::Malformed { user: user.chars().take(80).collect() }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines that are text; the files are bounded, so their lines are.
fn lines(content: &[u8]) -> impl Iterator<Item = &str> {
    content.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
}

fn small_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= MAX_ID)
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = small_id(fields.nth(1)?)?;
        let gid = small_id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name, uid, gid, home })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = small_id(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn supplementary(group: &[u8], user: &str) -> Vec<u32> {
    let mut gids: Vec<u32> = groups(group)
        .filter(|group| group.members.split(',').any(|member| member == user))
        .map(|group| group.gid)
        .take(MAX_SUPPLEMENTARY_GROUPS)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD_TEXT: &str = "root:x:0:0:root:/root:/bin/sh\n\
        nonsense\n::0:0\nweb:x:101:102:Web:/srv/web:/bin/false\n\
        1000:x:0:0:a name of digits:/:/bin/sh\n\
        wrap:x:4294967296:0::/:\nnegative:x:-1:-1::/:\nplus:x:+0:0::/:\nrelative:x:7:7::../..:\n";
    const GROUP_TEXT: &str = "root:x:0:\nweb:x:102:\nlog:x:4:adm,web\nssl:x:110:web\nwrap:x:4294967296:web\nwebx:x:9:webx\n";

    fn ids(user: &str) -> Result<UserIds, UserError> {
        resolve_in(user, || Ok(PASSWD_TEXT.into()), || Ok(GROUP_TEXT.into()))
    }

    fn numbers(user: &str) -> (u32, u32, Vec<u32>) {
        let ids = ids(user).unwrap();
        (ids.uid, ids.gid, ids.supplementary_gids)
    }

    #[test]
    fn names_and_numbers_are_resolved_as_docker_does() {
        assert_eq!(numbers(""), (0, 0, vec![]));
        assert_eq!(numbers("web"), (101, 102, vec![4, 110]));
        assert_eq!(numbers("101"), (101, 102, vec![4, 110]), "a number finds its account");
        assert_eq!(numbers("web:log"), (101, 4, vec![]), "a named group is the only one");
        assert_eq!(numbers("12:34"), (12, 34, vec![]));
        assert_eq!(numbers("12"), (12, 0, vec![]), "unknown to the image");
        assert_eq!(ids("web").unwrap().home, "/srv/web");
        assert_eq!(ids("relative").unwrap().home, "/", "a home that is no absolute path is none");
    }

    /// containerd GO-2026-5378 (runAsNonRoot bypass): nothing that is not root by its number may become root.
    #[test]
    fn nothing_but_root_becomes_root() {
        assert_eq!(numbers("1000").0, 1000, "an account named 1000 with uid 0 is not asked");
        for user in [
            "4294967296",
            "4294967295",
            "65536",
            "99999999999999999999",
            "-1",
            "+0",
            "0x0",
            "0.0",
            "wrap",
            "negative",
            "plus",
            "1000:4294967296",
            "web:wrap",
            "web\n",
            " web",
            "web:root:x",
            "../root",
            "nobody",
        ] {
            assert!(ids(user).is_err(), "{user:?}");
        }
    }

    /// containerd GO-2026-5475 (group parse DoS): a file of a megabyte costs milliseconds and yields a bounded list.
    #[test]
    fn a_hostile_group_file_is_bounded() {
        let members = "web,".repeat(200_000);
        let many: String =
            (0..60_000).map(|gid| format!("g{gid}:x:{}:web\n", gid % 60_000)).collect();
        for group in [format!("a:x:5:{members}\n"), many, ":".repeat(1 << 20), "\0".repeat(1 << 20)]
        {
            let found =
                resolve_in("web", || Ok(PASSWD_TEXT.into()), || Ok(group.into_bytes())).unwrap();
            assert!(found.supplementary_gids.len() <= MAX_SUPPLEMENTARY_GROUPS);
        }
    }
}
