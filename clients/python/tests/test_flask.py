"""examples/flask_basic_auth.py, polled 50 times a second while the service stops and starts."""

import base64
import collections
import os
import subprocess
import sys
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

from support import Service, call

PASSWORD = "long made-up Pässword ✓"
A_SECOND = 50
EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "..", "..", "examples", "flask_basic_auth.py")


def setUpModule():
    global service
    service = Service()


class Page:
    """The example as a process of its own."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, EXAMPLE],
            env=dict(os.environ, PORT="0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = self._process.stdout.readline().strip().rpartition("/")[0]
        self.log = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self._process.stderr))
        self._reader.start()
        if not self.url:
            self.end()
            raise RuntimeError("the page did not start:\n" + "".join(self.log))

    def end(self):
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._process.stderr.close()


class Polling(unittest.TestCase):
    def setUp(self):
        self.page = Page()
        self.addCleanup(self.page.end)
        self.user = service.new_user(PASSWORD)

    def get(self, password):
        given = "{}:{}".format(self.user["username"], password).encode()
        headers = {"Authorization": "Basic " + base64.b64encode(given).decode()}
        return call(self.page.url, "GET", "/poll", None, headers)

    def poll(self, seconds, password=PASSWORD):
        """How often each status came, polling at an even pace whatever the answers take."""
        statuses = collections.Counter()
        started = time.monotonic()

        def once(number):
            time.sleep(max(0, started + number / A_SECOND - time.monotonic()))
            status, document, headers = self.get(password)
            if document is not None:
                self.processes.add(document["process"])
            if status in (429, 503):
                self.assertGreaterEqual(int(headers["Retry-After"]), 1)
            return status

        with ThreadPoolExecutor(20) as pool:
            statuses.update(pool.map(once, range(seconds * A_SECOND)))
        self.assertLess(time.monotonic() - started, seconds * 2 + 2, "slower than it was polled")
        return dict(statuses)

    def test_signs_in_once_however_often_it_is_polled_and_whatever_becomes_of_the_service(self):
        self.processes = set()
        self.assertEqual(self.poll(4), {200: 4 * A_SECOND})
        self.assertEqual(service.verifications(self.user), (1, 0))

        self.addCleanup(service.start)
        service.stop()
        self.assertEqual(self.poll(2), {503: 2 * A_SECOND})
        # Also what would be a wrong password, and a browser that was not signed in.
        self.assertEqual(self.poll(1, "not " + PASSWORD), {503: A_SECOND})

        service.start()
        self.assertEqual(self.poll(3), {200: 3 * A_SECOND})
        self.assertEqual(service.verifications(self.user), (1, 0))

        # While it goes down and comes back: one or the other, and never a wrong password.
        restart = threading.Thread(target=lambda: (time.sleep(0.5), service.stop(), service.start()))
        restart.start()
        met = self.poll(4)
        restart.join()
        self.assertLessEqual(set(met), {200, 503})
        self.assertEqual(self.poll(1), {200: A_SECOND})
        self.assertEqual(service.verifications(self.user), (1, 0))
        self.assertEqual(len(self.processes), 1)

    def test_a_wrong_password_is_401_and_polling_with_it_locks_nobody_out(self):
        self.processes = set()
        self.assertEqual(self.poll(2, "not " + PASSWORD), {401: 2 * A_SECOND})
        self.assertEqual(service.verifications(self.user), (0, 1))
        self.assertEqual(self.poll(1), {200: A_SECOND})
        self.assertEqual(service.verifications(self.user), (1, 1))

    def test_a_locked_account_is_429(self):
        for guess in range(5):
            self.assertEqual(self.get("guess {}".format(guess))[0], 401)
        self.assertEqual(self.get(PASSWORD)[0], 429)

    def test_a_request_without_credentials_is_401(self):
        for given in (None, "Basic !", "Basic Og==", "Bearer x"):
            status, _, answer = call(self.page.url, "GET", "/poll", None, {"Authorization": given} if given else {})
            self.assertEqual((status, answer["WWW-Authenticate"]), (401, 'Basic realm="gary"'))

    def test_the_log_has_no_secret(self):
        self.get(PASSWORD)
        self.addCleanup(service.start)
        service.stop()
        self.get(PASSWORD)
        service.start()
        self.page.end()
        log = "".join(self.page.log)
        self.assertIn("503", log)
        for secret in (PASSWORD, os.environ["GARY_API_KEY"], "gzs_"):
            self.assertNotIn(secret, log)


if __name__ == "__main__":
    unittest.main()
