#!/usr/bin/env bash
# The core of the tests, and digests of models, with other versions of Python and numba.
#
#   scripts/matrix.sh [ENTRY...]     ENTRY: PYTHON, or PYTHON+REQUIREMENT,
#                                    for example 'python3.11+numba==0.62.*'
#
# Without entries: each of python3.11 to python3.14 on the PATH, and the oldest numba that
# pyproject.toml allows on the first of them. Every entry gets an environment of its own in a
# temporary folder, into which the last commit is installed. All entries must pass the tests and
# give the same digests.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH PYTHONHOME

entries=("$@")
if [ $# = 0 ]; then
    for name in python3.11 python3.12 python3.13 python3.14; do
        ! "$name" -c '' 2>/dev/null || entries+=("$name")
    done
    [ "${#entries[@]}" != 0 ] || { echo "no Python >= 3.11 on the PATH" >&2; exit 2; }
    oldest="$(sed -n 's/.*"numba>=\([0-9.]*\),.*/\1/p' "$root/pyproject.toml")"
    entries+=("${entries[0]}+numba==$oldest.*")
fi

mkdir "$work/source"
git -C "$root" archive HEAD | tar -x -C "$work/source"
cd "$work/source"
tests=(tests/kernels tests/unit/test_same_bits.py tests/unit/tables/test_import.py)
[ ! -d tests/golden ] || tests+=(tests/golden)

failed=0
touch "$work/digests"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The digests of all entries come first: they take a minute, the tests take several.
for number in "${!entries[@]}"; do
    entry="${entries[$number]}"
    echo "== $entry: digests"
    folder="$work/environment-$number"
    "${entry%%+*}" -m venv "$folder"
    requirements=("$work/source[demo]" pytest pytest-xdist hypothesis scipy)
    [ "$entry" = "${entry#*+}" ] || requirements+=("${entry#*+}")
    if ! "$folder/bin/python" -m pip install -q "${requirements[@]}"; then
        echo "   cannot be installed"
        failed=1
        continue
    fi
    MPIGD_CACHE_DIR="$folder/cache" "$folder/bin/python" scripts/matrix.py \
        | tee "$work/printed" || failed=1
    grep '^digest' "$work/printed" >>"$work/digests" || failed=1
done
for number in "${!entries[@]}"; do
    echo "== ${entries[$number]}: tests"
    folder="$work/environment-$number"
    MPIGD_CACHE_DIR="$folder/cache" "$folder/bin/python" -m pytest -q -n 2 --dist loadfile \
        "${tests[@]}" || failed=1
done

distinct="$(sort -u "$work/digests" | wc -l)"
expected="$(sort -u "$work/digests" | cut -d' ' -f2 | sort -u | wc -l)"
if [ "$distinct" != "$expected" ]; then
    echo "DIFFERENT DIGESTS:"
    sort "$work/digests" | uniq -c
    failed=1
else
    echo "the same $distinct digests with all ${#entries[@]} entries"
fi
exit $failed
