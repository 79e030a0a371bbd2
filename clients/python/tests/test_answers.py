"""What the client makes of answers, connections and processes: a server that answers as the test tells it."""

import ast
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

from support import (
    ACTIVE,
    INACTIVE,
    SESSION,
    SIGNED_IN,
    TOKEN,
    USER,
    Peer,
    all_is_well,
    http_answer,
    in_threads,
    problem,
)

import gary_zero_auth
from gary_zero_auth import (
    AuthServiceError,
    DatabaseAuth,
    NotAllowed,
    Refused,
    ServiceUnavailable,
    TooManyAttempts,
)

KEY = "gzk_" + "k" * 43
PASSWORD = "a made-up canary"
WRONG = problem(401, "invalid_credentials")

# Each method as it is called, and the path whose answer decides it.
CALLS = {
    "authenticate_user": ("/v1/auth/login", lambda auth: auth.authenticate_user("made-up", PASSWORD)),
    "validate_session": ("/v1/sessions/validate", lambda auth: auth.validate_session(TOKEN)),
    "create_user": ("/v1/users", lambda auth: auth.create_user("made-up", PASSWORD)),
    "change_password (sign-in)": ("/v1/auth/login", lambda auth: auth.change_password("made-up", PASSWORD, "new")),
    "change_password": ("/v1/auth/password", lambda auth: auth.change_password("made-up", PASSWORD, "new")),
    "rotate_credentials (look-up)": ("/v1/users?username=made-up", lambda auth: auth.rotate_credentials("made-up")),
    "rotate_credentials": ("/v1/users/7/rotate-password", lambda auth: auth.rotate_credentials("made-up")),
}

SIGNED_IN_AND_ACTIVE = {"active": True, "token": TOKEN, "session": SESSION}
# Right but for its length.
TOO_LONG = json.dumps(dict(SIGNED_IN_AND_ACTIVE, user=USER, items=[USER], password=PASSWORD)).encode()
TOO_LONG += b" " * gary_zero_auth.MAX_ANSWER_BYTES
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

# What is no answer of the service, or one that says nothing of the question.
NO_ANSWERS = {
    "not HTTP": b"SSH-2.0-OpenSSH\r\n" + Peer.CLOSE,
    "no status": b"HTTP/1.1 abc\r\n\r\n" + Peer.CLOSE,
    "an echo": b"HTTP/1.1 " + PASSWORD.encode() + b"\r\n\r\n" + Peer.CLOSE,
    "nothing": Peer.CLOSE,
    "half a head": b"HTTP/1.1 200 OK\r\nContent-" + Peer.CLOSE,
    "half a body": SIGNED_IN[:-20] + Peer.CLOSE,
    "half a chunk": CHUNKED + b"ff\r\n{" + Peer.CLOSE,
    "a page": http_answer(200, b"<html>Welcome</html>"),
    "an empty page": http_answer(200),
    "a page that was created": http_answer(201, b"<html>Created</html>"),
    "something that was created": http_answer(201, {"id": 7}),
    "no UTF-8": http_answer(200, b'{"token": "\xff"}'),
    "a list": http_answer(200, [USER]),
    "an empty object": http_answer(200, {}),
    "a deep one": http_answer(200, b"[" * 100000),
    "another object": http_answer(200, {"active": "yes", "token": 5, "items": 3, "password": None}),
    "a user without id": http_answer(200, dict(SIGNED_IN_AND_ACTIVE, user={}, items=[{}])),
    "a user in other words": http_answer(200, dict(SIGNED_IN_AND_ACTIVE, user=dict(USER, is_active=1), items=[7])),
    "too many chunks": CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(TOO_LONG), TOO_LONG),
    "too long": http_answer(200, TOO_LONG),
    "a redirect": http_answer(302, b"", {"Location": "http://127.0.0.1:1/"}),
    "401 of a proxy": http_answer(401, b"<html>Unauthorized</html>"),
    "401 with other JSON": http_answer(401, {"message": "Unauthorized"}),
    "401 with another code": problem(401, "somebody_elses"),
    "403 of a proxy": http_answer(403, b"Forbidden"),
    "404 of a proxy": http_answer(404, b"<html>Not found</html>"),
    "405": problem(405, "method_not_allowed"),
    "409 still running": problem(409, "in_progress"),
    "422 about nothing": problem(422, "validation_failed"),
    "422 in other words": problem(422, "validation_failed", errors=[["/password"], {"path": ["/password"]}, 5]),
    "422 about another field": problem(422, "validation_failed", errors=[{"path": "/other", "message": "no"}]),
    "429 of a proxy": http_answer(429, b"slow down"),
    "429 with other JSON": http_answer(429, {"message": "slow down"}),
    "500 in the words of a refusal": problem(500, "invalid_credentials"),
    "502 in the words of another": problem(502, "conflict"),
    "500": problem(500, "internal"),
    "500 of a proxy": http_answer(500, b"oops"),
    "502": http_answer(502, b"<html>Bad gateway</html>"),
    "503": problem(503, "unavailable"),
    "504": problem(504, "deadline_exceeded"),
}


