"""HDF5 files: opening them safely, checking what they declare, writing them whole."""
