"""Raw tables (CSV, Parquet, svmlight) become HDF5 data sets."""
