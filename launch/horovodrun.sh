#!/usr/bin/env bash
# Starts a script with Horovod's own launcher:
#
#     NP=4 launch/horovodrun.sh examples/digits.py --epochs 2
#     NP=4 HOSTS=h0:2,h1:2 launch/horovodrun.sh train.py
#
# `distrib run` does the same and more: horovodrun ends with 1 after any failure, and on SIGTERM it
# leaves the ranks of other hosts running and kills its own after 5 seconds. So use this only for
# jobs that you restart yourself.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NP=2] [HOSTS=host:slots,...] $0 script.py ..." >&2
    exit 64
fi

options=(
    --gloo           # No MPI is needed.
    -np "${NP:-2}"   # Ranks, over all hosts.
)
if [ -n "${HOSTS:-}" ]; then
    options+=(-H "$HOSTS")  # Reached by ssh, with keys.
fi

# The interpreter of the active environment, which every host must have at the same place.
exec horovodrun "${options[@]}" "${PYTHON:-python}" "$@"
