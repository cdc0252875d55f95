//! The card's memory and processes, read through NVML. This happens on a thread of its own:
//! `nvmlInit` and any later call can hang in the driver, and gpuctl must not hang with it.

use crate::config::{Gpu, Selector, Span};
use crate::model::{Device, GpuProcess, Mb, Pid, Source, Vram};
use jiff::Timestamp;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// Longest time that a reading may take. The first one wakes the driver, which takes seconds on a
/// card without persistence mode.
const LIMIT: Duration = Duration::from_secs(5);

const NAME_LENGTH: usize = 256;

/// NVML's error code `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`, for which the wrapper has no name.
const VERSION_MISMATCH: u32 = 25;

/// A connection to the driver, which can be used for any number of readings.
pub struct Reader {
    ask: Sender<UseSince>,
    answers: Receiver<VramAnswer>,
    silent: bool,
    fault: Option<Fault>,
}

/// Time since which a reading also reports which processes have worked, along with the most memory
/// that each has held. `None` leaves both out.
type UseSince = Option<Timestamp>;

type VramAnswer = std::result::Result<Vram, Fault>;

/// Reason why a reading failed.
#[derive(Clone, Debug)]
pub struct Fault {
    pub layer: Layer,
    pub what: String,
    pub remedy: String,
    /// Whether the driver answers, but denies access to this user.
    pub is_denied: bool,
}

/// Layers that a reading goes through, in this order.
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
    /// Begins to connect to the driver, on a thread of its own, and returns at once.
    pub fn open(gpu: &Gpu) -> Reader {
        let (ask, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let gpu = gpu.clone();
        thread::spawn(move || serve(&gpu, &asked, &answer));
        Reader { ask, answers, silent: false, fault: None }
    }

    /// Reads the card once. An error is a text that says why there is no reading.
    pub fn read(&mut self) -> std::result::Result<Vram, String> {
        self.read_as(None)
    }

    /// Reads the card once, including which processes have worked since the driver's sample of the
    /// time `since`, and the most memory that each process has held, as far as the driver knows.
    pub fn read_use(&mut self, since: Timestamp) -> std::result::Result<Vram, String> {
        self.read_as(Some(since))
    }

    fn read_as(&mut self, wanted: UseSince) -> std::result::Result<Vram, String> {
        let reading = self.ask(wanted);
        self.fault = reading.as_ref().err().cloned();
        reading.map_err(|fault| fault.to_string())
    }

    /// Returns why the last reading failed, or `None` if it succeeded.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    fn ask(&mut self, wanted: UseSince) -> VramAnswer {
        let silence = || {
            let what = format!("NVML has not answered within {}: the driver hangs", Span(LIMIT));
            Fault::new(Layer::Driver, what, "see `dmesg`")
        };
        // A late answer would otherwise be taken for the answer to the next question.
        self.silent = self.silent && self.answers.try_recv().is_err();
        if self.silent || self.ask.send(wanted).is_err() {
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

fn serve(gpu: &Gpu, asked: &Receiver<UseSince>, answer: &Sender<VramAnswer>) {
    let connect = || {
        let mut builder = Nvml::builder();
        if let Some(library) = &gpu.library {
            builder.lib_path(library.as_os_str());
        }
        builder.init()
    };
    let mut connection = Some(connect());
    while let Ok(wanted) = asked.recv() {
        let nvml = connection.take().unwrap_or_else(connect);
        let reading = match &nvml {
            Ok(nvml) => read(nvml, &gpu.selector, wanted),
            Err(e) => Err(not_connected(e, gpu)),
        };
        // A failed connection is made anew: the driver may be loaded, or well again, when it is
        // asked the next time.
        connection = reading.is_ok().then_some(nvml);
        if answer.send(reading).is_err() {
            return;
        }
    }
}

fn read(nvml: &Nvml, selector: &Selector, wanted: UseSince) -> VramAnswer {
    let device = match selector {
        Selector::Index(index) => nvml.device_by_index(*index),
        Selector::Uuid(uuid) => nvml.device_by_uuid(uuid.as_str()),
    };
    let device = match device {
        Ok(device) => device,
        Err(NvmlError::InvalidArg | NvmlError::NotFound) => return no_such_gpu(nvml, selector),
        Err(e) => return Err(explain(&e)),
    };
    let (total, used, free) = memory(nvml, &device).map_err(|e| explain(&e))?;
    let mut processes = processes(nvml, &device);
    let mut sampled = None;
    if let (Some(since), Ok(processes)) = (wanted, &mut processes) {
        sampled = note_work(&device, processes, since);
        note_peaks(&device, processes);
    }
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
        sampled,
        no_such_gpu: false,
    })
}

