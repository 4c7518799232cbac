#!/usr/bin/env bash
# A training run for each value of an option: an array job. Each goes on from its own checkpoint until it is done. The ranks are
# started by mpirun (where srun and the MPI library do not know each other).
# Change the lines below <1>, <2> and <3>, then: sbatch sweep_mpirun.sh   (`mpigd submit --launcher mpirun --sweep` writes them)

# <1> As many array members as values; nodes, ranks on each, threads (cores) of each rank and time of one member.
#SBATCH --nodes=1 --ntasks-per-node=16 --cpus-per-task=1 --time=2:00:00 --array=0-3
#SBATCH --job-name=mpigd --output=%x-%A_%a.log --open-mode=append --requeue
# Two minutes before the end this script (B:), and not Slurm's own steps, gets USR1; it tells mpirun, which tells the ranks.
#SBATCH --signal=B:USR1@120

# <2> Where python with mpigd, and its mpirun, are, or instead of it what makes them known: `module load ...`.
PATH="$PWD/.venv/bin:$PATH"

# <3> Which option, its values, and what they have in common. Models are sweep/OPTION-VALUE.h5.
option=l2 values=(1e-6 1e-4 1e-2 1)
train=(train 'data/part-*.h5' --loss logistic)

value="${values[$SLURM_ARRAY_TASK_ID]}"
name="sweep/$option-$value"
mkdir -p sweep
export MPIGD_THREADS="$SLURM_CPUS_PER_TASK"
mpirun -n "$SLURM_NTASKS" "$(command -v python)" -m mpigd "${train[@]}" "--$option" "$value" -o "$name.h5" --checkpoint "$name" &
mpirun=$!
trap 'kill -USR1 $mpirun' USR1
while kill -0 "$mpirun" 2>/dev/null; do wait "$mpirun"; done # a signal to this script ends the waiting, not mpirun
wait "$mpirun"
code=$?
[ "$code" != 0 ] || [ "$name.h5" -nt "$0" ] || code=75 # no new model: Open MPI's mpirun ends with 0 where it lost a node

# 75 is "saved, run me again". Anything else is done, or an error that another try would not cure.
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
