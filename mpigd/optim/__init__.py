"""Optimisers. They call an oracle and never MPI."""
