//! NVML's C interface, as `nvml.h` has it: how each function takes its arguments and hands over its
//! answer. An output is an `Option<&mut MaybeUninit<T>>`, which is C's nullable pointer to
//! something to be filled in, so the functions are safe code. Only strings and lists, which come as
//! a pointer and a length, need `unsafe`.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::mem::MaybeUninit;

use nvml_wrapper_sys::bindings::{
    nvmlAccountingStats_t, nvmlDevice_t, nvmlEnableState_t, nvmlMemory_t, nvmlMemory_v2_t,
    nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t, nvmlProcessUtilizationSample_t, nvmlUtilization_t,
};

use crate::claim::Kind::{Compute, Graphics};
use crate::code::{self, Code};
use crate::session::{MB, Process, Session};

type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;
type Answer = Result<(), Code>;

/// The version that a caller puts into an `nvmlMemory_v2_t`, as `nvml.h` defines it: the
/// structure's size, with the number 2 in the highest byte.
const MEMORY_V2: c_uint = size_of::<nvmlMemory_v2_t>() as c_uint | 2 << 24;
/// The MIG instance that is reported for a process on a card that is not split into instances.
const NO_INSTANCE: c_uint = c_uint::MAX;
const TEMPERATURE_GPU: c_uint = 0;
const CUDA_VERSION: c_int = 12080;

/// Defines exported functions that differ only in their names. `me` is the name of the function
/// that was called.
macro_rules! export {
    ($name:ident $($more:ident)+, $($rest:tt)*) => {
        export!($name, $($rest)*);
        export!($($more)+, $($rest)*);
    };
    ($name:ident, |$me:ident $(, $arg:ident: $type:ty)*| $body:block) => {
        // SAFETY: only the library that this one stands in for defines this symbol, and the two are
        // never both loaded.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($arg: $type),*) -> Code {
            let $me = stringify!($name);
            let answer = || -> Answer { $body };
            answer().err().unwrap_or(code::SUCCESS)
        }
    };
}

export!(nvmlInit nvmlInit_v2, |me| { Session::init(me) });
export!(nvmlInitWithFlags, |me, _flags: c_uint| { Session::init(me) });
export!(nvmlShutdown, |me| { Session::shutdown(me) });

// SAFETY: as in `export!`, which cannot define this function because it answers with a text.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    code::text(code).as_ptr()
}

export!(nvmlSystemGetDriverVersion, |me, version: *mut c_char, length: c_uint| {
    let session = Session::enter(me)?;
    // SAFETY: the caller owns `length` bytes at `version`, as `nvml.h` demands.
    unsafe { put_text(version, length, session.spec.driver_version.as_bytes()) }
});

export!(nvmlSystemGetNVMLVersion, |me, version: *mut c_char, length: c_uint| {
    let session = Session::enter(me)?;
    // SAFETY: the caller owns `length` bytes at `version`, as `nvml.h` demands.
    unsafe { put_text(version, length, format!("12.{}", session.spec.driver_version).as_bytes()) }
});

export!(nvmlSystemGetCudaDriverVersion nvmlSystemGetCudaDriverVersion_v2, |me, version: Out<c_int>| {
    Session::enter(me)?;
    put(version, CUDA_VERSION)
});

export!(nvmlSystemGetProcessName, |me, pid: c_uint, name: *mut c_char, length: c_uint| {
    let found = Session::enter(me)?.process_name(pid)?;
    // This is the only function that cuts a text that does not fit.
    let fits = found.len().min((length as usize).saturating_sub(1));
    // SAFETY: the caller owns `length` bytes at `name`, as `nvml.h` demands.
    unsafe { put_text(name, length, &found[..fits]) }
});

export!(nvmlDeviceGetCount nvmlDeviceGetCount_v2, |me, count: Out<c_uint>| {
    put(count, Session::enter(me)?.spec.devices.len() as c_uint)
});

export!(nvmlDeviceGetHandleByIndex nvmlDeviceGetHandleByIndex_v2, |me, index: c_uint, device: Out<nvmlDevice_t>| {
    Session::enter(me)?.device(index as usize)?;
    put(device, handle_of(index as usize))
});

export!(nvmlDeviceGetHandleByUUID, |me, uuid: *const c_char, device: Out<nvmlDevice_t>| {
    let session = Session::enter(me)?;
    if uuid.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller passes a C string, as `nvml.h` demands.
    let uuid = unsafe { CStr::from_ptr(uuid) }.to_bytes();
    let index = session.spec.devices.iter().position(|device| device.uuid.as_bytes() == uuid);
    put(device, handle_of(index.ok_or(code::NOT_FOUND)?))
});

export!(nvmlDeviceGetIndex, |me, device: nvmlDevice_t, index: Out<c_uint>| {
    Session::enter(me)?.device(index_of(device)?)?;
    put(index, index_of(device)? as c_uint)
});

