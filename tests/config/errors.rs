//! Tests of what `config check` refuses: each complaint names the file, the line and the key, and
//! the key that was meant.

use rig::Rig;

/// Returns a native service with further lines, which begin in line 5.
fn native(lines: &str) -> String {
    format!("[services.a]\ntype = \"native\"\nvram_mb = 1\nstart = \"a\"\n{lines}\n")
}

/// Asserts that configurations are refused. Each case is the text, the line and key of the
/// complaint, and a part of what it says.
#[track_caller]
fn refuses(cases: &[(&str, &str, &str)]) {
    let rig = Rig::new();
    for (text, place, problem) in cases {
        rig.write_config(text);
        eprintln!("{text}");
        let check = rig.gpuctl("config check").run().fails("config");
        drop(check.stderr_has(&format!("gpuctl.toml:{place}: ")).stderr_has(problem));
    }
}

#[test]
fn row_44_an_unknown_key_is_told_with_the_nearest_known_one() {
    refuses(&[
        ("[gpu]\nreserve = 1", "2: gpu.reserve", "did you mean `reserve_mb`?"),
        ("[gpu]\nindx = 1", "2: gpu.indx", "did you mean `index`?"),
        ("[lock]\n\nurll = \"\"", "3: lock.urll", "did you mean `url`?"),
        ("\n\n[service.a]", "3: service", "did you mean `services`?"),
        (&native("priorty = 1"), "5: services.a.priorty", "did you mean `priority`?"),
        (&native("vram = 1"), "5: services.a.vram", "did you mean `vram_mb`?"),
        (
            &native("unload = { methd = \"PUT\", url = \"http://h\" }"),
            "5: services.a.unload.methd",
            "did you mean `method`?",
        ),
        (&native("qqq = 1"), "5: services.a.qqq", "there is no such key"),
    ]);
}

#[test]
fn an_unknown_word_is_told_with_the_nearest_known_one() {
    refuses(&[
        ("[services.a]\ntype = \"dokcer\"", "2: services.a.type", "did you mean `docker`?"),
        (&native("evict = \"unlod\""), "5: services.a.evict", "did you mean `unload`?"),
        (
            &native("api = \"comfyu\"\nurl = \"http://h\""),
            "5: services.a.api",
            "did you mean `comfyui`?",
        ),
    ]);
}

#[test]
fn row_44_a_value_of_the_wrong_type_is_refused() {
    refuses(&[
        ("gpu = 1", "1: gpu", "must be a table, not the number 1"),
        ("gpu = []", "1: gpu", "must be a table, not a list"),
        ("lock = []", "1: lock", "must be a table, not a list"),
        ("services.a = [\"native\"]", "1: services.a", "must be a table, not a list"),
        ("services = []", "1: services", "must be a table"),
        ("[gpu]\nreserve_mb = []", "2: gpu.reserve_mb", "must be a number of MB such as 20000"),
        ("[gpu]\nuuid = 1", "2: gpu.uuid", "write \"1\""),
        ("[lock]\nttl = true", "2: lock.ttl", "a duration such as \"90s\""),
        ("[phases]\n4 = 4", "2: phases.4", "a phase's name must be a word, as in 4 = \"video\""),
        (&native("phases = 4"), "5: services.a.phases", "must be a list, not the number 4"),
        (
            &native("phases = [1, true]"),
            "5: services.a.phases[1]",
            "must be the number or the name of a phase, not true",
        ),
        (&native("env = { A = [] }"), "5: services.a.env.A", "must be text"),
        (
            &native("unload = \"http://h\""),
            "5: services.a.unload",
            "must be a table, not the text \"http://h\"",
        ),
        (&native("start_timeout = 1.5"), "5: services.a.start_timeout", "a duration such as"),
        (
            &native("priority = \"high\""),
            "5: services.a.priority",
            "must be a whole number, not the text \"high\"",
        ),
    ]);
}

