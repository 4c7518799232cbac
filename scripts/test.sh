#!/usr/bin/env bash
# Everything that must hold: lint, types, spelling, and tests with both MPI wheels.
#
#   scripts/test.sh [--full] [pytest arguments]      --full: the long forms of the tests too
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
python -m pytest -n 2 --dist loadfile tests/kernels tests/mpi tests/unit || failed=1
# One at a time: each job takes all cores, and has limits of time.
python -m pytest tests/cli tests/batch tests/faults || failed=1
exit $failed
