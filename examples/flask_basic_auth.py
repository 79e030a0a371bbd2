#!/usr/bin/env python3
"""A Flask page behind HTTP Basic, as Gary-Zero's are: the service says who may see it.

    GARY_API_KEY=gzk_... python3 examples/flask_basic_auth.py
    curl -u me http://127.0.0.1:5000/poll

Needs Flask (`apt-get install python3-flask`, or pip install flask).

GARY_API_KEY  what the service was started with as SERVICE_API_KEY
GARY_URL      where the service is, default http://localhost:8080
PORT          where this page is, default 5000
"""

import os
import sys
from functools import wraps

from flask import Flask, Response, g, jsonify, request
from werkzeug.serving import make_server

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients", "python"))

from gary_zero_auth import AuthServiceError, DatabaseAuth, TooManyAttempts  # noqa: E402

app = Flask(__name__)
auth = DatabaseAuth(os.environ.get("GARY_URL", "http://localhost:8080"), os.environ.get("GARY_API_KEY"))


def requires_auth(view):
    @wraps(view)
    def decorated(*args, **kwargs):
        given = request.authorization
        success, user = False, None
        if given:
            success, user = auth.authenticate_user(
                given.username,
                given.password,
                ip_address=request.remote_addr,
                user_agent=request.user_agent.string,
                request_id=request.headers.get("X-Request-ID"),
            )
        if not success:
            return Response("Please sign in.\n", 401, {"WWW-Authenticate": 'Basic realm="gary"'})
        g.user = user
        return view(*args, **kwargs)

    return decorated


@app.errorhandler(AuthServiceError)
def not_answered(error):
    """Never 401: a browser would throw the password away and ask for another one."""
    app.logger.warning("%s", error)
    status = 429 if isinstance(error, TooManyAttempts) else 503
    return Response("Please try again later.\n", status, {"Retry-After": str(error.retry_after or 1)})


@app.route("/poll")
@requires_auth
def poll():
    return jsonify(username=g.user["username"], role=g.user["role"], process=os.getpid())


if __name__ == "__main__":
    server = make_server("127.0.0.1", int(os.environ.get("PORT", "5000")), app, threaded=True)
    print("http://127.0.0.1:{}/poll".format(server.server_port), flush=True)
    server.serve_forever()
