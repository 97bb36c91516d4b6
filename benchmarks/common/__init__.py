"""Helpers shared by the scripts in `benchmarks/`, whose folder Python puts on `sys.path`."""
