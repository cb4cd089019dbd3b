#!/bin/sh
# Run `lexvla`, with secrets read from files: NAME_FILE=/run/secrets/x sets NAME for it alone.
set -eu
for name in ELASTIC_API_KEY ELASTIC_USERNAME ELASTIC_PASSWORD; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then
    [ -r "$file" ] || { echo "lexvla: error: ${name}_FILE: cannot read $file" >&2; exit 1; }
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
  fi
done
exec lexvla "$@"
