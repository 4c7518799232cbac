"""HDF5 files: safe opening, checks of what they declare, and whole writes."""
