#!/usr/bin/env bash
# All checks and figures that need a GPU, in one report: scripts/gpu_check.py, with the environment's Python.
#
#   bash scripts/gpu_check.sh [--quick] [--rehearse] [--output_dir FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
exec "$PYTHON" -m scripts.gpu_check "$@"
