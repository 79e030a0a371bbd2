#!/bin/sh
# What Gary-Zero does with this service, in curl. POSIX sh; needs curl, sed, grep, tr, od.
#
#   GARY_LOGIN=me GARY_PASSWORD=... sh examples/walkthrough.sh
#
# GARY_URL is where the service is (default http://localhost:8080). It writes the entry `walkthrough`
# of that user, can be run again, and stops at the first answer that is not the expected one.
set -eu

url=${GARY_URL:-http://localhost:8080}
url=${url%/}
: "${GARY_LOGIN:?set GARY_LOGIN}" "${GARY_PASSWORD:?set GARY_PASSWORD}"

umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
: >"$work/login" # the header with the token: in a file, so that no process list shows it

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

# call EXPECTED METHOD PATH [curl options]: a body comes from standard input with --data-binary @-.
# The answer lies in $work/body and $work/headers, its status in $status. EXPECTED may be '200|201'.
call() {
  expected=$1 method=$2 path=$3
  shift 3
  status=$(curl -sS --max-time 30 -X "$method" -H "@$work/login" -D "$work/headers" -o "$work/body" \
    -w '%{http_code}' "$@" "$url$path") || fail "$method $path: no answer from $url"
  case "|$expected|" in
    *"|$status|"*) ;;
    *) fail "$method $path: expected $expected, got $status: $(head -c 500 "$work/body")" ;;
  esac
}

json='Content-Type: application/json'
etag() { sed -n 's/^[Ee][Tt][Aa][Gg]: *//p' "$work/headers" | tr -d '\r'; }
# text NAME, number NAME: that member of the answer
text() { sed -n 's/.*"'"$1"'":"\([^"]*\)".*/\1/p' "$work/body" | head -n 1; }
number() { grep -o '"'"$1"'":[0-9]*' "$work/body" | head -n 1 | tr -dc 0-9; }
has() { grep -qF -e "$1" "$work/body" || fail "$method $path: no $1 in $(head -c 500 "$work/body")"; }
has_not() { if grep -qF -e "$1" "$work/body"; then fail "$method $path: $1 must not be in the answer"; fi; }
quoted() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; 1s/^/"/; $s/$/"/'; }
new_uuid() {
  od -An -N16 -tx1 /dev/urandom | tr -d ' \n' |
    sed 's/^\(.\{8\}\)\(.\{4\}\).\(.\{3\}\).\(.\{3\}\)\(.\{12\}\)$/\1-\2-4\3-a\4-\5/'
}

# Log in. The token opens everything below.
printf '{"username":%s,"password":%s}' "$(quoted "$GARY_LOGIN")" "$(quoted "$GARY_PASSWORD")" |
  (call 200 POST /v1/auth/login -H "$json" --data-binary @-)
printf 'Authorization: Bearer %s\n' "$(text token)" >"$work/login"
call 200 GET /v1/auth/session
echo "logged in: $(text username)"

# Store settings: create them, or name the version that is replaced.
entry=/v1/config/user/me/walkthrough
call '200|404' GET "$entry"
if [ "$status" = 404 ]; then condition='If-None-Match: *'; else condition="If-Match: $(etag)"; fi
call '200|201' PUT "$entry" -H "$json" -H "$condition" --data-binary \
  '{"value":{"chat_model_name":"vendor/model-1","temperature":1.0,"api_keys":{"openai":"made-up-key"}}}'
stored=$(number version)
echo "stored settings: version $stored"

# Read them: secrets are masked, numbers keep their spelling.
call 200 GET "$entry"
first=$(etag)
has '"temperature":1.0'
has '"openai":"****PSWD****"'
has_not made-up-key
echo "read settings: secrets masked, ETag $first"

# Change them, if nobody else did. The placeholder keeps the stored secret.
changed='{"value":{"chat_model_name":"vendor/model-2","temperature":1.0,"api_keys":{"openai":"****PSWD****"}}}'
call 200 PUT "$entry" -H "$json" -H "If-Match: $first" --data-binary "$changed"
[ "$(number version)" = $((stored + 1)) ] || fail "version $stored was followed by $(number version)"
call 412 PUT "$entry" -H "$json" -H "If-Match: $first" --data-binary "$changed"
call 428 PUT "$entry" -H "$json" --data-binary "$changed"
call 200 PATCH "$entry" -H 'Content-Type: application/merge-patch+json' --data-binary '{"temperature":0.5}'
call 200 GET "$entry?reveal=true"
has '"temperature":0.5'
has '"openai":"made-up-key"'
echo "changed settings: a stale change was refused (412), one without If-Match too (428)"

# An audit event, and once more as if the answer had been lost; then two others in one batch.
agent="walkthrough-$(new_uuid)"
event() {
  printf '{"event_id":"%s","event_type":"tool_execution","level":"info","message":"Made-up event","agent_id":"%s","input_data":{"n":1.0},"endpoint":null}' \
    "$(new_uuid)" "$agent"
}
one=$(event)
call 201 POST /v1/audit/events -H "$json" --data-binary "$one"
has '"accepted":1,"duplicates":0,"conflicts":[]'
call 201 POST /v1/audit/events -H "$json" --data-binary "$one"
has '"accepted":0,"duplicates":1,"conflicts":[]'
call 201 POST /v1/audit/events -H "$json" --data-binary "[$(event),$(event)]"
has '"accepted":2,"duplicates":0,"conflicts":[]'
echo "sent events: 3, one of them twice"

# Read them in pages of two, to the last.
call 200 GET "/v1/audit/events?agent_id=$agent&limit=2"
: >"$work/ids"
pages=0
while :; do
  pages=$((pages + 1))
  grep -o '"event_id":"[^"]*"' "$work/body" >>"$work/ids"
  cursor=$(text next_cursor)
  [ -n "$cursor" ] || break
  call 200 GET "/v1/audit/events?agent_id=$agent&limit=2&cursor=$cursor"
done
has '"next_cursor":null'
distinct=$(sort -u "$work/ids" | grep -c .)
[ "$pages $distinct" = '2 3' ] || fail "read $distinct events on $pages pages, not 3 on 2"
echo "read events: $distinct on $pages pages"

# A report as CSV.
call 200 GET '/v1/reports/logins-per-day?format=csv'
has 'day,succeeded,failed,users'
echo 'report logins-per-day:'
sed 's/^/  /' "$work/body" | tr -d '\r'

# Log out: the token is worth nothing now.
call 204 POST /v1/auth/logout
call 401 GET /v1/auth/session
echo 'logged out'
echo 'all as expected'
