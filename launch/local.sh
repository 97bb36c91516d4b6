#!/usr/bin/env bash
# Trains on this machine, with a process for each GPU, or one process where there is none:
#
#     launch/local.sh examples/digits.py --epochs 2
#     NP=4 launch/local.sh train.py
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

# CUDA_VISIBLE_DEVICES names the GPUs that may be used, up to the first that is none; -1 for none.
gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed -n '/^ *\(-\|$\)/q; p' | wc -l
    else
        { nvidia-smi --list-gpus 2>/dev/null || :; } | wc -l
    fi
}

if [ -z "${NP:-}" ]; then
    NP=$(gpus)
    [ "$NP" -gt 0 ] || NP=1
fi
exec distrib run -np "$NP" "$@"
