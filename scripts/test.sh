#!/usr/bin/env bash
# Makes the environment, then checks format, lint and types and runs the tests: the one command before handing work in.
# Takes a few minutes on two CPU cores, after the first run's download; safe to run again, from any folder.
#
#   bash scripts/test.sh [pytest arguments]          for example: bash scripts/test.sh -m slow
#
# GRIDMAE_PYTHON and GRIDMAE_LANE choose another environment (scripts/environment.sh), GRIDMAE_TEST_PROCESSES how many
# tests run at once (2), GRIDMAE_REFERENCE_DIR a folder with the larger reference data, whose tests are else skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the tests run side by side and their tensors are tiny
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy .
"$PYTHON" -m pytest -q -n "${GRIDMAE_TEST_PROCESSES:-2}" "$@"
