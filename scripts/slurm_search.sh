#!/usr/bin/env bash
# Search on the nodes of one SLURM job.  Submit it from the project's folder, with the project's environment active:
#   sbatch --nodes=2 --gpus-per-node=4 scripts/slurm_search.sh --space bas_cp --storage /shared/runs
# All arguments are those of search.run; environment, data and storage must be at the same paths on every node.  Before
# the time limit and when it is preempted, the job stops the search and is queued again; its next start continues it.
#SBATCH --job-name=fgsearch
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
set -euo pipefail

[ -n "${SLURM_JOB_ID:-}" ] || { echo "error: not in a SLURM job; submit this script with sbatch" >&2; exit 2; }
cd "$SLURM_SUBMIT_DIR"
[ -x scripts/cluster_head.sh ] || { echo "error: $PWD is not fgsearch's folder; run sbatch there" >&2; exit 2; }

host=$(hostname -I | cut -d' ' -f1) # SLURM runs this script on the first node of the job
port=$((20000 + SLURM_JOB_ID % 10000))
address=$host:$port
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token # srun passes the environment on
log=$(mktemp) steps=()
one_per_node=(srun --overlap --ntasks-per-node=1)

"${one_per_node[@]}" --nodes=1 --nodelist="$SLURMD_NODENAME" \
    scripts/cluster_head.sh --host "$host" --port "$port" --temp-dir "/tmp/ray-$SLURM_JOB_ID" >"$log" &
steps+=($!)
trap 'kill -TERM "${steps[@]}" 2>/dev/null || true; wait; rm -f "$log"' EXIT
until grep -q "^cluster: .* is up" "$log"; do
    kill -0 "${steps[0]}" 2>/dev/null || { echo "error: the head of the cluster has ended, see above" >&2; exit 1; }
    sleep 1
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    "${one_per_node[@]}" --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$SLURMD_NODENAME" \
        scripts/cluster_worker.sh --address "$address" --temp-dir "/tmp/ray-$SLURM_JOB_ID" &
    steps+=($!)
fi

python -m search.run --ray-address "$address" "$@" &
search=$!
stopped=""
trap 'stopped=1; trap "" TERM; kill -TERM "$search" 2>/dev/null || true' TERM
status=0
wait "$search" || status=$?
if [ -n "$stopped" ]; then
    status=0
    wait "$search" || status=$? # the signal ended the first `wait` before the search
    [ "$status" -eq 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
