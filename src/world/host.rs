//! This machine and its clocks: what a lock's record says of its holder, so that others can tell
//! whether the holder is theirs to judge.

use super::clock::SinceBoot;
use crate::error::{Failure, Result};
use crate::exit::Code;
use jiff::Timestamp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::rand::GetRandomFlags;
use rustix::thread::{sched_getaffinity, set_current_timer_slack};
use std::fs;
use std::num::NonZeroU64;
use std::sync::LazyLock;
use std::time::Duration;

/// Which boot of which kernel this is; two processes with the same one share a process table.
pub fn boot_id() -> String {
    static ID: LazyLock<String> = LazyLock::new(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    });
    ID.clone()
}

pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name of the user that gpuctl runs as, or the number of one that the machine has no name for.
pub fn user() -> String {
    let id = rustix::process::geteuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = fields.find(|fields| fields.get(2) == Some(&id.as_str()));
    user.map_or(id.clone(), |fields| fields[0].to_owned())
}

/// The PID namespace that gpuctl is in: the same number is another process in another one.
pub fn pid_namespace() -> Option<u64> {
    static NUMBER: LazyLock<Option<u64>> = LazyLock::new(|| {
        let link = fs::read_link("/proc/self/ns/pid").ok()?;
        link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()
    });
    *NUMBER
}

/// Whether PID 1 is the machine's init, which reaps whatever is left to it. In a container it may be
/// any program, and many a program reaps nobody but its own.
pub fn has_init() -> bool {
    /// The number of the machine's own PID namespace: `PROC_PID_INIT_INO` of linux/proc_ns.h.
    const MACHINES_OWN: u64 = 0xEFFF_FFFC;
    pid_namespace() == Some(MACHINES_OWN)
}

/// Has as many files opened at once as that, where the machine lets us.
pub fn allow_open_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let current = Some(limit.maximum.map_or(count, |maximum| maximum.min(count)));
        // Without it, what needs more says so itself.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
}

/// Returns on how many processors this process may run. The shares that control groups grant are not looked
/// at, which would take the reading of several files.
pub fn processors() -> usize {
    sched_getaffinity(None).map_or(1, |processors| processors.count() as usize)
}

/// Gives all threads of this process one heap. Ours are many and short, and the C library would make a
/// heap for each, which took half a millisecond of a `status`.
#[expect(unsafe_code, reason = "the allocator is the C library's")]
pub fn share_heap() {
    // SAFETY: it sets a number, before there is another thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Has the threads of this process that begin from now on, and the one that calls this, take no processor
/// from whoever works on it when they wake up: what they wait for comes sooner. Their share of a busy
/// machine stays what it is, and what a caller has chosen for it stands. Programs that are started from
/// then on inherit it.
#[expect(unsafe_code, reason = "no crate of ours sets a scheduling policy")]
pub fn give_way() {
    // SAFETY: plain numbers, and none but this thread is meant.
    unsafe {
        let parameters = std::mem::zeroed();
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters);
        }
    }
}

/// Does something on this thread; programs that it starts may be woken from their sleeps that much later than they asked.
pub fn with_timer_slack<T>(slack: Duration, work: impl FnOnce() -> T) -> T {
    // Where it cannot be had, they are woken as ever.
    let _ = set_current_timer_slack(NonZeroU64::new(slack.as_nanos() as u64));
    let result = work();
    let _ = set_current_timer_slack(None);
    result
}

/// Returns the time since boot in clock ticks, by which the kernel tells when a process was
/// started.
pub fn ticks() -> u64 {
    let per_second = u128::from(rustix::param::clock_ticks_per_second().max(1));
    (SinceBoot::now().time().as_nanos() * per_second / 1_000_000_000) as u64
}

/// The date and time.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the calendar's clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// So many random bytes, as lower-case hexadecimal digits.
pub fn random_hex<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0_u8; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        match rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                let message = format!("the kernel provides no random numbers: {e}");
                return Err(Failure::new(Code::Internal, message));
            }
        }
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
