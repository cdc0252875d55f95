//! This machine, its clocks, and what the kernel grants this process. Part of this goes into a
//! lock's record, by which other processes decide whether the lock's holder is one that they can
//! judge.

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

/// Returns the id of the current boot of the kernel. Two processes with the same id share a process
/// table.
pub fn boot_id() -> String {
    static ID: LazyLock<String> = LazyLock::new(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    });
    ID.clone()
}

/// Returns the host name of this machine.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns the name of the user that gpuctl runs as, or the user's number if the machine has no
/// name for it.
pub fn user() -> String {
    let id = rustix::process::geteuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = fields.find(|fields| fields.get(2) == Some(&id.as_str()));
    user.map_or(id.clone(), |fields| fields[0].to_owned())
}

/// Returns the number of the PID namespace that gpuctl is in, or `None` if it cannot be read. A PID
/// means another process in another namespace.
pub fn pid_namespace() -> Option<u64> {
    static NUMBER: LazyLock<Option<u64>> = LazyLock::new(|| {
        let link = fs::read_link("/proc/self/ns/pid").ok()?;
        link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()
    });
    *NUMBER
}

/// Reports whether PID 1 is the machine's init, which reaps every process that is left to it. In a
/// container, PID 1 may be any program, and many programs reap only their own children.
pub fn has_init() -> bool {
    /// Number of the machine's own PID namespace, `PROC_PID_INIT_INO` in linux/proc_ns.h.
    const MACHINES_OWN: u64 = 0xEFFF_FFFC;
    pid_namespace() == Some(MACHINES_OWN)
}

/// Raises the number of files that this process may have open at once to `count`, as far as the
/// machine allows.
pub fn allow_open_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let current = Some(limit.maximum.map_or(count, |maximum| maximum.min(count)));
        // If this fails, whatever needs more files reports that itself.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
}

/// Returns the number of processors that this process may run on. The shares that control groups
/// grant are ignored, since several files would have to be read for them.
pub fn processors() -> usize {
    sched_getaffinity(None).map_or(1, |processors| processors.count() as usize)
}

/// Makes all threads of this process share one heap. They are many and short-lived, and the C
/// library would make a heap for each, which took half a millisecond of a `status`.
#[expect(unsafe_code, reason = "the allocator is the C library's")]
pub fn share_heap() {
    // SAFETY: the call sets a number, before there is another thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes the calling thread, and those that this process begins from now on, take no processor from
/// a running task when they wake up (`SCHED_BATCH`): what they wait for comes sooner. Their share
/// of a busy machine stays the same, and a policy that gpuctl's caller has chosen stands. Programs
/// that are started from now on inherit it.
#[expect(unsafe_code, reason = "no crate of ours sets a scheduling policy")]
pub fn give_way() {
    // SAFETY: the calls take plain numbers and affect only this thread.
    unsafe {
        let parameters = std::mem::zeroed();
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters);
        }
    }
}

/// Runs `work` on this thread. Programs that it starts may be woken from their sleeps later than
/// they asked, by up to `slack`.
pub fn with_timer_slack<T>(slack: Duration, work: impl FnOnce() -> T) -> T {
    // If the slack cannot be set, they are woken as usual.
    let _ = set_current_timer_slack(NonZeroU64::new(slack.as_nanos() as u64));
    let result = work();
    let _ = set_current_timer_slack(None);
    result
}

/// Returns the time since boot in clock ticks, the unit in which the kernel reports when a process
/// was started.
pub fn ticks() -> u64 {
    let per_second = u128::from(rustix::param::clock_ticks_per_second().max(1));
    (SinceBoot::now().time().as_nanos() * per_second / 1_000_000_000) as u64
}

/// Returns the current date and time.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the calendar's clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Returns `BYTES` random bytes as lower-case hexadecimal digits.
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
