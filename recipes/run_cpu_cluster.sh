#!/usr/bin/env bash
# Trains with several processes on this machine's CPU, like a small cluster.
#
#     bash recipes/run_cpu_cluster.sh 4                                       4 data-parallel ranks that share the experts
#     bash recipes/run_cpu_cluster.sh 4 --parallelism.tensor_parallel 2 \
#         --parallelism.data_parallel 2 --parallelism.expert_parallel 2        another mesh of 4
#
# All other options and variables are those of recipes/run_910.sh, which also looks for files in the current folder.
# Each rank's log is in output/<run>/msrun_log.
set -euo pipefail
recipes=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

case ${1:-} in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    '' | *[!0-9]* | 0*) echo "run_cpu_cluster: expected the number of processes, e.g. 4, got '${1:-}'" >&2; exit 1 ;;
esac
export CPU_PROCESSES=$1
shift
config=("--config=$recipes/cpu_smoke.yaml")
for argument in "$@"; do
    case $argument in --config | --config=*) config=() ;; esac
done
# the user's options come last and take precedence
exec bash "$recipes/run_910.sh" ${config[@]+"${config[@]}"} --parallelism.data_parallel "$CPU_PROCESSES" \
    --parallelism.expert_parallel "$CPU_PROCESSES" "$@"
