#!/usr/bin/env bash
# Runs the ladder of tiny models on the CPU: base → compact tokenizer → architecture → inheritance → rounds, on real text.
#
#     bash recipes/tiny_ladder.sh            three seeds with intervals; hours on two cores
#     bash recipes/tiny_ladder.sh --quick    one seed and a few steps, only to check that everything runs
#
# An interrupted ladder continues where it stopped. Sets up .venv if needed; `--help` lists all options.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source recipes/environment.sh
prepare_environment
exec "$PYTHON" tools/tiny_ladder.py "$@"
