#!/usr/bin/env bash
# Turns text into a trained PanGu model that continues prompts, on Ascend 910 NPUs, or on the CPU if there are none.
set -euo pipefail
started_in=$PWD
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source recipes/environment.sh

usage() {
    cat <<'END'
usage: bash recipes/run_910.sh [--config FILE] [--resume] [--load DIR] [--section.key value …]

Trains a PanGu model in these stages:

    tokenizer    train a sentencepiece model on the corpus
    data         write token shards, one set per domain
    routing      draw the table (RRE layer, domain, token) → expert, and print its load
    train        write checkpoints, metrics.jsonl, and a report to output/<run>/
    evaluate     measure the held-out perplexity of every domain       (not on Ascend clusters)
    generate     continue a prompt in every domain                     (not on Ascend clusters)

A stage is skipped if its output exists and its inputs are unchanged. Without options this trains a small PanGu-Σ on the
CPU in minutes, or recipes/pangu_sigma_node.yaml if NPUs and CANN are found.

options
    --config FILE          YAML file that describes the run, see recipes/. A relative path in --config, --load, or a key
                           that holds one path is looked up in the current folder first, then in the project folder.
                           Paths inside FILE are relative to the project folder
    --resume               continue the run from its last checkpoint
    --load DIR             start a new run from the weights, tables, and tokenizer of a checkpoint; repeat it together
                           with --resume
    --section.key value    change one key of the configuration, e.g. --training.steps 20

environment: installation
    MINDPANGU_PYTHON       interpreter that has MindSpore; nothing is installed
    PIP_FIND_LINKS         folder of wheels; with PIP_NO_INDEX=1 no network is needed

environment: CPU
    CPU_PROCESSES          number of processes that train together     (1; recipes/run_cpu_cluster.sh sets it)

environment: Ascend (start this script on every node)
    NNODES, NODE_RANK      number of nodes, and the rank of this one   (1, 0)
    MASTER_ADDR            address of node 0                           (127.0.0.1)
    MASTER_PORT            port of node 0                              (8118; a free one if NNODES is 1)
    NPROC                  processes on this node, one per NPU         (all visible NPUs, or 8 if none is found)
    CLUSTER_TIMEOUT        seconds in which all nodes must start       (600)
    HCCL_CONNECT_TIMEOUT   seconds a link may take, 120 to 7200        (1200: ranks compile at different speeds)
    HCCL_EXEC_TIMEOUT      seconds a collective may take               (3600: above parallelism.timeout)
    HCCL_BUFFSIZE          MB per communication group, the same on all ranks  (200)
    HCCL_DETERMINISTIC     true: sum in a fixed order, which is slower (false)
    HCCL_SOCKET_IFNAME     network card of this host, or HCCL_IF_IP    (HCCL's choice)
    ASCEND_RT_VISIBLE_DEVICES   NPUs to use, e.g. 0,1,2,3              (0 to NPROC - 1)

The exit code is 0 if all stages succeeded, or else that of the failed stage. Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which
a lost connection sends, are passed on to the running stage. Training finishes its step, saves a checkpoint, and ends;
--resume continues it. Other stages end without output. The script then exits with 130, 143, or 129. A second signal
ends the stage at once, without saving. Under nohup, SIGHUP is ignored.
END
}

# Sets `located` to path $1 for use in the project folder: a leading ~, which bash does not expand after "=", becomes
# the home folder, and a relative path that exists in the folder where the script was started becomes absolute.
locate() {
    local user=${1%%/*} home='^~([A-Za-z0-9_][A-Za-z0-9._-]*)?$'
    located=$1
    if [[ "$user" =~ $home ]]; then
        eval "located=$user" # bash also knows the home folders of other users
        located+=${1#"$user"}
    fi
    if [[ "$located" != /* ]] && [ "$started_in" != "$PWD" ] && [ -n "$located" ] && [ -e "$started_in/$located" ]; then
        located=$started_in/$located
    fi
}

# ---- Options ---------------------------------------------------------------------------------------------------------

config=''
options=()       # --config and overrides for every stage, each as one word, because a value may begin with --
train_options=() # --resume or --load, only for training
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --resume) train_options+=("$1"); shift; continue ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; # split --key=value into --key value
        --config | --load | --*.*) ;;
        *) die "unknown option $1; bash recipes/run_910.sh --help lists all options" ;;
    esac
    [ $# -ge 2 ] || die "$1 needs a value"
    case $1 in
        --config)
            locate "$2"
            config=$located
            [ -e "$config" ] || die "there is no file $2 in $started_in$([ "$started_in" = "$PWD" ] || echo " and none in $PWD")"
            ;;
        --load)
            locate "$2"
            # weights need the table and the tokenizer that they were trained with; later options take precedence
            train_options+=("--load=$located")
            weights=$located
            for found in "$located"/iteration_*; do # what `mindpangu experts`, `extract` and `upcycle` write
                if [ ! -d "$located/tokenizer" ] && [ -d "$found/tokenizer" ]; then weights=$found; fi
            done
            if [ -d "$weights/routing" ]; then
                options=("--routing.table=$weights/routing" ${options[@]+"${options[@]}"})
            fi
            if [ -f "$weights/tokenizer/main.model" ]; then
                options=("--data.tokenizer=$weights/tokenizer/main.model" ${options[@]+"${options[@]}"})
            fi
            ;;
        # the keys that hold one path
        --data.tokenizer | --experts.storage_folder | --routing.table | --training.output_dir)
            locate "$2"
            options+=("$1=$located")
            ;;
        --*.*) options+=("$1=$2") ;;
        *) die "unknown option $1; bash recipes/run_910.sh --help lists all options" ;;
    esac
    shift 2
done

# ---- Device and processes --------------------------------------------------------------------------------------------

cpu_reason=''
if npus_are_present && cann_is_present; then
    activate_cann
    config=${config:-recipes/pangu_sigma_node.yaml}
else
    if npus_are_present; then
        cpu_reason='NPUs were found but CANN was not (no ASCEND_HOME_PATH, nothing in /usr/local/Ascend)'
    elif cann_is_present; then
        cpu_reason='CANN was found but no NPU (no /dev/davinci*, npu-smi info fails)'
    else
        cpu_reason='No NPU and no CANN here'
    fi
    config=${config:-recipes/cpu_smoke.yaml}
    info "$cpu_reason: falling back to the CPU with $config."
fi
options=("--config=$config" ${options[@]+"${options[@]}"}) # this form, because bash before 4.4 takes () for unset
train_options=("${options[@]}" ${train_options[@]+"${train_options[@]}"})

prepare_environment

# Runs a mindpangu command in one process.
mindpangu() { run "$PYTHON" -m mindpangu "$@"; }

# Prints the value of a key of the run's configuration.
value_of() { "$PYTHON" -m mindpangu config "${options[@]}" --get "$1"; }

device_target=$(value_of context.device_target)
if [ -n "$cpu_reason" ] && [ "$device_target" != CPU ]; then
    die "$config asks for context.device_target $device_target. $cpu_reason."
fi

# Exits unless variable $1 is an integer from $2 to $3.
require_integer() {
    local value=${!1}
    [[ "$value" =~ ^[0-9]{1,9}$ ]] && [ "$value" -ge "$2" ] && [ "$value" -le "$3" ] ||
        die "$1 is '$value'; allowed: an integer from $2 to $3"
}

# Prints the number of NPUs that this node can use.
count_visible_npus() {
    local count
    if [ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then
        printf '%s\n' "${ASCEND_RT_VISIBLE_DEVICES//,/$'\n'}" | wc -l # no here-string, which may need a temporary file
    else
        count=$(count_davinci_devices)
        echo $((count > 0 ? count : 8))
    fi
}

# Sets MASTER_PORT to a free port if it is not set.
choose_port() {
    MASTER_PORT=${MASTER_PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
    require_integer MASTER_PORT 1024 65535
}

# Sets the variables of the ranks and of HCCL. Values from the environment take precedence.
set_up_cluster() {
    NNODES=${NNODES:-1} NPROC=${NPROC:-$(count_visible_npus)}
    require_integer NNODES 1 100000
    require_integer NPROC 1 1024
    if [ "$NNODES" -gt 1 ] && { [ -z "${NODE_RANK:-}" ] || [ -z "${MASTER_ADDR:-}" ]; }; then
        die "NNODES is $NNODES: set NODE_RANK on every node (0 to $((NNODES - 1))), and MASTER_ADDR to node 0's address"
    fi
    NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
    require_integer NODE_RANK 0 $((NNODES - 1))
    if [ "$NNODES" -gt 1 ]; then MASTER_PORT=${MASTER_PORT:-8118}; fi # the same on all nodes
    choose_port

    # The default of 120 s is shorter than the difference between the compile times of two ranks.
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1200}
    require_integer HCCL_CONNECT_TIMEOUT 120 7200
    export HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-3600}
    # A buffer that is too small fails with "MTE out of range"; ranks with different sizes hang.
    export HCCL_BUFFSIZE=${HCCL_BUFFSIZE:-200}
    # true makes a resumed run reproducible bit for bit on the NPU too.
    export HCCL_DETERMINISTIC=${HCCL_DETERMINISTIC:-false}
    export ASCEND_RT_VISIBLE_DEVICES=${ASCEND_RT_VISIBLE_DEVICES:-$(seq -s, 0 $((NPROC - 1)))}
    if [ "$NNODES" -gt 1 ] && [ -z "${HCCL_SOCKET_IFNAME:-}${HCCL_IF_IP:-}" ]; then
        warn 'neither HCCL_SOCKET_IFNAME nor HCCL_IF_IP is set; HCCL may choose the wrong one of several networks'
    fi
}

# Sets the variables of the ranks for training with several processes on this machine.
set_up_cpu_processes() {
    require_integer CPU_PROCESSES 1 1024
    NNODES=1 NODE_RANK=0 NPROC=$CPU_PROCESSES MASTER_ADDR=127.0.0.1
    choose_port
    # otherwise every process would use all cores
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(("$(nproc)" > NPROC ? "$(nproc)" / NPROC : 1))}
}

processes=1
if [ "$device_target" = Ascend ]; then
    set_up_cluster
    processes=$((NNODES * NPROC))
    info "Ascend: $processes processes on $NNODES node(s); this is node $NODE_RANK; $config."
else
    [ -n "$cpu_reason" ] || info "$config asks for the CPU: the NPUs stay idle."
    if [ "${CPU_PROCESSES:-1}" != 1 ]; then
        set_up_cpu_processes
        processes=$NPROC
        info "$processes processes on this machine train together."
    fi
fi

# Exits if the port of this job's scheduler, which runs on node 0, is in use. msrun would take a minute to say so.
require_free_port() {
    [ "$NODE_RANK" -eq 0 ] || return 0
    "$PYTHON" -c '
import errno, socket, sys
address, port = sys.argv[1:]
try:
    family, _, _, _, endpoint = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
    probe = socket.socket(family)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores connections that have just ended
    probe.bind(endpoint)
except OSError as error:
    if error.errno == errno.EADDRINUSE:
        sys.exit(3)
    if isinstance(error, socket.gaierror):
        sys.exit(4)
' "$MASTER_ADDR" "$MASTER_PORT" || case $? in
        3) die "MASTER_PORT $MASTER_PORT is in use on this machine: set another one, the same on all nodes" ;;
        4) die "MASTER_ADDR '$MASTER_ADDR' is neither an address nor the name of a known host" ;;
    esac
}

ranks_log='' # the folder of the ranks' logs while msrun runs them

# Sends signal $1 to the running program. If that is msrun, sends it only to the ranks of this node, because msrun would
# kill them before they can save. Before they have started, there is nothing to save.
signal_program() {
    if [ -z "$ranks_log" ]; then
        kill -s "$1" "$program" 2>/dev/null
    elif ! signal_ranks "$1"; then
        kill -s "$1" -- "-$program" 2>/dev/null # msrun and its scheduler
    fi
}

# Sends signal $1 to the ranks of this node, which are children of msrun ($program). Returns 1 if there are none.
signal_ranks() {
    local status pid found=1
    for status in $(grep -lsx "PPid:[[:space:]]*$program" /proc/[0-9]*/status); do
        pid=${status//[!0-9]/}
        if grep -qsz '^MS_ROLE=MS_WORKER$' "/proc/$pid/environ" && kill -s "$1" "$pid" 2>/dev/null; then found=0; fi
    done
    return "$found"
}

# Prints the line that msrun did not show, because it stops showing the first rank's log once the ranks have ended.
report_stop() {
    if [ -n "$ranks_log" ]; then grep -hs '^train: stopped' "$ranks_log"/worker_*.log || true; fi
}

# Runs a mindpangu command in every process of the cluster. Logs go to subfolder $1 of the run folder. msrun starts its
# workers as `python` from PATH, whatever interpreter it runs under itself. So the folder of $PYTHON comes first on PATH,
# and its `python` must be the same interpreter.
mindpangu_on_all_ranks() {
    local folder=${PYTHON%/*} identity='import sys; print(sys.version, sys.prefix)' log_folder errors status=0
    [ "$("$folder/python" -c "$identity" 2>/dev/null)" = "$("$PYTHON" -c "$identity")" ] ||
        die "msrun starts workers as 'python', but $folder/python is not $PYTHON: use an environment in which it is"
    PATH=$folder:$PATH command -v msrun >/dev/null ||
        die "no msrun in $folder or on PATH: is the installation of MindSpore complete?"
    log_folder=$(value_of run_folder)/$1
    shift
    require_free_port
    mkdir -p "$log_folder"
    ranks_log=$log_folder
    info "Every rank logs to $log_folder; the log of this node's first rank follows."
    # msrun's own warnings and tracebacks go to a file, because the ranks report what went wrong
    PATH=$folder:$PATH run msrun --worker_num="$processes" --local_worker_num="$NPROC" --node_rank="$NODE_RANK" \
        --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --cluster_time_out="${CLUSTER_TIMEOUT:-600}" \
        --log_dir="$log_folder" --join=True --tail_worker_log=$((NODE_RANK * NPROC)) \
        python -m mindpangu "$@" 2>"$log_folder/msrun_$NODE_RANK.log" || status=$?
    ranks_log=''
    if [ "$status" -ne 0 ]; then
        # the first rank's log is above, but that rank may have been killed before it could print an error
        errors=$(grep -hs '^mindpangu: error' "$log_folder"/worker_*.log | sort -u | head -n 8 || true)
        printf '%s\n' "${errors:-$(tail -n 5 "$log_folder/msrun_$NODE_RANK.log")}" >&2
    fi
    return "$status"
}

# ---- Stages ----------------------------------------------------------------------------------------------------------

# Trains one tokenizer on the text of all domains.
mindpangu tokenizer train "${options[@]}"

# Tokenizes every domain's documents. Nodes that share the project folder take turns: the second one finds this done.
mindpangu data prepare "${options[@]}"

# Decides before the first step which expert serves which token. This never changes.
mindpangu routing build "${options[@]}"

# Trains. After a failure, restarts from the last checkpoint up to training.restarts times. A training that a signal
# stopped has not failed, and one that fails before its first step would fail again.
train_with_restarts() {
    local restarts resume=() status left run_folder metrics logs=msrun_log
    restarts=$(value_of training.restarts)
    run_folder=$(value_of run_folder)
    for ((left = restarts; ; left--)); do
        status=0 metrics=$(describe_metrics "$run_folder")
        rm -f "$run_folder/.stopped"
        if [ "$processes" -eq 1 ]; then
            mindpangu train "${train_options[@]}" ${resume[@]+"${resume[@]}"} || status=$?
        else
            mindpangu_on_all_ranks "$logs" train "${train_options[@]}" ${resume[@]+"${resume[@]}"} || status=$?
            if [ -e "$run_folder/.stopped" ]; then read -r status <"$run_folder/.stopped"; fi
        fi
        case $status in 0 | 129 | 130 | 143) return "$status" ;; esac
        if [ "$left" -le 0 ]; then return "$status"; fi
        if [ "$(describe_metrics "$run_folder")" = "$metrics" ]; then
            warn 'training failed before its first step: not restarting it'
            return "$status"
        fi
        warn "training failed (exit code $status); continuing from the last checkpoint, restart $((restarts - left + 1)) of $restarts"
        resume=(--resume)
        logs=msrun_log_restart_$((restarts - left + 1))
    done
}

# Describes the metrics file such that every step changes the description. The size alone is not enough: a restart takes
# out the lines of the steps that it repeats.
describe_metrics() { stat -c '%i %s %y' - 2>/dev/null <"$1/metrics.jsonl" || echo none; }

train_with_restarts
# On the CPU a single process can load the whole model, whatever ranks it was trained on.
if [ "$processes" -eq 1 ] || [ "$device_target" = CPU ]; then
    mindpangu evaluate "${options[@]}"
    mindpangu generate --every-domain --temperature 0.6 --top-k 20 "${options[@]}"
fi
