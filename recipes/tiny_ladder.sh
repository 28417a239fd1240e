#!/usr/bin/env bash
# The ladder of tiny models on the CPU: base → compact tokenizer → architecture → inheritance → rounds, on real text.
#
#     bash recipes/tiny_ladder.sh            three seeds with intervals; hours on two cores
#     bash recipes/tiny_ladder.sh --quick    one seed and a few steps: that everything runs, and no more
#
# A ladder that was stopped goes on. It sets up .venv if needed; `--help` names what else can be said.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source recipes/environment.sh
prepare_environment
exec "$PYTHON" tools/tiny_ladder.py "$@"