#[test]
fn row_44_a_number_that_is_out_of_bounds_is_refused() {
    refuses(&[
        ("[gpu]\nindex = -1", "2: gpu.index", "the number -1"),
        ("[gpu]\nindex = 4294967296", "2: gpu.index", "the number 4294967296"),
        ("[gpu]\nreserve_mb = -1", "2: gpu.reserve_mb", "-1 is not a valid size; write a number"),
        ("[gpu]\nreserve_mb = 16777217", "2: gpu.reserve_mb", "at most 16777216 MB"),
        ("[gpu]\ntotal_mb = 9223372036854775807", "2: gpu.total_mb", "at most 16777216 MB"),
        ("[gpu]\ntotal_mb = 9223372036854775808", "2: gpu.total_mb", "at most 16777216 MB"),
        ("[gpu]\ntotal_mb = 1e400", "2: gpu.total_mb", "overflowed"),
        (
            "[services.a]\ntype = \"native\"\nvram_mb = 20000000000",
            "3: services.a.vram_mb",
            "at most",
        ),
        ("[gpu]\nreserve_mb = \"1TB\"", "2: gpu.reserve_mb", "\"1TB\" is not a valid size; write"),
        ("[gpu]\ntotal_mb = 1.5", "2: gpu.total_mb", "1.5 is not a valid size; write a number"),
        ("[gpu]\ntotal_mb = true", "2: gpu.total_mb", "20000MB, 20GB, 20G or 20GiB"),
        (&native("phases = [4294967296]"), "5: services.a.phases[0]", "the number 4294967296"),
        (&native("start_timeout = 0"), "5: services.a.start_timeout", "longer than zero"),
        (&native("stop_timeout = \"0s\""), "5: services.a.stop_timeout", "longer than zero"),
        (&native("start_timeout = \"8d\""), "5: services.a.start_timeout", "7 days at most"),
        (&native("start_timeout = 604801"), "5: services.a.start_timeout", "7 days at most"),
        (&native("stop_timeout = -1"), "5: services.a.stop_timeout", "a duration such as"),
        (&native("stop_timeout = \"-1s\""), "5: services.a.stop_timeout", "a duration such as"),
        (&native("stop_timeout = \"soon\""), "5: services.a.stop_timeout", "a duration such as"),
        ("[lock]\nwait = 99999999999999999", "2: lock.wait", "7 days at most"),
    ]);
}

#[test]
fn row_44_text_that_is_no_toml_is_refused_with_its_line() {
    refuses(&[
        ("[gpu", "1", "unclosed"),
        ("[gpu]\nindex = ", "2", "must be quoted"),
        ("[gpu]\n[gpu]", "2", "duplicate key"),
        ("[gpu]\nindex = 0\nindex = 1", "3", "duplicate key"),
        ("[services.a]\n\n[services.a]", "3", "duplicate key"),
        ("{\"gpu\": {}}", "1", "expected key"),
        ("[gpu]\nuuid = \"GPU\0\"", "2", "invalid basic string"),
        ("[gpu]\nuuid = \"GPU", "2", "invalid basic string"),
    ]);
}

#[test]
fn json_is_refused_with_line_and_key_too() {
    let rig = Rig::new();
    for (text, place, problem) in [
        ("{", "1: ", "EOF"),
        ("{\n \"gpu\": {\"reserve\": 1}}", "2: gpu.reserve: ", "did you mean `reserve_mb`?"),
        ("{\"gpu\": {}}\n}", "2: ", "trailing characters"),
        ("{\"gpu\":\n {\"index\": \"0\"}}", "2: gpu.index: ", "write 0"),
        ("{\"gpu\": {},\n \"gpu\": {}}", "2: ", "the key `gpu` stands here twice"),
        (
            "{\"services\": {\n \"a b\": {\"type\": \"native\",\"start\": \"a\", \"vram_mb\": 1}}}",
            "2: services.a b: ",
            "name",
        ),
        (
            "{\"services\": {\"a\": {\"type\": \"native\", \"vram_mb\": 1,\n \"start\": \"a\\u0000\"}}}",
            "2: services.a.start: ",
            "NUL",
        ),
    ] {
        eprintln!("{text}");
        let path = rig.file("gpuctl.json", text);
        let check = rig.gpuctl("config check --config").arg(path).run().fails("config");
        drop(check.stderr_has(&format!("gpuctl.json:{place}")).stderr_has(problem));
    }
}

