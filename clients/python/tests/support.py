"""What the tests share: the service under test, past the client, and a server that answers as it is told."""

import http.client
import json
import os
import secrets
import socket
import sys
import threading
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def environment(name):
    value = os.environ.get(name)
    if not value:
        raise RuntimeError("set {}: see test/examples/python-client.test.ts".format(name))
    return value


def call(base, method, path, body=None, headers=None):
    """(status, document, headers) of one request, on a connection of its own; None for what is not JSON."""
    parts = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        content = None if body is None else json.dumps(body)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        given = {} if body is None else {"Content-Type": kind}
        connection.request(method, path, content, dict(given, **(headers or {})))
        answer = connection.getresponse()
        text = answer.read()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(text) if text and is_json else None, answer.headers
    finally:
        connection.close()


class Service:
    """The real service: its owner, who arranges and looks, and the test's hand on its process."""

    def __init__(self):
        self.url = environment("GARY_URL")
        self.api_key = environment("GARY_API_KEY")
        self._control = environment("GARY_CONTROL")
        body = {"username": environment("GARY_LOGIN"), "password": environment("GARY_PASSWORD")}
        status, answer, _ = call(self.url, "POST", "/v1/auth/login", body)
        assert status == 200, answer
        self.owner = answer["user"]
        self._bearer = {"Authorization": "Bearer " + answer["token"]}
        scopes = ["users:read", "users:write"]
        self.admin_key = self.as_owner("POST", "/v1/api-keys", {"name": "admin", "scopes": scopes})["key"]

    def stop(self):
        self._press("stop")

    def start(self):
        self._press("start")

    def _press(self, button):
        status, answer, _ = call(self._control, "POST", "/" + button)
        assert status == 200, answer

    def as_owner(self, method, path, body=None):
        status, answer, _ = call(self.url, method, path, body, self._bearer)
        assert status < 300, (method, path, status, answer)
        return answer

    def new_user(self, password, role="user"):
        body = {"username": "user-" + secrets.token_hex(6), "password": password, "role": role}
        return self.as_owner("POST", "/v1/users", body)

    def sessions(self, user):
        return self.as_owner("GET", "/v1/users/{}/sessions".format(user["id"]))["items"]

    def end_sessions(self, user):
        self.as_owner("DELETE", "/v1/users/{}/sessions".format(user["id"]))

    def events(self, user, action):
        """All audit events of that action on that user."""
        query = urllib.parse.urlencode({"action": action, "target": "users/{}".format(user["id"]), "limit": 1000})
        return self.as_owner("GET", "/v1/audit/events?" + query)["items"]

    def verifications(self, user):
        """(succeeded, failed): each password that the service looks at leaves exactly one of these events."""
        return len(self.events(user, "auth.login")), len(self.events(user, "auth.login_failed"))


class Peer:
    """A server on a port of its own that does with each request what the test says.

    `answer` is called with a Request and returns bytes to send, or None for none; `Peer.CLOSE` after the bytes
    (or as the answer) closes the connection. Every request and every connection is kept.
    """

    CLOSE = b"\0close"

    def __init__(self, answer, context=None):
        self.answer = answer
        self.requests = []
        self.connections = 0
        self._context = context
        self._lock = threading.Lock()
        self._open = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.url = "{}://127.0.0.1:{}".format("http" if context is None else "https", self.port)
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Wakes the thread that waits in accept(), which would take one more.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.close_connections()

    def close_connections(self):
        with self._lock:
            open_now, self._open = self._open, []
        for connection in open_now:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()

    def _listen(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as lines:
                while True:
                    request = Request.read(lines)
                    if request is None:
                        return
                    with self._lock:
                        self.requests.append(request)
                    answer = self.answer(request) or b""
                    connection.sendall(answer.replace(Peer.CLOSE, b""))
                    if answer.endswith(Peer.CLOSE):
                        return
        except OSError:
            return


class Request:
    def __init__(self, method, path, headers, body):
        self.method = method
        self.path = path
        self.headers = headers
        self.body = json.loads(body) if body else None

    @staticmethod
    def read(lines):
        first = lines.readline().decode("latin-1").split()
        if not first:
            return None
        headers = http.client.parse_headers(lines)
        return Request(first[0], first[1], headers, lines.read(int(headers.get("Content-Length", "0"))))


def http_answer(status, body=b"", headers=None):
    """The bytes of an answer; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/problem+json" if status >= 400 else "application/json"
    lines = {"Content-Type": kind, "Content-Length": str(len(content))}
    lines.update(headers or {})
    head = "".join("{}: {}\r\n".format(*line) for line in lines.items())
    return "HTTP/1.1 {} Status\r\n{}\r\n".format(status, head).encode() + content


def problem(status, code, headers=None, **members):
    return http_answer(status, dict(members, status=status, code=code, detail="The reason."), headers)


USER = {
    "id": 7,
    "username": "made-up",
    "role": "user",
    "is_active": True,
    "must_change_password": False,
    "created_at": "2026-11-23T05:15:33.123456Z",
    "updated_at": "2026-11-23T05:15:33.123456Z",
    "last_login": None,
    "password_changed_at": "2026-11-23T05:15:33.123456Z",
    "version": 1,
}
SESSION = {
    "id": 9,
    "created_at": "2026-11-23T05:15:33.123456Z",
    "last_activity": "2026-11-23T05:15:33.123456Z",
    "expires_at": "2026-11-24T05:15:33.123456Z",
    "idle_expires_at": "2026-11-23T07:15:33.123456Z",
    "ip_address": None,
    "user_agent": None,
    "current": False,
}
TOKEN = "gzs_" + "a" * 43
SIGNED_IN = http_answer(200, {"token": TOKEN, "session": SESSION, "user": USER})
ACTIVE = http_answer(200, {"active": True, "session": SESSION, "user": USER})
INACTIVE = http_answer(200, {"active": False})


def all_is_well(request):
    """A service where every password is right and every session good."""
    return {
        "/v1/auth/login": SIGNED_IN,
        "/v1/sessions/validate": ACTIVE,
        "/v1/auth/password": http_answer(204),
        "/v1/auth/logout": http_answer(204),
        "/v1/users": http_answer(201, USER),
        "/v1/users?username=made-up": http_answer(200, {"items": [USER], "next_cursor": None}),
        "/v1/users/7/rotate-password": http_answer(200, {"password": "a made-up password"}),
    }[request.path]


def in_threads(count, work):
    """What `count` threads return that begin at the same moment; an exception counts as what is returned."""
    outcomes = [None] * count
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        try:
            outcomes[number] = work(number)
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
