#!/usr/bin/env bash
# One training run under Slurm, its ranks started by mpirun (where srun and the MPI library do not know each other).
# Change the lines below <1>, <2> and <3>, then: sbatch train_mpirun.sh   (`mpigd submit --launcher mpirun` writes them for you)

# <1> Nodes, ranks on each, threads (cores) of each rank, time. One node: --nodes=1. Hybrid, a rank for eight cores:
#     --ntasks-per-node=4 --cpus-per-task=8. The model's bits are the same in any case.
#SBATCH --nodes=2 --ntasks-per-node=16 --cpus-per-task=1 --time=2:00:00
#SBATCH --job-name=mpigd --output=%x-%j.log --open-mode=append --requeue
# Two minutes before the end this script (B:), and not Slurm's own steps, gets USR1; it tells mpirun, which tells the ranks.
#SBATCH --signal=B:USR1@120

# <2> Where python with mpigd, and its mpirun, are, or instead of it what makes them known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> What to train. Without --checkpoint there is nothing to go on from.
model=model.h5 train=(train 'data/part-*.h5' -o "$model" --loss logistic --l2 1e-4 --checkpoint checkpoint)

export MPIGD_THREADS="$SLURM_CPUS_PER_TASK"
mpirun -n "$SLURM_NTASKS" "$(command -v python)" -m mpigd "${train[@]}" &
mpirun=$!
trap 'kill -USR1 $mpirun' USR1
while kill -0 "$mpirun" 2>/dev/null; do wait "$mpirun"; done # a signal to this script ends the waiting, not mpirun
wait "$mpirun"
code=$?
[ "$code" != 0 ] || [ "$model" -nt "$0" ] || code=75 # no new model: Open MPI's mpirun ends with 0 where it lost a node

# 75 is "saved, run me again". Anything else is done, or an error that another try would not cure.
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
