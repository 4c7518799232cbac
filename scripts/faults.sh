#!/usr/bin/env bash
# The tests that break things, again and again, each time at other random moments: a test of timing that holds once proves little.
#
#   scripts/faults.sh [--full] [TIMES [FIRST]]      20 times, with the seeds FIRST (1), FIRST + 1, ...; stops at the first failure
#                                                   (about three minutes each; --full: the whole matrix, half an hour)
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
