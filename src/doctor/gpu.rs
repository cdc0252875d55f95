//! Checks of the card through NVML, and of all that one look at the services shows.

use super::check::{Check, CheckId};
use super::{Examined, memory, services};
use crate::config::Selector;
use crate::model::{Device, Manager, Pid, Source, Vram};
use crate::world::nvml::{Fault, Layer, Reader};
use crate::world::ports::Listeners;
use crate::world::process::{self, ProcessTable};

/// Least memory in MB that is reported if no process accounts for it. The driver itself takes some
/// hundreds.
const UNLISTED: u64 = 1024;

pub fn examine(case: &Examined) -> Vec<Check> {
    let (Some(config), Some(looked)) = (&case.config, case.looked()) else {
        let mut reader = Reader::open(&case.gpu);
        // If there is no reading, the reader remembers why.
        let vram = reader.read().unwrap_or_default();
        let mut checks = judge(case, &vram, reader.fault());
        checks.extend(
            [CheckId::VramService, CheckId::ServiceState]
                .map(|id| Check::skip(id, super::UNCONFIGURED)),
        );
        return checks;
    };
    let snapshot = match &looked.snapshot {
        Ok(snapshot) => snapshot,
        Err(failure) => return vec![Check::failure(CheckId::ServiceState, failure, "try again")],
    };
    let mut checks = judge(case, &snapshot.vram, looked.fault.as_ref());
    checks.extend(memory::judge(config, snapshot));
    checks.extend(services::judge(config, snapshot, &Listeners::read(), &ProcessTable::read()));
    checks
}

fn judge(case: &Examined, vram: &Vram, fault: Option<&Fault>) -> Vec<Check> {
    let device = vram.device.as_ref();
    let missing = vram.no_such_gpu.then(|| {
        let what = vram.error.as_deref().unwrap_or_default();
        Fault::new(Layer::Device, what, "name one of those by gpu.index, gpu.uuid or --gpu")
    });
    let fault = fault.or(missing.as_ref());
    let library = case.gpu.library.as_ref().map(|path| path.display().to_string());
    let driver = device.and_then(|device| device.driver_version.as_deref());
    let card = || {
        let device = device?;
        let name = device.name.as_deref().unwrap_or("name unknown");
        Some(format!("GPU {}, {name}, {}", device.index, vram.total?))
    };
    let found = [
        (
            Layer::Library,
            CheckId::NvmlLibrary,
            library.unwrap_or_else(|| "libnvidia-ml.so.1".to_owned()),
        ),
        (
            Layer::Driver,
            CheckId::NvmlDriver,
            driver.map_or("it answers".to_owned(), |v| format!("version {v}")),
        ),
        (Layer::Device, CheckId::NvmlDevice, card().unwrap_or_default()),
    ];
    let mut checks: Vec<Check> = found
        .into_iter()
        .map(|(layer, id, found)| match fault {
            Some(fault) if fault.layer == layer => Check::fail(id, &fault.what, remedy(fault)),
            Some(fault) if fault.layer < layer => Check::skip(id, "NVML cannot be queried"),
            _ => Check::pass(id, found),
        })
        .collect();
    checks.push(size(case, vram));
    checks.extend(processes(vram));
    checks.extend(environments(case, device));
    checks
}

/// Returns the remedy for a fault, with what usually helps besides.
fn remedy(fault: &Fault) -> String {
    let more = match fault.layer {
        Layer::Library => {
            "; where it is installed and not found, add its folder to LD_LIBRARY_PATH (Debian: package libnvidia-ml1; Ubuntu: libnvidia-compute-…)"
        }
        _ if fault.is_denied => ": sudo usermod -aG video $USER",
        _ => "",
    };
    format!("{}{more}", fault.remedy)
}

fn size(case: &Examined, vram: &Vram) -> Check {
    let id = CheckId::NvmlSize;
    match (vram.total.filter(|_| vram.source == Source::Nvml), case.gpu.total) {
        (None, _) => Check::skip(id, "the card cannot be measured"),
        (Some(measured), None) => {
            Check::pass(id, format!("{measured}; gpu.total_mb, the fallback, is not set"))
        }
        // The driver's figure differs a little from the nominal size of a card.
        (Some(measured), Some(told)) if measured.0.abs_diff(told.0) * 20 > measured.0 => {
            Check::warn(
                id,
                format!("gpu.total_mb says {told}, but the card has {measured}"),
                format!("set gpu.total_mb = {}: plans rely on it when NVML fails", measured.0),
            )
        }
        (Some(measured), Some(_)) => Check::pass(id, format!("{measured}, as gpu.total_mb says")),
    }
}

