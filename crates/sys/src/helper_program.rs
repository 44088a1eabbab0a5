//! Starting a long-lived helper program from a process that has threads, without copying that process.
//!
//! Owns the call (posix_spawn, which shares memory until the exec) and what the program gets: a session of its own, default signals, one
//! descriptor besides the standard three, nothing of the caller's environment.

use std::ffi::CString;
use std::io::Error;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{c_char, c_int, c_short};

/// The descriptor that the program finds open.
pub const INHERITED_DESCRIPTOR: c_int = 3;

/// Starts `program` with `arguments` (its own name is added), `inherited` as descriptor 3, `diagnostics` as standard error, and /dev/null
/// as input and output. It is the caller's child. Its environment is PATH alone.
///
/// # Errors
/// The kernel's answer: `NotFound` when there is no such program.
pub fn start_program(
    program: &Path,
    arguments: &[&str],
    inherited: BorrowedFd<'_>,
    diagnostics: BorrowedFd<'_>,
) -> std::io::Result<i32> {
    let path = CString::new(program.as_os_str().as_bytes())?;
    let mut words = vec![path.clone()];
    for argument in arguments {
        words.push(CString::new(*argument)?);
    }
    let mut argv: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let search = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let environment = [search.as_ptr().cast_mut(), std::ptr::null_mut()];
    let actions = Actions::new(inherited, diagnostics)?;
    let attributes = Attributes::new()?;
    let mut pid = 0;
    // SAFETY: every pointer is to a value that lives until the call returns; both lists end with a null pointer; actions and
    // attributes were initialised.
    let answer = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            environment.as_ptr(),
        )
    };
    check(answer)?;
    Ok(pid)
}

fn check(answer: c_int) -> std::io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(Error::from_raw_os_error(answer)) }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(inherited: BorrowedFd<'_>, diagnostics: BorrowedFd<'_>) -> std::io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given when it answers 0.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised above; `drop` destroys it from here on.
        let mut actions = Self(unsafe { actions.assume_init() });
        let null = c"/dev/null".as_ptr();
        for number in [0, 1] {
            // SAFETY: the actions are initialised and the path is copied by the call.
            check(unsafe {
                libc::posix_spawn_file_actions_addopen(
                    &raw mut actions.0,
                    number,
                    null,
                    libc::O_RDWR,
                    0,
                )
            })?;
        }
        // Standard error first: `diagnostics` may itself be number 3. A descriptor duplicated onto itself loses its close-on-exec flag.
        // SOURCE: POSIX.1-2024, posix_spawn_file_actions_adddup2.
        for (from, to) in
            [(diagnostics.as_raw_fd(), 2), (inherited.as_raw_fd(), INHERITED_DESCRIPTOR)]
        {
            // SAFETY: the actions are initialised; the numbers are of open descriptors.
            check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, from, to) })?;
        }
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> std::io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given when it answers 0.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised above; `drop` destroys it from here on.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID;
        let flags = c_short::try_from(flags).map_err(Error::other)?;
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both calls initialise the whole set; attributes are initialised and copy the sets.
        unsafe {
            libc::sigfillset(set.as_mut_ptr());
            check(libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, set.as_ptr()))?;
            libc::sigemptyset(set.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(&raw mut attributes.0, set.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(&raw mut attributes.0, flags))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// SOURCE: glibc 2.26 and musl, spawn.h; the libc crate does not have it for every target.
const POSIX_SPAWN_SETSID: c_int = 0x80;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::*;
    use crate::process::{Exit, Wait, reap};

    #[test]
    fn the_program_gets_its_descriptor_and_a_session_and_nothing_else() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"through three\n").unwrap();
        drop(writer);
        let mut diagnostics = tempfile::tempfile().unwrap();
        let script = "read line <&3; echo \"$line $HOME\" >&2; ls -l /proc/self/fd >&2; exit 7";
        let pid = start_program(
            Path::new("/bin/sh"),
            &["-c", script],
            reader.as_fd(),
            diagnostics.as_fd(),
        )
        .unwrap();
        assert_eq!(reap(pid, Wait::Block).unwrap(), Some(Exit::Code(7)));
        let mut text = String::new();
        diagnostics.rewind().unwrap();
        diagnostics.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("through three \n"), "{text}");
        let pipe = rustix::fs::fstat(&reader).unwrap().st_ino;
        // What the test's own parent left open is not looked at.
        let held: Vec<&str> =
            text.lines().filter(|line| line.ends_with(&format!("-> pipe:[{pipe}]"))).collect();
        assert!(held.len() == 1 && held[0].contains(" 3 -> "), "{text}");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_missing_program_is_told() {
        let null = File::open("/dev/null").unwrap();
        let error =
            start_program(Path::new("/nonexistent"), &[], null.as_fd(), null.as_fd()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