def only(path, answer):
    return lambda request: answer if request.path == path else all_is_well(request)


def client(peer, **options):
    return DatabaseAuth(peer.url, KEY, "gzk_admin", read_timeout=5, **options)


class WhatIsNoAnswer(unittest.TestCase):
    def test_is_service_unavailable_in_every_method_and_never_false_or_none(self):
        for method, (path, ask) in CALLS.items():
            for name, answer in NO_ANSWERS.items():
                with self.subTest(method=method, answer=name), Peer(only(path, answer)) as peer, client(peer) as auth:
                    with self.assertRaises(ServiceUnavailable) as caught:
                        ask(auth)
                    self.assertNotIn(PASSWORD, str(caught.exception))
                    self.assertNotIn(TOKEN, str(caught.exception))

    def test_nor_is_a_remembered_session_lost_by_it(self):
        for name, answer in NO_ANSWERS.items():
            with self.subTest(answer=name), Peer(all_is_well) as peer, client(peer) as auth:
                auth.authenticate_user("made-up", PASSWORD)
                peer.answer = only("/v1/sessions/validate", answer)
                with self.assertRaises(ServiceUnavailable):
                    auth.authenticate_user("made-up", PASSWORD)
                peer.answer = all_is_well
                self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
                self.assertEqual(paths(peer).count("/v1/auth/login"), 1)

    def test_tells_when_to_come_back_if_that_was_told(self):
        for header, seconds in (("7", 7), (None, None), ("soon", None), ("-1", None)):
            answer = problem(503, "unavailable", {} if header is None else {"Retry-After": header})
            with Peer(lambda _: answer) as peer, client(peer) as auth:
                with self.assertRaises(ServiceUnavailable) as caught:
                    auth.authenticate_user("made-up", PASSWORD)
                self.assertEqual(
                    (caught.exception.retry_after, caught.exception.status, caught.exception.code),
                    (seconds, 503, "unavailable"),
                )

    def test_refused_connections_silence_and_a_host_that_is_not_there(self):
        with Peer(lambda _: None) as silent:
            port = silent.port
            for method, (_, ask) in CALLS.items():
                with self.subTest(method=method), DatabaseAuth(silent.url, KEY, read_timeout=0.2) as auth:
                    started = time.monotonic()
                    with self.assertRaises(ServiceUnavailable):
                        ask(auth)
                    self.assertLess(time.monotonic() - started, 3)
        with DatabaseAuth("http://127.0.0.1:{}".format(port), KEY) as auth:
            for _, ask in CALLS.values():
                self.assertRaises(ServiceUnavailable, ask, auth)
        unknown = mock.patch("socket.getaddrinfo", side_effect=socket.gaierror("not known"))
        for host, names in (("not-there.invalid", unknown), ("x" * 70 + ".invalid", contextlib.nullcontext())):
            with DatabaseAuth("http://" + host, KEY) as auth, names:
                self.assertRaises(ServiceUnavailable, auth.authenticate_user, "made-up", PASSWORD)

    def test_connecting_has_a_time_limit_of_its_own(self):
        with socket.socket() as full:
            # A backlog that is full: the kernel answers no more, as a firewall that drops does.
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = []
            try:
                for _ in range(4):
                    waiting.append(socket.socket())
                    waiting[-1].setblocking(False)
                    waiting[-1].connect_ex(full.getsockname())
                time.sleep(0.1)
                url = "http://127.0.0.1:{}".format(full.getsockname()[1])
                auth = DatabaseAuth(url, KEY, connect_timeout=0.3, read_timeout=20)
                started = time.monotonic()
                with self.assertRaises(ServiceUnavailable):
                    auth.authenticate_user("made-up", PASSWORD)
                self.assertLess(time.monotonic() - started, 3)
            finally:
                for one in waiting:
                    one.close()


