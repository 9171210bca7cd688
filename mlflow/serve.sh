#!/usr/bin/env bash
# Start an MLflow tracking server for a team.  See README.md in this folder, or --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: mlflow/serve.sh [--folder DIR] [--store URI] [--host ADDRESS] [--port N] [--name NAME[:PORT]]... [--auth]

  --folder DIR    where the server keeps its files (default: ./mlflow-server)
  --store URI     its database: sqlite:///PATH or postgresql://... (default: sqlite in the folder)
  --host ADDRESS  address to listen on (default: 127.0.0.1); any other one needs --auth
  --port N        port (default: 5000)
  --name NAME     a name or address by which browsers and searches reach it, its port included as in tracking.example:5000;
                  MLflow answers to no other but this machine's own (default: --host; 0.0.0.0 needs one)
  --auth          users and passwords; needs MLFLOW_AUTH_CONFIG_PATH and MLFLOW_FLASK_SERVER_SECRET_KEY
TEXT
}

refuse() {
    echo "error: $1" >&2
    exit 2
}

folder=mlflow-server store="" host=127.0.0.1 port=5000 auth="" names=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help) usage; exit 0 ;;
        --auth) auth=1; shift; continue ;;
        --folder | --store | --host | --port | --name) [ $# -ge 2 ] || refuse "$1: needs a value; see --help" ;;
        *) refuse "$1: no such option; see --help" ;;
    esac
    case "$1" in
        --folder) folder=$2 ;;
        --store) store=$2 ;;
        --host) host=$2 ;;
        --port) port=$2 ;;
        --name) names+=("$2") ;;
    esac
    shift 2
done

case "$host" in
    127.* | localhost | ::1) ;;
    *)
        [ -n "$auth" ] || refuse "--host: got $host, an address that others reach needs --auth; or tunnel to 127.0.0.1 by ssh"
        [[ ${#names[@]} -gt 0 || ( $host != 0.0.0.0 && $host != :: ) ]] ||
            refuse "--host: got $host, which is every address; give the one that browsers use by --name NAME:$port"
        [ ${#names[@]} -gt 0 ] || names=("$host:$port")
        ;;
esac
options=()
if [ ${#names[@]} -gt 0 ]; then
    hosts="localhost:*,127.0.0.1:*" origins=""
    for name in "${names[@]}"; do
        [[ $name =~ ^[][A-Za-z0-9.:-]+$ ]] || refuse "--name: got '$name', must be a name or an address, and its port, without http://"
        hosts+=",$name" origins+="${origins:+,}http://$name,https://$name"
    done
    options+=(--allowed-hosts "$hosts" --cors-allowed-origins "$origins")
fi
if [ -n "$auth" ]; then
    [ -f "${MLFLOW_AUTH_CONFIG_PATH:-}" ] ||
        refuse "MLFLOW_AUTH_CONFIG_PATH: got '${MLFLOW_AUTH_CONFIG_PATH:-}', must name an ini file with your own admin password"
    grep -q password1234 "$MLFLOW_AUTH_CONFIG_PATH" &&
        refuse "$MLFLOW_AUTH_CONFIG_PATH: has the password of MLflow's example; choose another"
    [ -n "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" ] ||
        refuse "MLFLOW_FLASK_SERVER_SECRET_KEY: got nothing, must be a long random text that stays the same"
    options+=(--app-name basic-auth)
fi

mkdir -p "$folder/artifacts"
folder=$(cd "$folder" && pwd)
exec mlflow server --host "$host" --port "$port" --workers 1 \
    --backend-store-uri "${store:-sqlite:///$folder/mlflow.db}" --artifacts-destination "file://$folder/artifacts" \
    ${options[@]+"${options[@]}"}
