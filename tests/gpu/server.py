"""A model server as far as the GPU is concerned: holds MB of device memory and answers its health check.

    server.py NAME PORT MB FOLDER

Its PID goes to FOLDER/pids, and if the card is full, a line to FOLDER/oom before it exits with 1.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

name, port, mb, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def note(file, text):
    with open(os.path.join(folder, file), "a") as out:
        out.write(text + "\n")


note("pids", str(os.getpid()))

import torch  # noqa: E402 (takes seconds; the PID is on record before)

try:
    memory = torch.empty(mb << 20, dtype=torch.uint8, device="cuda:0")
except torch.cuda.OutOfMemoryError as error:
    note("oom", name)
    sys.exit(f"{name}: torch.cuda.OutOfMemoryError: {error}")


class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"name": name, "pid": os.getpid(), "mb": mb}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


print(f"{name}: ready with {mb} MB", flush=True)
HTTPServer(("127.0.0.1", port), Health).serve_forever()
