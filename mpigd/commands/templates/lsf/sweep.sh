#!/usr/bin/env bash
# A training run for each value of an option: an array job. Each goes on from its own checkpoint until it is done.
# Change the lines below <1>, <2> and <3>, then: bsub < sweep.sh          (`mpigd submit --sweep` writes them for you)

# <1> Ranks of all nodes, ranks on each, threads (cores) of each rank, hours and minutes of one member; as many members as values.
#BSUB -n 16 -R "span[ptile=16] affinity[core(1)]" -W 2:00 -J "mpigd[1-4]"
#BSUB -o mpigd-%J_%I.log
# 75 is "saved, run me again": LSF puts the member back into the queue. Anything else is done, or an error.
#BSUB -Q 75

# <2> Where python with mpigd, and its mpirun, are, or instead of it what makes them known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> Which option, its values, and what they have in common. Models are sweep/OPTION-VALUE.h5. --max-time is five minutes less
#     than -W, so that a run is saved before LSF ends it.
option=l2 values=(1e-6 1e-4 1e-2 1)
train=(train 'data/part-*.h5' --loss logistic --max-time 1:55:00)

value="${values[$((LSB_JOBINDEX - 1))]}"
name="sweep/$option-$value"
mkdir -p sweep
mpirun -n "$(wc -l <"$LSB_DJOB_HOSTFILE")" --hostfile "$LSB_DJOB_HOSTFILE" "$(command -v python)" -m mpigd "${train[@]}" \
    "--$option" "$value" -o "$name.h5" --checkpoint "$name"
code=$?
[ "$code" != 0 ] || [ "$name.h5" -nt "$0" ] || code=75 # no new model: Open MPI's mpirun ends with 0 where it lost a node
exit "$code"
