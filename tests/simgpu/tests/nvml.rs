//! What a client of NVML sees through nvml-wrapper, which gpuctl uses too. The tests run one at a
//! time, because the library finds its folder by an environment variable, and all tests share one
//! environment.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;
use std::{fs, thread};

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde_json::{Value, json};
use simgpu::{Card, ClaimError, Kind};
use tempfile::TempDir;

const MB: u64 = 1 << 20;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Machine {
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    fn new(card: Value) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        // SAFETY: the tests take turns, and nothing else in this process reads the environment
        // meanwhile.
        unsafe { std::env::set_var("SIMGPU_DIR", dir.path()) };
        let machine = Self { dir, _turn: turn };
        machine.describe(card);
        machine
    }

    fn describe(&self, card: Value) {
        self.card().describe(&card).unwrap();
    }

    fn card(&self) -> Card {
        Card::open(self.dir.path()).unwrap()
    }

    fn nvml(&self) -> Nvml {
        start_nvml().unwrap()
    }

    /// Starts a process that holds `mb` MB, and waits until it does.
    fn holder(&self, mb: u64) -> Holder {
        let mut process = Command::new(built("examples/hold"))
            .arg(mb.to_string())
            .env("SIMGPU_DIR", self.dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = process.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut String::new()).unwrap();
        Holder(process)
    }
}

struct Holder(Child);

impl Holder {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start_nvml() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(built("deps/libsimgpu.so").as_os_str()).init()
}

/// Returns the path of something that Cargo has built. `path` is relative to the folder above that
/// of this test program.
fn built(path: &str) -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().with_file_name(path)
}

/// Returns the PIDs of the compute processes, each with the MB that it holds, or `u64::MAX` if NVML
/// cannot tell.
fn compute(device: &Device) -> Vec<(u32, u64)> {
    let used = |memory| match memory {
        UsedGpuMemory::Used(bytes) => bytes / MB,
        UsedGpuMemory::Unavailable => u64::MAX,
    };
    let processes = device.running_compute_processes().unwrap();
    processes.into_iter().map(|process| (process.pid, used(process.used_gpu_memory))).collect()
}

#[test]
fn an_empty_description_is_one_rtx_4090() {
    let machine = Machine::new(json!({}));
    let nvml = machine.nvml();
    let device = nvml.device_by_index(0).unwrap();
    let memory = device.memory_info().unwrap();

    assert_eq!(nvml.device_count().unwrap(), 1);
    assert_eq!(device.name().unwrap(), "NVIDIA GeForce RTX 4090");
    assert_eq!((memory.total, memory.used, memory.free), (24576 * MB, 0, 24576 * MB));
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 45);
    assert_eq!(device.utilization_rates().unwrap().gpu, 10);
    assert_eq!(nvml.sys_driver_version().unwrap(), "570.86.15");
    assert_eq!(nvml.device_by_uuid(device.uuid().unwrap()).unwrap().index().unwrap(), 0);
    assert!(compute(&device).is_empty());
}

#[test]
fn a_missing_description_is_an_empty_one() {
    let machine = Machine::new(json!({}));
    fs::remove_file(machine.dir.path().join("card.json")).unwrap();
    assert_eq!(machine.nvml().device_count().unwrap(), 1);
}

#[test]
fn a_corrupt_description_is_an_unknown_error() {
    let machine = Machine::new(json!({}));
    fs::write(machine.dir.path().join("card.json"), "{").unwrap();
    assert!(matches!(start_nvml(), Err(NvmlError::Unknown)));
}

#[test]
fn without_a_folder_there_is_no_driver() {
    let machine = Machine::new(json!({}));
    fs::remove_dir_all(machine.dir.path()).unwrap();
    assert!(matches!(start_nvml(), Err(NvmlError::DriverNotLoaded)));
}

#[test]
fn reserved_memory_is_neither_used_nor_free() {
    let machine = Machine::new(json!({"devices": [{"total_mb": 8192, "reserved_mb": 192}]}));
    let _holder = machine.holder(3000);
    let nvml = machine.nvml();
    let memory = nvml.device_by_index(0).unwrap().memory_info().unwrap();
    assert_eq!((memory.reserved, memory.used, memory.free), (192 * MB, 3000 * MB, 5000 * MB));
}

#[test]
fn processes_are_listed_by_kind_with_all_that_each_holds() {
    let machine = Machine::new(json!({}));
    let holder = machine.holder(4000);
    let card = machine.card();
    let me = std::process::id();
    let _first = card.claim(0, 100, Kind::Compute, "me").unwrap();
    let _second = card.claim(0, 50, Kind::Compute, "me").unwrap();
    let _desktop = card.claim(0, 7, Kind::Graphics, "me").unwrap();
    let nvml = machine.nvml();
    let device = nvml.device_by_index(0).unwrap();

    let mut expected = vec![(holder.pid(), 4000), (me, 150)];
    expected.sort();
    assert_eq!(compute(&device), expected);
    assert_eq!(device.running_graphics_processes().unwrap()[0].pid, me);
    assert_eq!(device.memory_info().unwrap().used, 4157 * MB);
    assert!(nvml.sys_process_name(holder.pid(), 200).unwrap().ends_with("hold"));
}