#[test]
fn a_service_has_the_keys_of_its_type_and_no_others() {
    let typed = |name: &str, lines: &str| {
        format!("[services.a]\ntype = \"{name}\"\nvram_mb = 1\n{lines}\n")
    };
    refuses(&[
        ("[services.a]\nvram_mb = 1", "1: services.a", "the key `type` is missing"),
        ("[services.a]\ntype = \"native\"", "1: services.a", "the key `vram_mb` is missing"),
        (&typed("native", ""), "2: services.a.type", "needs the key `start`"),
        (&typed("docker", ""), "2: services.a.type", "needs the key `container`"),
        (&typed("systemd", ""), "2: services.a.type", "needs the key `unit`"),
        (&native("container = \"c\""), "5: services.a.container", "is only for type = \"docker\""),
        (&native("unit = \"u\""), "5: services.a.unit", "is only for type = \"systemd\""),
        (&native("user = false"), "5: services.a.user", "is only for type = \"systemd\""),
        (&typed("docker", "start = \"x\""), "4: services.a.start", "is only for type = \"native\""),
        (&typed("docker", "match = \"x\""), "4: services.a.match", "is only for type = \"native\""),
        (&typed("docker", "stop = \"x\""), "4: services.a.stop", "is only for type = \"native\""),
        (&typed("systemd", "env.A = \"x\""), "4: services.a.env", "is only for type = \"native\""),
        (&typed("systemd", "cwd = \"/\""), "4: services.a.cwd", "is only for type = \"native\""),
        (&typed("docker", "unit = \"x\""), "4: services.a.unit", "is only for type = \"systemd\""),
        (
            &typed("docker", "container = \"-c\""),
            "4: services.a.container",
            "not the name or ID of a container",
        ),
        (&typed("systemd", "unit = \"--now\""), "4: services.a.unit", "not the name of a unit"),
        (&typed("systemd", "unit = \"a b\""), "4: services.a.unit", "not the name of a unit"),
    ]);
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    refuses(&[
        ("[gpu]\nindex = 0\nuuid = \"GPU-1\"", "3: gpu.uuid", "either index or uuid, not both"),
        (
            &native("evict = \"unload\""),
            "5: services.a.evict",
            "needs api and url, or an unload = { … } call",
        ),
        (&native("api = \"vllm\""), "5: services.a.api", "needs url"),
        (&native("url = \"http://h\""), "5: services.a.url", "needs api"),
        (
            &native("health = \"http://{container}:1\""),
            "5: services.a.health",
            "the address of a container, which it is not",
        ),
        (
            &native("api = \"vllm\"\nurl = \"http://{container}:1\""),
            "6: services.a.url",
            "the address of a container, which it is not",
        ),
        (
            &native("unload = { method = \"PUT\" }"),
            "5: services.a.unload",
            "the key `url` is missing",
        ),
        (
            &native("busy = { url = \"http://h\" }"),
            "5: services.a.busy",
            "either json or metric, or command alone",
        ),
        (
            &native("busy = { url = \"http://h\", json = \"/a\", metric = \"b\" }"),
            "5: services.a.busy",
            "either json or metric",
        ),
        (
            &native("busy = { command = \"echo 1\", url = \"http://h\", json = \"/a\" }"),
            "5: services.a.busy",
            "command alone",
        ),
        (
            "[phases]\n1 = \"video\"\n2 = \"video\"",
            "3: phases.2",
            "\"video\" is the name of two phases",
        ),
        ("[phases]\n1 = \"a\"\n01 = \"b\"", "3: phases.01", "a phase must be a number"),
        ("[phases]\none = \"a\"", "2: phases.one", "a phase must be a number"),
        ("[phases]\n-1 = \"a\"", "2: phases.-1", "a phase must be a number"),
        ("[phases]\n1 = \"\"", "2: phases.1", "a phase's name must be a word"),
        ("[phases]\n1 = \"2\"", "2: phases.1", "a phase's name must be a word"),
        (
            "[services.a]\ntype=\"docker\"\ncontainer=\"c\"\nvram_mb=1\n\n[services.b]\ntype=\"docker\"\ncontainer=\"c\"\nvram_mb=1",
            "6: services.b",
            "manages the same container as service a",
        ),
        (
            "[services.a]\ntype=\"systemd\"\nunit=\"u\"\nvram_mb=1\n[services.b]\ntype=\"systemd\"\nunit=\"u.service\"\nvram_mb=1",
            "5: services.b",
            "manages the same unit as service a",
        ),
    ]);
}

