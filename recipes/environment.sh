#!/usr/bin/env bash
# The interpreter behind every script of this project. Source this file, then call
#
#     prepare_environment [EXTRA]      # EXTRA: one of pyproject.toml's extras, e.g. dev
#
# Afterwards $PYTHON imports mindpangu and all it needs. Three ways, the first that applies:
#
#   1. MINDPANGU_PYTHON names an interpreter that already has MindSpore: it is used as it is, nothing is installed.
#   2. NPUs and CANN are here and the active environment has MindSpore (how clusters are set up): the same.
#   3. Otherwise .venv in the project folder. It is built once, under a lock, and reused as long as pyproject.toml,
#      the folder and the version of Python stay the same. pip writes to .venv/install.log.
#
# Without a network: PIP_FIND_LINKS=/folder/of/wheels PIP_NO_INDEX=1. pip builds this package in isolation, so the
# folder needs setuptools as well as the dependencies. A machine with a network, the same Python and the same kind of
# processor fills it, from the project folder, with
#
#     python3 -m pip wheel --wheel-dir /folder/of/wheels '.[dev]' setuptools

PROJECT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$PROJECT/.venv
PYTHON=''

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Sets PYTHON, and the variables that every run wants.
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

# True when the driver shows at least one NPU. npu-smi alone is no proof: images carry it on hosts without a card.
npus_are_present() {
    [ "$(count_davinci_devices)" -gt 0 ] || timeout 30 npu-smi info >/dev/null 2>&1
}

# How many /dev/davinciN this host (or container) has.
count_davinci_devices() {
    local device count=0
    for device in /dev/davinci[0-9]*; do
        if [ -e "$device" ]; then count=$((count + 1)); fi
    done
    echo "$count"
}

# True when CANN is active in this shell, or installed where its installer puts it.
cann_is_present() {
    [ -d "${ASCEND_HOME_PATH:-}" ] || [ -n "$(find_cann_script)" ]
}

# CANN's own set_env.sh; the folder was renamed from ascend-toolkit to cann.
find_cann_script() {
    local folder
    for folder in cann ascend-toolkit nnae; do
        if [ -r "/usr/local/Ascend/$folder/set_env.sh" ]; then
            echo "/usr/local/Ascend/$folder/set_env.sh"
            return
        fi
    done
}

# Activates an installed CANN, so that nobody has to source its script by hand.
activate_cann() {
    if [ -d "${ASCEND_HOME_PATH:-}" ]; then return; fi
    set +eu # the script is not written for strict shells
    # shellcheck disable=SC1090
    source "$(find_cann_script)"
    set -eu
}

# ---- An interpreter that the user or the cluster brings --------------------------------------------------------------

# Exits with a sentence that says what an interpreter lacks. `sys.argv[1:]` are modules that must be there.
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

# Says what $1 lacks to run this project with extra $2; says nothing when it is fit.
lacks_of_python() {
    local modules='numpy sentencepiece yaml safetensors psutil tqdm matplotlib jieba' complaint
    if [ "$2" = dev ]; then modules+=' pytest xdist hypothesis ruff mypy importlinter'; fi
    # shellcheck disable=SC2086
    if ! complaint=$("$1" -c "$CHECK_PYTHON" mindspore $modules 2>&1); then
        complaint=$(printf '%s\n' "$complaint" | tail -n 1)
        echo "${complaint:-it does not run}"
    fi
}

# MINDPANGU_PYTHON is an order: if it cannot be followed, nothing else is tried.
use_given_python() {
    local complaint
    PYTHON=$(command -v -- "$MINDPANGU_PYTHON") || die "MINDPANGU_PYTHON=$MINDPANGU_PYTHON: no such interpreter"
    complaint=$(lacks_of_python "$PYTHON" "$1")
    if [ -n "$complaint" ]; then die "MINDPANGU_PYTHON=$MINDPANGU_PYTHON cannot be used: $complaint"; fi
    export PYTHONPATH=$PROJECT${PYTHONPATH:+:$PYTHONPATH}
}