class Answers(unittest.TestCase):
    def test_only_the_services_own_word_is_a_wrong_password(self):
        with Peer(only("/v1/auth/login", WRONG)) as peer, client(peer) as auth:
            self.assertEqual(auth.authenticate_user("made-up", PASSWORD), (False, None))
            self.assertIs(auth.change_password("made-up", PASSWORD, "new"), False)

    def test_a_key_that_is_not_valid_or_lacks_the_right_is_not_allowed(self):
        for answer in (
            problem(401, "unauthenticated"),
            problem(403, "insufficient_scope"),
            problem(403, "forbidden"),
        ):
            for method, (path, ask) in CALLS.items():
                if path == "/v1/auth/password":
                    continue  # by session
                with self.subTest(method=method), Peer(only(path, answer)) as peer, client(peer) as auth:
                    self.assertRaises(NotAllowed, ask, auth)

    def test_a_key_that_may_not_name_addresses_is_not_allowed(self):
        answer = problem(422, "validation_failed", errors=[{"path": "", "message": "not with this key"}])
        with Peer(only("/v1/auth/login", answer)) as peer, client(peer) as auth:
            self.assertRaises(NotAllowed, auth.authenticate_user, "made-up", PASSWORD, "192.0.2.1")

    def test_a_text_that_can_be_no_password_is_a_wrong_one(self):
        for path in ("/username", "/password"):
            answer = problem(422, "validation_failed", errors=[{"path": path, "message": "no"}])
            with Peer(only("/v1/auth/login", answer)) as peer, client(peer) as auth:
                self.assertEqual(auth.authenticate_user("made-up", PASSWORD), (False, None))
                self.assertIs(auth.change_password("made-up", PASSWORD, "new"), False)

    def test_what_is_empty_is_not_asked_for(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            for name, password in (("", PASSWORD), ("made-up", ""), (None, None)):
                self.assertEqual(auth.authenticate_user(name, password), (False, None))
                self.assertIs(auth.change_password(name, password, "new"), False)
            for token in ("", None, "a" * 257, "gzs_\r\nX: y", "gzs_\ud800"):
                self.assertIsNone(auth.validate_session(token))
            self.assertEqual(peer.requests, [])

    def test_a_user_is_exactly_the_known_members(self):
        shown = dict(USER, password_hash="$2b$12$", token="x")
        answer = http_answer(200, {"token": TOKEN, "session": SESSION, "user": shown})
        with Peer(only("/v1/auth/login", answer)) as peer, client(peer) as auth:
            _, user = auth.authenticate_user("made-up", PASSWORD)
            self.assertEqual(set(user), set(USER))

    def test_throttling_is_an_exception_of_its_own_with_its_seconds(self):
        answer = problem(429, "too_many_requests", {"Retry-After": "900"})
        for method, (path, ask) in CALLS.items():
            with self.subTest(method=method), Peer(only(path, answer)) as peer, client(peer) as auth:
                with self.assertRaises(TooManyAttempts) as caught:
                    ask(auth)
                self.assertEqual(caught.exception.retry_after, 900)

    def test_while_throttled_the_service_is_asked_every_few_seconds_and_other_addresses_at_once(self):
        answer = problem(429, "too_many_requests", {"Retry-After": "900"})
        with Peer(lambda _: answer) as peer, client(peer) as auth:
            for _ in range(10):
                self.assertRaises(TooManyAttempts, auth.authenticate_user, "made-up", PASSWORD, "192.0.2.1")
            self.assertEqual(len(peer.requests), 1)
            peer.answer = all_is_well
            self.assertTrue(auth.authenticate_user("made-up", PASSWORD, "198.51.100.1")[0])

    def test_a_short_throttling_is_over_when_the_service_said(self):
        with Peer(lambda _: problem(429, "too_many_requests", {"Retry-After": "1"})) as peer, client(peer) as auth:
            self.assertRaises(TooManyAttempts, auth.authenticate_user, "made-up", PASSWORD)
            peer.answer = all_is_well
            time.sleep(1.1)
            self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])

    def test_a_new_name_or_password_that_is_not_taken_is_a_value_error_with_the_reason(self):
        def refuse(path):
            return problem(422, "validation_failed", errors=[{"path": path, "message": "Too short."}])

        with Peer(only("/v1/users", refuse("/password"))) as peer, client(peer) as auth:
            with self.assertRaises(ValueError) as caught:
                auth.create_user("made-up", "short")
            self.assertIsInstance(caught.exception, Refused)
            self.assertEqual(caught.exception.reason, "Too short.")
        with Peer(only("/v1/auth/password", refuse("/new_password"))) as peer, client(peer) as auth:
            self.assertRaises(Refused, auth.change_password, "made-up", PASSWORD, "short")
            self.assertEqual(paths(peer)[-1], "/v1/auth/logout")

    def test_a_session_that_ended_before_the_password_was_changed_decides_nothing(self):
        for answer in (problem(401, "unauthenticated"), problem(409, "conflict")):
            with Peer(only("/v1/auth/password", answer)) as peer, client(peer) as auth:
                self.assertRaises(ServiceUnavailable, auth.change_password, "made-up", PASSWORD, "new")

    def test_a_changed_password_stays_changed_when_signing_out_fails(self):
        with Peer(only("/v1/auth/logout", problem(503, "unavailable"))) as peer, client(peer) as auth:
            self.assertIs(auth.change_password("made-up", PASSWORD, "new"), True)

    def test_nobody_with_another_spelling_of_the_name_is_given_a_new_password(self):
        others = [dict(USER, id=8, username="Made-Up"), dict(USER, id=9, username="MADE-UP")]
        found = http_answer(200, {"items": others, "next_cursor": None})
        with Peer(only("/v1/users?username=made-up", found)) as peer, client(peer) as auth:
            self.assertIsNone(auth.rotate_credentials("made-up"))
            self.assertEqual(len(peer.requests), 1)
            self.assertIsNone(auth.rotate_credentials("made-up\ud800"))
        found = http_answer(200, {"items": [*others, USER], "next_cursor": None})
        with Peer(only("/v1/users?username=made-up", found)) as peer, client(peer) as auth:
            self.assertEqual(auth.rotate_credentials("made-up"), "a made-up password")

    def test_the_right_key_and_the_request_id_go_with_each_call(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            where = {"ip_address": "::ffff:192.0.2.1", "user_agent": "Tab/1 \u2713"}
            auth.authenticate_user("made-up", PASSWORD, request_id="r-1", **where)
            auth.authenticate_user("made-up", PASSWORD, request_id="r-2")
            auth.create_user("made-up", PASSWORD, True, request_id="r-3")
            auth.validate_session(TOKEN, request_id="not\r\nX-API-KEY: an id")
            login, validate, create, other = peer.requests
            body = {"username": "made-up", "password": PASSWORD, "ip_address": "192.0.2.1", "user_agent": "Tab/1 ?"}
            self.assertEqual(login.body, body)
            self.assertEqual(validate.body, {"token": TOKEN})
            self.assertIs(create.body["must_change_password"], True)
            self.assertEqual([r.headers["X-API-KEY"] for r in peer.requests], [KEY, KEY, "gzk_admin", KEY])
            self.assertEqual([r.headers["X-Request-ID"] for r in peer.requests], ["r-1", "r-2", "r-3", None])

    def test_an_address_that_is_none_is_left_out(self):
        for address, sent in (
            (None, None),
            ("unknown", None),
            ("192.0.2.1:80", None),
            ("fe80::1%eth0", "fe80::1"),
            ("2001:DB8::1", "2001:db8::1"),
        ):
            with Peer(all_is_well) as peer, client(peer) as auth:
                auth.authenticate_user("made-up", PASSWORD, address)
                self.assertEqual(peer.requests[0].body.get("ip_address"), sent)


class SignIns(unittest.TestCase):
    def test_a_pair_is_known_by_all_of_it(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            for name, password in (("a", "b:c"), ("a:b", "c"), ("a", "b"), ("A", "b:c")):
                auth.authenticate_user(name, password)
            self.assertEqual(paths(peer), ["/v1/auth/login"] * 4)

    def test_a_flood_of_guesses_pushes_out_no_session(self):
        with Peer(all_is_well) as peer, client(peer, max_sessions=3) as auth:
            auth.authenticate_user("made-up", PASSWORD)
            peer.answer = only("/v1/auth/login", WRONG)
            for guess in range(20):
                self.assertFalse(auth.authenticate_user("made-up", "guess {}".format(guess))[0])
            self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
            self.assertEqual(len(auth._refusals), 3)

    def test_memory_is_bounded_and_keeps_what_is_used(self):
        with Peer(all_is_well) as peer, client(peer, max_sessions=3) as auth:
            for number in range(10):
                auth.authenticate_user("made-up", PASSWORD)
                auth.authenticate_user("other-{}".format(number), PASSWORD)
            self.assertEqual(len(auth._sessions), 3)
            self.assertEqual(paths(peer).count("/v1/auth/login"), 11)

    def test_a_refused_pair_is_remembered_shortly_and_then_for_long(self):
        with Peer(only("/v1/auth/login", WRONG)) as peer, client(peer, remember_refused=(0.3, 60)) as auth:
            for asked in (1, 2, 2):
                for _ in range(5):
                    self.assertEqual(auth.authenticate_user("made-up", PASSWORD), (False, None))
                self.assertEqual(len(peer.requests), asked)
                time.sleep(0.4)
            self.assertEqual(auth.authenticate_user("made-up", "another one"), (False, None))
            self.assertEqual(len(peer.requests), 3)

    def test_what_was_refused_long_ago_begins_anew(self):
        with Peer(only("/v1/auth/login", WRONG)) as peer, client(peer, remember_refused=(0.05, 0.2)) as auth:
            for asked in (1, 2, 3):
                auth.authenticate_user("made-up", PASSWORD)
                self.assertEqual(len(peer.requests), asked)
                time.sleep(0.3)
            self.assertEqual([refusal.times for refusal in auth._refusals.values()], [0])

    def test_a_change_made_here_is_known_here_at_once(self):
        changes = (
            lambda auth: auth.create_user("Made-Up", "x"),
            lambda auth: auth.change_password("made-up", "x", PASSWORD),
            lambda auth: auth.rotate_credentials("made-up"),
        )
        for change in changes:
            with Peer(only("/v1/auth/login", WRONG)) as peer, client(peer) as auth:
                self.assertFalse(auth.authenticate_user("made-up", PASSWORD)[0])
                self.assertFalse(auth.authenticate_user("someone-else", PASSWORD)[0])
                peer.answer = all_is_well
                change(auth)
                self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
                self.assertFalse(auth.authenticate_user("someone-else", PASSWORD)[0])

    def test_fifty_at_once_are_one_and_each_has_a_user_of_its_own(self):
        for answer, expected in ((SIGNED_IN, True), (WRONG, False)):
            with Peer(slowly(only("/v1/auth/login", answer))) as peer, client(peer) as auth:
                outcomes = in_threads(50, lambda _: auth.authenticate_user("made-up", PASSWORD))
                self.assertEqual({success for success, _ in outcomes}, {expected})
                self.assertEqual(paths(peer).count("/v1/auth/login"), 1)
                if expected:
                    self.assertEqual(len({id(user) for _, user in outcomes}), 50)

    def test_fifty_at_once_meet_an_outage_once(self):
        for answer in (problem(503, "unavailable", {"Retry-After": "3"}), problem(403, "insufficient_scope")):
            with Peer(slowly(lambda _: answer)) as peer, client(peer) as auth:
                outcomes = in_threads(50, lambda _: auth.authenticate_user("made-up", PASSWORD))
                kind = ServiceUnavailable if answer.startswith(b"HTTP/1.1 503") else NotAllowed
                self.assertEqual({type(outcome) for outcome in outcomes}, {kind})
                self.assertEqual(len({id(outcome) for outcome in outcomes}), 50)
                self.assertEqual(len(peer.requests), 1)

    def test_other_pairs_do_not_wait(self):
        arrived = threading.Event()

        def answer(request):
            if request.body["username"] == "slow":
                arrived.wait(5)
            else:
                arrived.set()
            return SIGNED_IN

        with Peer(answer) as peer, client(peer) as auth:
            outcomes = in_threads(2, lambda n: auth.authenticate_user(["slow", "quick"][n], PASSWORD))
            self.assertEqual([success for success, _ in outcomes], [True, True])
            self.assertTrue(arrived.is_set())

    def test_a_lock_at_one_address_is_not_told_to_others_who_wait(self):
        def answer(request):
            time.sleep(0.3)
            if request.path == "/v1/auth/login" and request.body["ip_address"] == "192.0.2.1":
                return problem(429, "too_many_requests", {"Retry-After": "900"})
            return all_is_well(request)

        with Peer(answer) as peer, client(peer) as auth:
            addresses = ["192.0.2.1", "198.51.100.1"]
            outcomes = in_threads(20, lambda n: auth.authenticate_user("made-up", PASSWORD, addresses[n % 2]))
            self.assertTrue(all(isinstance(outcome, tuple) for outcome in outcomes[1::2]), outcomes)
            self.assertLessEqual(paths(peer).count("/v1/auth/login"), 2)

    def test_when_the_one_who_signs_in_is_interrupted_another_does(self):
        with Peer(slowly(all_is_well)) as peer, client(peer) as auth:
            real, interrupted = auth._log_in, []

            def log_in(*args):
                if not interrupted:
                    interrupted.append(True)
                    time.sleep(0.3)
                    raise KeyboardInterrupt
                return real(*args)

            auth._log_in = log_in

            def ask(_):
                try:
                    return auth.authenticate_user("made-up", PASSWORD)
                except KeyboardInterrupt:
                    return "interrupted"

            outcomes = in_threads(10, ask)
            self.assertEqual(outcomes.count("interrupted"), 1)
            self.assertEqual(sum(outcome[0] is True for outcome in outcomes), 9)
            self.assertEqual(paths(peer).count("/v1/auth/login"), 1)

    def test_an_ended_session_is_one_new_sign_in_for_all_who_find_it_ended(self):
        good = set()

        def answer(request):
            if request.path == "/v1/auth/login":
                token = "gzs_" + str(len(peer.requests)).rjust(43, "0")
                good.clear()
                good.add(token)
                return http_answer(200, {"token": token, "session": SESSION, "user": USER})
            # Some hear of it late, when the new session is there already.
            time.sleep(0.01 * (len(peer.requests) % 30))
            return ACTIVE if request.body["token"] in good else INACTIVE

        with Peer(answer) as peer, client(peer) as auth:
            auth.authenticate_user("made-up", PASSWORD)
            for round_ in range(2, 5):
                good.clear()
                outcomes = in_threads(30, lambda _: auth.authenticate_user("made-up", PASSWORD))
                self.assertEqual({outcome[0] for outcome in outcomes}, {True})
                self.assertEqual(paths(peer).count("/v1/auth/login"), round_)


class Connections(unittest.TestCase):
    def test_are_used_again_also_by_threads_that_live_for_one_request(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            for _ in range(20):
                in_threads(1, lambda _: auth.authenticate_user("made-up", PASSWORD))
            # The sign-in has one of its own.
            self.assertEqual((len(peer.requests), peer.connections), (20, 1))
            in_threads(8, lambda _: [auth.authenticate_user("made-up", PASSWORD) for _ in range(10)])
            self.assertLessEqual(peer.connections, 8)

    def test_are_left_when_the_server_says_close(self):
        def answer(request):
            # Which it may do a little later.
            return all_is_well(request).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

        with Peer(answer) as peer, client(peer) as auth:
            for _ in range(3):
                auth.authenticate_user("made-up", PASSWORD)
            self.assertEqual((len(peer.requests), peer.connections), (3, 3))

    def test_an_answer_without_a_length_ends_with_its_connection(self):
        def answer(request):
            head, _, body = all_is_well(request).partition(b"\r\n\r\n")
            return head.replace(b"Content-Length", b"X-Length") + b"\r\n\r\n" + body + Peer.CLOSE

        with Peer(answer) as peer, client(peer) as auth:
            for _ in range(3):
                self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
            self.assertEqual(peer.connections, 3)

    def test_an_answer_in_chunks_leaves_its_connection_open(self):
        def answer(request):
            head, _, body = all_is_well(request).partition(b"\r\n\r\n")
            chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            return head.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX-Length") + b"\r\n\r\n" + chunk

        with Peer(answer) as peer, client(peer) as auth:
            for _ in range(3):
                self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
            self.assertEqual(peer.connections, 1)

    def test_that_were_closed_while_idle_cost_a_read_nothing(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            auth.authenticate_user("made-up", PASSWORD)
            for _ in range(3):
                peer.close_connections()
                time.sleep(0.05)
                self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
            self.assertEqual(paths(peer), ["/v1/auth/login"] + ["/v1/sessions/validate"] * 3)

    def test_that_were_all_closed_by_a_restart_cost_a_read_nothing(self):
        with Peer(slowly(all_is_well)) as peer, client(peer) as auth:
            in_threads(5, lambda _: auth.validate_session(TOKEN))
            peer.close_connections()
            time.sleep(0.05)
            self.assertIsNotNone(auth.validate_session(TOKEN))

    def test_a_read_is_repeated_once_and_not_for_ever(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            auth.authenticate_user("made-up", PASSWORD)
            peer.answer = lambda _: Peer.CLOSE
            self.assertRaises(ServiceUnavailable, auth.authenticate_user, "made-up", PASSWORD)
            self.assertEqual(paths(peer)[1:], ["/v1/sessions/validate"] * 2)

    def test_a_sign_in_is_never_sent_twice(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            auth.validate_session(TOKEN)
            peer.close_connections()
            time.sleep(0.05)
            self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
            peer.answer = only("/v1/auth/login", Peer.CLOSE)
            self.assertRaises(ServiceUnavailable, auth.authenticate_user, "other", PASSWORD)
            self.assertEqual(paths(peer).count("/v1/auth/login"), 2)

    def test_that_were_idle_too_long_are_not_tried(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            auth.validate_session(TOKEN)
            connections = auth._connections
            connections._idle = [(since - gary_zero_auth.IDLE_SECONDS, one) for since, one in connections._idle]
            auth.validate_session(TOKEN)
            self.assertEqual((len(peer.requests), peer.connections), (2, 2))

    def test_idle_ones_are_few(self):
        with Peer(slowly(all_is_well)) as peer, client(peer) as auth:
            in_threads(40, lambda _: auth.validate_session(TOKEN))
            self.assertEqual(len(auth._connections._idle), gary_zero_auth.IDLE_CONNECTIONS)

    def test_after_close_nothing_is_sent_and_nothing_is_left_open(self):
        with Peer(all_is_well) as peer:
            auth = client(peer)
            auth.authenticate_user("made-up", PASSWORD)
            auth.close()
            for _, ask in CALLS.values():
                self.assertRaises(RuntimeError, ask, auth)
            self.assertEqual((len(peer.requests), auth._connections._idle), (1, []))

    def test_tls_checks_the_certificate(self):
        with tempfile.TemporaryDirectory() as folder:
            key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "certificate.pem")
            make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
            names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
            subprocess.run(make.split() + names, check=True, capture_output=True)
            server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.load_cert_chain(certificate, key)
            with Peer(all_is_well, server) as peer:
                with client(peer) as auth:
                    self.assertRaises(ServiceUnavailable, auth.authenticate_user, "made-up", PASSWORD)
                    self.assertEqual(peer.requests, [])
                trusting = ssl.create_default_context(cafile=certificate)
                with client(peer, ssl_context=trusting) as auth:
                    connections = peer.connections
                    for _ in range(3):
                        self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
                    self.assertEqual(peer.connections, connections + 1)
                    peer.close_connections()
                    time.sleep(0.05)
                    self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])


class Changes(unittest.TestCase):
    CHANGES = {
        "/v1/users": lambda auth: auth.create_user("made-up", PASSWORD),
        "/v1/auth/password": lambda auth: auth.change_password("made-up", PASSWORD, "new"),
        "/v1/users/7/rotate-password": lambda auth: auth.rotate_credentials("made-up"),
    }
    UNKNOWN = {
        "closed": Peer.CLOSE,
        "cut off": b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{" + Peer.CLOSE,
        "the service does not know": problem(504, "outcome_unknown", {"Retry-After": "1"}),
        "silence": None,
    }

    def test_are_sent_once_more_with_the_same_key_when_it_is_unknown_whether_they_were_made(self):
        for path, change in self.CHANGES.items():
            for name, unknown in self.UNKNOWN.items():
                with self.subTest(path=path, unknown=name), Peer(all_is_well) as peer:
                    lost = []

                    def answer(request):
                        if request.path == path and not lost:
                            lost.append(request)
                            return unknown
                        return all_is_well(request)

                    peer.answer = answer
                    auth = DatabaseAuth(peer.url, KEY, "gzk_admin", read_timeout=0.3)
                    self.assertTrue(change(auth))
                    auth.close()
                    first, second = keys(peer, path)
                    self.assertEqual(first, second)
                    self.assertGreaterEqual(len(first), 16)

    def test_are_given_up_after_that(self):
        for path, change in self.CHANGES.items():
            with Peer(only(path, Peer.CLOSE)) as peer, client(peer) as auth:
                self.assertRaises(ServiceUnavailable, change, auth)
                self.assertEqual(len(keys(peer, path)), 2)

    def test_are_not_sent_again_when_the_service_says_that_nothing_was_changed(self):
        for path, change in self.CHANGES.items():
            with Peer(only(path, problem(503, "unavailable"))) as peer, client(peer) as auth:
                self.assertRaises(ServiceUnavailable, change, auth)
                self.assertEqual(len(keys(peer, path)), 1)

    def test_each_has_a_key_of_its_own_and_reads_and_sign_ins_have_none(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            for _ in range(2):
                for change in self.CHANGES.values():
                    change(auth)
            made = [key for path in (*self.CHANGES, "/v1/auth/logout") for key in keys(peer, path)]
            self.assertEqual((len(made), len(set(made))), (8, 8))
            without = {r.path for r in peer.requests if "Idempotency-Key" not in r.headers}
            self.assertEqual(without, {"/v1/auth/login", "/v1/users?username=made-up"})

    def test_a_rotated_password_that_was_lost_on_the_way_is_rotated_again(self):
        def answer(request):
            tries = len(keys(peer, request.path))
            if request.path.endswith("rotate-password") and tries < 3:
                return (Peer.CLOSE, problem(409, "already_done"))[tries - 1]
            return all_is_well(request)

        with Peer(answer) as peer, client(peer) as auth:
            self.assertEqual(auth.rotate_credentials("made-up"), "a made-up password")
            first, second, third = keys(peer, "/v1/users/7/rotate-password")
            self.assertEqual(first, second)
            self.assertNotEqual(second, third)

    def test_a_password_is_changed_by_a_session_of_its_own_that_ends(self):
        tokens = iter(["gzs_" + str(number) * 43 for number in range(9)])

        def answer(request):
            if request.path == "/v1/auth/login":
                return http_answer(200, {"token": next(tokens), "session": SESSION, "user": USER})
            return all_is_well(request)

        with Peer(answer) as peer, client(peer) as auth:
            auth.authenticate_user("made-up", PASSWORD)
            auth.change_password("made-up", PASSWORD, "new")
            used = [(r.path, r.headers["Authorization"]) for r in peer.requests if "Authorization" in r.headers]
            own = "Bearer gzs_" + "1" * 43
            self.assertEqual(used, [("/v1/auth/password", own), ("/v1/auth/logout", own)])


class Forks(unittest.TestCase):
    def fork(self, child):
        """Runs `child` in a forked process; fails unless it returns true within ten seconds."""
        process = os.fork()
        if process == 0:
            try:
                signal.alarm(10)
                os._exit(0 if child() else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitpid(process, 0)[1], 0)

    def test_a_child_goes_on_with_the_session_and_with_connections_of_its_own(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            auth.authenticate_user("made-up", PASSWORD)
            for _ in range(3):
                self.fork(lambda: all(auth.authenticate_user("made-up", PASSWORD)[0] for _ in range(2)))
                self.assertTrue(auth.authenticate_user("made-up", PASSWORD)[0])
            self.assertEqual(paths(peer), ["/v1/auth/login"] + ["/v1/sessions/validate"] * 9)
            self.assertEqual(peer.connections, 4)

    def test_a_child_waits_for_nothing_that_its_parent_was_doing(self):
        go_on = threading.Event()

        def answer(request):
            if request.body["username"] == "made-up":
                go_on.wait(10)
            return all_is_well(request)

        with Peer(answer) as peer, client(peer) as auth:
            signing_in = threading.Thread(target=auth.authenticate_user, args=("made-up", PASSWORD))
            signing_in.start()
            while not peer.requests:
                time.sleep(0.01)
            # Held by another thread at the moment of the fork.
            with auth._lock, auth._connections._lock:
                process = os.fork()
                if process == 0:
                    signal.alarm(10)
                    status = 1
                    try:
                        peer.answer = None
                        go_on.set()
                        status = 0 if auth.authenticate_user("other", PASSWORD)[0] and not auth._logins else 1
                    finally:
                        os._exit(status)
            self.assertEqual(os.waitpid(process, 0)[1], 0)
            go_on.set()
            signing_in.join()


class Secrets(unittest.TestCase):
    def test_none_is_in_a_repr_or_in_what_is_kept(self):
        with Peer(all_is_well) as peer, client(peer) as auth:
            auth.authenticate_user("made-up", PASSWORD)
            self.assertEqual(repr(auth), "<DatabaseAuth {}>".format(peer.url))
            peer.answer = lambda _: WRONG
            auth.authenticate_user("made-up", "wrong " + PASSWORD)
            peer.answer = lambda _: problem(429, "too_many_requests")
            try:  # assertRaises would clear the traceback
                auth.authenticate_user("other", PASSWORD)
            except TooManyAttempts as error:
                raised = error
            self.assertIsNotNone(raised.__traceback__)
            self.assertNotIn(PASSWORD, repr(vars(auth)))
            self.assertEqual([len(auth._sessions), len(auth._refusals), len(auth._throttled)], [1, 1, 1])
            # A traceback has the variables of every call on the way.
            ((_, error),) = auth._throttled.values()
            self.assertIsNone(error.__traceback__)

    def test_none_is_in_the_text_of_an_error(self):
        urls = "http://me:{}@host", "http://me:{}", "http://host/{}", "http://host?{}", "http://[{}", "{}", "ftp://{}"
        for url in urls:
            with self.assertRaises(ValueError) as caught:
                DatabaseAuth(url.format("canary"), KEY)
            self.assertNotIn("canary", str(caught.exception))
        for key in ("", None, "${{ auth.SERVICE_API_KEY }}", "gzk_\u2713" + PASSWORD, "gzk_ " + PASSWORD):
            with self.assertRaises(ValueError) as caught:
                DatabaseAuth("http://host", key)
            self.assertNotIn(PASSWORD, str(caught.exception))

    def test_none_comes_along_with_an_error(self):
        for name in ("half a body", "a page with a token", "half a chunk with a token"):
            answers = dict(NO_ANSWERS)
            answers["a page with a token"] = http_answer(200, b"<" + TOKEN.encode())
            answers["half a chunk with a token"] = CHUNKED + b"ff\r\n" + TOKEN.encode() + Peer.CLOSE
            self.assertIn(TOKEN.encode(), answers[name])
            with Peer(only("/v1/auth/login", answers[name])) as peer, client(peer) as auth:
                with self.assertRaises(ServiceUnavailable) as caught:
                    auth.authenticate_user("made-up", PASSWORD)
                error = caught.exception
                while error is not None:
                    self.assertNotIn(TOKEN, repr(error.args) + repr(vars(error)))
                    error = error.__context__

    def test_of_two_keys_the_first_is_used(self):
        with Peer(all_is_well) as peer, DatabaseAuth(peer.url, KEY + ", gzk_other") as auth:
            auth.validate_session(TOKEN)
            self.assertEqual(peer.requests[0].headers["X-API-KEY"], KEY)


class TheFile(unittest.TestCase):
    def test_is_python_3_9_with_the_standard_library_alone(self):
        with open(gary_zero_auth.__file__, encoding="utf-8") as file:
            tree = ast.parse(file.read(), feature_version=(3, 9))
        imported = set()
        for node in ast.walk(tree):
            self.assertNotIsInstance(node, ast.ImportFrom)
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            # X | Y in an annotation is read by 3.9 and fails when it runs.
            self.assertIsNone(getattr(node, "annotation", None))
            self.assertIsNone(getattr(node, "returns", None))
        self.assertLessEqual(imported, getattr(sys, "stdlib_module_names", imported))

    def test_errors_are_told_apart(self):
        for kind in (ServiceUnavailable, TooManyAttempts, NotAllowed):
            self.assertEqual(kind.__bases__, (AuthServiceError,))
        self.assertFalse(issubclass(Refused, AuthServiceError))


def paths(peer):
    return [request.path for request in peer.requests]


def keys(peer, path):
    return [request.headers["Idempotency-Key"] for request in peer.requests if request.path == path]


def slowly(answer):
    def answer_later(request):
        time.sleep(0.3)
        return answer(request)

    return answer_later


if __name__ == "__main__":
    unittest.main()
