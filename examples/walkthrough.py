#!/usr/bin/env python3
"""What Gary-Zero does with this service, step by step. Python 3.9+, standard library only.

    GARY_LOGIN=me GARY_PASSWORD=... python3 examples/walkthrough.py

GARY_URL          where the service is, default http://localhost:8080
GARY_LOGIN        an owner's name and password: only owners may read secrets in the clear
GARY_PASSWORD
GARY_SETUP_TOKEN  from the service's first start; makes that owner before anything else
GARY_EVENTS       how many audit events to send, default 5000

It writes the entry `settings` of that user and can be run again and again.
"""

import csv
import io
import json
import os
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

URL = os.environ.get("GARY_URL", "http://localhost:8080").rstrip("/")
LOGIN = os.environ.get("GARY_LOGIN", "")
PASSWORD = os.environ.get("GARY_PASSWORD", "")
SETUP_TOKEN = os.environ.get("GARY_SETUP_TOKEN", "")
EVENTS = int(os.environ.get("GARY_EVENTS", "5000"))

SETTINGS = "/v1/config/user/me/settings"
PLACEHOLDER = "****PSWD****"
WRITERS = 4
CHANGES_PER_WRITER = 10
EVENTS_PER_BATCH = 500
TIMEOUT_SECONDS = 30


class Failed(Exception):
    """The service did not do what this walk-through expects of it."""


def check(condition, message):
    if not condition:
        raise Failed(message)


# --- one HTTP call -----------------------------------------------------------------------------------------


class Answer:
    def __init__(self, status, headers, text):
        self.status = status
        self.etag = headers.get("ETag")
        self.text = text

    def json(self):
        return json.loads(self.text)


