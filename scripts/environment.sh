# Makes the project's Python environment, once, and sets PYTHON to its interpreter. Sourced by the other scripts.
#
#   (nothing set)         .venv in the project, with exactly the versions of constraints.txt
#   GRIDMAE_LANE=v100     .venv-v100, with those of constraints-v100.txt (torch 2.7.1, for Tesla V100)
#   GRIDMAE_PYTHON=FILE   that interpreter, with what is installed beside it; nothing is installed
#
# An environment is made again only if the requirements, the constraints or the interpreter have changed.

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    printf '%s\n' "$@" >&2
    exit 2
}

find_interpreter() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "No Python 3.11 or later found; the tested versions in constraints.txt need one." \
        "Install it, or give an interpreter that has the packages of requirements.txt: GRIDMAE_PYTHON=/path/to/python"
}

make_environment() {
    local constraints="$1" folder="$2" base version wanted installed
    base="$(find_interpreter)"
    version="$("$base" -VV)"
    wanted="$version, $(cat "$project"/requirements*.txt "$constraints" | cksum)"
    installed="$(cat "$folder/installed.txt" 2>/dev/null || true)"
    PYTHON="$folder/bin/python"
    if [ -x "$PYTHON" ] && [ "$installed" = "$wanted" ]; then
        return
    fi
    echo "Making the environment $folder (once; torch is a large download)" >&2
    if [ ! -x "$PYTHON" ] || [ "${installed%, *}" != "$version" ]; then
        "$base" -m venv --clear "$folder" ||
            fail "Python cannot make environments here; on Debian and Ubuntu: apt install python3-venv"
    fi
    printf '%s, unfinished\n' "$version" >"$folder/installed.txt"
    "$PYTHON" -m pip install --disable-pip-version-check \
        -r "$project/requirements.txt" -r "$project/requirements-dev.txt" -c "$constraints" >&2 ||
        fail "The packages could not be installed (see above); run this again once the cause is mended." \
            "Without a network, give an interpreter that has them: GRIDMAE_PYTHON=/path/to/python"
    printf '%s\n' "$wanted" >"$folder/installed.txt"
}

if [ -n "${GRIDMAE_PYTHON:-}" ]; then
    PYTHON="$(command -v "$GRIDMAE_PYTHON")" || fail "GRIDMAE_PYTHON=$GRIDMAE_PYTHON: no such program"
    "$PYTHON" -c 'import torch, timm, rasterio' ||
        fail "GRIDMAE_PYTHON=$GRIDMAE_PYTHON lacks packages of requirements.txt"
else
    case "${GRIDMAE_LANE:-}" in
    "") constraints="$project/constraints.txt" environment="$project/.venv" ;;
    v100) constraints="$project/constraints-v100.txt" environment="$project/.venv-v100" ;;
    *) fail "GRIDMAE_LANE=$GRIDMAE_LANE: unknown, expected v100 or nothing" ;;
    esac
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$environment.lock" # a second script started meanwhile waits here
        flock 9
        make_environment "$constraints" "$environment"
        flock -u 9
        exec 9>&-
    else
        make_environment "$constraints" "$environment"
    fi
fi
