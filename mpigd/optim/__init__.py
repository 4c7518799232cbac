"""Optimisers. They call an oracle and never see MPI."""
