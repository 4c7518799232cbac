#!/usr/bin/env bash
# A year of real flights, learned by two MPI ranks in three modes. Results: the table at the end,
# and demo.json.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment mpich,demo
cd "$root"

python scripts/flights.py demo
python -m mpigd import demo/flights_train.csv -o demo/train.h5 --target late --missing mean
python -m mpigd import demo/flights_test.csv -o demo/test.h5 --like demo/train.h5

for mode in full minibatch stochastic; do
    options=(--loss logistic --l2 1e-4 --mode "$mode")
    # One row a step, the default, takes 273,355 Allreduces. This takes minutes if the two ranks
    # have to share their cores.
    [ "$mode" != stochastic ] || options+=(--batch-size 16)
    printf '\n== %s\n' "$mode"
    mpiexec -n 2 python -m mpigd train demo/train.h5 -o "demo/model_$mode.h5" "${options[@]}"
    python -m mpigd info --json "demo/model_$mode.h5" >"demo/info_$mode.json"
    mpiexec -n 2 python -m mpigd evaluate "demo/model_$mode.h5" demo/test.h5 --json >"demo/scores_$mode.json"
done
python scripts/demo_table.py demo demo.json