#[test]
fn a_name_that_is_no_plain_word_is_refused() {
    let named = |name: &str| format!("[services.{name}]\ntype=\"native\"\nstart=\"a\"\nvram_mb=1");
    refuses(&[
        (&named("\"a b\""), "1: services.a b", "letters, digits"),
        (&named("\"../a\""), "1: services.../a", "letters, digits"),
        (&named("\"\""), "1: services.", "letters, digits"),
        (&named("-a"), "1: services.-a", "letters, digits"),
        (&named("\".a\""), "1: services..a", "letters, digits"),
        (&named("\"ä\""), "1: services.ä", "letters, digits"),
        // The name is quoted in one line, and without the escape sequence of a terminal.
        (&named("\"a\\nb\\u001b[2J\""), "1: services.a\\nb\\u{1b}[2J", "letters, digits"),
    ]);
    let rig = Rig::new();
    rig.write_config(&named("\"a-B_9.c\""));
    rig.gpuctl("config check").run().succeeds().stdout_has("good: 1 service,");
}

#[test]
fn row_44_a_text_that_is_empty_or_holds_a_nul_is_refused() {
    for key in ["health", "match", "stop", "cwd"] {
        refuses(&[
            (&native(&format!("{key} = \"\"")), &format!("5: services.a.{key}"), "is empty"),
            (&native(&format!("{key} = \" \"")), &format!("5: services.a.{key}"), "is empty"),
            (
                &native(&format!("{key} = \"x\\u0000y\"")),
                &format!("5: services.a.{key}"),
                "contains a NUL character",
            ),
        ]);
    }
    for key in ["uuid", "nvml_library"] {
        for text in ["", " "] {
            let file = format!("[gpu]\n{key} = \"{text}\"");
            refuses(&[(&file, &format!("2: gpu.{key}"), "is empty")]);
        }
    }
    refuses(&[
        (&native("env = { \"A=B\" = \"1\" }"), "5: services.a.env", "\"A=B\" cannot be set"),
        (&native("env = { \"\" = \"1\" }"), "5: services.a.env", "\"\" cannot be set"),
        (&native("env = { A = \"1\\u0000\" }"), "5: services.a.env", "\"A\" cannot be set"),
    ]);
}

#[test]
fn a_url_that_cannot_be_asked_is_refused() {
    for url in [
        "localhost:8188",
        "ftp://localhost/",
        "http://",
        "http:///x",
        "tcp://localhost",
        "tcp://localhost:0",
        "tcp://localhost:65536",
        "tcp://:80",
        "tcp://h:80/path",
        "http://a b/",
        "http://localhost:99999/",
        "/health",
        "file:///etc/passwd",
    ] {
        let problem = "not a http://, https:// or tcp://host:port URL";
        refuses(&[(&native(&format!("health = \"{url}\"")), "5: services.a.health", problem)]);
    }
    refuses(&[
        (&native("unload = { url = \"tcp://h:1\" }"), "5: services.a.unload", "not a http"),
        (&native("warm_up = { url = \"tcp://h:1\" }"), "5: services.a.warm_up", "not a http"),
        (&native("api = \"vllm\"\nurl = \"h:1\""), "6: services.a.url", "not a http"),
        (
            &native("busy = { url = \"http://h\", json = \"queue\" }"),
            "5: services.a.busy",
            "must be a JSON pointer",
        ),
        (
            &native("busy = { url = \"http://h\", metric = \"a{b=1}\" }"),
            "5: services.a.busy",
            "the name of a metric",
        ),
        (
            &native("headers = { \"a b\" = \"x\" }"),
            "5: services.a.headers",
            "\"a b\" is not the name of a header",
        ),
        (
            &native("unload = { url = \"http://h\", method = \"A B\" }"),
            "5: services.a.unload",
            "not an HTTP method",
        ),
    ]);
    let lock = "not a redis://, rediss://, redis+unix:// or file:///path URL";
    for url in ["localhost:6379", "redis:", "http://localhost", "file://relative", "file:/x"] {
        refuses(&[(&format!("[lock]\nurl = \"{url}\""), "2: lock.url", lock)]);
    }
    for (url, why) in [
        (
            "redis://localhost:99999",
            "not a Redis URL (Redis URL did not parse); the form is redis://HOST",
        ),
        ("redis://localhost:6379/abc", "not a Redis URL (Invalid database number)"),
        ("redis://", "not a Redis URL (Missing hostname)"),
        ("redis+unix:///x?db=a", "not a Redis URL (Invalid database number)"),
    ] {
        refuses(&[(&format!("[lock]\nurl = \"{url}\""), "2: lock.url", why)]);
    }
    let rig = Rig::new();
    for url in ["redis://h", "rediss://u:p@h:1/2", "redis://[::1]:1", "redis+unix:///x?db=1"] {
        rig.write_config(&format!("[lock]\nurl = \"{url}\""));
        rig.gpuctl("config check").run().succeeds().stdout_has("good");
    }
    for url in ["http://[::1]:80/x", "https://h/x?y=1", "tcp://[::1]:80", "tcp://h:1"] {
        rig.write_config(&native(&format!("health = \"{url}\"")));
        rig.gpuctl("config check").run().succeeds().stdout_has("good");
    }
}

