# Finds a Python that can run scripts/environment.py. Sourced by the other scripts.

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
    if [ -n "${GRIDMAE_PYTHON:-}" ] && command -v "$GRIDMAE_PYTHON"; then
        return
    fi
    fail "No Python 3.11 or later found; the tested versions in constraints.txt need one." \
        "Install it, or give an interpreter that has the packages of requirements.txt: GRIDMAE_PYTHON=/path/to/python"
}
