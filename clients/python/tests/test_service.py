"""The client against the real service, which is stopped and started in between."""

import datetime
import logging
import os
import secrets
import time
import unittest

from support import Service, in_threads

from gary_zero_auth import DatabaseAuth, NotAllowed, Refused, ServiceUnavailable, TooManyAttempts

PASSWORD = "long made-up Pässword ✓"
ANOTHER = "another made-up Pässword"


def setUpModule():
    global service
    service = Service()


class WithTheService(unittest.TestCase):
    def setUp(self):
        self.auth = self.client()
        self.user = service.new_user(PASSWORD)
        self.name = self.user["username"]
        # Failures count for an address, also those of other tests.
        self.here = "10.{}.{}.{}".format(*secrets.token_bytes(3))

    def client(self, admin=True, **options):
        admin_key = service.admin_key if admin else None
        auth = DatabaseAuth(service.url, service.api_key, admin_key, **options)
        self.addCleanup(auth.close)
        return auth

    def authenticate(self, password, auth=None, address=None):
        return (auth or self.auth).authenticate_user(self.name, password, address or self.here)

    def assertVerified(self, succeeded, failed=0):
        self.assertEqual(service.verifications(self.user), (succeeded, failed))


class AuthenticateUser(WithTheService):
    def test_tells_the_user_and_no_hash(self):
        success, user = self.authenticate(PASSWORD)
        self.assertIs(success, True)
        changed_at = user["password_changed_at"]
        self.assertEqual((user["id"], user["username"], user["role"]), (self.user["id"], self.name, "user"))
        self.assertEqual((user["is_active"], user["must_change_password"]), (True, False))
        # As psycopg2 gave it: no zone, and UTC.
        self.assertIsNone(changed_at.tzinfo)
        self.assertLess(abs(utc_now() - changed_at), datetime.timedelta(minutes=5))
        self.assertNotIn("password_hash", user)
        # The same from the sign-in and from the session.
        again = self.authenticate(PASSWORD)[1]
        self.assertEqual({**again, "last_login": None}, {**user, "last_login": None})

    def test_knows_wrong_unknown_and_inactive(self):
        self.assertEqual(self.authenticate("not " + PASSWORD), (False, None))
        self.assertEqual(self.auth.authenticate_user("nobody-" + self.name, PASSWORD, self.here), (False, None))
        service.as_owner("PATCH", "/v1/users/{}".format(self.user["id"]), {"is_active": False})
        self.assertEqual(self.authenticate(PASSWORD), (False, None))

    def test_takes_any_text_for_a_password(self):
        for text in ("x" * 73, "✓" * 40, "x" * 2000, "NUL \0", "half \ud83d", "\udcff", " ", '"\\\r\n'):
            self.assertEqual(self.authenticate(text), (False, None), text)
        for name in ("NUL \0", "half \ud83d", "a:b", "x" * 300, " "):
            self.assertEqual(self.auth.authenticate_user(name, PASSWORD, self.here), (False, None), name)
        # Also where it comes from, as Flask gives it.
        agents = None, "", "Tab/1 \0\r\n ü" * 200
        for number, address in enumerate((None, "", "unknown", "::ffff:192.0.2.1", "fe80::1%eth0", "2001:db8::1")):
            name = service.new_user(PASSWORD)["username"]
            self.assertTrue(self.auth.authenticate_user(name, PASSWORD, address, user_agent=agents[number % 3])[0])

    def test_signs_in_once_for_fifty_at_once_and_for_all_that_follow(self):
        outcomes = in_threads(50, lambda _: self.authenticate(PASSWORD))
        self.assertEqual({success for success, _ in outcomes}, {True})
        for _ in range(100):
            self.assertTrue(self.authenticate(PASSWORD)[0])
        self.assertVerified(1)

    def test_a_session_that_ended_is_one_new_sign_in(self):
        self.authenticate(PASSWORD)
        for ended in (1, 2):
            service.end_sessions(self.user)
            outcomes = in_threads(20, lambda _: self.authenticate(PASSWORD))
            self.assertEqual({success for success, _ in outcomes}, {True})
            self.assertVerified(1 + ended)

    def test_a_password_changed_elsewhere_holds_for_the_next_request(self):
        self.authenticate(PASSWORD)
        self.assertTrue(self.client().change_password(self.name, PASSWORD, ANOTHER))
        self.assertEqual(self.authenticate(PASSWORD), (False, None))
        self.assertTrue(self.authenticate(ANOTHER)[0])

    def test_a_deactivated_user_is_refused_at_the_next_request(self):
        self.authenticate(PASSWORD)
        service.as_owner("PATCH", "/v1/users/{}".format(self.user["id"]), {"is_active": False})
        self.assertEqual(self.authenticate(PASSWORD), (False, None))

    def test_a_session_tells_of_the_user_as_of_now(self):
        self.assertFalse(self.authenticate(PASSWORD)[1]["must_change_password"])
        service.as_owner("PATCH", "/v1/users/{}".format(self.user["id"]), {"must_change_password": True})
        success, user = self.authenticate(PASSWORD)
        self.assertEqual((success, user["must_change_password"]), (True, True))

    def test_the_service_knows_where_and_with_what(self):
        self.auth.authenticate_user(self.name, PASSWORD, "203.0.113.9", user_agent="Tab/1", request_id="my-request-1")
        (session,) = service.sessions(self.user)
        self.assertEqual((session["ip_address"], session["user_agent"]), ("203.0.113.9", "Tab/1"))
        (event,) = service.events(self.user, "auth.login")
        self.assertEqual(event["request_id"], "my-request-1")


