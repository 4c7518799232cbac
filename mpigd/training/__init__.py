"""The training run, checkpoints, recovery and planning."""