fn processes(vram: &Vram) -> [Check; 2] {
    let (list, namespace) = (CheckId::NvmlProcesses, CheckId::NvmlNamespace);
    if vram.source != Source::Nvml {
        return [list, namespace].map(|id| Check::skip(id, "the card cannot be measured"));
    }
    let Some(processes) = &vram.processes else {
        let why = vram.error.as_deref().unwrap_or("the driver does not list them");
        let fix = "run gpuctl as root or on the host; without the list it cannot tell which service holds what";
        return [Check::warn(list, why, fix), Check::skip(namespace, "no processes are listed")];
    };
    let listed = match processes.iter().any(|process| process.memory.is_none()) {
        true => Check::warn(
            list,
            "the driver lists processes but does not say what each holds",
            "update the driver; under WSL and on virtual GPUs there is no such figure, and gpuctl relies on those of the whole card",
        ),
        false => Check::pass(list, format!("{} with memory", processes.len())),
    };
    let is_elsewhere = |pid: &Pid| process::Id::of(*pid).is_none();
    let elsewhere: Vec<Pid> =
        processes.iter().map(|process| process.pid).filter(is_elsewhere).collect();
    let known: Option<u64> = processes.iter().map(|process| Some(process.memory?.0)).sum();
    let unlisted = vram.used.zip(known).map_or(0, |(used, known)| used.0.saturating_sub(known));
    let fix = "run gpuctl on the host, or its container with --pid=host: it has to see the processes of the services";
    let seen = match (elsewhere.first(), unlisted) {
        (Some(pid), _) => Check::warn(
            namespace,
            format!("process {pid} holds GPU memory and is not in this PID namespace"),
            fix,
        ),
        (None, UNLISTED..) => Check::warn(
            namespace,
            format!("{unlisted} MB are in use by processes that the driver does not list here"),
            fix,
        ),
        (None, _) => Check::pass(namespace, "every process that holds memory is visible"),
    };
    [listed, seen]
}

/// Checks whether `CUDA_VISIBLE_DEVICES` names the card that gpuctl watches, in gpuctl's
/// environment and in those of native services. NVML, and so gpuctl, ignores this variable.
fn environments(case: &Examined, device: Option<&Device>) -> Vec<Check> {
    let selector = &case.gpu.selector;
    let judge = |value: &str, whose: &str, fix: String| match names_card(value, selector, device) {
        false => Check::warn(
            CheckId::CudaVisibleDevices,
            format!(
                "CUDA_VISIBLE_DEVICES={value} in {whose} is a different card from GPU {selector}, which gpuctl watches"
            ),
            fix,
        ),
        true => Check::pass(CheckId::CudaVisibleDevices, format!("{value} in {whose}")),
    };
    let mut checks = vec![match &case.visible_devices {
        None => Check::pass(CheckId::CudaVisibleDevices, "not set in gpuctl's environment"),
        Some(value) => judge(
            value,
            "gpuctl's environment, which native services inherit,",
            "unset it, or set gpu.index (or --gpu) to that card".to_owned(),
        ),
    }];
    for service in case.config.iter().flat_map(|config| &config.services) {
        let Manager::Native(native) = &service.manager else { continue };
        if let Some(value) = native.env.get("CUDA_VISIBLE_DEVICES") {
            let name = &service.name;
            let fix = format!(
                "correct services.{name}.env or gpu.index; a service on another card needs a configuration of its own"
            );
            checks.push(judge(value, "its env", fix).of(name));
        }
    }
    checks
}

/// Reports whether a list of indices and UUIDs, separated by commas, names the card that is meant.
/// A UUID may be cut short. If the list cannot be compared with the card, the answer is yes.
pub fn names_card(list: &str, selector: &Selector, device: Option<&Device>) -> bool {
    let index = match selector {
        Selector::Index(index) => Some(*index),
        Selector::Uuid(_) => device.map(|device| device.index),
    };
    let uuid = match selector {
        Selector::Uuid(uuid) => Some(uuid.as_str()),
        Selector::Index(_) => device.and_then(|device| device.uuid.as_deref()),
    };
    list.split(',').map(str::trim).any(|entry| match entry.parse::<i64>() {
        Ok(number) => index.is_none_or(|index| i64::from(index) == number),
        // "MIG-…" names a part of a card, which cannot be compared with NVML's index.
        Err(_) if entry.starts_with("MIG-") || entry == "all" => true,
        Err(_) => !entry.is_empty() && uuid.is_none_or(|uuid| uuid.starts_with(entry)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cards_names_one_by_index_by_uuid_or_by_the_beginning_of_one() {
        let uuid = Some("GPU-aabb".to_owned());
        let device = Device { index: 1, name: None, uuid, driver_version: None };
        let named = |list: &str| names_card(list, &Selector::Index(1), Some(&device));
        for list in ["1", "0,1", " 1 ", "GPU-aabb", "GPU-aa", "all", "MIG-x"] {
            assert!(named(list), "{list}");
        }
        for list in ["0", "-1", "", "GPU-bb", "NoDevFiles", "10"] {
            assert!(!named(list), "{list}");
        }
        assert!(names_card("0", &Selector::Uuid("GPU-x".to_owned()), None), "nobody can tell");
        assert!(!names_card("1", &Selector::Index(0), None));
    }
}
