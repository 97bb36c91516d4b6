#!/usr/bin/env bash
# Starts a script with Open MPI; Horovod must have been built with MPI:
#
#     NP=4 launch/mpirun.sh examples/digits.py --epochs 2
#     NP=4 HOSTS=h0:2,h1:2 launch/mpirun.sh train.py
#
# Inside a Slurm job mpirun finds the nodes by itself, and needs no ssh where it was built for Slurm.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NP=2] [HOSTS=host:slots,...] $0 script.py ..." >&2
    exit 64
fi

options=(
    -np "${NP:-2}"      # Ranks, over all hosts.
    --bind-to none      # TensorFlow spreads over cores by itself; by default it would get one.
    --map-by slot       # Fill a host before the next: Horovod expects neighbours on one host.
    --mca pml ob1       # Plain TCP and shared memory, as Horovod's documentation advises;
    --mca btl ^openib   # the old InfiniBand layer hangs on machines without it.
)
if [ -n "${HOSTS:-}" ]; then
    options+=(-H "$HOSTS")  # Reached by ssh, with keys.
fi

# mpirun gives other hosts nothing of this environment but what it is told to.
names='PATH|PYTHONPATH|LD_LIBRARY_PATH'
prefixes='DISTRIB_|HOROVOD_|TF_|KERAS_|XLA_|CUDA_|NCCL_|OMP_|PYTHON|AWS_|GOOGLE_|FSSPEC_'
while IFS= read -r name; do
    options+=(-x "$name")
done < <(compgen -e | grep -E "^($names|($prefixes).*)\$")

# mpirun kills the ranks a second after it gets SIGTERM, which is too soon to save. But it passes
# SIGUSR1 on, and that asks distrib to stop too. In the background, so that the shell hears signals.
mpirun "${options[@]}" "${PYTHON:-python}" "$@" &
mpirun=$!
trap 'interrupted=yes; kill -USR1 "$mpirun" || :' TERM INT

# A signal ends `wait` early, so wait until nothing has interrupted it, and end as mpirun did.
interrupted=yes
while [ -n "$interrupted" ]; do
    interrupted=
    code=0
    wait "$mpirun" || code=$?
done
exit "$code"
