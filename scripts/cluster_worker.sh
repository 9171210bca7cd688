#!/usr/bin/env bash
# Add this machine to a Ray cluster as a worker; runs until Ctrl-C.  See --help, and README.md for the whole procedure.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/cluster_worker.sh --address HOST:PORT [--host ADDRESS] [--cpus N] [--gpus N] [--temp-dir DIR]

  --address HOST:PORT  the cluster's head, as cluster_head.sh printed it
  --host ADDRESS       address by which the other machines reach this one (default: Ray's choice)
  --cpus N, --gpus N   resources of this machine for trials (default: all)
  --temp-dir DIR       Ray's own files, a short path (default: Ray's, /tmp/ray)

Needs the cluster's token, in RAY_AUTH_TOKEN or in the file RAY_AUTH_TOKEN_PATH (default: ~/.ray/auth_token).
The script stays in the foreground; its node ends with it.
TEXT
}

refuse() {
    echo "error: $1" >&2
    exit 2
}

address="" temp="" options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help) usage; exit 0 ;;
        --address | --host | --cpus | --gpus | --temp-dir) [ $# -ge 2 ] || refuse "$1: needs a value; see --help" ;;
        *) refuse "$1: no such option; see --help" ;;
    esac
    case "$1" in
        --address) address=$2 ;;
        --host) options+=(--node-ip-address "$2") ;;
        --cpus) options+=(--num-cpus "$2") ;;
        --gpus) options+=(--num-gpus "$2") ;;
        --temp-dir) temp=$2 options+=(--temp-dir "$2") ;;
    esac
    shift 2
done

[[ $address =~ ^[^:]+:[0-9]{1,5}$ ]] || refuse "--address: got '$address', must be host:port of the head"
command -v ray >/dev/null || refuse "there is no command ray; activate the environment in which fgsearch is installed"
timeout 5 bash -c "exec 3<>/dev/tcp/${address%:*}/${address##*:}" 2>/dev/null ||
    refuse "--address: nothing answers at $address; start scripts/cluster_head.sh there, or open the port"

options+=(--dashboard-agent-listen-port 0) # any free port: several nodes may run on one machine
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # a trial loses at most its current epoch, so Ray need not wait for it
export RAY_worker_niceness=${RAY_worker_niceness:-0} # with Ray's 15, any busy process of the machine starves the trials
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_NUM_REDIS_GET_RETRIES=2
if [ -z "${RAY_AUTH_TOKEN:-}" ]; then
    export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
    [ -s "$RAY_AUTH_TOKEN_PATH" ] || refuse "$RAY_AUTH_TOKEN_PATH: no token in this file; copy the head's (scp -p), without which the cluster refuses this machine"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
ray start --block --address "$address" ${options[@]+"${options[@]}"} >"$log" 2>&1 &
node=$!
stopped=""
trap 'stopped=1; kill -TERM "$node" 2>/dev/null || true' INT TERM
until grep -q "Ray runtime started" "$log"; do
    if ! kill -0 "$node" 2>/dev/null; then
        grep -q -E "InvalidAuthToken|Unauthenticated" "$log" && refuse "the cluster at $address refuses this machine's token; copy the head's"
        echo "error: Ray did not start: $(grep -E 'Error|error|mismatch|denied' "$log" | tail -n 1)" >&2
        exit 1
    fi
    sleep 0.2
done
cat <<TEXT
worker:  this machine is a node of $address, Ctrl-C removes it
search:  python -m search.run --space bas_cp --storage /shared/runs --ray-address $address
TEXT
status=0
wait "$node" || status=$?
while [ -n "$stopped" ] && kill -0 "$node" 2>/dev/null; do wait "$node" || true; done # a signal interrupts `wait`
[ -z "$stopped" ] || exit 0
echo "error: this node has ended by itself (exit code $status); its logs are in ${temp:-/tmp/ray}/session_latest/logs" >&2
exit 1