class AForgottenTab(WithTheService):
    def test_that_polls_with_an_old_password_locks_nobody_out(self):
        self.authenticate(ANOTHER)
        for _ in range(200):
            self.assertEqual(self.authenticate(ANOTHER), (False, None))
        self.assertVerified(0, 1)
        self.assertTrue(self.authenticate(PASSWORD)[0])

    def test_asks_once_more_after_a_while_and_then_seldom(self):
        auth = self.client(remember_refused=(0.3, 60))
        for _ in range(12):
            self.assertEqual(self.authenticate(ANOTHER, auth), (False, None))
            time.sleep(0.1)
        self.assertVerified(0, 2)

    def test_a_password_set_by_an_operator_is_known_after_the_first_while(self):
        auth = self.client(remember_refused=(0.3, 60))
        service.as_owner("PATCH", "/v1/users/{}".format(self.user["id"]), {"is_active": False})
        self.assertFalse(self.authenticate(PASSWORD, auth)[0])
        service.as_owner("PATCH", "/v1/users/{}".format(self.user["id"]), {"is_active": True})
        time.sleep(0.4)
        self.assertTrue(self.authenticate(PASSWORD, auth)[0])


class Throttling(WithTheService):
    def test_a_locked_account_is_told_apart_from_a_wrong_password(self):
        tab = self.client()
        self.assertTrue(self.authenticate(PASSWORD, tab)[0])
        for guess in range(5):
            self.assertEqual(self.authenticate("guess number {}".format(guess)), (False, None))
        for password in (PASSWORD + "!", PASSWORD):
            with self.assertRaises(TooManyAttempts) as caught:
                self.authenticate(password)
            self.assertGreater(caught.exception.retry_after, 60)
        self.assertVerified(1, 5)
        # From elsewhere, and where a session is held, the user goes on.
        self.assertTrue(self.authenticate(PASSWORD, address="198.51.100.7")[0])
        self.assertTrue(self.authenticate(PASSWORD, tab)[0])
        self.assertVerified(2, 5)


