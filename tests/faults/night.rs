//! Production and its canary as units in a corner of a machine that systemd runs. They are the
//! units in `examples/systemd`, under names of the corner's own, so that many trials can run side
//! by side.

use rig::{Books, Corner, Machine, Prober, until};
use std::thread;
use std::time::Duration;
use toml::{Table, Value};

/// The canary's `timeout`, in seconds.
pub const TIMEOUT: u64 = 20;
/// The canary's `restore_sla`, in seconds.
pub const RESTORE_SLA: u64 = 10;

/// Seconds by which rounded figures of the ledger may differ from what was measured.
const ROUNDED: f64 = 0.2;

/// A check of whether a trial has come to a certain stage.
pub type Reached = fn(&Night) -> bool;

/// The stages of a trial of `Night::slow`, each of which but the first takes a second.
pub const STAGES: [(&str, Reached); 6] = [
    ("the journal is written", |night| night.books.journal().is_some()),
    ("production is being stopped", |night| night.books.stage().as_deref() == Some("away")),
    ("the canary is starting", |night| night.books.has_told("canary_started")),
    ("the canary is being tested", |night| night.books.has_told("health_ok")),
    ("the canary is being stopped", |night| night.books.has_told("completion")),
    ("production is being started", |night| night.books.has_told("canary_stopped")),
];

/// Production and its canary in a corner of a machine.
pub struct Night<'a> {
    pub corner: Corner<'a>,
    /// The ledger of the trials.
    pub books: Books,
}

