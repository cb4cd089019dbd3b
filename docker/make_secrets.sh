#!/bin/sh
# Make the passwords of compose.yaml, each once, in docker/secrets (kept out of git and images).
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
for name in elastic_password lexvla_password; do
  if [ ! -s "secrets/$name" ]; then
    # 32 random bytes as hex: no character that a shell, a URL or JSON would have to escape.
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
    echo "made docker/secrets/$name"
  fi
done
# Containers run as other users than the one who made these; the folder stays closed to others.
chmod 0700 secrets
chmod 0444 secrets/*
