#!/usr/bin/env bash
# Makes the environment and runs all checks and tests: scripts/test.py, with the Python that is found.
#
#   bash scripts/test.sh [pytest arguments]          for example: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/interpreter.sh
interpreter="$(find_interpreter)"
exec "$interpreter" scripts/test.py "$@"
