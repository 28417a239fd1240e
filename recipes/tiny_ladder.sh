#!/usr/bin/env bash
# Trains the ladder of tiny models on the CPU: base → compact tokenizer → architecture → inheritance → rounds.
#
#     bash recipes/tiny_ladder.sh            three seeds with intervals; hours on two cores
#     bash recipes/tiny_ladder.sh --quick    one seed and a few steps: only checks that everything runs
#
# Run it again to resume a stopped ladder. Sets up .venv if needed; `--help` lists all options.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source recipes/environment.sh
prepare_environment
exec "$PYTHON" tools/tiny_ladder.py "$@"
