"""`distrib doctor`: says what is wrong with a machine before a job finds out.

`command.py` collects `Finding`s of the other modules: packages and what they need (`packages.py`),
TensorFlow, GPUs and Horovod (`frameworks.py`, by the report of `frameworks_report.py`), the machine
(`machine.py`), the network and other hosts (`network.py`), and stores (`stores.py`).
"""
