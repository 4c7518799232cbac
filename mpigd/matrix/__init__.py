"""Rows of a data set in memory: dense, compressed, in half precision."""
