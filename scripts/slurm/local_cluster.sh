#!/usr/bin/env bash
# A real Slurm with two virtual nodes, n1 and n2, on this machine: to try batch scripts, and for
# tests/batch.
#
#   scripts/slurm/local_cluster.sh start [FOLDER]     prints the line that connects sbatch, srun and
#                                                     squeue to it
#   scripts/slurm/local_cluster.sh stop [FOLDER]      ends what start has started, by process id
#
# As root, on Debian or Ubuntu (installs slurm-wlm and munge if they are missing). Everything else,
# key and logs too, lies in FOLDER (default: /tmp/mpigd-slurm). CPUS is what each node claims to
# have (default 4, whatever the machine has).
set -euo pipefail

action="${1:-}" folder="${2:-/tmp/mpigd-slurm}" cpus="${CPUS:-4}"

fail() { printf '%s\n' "$*" >&2; exit 1; }

install_slurm() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "Slurm is not here, and only root with apt-get can install it"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge; } >&2 ||
        fail "apt-get could not install slurm-wlm and munge"
}

free_ports() { # three, below those that the system gives to outgoing connections
    python3 - <<'PYTHON'
import random, socket
taken = []
while len(taken) < 3:
    taken.append(socket.socket())
    try:
        taken[-1].bind(("", random.randrange(17000, 30000)))
    except OSError:
        taken.pop()
print(*(one.getsockname()[1] for one in taken))
PYTHON
}

configure() {
    local host ports
    host="$(hostname -s)"
    read -r -a ports <<<"$(free_ports)"
    mkdir -p "$folder"/{state,n1,n2}
    chmod 700 "$folder"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=pmi2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=$cpus
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=$cpus
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$folder/cgroup.conf"
}

# Each daemon stays in the foreground of a background job, so that its process id is the one to end.
daemon() { # NAME COMMAND...
    local name="$1"
    shift
    setsid "$@" >>"$folder/$name.out" 2>&1 </dev/null &
    echo $! >"$folder/$name.process"
}

start() {
    [ ! -e "$folder/slurm.conf" ] || fail "$folder holds a cluster already: stop it first"
    install_slurm
    configure
    export SLURM_CONF="$folder/slurm.conf"
    daemon munged munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
    until [ -S "$folder/munge.socket" ]; do sleep 0.1; done
    daemon slurmctld slurmctld -D
    daemon n1 slurmd -D -N n1
    daemon n2 slurmd -D -N n2
    for _ in {1..60}; do
        if [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    tail -n 5 "$folder"/*.log "$folder"/*.out >&2
    stop
    fail "the nodes did not come up"
}

process_of() { cat "$folder/$1.process" 2>/dev/null; } # NAME

stop() {
    local name pid
    SLURM_CONF="$folder/slurm.conf" timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    for name in n1 n2 slurmctld munged; do
        ! pid="$(process_of "$name")" || kill "$pid" 2>/dev/null || true
    done
    for name in n1 n2 slurmctld munged; do
        pid="$(process_of "$name")" || continue
        for _ in {1..50}; do
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
}

case "$action" in
    start) start ;;
    stop) stop ;;
    *) fail "usage: $0 start|stop [FOLDER]" ;;
esac
