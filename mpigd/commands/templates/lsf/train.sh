#!/usr/bin/env bash
# One training run under LSF. It goes on from its checkpoint until it is done, however often it is stopped.
# Change the lines below <1>, <2> and <3>, then: bsub < train.sh          (`mpigd submit` writes them for you)

# <1> Ranks of all nodes, ranks on each, threads (cores) of each rank, hours and minutes. One node: -n and ptile the same. Hybrid,
#     a rank for eight cores: -n 8 ... ptile=4] affinity[core(8)]. The model's bits are the same in any case.
#BSUB -n 32 -R "span[ptile=16] affinity[core(1)]" -W 2:00
#BSUB -J mpigd -o mpigd-%J.log
# 75 is "saved, run me again": LSF puts the job back into the queue. Anything else is done, or an error.
#BSUB -Q 75

# <2> Where python with mpigd, and its mpirun, are, or instead of it what makes them known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> What to train. Without --checkpoint there is nothing to go on from; --max-time is five minutes less than -W, so that the run
#     is saved before LSF ends it.
model=model.h5 train=(train 'data/part-*.h5' -o "$model" --loss logistic --l2 1e-4 --checkpoint checkpoint --max-time 1:55:00)

mpirun -n "$(wc -l <"$LSB_DJOB_HOSTFILE")" --hostfile "$LSB_DJOB_HOSTFILE" "$(command -v python)" -m mpigd "${train[@]}"
code=$?
[ "$code" != 0 ] || [ "$model" -nt "$0" ] || code=75 # no new model: Open MPI's mpirun ends with 0 where it lost a node
exit "$code"
