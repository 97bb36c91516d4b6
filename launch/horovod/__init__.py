"""`distrib horovod build`: builds Horovod for the installed TensorFlow.

`recipe.py` says which wheel is needed, `toolchain.py` finds what the build needs, `wheel.py` builds
and caches the wheel, `build.py` installs it and `check.py` tries it with ranks. For GPUs, `cuda.py`
finds CUDA and NCCL, `cuda_toolkit.py` lays them out for the build, `cuda_adapter.py` has a header
that it needs, and `linkage.py` checks what has become of them.
May import no other folder of `launch`.
"""