export!(nvmlDeviceGetName, |me, device: nvmlDevice_t, name: *mut c_char, length: c_uint| {
    let session = Session::enter(me)?;
    // SAFETY: the caller owns `length` bytes at `name`, as `nvml.h` demands.
    unsafe { put_text(name, length, session.device(index_of(device)?)?.name.as_bytes()) }
});

export!(nvmlDeviceGetUUID, |me, device: nvmlDevice_t, uuid: *mut c_char, length: c_uint| {
    let session = Session::enter(me)?;
    // SAFETY: the caller owns `length` bytes at `uuid`, as `nvml.h` demands.
    unsafe { put_text(uuid, length, session.device(index_of(device)?)?.uuid.as_bytes()) }
});

export!(nvmlDeviceGetTemperature, |me,
                                   device: nvmlDevice_t,
                                   sensor: c_uint,
                                   temperature: Out<c_uint>| {
    let session = Session::enter(me)?;
    if sensor != TEMPERATURE_GPU {
        return Err(code::INVALID_ARGUMENT);
    }
    put(temperature, session.device(index_of(device)?)?.temperature_c)
});

export!(
    nvmlDeviceGetUtilizationRates,
    |me, device: nvmlDevice_t, utilization: Out<nvmlUtilization_t>| {
        let gpu = Session::enter(me)?.device(index_of(device)?)?.utilization_percent;
        put(utilization, nvmlUtilization_t { gpu, memory: 0 })
    }
);

// The first version knows nothing of reserved memory and counts it as used.
export!(nvmlDeviceGetMemoryInfo, |me, device: nvmlDevice_t, memory: Out<nvmlMemory_t>| {
    let now = Session::enter(me)?.memory(index_of(device)?)?;
    let used = now.claimed + now.reserved;
    put(memory, nvmlMemory_t { total: now.total * MB, free: now.free * MB, used: used * MB })
});

export!(
    nvmlDeviceGetMemoryInfo_v2,
    |me, device: nvmlDevice_t, memory: Option<&mut nvmlMemory_v2_t>| {
        let session = Session::enter(me)?;
        let memory = memory.ok_or(code::INVALID_ARGUMENT)?;
        if memory.version != MEMORY_V2 {
            return Err(code::ARGUMENT_VERSION_MISMATCH);
        }
        let now = session.memory(index_of(device)?)?;
        *memory = nvmlMemory_v2_t {
            version: MEMORY_V2,
            total: now.total * MB,
            reserved: now.reserved * MB,
            free: now.free * MB,
            used: now.claimed * MB,
        };
        Ok(())
    }
);

export!(
    nvmlDeviceGetComputeRunningProcesses,
    |me, device: nvmlDevice_t, count: Option<&mut c_uint>, list: *mut nvmlProcessInfo_v1_t| {
        let processes = Session::enter(me)?.processes(index_of(device)?, Compute)?;
        // SAFETY: the caller owns `count` elements at `list`, as `nvml.h` demands.
        unsafe { put_list(count, list, processes, process_v1) }
    }
);

export!(nvmlDeviceGetComputeRunningProcesses_v2 nvmlDeviceGetComputeRunningProcesses_v3,
    |me, device: nvmlDevice_t, count: Option<&mut c_uint>, list: *mut nvmlProcessInfo_v2_t| {
    let processes = Session::enter(me)?.processes(index_of(device)?, Compute)?;
    // SAFETY: the caller owns `count` elements at `list`, as `nvml.h` demands.
    unsafe { put_list(count, list, processes, process_v2) }
});

export!(
    nvmlDeviceGetGraphicsRunningProcesses,
    |me, device: nvmlDevice_t, count: Option<&mut c_uint>, list: *mut nvmlProcessInfo_v1_t| {
        let processes = Session::enter(me)?.processes(index_of(device)?, Graphics)?;
        // SAFETY: the caller owns `count` elements at `list`, as `nvml.h` demands.
        unsafe { put_list(count, list, processes, process_v1) }
    }
);

export!(nvmlDeviceGetGraphicsRunningProcesses_v2 nvmlDeviceGetGraphicsRunningProcesses_v3,
    |me, device: nvmlDevice_t, count: Option<&mut c_uint>, list: *mut nvmlProcessInfo_v2_t| {
    let processes = Session::enter(me)?.processes(index_of(device)?, Graphics)?;
    // SAFETY: the caller owns `count` elements at `list`, as `nvml.h` demands.
    unsafe { put_list(count, list, processes, process_v2) }
});

export!(nvmlDeviceGetProcessUtilization, |me,
                                          device: nvmlDevice_t,
                                          list: *mut nvmlProcessUtilizationSample_t,
                                          count: Option<&mut c_uint>,
                                          since: u64| {
    let samples = Session::enter(me)?.samples(index_of(device)?, since)?;
    // SAFETY: the caller owns `count` elements at `list`, as `nvml.h` demands.
    unsafe { put_list(count, list, samples, sample) }
});

