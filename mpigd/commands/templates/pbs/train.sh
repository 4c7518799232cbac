#!/usr/bin/env bash
# One training run under PBS. It goes on from its checkpoint until it is done, however often it is stopped.
# Change the lines below <1>, <2> and <3>, then: qsub train.sh            (`mpigd submit` writes them for you)

# <1> Nodes, cores of each, ranks on each, threads of each rank, time. One node: select=1. Hybrid, a rank for eight cores:
#     ncpus=32:mpiprocs=4:ompthreads=8. The model's bits are the same in any case.
#PBS -l select=2:ncpus=16:mpiprocs=16:ompthreads=1 -l walltime=2:00:00
#PBS -N mpigd -j oe

cd "$PBS_O_WORKDIR" || exit 74

# <2> Where python with mpigd, and its mpirun, are, or instead of it what makes them known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> What to train. Without --checkpoint there is nothing to go on from; --max-time is five minutes less than walltime, for PBS
#     tells of the end too late.
model=model.h5 train=(train 'data/part-*.h5' -o "$model" --loss logistic --l2 1e-4 --checkpoint checkpoint --max-time 1:55:00)

export MPIGD_THREADS="${OMP_NUM_THREADS:-1}"
mpirun -n "$(wc -l <"$PBS_NODEFILE")" --hostfile "$PBS_NODEFILE" "$(command -v python)" -m mpigd "${train[@]}"
code=$?
[ "$code" != 0 ] || [ "$model" -nt "$0" ] || code=75 # no new model: Open MPI's mpirun ends with 0 where it lost a node

# 75 is "saved, run me again". Anything else is done, or an error that another try would not cure. (Where compute nodes may not
# call qsub, put `ssh LOGIN-NODE` before it, and a path that both see.)
if [ "$code" = 75 ] && [ "${TURN:-0}" -lt 50 ]; then
    qsub -v TURN=$((${TURN:-0} + 1)) "$0"
fi
exit "$code"
