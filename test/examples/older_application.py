#!/usr/bin/env python3
"""The older application as the database sees it: its statements with psycopg2, and its naive UTC times.

    DATABASE_URL=postgresql://... python3 older_application.py < scenario.json

The scenario is a list of [step, arguments...]; its answers are printed as one JSON list. `["wait", minutes]` moves
the clock on.
"""

import hashlib
import hmac
import json
import os
import sys
from datetime import datetime, timedelta

import psycopg2
from psycopg2.extras import RealDictCursor

MAX_FAILURES = 5
LOCK = timedelta(minutes=15)


def verify(password, stored):
    """As Werkzeug does; it cannot read bcrypt."""
    method, salt, digest = stored.split("$", 2)
    name, *parameters = method.split(":")
    if name == "scrypt":
        n, r, p = map(int, parameters)
        key = hashlib.scrypt(password.encode(), salt=salt.encode(), n=n, r=r, p=p, maxmem=132 * n * r * p, dklen=64)
    elif name == "pbkdf2":
        key = hashlib.pbkdf2_hmac(parameters[0], password.encode(), salt.encode(), int(parameters[1]))
    else:
        raise ValueError("unknown hash method")
    return hmac.compare_digest(key.hex(), digest)


class OlderApplication:
    def __init__(self, dsn):
        self.connection = psycopg2.connect(dsn)
        self.waited = timedelta()

    def now(self):
        return datetime.utcnow() + self.waited

    def run(self, statement, arguments=()):
        """One transaction a statement; the rows of a SELECT, else how many rows it changed."""
        with self.connection, self.connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(statement, arguments)
            return cursor.rowcount if cursor.description is None else cursor.fetchall()

    def wait(self, minutes):
        self.waited += timedelta(minutes=minutes)

    def start_up(self, statements):
        for statement in statements:
            self.run(statement)

    def add_user(self, username, stored):
        return self.run(
            "INSERT INTO auth_users (username, password_hash, must_change_password, password_changed_at)"
            " VALUES (%s, %s, %s, %s)",
            (username, stored, True, self.now()),
        )

    def sign_in(self, username, password):
        users = self.run(
            "SELECT id, username, password_hash, is_active, failed_login_attempts, locked_until, must_change_password,"
            " password_changed_at FROM auth_users WHERE username = %s",
            (username,),
        )
        if not users:
            return "unknown"
        user = users[0]
        if not user["is_active"]:
            return "inactive"
        # TypeError if the column had a zone: this clock has none.
        if user["locked_until"] and user["locked_until"] > self.now():
            return "locked"
        if not verify(password, user["password_hash"]):
            failures = user["failed_login_attempts"] + 1
            until = self.now() + LOCK if failures >= MAX_FAILURES else None
            self.run(
                "UPDATE auth_users SET failed_login_attempts = %s, locked_until = %s, updated_at = %s WHERE id = %s",
                (failures, until, self.now(), user["id"]),
            )
            return "wrong password"
        self.run(
            "UPDATE auth_users SET failed_login_attempts = 0, locked_until = NULL, last_login = %s, updated_at = %s"
            " WHERE id = %s",
            (self.now(), self.now(), user["id"]),
        )
        return "signed in"

    def change_password(self, username, stored):
        return self.run(
            "UPDATE auth_users SET password_hash = %s, password_changed_at = %s, must_change_password = FALSE,"
            " updated_at = %s WHERE username = %s",
            (stored, self.now(), self.now(), username),
        )

    def open_session(self, user_id, token, minutes):
        return self.run(
            "INSERT INTO auth_sessions (session_token, user_id, expires_at, ip_address, user_agent)"
            " VALUES (%s, %s, %s, %s, %s)",
            (token, user_id, self.now() + timedelta(minutes=minutes), "192.0.2.7", "Firefox"),
        )

    def validate_session(self, token):
        sessions = self.run(
            "SELECT s.*, u.username, u.is_active FROM auth_sessions s JOIN auth_users u ON s.user_id = u.id"
            " WHERE s.session_token = %s AND s.expires_at > %s",
            (token, self.now()),
        )
        if not sessions or not sessions[0]["is_active"]:
            return None
        self.run("UPDATE auth_sessions SET last_activity = %s WHERE id = %s", (self.now(), sessions[0]["id"]))
        return sessions[0]["username"]

    def clean_up(self):
        return self.run("DELETE FROM auth_sessions WHERE expires_at < %s", (self.now(),))

    def store_token(self, user_id, provider, access):
        return self.run(
            "INSERT INTO auth_oauth_tokens (user_id, provider, access_token, expires_at) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (user_id, provider) DO UPDATE SET access_token = EXCLUDED.access_token,"
            " expires_at = EXCLUDED.expires_at",
            (user_id, provider, access, self.now() + timedelta(hours=1)),
        )


def main():
    application = OlderApplication(os.environ["DATABASE_URL"])
    steps = json.load(sys.stdin)
    print(json.dumps([getattr(application, step)(*arguments) for step, *arguments in steps]))


if __name__ == "__main__":
    main()
