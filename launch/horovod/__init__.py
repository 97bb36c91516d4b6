"""`distrib horovod`: `wheel.py` builds Horovod for the installed TensorFlow, `build.py` tries it.

May import no other folder of `launch`.
"""