impl<'a> Night<'a> {
    /// Creates a night whose production unit has these additional lines, and returns when
    /// production is up. The units of the examples are installed.
    pub fn new(machine: &'a Machine, lines: &str) -> Night<'a> {
        Night::with(machine, lines, "--warmup 400ms", "--completion-delay 4s")
    }

    /// Creates a night in which each stage of a trial takes its time.
    pub fn slow(machine: &'a Machine) -> Night<'a> {
        let canary = "--warmup 1s --completion-delay 1s --term-delay 1h";
        Night::with(machine, "", "--warmup 1s --term-delay 1s", canary)
    }

    /// Creates a night in which production and the canary are servers with these flags.
    pub fn with(machine: &'a Machine, lines: &str, production: &str, canary: &str) -> Night<'a> {
        let night = Night::bare(machine);
        let server = night.corner.server("vllm", 0, &format!("--vram 15000 {production}"));
        let lines = lines.replace("gpuctl-recover.service", &night.unit("gpuctl-recover"));
        let own = night.corner.environment();
        let unit = night.unit("vllm");
        night.corner.unit(&unit, &format!("[Service]\n{own}ExecStart={server}\n{lines}\n"));
        night.configure(&format!("type = \"systemd\"\nunit = \"{unit}\""), canary);
        machine.sh(&format!("systemctl start {unit}"));
        night.until_ready("it has been started");
        night
    }

    /// Creates a night in which production is no unit but is started by gpuctl itself.
    pub fn native(machine: &'a Machine, canary: &str) -> Night<'a> {
        let night = Night::bare(machine);
        let server = night.corner.server("vllm", 0, "--vram 15000 --warmup 400ms");
        night.configure(&format!("type = \"native\"\nstart = 'exec {server}'"), canary);
        night.corner.sh("gpuctl start vllm");
        night
    }

    fn bare(machine: &'a Machine) -> Night<'a> {
        let corner = machine.corner();
        let books = Books::new(corner.folder().join("state"));
        Night { corner, books }
    }

    /// Writes the configuration with this production, and installs the units of the examples.
    fn configure(&self, production: &str, canary: &str) {
        let corner = &self.corner;
        corner.config(&format!(
            "[services.vllm]\n{production}\nvram_mb = 15000\nstart_timeout = \"20s\"\n\
             stop_timeout = \"10s\"\nhealth = \"http://localhost:{port}/health\"\n\
             [canary]\nservice = \"vllm\"\nmode = \"canary\"\nmodel = \"/models/m\"\nport = {second}\n\
             window = \"00:00-23:59 UTC\"\ncooldown = \"0s\"\nmax_runs_per_day = 100\nmax_downtime = \"1h\"\n\
             timeout = \"{TIMEOUT}s\"\nrestore_sla = \"{RESTORE_SLA}s\"\nmax_latency = \"10s\"\n",
            port = corner.port,
            second = corner.port + 1,
        ));
        self.canary(canary);
        corner.file("candidate.json", "{\"vllm_memory_util\": 0.75}");
        for unit in ["gpuctl-canary", "gpuctl-recover"] {
            self.example(unit, &[]);
        }
        // systemd remembers how the trial's unit has ended as long as there is a timer for the
        // unit.
        self.timer("OnActiveSec=1h");
    }

    /// Returns the full name of one of the corner's units: `vllm`, `gpuctl-canary` or
    /// `gpuctl-recover`.
    pub fn unit(&self, name: &str) -> String {
        format!("{}.service", self.corner.mark(name))
    }

    /// Installs a unit of the examples, with further words of its text replaced.
    pub fn example(&self, unit: &str, more: &[(&str, &str)]) {
        let candidate = self.corner.path("candidate.json");
        let places = [("/etc/gpuctl/candidate.json", &*candidate)];
        let all: Vec<_> = places.iter().chain(more).copied().collect();
        self.corner.example(&format!("{unit}.service"), &self.unit(unit), &all);
    }

    /// Gives the trial's timer these lines and restarts it, so that it counts from now on.
    pub fn timer(&self, lines: &str) {
        let timer = self.unit("gpuctl-canary").replace(".service", ".timer");
        self.corner.unit(&timer, &format!("[Timer]\n{lines}\n"));
        self.corner.machine.sh(&format!("systemctl restart {timer}"));
    }

    /// Enables the unit that recovers at boot and, if production's unit has `lines` that say when
    /// it starts, production's unit.
    pub fn enable(&self, lines: &str) {
        let mut units = self.unit("gpuctl-recover");
        if !lines.is_empty() {
            units = format!("{units} {}", self.unit("vllm"));
        }
        self.corner.machine.sh(&format!("systemctl enable -q {units}"));
    }

    /// Sets a key of the canary's configuration.
    pub fn set(&self, key: &str, value: impl Into<Value>) {
        let mut config: Table = self.corner.text("gpuctl.toml").parse().unwrap();
        let canary = config["canary"].as_table_mut().unwrap();
        canary.insert(key.to_owned(), value.into());
        self.corner.file("gpuctl.toml", &config.to_string());
    }

    /// Makes the canary a server with these flags.
    pub fn canary(&self, flags: &str) {
        let port = (self.corner.port + 1).to_string();
        let server = self.corner.server("candidate", 1, "").replace(&port, "{port}");
        let vram = if flags.contains("--vram") { "" } else { "--vram 12000 " };
        self.set("start", format!("exec {server} {vram}{flags}"));
    }

    /// Runs gpuctl as in a shell of root's that knows no state folder; returns its exit code and
    /// its output.
    pub fn gpuctl(&self, words: &str) -> (i32, String) {
        let (card, config) = (self.corner.path("card"), self.corner.path("gpuctl.toml"));
        let call = format!("SIMGPU_DIR={card} gpuctl --config {config} {words}; echo \"exit $?\"");
        let said = self.corner.machine.try_sh(&call).0;
        let (said, code) = said.trim_end().rsplit_once("exit ").expect("the shell tells it");
        (code.parse().unwrap(), said.to_owned())
    }

    pub fn is_healthy(&self) -> bool {
        self.corner.is_healthy(0)
    }

    #[track_caller]
    pub fn until_ready(&self, when: &str) {
        until(&format!("{when}: production is ready"), || self.is_healthy());
    }

    /// Starts the trial's unit and waits until the trial has come to this stage.
    #[track_caller]
    pub fn until_stage(&self, stage: &str, is_reached: Reached) {
        let unit = self.unit("gpuctl-canary");
        self.corner.machine.sh(&format!("systemctl start --no-block {unit}"));
        until(stage, || is_reached(self));
    }

    /// Signals the trial's unit as `systemctl kill` does with these flags.
    #[track_caller]
    pub fn kill(&self, flags: &str) {
        let unit = self.unit("gpuctl-canary");
        self.corner.machine.sh(&format!("systemctl kill {flags} {unit}"));
    }

    /// Returns the invocation ID of production's unit, which systemd changes at each start.
    pub fn invocation(&self) -> String {
        let show = format!("systemctl show -p InvocationID --value {}", self.unit("vllm"));
        self.corner.machine.sh(&show)
    }

    /// Waits until the trial's unit has ended; returns its result in systemd's words and its exit
    /// code, such as "success 75".
    pub fn result(&self) -> String {
        let unit = self.unit("gpuctl-canary");
        let show = |property| format!("systemctl show -p {property} --value {unit}");
        let ended = || self.corner.machine.try_sh(&show("ActiveState")).0;
        until("the trial's unit has ended", || ["inactive\n", "failed\n"].contains(&&*ended()));
        let [result, code] =
            ["Result", "ExecMainStatus"].map(|it| self.corner.machine.sh(&show(it)));
        format!("{} {}", result.trim(), code.trim())
    }

    /// Waits until the trial is settled, and asserts that production is as it was, that nothing is
    /// owed or left of the trial, and that the trial is booked once.
    #[track_caller]
    pub fn assert_settled(&self, when: &str) {
        let machine = self.corner.machine;
        until(&format!("{when}: it is settled"), || self.books.journal().is_none());
        assert!(self.is_healthy(), "{when}");
        assert_eq!(self.corner.card.used_mb(), 15000, "{when}");
        let canary = format!("pgrep -f '{} '", self.corner.mark("[c]andidate"));
        assert_eq!(machine.try_sh(&canary).0, "", "{when}: left of the canary");
        until(&format!("{when}: its guardian has ended"), || {
            let guardian = format!("pgrep -f '[g]uardian.*{}'", self.corner.path("gpuctl.toml"));
            machine.try_sh(&guardian).0.is_empty()
        });
        let events = self.books.events();
        assert!(events.iter().any(|event| event == "prod_restored"), "{when}: {events:?}");
        let (used, bookings) = self.books.booked();
        assert_eq!(bookings, [used], "{when}");
    }

    /// Asserts that a prober has seen production away for no longer than the ledger has booked.
    #[track_caller]
    pub fn assert_booked_as_seen(&self, prober: Prober, when: &str) {
        let away = prober.absences().iter().sum::<Duration>().as_secs_f64();
        let booked = self.books.booked().0;
        assert!(away <= booked + ROUNDED, "{when}: away for {away} s, booked {booked} s");
        eprintln!("{when}: away for {away:.1} s, booked {booked:.1} s");
    }
}

/// Prints the journal, the events and the remaining processes if the test fails.
impl Drop for Night<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let named = self.corner.mark("");
            eprintln!("--- {named}: {:?}\n{:#?}", self.books.journal(), self.books.events());
            let asked =
                format!("ps -eo pid,ppid,stat,etime,args | grep -e '{named}' -e '[g]uardian'");
            eprintln!("{}", self.corner.machine.try_sh(&asked).0);
        }
    }
}