def call(method, path, body=None, token=None, expect=(200,), **headers):
    """One request. An answer with a status that is not expected is a failure, told with its problem document."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        headers["Authorization"] = "Bearer " + token
    data = None
    if body is not None:
        data = json.dumps(body).encode("utf-8")
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(URL + path, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            answer = Answer(response.status, response.headers, response.read().decode("utf-8"))
    except urllib.error.HTTPError as error:  # every status of 400 and above
        answer = Answer(error.code, error.headers, error.read().decode("utf-8"))
    except OSError as error:  # refused, timed out, no such host
        raise Failed(f"{method} {URL}{path}: {error}") from error
    expected = " or ".join(str(status) for status in expect)
    check(answer.status in expect, f"{method} {path}: expected {expected}, got {answer.status}: {answer.text[:500]}")
    return answer


# --- users and sessions ------------------------------------------------------------------------------------


def set_up():
    """Makes the first owner. 404 means that there is a user already: a second run."""
    body = {"setup_token": SETUP_TOKEN, "username": LOGIN, "password": PASSWORD}
    answer = call("POST", "/v1/setup", body, expect=(201, 404))
    print("set up: " + ("owner made" if answer.status == 201 else "there is an owner already"))


def log_in():
    answer = call("POST", "/v1/auth/login", {"username": LOGIN, "password": PASSWORD}).json()
    user = call("GET", "/v1/auth/session", token=answer["token"]).json()["user"]
    check(user["username"] == LOGIN, f"logged in as {user['username']}, not as {LOGIN}")
    print(f"logged in: {user['username']}, {user['role']}, user {user['id']}")
    return answer["token"]


def log_out(token):
    call("POST", "/v1/auth/logout", token=token, expect=(204,))
    call("GET", "/v1/auth/session", token=token, expect=(401,))
    print("logged out: the token opens nothing any more")


# --- settings ----------------------------------------------------------------------------------------------

MODELS = ["chat_model", "util_model", "embed_model", "browser_model", "coding_model", "supervisor_model"]


def settings_document():
    """Gary-Zero's settings: 102 keys, of which 42 strings, 29 integers, 20 booleans, 4 floats, 7 objects."""
    strings = {
        "agent_prompts_subdir": "default",
        "agent_memory_subdir": "main",
        "auth_login": "made-up-admin",
        "auth_password": "made-up-auth-password",
        "root_password": "made-up-root-password",
        "rfc_password": "made-up-rfc-password",
        "rfc_url": "localhost",
        "mcp_server_token": "made-up-mcp-token",
        "mcp_servers": '{"mcpServers": {"files": {"command": "npx"}}}',
        "database_password": "made-up-database-password",
        "database_url": "postgresql://settings:made-up@db.example.test:5432/settings",
        "database_ssl_key": "-----BEGIN PRIVATE KEY-----\nmade-up\n-----END PRIVATE KEY-----\n",
        "stt_language": "en",
    }
    integers, booleans, objects = {}, {}, {}
    for number, model in enumerate(MODELS, start=1):
        strings[f"{model}_provider"] = ["OPENAI", "ANTHROPIC", "GROQ"][number % 3]
        strings[f"{model}_name"] = f"vendor/model-{number}"
        strings[f"{model}_api_base"] = "" if number % 2 else f"https://models-{number}.example.test/v1"
        integers[f"{model}_ctx_length"] = 8192 * number
        integers[f"{model}_max_tokens"] = 1024 * number
        integers[f"{model}_rl_requests"] = 10 * number
        booleans[f"{model}_vision"] = number % 2 == 0
        objects[f"{model}_kwargs"] = {"temperature": number / 10, "stop": ["###"], "extra": {"seed": 40 + number}}
    for number in range(1, 12):
        strings[f"agent_note_{number}"] = f'Note {number}: ünïcode ✓ "quoted" and a \\ backslash'
        integers[f"timeout_seconds_{number}"] = 30 * number
    for number in range(1, 15):
        booleans[f"feature_enabled_{number}"] = number % 3 != 0
    objects["api_keys"] = {"openai": "made-up-key-1", "anthropic": "made-up-key-2", "unused": ""}
    floats = {
        "chat_model_ctx_history": 0.7,
        "memory_recall_threshold": 0.65,
        "browser_model_temperature": 1.0,  # comes back as 1.0, not as 1
        "speech_silence_threshold": 0.3,
    }
    sizes = [len(part) for part in (strings, integers, booleans, floats, objects)]
    check(sizes == [42, 29, 20, 4, 7], f"the made-up document has another shape: {sizes}")
    return {**strings, **integers, **booleans, **floats, **objects}


SECRETS = {
    "auth_password",
    "root_password",
    "rfc_password",
    "mcp_server_token",
    "mcp_servers",
    "database_password",
    "database_url",
    "database_ssl_key",
}


def masked(document):
    """The document as a plain read shows it. Empty strings hide nothing."""
    shown = {name: PLACEHOLDER if name in SECRETS else value for name, value in document.items()}
    shown["api_keys"] = {name: key and PLACEHOLDER for name, key in document["api_keys"].items()}
    return shown


