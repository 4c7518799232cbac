"""The training run, checkpoints, recovery from rank failures, and planning."""
