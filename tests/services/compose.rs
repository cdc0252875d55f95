//! Tests of services of a compose project, whose containers are found by the labels that compose
//! puts on them.

use rig::{Rig, until};
use serde_json::{Value, json};
use toml::Table;

/// Makes a container as compose does for a service of a project, with more options of
/// `docker create` and more flags of the server; returns its name.
fn replica(rig: &Rig, service: &str, number: u32, options: &[&str], flags: &str) -> String {
    replica_in("host", rig, service, number, options, flags)
}

fn replica_in(
    network: &str,
    rig: &Rig,
    service: &str,
    number: u32,
    options: &[&str],
    flags: &str,
) -> String {
    let project = rig.mark("mcn");
    let name = format!("{project}-{service}-{number}");
    let card = rig.card.folder().display();
    let labels = [
        format!("com.docker.compose.project={project}"),
        format!("com.docker.compose.service={service}"),
        format!("com.docker.compose.container-number={number}"),
        format!("SIMGPU_DIR={card}"),
        format!("{card}:{card}"),
    ];
    let mut words = vec!["create", "--name", &name, "--network", network];
    for label in &labels[..3] {
        words.extend(["--label", label]);
    }
    words.extend(["--env", &labels[3], "--volume", &labels[4]]);
    words.extend(options);
    words.extend([rig.engine().image(), "/bin/simserver", "--name", &name]);
    words.extend(flags.split_whitespace());
    rig.owns_container(&name);
    rig.docker(&words);
    name
}

/// Configures a service of the project.
fn declare(rig: &Rig, name: &str, settings: &str) {
    let text = format!("type = 'compose'\nproject = '{}'\n{settings}", rig.mark("mcn"));
    rig.set(&format!("services.{name}"), text.parse::<Table>().unwrap());
}

fn service(rig: &Rig, name: &str) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"][name].clone()
}

fn runs(rig: &Rig, container: &str) -> bool {
    rig.docker(&["container", "inspect", "--format", "{{.State.Running}}", container]).trim()
        == "true"
}

