"""What a run needs to continue: every variable, callback state and random generator.

`run_state.py` saves and restores all of it; `training_state.py` knows the variables.
May import `cluster`, `checkpoint` and everything below; `training` decides when.
"""