# On a cluster the image's MindSpore matches its CANN; a wheel from an index may not.
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
        say "The active $name is not used: $complaint."
    done
    return 1
}

# ---- .venv: built once, reused ---------------------------------------------------------------------------------------

# .venv/installing exists while an installation is under way, so an interrupted one is recognised.
# .venv/installed records a finished one, in three lines: its place, the hash of what was asked for, the extras.
INSTALLING=$VENV/installing
INSTALLED=$VENV/installed

# Uses .venv, after building it if it is not there or not up to date.
use_own_venv() {
    if ! venv_is_current "$1"; then
        lock_venv
        if ! venv_is_current "$1"; then build_venv "$1"; fi # another start may have built it while we waited
        unlock_venv
    fi
    PYTHON=$VENV/bin/python
}

# True when .venv holds what pyproject.toml asks for, and extra $1. Costs one start of a bare interpreter.
venv_is_current() {
    local place request extras=''
    [ -f "$INSTALLED" ] && [ ! -e "$INSTALLING" ] || return 1
    { read -r place && read -r request && read -r extras; } <"$INSTALLED" || true
    [ "$place $request" = "$(describe_venv place) $(describe_venv request)" ] || return 1
    [ -z "$1" ] || [[ " $extras " == *" $1 "* ]]
}

# The first (place) or second (request) line that .venv/installed should have; nothing when .venv's Python is broken.
describe_venv() {
    "$VENV/bin/python" -c '
import hashlib, pathlib, sys
what, venv, *files = sys.argv[1:]
if what == "place":
    print("python%d.%d" % sys.version_info[:2], venv)
else:
    print(hashlib.sha256(b"".join(pathlib.Path(file).read_bytes() for file in files)).hexdigest())
' "$1" "$VENV" "$PROJECT/pyproject.toml" "$PROJECT/setup.py" 2>/dev/null || true
}

# Installs the project with extra $1 into .venv; keeps what is there only if it is whole.
build_venv() {
    local extra=$1 extras='' place='' began=$SECONDS
    if [ -f "$INSTALLED" ]; then
        { read -r place && read -r && read -r extras; } <"$INSTALLED" || true
    fi
    if [ -n "$extra" ] && [[ " $extras " != *" $extra "* ]]; then extras="${extras:+$extras }$extra"; fi
    if ! venv_can_be_kept "$place"; then create_venv; fi
    : >"$INSTALLING"
    install_project "$extras"
    printf '%s\n' "$(describe_venv place)" "$(describe_venv request)" "$extras" >"$INSTALLED"
    rm -f "$INSTALLING"
    say "[$((SECONDS - began)) s] .venv is ready."
}

# True when pip may install into the existing .venv: no interruption, its Python runs, and it was not moved ($1: its
# recorded place; empty for a .venv that somebody else made, which is then kept).
venv_can_be_kept() {
    local place
    place=$(describe_venv place)
    [ ! -e "$INSTALLING" ] && [[ "$place" == python3.1[0-2]\ * ]] && [ "${1:-$place}" = "$place" ]
}

# A new, empty .venv.
create_venv() {
    local python
    python=$(find_python) || exit 1
    if [ -e "$VENV" ]; then say "The .venv here is unfinished, was moved, or has no fit Python: building it anew."; fi
    say "Creating .venv with $python."
    rm -rf -- "$VENV"
    mkdir -- "$VENV"
    : >"$INSTALLING"
    "$python" -m venv "$VENV" || die "$python -m venv $VENV failed"
}

# Prints "ok", or the version and what is missing. Must run on any Python, 2.7 included.
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

# Prints an interpreter that can build .venv. A name on PATH proves nothing: pyenv keeps shims of versions that are
# not active and only fail when run, and Debian splits ensurepip off.
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

