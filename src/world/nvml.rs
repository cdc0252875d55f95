//! The card's memory and processes through NVML, read on a thread of its own: `nvmlInit` and any
//! later call can hang in the driver, and gpuctl must not hang with it.

use crate::config::{Gpu, Selector, Span};
use crate::model::{Device, GpuProcess, Mb, Pid, Source, Vram};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// The first call wakes the driver, which takes seconds on a card without persistence mode.
const LIMIT: Duration = Duration::from_secs(5);

const NAME_LENGTH: usize = 256;

/// NVML_ERROR_ARGUMENT_VERSION_MISMATCH, which the wrapper has no name for.
const VERSION_MISMATCH: u32 = 25;

/// A connection to the driver; asked as often as needed.
pub struct Reader {
    ask: Sender<()>,
    answers: Receiver<VramAnswer>,
    silent: bool,
    fault: Option<Fault>,
}

type VramAnswer = std::result::Result<Vram, Fault>;

/// Why there is no reading.
#[derive(Clone, Debug)]
pub struct Fault {
    pub layer: Layer,
    pub what: String,
    pub remedy: String,
    /// The driver answers, but not this user.
    pub is_denied: bool,
}

/// A reading goes through these, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    Library,
    Driver,
    Device,
}

impl Fault {
    pub fn new(layer: Layer, what: impl Into<String>, remedy: impl Into<String>) -> Fault {
        Fault { layer, what: what.into(), remedy: remedy.into(), is_denied: false }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.remedy)
    }
}

impl Reader {
    pub fn open(gpu: &Gpu) -> Reader {
        let (ask, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let gpu = gpu.clone();
        thread::spawn(move || serve(&gpu, &asked, &answer));
        Reader { ask, answers, silent: false, fault: None }
    }

    /// One reading; the text says why there is none.
    pub fn read(&mut self) -> std::result::Result<Vram, String> {
        let reading = self.ask();
        self.fault = reading.as_ref().err().cloned();
        reading.map_err(|fault| fault.to_string())
    }

    /// Why there was no last reading.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    fn ask(&mut self) -> VramAnswer {
        let silence = || {
            let what = format!("NVML has not answered within {}: the driver hangs", Span(LIMIT));
            Fault::new(Layer::Driver, what, "see `dmesg`")
        };
        // A late answer would be taken for that to the next question.
        self.silent = self.silent && self.answers.try_recv().is_err();
        if self.silent || self.ask.send(()).is_err() {
            return Err(silence());
        }
        match self.answers.recv_timeout(LIMIT) {
            Ok(reading) => reading,
            Err(RecvTimeoutError::Timeout) => {
                self.silent = true;
                Err(silence())
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Fault::new(Layer::Library, "the thread that reads NVML has ended", "try again"))
            }
        }
    }
}

fn serve(gpu: &Gpu, asked: &Receiver<()>, answer: &Sender<VramAnswer>) {
    let connect = || {
        let mut builder = Nvml::builder();
        if let Some(library) = &gpu.library {
            builder.lib_path(library.as_os_str());
        }
        builder.init()
    };
    let mut connection = Some(connect());
    while asked.recv().is_ok() {
        let nvml = connection.take().unwrap_or_else(connect);
        let reading = match &nvml {
            Ok(nvml) => read(nvml, &gpu.selector),
            Err(e) => Err(not_connected(e, gpu)),
        };
        // The driver may be loaded, or well again, when it is asked the next time.
        connection = reading.is_ok().then_some(nvml);
        if answer.send(reading).is_err() {
            return;
        }
    }
}

fn read(nvml: &Nvml, selector: &Selector) -> VramAnswer {
    let device = match selector {
        Selector::Index(index) => nvml.device_by_index(*index),
        Selector::Uuid(uuid) => nvml.device_by_uuid(uuid.as_str()),
    };
    let device = match (device, nvml.device_count()) {
        (Ok(device), _) => device,
        // The driver is well and knows other cards: a reading, of a card that is not there.
        (Err(NvmlError::InvalidArg | NvmlError::NotFound), Ok(count @ 1..)) => {
            let error = format!(
                "there is no GPU {selector}: the driver lists {count}; see `nvidia-smi -L`"
            );
            return Ok(Vram { no_such_gpu: true, error: Some(error), ..Vram::default() });
        }
        (Err(NvmlError::InvalidArg | NvmlError::NotFound), _) => {
            let what = format!("there is no GPU {selector}: the driver lists none");
            return Err(Fault::new(Layer::Device, what, "see `nvidia-smi`"));
        }
        (Err(e), _) => return Err(explain(&e)),
    };
    let (total, used, free) = memory(nvml, &device).map_err(|e| explain(&e))?;
    let processes = processes(nvml, &device);
    Ok(Vram {
        source: Source::Nvml,
        device: Some(Device {
            index: device.index().unwrap_or(0),
            name: device.name().ok(),
            uuid: device.uuid().ok(),
            driver_version: nvml.sys_driver_version().ok(),
        }),
        total: Some(total),
        used: Some(used),
        free: Some(free),
        error: processes
            .as_ref()
            .err()
            .map(|e| format!("the GPU's processes cannot be listed: {}", explain(e))),
        processes: processes.ok(),
        temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
        utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        no_such_gpu: false,
    })
}