class CreateUser(WithTheService):
    def test_true_then_false_when_the_name_is_taken(self):
        name = "made-" + secrets.token_hex(6)
        self.assertIs(self.auth.create_user(name, PASSWORD), True)
        self.assertIs(self.auth.create_user(name, ANOTHER), False)
        self.assertIs(self.auth.create_user(name.upper(), ANOTHER), False)
        success, user = self.auth.authenticate_user(name, PASSWORD, self.here)
        self.assertEqual((success, user["role"], user["must_change_password"]), (True, "user", False))

    def test_with_a_password_that_must_be_changed(self):
        name = "made-" + secrets.token_hex(6)
        self.assertTrue(self.auth.create_user(name, PASSWORD, must_change_password=True))
        success, user = self.auth.authenticate_user(name, PASSWORD, self.here)
        self.assertEqual((success, user["must_change_password"]), (True, True))
        self.assertTrue(self.auth.change_password(name, PASSWORD, ANOTHER))
        self.assertFalse(self.auth.authenticate_user(name, ANOTHER, self.here)[1]["must_change_password"])

    def test_one_of_many_at_once(self):
        name = "made-" + secrets.token_hex(6)
        outcomes = in_threads(10, lambda _: self.auth.create_user(name, PASSWORD))
        self.assertEqual(sorted(outcomes), [False] * 9 + [True])

    def test_says_why_a_name_or_a_password_is_not_taken(self):
        for name, password, why in (
            ("made-up", "short", "12 characters"),
            ("made-up", "password1234", "guess|common"),
            ("made-up", "", ".+"),
            ("with:colon", PASSWORD, ":"),
            ("", PASSWORD, "characters"),
        ):
            with self.assertRaisesRegex(Refused, why):
                self.auth.create_user(name, password)

    def test_without_the_right_is_no_false(self):
        for auth in (self.client(admin=False), DatabaseAuth(service.url, service.api_key, "gzk_" + "x" * 43)):
            self.assertRaises(NotAllowed, auth.create_user, self.name, PASSWORD)
            auth.close()


class ChangePassword(WithTheService):
    def test_true_and_only_the_new_one_opens(self):
        auth = self.client(admin=False)
        self.authenticate(PASSWORD, auth)
        self.assertEqual(self.authenticate(ANOTHER, auth), (False, None))
        self.assertIs(auth.change_password(self.name, PASSWORD, ANOTHER), True)
        self.assertEqual(self.authenticate(PASSWORD, auth), (False, None))
        self.assertTrue(self.authenticate(ANOTHER, auth)[0])
        # Nothing is left of the session that changed it.
        self.assertEqual(len(service.sessions(self.user)), 1)

    def test_false_for_a_wrong_old_one_an_unknown_and_an_inactive_user(self):
        self.assertIs(self.auth.change_password(self.name, ANOTHER, PASSWORD), False)
        self.assertIs(self.auth.change_password("nobody-" + self.name, PASSWORD, ANOTHER), False)
        service.as_owner("PATCH", "/v1/users/{}".format(self.user["id"]), {"is_active": False})
        self.assertIs(self.auth.change_password(self.name, PASSWORD, ANOTHER), False)

    def test_says_why_a_new_one_is_not_taken_and_leaves_no_session(self):
        refused = ("short", "12 characters"), (self.name + "x", "user name"), ("x" * 80, "72 bytes"), ("", ".+")
        for new, why in refused:
            with self.assertRaisesRegex(Refused, why):
                self.auth.change_password(self.name, PASSWORD, new)
        self.assertEqual(service.sessions(self.user), [])
        self.assertTrue(self.authenticate(PASSWORD)[0])


class RotateCredentials(WithTheService):
    def test_gives_a_new_password_that_must_be_changed_and_ends_all_sessions(self):
        self.authenticate(PASSWORD)
        new = self.auth.rotate_credentials(self.name)
        self.assertGreater(len(new), 15)
        self.assertEqual(self.authenticate(PASSWORD), (False, None))
        success, user = self.authenticate(new)
        self.assertEqual((success, user["must_change_password"]), (True, True))

    def test_none_for_a_name_that_nobody_has(self):
        long = "x" * 255, "x" * 256, "\U0001f600" * 200
        for name in ("nobody-" + self.name, self.name.upper(), "", "NUL \0", "half \ud83d", *long):
            self.assertIsNone(self.auth.rotate_credentials(name))
        self.assertTrue(self.authenticate(PASSWORD)[0])

    def test_without_the_right_is_no_none(self):
        self.assertRaises(NotAllowed, self.client(admin=False).rotate_credentials, self.name)
        # The key's own user, whose password takes the password.
        self.assertRaises(NotAllowed, self.auth.rotate_credentials, service.owner["username"])


class ValidateSession(WithTheService):
    def test_a_dict_while_it_is_good_and_then_none(self):
        self.authenticate(PASSWORD)
        (token,) = self.auth._sessions.values()
        auth = self.client(admin=False)
        session = auth.validate_session(token)
        self.assertEqual((session["user_id"], session["username"]), (self.user["id"], self.name))
        self.assertEqual(session["id"], service.sessions(self.user)[0]["id"])
        self.assertGreater(session["expires_at"], utc_now())
        self.assertNotIn(token, session.values())
        service.end_sessions(self.user)
        self.assertIsNone(auth.validate_session(token))
        for text in ("gzs_" + "x" * 43, "gzs_short", service.api_key, "anything"):
            self.assertIsNone(auth.validate_session(text))