/// Returns the reading of a card that the driver does not know. If the driver is well and lists
/// other cards, the card is missing; if it lists none, the reading has failed.
fn no_such_gpu(nvml: &Nvml, selector: &Selector) -> VramAnswer {
    match nvml.device_count() {
        Ok(count @ 1..) => {
            let error = format!(
                "there is no GPU {selector}: the driver lists {count}; see `nvidia-smi -L`"
            );
            Ok(Vram { no_such_gpu: true, error: Some(error), ..Vram::default() })
        }
        _ => {
            let what = format!("there is no GPU {selector}: the driver lists none");
            Err(Fault::new(Layer::Device, what, "see `nvidia-smi`"))
        }
    }
}

/// Notes for each process whether it has worked since the time `since`. Returns the time of the
/// latest sample that shows work, or `since` if none does, or `None` if the driver does not report
/// which processes work.
fn note_work(
    device: &nvml_wrapper::Device,
    processes: &mut [GpuProcess],
    since: Timestamp,
) -> Option<Timestamp> {
    let samples = match device.process_utilization_stats(since.as_microsecond() as u64) {
        Ok(samples) => samples,
        // No process has worked.
        Err(NvmlError::NotFound) => Vec::new(),
        Err(_) => return None,
    };
    // The driver reports microseconds since the epoch. A value that is no time counts as long ago.
    let at = |sample: &ProcessUtilizationSample| {
        Timestamp::from_microsecond(sample.timestamp as i64).unwrap_or_default()
    };
    // Around processes that have died, drivers report figures that are impossible.
    let is_sound = |sample: &&ProcessUtilizationSample| {
        let shares = [sample.sm_util, sample.mem_util, sample.enc_util, sample.dec_util];
        let worked = shares.iter().any(|share| *share > 0);
        at(sample) > since && worked && shares.iter().all(|share| *share <= 100)
    };
    let samples: Vec<_> = samples.iter().filter(is_sound).collect();
    for process in processes {
        process.works = Some(samples.iter().any(|sample| sample.pid as Pid == process.pid));
    }
    Some(samples.iter().map(|sample| at(sample)).max().unwrap_or(since))
}

/// Notes the most memory that each process has held, if the driver's accounting mode is on.
fn note_peaks(device: &nvml_wrapper::Device, processes: &mut [GpuProcess]) {
    if !matches!(device.is_accounting_enabled(), Ok(true)) {
        return;
    }
    for process in processes {
        let stats = device.accounting_stats_for(process.pid as u32);
        process.peak = stats.ok().and_then(|stats| stats.max_memory_usage).map(Mb::of_bytes);
    }
}

/// Returns the total, used and free memory, each as the driver reports it. Memory that the driver
/// reserves for itself is neither used nor free, so that `total - used` would be more than what is
/// free.
fn memory(nvml: &Nvml, device: &nvml_wrapper::Device) -> Result<(Mb, Mb, Mb), NvmlError> {
    let sizes = |total, used, free| (Mb::of_bytes(total), Mb::of_bytes(used), Mb::of_bytes(free));
    match device.memory_info() {
        Ok(info) => Ok(sizes(info.total, info.used, info.free)),
        // Drivers before 510 have only the first version of this call, and the wrapper has only the
        // second.
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

/// Returns the compute and graphics processes on the card. A process that is both is listed once.
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
            works: None,
            peak: None,
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

/// Returns the fault that an NVML error stands for, with what to do about it.
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