#[test]
fn all_replicas_of_a_service_are_started_and_stopped_together_and_own_their_processes() {
    let Some(rig) = Rig::with_docker() else { return };
    let both = [1, 2].map(|number| replica(&rig, "tts", number, &[], "--vram 1500"));
    let other = replica(&rig, "web", 1, &[], "");
    declare(&rig, "tts", "service = 'tts'\nvram_mb = 3000");
    rig.docker(&["start", &other]);
    rig.gpuctl("start tts").run().succeeds().stdout_has("started tts").progress();
    until("both hold their memory", || rig.card.used_mb() == 3000);
    let tts = service(&rig, "tts");
    assert_eq!((&tts["state"], &tts["type"]), (&json!("ready"), &json!("compose")));
    assert_eq!((&tts["used_mb"], tts["pids"].as_array().unwrap().len()), (&json!(3000), 2));
    rig.gpuctl("start tts").run().succeeds().stdout_has("kept tts");

    rig.gpuctl("stop tts").run().succeeds().stdout_has("stopped tts").progress();
    assert!(both.iter().all(|name| !runs(&rig, name)));
    assert!(runs(&rig, &other), "it is another service's");
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn one_replica_of_two_is_an_error_and_a_start_brings_the_other() {
    let Some(rig) = Rig::with_docker() else { return };
    let both = [1, 2].map(|number| replica(&rig, "tts", number, &[], "--vram 100"));
    declare(&rig, "tts", "service = 'tts'\nvram_mb = 200");
    rig.gpuctl("start tts --quiet").run().succeeds();
    rig.docker(&["kill", &both[1]]);
    let tts = service(&rig, "tts");
    assert_eq!(tts["state"], "error");
    assert_eq!(tts["detail"], format!("{}: exited with code 137", both[1]));
    rig.gpuctl("start tts").run().succeeds().stdout_has("started tts").progress();
    assert!(both.iter().all(|name| runs(&rig, name)));
    assert_eq!(service(&rig, "tts")["state"], "ready");
}

#[test]
fn what_has_ended_beside_what_is_healthy_already_is_started_without_waiting_for_news_of_that() {
    let Some(rig) = Rig::with_docker() else { return };
    if !std::path::Path::new("/bin/busybox").exists() {
        return rig::skip_or_fail("busybox", "busybox for the image");
    }
    let card = rig.card.folder().display().to_string();
    let check = format!("test ! -e {card}/ill");
    let health = ["--health-cmd", &check, "--health-interval", "100ms", "--health-retries", "1"];
    replica(&rig, "db", 1, &health, "");
    let web = replica(&rig, "web", 1, &[], "");
    declare(&rig, "stack", "vram_mb = 100\nstart_timeout = '20s'");
    rig.gpuctl("start stack --quiet").run().succeeds();
    let is_old = || service(&rig, "stack")["uptime_s"].as_u64().is_some_and(|age| age > 2);
    until("its check passed seconds ago", is_old);
    rig.docker(&["kill", &web]);
    // The engine reports a check when its result changes, so a start that waited for that would
    // hear that the check fails.
    let later = format!("(sleep 5; touch {card}/ill) >/dev/null 2>&1 &");
    let next = "PATH=${PATH#*:} exec docker \"$@\"";
    rig.program("docker", &format!("if [ \"$1\" = events ]; then {later} fi\n{next}"));
    rig.gpuctl("start stack").run().succeeds().stdout_has("started stack").progress();
    assert!(runs(&rig, &web));
}

#[test]
fn a_whole_project_starts_what_others_depend_on_first_and_stops_it_last() {
    let Some(rig) = Rig::with_docker() else { return };
    let on = |what: &str| format!("com.docker.compose.depends_on={what}");
    let web = replica(&rig, "web", 1, &["--label", &on("db:service_started:false")], "");
    let api = replica(
        &rig,
        "api",
        1,
        &["--label", &on("web:service_started:true,db:service_started")],
        "",
    );
    let db = replica(&rig, "db", 1, &[], "");
    // A container that `docker compose run` has left is no part of the project's services.
    let shell = replica(&rig, "db", 7, &["--label", "com.docker.compose.oneoff=True"], "");
    declare(&rig, "stack", "vram_mb = 100");
    let id = |name: &str| {
        rig.docker(&["container", "inspect", "--format", "{{.Id}}", name]).trim().to_owned()
    };
    let order = [&db, &web, &api].map(|name| id(name));
    let calls = rig.docker_calls(|| {
        rig.gpuctl("start stack").run().succeeds().stdout_has("started stack").progress();
    });
    let of = |calls: &[String], verb: &str| -> Vec<String> {
        let is_meant = |call: &&String| call.starts_with(verb);
        let last = |call: &String| call.rsplit(' ').next().unwrap().to_owned();
        calls.iter().filter(is_meant).map(last).collect()
    };
    assert_eq!(of(&calls, "start"), order);
    assert!(!runs(&rig, &shell));
    rig.docker(&["start", &shell]);
    let calls = rig.docker_calls(|| {
        rig.gpuctl("stop stack").run().succeeds().stdout_has("stopped stack").progress();
    });
    let mut backwards = of(&calls, "stop");
    backwards.reverse();
    assert_eq!(backwards, order);
    assert!(runs(&rig, &shell), "it is no part of the project's services");
}

#[test]
fn a_service_waits_for_its_dependencies_as_its_compose_file_says() {
    let Some(rig) = Rig::with_docker() else { return };
    if !std::path::Path::new("/bin/busybox").exists() {
        return rig::skip_or_fail("busybox", "busybox for the image");
    }
    let on = |what: &str| format!("com.docker.compose.depends_on={what}");
    let card = rig.card.folder().display().to_string();
    let check = format!("test -e {card}/well");
    let health = ["--health-cmd", &check, "--health-interval", "100ms", "--health-retries", "1000"];
    let db = replica(&rig, "db", 1, &health, "");
    let load = replica(&rig, "load", 1, &[], "--exit-after 200ms");
    let label = on("db:service_healthy:true,load:service_completed_successfully:false");
    let tts = replica(&rig, "tts", 1, &["--label", &label], "");
    // The dependencies belong to no service of gpuctl, and are started all the same.
    declare(&rig, "tts", "service = 'tts'\nvram_mb = 100");
    let start = rig.gpuctl("start tts").spawn();
    until("its dependencies were started", || runs(&rig, &db));
    let exit = || rig.docker(&["container", "inspect", "--format", "{{.State.Status}}", &load]);
    until("the load is done", || exit().trim() == "exited");
    assert!(!runs(&rig, &tts), "its database is not healthy");
    std::fs::write(rig.card.folder().join("well"), "").unwrap();
    start.wait().succeeds().stdout_has("started tts").progress();
    assert!(runs(&rig, &tts));
    rig.gpuctl("stop tts").run().succeeds().stdout_has("stopped tts").progress();
    assert!(runs(&rig, &db), "it is nobody's to stop");
}

#[test]
fn a_project_whose_one_shot_has_done_its_work_is_ready() {
    let Some(rig) = Rig::with_docker() else { return };
    let load = replica(&rig, "load", 1, &[], "--exit-after 10ms");
    let label = "com.docker.compose.depends_on=load:service_completed_successfully:false";
    replica(&rig, "tts", 1, &["--label", label], "");
    declare(&rig, "stack", "vram_mb = 100");
    rig.gpuctl("start stack").run().succeeds().stdout_has("started stack").progress();
    assert!(!runs(&rig, &load));
    assert_eq!(service(&rig, "stack")["state"], "ready");
}

#[test]
fn a_project_without_containers_is_not_found_and_how_to_create_them_is_told() {
    let Some(rig) = Rig::with_docker() else { return };
    declare(&rig, "tts", "service = 'tts'\nvram_mb = 100\nphases = [3]");
    let how = format!("docker compose --project-name {} up --detach tts", rig.mark("mcn"));
    for words in ["start tts", "start tts --dry-run", "stop tts", "prepare-phase 3"] {
        rig.gpuctl(words).run().fails("not_found").stderr_has(&how);
    }
    assert_eq!(service(&rig, "tts")["state"], "stopped");
}

#[test]
fn one_project_twice_is_refused_and_so_is_its_container_beside_it() {
    let Some(rig) = Rig::with_docker() else { return };
    let name = replica(&rig, "tts", 1, &[], "");
    declare(&rig, "tts", "service = 'tts'\nvram_mb = 100");
    for settings in ["service = 'tts'\nvram_mb = 1", "vram_mb = 1"] {
        declare(&rig, "twin", settings);
        let check = rig.gpuctl("config check").run().fails("config");
        check.stderr_has("services.twin").stderr_has("as service tts");
    }
    // Two services of gpuctl with one compose service each are no contradiction.
    declare(&rig, "twin", "service = 'web'\nvram_mb = 1");
    rig.gpuctl("config check").run().succeeds().stdout_has("2 services");
    // A container that is given by its name is only found out by looking at the engine.
    let named = format!("type = 'docker'\ncontainer = '{name}'\nvram_mb = 1");
    rig.set("services.twin", named.parse::<Table>().unwrap());
    for words in ["start tts", "stop twin", "release-all"] {
        rig.gpuctl(words).run().fails("config").stderr_has("belongs to both tts and twin");
    }
    assert!(!runs(&rig, &name));
}

#[test]
fn however_many_services_of_projects_there_are_the_engine_is_asked_twice() {
    let Some(rig) = Rig::with_docker() else { return };
    for name in ["tts", "web", "api"] {
        replica(&rig, name, 1, &[], "");
        declare(&rig, name, &format!("service = '{name}'\nvram_mb = 1"));
    }
    rig.container("voice").add();
    let calls = rig.docker_calls(|| {
        let status = rig.gpuctl("status --json").run().succeeds().json();
        for name in ["tts", "web", "api", "voice"] {
            assert_eq!(status["services"][name]["state"], "stopped");
        }
    });
    assert_eq!(calls.len(), 2, "{calls:?}");
}

#[test]
fn each_replica_that_is_asked_to_unload_has_the_time_of_a_call_of_its_own() {
    let Some(rig) = Rig::with_docker() else { return };
    let network = rig.network();
    // Two such calls together take longer than one may.
    let server = "--host 0.0.0.0 --port 8000 --api vllm --vram 6000 --unload-residual 500 --sleep-delay 6500ms";
    for number in [1, 2] {
        replica_in(&network, &rig, "chat", number, &[], server);
    }
    let settings = "service = 'chat'\nvram_mb = 12000\npriority = 10\nevict = 'unload'\n\
                    api = 'vllm'\nurl = 'http://{container}:8000'";
    declare(&rig, "chat", settings);
    rig.native("render").vram(18000).priority(90).add();
    rig.gpuctl("start chat").run().succeeds().stdout_has("started chat").progress();
    until("both hold their memory", || rig.card.used_mb() == 12000);
    rig.gpuctl("start render").run().succeeds().stdout_has("unloaded chat").progress();
    assert_eq!(rig.card.used_mb(), 19000);
    assert_eq!(service(&rig, "chat")["state"], "asleep");
}

/// Configures services `db` and `app`, of which `app` depends on `db`; returns the names of their
/// containers, `db` first.
fn app_on_db(rig: &Rig, memory: [u32; 2], condition: &str) -> [String; 2] {
    let label = format!("com.docker.compose.depends_on=db:{condition}:false");
    let [db_memory, app_memory] = memory;
    let (db_port, app_port) = (rig.port(), rig.port());
    let flags = |port: u16, memory: u32| format!("--port {port} --vram {memory}");
    let db = format!("{} --warmup 700ms", flags(db_port, db_memory));
    let db = replica(rig, "db", 1, &[], &db);
    let app = replica(rig, "app", 1, &["--label", &label], &flags(app_port, app_memory));
    for (name, port, memory, phase) in
        [("app", app_port, app_memory, 3), ("db", db_port, db_memory, 2)]
    {
        let health = format!("health = 'http://127.0.0.1:{port}/health'");
        declare(
            rig,
            name,
            &format!("service = '{name}'\nvram_mb = {memory}\nphases = [{phase}]\n{health}"),
        );
    }
    [db, app]
}

#[test]
fn a_service_that_another_one_depends_on_is_ready_before_it_and_goes_after_it() {
    let Some(rig) = Rig::with_docker() else { return };
    let [db, app] = app_on_db(&rig, [1000, 2000], "service_started");
    let fact = |container: &str, field: &str| {
        let format = format!("{{{{{field}}}}}");
        rig.docker(&["container", "inspect", "--format", &format, container]).trim().to_owned()
    };
    let planned = rig.gpuctl("start app --dry-run --json").run().succeeds().json();
    assert_eq!(planned["started"], json!(["app", "db"]));
    for words in ["start app", "prepare-phase 3"] {
        let done = rig.gpuctl(words).arg("--json").run().succeeds().progress().json();
        assert_eq!(done["started"], json!(["db", "app"]), "{words}");
        let at = |container: &str| {
            fact(container, ".State.StartedAt").parse::<jiff::Timestamp>().unwrap()
        };
        let later = at(&app).duration_since(at(&db)).as_millis();
        assert!(
            later >= 700,
            "{words}: started {later} ms after the database, which was not ready"
        );
        assert_eq!(rig.card.used_mb(), 3000);
        let again = rig.gpuctl(words).arg("--json").run().succeeds().json();
        assert_eq!((&again["started"], &again["stopped"]), (&json!([]), &json!([])), "{words}");

        let ids = [&app, &db].map(|container| format!("-- {}", fact(container, ".Id")));
        let calls = rig.docker_calls(|| {
            rig.gpuctl("release-all --quiet").run().succeeds();
        });
        let stopped = calls.iter().filter(|call| call.starts_with("stop "));
        let order: Vec<bool> = stopped.map(|call| call.contains(&ids[0])).collect();
        assert_eq!(order, [true, false], "{calls:?}");
    }
    // A stop of `db` stops it alone, since that is what the caller asks for.
    rig.gpuctl("start app --quiet").run().succeeds();
    rig.gpuctl("stop db").run().succeeds().stdout_has("stopped db").progress();
    assert!(runs(&rig, &app) && !runs(&rig, &db));
    // Stopping `db` alone would make enough room, but `app`, which depends on it, must not stay
    // without it.
    rig.gpuctl("start app --quiet").run().succeeds();
    rig.set("services.app.priority", 10);
    rig.native("render").vram(21500).phases([4]).add();
    let done = rig.gpuctl("prepare-phase 4 --lazy --json").run().succeeds().progress().json();
    assert_eq!(done["stopped"], json!(["app", "db"]));
    assert!(!runs(&rig, &app) && !runs(&rig, &db));
}

#[test]
fn what_a_service_depends_on_stays_where_that_service_cannot_be_ended() {
    let Some(rig) = Rig::with_docker() else { return };
    let [db, app] = app_on_db(&rig, [1000, 2000], "service_started");
    rig.gpuctl("start app --quiet").run().succeeds();
    let id = rig.docker(&["container", "inspect", "--format", "{{.Id}}", &app]);
    let refuses = format!("case \"$*\" in stop*{}*) echo 'no way' >&2; exit 1 ;; esac", id.trim());
    rig.program("docker", &format!("{refuses}\nPATH=${{PATH#*:}} exec docker \"$@\""));
    rig.gpuctl("release-all --quiet").run().fails("stop_failed").stderr_has("no way");
    assert!(runs(&rig, &app) && runs(&rig, &db));
}

#[test]
fn what_a_service_depends_on_has_to_fit_beside_it() {
    let Some(rig) = Rig::with_docker() else { return };
    let both = app_on_db(&rig, [12000, 14000], "service_healthy");
    for words in ["start app", "start app --dry-run", "prepare-phase 3"] {
        rig.gpuctl(words).run().fails("insufficient_vram").stderr_has("app and db need");
    }
    rig.gpuctl("start db").run().succeeds().stdout_has("started db").progress();
    assert!(runs(&rig, &both[0]) && !runs(&rig, &both[1]));
}