class AKeyThatIsNotValid(WithTheService):
    def test_is_never_a_wrong_password(self):
        auth = DatabaseAuth(service.url, "gzk_" + "x" * 43)
        self.addCleanup(auth.close)
        for ask in (
            lambda: auth.authenticate_user(self.name, PASSWORD, self.here),
            lambda: auth.authenticate_user(self.name, ANOTHER),
            lambda: auth.change_password(self.name, PASSWORD, ANOTHER),
            lambda: auth.validate_session("gzs_" + "x" * 43),
            lambda: auth.rotate_credentials(self.name),
            lambda: auth.create_user(self.name, PASSWORD),
        ):
            self.assertRaises(NotAllowed, ask)
        # Nor is one that lacks the scope: this one may manage users and sign in nobody.
        auth = DatabaseAuth(service.url, service.admin_key)
        self.addCleanup(auth.close)
        self.assertRaises(NotAllowed, auth.authenticate_user, self.name, PASSWORD, self.here)


class AnOutage(WithTheService):
    def test_is_never_a_wrong_password_and_ends_by_itself(self):
        remembered, wrong = self.client(), self.client()
        self.assertTrue(self.authenticate(PASSWORD, remembered)[0])
        self.addCleanup(service.start)
        service.stop()
        for _ in range(3):
            for ask in (
                lambda: self.authenticate(PASSWORD, remembered),
                lambda: self.authenticate(PASSWORD),
                lambda: self.authenticate(ANOTHER, wrong),
                lambda: self.auth.validate_session("gzs_" + "x" * 43),
                lambda: self.auth.change_password(self.name, PASSWORD, ANOTHER),
                lambda: self.auth.create_user("made-" + secrets.token_hex(6), PASSWORD),
                lambda: self.auth.rotate_credentials(self.name),
            ):
                self.assertRaises(ServiceUnavailable, ask)
        service.start()
        # The session outlived the service, and nothing of the outage counts as a failure.
        self.assertTrue(self.authenticate(PASSWORD, remembered)[0])
        self.assertVerified(1)
        self.assertTrue(self.authenticate(PASSWORD)[0])
        self.assertEqual(self.authenticate(ANOTHER, wrong), (False, None))
        self.assertVerified(2, 1)

    def test_while_others_ask_is_an_exception_or_true_and_nothing_else(self):
        self.assertTrue(self.authenticate(PASSWORD)[0])
        outcomes = []

        def ask(number):
            if number == 0:
                service.stop()
                service.start()
                outcomes.append("started")
            while "started" not in outcomes:
                try:
                    outcomes.append(self.authenticate(PASSWORD)[0])
                except ServiceUnavailable:
                    outcomes.append("unavailable")
                    time.sleep(0.01)

        self.assertEqual(in_threads(5, ask), [None] * 5)
        self.assertEqual(set(outcomes), {True, "unavailable", "started"})
        self.assertTrue(self.authenticate(PASSWORD)[0])
        self.assertVerified(1)


class Forks(WithTheService):
    def test_children_share_the_session_and_no_connection(self):
        self.authenticate(PASSWORD)
        children = []
        for _ in range(4):
            process = os.fork()
            if process == 0:
                status = 1
                try:
                    status = 0 if all(self.authenticate(PASSWORD)[0] for _ in range(50)) else 1
                finally:
                    os._exit(status)
            children.append(process)
            self.assertTrue(all(self.authenticate(PASSWORD)[0] for _ in range(50)))
        self.assertEqual([os.waitpid(process, 0)[1] for process in children], [0] * 4)
        self.assertVerified(1)


class Logs(WithTheService):
    def test_nothing_is_written(self):
        records = []
        root, handler = logging.getLogger(), logging.Handler()
        handler.emit = records.append
        root.addHandler(handler)
        self.addCleanup(root.removeHandler, handler)
        self.addCleanup(root.setLevel, root.level)
        root.setLevel(logging.DEBUG)
        for password in (PASSWORD, PASSWORD, ANOTHER):
            self.authenticate(password)
        self.assertEqual(records, [])


def utc_now():
    return datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)


if __name__ == "__main__":
    unittest.main()