# pip install --editable, with its progress bar on a terminal and a few plain lines in a log.
install_project() {
    local target=.${1:+[${1// /,}]} log=$VENV/install.log began=$SECONDS status=0 ticker
    local pip=("$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --editable "$target")
    say "Installing mindpangu$( [ -z "$1" ] || echo " with $1") into .venv (MindSpore alone is 0.8 GB)."
    if [ -t 1 ]; then
        (cd "$PROJECT" && "${pip[@]}" --log "$log") || status=$?
    else # in the foreground, so that Ctrl-C reaches pip
        report_progress "$log" "$began" &
        ticker=$!
        (cd "$PROJECT" && "${pip[@]}" >"$log" 2>&1) || status=$?
        kill "$ticker" 2>/dev/null || true
        wait "$ticker" 2>/dev/null || true
        if [ "$status" -ne 0 ]; then tail -n 15 "$log" >&2; fi
    fi
    if [ "$status" -ne 0 ]; then
        if [ -n "${PIP_NO_INDEX:-}" ]; then warn 'the wheel folder needs setuptools too: see recipes/environment.sh'; fi
        die 'the installation failed; all of it is in .venv/install.log'
    fi
    compile_operators
}

# The operators' CPU kernels, so that the first run need not. A source that changes later is compiled when it is next
# used; without a compiler the composed operators serve, which are slower.
compile_operators() {
    say "Compiling the operators' CPU kernels."
    (cd "$PROJECT" && "$VENV/bin/python" -m ascend_ops.native >>"$VENV/install.log") ||
        warn 'the CPU kernels were not compiled; see above'
}

# Every 15 s: the seconds since $2 and what pip is doing now, from its log $1. Ends with the script that started it.
report_progress() {
    local seconds=0
    exec 9>&- # the lock is not ours to hold
    while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        seconds=$((seconds + 1))
        if [ $((seconds % 15)) -eq 0 ]; then
            say "[$((SECONDS - $2)) s] $(grep -E '^ *(Collecting|Downloading|Installing|Building|Preparing)' "$1" |
                tail -n 1 | cut -c 1-90)"
        fi
    done
}

# ---- One installation at a time --------------------------------------------------------------------------------------

# Waits for the lock. flock(1) frees it by itself when its holders end, pip included; without flock a folder does,
# and one whose owner has died on this host is removed.
lock_venv() {
    if command -v flock >/dev/null; then
        exec 9>"$PROJECT/.venv.lock"
        flock --nonblock 9 && return
        say "Another start is installing; waiting for it."
        flock 9
        return
    fi
    local lock=$PROJECT/build/venv.lock owner
    mkdir -p "$PROJECT/build"
    until mkdir "$lock" 2>/dev/null; do
        if [ -z "${owner+set}" ]; then say "Another start is installing; waiting for it."; fi
        owner=$(cat "$lock/owner" 2>/dev/null || true)
        if [ "${owner% *}" = "$(uname -n)" ] && ! kill -0 "${owner##* }" 2>/dev/null; then
            # Renaming first: of several that find it dead, one removes it.
            mv "$lock" "$lock.$$" 2>/dev/null && rm -rf "$lock.$$"
        fi
        sleep 0.2
    done
    echo "$(uname -n) $$" >"$lock/owner"
}

# Lets the next start in.
unlock_venv() {
    if command -v flock >/dev/null; then exec 9>&-; else rm -rf "$PROJECT/build/venv.lock"; fi
}

# ---- Every run -------------------------------------------------------------------------------------------------------

# Quiet logs; and never MindSpore's compile cache, which returns wrong losses without a word.
set_runtime_defaults() {
    export GLOG_v=${GLOG_v:-3}
    if [ "${MS_COMPILER_CACHE_ENABLE:-0}" = 1 ]; then
        warn "MS_COMPILER_CACHE_ENABLE=1 is unset: MindSpore's compile cache gives wrong losses."
    fi
    unset MS_COMPILER_CACHE_ENABLE
}
