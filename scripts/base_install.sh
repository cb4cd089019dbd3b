#!/usr/bin/env bash
# Install LexVLA alone into an empty environment, print what it takes, and run the demo there.
set -euo pipefail
cd "$(dirname "$0")/.."
MOST=450 # MB

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
"${PYTHON:-python3}" -m venv --without-pip "$home/venv"
"${PYTHON:-python3}" -m pip --disable-pip-version-check --quiet --python "$home/venv/bin/python" \
  install -c constraints.txt .
size=$(du -sm "$home/venv" | cut -f1)
echo "The base install takes $size MB, with all that it depends on."
((size <= MOST)) || { echo "That is more than $MOST MB." >&2; exit 1; }
cd "$home" # no source tree in sight
XDG_CACHE_HOME="$home/cache" "$home/venv/bin/lexvla" demo
! "$home/venv/bin/python" -c 'import torch' 2> /dev/null || { echo "It holds torch." >&2; exit 1; }
