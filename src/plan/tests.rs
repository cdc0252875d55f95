//! Tests plans and refusals in tables: what is on the seeds' box, a card of 24576 MB with a desktop
//! of 800 MB, against what is decided.

use super::*;
use crate::exit::Code;
use crate::model::{GpuProcess, Managed, Running, Vram};

const BOX: &str = r#"
    [services.comfyui]
    type = "native"
    start = "comfy"
    vram_mb = 20000
    priority = 100
    phases = [4]
    [services.cosyvoice]
    type = "docker"
    container = "cosyvoice"
    vram_mb = 4000
    priority = 50
    phases = [3]
    [services.vidi]
    type = "native"
    start = "vidi"
    vram_mb = 4000
    priority = 40
    phases = [2]
    [services.ollama]
    type = "docker"
    container = "ollama"
    vram_mb = 18000
    priority = 10
    [phases]
    1 = "crawl"
"#;

/// Returns the configuration of the box, in which the service of this priority unloads.
fn unloading(priority: &str, api: &str) -> String {
    let line = format!("priority = {priority}\n");
    let keys = format!("evict = \"unload\"\napi = \"{api}\"\nurl = \"http://localhost:1\"\n");
    BOX.replace(&line, &format!("{line}{keys}"))
}

/// A world in which services hold what the test says, and a desktop holds 800 MB.
struct Scenario {
    config: Config,
    snapshot: Snapshot,
}

fn world(config: &str) -> Scenario {
    let config = Config::of_text(config).expect("the test's configuration is valid");
    let services = config.services.iter().map(|service| Observed {
        name: service.name.clone(),
        presence: Presence::Down(None),
        state: State::Stopped,
        detail: None,
        health: None,
        answered_by: None,
        used: Some(Mb(0)),
        jobs: None,
        jobs_unknown: None,
        works_silently: false,
        peak: None,
        kept: None,
        has_unloaded_before: false,
        idle: None,
        unproven: Vec::new(),
    });
    let desktop = GpuProcess {
        pid: 7,
        name: "Xorg".to_owned(),
        command: None,
        memory: Some(Mb(800)),
        service: None,
        is_ending: false,
        works: None,
        peak: None,
    };
    let vram = Vram {
        source: Source::Nvml,
        total: Some(Mb(24576)),
        used: Some(Mb(800)),
        free: Some(Mb(24576 - 800)),
        processes: Some(vec![desktop]),
        ..Vram::default()
    };
    Scenario {
        snapshot: Snapshot { vram, services: services.collect(), managed: Vec::new() },
        config,
    }
}

impl Scenario {
    fn service(&mut self, name: &str) -> &mut Observed {
        let found = self.snapshot.services.iter_mut().find(|service| service.name == name);
        found.expect("the test names configured services")
    }

    /// Puts a service up in this state, holding `used` MB.
    fn with(mut self, name: &str, state: State, used: u64) -> Scenario {
        let service = self.service(name);
        service.presence = Presence::Up(Running::default());
        service.state = state;
        service.used = Some(Mb(used));
        self.snapshot.vram.used = self.snapshot.vram.used.map(|sum| sum + Mb(used));
        self.snapshot.vram.free = self.snapshot.vram.free.map(|free| free.saturating_sub(Mb(used)));
        self
    }

    fn ready(self, name: &str, used: u64) -> Scenario {
        self.with(name, State::Ready, used)
    }

    fn without_manager(mut self, name: &str) -> Scenario {
        let service = self.service(name);
        service.presence = Presence::Unknown(Failure::new(Code::Unavailable, "docker is down"));
        service.state = State::Unknown;
        service.used = None;
        self
    }

    /// Makes the container of `name` depend on that of `on`.
    fn depending(mut self, name: &str, on: &str) -> Scenario {
        let services = self.snapshot.services.len();
        self.snapshot.managed.resize_with(services, Managed::default);
        let at = self.snapshot.services.iter().position(|service| service.name == name);
        let managed = &mut self.snapshot.managed[at.expect("the test names configured services")];
        managed.needs.push(on.to_owned());
        self
    }

