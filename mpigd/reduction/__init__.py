"""Sums over rows, threads and ranks."""
