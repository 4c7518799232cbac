"""Import of raw tables (CSV, Parquet, Arrow, ORC, svmlight) into HDF5 data sets."""
