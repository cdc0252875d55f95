#!/usr/bin/env python3
"""The endpoints of GPU Manager V2 in front of gpuctl: `gpu_endpoints.py [PORT]`, on localhost only.

Needs nothing but Python 3. In a FastAPI application use `gpuctl()` in handlers of your own; see docs/endpoints.md.
"""
import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

# HTTP status by exit code; of all others it is 500.
STATUS = {0: 200, 1: 200, 2: 400, 3: 409, 4: 404, 5: 502, 69: 503, 75: 423, 76: 409, 124: 504}

# A group in the path is the command's argument.
ROUTES = {
    "GET /gpu/status": ["status"],
    "GET /gpu/can-fit/([^/]+)": ["can-fit"],
    "POST /gpu/prepare-phase/([^/]+)": ["prepare-phase"],
    "POST /gpu/service/([^/]+)/start": ["start"],
    "POST /gpu/service/([^/]+)/stop": ["stop"],
    "POST /gpu/release-all": ["release-all"],
}


def gpuctl(*arguments):
    """Runs gpuctl, which has deadlines of its own; gives an HTTP status and a document."""
    command = ["gpuctl", "--json", "--quiet", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return STATUS.get(done.returncode, 500), json.loads(done.stdout or "null")


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        status, document = 404, {"error": {"code": "not_found", "message": "no such endpoint"}}
        for route, command in ROUTES.items():
            if found := re.fullmatch(route, f"{self.command} {self.path}"):
                status, document = gpuctl(*command, "--", *map(unquote, found.groups()))
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
