#!/usr/bin/env bash
# A run whose training and embedding span nodes; it goes on by itself after a preemption or the end of its time.
# Not run on a cluster: tried with stand-ins for SLURM's commands (tests/test_slurm.py).
#
#   sbatch recipes/slurm/multi-node.sh RECIPE --output /shared/outputs/NAME
#
# The recipe names an accelerate file with `num_machines` above 1 for the steps that span nodes, such as
#   launch: {accelerate: {teacher: recipes/accelerate/multi-node.yaml, embed: recipes/accelerate/multi-node.yaml}}
# and `harness run --print` then shows a command a step: one with $MACHINE_RANK is started on every node, the others on
# the first. A step that is done says so and ends. Every node has to see recipe, data, models, output and Python.
#
# When it is stopped, the launchers on the nodes give their processes 30 s to save. A training that needs longer loses
# what it did since its last regular checkpoint, and nothing else. Change what these lines ask for:
#SBATCH --job-name=harness
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
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
: "${SLURM_JOB_ID:?start this with sbatch}" "${SLURM_JOB_NODELIST:?}" "${SLURM_NNODES:?}"

signals=0
running=''
# srun sends it to its tasks on all nodes. A second one would end them at once.
# shellcheck disable=SC2329 # the trap invokes it
pass_on() {
  signals=$((signals + 1))
  [[ ${signals} -gt 1 || -z "${running}" ]] || kill -TERM "${running}"
}
trap pass_on TERM

# Run a command to its end, a stop included; its exit code.
to_its_end() {
  local before code
  "$@" &
  running=$!
  # `wait` also returns when a signal comes, before the command has ended: then wait again.
  while true; do
    before=${signals}
    wait "${running}"
    code=$?
    [[ ${signals} -ne ${before} ]] || break
  done
  running=''
  return "${code}"
}

MAIN_ADDRESS=$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)
export MAIN_ADDRESS

to_its_end harness run "$@" --to data # writes the resolved recipe, which the printed commands read
code=$?
commands=''
if [[ ${code} -eq 0 ]]; then
  commands=$(harness run "$@" --print)
  code=$?
fi
while [[ ${code} -eq 0 && ${signals} -eq 0 ]] && IFS= read -r -u 3 command; do
  if [[ "${command}" == *MACHINE_RANK* ]]; then
    where=(--nodes="${SLURM_NNODES}" --ntasks="${SLURM_NNODES}")
  else
    where=(--nodes=1 --ntasks=1 --nodelist="${MAIN_ADDRESS}")
  fi
  # A process that dies on one node ends the step on all: the others would wait for it for ever.
  # shellcheck disable=SC2016 # SLURM_NODEID is known on the nodes
  to_its_end srun "${where[@]}" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    bash -c 'export MACHINE_RANK="${SLURM_NODEID}"; eval "exec $1"' step "${command}"
  code=$?
done 3<<<"${commands}"

# Wrong input (2) would be refused again. A stop after the last step's end queues a start that finds everything done.
if [[ ${signals} -gt 0 && ${code} -ne 2 ]]; then
  echo "stopped; queueing job ${SLURM_JOB_ID} again (start ${SLURM_RESTART_COUNT:-0})"
  scontrol requeue "${SLURM_JOB_ID}"
fi
exit "${code}"
