#!/usr/bin/env python3
"""One user, straight from PostgreSQL with psycopg2 (Debian: python3-psycopg2; elsewhere: pip install psycopg2-binary).

    DATABASE_URL=postgresql://... python3 examples/psycopg2_lookup.py <username>

`SELECT *` takes in the password hash: it needs the superuser's URL (on Railway that is DATABASE_URL). An
analyst's login is refused, and row-level security shows the tables' owner no row.
"""

import os
import sys

import psycopg2
from psycopg2.extras import RealDictCursor


def find_user(dsn, username):
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute("SELECT * FROM auth_users WHERE username = %s", (username,))
            return cursor.fetchone()
    finally:
        connection.close()


def main():
    if len(sys.argv) != 2 or not os.environ.get("DATABASE_URL"):
        sys.exit("usage: DATABASE_URL=postgresql://... python3 psycopg2_lookup.py <username>")
    user = find_user(os.environ["DATABASE_URL"], sys.argv[1])
    if user is None:
        sys.exit(f"no user named {sys.argv[1]}")
    for name, value in user.items():
        if name != "password_hash":
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
