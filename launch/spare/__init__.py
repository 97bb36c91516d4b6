"""Spares: processes that have imported TensorFlow, Keras and distrib before a rank needs them.

A spare is the interpreter of a rank, started ahead of time with the rank's own command line.
`sitecustomize.py` stops it before it reads the script, `preload.py` imports the libraries and
waits, and `held_modules.py` hands them to the script. The rank agent starts it
(`hosts/rank_agent.py`); the launcher decides when (`run/spares.py`).

This package runs in the rank. May import nothing else of `launch`.
"""
