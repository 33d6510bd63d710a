#!/usr/bin/env bash
# From nothing to a trained small model on a CPU, in a few minutes: scripts/quickstart.py, with the Python that is found.
#
#   bash scripts/quickstart.sh [options of main_pretrain]        for example: bash scripts/quickstart.sh --epochs 20
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/interpreter.sh
interpreter="$(find_interpreter)"
exec "$interpreter" scripts/quickstart.py "$@"
