# shellcheck shell=bash
# Creates .venv and installs gs_train into it, or reuses an existing installation. Other scripts source this file.
#
# `setup_venv EXTRAS` (for example `setup_venv dev` or `setup_venv ""`) sets the variable PY to the path of the environment's Python.
# A stamp file records the installed extras and the files that they depend on, so a second call returns at once. An interrupted
# installation leaves no stamp, so the next call repeats it.

fail() {
    echo "error: $*" >&2
    exit 1
}

# Prints the first Python on the PATH that is new enough. If $PYTHON is set, it comes first.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found: install one, or set its path, as in PYTHON=/path/to/python3 bash $0"
}

# Sets PY to the environment's Python (bin on Unix, Scripts on Windows). Returns an error status if it does not exist.
locate_venv_python() {
    PY="$1/bin/python"
    [ -x "$PY" ] || PY="$1/Scripts/python.exe"
    [ -x "$PY" ]
}

make_venv() {
    local venv="$1" python
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python cannot create virtual environments: install its venv package (on Debian and Ubuntu: apt install python3-venv), then run this again"
    echo "Creating $venv with $("$python" --version)"
    "$python" -m venv "$venv"
    locate_venv_python "$venv" || fail "$venv was created but has no Python: delete that folder, then run this again"
}

setup_venv() {
    local extras="$1" root venv stamp wanted installed
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    venv="$root/.venv"
    stamp="$venv/gs_train_installed.txt"
    locate_venv_python "$venv" || make_venv "$venv"
    "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$venv has a Python older than 3.11: delete that folder, then run this again"

    # The stamp contains the path of the checkout, because an editable installation refers to it.
    wanted="$root $(cksum <"$root/pyproject.toml") $(cksum <"$root/constraints.txt")"
    installed="$(cat "$stamp" 2>/dev/null || true)"
    # An installation with the extras of the tests also serves a call without extras.
    if [ "$installed" = "$wanted [$extras]" ] || { [ -z "$extras" ] && [ "$installed" = "$wanted [dev,sfm,video,heic,zstd,viewer,metrics,blocks,plots]" ]; }; then
        return
    fi
    echo "Installing gs_train into $venv (torch is a large download, so this can take minutes)"
    # Relative paths, because Git Bash on Windows does not translate an absolute path that is followed by [extras].
    (cd "$root" && "$PY" -m pip install --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}")
    echo "$wanted [$extras]" >"$stamp"
}
