#!/bin/sh
# Give LexVLA its own role and user in Elasticsearch: the indices of one name, and nothing else.
#   ELASTICSEARCH_URL, ELASTIC_USERNAME (`elastic`) and ELASTIC_PASSWORD_FILE of one who may do
#   that, LEXVLA_PASSWORD_FILE, LEXVLA_INDEX: the name of the index. Repeating it changes nothing.
set -eu
url=${ELASTICSEARCH_URL:-http://elasticsearch:9200}
index=${LEXVLA_INDEX:-photos}
user=${ELASTIC_USERNAME:-elastic}
password=$(cat "$ELASTIC_PASSWORD_FILE")
lexvla=$(cat "$LEXVLA_PASSWORD_FILE")
case $index in
  '' | *[!a-z0-9._-]*)
    echo "LEXVLA_INDEX: $index: use small letters, digits, '.', '_' and '-'" >&2
    exit 2
    ;;
esac

put() {
  # Passwords go by standard input: other processes can read a command line.
  printf 'user = "%s:%s"\n' "$user" "$password" | curl --config - --silent --show-error \
    --fail-with-body --request PUT --header 'Content-Type: application/json' \
    --data-binary "@$2" "$url$1"
  echo
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
umask 077
# In a pattern a dot stands for any character.
pattern=$(printf %s "$index" | sed 's/[.]/[.]/g')
sed "s/INDEX/$index/g; s/PATTERN/$pattern/g" "$(dirname "$0")/role.json" > "$folder/role"
cat > "$folder/user" <<JSON
{"password": "$lexvla", "roles": ["lexvla"], "full_name": "LexVLA"}
JSON
put /_security/role/lexvla "$folder/role"
put /_security/user/lexvla "$folder/user"
