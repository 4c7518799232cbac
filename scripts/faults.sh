#!/usr/bin/env bash
# The tests that break things, repeated at other random moments each time. A test of timing that
# passes once proves little.
#
#   scripts/faults.sh [--full] [TIMES [FIRST]]
#
# Runs them 20 times, with the seeds FIRST (1), FIRST + 1, ..., and stops at the first failure. A
# run takes about three minutes; with --full it is the whole matrix and takes half an hour.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ "${1:-}" = --full ]; then
    shift
    export TEST_FULL=1
fi
times="${1:-20}" first="${2:-1}"
environment mpich,test
openmpi_environment
cd "$root"

for ((seed = first; seed < first + times; seed++)); do
    begin=$SECONDS
    TEST_SEED=$seed python -m pytest -q -x tests/faults tests/unit/test_{checkpoint_crash,checkpoint_damage,recorder,saving,supervise,watch}.py ||
        fail "seed $seed failed: again with TEST_SEED=$seed scripts/test.sh TEST, or scripts/faults.sh 1 $seed"
    say "seed $seed of $first to $((first + times - 1)): passed in $((SECONDS - begin)) s"
done
