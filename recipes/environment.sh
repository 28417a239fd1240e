#!/usr/bin/env bash
# Provides the Python interpreter for every script of this project. Source this file, then call
#
#     prepare_environment [EXTRA]      # EXTRA: one of the extras in pyproject.toml, e.g. dev
#
# Afterwards $PYTHON can import mindpangu and its dependencies. The first of these that applies is used:
#
#   1. MINDPANGU_PYTHON names an interpreter that already has MindSpore. Nothing is installed.
#   2. NPUs and CANN are found, and the active environment has MindSpore, as on clusters. Nothing is installed.
#   3. Otherwise .venv in the project folder. It is built once, under a lock, and reused as long as pyproject.toml,
#      the folder, and the version of Python stay the same. pip logs to .venv/install.log.
#
# Without a network, set PIP_FIND_LINKS=/folder/of/wheels PIP_NO_INDEX=1. pip builds this package in isolation, so the
# folder needs setuptools in addition to the dependencies. To fill it, run this in the project folder on a machine with a
# network, the same Python, and the same processor architecture:
#
#     python3 -m pip wheel --wheel-dir /folder/of/wheels '.[dev]' setuptools

PROJECT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$PROJECT/.venv
PYTHON=''
STARTED_IN=${started_in:-${OLDPWD:-$PWD}} # scripts change to the project folder before they source this file

info() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# ---- Signals ---------------------------------------------------------------------------------------------------------

# INT, TERM, and HUP are passed on to the running program. When it has ended, the script ends too, with exit code 128 +
# the number of the signal. A signal that was ignored at the start, as HUP is under nohup, stays ignored: bash cannot
# trap it.
SECONDS_TO_STOP=5  # time that the program has to end after a second signal, before it is killed
program=''         # process id of the running program
stop_signal=''     # the last of these signals, if any
kill_at=''         # value of SECONDS at which the program is killed
interrupted=''     # set by traps, because a trap ends `wait`

# Runs a program, waits for it, and returns its exit code. The traps below pass signals on with `signal_program`.
run() {
    local status=0
    # Ctrl-C and batch systems send signals to whole process groups. In a group of its own, the program gets them only
    # once, from this script. Without job control (-m), bash would also make the program ignore INT.
    set -m
    "$@" </dev/null &
    program=$!
    set +m
    interrupted=yes
    while [ -n "$interrupted" ]; do
        interrupted=''
        if [ -n "$kill_at" ]; then kill_program_later; fi
        status=0
        wait "$program" || status=$?
    done
    if [ -n "$stop_signal" ]; then
        kill -s KILL -- "-$program" 2>/dev/null || true # processes that it has left behind
        exit_by_signal
    fi
    program=''
    return "$status"
}

# Passes signal $1 on to the running program. A second signal starts the time after which the program is killed.
stop_by_signal() {
    interrupted=yes
    # when a terminal is lost, the shell and the kernel send one HUP each: that is one request
    if [ "$1$stop_signal" = HUPHUP ]; then return 0; fi
    if [ -n "$stop_signal" ] && [ -z "$kill_at" ]; then kill_at=$((SECONDS + SECONDS_TO_STOP)); fi
    stop_signal=$1
    if [ -z "$program" ]; then exit_by_signal; fi
    signal_program "$1" || true
}

# Sends signal $1 to the running program.
signal_program() { kill -s "$1" "$program" 2>/dev/null; }

# Waits for the program to end, and kills it at $kill_at.
kill_program_later() {
    while kill -0 "$program" 2>/dev/null; do
        if [ "$SECONDS" -ge "$kill_at" ]; then
            signal_program KILL || true
            kill -s KILL -- "-$program" 2>/dev/null || true
        fi
        sleep 0.2
    done
}

# Prints what the user should know about the program that a signal has stopped.
report_stop() { :; }

# Exits with the exit code of a program that the signal has stopped.
exit_by_signal() {
    report_stop
    # shellcheck disable=SC2046
    kill $(jobs -p) 2>/dev/null || true
    exit $((128 + $(kill -l "$stop_signal")))
}

# Ctrl-Z suspends the program and this script, and fg or bg continues both.
pause() {
    interrupted=yes
    if [ -n "$program" ]; then signal_program TSTP || true; fi
    kill -s STOP $$
    if [ -n "$program" ]; then signal_program CONT || true; fi
}

trap 'stop_by_signal INT' INT
trap 'stop_by_signal TERM' TERM
trap 'stop_by_signal HUP' HUP
trap pause TSTP

# Sets PYTHON and the variables that every run needs.
prepare_environment() {
    local extra=${1:-}
    if [ -n "${MINDPANGU_PYTHON:-}" ]; then
        use_given_python "$extra"
    elif ! { npus_are_present && cann_is_present && use_active_python "$extra"; }; then
        use_own_venv "$extra"
    fi
    set_runtime_defaults
}

