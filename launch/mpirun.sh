#!/usr/bin/env bash
# Trains with Open MPI, and restarts a job that was killed. Horovod must have been built with MPI:
#
#     NP=4 launch/mpirun.sh examples/digits.py --epochs 2
#     NP=4 HOSTS=h0:2,h1:2 launch/mpirun.sh train.py
#
# Inside a Slurm job mpirun finds the nodes by itself, and needs no ssh where it was built for Slurm.
#
# mpirun ends with the exit code of the rank that failed. So it is restarted after 76 (a peer was
# lost) and above 128 (killed), but not after 75, which means that it was asked to stop.
#
# -m gives mpirun a process group of its own, so that a signal to this script's group (Ctrl-C, or
# `timeout`) does not reach it.
set -meuo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NP=2] [HOSTS=host:slots,...] [RESTARTS=100] $0 script.py ..." >&2
    exit 64
fi

options=(
    -np "${NP:-2}"      # Ranks, over all hosts.
    --bind-to none      # TensorFlow needs all cores; by default each rank gets one.
    --map-by slot       # Fill a host before the next: Horovod expects neighbours on one host.
    --mca pml ob1       # Plain TCP and shared memory, as Horovod's documentation advises;
    --mca btl ^openib   # the old InfiniBand layer hangs on machines without it.
)
if [ -n "${HOSTS:-}" ]; then
    options+=(-H "$HOSTS")  # Reached by ssh, with keys.
fi

# How many starts in a row may gain no step. The chief counts them beside the checkpoints, and ends
# with 70 after the last one. RESTARTS limits starts that fail before the chief can count.
export DISTRIB_ATTEMPTS=${DISTRIB_ATTEMPTS:-5}

# mpirun passes only the variables that it is told to pass to other hosts.
names='PATH|PYTHONPATH|LD_LIBRARY_PATH'
prefixes='DISTRIB_|HOROVOD_|TF_|KERAS_|XLA_|CUDA_|NCCL_|OMP_|PYTHON|AWS_|GOOGLE_|FSSPEC_'
while IFS= read -r name; do
    options+=(-x "$name")
done < <(compgen -e | grep -E "^($names|($prefixes).*)\$")

# mpirun kills the ranks a second after it gets SIGTERM, which may be too soon to save. But it
# forwards SIGUSR1, on which distrib saves and stops too.
stop_requested=
child=
trap 'stop_requested=yes; interrupted=yes; kill -USR1 $child 2>/dev/null || :' TERM INT

# In the background, so that the shell handles signals. They end `wait` early, so it is repeated
# until no signal has interrupted it.
run() {
    "$@" </dev/null &
    child=$!
    [ -z "$stop_requested" ] || kill -USR1 "$child"  # The signal came before `child` was set.
    interrupted=yes
    while [ -n "$interrupted" ]; do
        interrupted=
        code=0
        wait "$child" || code=$?
    done
}

restarts=0
while run mpirun "${options[@]}" "${PYTHON:-python}" "$@"
    { [ "$code" -eq 76 ] || [ "$code" -gt 128 ]; } && [ -z "$stop_requested" ] &&
        [ "$restarts" -lt "${RESTARTS:-100}" ]; do
    restarts=$((restarts + 1))
    echo "mpirun.sh: exit code $code; starting again in 5 s ($restarts)." >&2
    run sleep 5
    [ -z "$stop_requested" ] || exit 75
done
# systemd and Slurm send SIGTERM to mpirun too, which then ends with 1, or as killed.
if [ -n "$stop_requested" ] && { [ "$code" -eq 1 ] || [ "$code" -eq 76 ] || [ "$code" -gt 128 ]; }; then
    code=75
fi
exit "$code"
