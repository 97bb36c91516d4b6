"""What differs between ways of running a job, behind one Protocol; see `base.py`."""
