# shellcheck shell=bash
# Makes .venv and installs gs_train into it, or reuses what is there. Sourced by the other scripts, not run.
#
# After `setup_venv EXTRAS` (for example `setup_venv dev`, or `setup_venv ""`) the variable PY holds the path of the environment's Python.
# A stamp file remembers what was installed from which files, so a second call takes no time; an interrupted installation leaves no
# stamp and is simply done again.

fail() {
    echo "error: $*" >&2
    exit 1
}

# Prints the first Python on the PATH that is new enough; $PYTHON, when set, is asked first.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer was found: install one, or name it, as in PYTHON=/path/to/python3 bash $0"
}

# Sets PY to the environment's Python, wherever this system puts it; fails where there is none yet.
locate_venv_python() {
    PY="$1/bin/python"
    [ -x "$PY" ] || PY="$1/Scripts/python.exe"
    [ -x "$PY" ]
}

make_venv() {
    local venv="$1" python
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python cannot make virtual environments: install its venv package (on Debian and Ubuntu: apt install python3-venv), then run this again"
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
    locate_venv_python "$venv" || fail "$venv was made but holds no Python: remove that folder and run this again"
}

setup_venv() {
    local extras="$1" root venv stamp wanted installed
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    venv="$root/.venv"
    stamp="$venv/gs_train_installed.txt"
    locate_venv_python "$venv" || make_venv "$venv"
    "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$venv holds a Python older than 3.11: remove that folder and run this again"

    # The checkout's path is part of the stamp, because an editable installation points at it.
    wanted="$root $(cksum <"$root/pyproject.toml") $(cksum <"$root/constraints.txt")"
    installed="$(cat "$stamp" 2>/dev/null || true)"
    # An installation with the extras of the tests serves those who ask for none.
    if [ "$installed" = "$wanted [$extras]" ] || { [ -z "$extras" ] && [ "$installed" = "$wanted [dev,sfm,video]" ]; }; then
        return
    fi
    echo "Installing gs_train into $venv (torch is a large download; this can take minutes)"
    "$PY" -m pip install --disable-pip-version-check -c "$root/constraints.txt" -e "$root${extras:+[$extras]}"
    echo "$wanted [$extras]" >"$stamp"
}