    /// Takes NVML away, so that the sizes are estimates from `total`.
    fn without_nvml(mut self, total: Option<u64>) -> Scenario {
        let declared = |observed: &&Observed| observed.is_alive();
        let names: Vec<&str> =
            self.snapshot.services.iter().filter(declared).map(|s| s.name.as_str()).collect();
        let services = self.config.services.iter();
        let used: Mb = services.filter(|s| names.contains(&s.name.as_str())).map(|s| s.vram).sum();
        self.snapshot.vram = Vram {
            total: total.map(Mb),
            used: total.map(|_| used),
            free: total.map(|total| Mb(total).saturating_sub(used)),
            error: Some("no driver".to_owned()),
            ..Vram::default()
        };
        self.snapshot.services.iter_mut().for_each(|service| service.used = None);
        self
    }

    fn prepare(&self, phase: u32) -> Result<Plan> {
        prepare_phase(&self.config, &self.snapshot, phase, false)
    }

    fn prepare_lazily(&self, phase: u32) -> Result<Plan> {
        prepare_phase(&self.config, &self.snapshot, phase, true)
    }

    fn start(&self, name: &str) -> Result<Plan> {
        let service = self.config.service(name).expect("the test names configured services");
        start(&self.config, &self.snapshot, service, true)
    }
}

/// Writes a plan in one line: `-stopped ~unloaded +started =kept`.
fn short(plan: Result<Plan>) -> String {
    match plan {
        Err(refusal) => format!("refused {}", refusal.code.status()),
        Ok(plan) => {
            let evicted = plan.evict.iter().map(|eviction| match eviction.how {
                EvictHow::Stop => format!("-{}", eviction.service),
                EvictHow::Kill => format!("!{}", eviction.service),
                EvictHow::Unload => format!("~{}", eviction.service),
            });
            let started = plan.start.iter().map(|start| match start.how {
                StartHow::Start => format!("+{}", start.service),
                StartHow::Await => format!("…{}", start.service),
                StartHow::Wake => format!("^{}", start.service),
            });
            let kept = plan.kept.iter().map(|name| format!("={name}"));
            evicted.chain(started).chain(kept).collect::<Vec<_>>().join(" ")
        }
    }
}

#[test]
fn a_phase_stops_eagerly_what_it_does_not_need_though_it_would_fit() {
    assert_eq!(short(world(BOX).prepare(2)), "+vidi");
    assert_eq!(short(world(BOX).ready("vidi", 4000).prepare(3)), "-vidi +cosyvoice");
    assert_eq!(short(world(BOX).ready("cosyvoice", 4000).prepare(4)), "-cosyvoice +comfyui");
}

#[test]
fn a_phase_that_is_prepared_needs_nothing() {
    assert_eq!(short(world(BOX).ready("vidi", 4000).prepare(2)), "=vidi");
}

#[test]
fn a_phase_that_needs_nothing_releases_everything() {
    let world = world(BOX).ready("comfyui", 600).ready("ollama", 0);
    assert_eq!(short(world.prepare(1)), "-comfyui -ollama");
}

#[test]
fn a_lazy_phase_stops_only_what_is_in_the_way_lowest_priority_first() {
    let both = || world(BOX).ready("vidi", 4000).ready("ollama", 10000);
    assert_eq!(short(both().prepare_lazily(3)), "-ollama +cosyvoice =vidi");
    assert_eq!(short(world(BOX).ready("vidi", 4000).prepare_lazily(3)), "+cosyvoice =vidi");
    assert_eq!(short(both().prepare_lazily(4)), "-vidi -ollama +comfyui");
}

