//! Locks on image files, which QEMU understands too.
//!
//! Problem: two programs that write one image ruin it, and one that reads what another writes sees
//! neither the old nor the new. The other program is often QEMU or qemu-img. Scheme: QEMU's. A program
//! has a shared lock on one byte for each thing that it does to the file, and on another byte for each thing that it
//! doesn't want others to do. Having taken its own, it asks whether anyone has the opposite ones. Invariants:
//! of two that exclude each other at most one opens the file, since each takes its locks before it asks;
//! the locks belong to the open file and end with it, also when we are killed. Any thread.
//!
//! Source: QEMU, block/file-posix.c (the bytes) and qapi/block-core.json, `BlockPermission` (their order);
//! Linux, fcntl(2), "Open file description locks".

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The byte of the first permission that a program uses.
const USED: i64 = 100;
/// The byte of the first permission that a program keeps from others.
const KEPT: i64 = 200;

// Permissions by their distance from these.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Nobody else may do these, whether we write or read.
const EXCLUDED: [i64; 2] = [WRITE, RESIZE];

/// Locks `file`, to write it alone or to read it with others, until it is closed. False if another program's use excludes ours.
///
/// # Errors
/// The host's; [`io::ErrorKind::Unsupported`] or [`io::ErrorKind::InvalidInput`] where there are no such locks.
pub(super) fn lock(file: &File, read_only: bool) -> io::Result<bool> {
    let uses: &[i64] =
        if read_only { &[CONSISTENT_READ] } else { &[CONSISTENT_READ, WRITE, RESIZE] };
    let used = uses.iter().map(|permission| USED + permission);
    for byte in used.chain(EXCLUDED.map(|permission| KEPT + permission)) {
        // Someone who locks these bytes exclusively follows other rules than QEMU's: leave him the file.
        match call(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    let against = uses.iter().map(|permission| KEPT + permission);
    for byte in against.chain(EXCLUDED.map(|permission| USED + permission)) {
        let found = call(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
        if found != libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sets a lock of `kind` on one byte, or asks what stands in its way. The kind of lock that the host answers.
fn call(file: &File, command: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        // Must be 0 for locks of open files.
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed; both commands take a pointer to a
    // flock, which is valid and ours, and keep it no longer than the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::from(lock.l_type)) }
}
