#!/usr/bin/env bash
# From text to a trained PanGu model that continues prompts: on Ascend 910 NPUs, or on the CPU where there are none.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source recipes/environment.sh

# On Ctrl-C the running stage ends first, and some (msrun) end with exit code 0: nothing may start after it.
trap 'exit 130' INT

usage() {
    cat <<'END'
usage: bash recipes/run_910.sh [--config FILE] [--resume] [--load DIR] [--section.key value …]

Trains a PanGu model, from text to text:

    tokenizer    a sentencepiece model from the corpus
    data         token shards, one set a domain
    routing      the table (RRE layer, domain, token) → expert, and the load it gives
    train        checkpoints, metrics.jsonl and a report in output/<run>/
    evaluate     held-out perplexity of every domain                   (not on Ascend clusters)
    generate     a prompt continued in every domain                    (not on Ascend clusters)

A stage is skipped when its output is there and nothing that went into it has changed. Without options this trains a
small PanGu-Σ on the CPU in minutes, or recipes/pangu_sigma_node.yaml where NPUs and CANN are found.

options (paths are relative to the project folder)
    --config FILE          the run: a YAML file, see recipes/
    --resume               continue the run from its last checkpoint
    --load DIR             start a new run from the weights, tables and tokenizer of a checkpoint; give it again
                           together with --resume
    --section.key value    change one key of the configuration, e.g. --training.steps 20

environment: installation
    MINDPANGU_PYTHON       an interpreter that has MindSpore; nothing is installed
    PIP_FIND_LINKS         a folder of wheels; with PIP_NO_INDEX=1 no network is needed

environment: CPU
    CPU_PROCESSES          processes that train together               (1; recipes/run_cpu_cluster.sh sets it)

environment: Ascend (start this script on every node)
    NNODES, NODE_RANK      how many nodes, and which one this is       (1, 0)
    MASTER_ADDR            where node 0 listens                        (127.0.0.1)
    MASTER_PORT            and its port                                (8118)
    NPROC                  processes of this node, one an NPU          (all NPUs that are visible, else 8)
    CLUSTER_TIMEOUT        seconds in which all nodes must start       (600)
    HCCL_CONNECT_TIMEOUT   seconds a link may take, 120 to 7200        (1200: ranks compile at different speeds)
    HCCL_EXEC_TIMEOUT      seconds a collective may take               (3600: above parallelism.timeout)
    HCCL_BUFFSIZE          MB a communication group, same on all ranks (200)
    HCCL_DETERMINISTIC     true: sums in a fixed order, slower         (false)
    HCCL_SOCKET_IFNAME     network card of this host, or HCCL_IF_IP    (HCCL's choice)
    ASCEND_RT_VISIBLE_DEVICES   NPUs to use, e.g. 0,1,2,3              (0 to NPROC - 1)

The exit code is that of the stage that failed; 0 when all succeeded, 130 after Ctrl-C.
END
}

# ---- What is asked for -----------------------------------------------------------------------------------------------

config=''
options=()       # --config and the overrides: every stage gets them
train_options=() # --resume or --load: only training does
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --resume) train_options+=("$1"); shift; continue ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; # --key=value is --key value
        --config | --load | --*.*) ;;
        *) die "unknown option $1; bash recipes/run_910.sh --help lists what there is" ;;
    esac
    [ $# -ge 2 ] || die "$1 needs a value"
    case $1 in
        --config) config=$2 ;;
        --load)
            # weights fit only the table and the tokenizer that they were trained with; later options still win
            train_options+=("$1" "$2")
            weights=$2
            for found in "$2"/iteration_*; do # what `mindpangu experts`, `extract` and `upcycle` write
                if [ ! -d "$2/tokenizer" ] && [ -d "$found/tokenizer" ]; then weights=$found; fi
            done
            if [ -d "$weights/routing" ]; then
                options=(--routing.table "$weights/routing" ${options[@]+"${options[@]}"})
            fi
            if [ -f "$weights/tokenizer/main.model" ]; then
                options=(--data.tokenizer "$weights/tokenizer/main.model" ${options[@]+"${options[@]}"})
            fi
            ;;
        --*.*) options+=("$1" "$2") ;;
        *) die "unknown option $1; bash recipes/run_910.sh --help lists what there is" ;;
    esac
    shift 2