def same(left, right):
    """Equal in type and spelling too: 1.0 is not 1 here, and True is not 1."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def differences(left, right):
    names = sorted(set(left) | set(right))
    return [name for name in names if name not in left or name not in right or not same(left[name], right[name])]


def store(token, document):
    """Create it, or replace what is there: a replacement names the version that it replaces."""
    current = call("GET", SETTINGS, token=token, expect=(200, 404))
    condition = {"If_None_Match": "*"} if current.status == 404 else {"If_Match": current.etag}
    entry = call("PUT", SETTINGS, {"value": document}, token, expect=(200, 201), **condition).json()
    print(f"stored settings: {len(document)} keys, version {entry['version']}")
    return entry["version"]


def read_back(token, document):
    shown = call("GET", SETTINGS, token=token).json()["value"]
    check(same(shown, masked(document)), f"the masked read differs at {differences(shown, masked(document))}")
    revealed = call("GET", SETTINGS + "?reveal=true", token=token).json()["value"]
    check(same(revealed, document), f"the revealed read differs at {differences(revealed, document)}")
    print(f"read settings: equal, {json.dumps(shown).count(PLACEHOLDER)} secrets masked; revealed: equal")


def change(token, name, value):
    """Read, modify, write, and once more from the start when someone else was faster (412).

    What is read has its secrets masked; the placeholder, written back, keeps what is stored.
    """
    tries = 0
    while True:
        tries += 1
        current = call("GET", SETTINGS, token=token)
        document = current.json()["value"]
        document[name] = value
        answer = call("PUT", SETTINGS, {"value": document}, token, expect=(200, 412), If_Match=current.etag)
        if answer.status == 200:
            return tries
        time.sleep(random.uniform(0, 0.02))  # so that the writers do not meet again


def write_from_many(token, document, version):
    def write(writer):
        return sum(change(token, f"writer_{writer}_change_{i}", i) for i in range(CHANGES_PER_WRITER))

    with ThreadPoolExecutor(WRITERS) as pool:
        tries = sum(pool.map(write, range(WRITERS)))
    changes = {f"writer_{w}_change_{i}": i for w in range(WRITERS) for i in range(CHANGES_PER_WRITER)}
    entry = call("GET", SETTINGS + "?reveal=true", token=token).json()
    expected = {**document, **changes}
    check(same(entry["value"], expected), f"updates were lost: {differences(entry['value'], expected)}")
    check(
        entry["version"] == version + len(changes),
        f"{len(changes)} changes took version {version} to {entry['version']}",
    )
    print(f"changed settings: {len(changes)} changes by {WRITERS} writers, none lost, {tries - len(changes)} tried again")


# --- audit events ------------------------------------------------------------------------------------------

EVENT_TYPES = (
    "user_input tool_execution config_change authentication authorization approval_request approval_decision "
    "rate_limit security_violation system_event error user_action code_execution gui_action knowledge_retrieval "
    "memory_operation performance_metric agent_decision task_created task_completed task_failed exception"
).split()
LEVELS = ["debug", "info", "warning", "error", "critical"]


def made_up_event(agent_id, number):
    failed = number % 10 == 0
    return {
        "event_id": str(uuid.uuid4()),  # made here: sending the event again stores nothing twice
        "event_type": EVENT_TYPES[number % len(EVENT_TYPES)],
        "level": "error" if failed else LEVELS[number % 3],
        "message": f"Made-up event {number}",
        "timestamp": round(time.time() - number / 1000, 6),
        "user_id": f"user-{number % 7}",
        "agent_id": agent_id,
        "session_id": f"session-{number % 5}",
        "ip_address": f"192.0.2.{number % 256}",
        "user_agent": "Gary-Zero/1.0",
        "endpoint": None if number % 4 == 0 else "/poll",
        "tool_name": "code_execution_tool",
        "operation": "run",
        "component": "agent",
        "function_name": "execute",
        "input_data": {"number": number, "text": "ünïcode ✓"},
        "output_data": None if failed else {"lines": number % 40, "done": True},
        "duration_ms": number % 900 + 0.5,
        "cpu_usage": 12.5,
        "memory_usage": 256.0,
        "error_type": "ValueError" if failed else None,
        "error_message": "made-up failure" if failed else None,
        "error_details": {"attempt": 1} if failed else None,
        "stack_trace": 'File "agent.py", line 1' if failed else None,
        "request_id": f"request-{number}",
        "trace_id": f"trace-{number // 10}",
        "span_id": f"span-{number}",
        "parent_span_id": f"span-{number // 10}",
        "metadata": {"walkthrough": True, "number": number},
    }


def send(token, events):
    for start in range(0, len(events), EVENTS_PER_BATCH):
        batch = events[start : start + EVENTS_PER_BATCH]
        outcome = call("POST", "/v1/audit/events", batch, token, expect=(201,)).json()
        expected = {"accepted": len(batch), "duplicates": 0, "conflicts": []}
        check(outcome == expected, f"a batch of {len(batch)} new events: {outcome}")
    print(f"sent events: {len(events)} in batches of {EVENTS_PER_BATCH}")


def send_again(token, batch):
    """What a client does that never got the answer."""
    outcome = call("POST", "/v1/audit/events", batch, token, expect=(201,)).json()
    expected = {"accepted": 0, "duplicates": len(batch), "conflicts": []}
    check(outcome == expected, f"the same batch of {len(batch)} again: {outcome}")
    print(f"sent one batch again: accepted {outcome['accepted']}, duplicates {outcome['duplicates']}")


def read_events(token, page_size, **filters):
    """All events that the filters let through, page by page, newest first."""
    events, pages, cursor = [], 0, None
    while True:
        query = dict(filters, limit=page_size, **({"cursor": cursor} if cursor else {}))
        page = call("GET", "/v1/audit/events?" + urllib.parse.urlencode(query), token=token).json()
        events += page["items"]
        pages += 1
        cursor = page["next_cursor"]
        if cursor is None:
            return events, pages


def read_all(token, agent_id, sent):
    read, pages = read_events(token, EVENTS_PER_BATCH, agent_id=agent_id)
    by_id = {event["event_id"]: event for event in read}
    check(len(read) == len(sent), f"{len(sent)} events sent, {len(read)} read")
    check(len(by_id) == len(sent), f"{len(sent)} events sent, {len(by_id)} different ones read")
    order = [event["id"] for event in read]
    check(order == sorted(order, reverse=True), "the events are not newest first")
    for event in sent:
        stored = by_id.get(event["event_id"])
        check(stored is not None, f"event {event['event_id']} is missing")
        for name, value in event.items():  # null and absent are the same: such fields are left out
            check(same(stored.get(name), value), f"{name} was sent as {value!r} and read as {stored.get(name)!r}")
    print(f"read events: {len(by_id)} distinct on {pages} pages, every field as it was sent")


def read_some(token, agent_id, sent):
    wanted = {event["event_id"] for event in sent if event["level"] == "error" and event["user_id"] == "user-3"}
    times = [event["timestamp"] for event in sent]
    read, _ = read_events(
        token, 1000, agent_id=agent_id, level="error", user_id="user-3", start_time=min(times) - 1, end_time=max(times) + 1
    )
    check({event["event_id"] for event in read} == wanted, f"the filters should find {len(wanted)}, found {len(read)}")
    print(f"read errors of one user: {len(read)}")


# --- reports -----------------------------------------------------------------------------------------------


def run_report(token):
    text = call("GET", "/v1/reports/logins-per-day?format=csv", token=token).text
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    check(text.startswith("day,succeeded,failed,users\r\n"), f"the report has other columns: {text[:80]!r}")
    check(sum(int(row["succeeded"]) for row in rows) >= 1, "the report does not know of this log-in")
    print(f"report logins-per-day: {len(rows)} rows")
    print("\n".join("  " + line for line in text.splitlines()))


def main():
    check(LOGIN and PASSWORD, "set GARY_LOGIN and GARY_PASSWORD")
    check(EVENTS > 0, "GARY_EVENTS must be at least 1")
    if SETUP_TOKEN:
        set_up()
    token = log_in()

    document = settings_document()
    version = store(token, document)
    read_back(token, document)
    write_from_many(token, document, version)

    agent_id = f"walkthrough-{uuid.uuid4()}"
    events = [made_up_event(agent_id, number) for number in range(EVENTS)]
    send(token, events)
    send_again(token, events[:EVENTS_PER_BATCH])
    read_all(token, agent_id, events)
    read_some(token, agent_id, events)

    run_report(token)
    log_out(token)
    print("all as expected")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"FAILED: {failure}")
