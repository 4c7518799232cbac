"""Data sets over ranks: metadata, partitions, reading, batches."""
