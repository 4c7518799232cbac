#!/usr/bin/env bash
# The proof of the first promise: flights learned in many ways, one digest.
#
#   scripts/same_bits.sh [--full]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment mpich,test
openmpi_environment
cd "$root"
mkdir -p demo
[ -f demo/flights_train.csv ] || python scripts/flights.py demo
[ -f demo/train.h5 ] || python -m mpigd import demo/flights_train.csv -o demo/train.h5 --target late --missing mean
python scripts/same_bits.py demo/train.h5 "$@"