#[test]
fn nobody_is_stopped_on_whom_one_depends_that_stays() {
    // Ollama alone would be enough, and has the lowest priority.
    let both = || world(BOX).ready("vidi", 4000).ready("ollama", 10000).depending("vidi", "ollama");
    assert_eq!(short(both().prepare_lazily(3)), "-vidi -ollama +cosyvoice");
    assert_eq!(short(both().start("cosyvoice")), "-vidi -ollama +cosyvoice");
    // Vidi, which depends on Ollama, has a higher priority than the service to be started.
    let above = BOX.replace("priority = 40", "priority = 60");
    let above = world(&above).ready("vidi", 4000).ready("ollama", 10000);
    assert_eq!(short(above.depending("vidi", "ollama").start("cosyvoice")), "refused 3");
    // A dependent service that is down does not mind.
    let down = world(BOX).ready("ollama", 18000).depending("vidi", "ollama");
    assert_eq!(short(down.prepare_lazily(4)), "-ollama +comfyui");
    // A dependent service does not mind an unload either, because Ollama stays up.
    let unloads = unloading("10", "ollama");
    let unloads = world(&unloads).ready("vidi", 4000).ready("ollama", 16000);
    let plan = unloads.depending("vidi", "ollama").prepare_lazily(3);
    assert_eq!(short(plan), "~ollama +cosyvoice =vidi");
    // A dependent that goes along is stopped, and not a second time if it goes anyway.
    let unloads = unloading("40", "vllm");
    let plan = world(&unloads).ready("vidi", 4000).ready("ollama", 10000);
    let plan = plan.depending("vidi", "ollama").prepare_lazily(4);
    assert_eq!(short(plan), "-vidi -ollama +comfyui");
    let larger = unloads.replace("vram_mb = 20000", "vram_mb = 22500");
    let asleep = world(&larger).ready("cosyvoice", 4000).ready("vidi", 600);
    let plan = asleep.depending("cosyvoice", "vidi").prepare(4);
    assert_eq!(short(plan), "-cosyvoice -vidi +comfyui");
}

#[test]
fn an_idle_service_commits_what_it_declares() {
    // ComfyUI holds 600 MB and will take 20000 at its next job.
    assert_eq!(short(world(BOX).ready("comfyui", 600).start("cosyvoice")), "refused 3");
}

#[test]
fn a_start_preempts_strictly_lower_priorities_only() {
    assert_eq!(short(world(BOX).ready("cosyvoice", 4000).start("comfyui")), "-cosyvoice +comfyui");
    assert_eq!(short(world(BOX).ready("comfyui", 20000).start("cosyvoice")), "refused 3");
    let equal = BOX.replace("priority = 50", "priority = 100");
    assert_eq!(short(world(&equal).ready("cosyvoice", 4000).start("comfyui")), "refused 3");
}

#[test]
fn a_refusal_names_the_blockers_with_their_sizes() {
    let refusal = world(BOX).ready("comfyui", 600).start("vidi").expect_err("it does not fit");
    assert!(refusal.message.contains("comfyui (priority 100, 20000 MB)"), "{refusal}");
    assert!(refusal.message.contains("process 7 (Xorg, 800 MB)"), "{refusal}");
    assert_eq!(refusal.details["needed_mb"], 4000);
    assert_eq!(refusal.details["available_mb"], 24576 - 800 - 1024 - 20000);
    assert_eq!(refusal.details["blockers"][0]["service"], "comfyui");
}

#[test]
fn a_victim_that_is_not_needed_after_all_is_reprieved() {
    // By priority alone a and b would go; without b there is room even if a stays.
    let config = |sizes: [u64; 3]| {
        let entry = |(name, size, priority): (&str, u64, u64)| {
            format!(
                "[services.{name}]\ntype = \"native\"\nstart = \"x\"\nvram_mb = {size}\npriority = {priority}\n"
            )
        };
        [("a", sizes[0], 1), ("b", sizes[1], 2), ("c", sizes[2], 3)].map(entry).concat()
    };
    let small_first = world(&config([2000, 12000, 12000])).ready("a", 2000).ready("b", 12000);
    assert_eq!(short(small_first.start("c")), "-b +c =a");
    let both_needed = world(&config([8000, 12000, 20000])).ready("a", 8000).ready("b", 12000);
    assert_eq!(short(both_needed.start("c")), "-a -b +c");
}

