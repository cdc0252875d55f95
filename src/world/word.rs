//! Four bytes of a file, on which processes sleep until one of them changes these
//! (futex(2)). The kernel wakes them as it does with a lock's waiters, and nothing has to be taken
//! down: to close a watch of inotify(7) takes it a pause of ten milliseconds.

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use std::ffi::c_void;
use std::fs::File;
use std::io::Result;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// No page is smaller.
const PAGE: usize = 4096;

/// Four bytes of a file, as all who have it open share them.
pub struct SharedWord {
    page: NonNull<c_void>,
    at: usize,
}

// SAFETY: it is an address in a mapping that is read by the kernel alone.
#[expect(unsafe_code, reason = "a pointer is not sent by itself")]
unsafe impl Send for SharedWord {}

impl SharedWord {
    /// Its size in bytes.
    pub const SIZE: usize = size_of::<u32>();

    /// Those at a multiple of four on the file's first page, which has to be open for reading.
    #[expect(unsafe_code, reason = "memory is mapped")]
    pub fn of(file: &File, at: usize) -> Result<SharedWord> {
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe { mmap(std::ptr::null_mut(), PAGE, read, shared, file, 0)? };
        let page = NonNull::new(page).ok_or(Errno::NOMEM)?;
        assert!(at.is_multiple_of(Self::SIZE) && at < PAGE);
        Ok(SharedWord { page, at })
    }

    /// Sleeps while the bytes are these, for no longer than `limit` and perhaps less.
    pub fn wait(&self, seen: [u8; Self::SIZE], limit: Duration) {
        // Whatever ends it, the caller looks again. The file may be shorter than it was: only the
        // kernel reads it here, which says so.
        let limit = limit.try_into().ok();
        let _ = futex::wait(
            self.word(),
            futex::Flags::empty(),
            u32::from_ne_bytes(seen),
            limit.as_ref(),
        );
    }

    /// Wakes all who sleep on the file.
    pub fn wake(&self) {
        // It fails where the file is empty, on which nobody can sleep.
        let _ = futex::wake(self.word(), futex::Flags::empty(), i32::MAX as u32);
    }

    #[expect(unsafe_code, reason = "the mapping has no lifetime but ours")]
    fn word(&self) -> &AtomicU32 {
        // SAFETY: it lies on the page, which is mapped until we are dropped; it is aligned, and never
        // read here.
        unsafe { self.page.byte_add(self.at).cast().as_ref() }
    }
}

impl Drop for SharedWord {
    #[expect(unsafe_code, reason = "memory is unmapped")]
    fn drop(&mut self) {
        // SAFETY: it was mapped by us, and nobody has a reference into it that outlives us.
        let _ = unsafe { munmap(self.page.as_ptr(), PAGE) };
    }
}
