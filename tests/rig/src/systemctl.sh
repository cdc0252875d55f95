#!/bin/sh
# The systemctl (and, by that name, the journalctl) of one rig. A unit is a folder beside it with the command it runs;
# `state` there is written by the unit's supervisor alone, which is this script again. Messages, exit codes and the
# format and order of `show` are those of systemd 252.

units=${0%/bin/*}/systemd
verb='' signal=TERM properties='' waits=yes files=yes
while [ $# -gt 0 ]; do
    case $1 in
        --unit | --user-unit) exec cat "$units/$2/journal" ;;
        --property) shift; properties=$1 ;;
        --signal=*) signal=${1#*=} ;;
        --no-block) waits='' ;;
        --type=* | --plain | --no-legend | --job-mode=*) ;;
        --user) files='' ;; # their files are those of the system
        --no-pager | --no-ask-password) ;;
        --) shift; break ;;
        -*) echo "systemctl: unrecognized option '$1'" >&2; exit 1 ;;
        *) verb=$1 ;;
    esac
    shift
done

is_there() { [ -d "$units/$1" ]; }

# Sets what `show` tells, for a unit that may never have run.
read_state() {
    load=loaded active=inactive sub=dead pid=0 result=success status=0 restarts=0 since=0 group='' file=disabled
    is_there "$1" || load=not-found file=''
    if [ -e "$units/$1/installed" ]; then . "$units/$1/installed"; fi
    if [ -e "$units/$1/state" ]; then . "$units/$1/state"; fi
    if [ "$active" = active ] && [ -e "$units/$1/stopping" ]; then active=deactivating sub=stop-sigterm; fi
    if [ "$pid" != 0 ] && [ -e "$units/$1/group" ]; then group=$(cat "$units/$1/group"); fi
}

show() {
    read_state "$1"
    for line in "MainPID=$pid" "Result=$result" "NRestarts=$restarts" "ExecMainStatus=$status" "ControlGroup=$group" \
        "Id=$1" "LoadState=$load" "UnitFileState=$file" "ActiveState=$active" "SubState=$sub" "InactiveExitTimestampMonotonic=$since"; do
        case ,$properties, in *,"${line%%=*}",*) echo "$line" ;; esac
    done
}

# All that runs in the unit; where there are no control groups, its main process.
signal_all() (
    read_state "$1"
    for process in $(cat "$(cat "$units/$1/cgroup" 2>/dev/null)/cgroup.procs" 2>/dev/null || echo "$pid"); do
        if [ "$process" -gt 1 ]; then kill -"$2" "$process" 2>/dev/null; fi
    done
)

is_empty() { [ ! -e "$units/$1/cgroup" ] || [ -z "$(cat "$(cat "$units/$1/cgroup")/cgroup.procs")" ]; }

write_state() {
    echo "active=$1 sub=$2 pid=$3 result=$result status=$status restarts=$restarts since=$since" >"$units/$unit/state.new"
    mv "$units/$unit/state.new" "$units/$unit/state"
}

supervise() {
    unit=$1 folder=$units/$1 result=success status=0 restarts=0
    if [ -e "$folder/cgroup" ]; then join="echo \$\$ >$(cat "$folder/cgroup")/cgroup.procs;"; else join=''; fi
    while :; do
        since=$(awk '{ printf "%.0f", $1 * 1000000 }' /proc/uptime) # mawk's %d ends at 2^31
        env -i PATH="$PATH" SIMGPU_DIR="$SIMGPU_DIR" sh -c "$join exec $(cat "$folder/command")" >>"$folder/journal" 2>&1 &
        write_state active running $!
        # It was stopped while it was to be started again.
        if [ -e "$folder/stopping" ]; then signal_all "$unit" TERM; fi
        wait $!
        status=$?
        case $status in
            0 | 143) result=success status=0 ;;
            1[3-9]? | 129) result=signal status=$((status - 128)) ;;
            *) result=exit-code ;;
        esac
        if [ ! -e "$folder/stopping" ]; then signal_all "$unit" KILL; fi
        until is_empty "$unit"; do sleep 0.02; done
        if [ -e "$folder/restarts" ] && [ ! -e "$folder/stopping" ]; then
            restarts=$((restarts + 1))
            write_state activating auto-restart 0
            sleep 0.5
            if [ ! -e "$folder/stopping" ]; then continue; fi
        fi
        if [ "$result" = success ]; then write_state inactive dead 0; else write_state failed failed 0; fi
        return
    done
}

fault=$(cat "$units/fault" 2>/dev/null)
if [ "$fault" = NotBooted ]; then
    echo "System has not been booted with systemd as init system (PID 1). Can't operate." >&2
    echo "Failed to connect to bus: Host is down" >&2
    exit 1
fi
case $verb in
    show)
        first=$1
        for unit in "$@"; do
            if [ "$unit" != "$first" ]; then echo; fi
            show "$unit"
        done
        exit 0
        ;;
    list-unit-files)
        for unit in "$units"/*.service; do
            if [ -n "$files" ] && [ -d "$unit" ]; then echo "${unit##*/} disabled enabled"; fi
        done
        exit 0
        ;;
    supervise) supervise "$1"; exit 0 ;;
    start | stop | kill | reset-failed) ;;
    *) echo "Unknown command verb $verb." >&2; exit 1 ;;
esac
if [ "$fault" = NoPermission ]; then
    echo "Failed to $verb $1: Interactive authentication required." >&2
    echo "See system logs and 'systemctl status $1' for details." >&2
    exit 1
fi
for unit in "$@"; do
    if ! is_there "$unit"; then
        if [ "$verb" = start ]; then reason='not found'; else reason='not loaded'; fi
        echo "Failed to $verb $unit: Unit $unit $reason." >&2
        exit 5
    fi
    read_state "$unit"
    case $verb in
        start)
            if [ "$active" = active ] || [ "$active" = activating ]; then continue; fi
            rm -f "$units/$unit/state" "$units/$unit/stopping"
            env -i PATH="$PATH" HOME="$HOME" SIMGPU_DIR="$SIMGPU_DIR" setsid "$0" supervise -- "$unit" </dev/null >/dev/null 2>&1 &
            until [ -e "$units/$unit/state" ]; do sleep 0.01; done
            ;;
        stop)
            if [ "$active" = inactive ] || [ "$active" = failed ]; then continue; fi
            : >"$units/$unit/stopping"
            signal_all "$unit" TERM
            [ -n "$waits" ] || continue
            until [ "$active" = inactive ] || [ "$active" = failed ]; do sleep 0.02; read_state "$unit"; done
            ;;
        reset-failed) ;;
        kill) signal_all "$unit" "$signal" ;;
    esac
done