#[test]
fn a_pattern_that_matches_everything_is_refused() {
    for pattern in [
        ".*",
        ".",
        "^",
        "$",
        "a*",
        "x|",
        "|x",
        "()",
        ".+",
        "^.*$",
        ".?",
        "[a-z]",
        "[^x]*",
        "(x)?",
        "python|bash|.*",
        "x{0,3}",
    ] {
        let problem = "matches processes of every kind";
        refuses(&[(&native(&format!("match = '{pattern}'")), "5: services.a.match", problem)]);
    }
    let rig = Rig::new();
    for pattern in [r"python.*main\.py.*8188", "vidi_server", "^/opt/vllm ", "vidi|vllm.*serve"] {
        rig.write_config(&native(&format!("match = '{pattern}'")));
        rig.gpuctl("config check").run().succeeds().stdout_has("good");
    }
}

#[test]
fn home_and_variables_are_expanded_in_paths_commands_and_urls() {
    let rig = Rig::new();
    let text = "[gpu]\nnvml_library = \"$LIB/nvml.so\"\n[lock]\nurl = \"file://${LIB}/lock\"\n".to_owned()
        + &native(
            "health = \"http://localhost:$PORT/\"\nstop = \"~/stop $$PID\"\ncwd = \"~\"\n\
             env = { P = \"$LIB:x\" }\nunload = { url = \"http://localhost:$PORT\", body = \"$PORT\" }\n\
             api = \"comfyui\"\nurl = \"http://localhost:$PORT/\"\nheaders = { X-Key = \"$PORT\" }\n\
             busy = { command = \"~/jobs $PORT\" }\nwarm_up = { url = \"http://h:$PORT\" }\n\
             match = \"a $PORT\"",
        )
        .replace("start = \"a\"", "start = \"~/start --port $PORT\"");
    rig.write_config(&text);
    let show = rig.gpuctl("config show --json").env("LIB", "/opt/lib").env("PORT", "8188").run();
    let shown = show.succeeds().json();
    let home = rig.path("home").display().to_string();
    assert_eq!(shown["gpu"]["nvml_library"], "/opt/lib/nvml.so");
    assert_eq!(shown["lock"]["url"], "file:///opt/lib/lock");
    let service = &shown["services"]["a"];
    assert_eq!(service["health"], "http://localhost:8188/");
    assert_eq!(service["start"], format!("{home}/start --port 8188"));
    assert_eq!(service["stop"], format!("{home}/stop $PID"));
    assert_eq!(service["cwd"], home);
    assert_eq!(service["env"]["P"], "/opt/lib:x");
    assert_eq!(service["unload"]["url"], "http://localhost:8188");
    assert_eq!(service["unload"]["body"], "$PORT", "a body is sent as it is");
    assert_eq!(service["url"], "http://localhost:8188/");
    assert_eq!(service["busy"]["command"], format!("{home}/jobs 8188"));
    assert_eq!(service["warm_up"]["url"], "http://h:8188");
    assert_eq!(service["match"], "a $PORT", "in a pattern the dollar sign has its own meaning");
}

