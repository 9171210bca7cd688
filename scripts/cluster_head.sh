#!/usr/bin/env bash
# Start the head of a Ray cluster on this machine; runs until Ctrl-C.  See --help, and README.md for the whole procedure.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/cluster_head.sh [--host ADDRESS] [--port N] [--cpus N] [--gpus N] [--dashboard-port N] [--temp-dir DIR]

  --host ADDRESS       address by which the other machines reach this one (default: its first address)
  --port N             port of the cluster, outside 10002-19999, which Ray gives to its workers (default: 6379)
  --cpus N, --gpus N   resources of this machine for trials (default: all; 0 and 0 for a head that runs none)
  --dashboard-port N   port of the dashboard, which needs ray[default], on 127.0.0.1 (default: 8265)
  --temp-dir DIR       Ray's own files, a short path (default: Ray's, /tmp/ray)

The cluster's authentication token is in RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH (default:
~/.ray/auth_token), which is created if missing.  The script stays in the foreground; its node ends with it.
TEXT
}

refuse() {
    echo "error: $1" >&2
    exit 2
}

host="" port=6379 dashboard=8265 temp="" options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help) usage; exit 0 ;;
        --host | --port | --cpus | --gpus | --dashboard-port | --temp-dir) [ $# -ge 2 ] || refuse "$1: needs a value; see --help" ;;
        *) refuse "$1: no such option; see --help" ;;
    esac
    case "$1" in
        --host) host=$2 ;;
        --port) port=$2 ;;
        --cpus) options+=(--num-cpus "$2") ;;
        --gpus) options+=(--num-gpus "$2") ;;
        --dashboard-port) dashboard=$2 ;;
        --temp-dir) temp=$2 options+=(--temp-dir "$2") ;;
    esac
    shift 2
done

[[ $port =~ ^[0-9]{1,5}$ ]] && ((port > 0 && port < 65536)) || refuse "--port: got '$port', must be a number from 1 to 65535"
((port < 10002 || port > 19999)) || refuse "--port: got $port, must be outside 10002-19999, which Ray gives to its workers"
command -v ray >/dev/null || refuse "there is no command ray; activate the environment in which fgsearch is installed"
(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && refuse "--port: something listens on $port already; choose another"
host=${host:-$(hostname -I | cut -d' ' -f1)}

options+=(--dashboard-agent-listen-port 0) # any free port: several nodes may run on one machine
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # a trial loses at most its current epoch, so Ray need not wait for it
export RAY_worker_niceness=${RAY_worker_niceness:-0} # with Ray's 15, any busy process of the machine starves the trials
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [ -z "${RAY_AUTH_TOKEN:-}" ]; then
    export RAY_AUTH_TOKEN_PATH=$token
    if [ ! -s "$token" ]; then
        mkdir -p "$(dirname "$token")"
        (umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$token")
    fi
    chmod 600 "$token" || refuse "$token: must be owned by this user (chmod 600 failed)"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
ray start --head --block --node-ip-address "$host" --port "$port" --dashboard-host 127.0.0.1 \
    --dashboard-port "$dashboard" ${options[@]+"${options[@]}"} >"$log" 2>&1 &
node=$!
stopped=""
trap 'stopped=1; kill -TERM "$node" 2>/dev/null || true' INT TERM
until grep -q "Ray runtime started" "$log"; do
    if ! kill -0 "$node" 2>/dev/null; then
        echo "error: Ray did not start: $(grep -E 'Error|error|Unable|denied' "$log" | tail -n 1)" >&2
        exit 1
    fi
    sleep 0.2
done
[ -n "${RAY_AUTH_TOKEN:-}" ] && token="in RAY_AUTH_TOKEN, to be set everywhere" || token="$token, to be copied to every machine"
cat <<TEXT
cluster: $host:$port is up; this process is its head, Ctrl-C ends it
token:   $token
worker:  scripts/cluster_worker.sh --address $host:$port
search:  python -m search.run --space bas_cp --storage /shared/runs --ray-address $host:$port
TEXT
status=0
wait "$node" || status=$?
while [ -n "$stopped" ] && kill -0 "$node" 2>/dev/null; do wait "$node" || true; done # a signal interrupts `wait`
[ -z "$stopped" ] || exit 0
echo "error: this node has ended by itself (exit code $status); its logs are in ${temp:-/tmp/ray}/session_latest/logs" >&2
exit 1
