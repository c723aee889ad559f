#!/usr/bin/env bash
# A whole run on one node, which goes on by itself after a preemption or the end of its time.
# Not run on a cluster: tried with stand-ins for SLURM's commands (tests/test_slurm.py).
#
#   sbatch recipes/slurm/one-node.sh recipes/quickstart.yaml --output /shared/outputs/quickstart
#
# What comes after the script's name goes to `harness run`, which goes on from where it was stopped: what is started
# first is what is queued again. The output folder has to be one that every node sees. Change what these lines ask for:
#SBATCH --job-name=harness
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# TERM to this script alone (B:), this many seconds before the time is up. A preemption sends it where the cluster has
# PreemptParameters=send_user_signal; the partition's GraceTime then is the time to save.
#SBATCH --signal=B:TERM@120
set -uo pipefail
: "${SLURM_JOB_ID:?start this with sbatch}"

signals=0
# To the controller alone: it lets its step save, and ends. A second one would end it at once.
# shellcheck disable=SC2329 # the trap invokes it
pass_on() {
  signals=$((signals + 1))
  [[ ${signals} -gt 1 ]] || kill -TERM "${run}"
}

harness run "$@" &
run=$!
trap pass_on TERM

# `wait` also returns when a signal comes, before the run has ended: then wait again.
while true; do
  before=${signals}
  wait "${run}"
  code=$?
  [[ ${signals} -ne ${before} ]] || break
done

# A run that was stopped ends with 1, one that was done just then with 0. Wrong input (2) would be refused again.
if [[ ${signals} -gt 0 && ${code} -ne 0 && ${code} -ne 2 ]]; then
  echo "stopped; queueing job ${SLURM_JOB_ID} again (start ${SLURM_RESTART_COUNT:-0})"
  scontrol requeue "${SLURM_JOB_ID}"
fi
exit "${code}"
