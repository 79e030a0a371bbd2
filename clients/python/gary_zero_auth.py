"""Gary-Zero's DatabaseAuth, kept by the PostgreSQL service instead of by SQL. Python 3.9+, standard library only.

    from gary_zero_auth import DatabaseAuth, ServiceUnavailable, TooManyAttempts

    auth = DatabaseAuth("https://auth.example.org", api_key="gzk_...")
    success, user = auth.authenticate_user("me", "the password", ip_address="192.0.2.1")

The methods, their arguments and what they return are those of DatabaseAuth. One thing differs on purpose: False and
None are answers of the service. Where it gave none, or did not let this program ask, a method raises, so that an
outage never reads like a wrong password:

    AuthServiceError        the base of the three below; has retry_after (seconds, or None)
      ServiceUnavailable    not reachable, too slow, 5xx, or an answer that cannot be understood
      TooManyAttempts       throttled (429): after failed attempts, or because too many sign in at this moment
      NotAllowed            a key is missing, not valid, or lacks the right
    Refused (a ValueError)  a new name or password that the service does not take; the text says why

One object serves a whole program: all methods may be called from any number of threads, and go on working in a
process that was forked off. Making one sends nothing, so a program starts while the service is down.
"""

import collections
import copy
import datetime
import hmac
import http.client
import ipaddress
import json
import math
import os
import re
import secrets
import ssl
import threading
import time
import unicodedata
import urllib.parse
import uuid
import weakref

__all__ = ["DatabaseAuth", "AuthServiceError", "ServiceUnavailable", "TooManyAttempts", "NotAllowed", "Refused"]

# A connection that was idle for longer is not used again: proxies close, or silently forget, one after 60 s.
IDLE_SECONDS = 50
IDLE_CONNECTIONS = 20
MAX_ANSWER_BYTES = 1024 * 1024
# While an account is locked a polling browser tab asks this often at most, and an unlocking is noticed this soon.
THROTTLED_SECONDS = 5


