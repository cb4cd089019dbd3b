#!/bin/sh
# Give LexVLA its own role and user in Elasticsearch: the indices of one name, and nothing else.
#   ELASTICSEARCH_URL, ELASTIC_PASSWORD_FILE (of the superuser `elastic`), LEXVLA_PASSWORD_FILE,
#   LEXVLA_INDEX: the name of the index. Repeating it changes nothing.
set -eu
url=${ELASTICSEARCH_URL:-http://elasticsearch:9200}
index=${LEXVLA_INDEX:-photos}
elastic=$(cat "$ELASTIC_PASSWORD_FILE")
lexvla=$(cat "$LEXVLA_PASSWORD_FILE")

put() {
  # Passwords go by standard input: other processes can read a command line.
  printf 'user = "elastic:%s"\n' "$elastic" | curl --config - --silent --show-error \
    --fail-with-body --request PUT --header 'Content-Type: application/json' \
    --data-binary "@$2" "$url$1"
  echo
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
umask 077
cat > "$folder/role" <<JSON
{"cluster": ["monitor"],
 "indices": [{"names": ["$index", "$index-*"],
              "privileges": ["manage", "read", "write", "view_index_metadata"]}]}
JSON
cat > "$folder/user" <<JSON
{"password": "$lexvla", "roles": ["lexvla"], "full_name": "LexVLA"}
JSON
put /_security/role/lexvla "$folder/role"
put /_security/user/lexvla "$folder/user"
