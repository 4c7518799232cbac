#!/usr/bin/env bash
# Damaged files for the loaders of data, models and checkpoints: only our own error may come out.
#
#   scripts/fuzz.sh [FIRST COUNT]       COUNT mutations of every file, from seed FIRST on
#                                       (0 1000: some minutes)
#   scripts/fuzz.sh --full [SECONDS]    then atheris, if it is installed, which looks for mutations
#                                       that reach new code (600 for each file)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment mpich,test
cd "$root"
export PYTHONPATH="$root:$root/kernels"

if [ "${1:-}" != --full ]; then
    exec python tests/fuzz.py "${1:-0}" "${2:-1000}"
fi
python tests/fuzz.py 0 5000
if ! python -c 'import atheris' 2>/dev/null; then
    echo "skipped: atheris is not installed here (pip install atheris)"
    exit 0
fi
for kind in data-plain data-gzip data-chunks data-csr data-latest model checkpoint; do
    python tests/fuzz.py --atheris "$kind" "${2:-600}"
done