# ---- Ascend ----------------------------------------------------------------------------------------------------------

# True if the driver shows at least one NPU. The presence of npu-smi is no proof: images have it on hosts without NPUs.
npus_are_present() {
    [ "$(count_davinci_devices)" -gt 0 ] || timeout 30 npu-smi info >/dev/null 2>&1
}

# Prints the number of /dev/davinciN devices of this host or container.
count_davinci_devices() {
    local device count=0
    for device in /dev/davinci[0-9]*; do
        if [ -e "$device" ]; then count=$((count + 1)); fi
    done
    echo "$count"
}

# True if CANN is active in this shell, or installed in its default location.
cann_is_present() {
    [ -d "${ASCEND_HOME_PATH:-}" ] || [ -n "$(find_cann_script)" ]
}

# Prints the path of CANN's set_env.sh. Newer versions renamed the folder from ascend-toolkit to cann.
find_cann_script() {
    local folder
    for folder in cann ascend-toolkit nnae; do
        if [ -r "/usr/local/Ascend/$folder/set_env.sh" ]; then
            echo "/usr/local/Ascend/$folder/set_env.sh"
            return
        fi
    done
}

# Activates an installed CANN so that users need not source its script.
activate_cann() {
    if [ -d "${ASCEND_HOME_PATH:-}" ]; then return; fi
    set +eu # the script is not written for strict shells
    # shellcheck disable=SC1090
    source "$(find_cann_script)"
    set -eu
}

# ---- Existing interpreters -------------------------------------------------------------------------------------------

# Exits with a message if the interpreter lacks something. `sys.argv[1:]` are required modules.
CHECK_PYTHON='
import importlib.util, sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit("it is Python %d.%d; allowed: 3.10 to 3.12" % sys.version_info[:2])
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("it has no module " + ", ".join(missing))
try:
    import mindspore
except Exception as error:
    sys.exit("it cannot import mindspore: " + str(error))
'

# Prints what interpreter $1 lacks to run this project with extra $2, or nothing if it is usable.
lacks_of_python() {
    local modules='numpy sentencepiece yaml safetensors psutil tqdm matplotlib jieba' complaint
    if [ "$2" = dev ]; then modules+=' pytest xdist hypothesis ruff mypy importlinter'; fi
    # shellcheck disable=SC2086
    if ! complaint=$("$1" -c "$CHECK_PYTHON" mindspore $modules 2>&1); then
        complaint=$(printf '%s\n' "$complaint" | tail -n 1)
        echo "${complaint:-it does not run}"
    fi
}

# Prints path $1 from the environment for use in the project folder: a relative path that exists in the folder where the
# script was started becomes absolute.
from_start() {
    if [[ "$1" != /* ]] && [ -e "$STARTED_IN/$1" ]; then printf '%s\n' "$STARTED_IN/$1"; else printf '%s\n' "$1"; fi
}

# Uses MINDPANGU_PYTHON, or exits: an explicit choice has no fallback.
use_given_python() {
    local complaint
    if [[ "$MINDPANGU_PYTHON" == */* ]]; then MINDPANGU_PYTHON=$(from_start "$MINDPANGU_PYTHON"); fi # or a name on PATH
    PYTHON=$(command -v -- "$MINDPANGU_PYTHON") || die "MINDPANGU_PYTHON=$MINDPANGU_PYTHON: no such interpreter"
    complaint=$(lacks_of_python "$PYTHON" "$1")
    if [ -n "$complaint" ]; then die "MINDPANGU_PYTHON=$MINDPANGU_PYTHON cannot be used: $complaint"; fi
    export PYTHONPATH=$PROJECT${PYTHONPATH:+:$PYTHONPATH}
}

# Uses the active interpreter if it is usable. The image of a cluster has a MindSpore that matches its CANN; a wheel from
# a package index may not match.
use_active_python() {
    local name complaint
    activate_cann
    for name in python3 python; do
        command -v "$name" >/dev/null || continue
        complaint=$(lacks_of_python "$name" "$1")
        if [ -z "$complaint" ]; then
            PYTHON=$(command -v "$name")
            export PYTHONPATH=$PROJECT${PYTHONPATH:+:$PYTHONPATH}
            return
        fi
        info "The active $name is not used: $complaint."
    done
    return 1
}

# ---- .venv -----------------------------------------------------------------------------------------------------------

# .venv/installing exists during an installation, so an interrupted one is recognised.
# .venv/installed records a finished one in three lines: its location, the hash of the requirements, and the extras.
INSTALLING=$VENV/installing
INSTALLED=$VENV/installed

