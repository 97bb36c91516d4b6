#!/usr/bin/env bash
# Trains on this machine, in one process with all of its GPUs, or with a process for each of them:
#
#     launch/local.sh examples/digits.py --epochs 2
#     NP=4 launch/local.sh train.py          # With Horovod.
#
# The arguments are those of `distrib run`: options, the script, and the script's arguments. It
# restarts processes that fail as long as they make progress, and ends with 0 when the training is
# finished. It ends with 75 when it was asked to stop (Ctrl-C, SIGTERM): the same command resumes
# the training. After any other exit code a person must fix the cause, which its last line names;
# see docs/resume.md.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NP=number of processes] $0 script.py ..." >&2
    exit 64
fi
if [ "${NP:-1}" = 1 ]; then
    exec distrib run -np 1 --backend local "$@"
fi
exec distrib run -np "$NP" "$@"
