"""When to save: on a schedule, or as often as pays, given what a save costs this training.

`schedule.py` tells when a save is due, `interval.py` how often is best, `save_cost.py` measures.
May import nothing of distrib but `errors`, `log` and `units`.
"""
