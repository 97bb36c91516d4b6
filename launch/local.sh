#!/usr/bin/env bash
# Trains on this machine, in one process with all of its GPUs, or with a process for each of them:
#
#     launch/local.sh examples/digits.py --epochs 2
#     NP=4 launch/local.sh train.py          # With Horovod.
#
# What follows the name of this file is what follows `distrib run`: options, the script, and the
# script's arguments. It starts the processes again when they fail, as long as that gains anything,
# and ends with 0 when the training is finished. With 75 it was asked to stop (Ctrl-C, SIGTERM): the
# same command goes on from there. What else it ends with is for a person, and its last line says
# why; see docs/resume.md.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NP=number of processes] $0 script.py ..." >&2
    exit 64
fi
if [ "${NP:-1}" = 1 ]; then
    exec distrib run -np 1 --backend local "$@"
fi
exec distrib run -np "$NP" "$@"