export!(nvmlDeviceGetAccountingMode, |me, device: nvmlDevice_t, mode: Out<nvmlEnableState_t>| {
    put(mode, Session::enter(me)?.accounts(index_of(device)?)?.into())
});

export!(
    nvmlDeviceGetAccountingStats,
    |me, device: nvmlDevice_t, pid: c_uint, stats: Out<nvmlAccountingStats_t>| {
        let most = Session::enter(me)?.most(index_of(device)?, pid)?;
        put(
            stats,
            nvmlAccountingStats_t {
                gpuUtilization: 0,
                memoryUtilization: 0,
                maxMemoryUsage: most,
                time: 0,
                startTime: 0,
                isRunning: 1,
                reserved: [0; 5],
            },
        )
    }
);

// gpustat and nvitop call these functions, and manage without an answer. The arguments are not
// looked at, so they are not named.
export!(
    nvmlDeviceGetFanSpeed nvmlDeviceGetPowerUsage nvmlDeviceGetEnforcedPowerLimit nvmlDeviceGetPowerManagementLimit
    nvmlDeviceGetEncoderUtilization nvmlDeviceGetDecoderUtilization nvmlDeviceGetPciInfo_v3
    nvmlDeviceGetPersistenceMode nvmlDeviceGetPerformanceState nvmlDeviceGetMigMode nvmlDeviceGetDisplayActive
    nvmlDeviceGetDisplayMode nvmlDeviceGetComputeMode nvmlDeviceGetTotalEccErrors nvmlDeviceGetBAR1MemoryInfo
    nvmlDeviceGetClockInfo nvmlDeviceGetMaxClockInfo nvmlDeviceGetPcieThroughput nvmlDeviceGetCudaComputeCapability
    nvmlDeviceGetSerial nvmlDeviceGetDriverModel nvmlDeviceGetDriverModel_v2,
    |me| {
        Session::enter(me)?;
        Err(code::NOT_SUPPORTED)
    }
);

/// Returns the handle of a device, which points to nothing: it is the index plus one, so that it is
/// never null.
fn handle_of(index: usize) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(index + 1)
}

fn index_of(device: nvmlDevice_t) -> Result<usize, Code> {
    device.addr().checked_sub(1).ok_or(code::INVALID_ARGUMENT)
}

fn sample((pid, at): (u32, u64)) -> nvmlProcessUtilizationSample_t {
    let (busy, idle) = (90, 0);
    nvmlProcessUtilizationSample_t {
        pid,
        timeStamp: at,
        smUtil: busy,
        memUtil: idle,
        encUtil: idle,
        decUtil: idle,
    }
}

fn process_v1(Process { pid, bytes }: Process) -> nvmlProcessInfo_v1_t {
    nvmlProcessInfo_v1_t { pid, usedGpuMemory: bytes }
}

fn process_v2(Process { pid, bytes }: Process) -> nvmlProcessInfo_v2_t {
    let (gpu, compute) = (NO_INSTANCE, NO_INSTANCE);
    nvmlProcessInfo_v2_t {
        pid,
        usedGpuMemory: bytes,
        gpuInstanceId: gpu,
        computeInstanceId: compute,
    }
}

fn put<T>(out: Out<T>, value: T) -> Answer {
    out.ok_or(code::INVALID_ARGUMENT)?.write(value);
    Ok(())
}

/// Writes a text and its closing NUL to the memory of a caller, or fails if they do not fit.
///
/// # Safety
/// `out` is null or has room for `length` bytes.
unsafe fn put_text(out: *mut c_char, length: c_uint, text: &[u8]) -> Answer {
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(code::INSUFFICIENT_SIZE);
    }
    // SAFETY: `out` is not null and holds `length` bytes, more than the text has, so the NUL fits
    // too.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// Writes a list as NVML does: `count` says how many elements fit, and is set to how many there
/// are. If too few fit, the call fails, which is how callers ask for the number.
///
/// # Safety
/// `list` is null or has room for `count` elements.
unsafe fn put_list<T, P>(
    count: Option<&mut c_uint>,
    list: *mut T,
    items: Vec<P>,
    element: fn(P) -> T,
) -> Answer {
    let count = count.ok_or(code::INVALID_ARGUMENT)?;
    let room = std::mem::replace(count, items.len() as c_uint) as usize;
    if room < items.len() {
        return Err(code::INSUFFICIENT_SIZE);
    }
    if list.is_null() && room > 0 {
        return Err(code::INVALID_ARGUMENT);
    }
    for (index, item) in items.into_iter().enumerate() {
        // SAFETY: the list has `room` elements, and `index` is below that. It is not null, because
        // `room` is not 0 here.
        unsafe { list.add(index).write(element(item)) };
    }
    Ok(())
}
