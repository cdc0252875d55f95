//! Four bytes of a file, on which processes sleep until one of them changes the bytes (futex(2)).
//! The kernel wakes the sleepers as it wakes the waiters of a lock. Nothing has to be taken down
//! afterwards, while the kernel pauses for ten milliseconds to close a watch of inotify(7).

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use std::ffi::c_void;
use std::fs::File;
use std::io::Result;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Length of the mapping in bytes. No page of memory is smaller.
const PAGE: usize = 4096;

/// Four bytes of a file, shared by all processes that have the file open.
pub struct SharedWord {
    page: NonNull<c_void>,
    at: usize,
}

// SAFETY: the pointer is an address in a mapping that only the kernel reads.
#[expect(unsafe_code, reason = "a pointer is not sent by itself")]
unsafe impl Send for SharedWord {}

impl SharedWord {
    /// Number of bytes in the word.
    pub const SIZE: usize = size_of::<u32>();

    /// Maps the word at offset `at` of a file, which has to be open for reading. The offset has to
    /// be a multiple of four on the file's first page.
    #[expect(unsafe_code, reason = "memory is mapped")]
    pub fn of(file: &File, at: usize) -> Result<SharedWord> {
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe { mmap(std::ptr::null_mut(), PAGE, read, shared, file, 0)? };
        let page = NonNull::new(page).ok_or(Errno::NOMEM)?;
        assert!(at.is_multiple_of(Self::SIZE) && at < PAGE);
        Ok(SharedWord { page, at })
    }

    /// Sleeps while the bytes equal `seen`, for at most `limit`. The sleep may end early without
    /// any change.
    pub fn wait(&self, seen: [u8; Self::SIZE], limit: Duration) {
        // Whatever ends the sleep, the caller looks again. The file may be shorter than it was, but
        // only the kernel reads the bytes here, and it returns an error then.
        let limit = limit.try_into().ok();
        let _ = futex::wait(
            self.word(),
            futex::Flags::empty(),
            u32::from_ne_bytes(seen),
            limit.as_ref(),
        );
    }

    /// Wakes all threads and processes that sleep on the word.
    pub fn wake(&self) {
        // This fails if the file is empty, but then nobody can sleep on the word.
        let _ = futex::wake(self.word(), futex::Flags::empty(), i32::MAX as u32);
    }

    #[expect(unsafe_code, reason = "the mapping has no lifetime but ours")]
    fn word(&self) -> &AtomicU32 {
        // SAFETY: the word lies on the page, which is mapped until `self` is dropped; it is
        // aligned, and never read here.
        unsafe { self.page.byte_add(self.at).cast().as_ref() }
    }
}

impl Drop for SharedWord {
    #[expect(unsafe_code, reason = "memory is unmapped")]
    fn drop(&mut self) {
        // SAFETY: `self` has mapped the page, and no reference into the page outlives `self`.
        let _ = unsafe { munmap(self.page.as_ptr(), PAGE) };
    }
}