/// Total, used and free, each as the driver gives it: what it reserves for itself is neither used
/// nor free, so that `total - used` would be too much.
fn memory(nvml: &Nvml, device: &nvml_wrapper::Device) -> Result<(Mb, Mb, Mb), NvmlError> {
    let sizes = |total, used, free| (Mb::of_bytes(total), Mb::of_bytes(used), Mb::of_bytes(free));
    match device.memory_info() {
        Ok(info) => Ok(sizes(info.total, info.used, info.free)),
        // Drivers before 510 have only the first version of this call, and the wrapper only the second.
        Err(
            NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::NotSupported
            | NvmlError::UnexpectedVariant(VERSION_MISMATCH),
        ) => {
            let Ok(first_version) = nvml.lib().nvmlDeviceGetMemoryInfo.as_ref() else {
                return Err(NvmlError::FunctionNotFound);
            };
            // SAFETY: the handle is the library's own, and zeroes are a valid value of the plain
            // C struct that the call fills.
            #[expect(unsafe_code, reason = "a call that the wrapper does not offer")]
            let (code, info) = unsafe {
                let mut info = std::mem::zeroed();
                let code = first_version(device.handle(), &mut info);
                (code, info)
            };
            nvml_wrapper::error::nvml_try(code)?;
            Ok(sizes(info.total, info.used, info.free))
        }
        Err(e) => Err(e),
    }
}

/// Compute and graphics processes; one that is both is listed once.
fn processes(nvml: &Nvml, device: &nvml_wrapper::Device) -> Result<Vec<GpuProcess>, NvmlError> {
    let compute = device.running_compute_processes().or_else(|e| match e {
        NvmlError::FailedToLoadSymbol(_) => device.running_compute_processes_v2(),
        e => Err(e),
    })?;
    // A card without graphics contexts may not support the second list.
    let graphics = device
        .running_graphics_processes()
        .or_else(|_| device.running_graphics_processes_v2())
        .unwrap_or_default();
    let mut memory: BTreeMap<Pid, Option<Mb>> = BTreeMap::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in compute.into_iter().chain(graphics) {
        let used = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(Mb::of_bytes(bytes)),
            UsedGpuMemory::Unavailable => None,
        };
        let entry = memory.entry(pid as Pid).or_insert(used);
        *entry = (*entry).max(used);
    }
    Ok(memory
        .into_iter()
        .map(|(pid, memory)| GpuProcess {
            pid,
            name: process_name(nvml, pid),
            command: None,
            memory,
            service: None,
            is_ending: false,
        })
        .collect())
}

fn process_name(nvml: &Nvml, pid: Pid) -> String {
    match nvml.sys_process_name(pid as u32, NAME_LENGTH) {
        Ok(name) if !name.is_empty() => name,
        _ => format!("pid_{pid}"),
    }
}

fn not_connected(error: &NvmlError, gpu: &Gpu) -> Fault {
    match (error, &gpu.library) {
        (NvmlError::LibloadingError(why), Some(_)) => Fault::new(
            Layer::Library,
            format!("gpu.nvml_library cannot be loaded: {why}"),
            "correct it, or leave it out to use the driver's own",
        ),
        _ => explain(error),
    }
}

/// Returns what an NVML error means here and what to do about it.
fn explain(error: &NvmlError) -> Fault {
    let layer = match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Layer::Library,
        NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::NotSupported => Layer::Device,
        _ => Layer::Driver,
    };
    let (what, remedy) = match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => (
            "the NVML library (libnvidia-ml.so.1) cannot be loaded".to_owned(),
            "install the NVIDIA driver, or set gpu.nvml_library",
        ),
        NvmlError::LibRmVersionMismatch => (
            "the NVML library does not fit the loaded driver".to_owned(),
            "the driver was updated while it was running; reboot, or reload the kernel module",
        ),
        NvmlError::DriverNotLoaded => {
            ("the NVIDIA driver is not loaded".to_owned(), "`modprobe nvidia`, or see `dmesg`")
        }
        NvmlError::NoPermission => (
            "the driver denies access".to_owned(),
            "add your user to the group video (and log in again)",
        ),
        NvmlError::GpuLost => {
            ("the GPU is lost: it fell off the bus".to_owned(), "reset it or reboot; see `dmesg`")
        }
        NvmlError::ResetRequired => {
            ("the GPU needs a reset".to_owned(), "`nvidia-smi --gpu-reset`, or reboot")
        }
        NvmlError::NotSupported => (
            "the GPU does not support reading its memory".to_owned(),
            "set gpu.total_mb for an estimate",
        ),
        other => (format!("NVML: {other}"), "see `nvidia-smi` and `dmesg`"),
    };
    let is_denied = matches!(error, NvmlError::NoPermission);
    Fault { is_denied, ..Fault::new(layer, what, remedy) }
}
