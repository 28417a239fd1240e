#!/usr/bin/env bash
# The tests, from a bare machine: sets up .venv with the dev extra if needed, then runs pytest.
#
#     bash tests/run.sh                     all but the slow ones
#     bash tests/run.sh --slow              only the slow ones: whole runs, repeated kills
#     bash tests/run.sh --drills            kills, damage, races, signals, full disks: all attempts, 20 to 30 minutes
#     bash tests/run.sh tests/model -k rre  any arguments of pytest, relative to the project folder
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source recipes/environment.sh
prepare_environment dev

processes=2 # a file each: compiling a graph keeps one core busy
arguments=()
for argument in "$@"; do
    if [ "$argument" = --slow ]; then
        processes=0 # the whole main job is timed: nothing runs beside it
        arguments+=(-m slow)
    elif [ "$argument" = --drills ]; then
        arguments+=(--drills tests/drills)
    else
        arguments+=("$argument")
    fi
done
exec "$PYTHON" -m pytest --numprocesses "$processes" --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"}
