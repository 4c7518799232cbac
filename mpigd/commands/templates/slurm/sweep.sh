#!/usr/bin/env bash
# A training run for each value of an option: an array job. Each goes on from its own checkpoint until it is done.
# Change the lines below <1>, <2> and <3>, then: sbatch sweep.sh          (`mpigd submit --sweep` writes them for you)

# <1> As many array members as values; nodes, ranks on each, threads (cores) of each rank and time of one member.
#SBATCH --nodes=1 --ntasks-per-node=16 --cpus-per-task=1 --time=2:00:00 --array=0-3
#SBATCH --job-name=mpigd --output=%x-%A_%a.log --open-mode=append --requeue
# Two minutes before the end the ranks, which are srun's step, get USR1: they save and exit with 75.
#SBATCH --signal=USR1@120

# <2> Where python with mpigd is, or instead of it what makes it known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> Which option, its values, and what they have in common. Models are sweep/OPTION-VALUE.h5.
option=l2 values=(1e-6 1e-4 1e-2 1)
train=(train 'data/part-*.h5' --loss logistic)

value="${values[$SLURM_ARRAY_TASK_ID]}"
name="sweep/$option-$value"
mkdir -p sweep
export MPIGD_THREADS="$SLURM_CPUS_PER_TASK" SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun does not ask sbatch, since Slurm 22.05
srun --mpi=pmi2 python -m mpigd "${train[@]}" "--$option" "$value" -o "$name.h5" --checkpoint "$name" # with Open MPI: --mpi=pmix
code=$?

# 75 is "saved, run me again". Anything else is done, or an error that another try would not cure.
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
