#!/usr/bin/env bash
# Default fits of R's data sets against reference optima (docs/zoo.md).
#
#   scripts/zoo.sh [arguments of scripts/zoo/run.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment mpich,test
cd "$root"
exec python scripts/zoo/run.py "$@"
