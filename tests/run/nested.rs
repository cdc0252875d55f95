//! Tests of gpuctl as it is called by the command of `gpuctl run`: it acts under the same lock.

use rig::{on_both, state, until};

#[test]
fn commands_inside_neither_wait_for_the_lock_nor_release_it() {
    on_both(|rig, _| {
        let comfyui = rig.native("comfyui").phases([4]).add();
        let ollama = rig.native("ollama").phases([4, 5]).add();
        let inside = "set -e
            gpuctl status --check comfyui >/dev/null
            gpuctl lock status && exit 50
            gpuctl --quiet prepare-phase 5 --no-wait >/dev/null
            gpuctl lock status && exit 51
            gpuctl --quiet stop ollama --no-wait >/dev/null
            gpuctl --quiet start ollama --no-wait >/dev/null
            gpuctl --quiet start comfyui --no-wait >/dev/null
            [ \"$(gpuctl lock acquire --no-wait)\" = \"$GPUCTL_LOCK_TOKEN\" ]
            gpuctl --quiet run --no-wait --phase 4 -- sh -c '
                echo inner $GPUCTL_LOCK_TOKEN $GPUCTL_FENCE $GPUCTL_SERVICE; gpuctl lock status && exit 52; exit 8' || code=$?
            [ $code = 8 ]
            gpuctl lock status && exit 53
            echo outer $GPUCTL_LOCK_TOKEN $GPUCTL_FENCE $GPUCTL_SERVICE";
        rig.program("work", inside);
        let text = rig.gpuctl("run --quiet comfyui -- work").run().succeeds().text();
        let told: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("inner") || line.starts_with("outer"))
            .map(|line| line.split(' ').collect())
            .collect();
        assert_eq!(told.len(), 2, "{text}");
        assert_eq!(told[0][1..3], told[1][1..3]);
        assert_eq!((told[0][3], told[1][3]), ("comfyui,ollama", "comfyui"));
        assert!(comfyui.is_healthy() && ollama.is_healthy());
        rig.assert_free_and_alone();
    });
}

#[test]
fn the_lock_of_run_is_not_released_inside() {
    on_both(|rig, _| {
        rig.native("comfyui").add();
        rig.program(
            "work",
            "export GPUCTL_LOCK_TOKEN=$(gpuctl lock acquire maintenance --pid $$)
             gpuctl lock release; echo $?
             unset GPUCTL_LOCK_TOKEN; gpuctl lock acquire other --no-wait 2>/dev/null; exit $?",
        );
        let kept = "not released: it is the lock of `gpuctl run`, and ends with it\n";
        let run = rig.gpuctl("run --quiet comfyui -- work").run();
        run.exits(75).stdout(&format!("{kept}0\n"));
        rig.assert_lock_was_given_back();

        rig.program(
            "wait",
            "echo $GPUCTL_LOCK_TOKEN; until [ -e done ]; do sleep 0.02; done; exit 7",
        );
        let release = |how: &str| rig.gpuctl(&format!("lock release {how}")).run();
        let run = rig.gpuctl("run --quiet comfyui -- wait").spawn();
        until("it works", || run.stdout().ends_with('\n'));
        let token = run.stdout();
        release(&format!("--token {token}")).succeeds().stdout(kept);
        let told = release(&format!("--json --token {token}")).succeeds().json();
        assert_eq!(told, serde_json::json!({"released": false, "holder": "comfyui"}));
        assert_eq!(rig.lock_held()["holder"], "comfyui");
        rig.file("home/done", "");
        run.wait().exits(7).stdout(&token);
    });
}

#[test]
fn its_own_service_can_be_stopped_inside_and_outside_without_ending_the_command() {
    on_both(|rig, _| {
        let comfyui = rig.native("comfyui").add();
        rig.program(
            "work",
            "sleep 1000 & one=$!; setsid sleep 1000 & two=$!; echo $$ $two $GPUCTL_LOCK_TOKEN
             gpuctl --quiet stop comfyui >/dev/null; echo stopped
             until [ -e done ]; do sleep 0.02; done; kill $one $two; echo end",
        );
        let run = rig.gpuctl("run --quiet comfyui -- work").spawn();
        until("it is stopped", || run.stdout().contains("stopped"));
        rig.assert_no_process_of(&comfyui);
        let text = run.stdout();
        let words: Vec<&str> = text.split_whitespace().collect();
        let [work, child] = [words[0], words[1]].map(|pid| pid.parse().unwrap());
        let status = rig.gpuctl("status --json").run().succeeds().json();
        assert_eq!(status["services"]["comfyui"]["pids"], serde_json::json!([]));
        for command in ["start", "stop --force", "start", "stop"] {
            let act = rig.gpuctl(&format!("{command} comfyui --no-wait"));
            act.env("GPUCTL_LOCK_TOKEN", words[2])
                .run()
                .succeeds()
                .stdout_has("comfyui")
                .progress();
            assert!(state(work).is_some() && state(child).is_some(), "{command}");
        }
        rig.file("home/done", "");
        let outcome = run.wait().succeeds().stdout_has("end\n");
        drop(outcome.ignores_stderr());
    });
}

#[test]
fn a_service_that_is_started_inside_is_not_the_commands() {
    on_both(|rig, _| {
        rig.native("comfyui").add();
        let ollama = rig.native("ollama").add();
        let start = "gpuctl --quiet start ollama >/dev/null; echo started; exec sleep 1000";
        rig.program("work", start);
        let run = rig.gpuctl("run --quiet --grace 1s comfyui -- work").spawn();
        until("it is started", || run.stdout().contains("started"));
        run.signal(rig::Signal::KILL);
        run.wait().dies_of(9).stdout("started\n");
        rig.gpuctl("run --quiet comfyui -- true").run().succeeds();
        assert!(ollama.is_healthy(), "it was ended with the command");
    });
}
