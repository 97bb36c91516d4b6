"""Parts of `benchmarks/checkpoint.py`: each imports only those before it.

`workload`, `contenders`, `training`, `jobs` (run in fresh processes), then the tables:
`training_tables` and `store_table`.
"""
