# Makes the project's Python environment, once, and sets PYTHON to its interpreter. Sourced by the launch scripts.
# GRIDMAE_LANE and GRIDMAE_PYTHON choose another: scripts/environment.py, which does the work, describes them.

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$project/scripts/interpreter.sh"
interpreter="$(find_interpreter)" || exit 2
# shellcheck disable=SC2034 # for the script that sources this one
PYTHON="$("$interpreter" "$project/scripts/environment.py")" || exit 2