done

# ---- Where it runs ---------------------------------------------------------------------------------------------------

cpu_reason=''
if npus_are_present && cann_is_present; then
    activate_cann
    config=${config:-recipes/pangu_sigma_node.yaml}
else
    if npus_are_present; then
        cpu_reason='NPUs are here but CANN is not (no ASCEND_HOME_PATH, nothing in /usr/local/Ascend)'
    elif cann_is_present; then
        cpu_reason='CANN is here but no NPU is (no /dev/davinci*, npu-smi info fails)'
    else
        cpu_reason='No NPU and no CANN here'
    fi
    config=${config:-recipes/cpu_smoke.yaml}
    say "$cpu_reason: falling back to the CPU with $config."
fi
options=(--config "$config" ${options[@]+"${options[@]}"}) # the odd form: bash before 4.4 takes () for unset
train_options=("${options[@]}" ${train_options[@]+"${train_options[@]}"})

prepare_environment

# Runs a verb of the command line in one process.
mindpangu() { "$PYTHON" -m mindpangu "$@"; }

device_target=$(mindpangu config "${options[@]}" --get context.device_target)
if [ -n "$cpu_reason" ] && [ "$device_target" != CPU ]; then
    die "$config asks for context.device_target $device_target. $cpu_reason."
fi

# Exits unless variable $1 is a whole number from $2 to $3.
require_number() {
    local value=${!1}
    [[ "$value" =~ ^[0-9]{1,9}$ ]] && [ "$value" -ge "$2" ] && [ "$value" -le "$3" ] ||
        die "$1 is '$value'; allowed: a whole number from $2 to $3"
}

# How many NPUs this node has to offer.
count_visible_npus() {
    local count
    if [ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then
        tr ',' '\n' <<<"$ASCEND_RT_VISIBLE_DEVICES" | wc -l
    else
        count=$(count_davinci_devices)
        echo $((count > 0 ? count : 8))
    fi
}

# Names the ranks, and gives HCCL what it needs. Every value can be set from outside.
set_up_cluster() {
    NNODES=${NNODES:-1} NPROC=${NPROC:-$(count_visible_npus)}
    require_number NNODES 1 100000
    require_number NPROC 1 1024
    if [ "$NNODES" -gt 1 ] && { [ -z "${NODE_RANK:-}" ] || [ -z "${MASTER_ADDR:-}" ]; }; then
        die "NNODES is $NNODES: every node needs its own NODE_RANK (0 to $((NNODES - 1))) and the MASTER_ADDR of node 0"
    fi
    NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-8118}
    require_number NODE_RANK 0 $((NNODES - 1))
    require_number MASTER_PORT 1024 65535

    # The default of 120 s is shorter than the difference between the compile times of two ranks.
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1200}
    require_number HCCL_CONNECT_TIMEOUT 120 7200
    export HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-3600}
    # Too small a buffer shows as "MTE out of range"; ranks that differ hang.
    export HCCL_BUFFSIZE=${HCCL_BUFFSIZE:-200}
    # true makes a resumed run repeat bit for bit on the NPU too.
    export HCCL_DETERMINISTIC=${HCCL_DETERMINISTIC:-false}
    export ASCEND_RT_VISIBLE_DEVICES=${ASCEND_RT_VISIBLE_DEVICES:-$(seq -s, 0 $((NPROC - 1)))}
    if [ "$NNODES" -gt 1 ] && [ -z "${HCCL_SOCKET_IFNAME:-}${HCCL_IF_IP:-}" ]; then
        warn 'neither HCCL_SOCKET_IFNAME nor HCCL_IF_IP is set; of several networks HCCL may take the wrong one'
    fi
}

# Names the ranks of a training by several processes on this machine.
set_up_cpu_processes() {
    require_number CPU_PROCESSES 1 1024
    NNODES=1 NODE_RANK=0 NPROC=$CPU_PROCESSES MASTER_ADDR=127.0.0.1
    MASTER_PORT=${MASTER_PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
    # every process would take all cores
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(("$(nproc)" > NPROC ? "$(nproc)" / NPROC : 1))}
}

processes=1
if [ "$device_target" = Ascend ]; then
    set_up_cluster
    processes=$((NNODES * NPROC))
    say "Ascend: $processes processes on $NNODES node(s), this is node $NODE_RANK; $config."
