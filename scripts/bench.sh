#!/usr/bin/env bash
# The benchmark: one run measures mpigd beside the programs that people would otherwise use.
#
#   scripts/bench.sh [--only NAME ...] [--full]
#
# Results: the table it prints, results/bench.json and the pictures beside it (docs/performance.md).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment mpich,peers,bench,filters,demo
cd "$root"

# torch is not part of the extra [peers]: plain `torch` brings gigabytes of CUDA. The +cpu build is
# taken if the package index has it.
if ! python -c 'import torch' 2>/dev/null && ! stamped "$VIRTUAL_ENV" torch; then
    add_package 'torch==2.13.0+cpu' ||
        say "torch's CPU build is not in the package index: its rows will say 'not installed'"
    stamp "$VIRTUAL_ENV" torch
fi
python scripts/bench/run.py "$@"
