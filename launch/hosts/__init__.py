"""The hosts of a job: how to reach them, which ranks they run, and the agent that runs a rank.

`rank_agent.py` and `probe.py` are run by path on other hosts, with the standard library alone.
May import `process`; `run` is above.
"""