else
    [ -n "$cpu_reason" ] || say "$config asks for the CPU: the NPUs stay idle."
    if [ "${CPU_PROCESSES:-1}" != 1 ]; then
        set_up_cpu_processes
        processes=$NPROC
        say "$processes processes on this machine train together."
    fi
fi

# Runs a verb in every process of the cluster; logs go to the folder $1 of the run. msrun starts its workers as `python` from PATH, whatever interpreter it
# runs under itself, so the folder of $PYTHON comes first there, and its `python` must be the same one.
mindpangu_on_all_ranks() {
    local folder=${PYTHON%/*} identity='import sys; print(sys.version, sys.prefix)' log_folder status=0
    [ "$("$folder/python" -c "$identity" 2>/dev/null)" = "$("$PYTHON" -c "$identity")" ] ||
        die "msrun starts workers as 'python', but $folder/python is not $PYTHON: use an environment that has it"
    PATH=$folder:$PATH command -v msrun >/dev/null || die "no msrun in $folder and none on PATH: is MindSpore whole?"
    log_folder=$(mindpangu config "${options[@]}" --get run_folder)/$1
    shift
    say "Every rank logs to $log_folder; below: the first one of this node."
    PATH=$folder:$PATH msrun --worker_num="$processes" --local_worker_num="$NPROC" --node_rank="$NODE_RANK" \
        --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --cluster_time_out="${CLUSTER_TIMEOUT:-600}" \
        --log_dir="$log_folder" --join=True --tail_worker_log=$((NODE_RANK * NPROC)) \
        python -m mindpangu "$@" || status=$?
    if [ "$status" -ne 0 ]; then
        # the first rank's log was above, and it may have been killed before it could say why
        grep -hs '^mindpangu: error' "$log_folder"/worker_*.log | sort -u | head -n 8 >&2 || true
    fi
    return "$status"
}

# ---- From text to text -----------------------------------------------------------------------------------------------

# The corpus decides the vocabulary: domains share one tokenizer unless the configuration gives them slots.
mindpangu tokenizer train "${options[@]}"

# Documents of a domain, joined and cut into samples. Nodes that share the project folder take turns here; the second
# one finds everything done.
mindpangu data prepare "${options[@]}"

# Which expert serves which token is decided now, before the first step, and never changes.
mindpangu routing build "${options[@]}"

# Trains; after a failure goes on from the last checkpoint, training.restarts times. A stop by a signal (130) is no
# failure, and what fails before its first step would fail again.
train_with_restarts() {
    local restarts resume=() status left run_folder steps logs=msrun_log
    restarts=$(mindpangu config "${options[@]}" --get training.restarts)
    run_folder=$(mindpangu config "${options[@]}" --get run_folder)
    for ((left = restarts; ; left--)); do
        status=0 steps=$(count_steps "$run_folder")
        rm -f "$run_folder/.stopped"
        if [ "$processes" -eq 1 ]; then
            mindpangu train "${train_options[@]}" ${resume[@]+"${resume[@]}"} || status=$?
        else
            mindpangu_on_all_ranks "$logs" train "${train_options[@]}" ${resume[@]+"${resume[@]}"} || status=$?
            if [ -e "$run_folder/.stopped" ]; then status=130; fi
        fi
        if [ "$status" -eq 0 ] || [ "$status" -eq 130 ] || [ "$left" -le 0 ]; then return "$status"; fi
        if [ "$(count_steps "$run_folder")" = "$steps" ]; then
            warn 'training failed before its first step: it is not started again'
            return "$status"
        fi
        warn "training failed (exit code $status); it goes on from the last checkpoint, restart $((restarts - left + 1)) of $restarts"
        resume=(--resume)
        logs=msrun_log_restart_$((restarts - left + 1))
    done
}

# How much a training has written about its steps.
count_steps() { wc -c 2>/dev/null <"$1/metrics.jsonl" || echo 0; }

train_with_restarts
# On a CPU one process has the whole model, whatever ranks it was trained on.
if [ "$processes" -eq 1 ] || [ "$device_target" = CPU ]; then
    mindpangu evaluate "${options[@]}"
    mindpangu generate --every-domain --temperature 0.6 --top-k 20 "${options[@]}"
fi