#[test]
fn each_device_has_its_own_claims() {
    let machine = Machine::new(json!({"devices": [{"name": "first"}, {"name": "second"}]}));
    let _claim = machine.card().claim(1, 500, Kind::Compute, "me").unwrap();
    let nvml = machine.nvml();
    let used = |index| nvml.device_by_index(index).unwrap().memory_info().unwrap().used / MB;
    assert_eq!((used(0), used(1)), (0, 500));
    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
}

#[test]
fn under_wsl_the_memory_of_a_process_is_not_known() {
    let machine = Machine::new(json!({"process_memory_known": false}));
    let holder = machine.holder(4000);
    let nvml = machine.nvml();
    assert_eq!(compute(&nvml.device_by_index(0).unwrap()), [(holder.pid(), u64::MAX)]);
}

#[test]
fn a_claim_beyond_what_is_free_is_refused_and_recorded() {
    let machine = Machine::new(json!({"devices": [{"total_mb": 1000}]}));
    let card = machine.card();
    let mut claim = card.claim(0, 600, Kind::Compute, "first").unwrap();

    let Err(ClaimError::OutOfMemory(refusal)) = card.claim(0, 401, Kind::Compute, "second") else {
        panic!("it was granted");
    };
    assert_eq!((refusal.asked_mb, refusal.free_mb), (401, 400));
    assert!(matches!(claim.resize(1001), Err(ClaimError::OutOfMemory(_))));
    assert_eq!(claim.mb(), 600);

    let log = fs::read_to_string(machine.dir.path().join("oom.jsonl")).unwrap();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 2);
    assert_eq!((&events[0]["name"], &events[0]["asked_mb"]), (&json!("second"), &json!(401)));
    assert_eq!((&events[1]["name"], &events[1]["asked_mb"]), (&json!("first"), &json!(401)));
}

#[test]
fn a_claim_that_shrinks_or_ends_gives_its_memory_back() {
    let machine = Machine::new(json!({}));
    let card = machine.card();
    let mut claim = card.claim(0, 600, Kind::Compute, "me").unwrap();
    claim.resize(200).unwrap();
    assert_eq!(card.memory(0).unwrap().claimed, 200);
    drop(claim);
    assert_eq!(card.memory(0).unwrap().claimed, 0);
}

#[test]
fn many_at_once_never_get_more_than_there_is() {
    let machine = Machine::new(json!({"devices": [{"total_mb": 1000}]}));
    let card = machine.card();
    let claims = thread::scope(|scope| {
        let claim = || card.claim(0, 300, Kind::Compute, "one of many").ok();
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(claim)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(claims.len(), 3);
}

#[test]
fn the_memory_of_the_dead_is_free_at_once() {
    let machine = Machine::new(json!({}));
    let holder = machine.holder(4000);
    drop(holder);
    assert_eq!(machine.card().memory(0).unwrap().claimed, 0);
}

#[test]
fn a_reclaim_delay_keeps_the_memory_of_the_dead() {
    let machine = Machine::new(json!({"reclaim_delay_ms": 3_600_000}));
    let holder = machine.holder(4000);
    let pid = holder.pid();
    drop(holder);
    let nvml = machine.nvml();
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(compute(&device), [(pid, 4000)]);

    machine.describe(json!({"reclaim_delay_ms": 0}));
    assert!(compute(&device).is_empty());
    assert_eq!(device.memory_info().unwrap().used, 0);
}

#[test]
fn faults_come_and_go_by_function() {
    let machine = Machine::new(json!({}));
    let nvml = machine.nvml();
    let device = nvml.device_by_index(0).unwrap();

    machine.describe(json!({"faults": {"nvmlDeviceGetMemoryInfo_v2": "not_supported"}}));
    assert!(matches!(device.memory_info(), Err(NvmlError::NotSupported)));
    assert!(device.name().is_ok());

    machine.describe(json!({"faults": {"nvmlDevice*": 15}}));
    assert!(matches!(device.memory_info(), Err(NvmlError::GpuLost)));
    assert!(matches!(device.name(), Err(NvmlError::GpuLost)));

    machine.describe(json!({"faults": {"nvmlInit_v2": "lib_rm_version_mismatch"}}));
    assert!(matches!(start_nvml(), Err(NvmlError::LibRmVersionMismatch)));

    machine.describe(json!({}));
    assert!(device.memory_info().is_ok());
}

#[test]
fn a_fault_can_wait_for_a_later_call() {
    let machine = Machine::new(json!({}));
    let nvml = machine.nvml();
    // No other test calls this function.
    let fault = json!({"error": "unknown", "from_call": 2, "to_call": 3});
    machine.describe(json!({"faults": {"nvmlSystemGetNVMLVersion": fault}}));
    let works: Vec<bool> = (0..4).map(|_| nvml.sys_nvml_version().is_ok()).collect();
    assert_eq!(works, [true, false, false, true]);
}

#[test]
fn a_hung_function_answers_no_more() {
    let machine = Machine::new(json!({"faults": {"nvmlInit_v2": "hang"}}));
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || tell.send(start_nvml().is_ok()).unwrap());
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err());

    machine.describe(json!({}));
    assert!(told.recv().unwrap());
    thread.join().unwrap();
}
