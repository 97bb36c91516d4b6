#!/usr/bin/env bash
# Trains with Open MPI, and starts again what was killed. Horovod must have been built with MPI:
#
#     NP=4 launch/mpirun.sh examples/digits.py --epochs 2
#     NP=4 HOSTS=h0:2,h1:2 launch/mpirun.sh train.py
#
# Inside a Slurm job mpirun finds the nodes by itself, and needs no ssh where it was built for Slurm.
#
# mpirun ends with what the rank that failed ended with. So after 76 (another rank is gone) and above
# 128 (killed) it is started again; after 75 not, for then somebody has asked it to stop.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NP=2] [HOSTS=host:slots,...] [RESTARTS=100] $0 script.py ..." >&2
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

# So many starts in a row may gain no step. The chief keeps count beside the checkpoints, and ends
# with 70 when it is time to give up. RESTARTS is for what ends before it can tell.
export DISTRIB_ATTEMPTS=${DISTRIB_ATTEMPTS:-5}

# mpirun gives other hosts nothing of this environment but what it is told to.
names='PATH|PYTHONPATH|LD_LIBRARY_PATH'
prefixes='DISTRIB_|HOROVOD_|TF_|KERAS_|XLA_|CUDA_|NCCL_|OMP_|PYTHON|AWS_|GOOGLE_|FSSPEC_'
while IFS= read -r name; do
    options+=(-x "$name")
done < <(compgen -e | grep -E "^($names|($prefixes).*)\$")

# mpirun kills the ranks a second after it gets SIGTERM, which is too soon to save. But it passes
# SIGUSR1 on, and that asks distrib to stop too.
asked=
child=
trap 'asked=yes; interrupted=yes; kill -USR1 $child 2>/dev/null || :' TERM INT

# In the background, so that the shell hears signals. They end `wait` early, so it is repeated until
# nothing has interrupted it.
run() {
    "$@" &
    child=$!
    [ -z "$asked" ] || kill -USR1 "$child"  # It was asked before it had this number.
    interrupted=yes
    while [ -n "$interrupted" ]; do
        interrupted=
        code=0
        wait "$child" || code=$?
    done
}

restarts=0
while run mpirun "${options[@]}" "${PYTHON:-python}" "$@"
    { [ "$code" -eq 76 ] || [ "$code" -gt 128 ]; } && [ -z "$asked" ] &&
        [ "$restarts" -lt "${RESTARTS:-100}" ]; do
    restarts=$((restarts + 1))
    echo "mpirun.sh: exit code $code; starting again in 5 s ($restarts)." >&2
    run sleep 5
    [ -z "$asked" ] || exit 75
done
exit "$code"