#[test]
fn a_service_that_unloads_commits_what_it_holds_and_is_asked_instead_of_stopped() {
    let soft = unloading("10", "ollama");
    assert_eq!(short(world(&soft).ready("ollama", 0).start("comfyui")), "+comfyui =ollama");
    assert_eq!(short(world(&soft).ready("ollama", 9000).start("comfyui")), "~ollama +comfyui");
    assert_eq!(short(world(&soft).ready("ollama", 9000).prepare(4)), "~ollama +comfyui");
    assert_eq!(short(world(&soft).ready("ollama", 0).prepare(4)), "+comfyui =ollama");
    // What Ollama's context keeps is left to it if the phase fits beside it.
    assert_eq!(short(world(&soft).ready("ollama", 1536).prepare(4)), "+comfyui =ollama");
    let large = soft.replace("20000", "22500");
    assert_eq!(short(world(&large).ready("ollama", 1536).prepare(4)), "-ollama +comfyui");
    assert_eq!(short(world(&large).ready("ollama", 1536).start("comfyui")), "-ollama +comfyui");
    // A service that is not ready cannot be asked to unload.
    let starting = world(&soft).with("ollama", State::Starting, 9000);
    assert_eq!(short(starting.prepare(4)), "-ollama +comfyui");
}

#[test]
fn a_service_that_has_unloaded_needs_its_memory_back() {
    let soft = unloading("10", "vllm").replace("priority = 10\n", "priority = 200\n");
    let asleep = || world(&soft).ready("ollama", 600);
    assert_eq!(short(asleep().start("ollama")), "^ollama =ollama");
    assert_eq!(short(asleep().ready("comfyui", 600).start("ollama")), "-comfyui ^ollama =ollama");
    let plan = asleep().start("ollama").expect("it fits");
    assert_eq!(plan.required, Mb(18000 - 600));
    let awake = world(&soft).ready("ollama", 17000).ready("comfyui", 600);
    assert_eq!(short(awake.start("ollama")), "^ollama =ollama =comfyui");
}

#[test]
fn a_service_in_every_state_is_made_ready() {
    let cases =
        [(State::Ready, "=vidi"), (State::Starting, "…vidi"), (State::Error, "-vidi +vidi")];
    for (state, expected) in cases {
        assert_eq!(short(world(BOX).with("vidi", state, 4000).start("vidi")), expected, "{state}");
    }
    let mut paused = world(BOX).with("cosyvoice", State::Error, 4000);
    paused.service("cosyvoice").presence =
        Presence::Up(Running { trouble: Some(Trouble::Paused), ..Running::default() });
    assert_eq!(short(paused.start("cosyvoice")), "+cosyvoice");
}

#[test]
fn a_stranger_on_the_port_is_a_refusal() {
    let mut world = world(BOX);
    let who = "process 9 (nginx) answers on port 8099".to_owned();
    world.service("vidi").answered_by = Some(AnsweredBy { who, service: None, pid: None });
    assert_eq!(short(world.start("vidi")), "refused 5");
}

#[test]
fn of_two_services_that_share_a_port_the_one_makes_way_for_the_other() {
    let world = |holder: &str| {
        let mut world = world(BOX).ready(holder, 4000);
        let who = format!("service {holder} answers on port 8099");
        world.service("cosyvoice").answered_by =
            Some(AnsweredBy { who, service: Some(holder.to_owned()), pid: None });
        world
    };
    assert_eq!(short(world("vidi").prepare(3)), "-vidi +cosyvoice");
    // CosyVoice fits on the card beside Vidi, but not on the same port.
    assert_eq!(short(world("vidi").start("cosyvoice")), "refused 5");
}

