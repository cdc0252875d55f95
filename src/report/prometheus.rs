//! The report of `status --prometheus`, in the text format that node_exporter's textfile collector
//! reads. A value that is not known has no sample. docs/metrics.md lists all metrics.

use super::StatusReport;
use crate::model::{Mb, Source, State};
use crate::screen::text::on_one_line;
use std::fmt::Write;

type Labels<'a> = Vec<(&'a str, &'a str)>;

#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    /// Appends a gauge with those of its samples that are known; without any, the gauge is left
    /// out.
    fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, Option<f64>)>,
    ) {
        let known = samples.into_iter().filter_map(|(labels, value)| Some((labels, value?)));
        for (index, (labels, value)) in known.enumerate() {
            if index == 0 {
                self.line(format_args!("# HELP {name} {help}"));
                self.line(format_args!("# TYPE {name} gauge"));
            }
            let labels: Vec<String> = labels
                .iter()
                .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                .collect();
            let labels =
                if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            self.line(format_args!("{name}{labels} {value}"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments) {
        // Writing to a `String` cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

fn escape(value: &str) -> String {
    on_one_line(value).replace('\\', r"\\").replace('"', "\\\"")
}

fn bytes(size: Mb) -> f64 {
    size.0 as f64 * 1024.0 * 1024.0
}

fn yes_or_no(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

/// Returns the metrics of a status. `restore_owed` says whether production has to be brought back
/// after a canary trial that was interrupted; `None` if that is not known.
pub fn text(report: &StatusReport, restore_owed: Option<bool>) -> String {
    let mut page = Exposition::default();
    gpu(&mut page, report);
    services(&mut page, report);
    lock(&mut page, report);
    page.gauge(
        "gpuctl_canary_restore_owed",
        "Whether production has to be brought back after a canary trial that was interrupted.",
        [(Vec::new(), restore_owed.map(yes_or_no))],
    );
    page.text
}

fn gpu(page: &mut Exposition, report: &StatusReport) {
    let (gpu, vram) = (&report.gpu, &report.vram);
    let is_measured = vram.source == Source::Nvml;
    page.gauge(
        "gpuctl_nvml_up",
        "Whether the card could be read; an estimate is not reported.",
        [(Vec::new(), Some(yes_or_no(is_measured)))],
    );
    let index = gpu.index.map(|index| index.to_string());
    let known = |label, value: &'_ Option<String>| value.clone().map(|value| (label, value));
    let owned: Vec<(&str, String)> =
        [known("gpu", &index), known("uuid", &gpu.uuid)].into_iter().flatten().collect();
    let labels = || owned.iter().map(|(label, value)| (*label, value.as_str())).collect::<Labels>();
    let others = || {
        let by_services =
            report.services.values().map(|service| service.used_mb).sum::<Option<Mb>>()?;
        Some(vram.used_mb?.saturating_sub(by_services))
    };
    let sizes = [
        ("total", "Memory of the card.", vram.total_mb),
        ("used", "Memory in use.", vram.used_mb),
        ("free", "Memory that is free.", vram.free_mb),
        ("available", "Free memory beside the reserve.", vram.available_mb),
        ("others", "Memory in use that belongs to no service.", others()),
    ];
    for (name, help, size) in sizes {
        let size = size.filter(|_| is_measured).map(bytes);
        page.gauge(&format!("gpuctl_gpu_memory_{name}_bytes"), help, [(labels(), size)]);
    }
    let promised = [
        ("reserve", "Memory to keep free.", vram.reserve_mb),
        (
            "committed",
            "What running services have declared, or hold where that is more.",
            vram.committed_mb,
        ),
    ];
    for (name, help, size) in promised {
        let name = format!("gpuctl_gpu_memory_{name}_bytes");
        page.gauge(&name, help, [(labels(), Some(bytes(size)))]);
    }
    page.gauge(
        "gpuctl_gpu_temperature_celsius",
        "Temperature of the card.",
        [(labels(), vram.temperature_c.map(f64::from))],
    );
    page.gauge(
        "gpuctl_gpu_utilization_ratio",
        "Share of the time in which the card was busy, 0 to 1.",
        [(labels(), vram.utilization_percent.map(|percent| f64::from(percent) / 100.0))],
    );
}

fn services(page: &mut Exposition, report: &StatusReport) {
    let states = report.services.iter().flat_map(|(name, service)| {
        State::ALL.iter().map(move |state| {
            let labels = vec![("service", name.as_str()), ("state", state.name())];
            (labels, Some(yes_or_no(service.state == *state)))
        })
    });
    page.gauge("gpuctl_service_state", "Whether the service is in this state.", states);
    type Figure = fn(&super::status::ServiceReport) -> Option<f64>;
    let figures: [(&str, &str, Figure); 8] = [
        ("memory_bytes", "Memory that the service holds.", |service| service.used_mb.map(bytes)),
        ("declared_bytes", "The most memory that the service needs, as configured.", |service| {
            Some(bytes(service.vram_mb))
        }),
        ("peak_bytes", "The most memory that the service was seen to hold.", |service| {
            service.peak_mb.map(bytes)
        }),
        ("jobs", "Jobs that the service has, running or waiting.", |service| {
            service.jobs.map(|jobs| jobs as f64)
        }),
        ("idle_seconds", "Time for which the service has not worked.", |service| {
            service.idle_s.map(|seconds| seconds as f64)
        }),
        ("priority", "Higher is kept longer.", |service| Some(service.priority as f64)),
        (
            "health_seconds",
            "How long the health check took that found the service ready.",
            |service| service.health_ms.map(|milliseconds| milliseconds / 1000.0),
        ),
        ("uptime_seconds", "Time since the service was started.", |service| {
            service.uptime_s.map(|seconds| seconds as f64)
        }),
    ];
    for (name, help, figure) in figures {
        let samples = report
            .services
            .iter()
            .map(|(service, report)| (vec![("service", service.as_str())], figure(report)));
        page.gauge(&format!("gpuctl_service_{name}"), help, samples);
    }
}

fn lock(page: &mut Exposition, report: &StatusReport) {
    let lock = &report.lock;
    let is_up = lock.error.is_none();
    let figures = [
        ("up", "Whether the GPU lock could be queried.", Some(yes_or_no(is_up))),
        (
            "held",
            "Whether somebody holds the GPU lock.",
            is_up.then(|| yes_or_no(lock.holder.is_some())),
        ),
        (
            "ttl_seconds",
            "Time until the GPU lock expires, if it is held and has an end.",
            lock.ttl.filter(|left| *left >= 0).map(|left| left as f64),
        ),
    ];
    for (name, help, value) in figures {
        page.gauge(&format!("gpuctl_lock_{name}"), help, [(Vec::new(), value)]);
    }
}
