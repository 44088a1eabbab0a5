//! Bare system calls: no memory is written but by the kernel, the C library's error number included. For a child that shares its parent's
//! memory while the parent goes on.

use std::ffi::c_long;

use rustix::io::Errno;

/// The greatest error number. SOURCE: MAX_ERRNO in include/linux/err.h.
const LAST_ERROR: isize = 4095;

/// Makes a system call of up to six arguments.
///
/// # Errors
/// The kernel's answer.
///
/// # Safety
/// As for the system call: what is given as address must be one of the kind that the call wants.
pub(crate) unsafe fn call<const N: usize>(
    number: c_long,
    arguments: [usize; N],
) -> Result<usize, Errno> {
    const { assert!(N <= 6, "a system call has at most six arguments") };
    let mut six = [0; 6];
    six[..N].copy_from_slice(&arguments);
    // SAFETY: the caller's promise.
    let answer = unsafe { enter(number, six) };
    if (-LAST_ERROR..0).contains(&answer) {
        let number = i32::try_from(-answer).unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(number));
    }
    Ok(answer.cast_unsigned())
}

/// SOURCE: syscall(2), "Architecture calling conventions".
#[cfg(target_arch = "x86_64")]
unsafe fn enter(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    let mut answer = number as isize;
    // SAFETY: the registers of the convention, with those that the kernel overwrites; the stack is not touched.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    answer
}

/// SOURCE: syscall(2), "Architecture calling conventions".
#[cfg(target_arch = "aarch64")]
unsafe fn enter(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    let answer: isize;
    // SAFETY: the registers of the convention; the stack is not touched.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => answer,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    answer
}
