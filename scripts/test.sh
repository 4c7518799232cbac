#!/usr/bin/env bash
# Everything that must hold: lint, types, spelling, and tests with both MPI wheels.
#
#   scripts/test.sh [--full] [pytest arguments]
#
# --full runs the long forms of the tests too (docs/testing.md).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ "${1:-}" = --full ]; then
    shift
    export TEST_FULL=1
fi
environment mpich,test
openmpi_environment
cd "$root"

ruff check .
ruff format --check .
mypy
codespell
[ $# = 0 ] || exec python -m pytest "$@"
failed=0
# One process a core, and first: they compile what the jobs then find compiled.
python -m pytest -n 2 --dist loadfile --durations 30 tests/kernels tests/mpi tests/unit || failed=1
# These start MPI jobs and mostly wait: for time limits, dead ranks, a scheduler. The files that
# wait longest come first.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30 tests/batch tests/faults tests/cli || failed=1
exit $failed
