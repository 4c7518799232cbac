#!/usr/bin/env bash
# A training run for each value of an option: an array job. Each goes on from its own checkpoint until it is done.
# Change the lines below <1>, <2> and <3>, then: qsub sweep.sh            (`mpigd submit --sweep` writes them for you)

# <1> As many array members as values; nodes, cores of each, ranks on each, threads of each rank and time of one member.
#PBS -l select=1:ncpus=16:mpiprocs=16:ompthreads=1 -l walltime=2:00:00 -J 0-3
#PBS -N mpigd -j oe

cd "$PBS_O_WORKDIR" || exit 74

# <2> Where python with mpigd, and its mpirun, are, or instead of it what makes them known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> Which option, its values, and what they have in common. Models are sweep/OPTION-VALUE.h5. --max-time is five minutes less
#     than walltime, for PBS tells of the end too late.
option=l2 values=(1e-6 1e-4 1e-2 1)
train=(train 'data/part-*.h5' --loss logistic --max-time 1:55:00)

value="${values[$PBS_ARRAY_INDEX]}"
name="sweep/$option-$value"
mkdir -p sweep
export MPIGD_THREADS="${OMP_NUM_THREADS:-1}"
mpirun -n "$(wc -l <"$PBS_NODEFILE")" --hostfile "$PBS_NODEFILE" "$(command -v python)" -m mpigd "${train[@]}" \
    "--$option" "$value" -o "$name.h5" --checkpoint "$name"
code=$?
[ "$code" != 0 ] || [ "$name.h5" -nt "$0" ] || code=75 # no new model: Open MPI's mpirun ends with 0 where it lost a node

# 75 is "saved, run me again". Anything else is done, or an error that another try would not cure. (Where compute nodes may not
# call qsub, put `ssh LOGIN-NODE` before it, and a path that both see.) PBS has no array of one, but one of two in steps of two.
if [ "$code" = 75 ] && [ "${TURN:-0}" -lt 50 ]; then
    qsub -v TURN=$((${TURN:-0} + 1)) -J "$PBS_ARRAY_INDEX-$((PBS_ARRAY_INDEX + 1)):2" "$0"
fi
exit "$code"