class AuthServiceError(Exception):
    """The service gave no answer to the question, so nothing is known of a password. The text holds no secret.

    retry_after is in seconds; status and code are the answer's own. Each is None where there was none.
    """

    def __init__(self, message, status=None, code=None, retry_after=None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class ServiceUnavailable(AuthServiceError):
    """Not reachable, too slow, 5xx, or an answer that cannot be understood. Try again later.

    After a change it may be unknown whether it was made; calling the method again is always right: a user who was
    created is then found taken, and a rotation makes another password.
    """


class TooManyAttempts(AuthServiceError):
    """Throttled (429): the account was locked for this address after failed attempts, or more users sign in at this
    moment than the service can hash passwords for. The password was not looked at and may well be right.
    """


class NotAllowed(AuthServiceError):
    """The key is missing, not valid any more, or has not the right; or the user outranks the key's own."""


class Refused(ValueError):
    """The service does not take this new name or password. The text, also as `reason`, may be shown to the user."""

    @property
    def reason(self):
        return str(self)


class DatabaseAuth:
    """Users and sessions of Gary-Zero.

    url        the address of the service, which lives at the root of its host
    api_key    the service's SERVICE_API_KEY (of two, separated by a comma, the first is used), or any key with the
               scopes auth:verify and sessions:validate
    admin_key  a key with users:read and users:write: only create_user and rotate_credentials need it. A key made by
               an owner reaches every user but that owner; one of a service user reaches all but owners and admins

    connect_timeout and read_timeout are in seconds, the first with the TLS handshake, the second from one piece of
    an answer to the next; the look-up of a host's name takes the system's own time. authenticate_user waits for two
    answers at most, validate_session for one. ssl_context replaces the default one, which checks the certificate.
    max_sessions is how many pairs of name and password are remembered, and remember_refused how long those that were
    refused, in seconds: see authenticate_user.
    """

    def __init__(
        self,
        url,
        api_key,
        admin_key=None,
        *,
        connect_timeout=2.0,
        read_timeout=8.0,
        ssl_context=None,
        max_sessions=1000,
        remember_refused=(10.0, 900.0),
    ):
        self._api_key = _key(api_key, "api_key")
        self._admin_key = self._api_key if admin_key is None else _key(admin_key, "admin_key")
        self._connections = _Connections(url, connect_timeout, read_timeout, ssl_context)
        self._remember_refused = tuple(remember_refused) or (0,)
        # Of each pair of name and password only an HMAC under a key of this object is kept.
        self._pair_key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        # Apart from each other, so that a flood of guesses pushes out no session.
        self._sessions = _Latest(max_sessions)
        self._refusals = _Latest(max_sessions)
        self._throttled = _Latest(max_sessions)
        self._logins = {}
        _all_clients.add(self)

    def __repr__(self):
        return "<{} {}>".format(type(self).__name__, self._connections.url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the connections and forgets every session; all methods raise RuntimeError afterwards.

        The forgotten sessions end in the service when they have been idle for its limit, two hours by default.
        """
        self._connections.close()
        with self._lock:
            self._sessions.clear()

    # --- the methods of DatabaseAuth ---------------------------------------------------------------------------

    def authenticate_user(self, username, password, ip_address=None, *, user_agent=None, request_id=None):
        """(True, user) when this is the user's password and the user is active; else (False, None).

        user is a dict with id, username, role, is_active, must_change_password, created_at, updated_at, last_login,
        password_changed_at and version; never a hash. Times are datetimes without a zone and hold UTC, as
        DatabaseAuth's did. Raises ServiceUnavailable, TooManyAttempts, NotAllowed.

        Made for HTTP Basic, where every request of a polling browser brings the password:

        - Verifying one costs the service a quarter of a second of computing, so the first request signs in, and
          those after it only ask whether that session is still good. When it is not (password changed, user
          deactivated, session ended or too old) one new sign-in decides. Requests that come while it runs wait for
          its answer.
        - A refused pair of name and password is answered from memory, first for 10 seconds, then for 15 minutes
          (remember_refused). The service locks an account for an address after 5 failures in 15 minutes; a forgotten
          browser tab that polls with yesterday's password would reach that in a second, and its own user could sign
          in no more. So a tab makes two failures in 15 minutes (in each process), and leaves three for people who
          mistype. The first time is short because a person, unlike a tab, tries again a little later, perhaps after
          an operator has made the account or set the password. A change made through this object is seen at once.
        - A locked account raises TooManyAttempts, where DatabaseAuth returned (False, None): a browser would ask for
          a password again, and the right one would be refused too. A session that exists goes on.

        ip_address and user_agent are those of the user; the service counts failures by the address. request_id
        becomes the X-Request-ID, under which the service logs and audits.
        """
        if not username or not password:
            return False, None
        pair = self._digest(username, password)
        address = _address(ip_address)
        while True:
            # Each round ends with an answer, or has used up a session that somebody else signed in for.
            with self._lock:
                token = self._sessions.get(pair)
                if token is None:
                    if self._is_refused(pair):
                        return False, None
                    self._raise_if_throttled(pair, address)
                    login = self._logins.get(pair)
                    leads = login is None
                    if leads:
                        login = self._logins[pair] = _Login()
            if token is not None:
                found = self._validate(token, request_id)
                if found is not None:
                    return True, found[0]
                with self._lock:
                    # Not the one that another thread has put in its place meanwhile.
                    if self._sessions.get(pair) == token:
                        del self._sessions[pair]
            elif leads:
                return self._lead(login, pair, username, password, address, user_agent, request_id)
            else:
                login.over.wait()
                if login.error is not None:
                    raise copy.copy(login.error)
                if login.answer is not None:
                    success, user = login.answer
                    return success, copy.copy(user)

    def create_user(self, username, password, must_change_password=False, *, request_id=None):
        """True when the user was created, with the role "user"; False when the name is taken.

        Needs an admin_key with users:write. Raises Refused for a name or a password that the service does not take
        (DatabaseAuth took any), ServiceUnavailable, NotAllowed.
        """
        body = {"username": username, "password": password, "must_change_password": bool(must_change_password)}
        answer = self._call("POST", "/v1/users", body, key=self._admin_key, change=True, request_id=request_id)
        if answer.status == 201 and isinstance(answer.get("username"), str):
            self._forget_refusals(username)
            return True
        if answer.code == "conflict":
            return False
        raise answer.refusal("/username", "/password") or answer.unclear()

    def change_password(self, username, old_password, new_password, *, request_id=None):
        """True when the password was changed; False when the old one is wrong or the user is not active.

        All sessions of the user end. Needs no admin_key. A new password that the service does not take raises
        Refused with the reason: False would tell the user that the old one was wrong. Also raises ServiceUnavailable,
        TooManyAttempts, NotAllowed.
        """
        if not username or not old_password:
            return False
        # A session of its own, never a remembered one: the session that changes a password outlives the change, and
        # a remembered one would go on answering for the old password.
        signed_in = self._log_in(username, old_password, request_id=request_id)
        if signed_in is None:
            return False
        token, _ = signed_in
        try:
            body = {"current_password": old_password, "new_password": new_password}
            answer = self._call("POST", "/v1/auth/password", body, token=token, change=True, request_id=request_id)
        finally:
            self._log_out(token, request_id)
        if answer.status == 204:
            self._forget_refusals(username)
            return True
        if answer.code == "invalid_credentials":
            return False
        raise answer.refusal("/new_password") or answer.unclear()

    def rotate_credentials(self, username, *, request_id=None):
        """A new password, made by the service, that the user must change; all sessions of the user end.

        None when there is no user of exactly that name, or none whom the admin_key may see. Needs an admin_key with
        users:read and users:write. Raises ServiceUnavailable, and NotAllowed, which is also what the key's own user
        meets: that one has change_password.
        """
        user_id = self._user_id(username, request_id)
        if user_id is None:
            return None
        path = "/v1/users/{}/rotate-password".format(user_id)
        answer = self._call("POST", path, key=self._admin_key, change=True, request_id=request_id)
        if answer.code == "already_done":
            # Made at the first try, whose answer was lost, and the password with it. Another one, then.
            answer = self._call("POST", path, key=self._admin_key, change=True, request_id=request_id)
        if answer.code == "not_found":
            return None
        password = answer.get("password")
        if answer.status != 200 or not isinstance(password, str):
            raise answer.unclear()
        self._forget_refusals(username)
        return password

    def validate_session(self, token, *, request_id=None):
        """A dict when the session is good, which counts as activity; else None.

        id is the session's and user_id the user's; with username, role, is_active, must_change_password, created_at,
        last_activity, expires_at, idle_expires_at, ip_address and user_agent. Times as in authenticate_user. The
        token itself is not repeated. Raises ServiceUnavailable, NotAllowed.
        """
        if not isinstance(token, str) or re.fullmatch(r"[\x21-\x7e]{1,256}", token) is None:
            return None
        found = self._validate(token, request_id)
        if found is None:
            return None
        user, session = found
        about_user = {name: user[name] for name in ("username", "role", "is_active", "must_change_password")}
        return dict(session, user_id=user["id"], **about_user)

    # --- signing in once ---------------------------------------------------------------------------------------

    def _lead(self, login, pair, username, password, address, user_agent, request_id):
        """Signs in, for all who wait for the same, and remembers what came of it."""
        token = None
        try:
            signed_in = self._log_in(username, password, address, user_agent, request_id)
            token, user = signed_in or (None, None)
            login.answer = signed_in is not None, user
        except TooManyAttempts as error:
            # Not for those who wait: they may be at another address, and look for themselves. A copy has no
            # traceback, which would keep the password with it.
            with self._lock:
                self._throttled[pair, address] = time.monotonic(), copy.copy(error)
            raise
        except AuthServiceError as error:
            login.error = copy.copy(error)
            raise
        finally:
            try:
                # In one step: who came in between would find neither a sign-in nor a session, and start another one.
                with self._lock:
                    self._logins.pop(pair, None)
                    if token is not None:
                        self._sessions[pair] = token
                        self._refusals.pop(pair, None)
                    elif login.answer is not None:
                        self._remember_refusal(pair, username)
            finally:
                # Also when this thread was interrupted: then there is no answer, and one of the others signs in.
                login.over.set()
        success, user = login.answer
        return success, copy.copy(user)

    def _log_in(self, username, password, address=None, user_agent=None, request_id=None):
        """(token, user) of a new session; None when the service says that this is no such user's password."""
        body = {"username": username, "password": password}
        if address is not None:
            body["ip_address"] = address
        if user_agent is not None:
            body["user_agent"] = re.sub(r"[^\x20-\x7e]", "?", str(user_agent))[:512]
        # Not on a used connection: were that closed at this moment, it would be unknown whether an attempt was made
        # and counted, and a sign-in cannot be sent twice.
        answer = self._call("POST", "/v1/auth/login", body, key=self._api_key, fresh=True, request_id=request_id)
        token = answer.get("token")
        if answer.status == 200 and isinstance(token, str):
            return token, answer.user()
        if answer.code == "invalid_credentials" or answer.refusal("/username", "/password") is not None:
            # Or it has a form that no password can have, such as more than 72 bytes.
            return None
        if answer.refusal("") is not None:
            # The key may not say where somebody signs in.
            raise NotAllowed(answer.text(), answer.status, answer.code)
        raise answer.unclear()

    def _log_out(self, token, request_id):
        """Ends a session if that is possible: it would end by itself, and what was done before it counts."""
        try:
            self._call("POST", "/v1/auth/logout", token=token, change=True, request_id=request_id)
        except AuthServiceError:
            pass

    def _validate(self, token, request_id):
        """(user, session) of a good session, None of any other."""
        body = {"token": token}
        answer = self._call("POST", "/v1/sessions/validate", body, key=self._api_key, request_id=request_id)
        active = answer.get("active")
        if answer.status == 200 and active is False:
            return None
        if answer.status == 200 and active is True:
            return answer.user(), answer.session()
        raise answer.unclear()

    def _user_id(self, username, request_id):
        if not _is_name(username):
            return None
        path = "/v1/users?" + urllib.parse.urlencode({"username": username})
        answer = self._call("GET", path, key=self._admin_key, request_id=request_id)
        users = answer.get("items")
        if answer.status != 200 or not isinstance(users, list):
            raise answer.unclear()
        # The service also finds a name in other letters; names from the old tables may differ by that alone, and
        # somebody else's password must not be changed.
        for user in users:
            if not isinstance(user, dict) or type(user.get("id")) is not int:
                raise answer.unclear()
            if user.get("username") in (username, _normalized(username)):
                return user["id"]
        return None

    # --- what was refused, under the lock ----------------------------------------------------------------------

    def _is_refused(self, pair):
        refusal = self._refusals.get(pair)
        return refusal is not None and time.monotonic() < refusal.until

    def _remember_refusal(self, pair, username):
        now = time.monotonic()
        before = self._refusals.get(pair)
        lengths = self._remember_refused
        times = 0 if before is None or now > before.until + max(lengths) else before.times + 1
        until = now + lengths[min(times, len(lengths) - 1)]
        self._refusals[pair] = _Refusal(self._digest(_normalized(username).lower()), times, until)

    def _forget_refusals(self, username):
        """What this name was refused with may be its password from now on."""
        name = self._digest(_normalized(username).lower())
        with self._lock:
            for pair, refusal in list(self._refusals.items()):
                if refusal.name == name:
                    del self._refusals[pair]

    def _raise_if_throttled(self, pair, address):
        since, error = self._throttled.get((pair, address)) or (None, None)
        if error is None:
            return
        passed = time.monotonic() - since
        if passed >= min(THROTTLED_SECONDS, error.retry_after or 1):
            del self._throttled[pair, address]
            return
        left = max(1, math.ceil((error.retry_after or 1) - passed))
        raise TooManyAttempts(str(error), error.status, error.code, left)

    def _digest(self, *texts):
        # With their lengths: "a:b" and "c" must not be taken for "a" and "b:c".
        parts = [str(text).encode("utf-8", "surrogatepass") for text in texts]
        return hmac.digest(self._pair_key, b"".join(b"%d:%s" % (len(part), part) for part in parts), "sha256")

    # --- one call ----------------------------------------------------------------------------------------------

    def _call(
        self, method, path, body=None, *, key=None, token=None, change=False, fresh=False, request_id=None
    ):
        """The answer, when it is one that a method may look at. Raises the errors that every call can meet.

        A change carries an Idempotency-Key, and is sent once more with the same when it is unknown whether it was
        made. All else but a sign-in is sent once more when its connection turns out to be closed.
        """
        headers = {"Accept": "application/json", "User-Agent": "gary-zero-auth"}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode("ascii")
        if key is not None:
            headers["X-API-KEY"] = key
        if token is not None:
            headers["Authorization"] = "Bearer " + token
        if change:
            headers["Idempotency-Key"] = str(uuid.uuid4())
        # What else it may hold, the service would replace, or it is none of a header's.
        if request_id is not None and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", str(request_id)):
            headers["X-Request-ID"] = str(request_id)
        what = "{} {}".format(method, path.partition("?")[0])
        for may_repeat in (True, False):
            try:
                answer = _Answer(what, *self._connections.exchange(method, path, headers, content, fresh))
            except _NoAnswer as failure:
                if may_repeat and (failure.was_idle or (change and failure.was_sent)):
                    fresh = True
                    continue
                raise ServiceUnavailable("{}: {}".format(what, failure)) from None
            if may_repeat and change and answer.code == "outcome_unknown":
                time.sleep(min(answer.retry_after or 0, 1))
                continue
            answer.raise_for_everyone(is_by_key=key is not None)
            return answer


class _Login:
    """One sign-in that runs, for all who wait for the same: ends with an answer, an error, or neither."""

    def __init__(self):
        self.over = threading.Event()
        self.answer = None
        self.error = None


class _Refusal:
    def __init__(self, name, times, until):
        self.name = name
        self.times = times
        self.until = until


class _Latest(collections.OrderedDict):
    """The entries that were used last, `size` of them. For use under a lock."""

    def __init__(self, size):
        super().__init__()
        self._size = size

    def get(self, name, default=None):
        if name not in self:
            return default
        self.move_to_end(name)
        return self[name]

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        self.move_to_end(name)
        while len(self) > self._size:
            del self[next(iter(self))]


# --- answers ---------------------------------------------------------------------------------------------------

_USER = {
    "id": int,
    "username": str,
    "role": str,
    "is_active": bool,
    "must_change_password": bool,
    "created_at": datetime.datetime,
    "updated_at": datetime.datetime,
    "last_login": datetime.datetime,
    "password_changed_at": datetime.datetime,
    "version": int,
}
_SESSION = {
    "id": int,
    "created_at": datetime.datetime,
    "last_activity": datetime.datetime,
    "expires_at": datetime.datetime,
    "idle_expires_at": datetime.datetime,
    "ip_address": str,
    "user_agent": str,
}
_MAY_BE_NULL = {"last_login", "ip_address", "user_agent"}
_MISSING_RIGHT = {"forbidden", "insufficient_scope", "password_change_required", "reauthentication_required"}


class _Answer:
    """An answer of the service: status, problem code if it has one, and the members of its JSON object."""

    def __init__(self, what, status, headers, content):
        self.status = status
        self._what = what
        try:
            document = json.loads(content) if content else {}
        except (ValueError, RecursionError):
            document = None
        # Of what is no object nothing is found, and so it decides nothing.
        self._document = document if isinstance(document, dict) else {}
        code = self._document.get("code")
        # Only the service's own refusals count: one of a proxy on the way knows nothing of passwords and rights.
        self.code = code if status >= 400 and isinstance(code, str) else None
        after = headers.get("Retry-After", "")
        self.retry_after = int(after) if re.fullmatch(r"[0-9]{1,6}", after) else None

    def get(self, name):
        return self._document.get(name)

    def text(self):
        detail = self._document.get("detail")
        reason = detail[:300] if self.code is not None and isinstance(detail, str) else "not understood"
        return "{}: {} {}: {}".format(self._what, self.status, self.code or "", reason)

    def raise_for_everyone(self, is_by_key):
        """What any call may meet."""
        about = self.text(), self.status, self.code, self.retry_after
        if self.status >= 500:
            raise ServiceUnavailable(*about)
        if self.status == 429 and self.code == "too_many_requests":
            raise TooManyAttempts(*about)
        if self.status == 403 and self.code in _MISSING_RIGHT:
            raise NotAllowed(*about)
        if self.status == 401 and self.code == "unauthenticated":
            # A session that was good a moment ago was ended by somebody else.
            raise NotAllowed(*about) if is_by_key else ServiceUnavailable(*about)

    def unclear(self):
        """For what a method has no use for: it decides nothing."""
        return ServiceUnavailable(self.text(), self.status, self.code, self.retry_after)

    def faults(self):
        """What was wrong with the body, as pairs of a JSON Pointer into it ("" is the whole) and a reason."""
        errors = self.get("errors")
        entries = errors if self.code == "validation_failed" and isinstance(errors, list) else []
        return [(str(entry.get("path")), str(entry.get("message"))) for entry in entries if isinstance(entry, dict)]

    def refusal(self, *fields):
        """Refused, when the service found fault with these fields of the body and no other; else None."""
        faults = self.faults()
        if not faults or any(path not in fields for path, _ in faults):
            return None
        return Refused("; ".join(reason for _, reason in faults))

    def user(self):
        return self._members("user", _USER)

    def session(self):
        return self._members("session", _SESSION)

    def _members(self, name, kinds):
        """Exactly the members that are known here, so that nothing else is ever passed on."""
        members = self.get(name)
        try:
            return {member: _value(member, members[member], kind) for member, kind in kinds.items()}
        except (TypeError, KeyError, ValueError):
            raise self.unclear() from None


def _value(member, value, kind):
    if value is None and member in _MAY_BE_NULL:
        return None
    if kind is datetime.datetime:
        return datetime.datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%fZ")
    # True is an int to isinstance.
    if type(value) is not kind:
        raise TypeError(member)
    return value


# --- connections -----------------------------------------------------------------------------------------------


class _NoAnswer(Exception):
    """was_sent: the service may have the request. was_idle: the connection was an idle one that had been closed."""

    def __init__(self, reason, was_sent, was_idle):
        super().__init__(reason)
        self.was_sent = was_sent
        self.was_idle = was_idle


class _Connections:
    """Connections to one host that are kept open between requests, the one used last first.

    Shared by all threads, and not one a thread: a server that makes a thread a request would never use one again.
    There are as many as there are requests at once, and at most IDLE_CONNECTIONS wait.
    """

    def __init__(self, url, connect_timeout, read_timeout, ssl_context):
        self._is_tls, self._host, self._port = _parse(url)
        self.url = str(url).rstrip("/")
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._ssl_context = ssl_context
        if self._is_tls and ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        self._lock = threading.Lock()
        self._idle = []
        self._is_closed = False

    def exchange(self, method, path, headers, content, fresh=False):
        """(status, headers, content) of the answer; `fresh` asks for a new connection. Raises _NoAnswer."""
        connection = self._take(fresh)
        is_used = connection is not None
        is_kept = was_sent = False
        failure = None
        try:
            if connection is None:
                connection = self._connect()
            was_sent = True
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            status, answer = response.status, response.headers
            # With a length it is read whole or not at all: of a part, http.client does not tell that it is one.
            is_short = response.length is not None and response.length <= MAX_ANSWER_BYTES
            received = response.read(None if is_short else MAX_ANSWER_BYTES + 1)
            if len(received) > MAX_ANSWER_BYTES:
                failure = _NoAnswer("the answer is too long", True, False)
            is_kept = response.isclosed() and not response.will_close
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            # So looks a connection that the server closed while it was idle.
            was_idle = is_used and isinstance(error, (ConnectionError, ssl.SSLEOFError))
            failure = _NoAnswer(_reason(error), was_sent, was_idle)
        finally:
            if is_kept:
                self._put_back(connection)
            elif connection is not None:
                connection.close()
        # Out here, so that the error does not carry along the one it came from, which may hold parts of an answer.
        if failure is not None:
            raise failure
        return status, answer, received

    def close(self):
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def after_fork(self):
        """Two processes must not write to one connection. Closes this one's copies: the other's go on."""
        self._lock = threading.Lock()
        idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _connect(self):
        if self._is_tls:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._connect_timeout, context=self._ssl_context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._connect_timeout)
        # One that was closed is not to be opened again behind our back: it would be in use for the other time limit.
        connection.auto_open = False
        try:
            connection.connect()
            connection.sock.settimeout(self._read_timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take(self, fresh):
        too_old = []
        found = None
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this DatabaseAuth was closed")
            while self._idle and found is None and not fresh:
                since, connection = self._idle.pop()
                if time.monotonic() - since < IDLE_SECONDS:
                    found = connection
                else:
                    too_old.append(connection)
        for connection in too_old:
            connection.close()
        return found

    def _put_back(self, connection):
        with self._lock:
            if not self._is_closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()


def _reason(error):
    # What http.client says may quote the answer.
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return "the answer is not HTTP ({})".format(type(error).__name__)
    return "{}: {}".format(type(error).__name__, error)


# --- arguments -------------------------------------------------------------------------------------------------


def _parse(url):
    """(whether by TLS, host, port or None). Raises ValueError without the url, which may hold a password."""
    try:
        parts = urllib.parse.urlsplit(str(url))
        is_bare = re.search(r"[@\x00-\x20]", str(url)) is None and parts[2:] in (("", "", ""), ("/", "", ""))
        if is_bare and parts.scheme in ("http", "https") and parts.hostname:
            return parts.scheme == "https", parts.hostname, parts.port
    except ValueError:
        pass
    raise ValueError("url: http:// or https://, a host, perhaps a port, and nothing else")


def _key(text, name):
    key = str(text or "").split(",")[0].strip()
    if re.fullmatch(r"[\x21-\x7e]+", key) is None or "${{" in key:
        raise ValueError(name + " is empty, not a key, or holds an unresolved reference")
    return key


def _address(given):
    """As the service takes it: no zone, and IPv4 as IPv4. None for what is no address, such as "unknown"."""
    try:
        address = ipaddress.ip_address(str(given).partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _is_name(text):
    """Whether somebody may have it for a name: the service counts its 255 characters in UTF-16."""
    try:
        return "\0" not in text and 0 < len(text.encode("utf-16-le")) // 2 <= 255
    except UnicodeEncodeError:
        return False


def _normalized(username):
    """As the service keeps a name."""
    return unicodedata.normalize("NFKC", str(username)).strip()


# --- forks -----------------------------------------------------------------------------------------------------

_all_clients = weakref.WeakSet()


def _after_fork():
    # A lock that another thread held at the fork would stay locked in the child for ever.
    for client in list(_all_clients):
        client._lock = threading.Lock()
        client._logins = {}
        client._connections.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
