#!/usr/bin/env bash
# Everything that must hold: lint, types, and tests with both MPI wheels.
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
exec python -m pytest "$@"
