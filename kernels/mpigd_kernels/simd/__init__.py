"""Kernels that write vector instructions by hand, as LLVM intermediate code; start with rows.py.

rows           vectors of LANES float64; dense rows: dot products and accumulation
tiles          dense rows and several outputs at once; outer products
sparse         compressed sparse rows
multi_output   compressed sparse rows and several outputs at once
element_types  elements of any supported type as float64, prefetching, uncounted views
vector_type    LANES float64 as one value of compiled code, in which losses are written
"""