#[test]
fn a_variable_that_is_not_set_is_an_error_of_its_key() {
    let problem = "the environment variable NOWHERE is not set (write $$ for a dollar sign)";
    refuses(&[
        ("[gpu]\nnvml_library = \"$NOWHERE\"", "2: gpu.nvml_library", problem),
        ("[lock]\nurl = \"redis://$NOWHERE\"", "2: lock.url", problem),
        (&native("health = \"http://$NOWHERE\""), "5: services.a.health", problem),
        (&native("stop = \"kill $NOWHERE\""), "5: services.a.stop", problem),
        (&native("cwd = \"${NOWHERE}/x\""), "5: services.a.cwd", problem),
        (&native("env = { A = \"$NOWHERE\" }"), "5: services.a.env", problem),
        (&native("unload = { url = \"http://$NOWHERE\" }"), "5: services.a.unload", problem),
        (&native("headers = { X = \"$NOWHERE\" }"), "5: services.a.headers", problem),
        (&native("busy = { command = \"$NOWHERE\" }"), "5: services.a.busy", problem),
        (&native("api = \"vllm\"\nurl = \"http://$NOWHERE\""), "6: services.a.url", problem),
        (
            "[services.a]\ntype=\"native\"\nvram_mb=1\nstart=\"$NOWHERE\"",
            "4: services.a.start",
            problem,
        ),
    ]);
}

#[test]
fn a_phase_has_a_name_and_a_number_in_either_order_and_services_list_either() {
    let rig = Rig::new();
    for phases in ["4 = \"video\"", "video = 4"] {
        let service = native("phases = [\"video\", 5]");
        rig.write_config(&format!("[phases]\n{phases}\n{service}"));
        let check = rig.gpuctl("config check --json").run().succeeds().json();
        assert_eq!(check["phases"], serde_json::json!([4, 5]), "{phases}");
        let status = rig.gpuctl("status --json").run().succeeds().json();
        assert_eq!(status["services"]["a"]["phases"], serde_json::json!([4, 5]), "{phases}");
        for phase in ["video", "4"] {
            let plan = rig.gpuctl(&format!("prepare-phase {phase} --dry-run --quiet")).run();
            plan.succeeds().stdout_has("would start a");
        }
        rig.gpuctl("config show").run().succeeds().stdout_has(phases);
    }
    refuses(&[
        (
            "[phases]\nvideo = \"4th\"",
            "2: phases.video",
            "a phase must be a number, as in 4 = \"video\" or video = 4",
        ),
        ("[phases]\nvideo = 4\n4 = \"film\"", "2: phases.video", "phase 4 has two names"),
        ("[phases]\nvideo = 4\nfilm = 4", "2: phases.video", "phase 4 has two names"),
        ("[phases]\n3 = \"video\"\nvideo = 4", "3: phases.video", "is the name of two phases"),
        (
            &native("phases = [\"video\"]"),
            "5: services.a.phases",
            "give it a number under [phases]: video = 4",
        ),
        (
            &format!("[phases]\nvideo = 4\n{}", native("phases = [\"vidoe\"]")),
            "7: services.a.phases",
            "did you mean \"video\"?",
        ),
        (&native("phases = \"video\""), "5: services.a.phases", "write [\"video\"]"),
    ]);
}

#[test]
fn who_is_put_to_sleep_and_woken_by_nobody_is_warned_of() {
    let rig = Rig::new();
    let service = |keys: &str| {
        let unload =
            "evict = \"unload\"\nunload = { url = \"http://localhost:8000/sleep?level=1\" }";
        rig.write_config(&format!(
            "[services.vllm]\ntype = \"native\"\nstart = \"x\"\nvram_mb = 1\n{unload}\n{keys}"
        ));
        rig.gpuctl("config check --json").run().succeeds().json()
    };
    let warnings = service("")["warnings"].to_string();
    for part in ["services.vllm.unload", "no plan wakes it", "api = ", "http://localhost:8000"] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
    let named = service("api = \"vllm\"\nurl = \"http://localhost:8000\"");
    assert!(named.get("warnings").is_none(), "{named}");
}
