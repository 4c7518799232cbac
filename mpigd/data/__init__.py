"""Reading data: HDF5, partitions over ranks, matrices in memory, import of raw tables."""