# Uses .venv, and builds it first if it is missing or out of date.
use_own_venv() {
    if ! venv_is_current "$1"; then
        lock_venv
        if ! venv_is_current "$1"; then build_venv "$1"; fi # another process may have built it in the meantime
        unlock_venv
    fi
    PYTHON=$VENV/bin/python
}

# True if .venv has everything that pyproject.toml requires, and extra $1. Takes one start of a bare interpreter.
venv_is_current() {
    local location requirements extras=''
    [ -f "$INSTALLED" ] && [ ! -e "$INSTALLING" ] || return 1
    { read -r location && read -r requirements && read -r extras; } <"$INSTALLED" || true
    [ "$location $requirements" = "$(describe_venv location) $(describe_venv requirements)" ] || return 1
    [ -z "$1" ] || [[ " $extras " == *" $1 "* ]]
}

# Prints the first (location) or second (requirements) line that .venv/installed should have, or nothing if .venv's
# Python is broken.
describe_venv() {
    "$VENV/bin/python" -c '
import hashlib, pathlib, sys
line, venv, *files = sys.argv[1:]
if line == "location":
    print("python%d.%d" % sys.version_info[:2], venv)
else:
    print(hashlib.sha256(b"".join(pathlib.Path(file).read_bytes() for file in files)).hexdigest())
' "$1" "$VENV" "$PROJECT/pyproject.toml" "$PROJECT/setup.py" 2>/dev/null || true
}

# Installs the project with extra $1 into .venv. Reuses an existing .venv only if it is intact.
build_venv() {
    local extra=$1 extras='' location='' began=$SECONDS
    if [ -f "$INSTALLED" ]; then
        { read -r location && read -r && read -r extras; } <"$INSTALLED" || true
    fi
    if [ -n "$extra" ] && [[ " $extras " != *" $extra "* ]]; then extras="${extras:+$extras }$extra"; fi
    if ! venv_can_be_kept "$location"; then create_venv; fi
    : >"$INSTALLING"
    install_project "$extras"
    printf '%s\n' "$(describe_venv location)" "$(describe_venv requirements)" "$extras" >"$INSTALLED"
    rm -f "$INSTALLING"
    info "[$((SECONDS - began)) s] .venv is ready."
}

# True if pip may install into the existing .venv: its installation was not interrupted, its Python runs, and it was not
# moved from its recorded location $1. A .venv without a record is the user's own and is kept.
venv_can_be_kept() {
    local location
    location=$(describe_venv location)
    [ ! -e "$INSTALLING" ] && [[ "$location" == python3.1[0-2]\ * ]] && [ "${1:-$location}" = "$location" ]
}

# Creates a new, empty .venv.
create_venv() {
    local python
    python=$(find_python) || exit 1
    if [ -e "$VENV" ]; then
        info "The existing .venv is incomplete, was moved, or has an unsuitable Python: rebuilding it."
    fi
    info "Creating .venv with $python."
    rm -rf -- "$VENV"
    mkdir -- "$VENV"
    : >"$INSTALLING"
    run "$python" -m venv "$VENV" || die "$python -m venv $VENV failed"
}

# Prints "ok", or the version and what is missing. Must run on any Python, including 2.7.
CAN_BUILD_VENV='
import sys
version = "%d.%d" % sys.version_info[:2]
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    print("is " + version)
else:
    try:
        import ensurepip, venv
        print("ok")
    except ImportError:
        print("is %s without venv and ensurepip (on Debian: apt install python%s-venv)" % (version, version))
'

# Prints the path of an interpreter that can build .venv. A name on PATH proves nothing: pyenv has shims for inactive
# versions, which fail when run, and Debian packages ensurepip separately.
find_python() {
    local name verdict seen='' pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}
    local PATH=${PATH//"$VENV/bin:"/} # an activated .venv must not be built from itself
    for name in python3 python3.12 python3.11 python3.10 python "$pyenv"/versions/3.1[0-2].*/bin/python3; do
        command -v "$name" >/dev/null 2>&1 || continue
        verdict=$("$name" -c "$CAN_BUILD_VENV" 2>/dev/null) || verdict='does not run'
        if [ "$verdict" = ok ]; then
            command -v "$name"
            return
        fi
        seen+=$'\n'"  $name $verdict"
    done
    die "no Python 3.10 to 3.12 was found.${seen:-$'\n'"  There is no python3 and no python on PATH."}"$'\n'"\
Install one, or set MINDPANGU_PYTHON to an interpreter that has MindSpore."
}

