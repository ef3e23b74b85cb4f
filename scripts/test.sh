#!/usr/bin/env bash
# The checks that every change must pass: lint, types, tests. Creates .venv, or reuses it.
#
#   bash scripts/test.sh                 all tests except the slow tests
#   bash scripts/test.sh --all           all tests
#   bash scripts/test.sh -k name ...     other arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
    select=()
    shift
fi

setup_venv dev,sfm,video,heic,zstd,viewer,metrics,blocks,plots
"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m mypy
"$PY" -m pytest ${select[@]+"${select[@]}"} "$@"
