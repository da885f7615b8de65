#!/usr/bin/env bash
# Make the environment of an NDIF server: setup.sh [FOLDER]   (default: .venv-ndif)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-.venv-ndif}

if ! command -v redis-server > /dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update -qq && apt-get install -y -qq redis-server > /dev/null
  else
    echo "redis-server is missing. On Debian: sudo apt-get install redis-server" >&2
    exit 1
  fi
fi

# Done already for these versions?
if [ -e "$venv/.ready" ] && [ "$venv/.ready" -nt "$here/constraints.txt" ]; then exit 0; fi

${PYTHON:-python3} -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$here/constraints.txt")
echo "Installing an NDIF server into $venv (a few minutes) ..."
"${pip[@]}" torch nnsight transformers accelerate peft pillow "ray[default]" fastapi \
  "uvicorn[standard]" gunicorn python-multipart redis click python-dotenv pyyaml boto3 zstandard \
  requests "moto[server]"
# Its metadata asks for Python 3.12; its code runs on 3.11.
"${pip[@]}" --no-deps --ignore-requires-python ndif
touch "$venv/.ready"