#[test]
fn a_missing_container_is_not_found_where_it_is_needed_and_nothing_where_it_is_not() {
    let mut world = world(BOX);
    world.service("cosyvoice").presence =
        Presence::Missing(Failure::new(Code::NotFound, "no container"));
    assert_eq!(short(world.prepare(3)), "refused 4");
    assert_eq!(short(world.prepare(2)), "+vidi");
    assert_eq!(
        short(stop(&world.config, &world.snapshot, &["cosyvoice".to_owned()], false)),
        "refused 4"
    );
}

#[test]
fn a_service_that_cannot_be_asked_after_spoils_what_counts_on_its_being_stopped() {
    assert_eq!(short(world(BOX).without_manager("ollama").prepare(4)), "refused 69");
    assert_eq!(short(world(BOX).without_manager("ollama").start("comfyui")), "refused 69");
    assert_eq!(short(world(BOX).without_manager("cosyvoice").start("vidi")), "+vidi");
    let world = world(BOX).without_manager("ollama");
    assert_eq!(short(release_all(&world.config, &world.snapshot, false)), "refused 69");
}

#[test]
fn without_nvml_the_declared_sizes_are_planned_with_and_it_is_said() {
    let world = |total| world(BOX).ready("ollama", 0).without_nvml(total);
    let plan = world(Some(24576)).prepare(4).expect("it fits");
    assert!(plan.warnings[0].contains("no driver"), "{:?}", plan.warnings);
    assert_eq!(short(Ok(plan)), "-ollama +comfyui");
    assert_eq!(short(world(Some(16000)).prepare(4)), "refused 3");
    assert_eq!(short(world(Some(24576)).start("vidi")), "+vidi =ollama");
}

#[test]
fn without_any_size_only_a_plan_that_clears_the_card_is_made() {
    let world = || world(BOX).ready("comfyui", 0).without_nvml(None);
    assert_eq!(short(world().prepare(3)), "-comfyui +cosyvoice");
    assert_eq!(short(world().start("vidi")), "refused 69");
}

#[test]
fn what_the_starts_take_is_required_beside_the_reserve() {
    let plan = world(BOX).with("vidi", State::Starting, 1000).start("vidi").expect("it fits");
    assert_eq!(plan.required, Mb(3000));
    let plan = world(BOX).with("vidi", State::Error, 4000).start("vidi").expect("it fits");
    assert_eq!(plan.required, Mb(4000));
    // The driver does not report what Vidi holds: it may have taken everything already.
    let mut untold = world(BOX).with("vidi", State::Starting, 4000);
    untold.service("vidi").used = None;
    assert_eq!(untold.start("vidi").expect("it fits").required, Mb(0));
}

#[test]
fn what_needs_no_memory_makes_nobody_go_however_full_the_card_is() {
    let tiny = BOX.replace("18000\n    priority = 10", "0\n    priority = 200");
    let full = || world(&tiny).ready("comfyui", 600).ready("vidi", 4000).ready("cosyvoice", 4000);
    assert_eq!(short(full().start("ollama")), "+ollama =comfyui =cosyvoice =vidi");
    let plan = full().prepare_lazily(1).expect("it needs nothing");
    assert_eq!(plan.warnings, [""; 0]);
    assert_eq!(short(Ok(plan)), "=comfyui =cosyvoice =vidi");
}

#[test]
fn stop_leaves_alone_what_is_stopped_already_and_force_kills() {
    let world = world(BOX).ready("vidi", 4000).ready("ollama", 1);
    let names = ["vidi".to_owned(), "comfyui".to_owned()];
    assert_eq!(short(stop(&world.config, &world.snapshot, &names, false)), "-vidi =ollama");
    assert_eq!(short(stop(&world.config, &world.snapshot, &names, true)), "!vidi =ollama");
    assert_eq!(short(release_all(&world.config, &world.snapshot, false)), "-vidi -ollama");
}
