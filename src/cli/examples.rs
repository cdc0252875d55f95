//! The examples in the help of each command and in its manual page. A test parses every line, so
//! each is a valid command line.

pub const GPUCTL: &str = "\
Examples:
  gpuctl config init                      # a configuration to start from
  gpuctl status                           # memory, services, lock
  gpuctl prepare-phase 3 && ./speak.sh    # a step of a pipeline
  gpuctl run comfyui -- ./render.sh       # exclusive use of a service
  gpuctl can-fit 20GB || exit 1           # a check in a script";

pub const STATUS: &str = "\
Examples:
  gpuctl status
  gpuctl status --check comfyui    # exit code 0 if it is ready
  gpuctl status --watch            # refreshed every 2 s
  gpuctl status --json | jq .vram.free_mb
  gpuctl status --prometheus > gpuctl.prom";

pub const CAN_FIT: &str = "\
Examples:
  gpuctl can-fit 20GB                  # now, beside gpu.reserve_mb
  gpuctl can-fit comfyui --margin 0    # what it has declared, no reserve
  gpuctl can-fit 8000 --budget         # if all services take what they may";

pub const PREPARE_PHASE: &str = "\
Examples:
  gpuctl prepare-phase video && ./render.sh
  gpuctl prepare-phase 4 --dry-run     # what would be stopped and started
  gpuctl prepare-phase 4 --lazy        # stop only as much as is needed
  gpuctl prepare-phase 4 --wait 10m    # if another holds the GPU";

pub const START: &str = "\
Examples:
  gpuctl start comfyui
  gpuctl start comfyui --dry-run      # what would have to stop
  gpuctl start ollama --no-preempt    # only if there is room";

pub const RESTART: &str = "\
Examples:
  gpuctl restart comfyui
  gpuctl restart comfyui --force    # it is stuck: kill it at once";

pub const LOGS: &str = "\
Examples:
  gpuctl logs comfyui
  gpuctl logs comfyui -n 1000 | grep -i error
  gpuctl logs ollama -f";

pub const STOP: &str = "\
Examples:
  gpuctl stop ollama
  gpuctl stop ollama vidi --force    # kill them at once";

pub const RELEASE_ALL: &str = "\
Examples:
  gpuctl release-all    # before a driver update
  gpuctl release-all --dry-run";

pub const RELEASE_IDLE: &str = "\
Examples:
  gpuctl release-idle                       # as the services' `idle` says
  gpuctl release-idle ollama --after 30m
  gpuctl release-idle --after 2h --dry-run    # what would go";

pub const RUN: &str = "\
Examples:
  gpuctl run comfyui -- ./render.sh --all
  gpuctl run --phase video -- ./render.sh
  gpuctl run comfyui --wait 1h -- make    # wait up to an hour for others
  gpuctl run --vram 8GB --restore -- ./train.py    # and all is back";

pub const ADOPT: &str = "\
Examples:
  gpuctl adopt comfyui 4711
  gpuctl adopt vllm 4711 4720    # and a worker that has lost its parent";

pub const DOCTOR: &str = "\
Examples:
  gpuctl doctor
  gpuctl doctor --json | jq -r '.checks[].id'";

pub const HISTORY: &str = "\
Examples:
  gpuctl history -n 5
  gpuctl history --since 1h
  gpuctl history --json | jq '.runs[-1]'";

pub const LOCK: &str = "\
Examples:
  gpuctl lock status
  gpuctl lock acquire maintenance --ttl 1h";

pub const LOCK_ACQUIRE: &str = "\
Examples:
  # Hold the GPU for a whole script:
  export GPUCTL_LOCK_TOKEN=$(gpuctl lock acquire nightly --pid $$)
  gpuctl prepare-phase video
  gpuctl lock release";

pub const LOCK_RELEASE: &str = "\
Examples:
  gpuctl lock release            # the one in $GPUCTL_LOCK_TOKEN
  gpuctl lock release --token \"$token\"
  gpuctl lock release --force    # whoever holds it";

pub const LOCK_STATUS: &str = "\
Examples:
  gpuctl lock status
  gpuctl lock status --json | jq -r .holder";

pub const HTTP: &str = "\
Examples:
  systemd-socket-activate --accept --inetd -l 127.0.0.1:8000 gpuctl http
  curl -X POST localhost:8000/gpu/prepare-phase/2
  printf 'GET /gpu/status HTTP/1.0\r\n\r\n' | gpuctl http";

pub const CANARY: &str = "\
Examples:
  gpuctl canary check --set vllm_memory_util=0.75
  gpuctl canary run --set vllm_memory_util=0.75
  gpuctl canary status    # window, budget, runs";

pub const CANARY_CHECK: &str = "\
Examples:
  gpuctl canary check --set vllm_memory_util=0.75 max_model_len=8192
  gpuctl canary check --candidate candidate.json";

pub const CANARY_RUN: &str = "\
Examples:
  gpuctl canary run --set vllm_memory_util=0.75 --dry-run
  gpuctl canary run --set vllm_memory_util=0.75 --now
  ./tune | gpuctl canary run --candidate - --json";

pub const CANARY_STATUS: &str = "\
Examples:
  gpuctl canary status
  gpuctl canary status --json";

pub const CANARY_RECOVER: &str = "\
Examples:
  gpuctl canary recover    # after a power failure in the middle of a trial";

pub const CANARY_RESET_BUDGET: &str = "\
Examples:
  gpuctl canary reset-budget";

pub const CANARY_UNLOCK: &str = "\
Examples:
  gpuctl canary unlock --force    # look first: gpuctl lock status";

pub const CONFIG: &str = "\
Examples:
  gpuctl config init    # ~/.config/gpuctl/config.toml
  gpuctl config check";

pub const CONFIG_INIT: &str = "\
Examples:
  gpuctl config init                       # what is found on this machine
  gpuctl config init --example pipeline
  gpuctl config init --output ./gpuctl.toml";

pub const CONFIG_IMPORT: &str = "\
Examples:
  gpuctl config import compose.yaml
  gpuctl config import compose.yaml --output ./gpuctl.toml";

pub const CONFIG_CHECK: &str = "\
Examples:
  gpuctl config check
  gpuctl config check --config new.toml && mv new.toml gpuctl.toml";

pub const CONFIG_SHOW: &str = "\
Examples:
  gpuctl config show    # with the defaults filled in
  gpuctl config show --json | jq .services";

pub const CONFIG_PATH: &str = "\
Examples:
  ${EDITOR:-vi} \"$(gpuctl config path)\"";

pub const CONFIG_SCHEMA: &str = "\
Examples:
  # For an editor that checks while you type:
  gpuctl config schema > gpuctl.schema.json";

pub const COMPLETIONS: &str = "\
Examples:
  # Bash, for one user (package bash-completion):
  dir=~/.local/share/bash-completion/completions
  mkdir -p $dir && gpuctl completions bash > $dir/gpuctl
  # Bash without that package, in ~/.bashrc:
  source <(gpuctl completions bash)
  # Zsh, in ~/.zshrc, after compinit:
  source <(gpuctl completions zsh)
  # Zsh, for all users, as root:
  gpuctl completions zsh > /usr/local/share/zsh/site-functions/_gpuctl
  # Fish:
  gpuctl completions fish > ~/.config/fish/completions/gpuctl.fish";

pub const MAN: &str = "\
Examples:
  gpuctl man | man -l -
  gpuctl man --out ~/.local/share/man/man1    # for `man gpuctl-status`
  man -l ~/.local/share/man/man1/gpuctl.toml.5";
