"""`distrib horovod build`: builds Horovod for the installed TensorFlow.

`recipe.py` says which wheel is needed, `toolchain.py` finds what the build needs, `wheel.py` builds
and caches the wheel, `build.py` installs it and tries it with two ranks.
May import no other folder of `launch`.
"""
