"""The hosts of a job: how they are reached, which ranks they get, and the agent that runs a rank.

`rank_agent.py` and `probe.py` are run by path on other hosts, with the standard library alone.
May import `process`; `run` is above.
"""
