#!/usr/bin/env bash
# One training run under Slurm, its ranks started by srun. It goes on from its checkpoint until it is done, however often it is stopped.
# Change the lines below <1>, <2> and <3>, then: sbatch train.sh          (`mpigd submit` writes them for you)

# <1> Nodes, ranks on each, threads (cores) of each rank, time. One node: --nodes=1. Hybrid, a rank for eight cores:
#     --ntasks-per-node=4 --cpus-per-task=8. The model's bits are the same in any case.
#SBATCH --nodes=2 --ntasks-per-node=16 --cpus-per-task=1 --time=2:00:00
#SBATCH --job-name=mpigd --output=%x-%j.log --open-mode=append --requeue
# Two minutes before the end the ranks, which are srun's step, get USR1: they save and exit with 75.
#SBATCH --signal=USR1@120

# <2> Where python with mpigd is, or instead of it what makes it known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> What to train. Without --checkpoint there is nothing to go on from.
model=model.h5 train=(train 'data/part-*.h5' -o "$model" --loss logistic --l2 1e-4 --checkpoint checkpoint)

export MPIGD_THREADS="$SLURM_CPUS_PER_TASK" SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun does not ask sbatch, since Slurm 22.05
srun --mpi=pmi2 python -m mpigd "${train[@]}" # with Open MPI: --mpi=pmix
code=$?

# 75 is "saved, run me again". Anything else is done, or an error that another try would not cure.
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
