"""Optimisers. Each calls an oracle and never sees MPI."""