# Runs pip install --editable, with a progress bar on a terminal, or else with an occasional line of progress.
install_project() {
    local target=.${1:+[${1// /,}]} log=$VENV/install.log began=$SECONDS status=0 ticker links='' link
    local pip=("$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --editable "$target")
    for link in ${PIP_FIND_LINKS:-}; do links+=" $(from_start "$link")"; done # pip, too, separates them by blanks
    if [ -n "$links" ]; then export PIP_FIND_LINKS=${links# }; fi
    info "Installing mindpangu$( [ -z "$1" ] || echo " with $1") into .venv (MindSpore alone is 0.8 GB)."
    if [ -t 1 ]; then
        run in_project "${pip[@]}" --log "$log" || status=$?
    else
        report_progress "$log" "$began" &
        ticker=$!
        run in_project "${pip[@]}" >"$log" 2>&1 || status=$?
        kill "$ticker" 2>/dev/null || true
        wait "$ticker" 2>/dev/null || true
        if [ "$status" -ne 0 ]; then tail -n 15 "$log" >&2; fi
    fi
    if [ "$status" -ne 0 ]; then
        if [ -n "${PIP_NO_INDEX:-}" ]; then warn 'the wheel folder needs setuptools too: see recipes/environment.sh'; fi
        die 'the installation failed; the full log is in .venv/install.log'
    fi
    compile_operators
}

# Replaces this shell by a program that runs in the project folder.
in_project() { cd "$PROJECT" && exec "$@"; }

# Compiles the operators' CPU kernels so that the first run need not. A source that changes later is recompiled on its
# next use. Without a compiler, the slower composed operators are used.
compile_operators() {
    info "Compiling the operators' CPU kernels."
    run in_project "$VENV/bin/python" -m ascend_ops.native >>"$VENV/install.log" ||
        warn 'the CPU kernels were not compiled; see above'
}

# Prints the seconds since $2 and pip's current activity, from its log $1, every 15 s. Ends when its parent script ends.
report_progress() {
    local seconds=0
    exec 9>&- # release the parent's lock, which this process inherited
    while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        seconds=$((seconds + 1))
        if [ $((seconds % 15)) -eq 0 ]; then
            info "[$((SECONDS - $2)) s] $(grep -E '^ *(Collecting|Downloading|Installing|Building|Preparing)' "$1" |
                tail -n 1 | cut -c 1-90)"
        fi
    done
}

# ---- One installation at a time --------------------------------------------------------------------------------------

# Waits for the lock. flock(1) releases it when all its holders, including pip, have ended. Without flock, a folder is
# the lock; if its owner has died on this host, the folder is removed.
lock_venv() {
    if command -v flock >/dev/null; then
        { exec 9>"$PROJECT/.venv.lock"; } 2>/dev/null || die_read_only
        flock --nonblock 9 && return
        info "Another process is installing; waiting for it."
        run flock 9
        return
    fi
    local lock=$PROJECT/build/venv.lock owner
    { mkdir -p "$PROJECT/build" && [ -w "$PROJECT/build" ]; } 2>/dev/null || die_read_only
    until mkdir "$lock" 2>/dev/null; do
        if [ -z "${owner+set}" ]; then info "Another process is installing; waiting for it."; fi
        owner=$(cat "$lock/owner" 2>/dev/null || true)
        if [ "${owner% *}" = "$(uname -n)" ] && ! kill -0 "${owner##* }" 2>/dev/null; then
            # Rename first, so that only one of several waiting processes removes it.
            mv "$lock" "$lock.$$" 2>/dev/null && rm -rf "$lock.$$"
        fi
        sleep 0.2
    done
    echo "$(uname -n) $$" >"$lock/owner"
}

die_read_only() {
    die "$PROJECT cannot be written, so .venv cannot be built there: set MINDPANGU_PYTHON to an interpreter that has MindSpore"
}

# Releases the lock.
unlock_venv() {
    if command -v flock >/dev/null; then exec 9>&-; else rm -rf "$PROJECT/build/venv.lock"; fi
}

# ---- Every run -------------------------------------------------------------------------------------------------------

# Reduces MindSpore's logs, and unsets variables that must not reach a run: the switch of MindSpore's compile cache,
# which silently gives wrong losses, and the variables of a rank of another job.
set_runtime_defaults() {
    local name stale=''
    for name in RANK_ID RANK_SIZE MS_ROLE MS_NODE_ID MS_WORKER_NUM MS_SCHED_HOST MS_SCHED_PORT; do
        if [ -n "${!name:-}" ]; then stale+=" $name=${!name}"; fi
        unset "$name"
    done
    if [ -n "$stale" ]; then warn "unset, because they are left over from another job:$stale"; fi
    export GLOG_v=${GLOG_v:-3}
    case ${MS_COMPILER_CACHE_ENABLE:-0} in
        0) ;;
        *) warn "MS_COMPILER_CACHE_ENABLE=$MS_COMPILER_CACHE_ENABLE is unset: MindSpore's compile cache gives wrong losses." ;;
    esac
    unset MS_COMPILER_CACHE_ENABLE
}
