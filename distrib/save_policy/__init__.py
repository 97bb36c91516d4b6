"""When to save: on a schedule, or at the interval that loses the least time to saves and failures.

`schedule.py` says when a save is due, `interval.py` computes the best interval, and `save_cost.py`
measures the cost of a save.
May import nothing of distrib but `errors`, `log` and `units`.
"""
