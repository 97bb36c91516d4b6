"""`distrib run`: a job from attempt to attempt, and the ranks of one attempt.

`command.py` reads the options, `job.py` restarts, `supervisor.py` supervises one attempt.
May import `hosts`, `process`, `arguments` and `tables`.
"""
