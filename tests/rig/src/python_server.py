"""A model server as Python programs are: it holds memory on the simulated card, and may do what hides it."""

import argparse
import fcntl
import http.server
import json
import os
import signal
import socketserver
import sys
import threading
import time

options = argparse.ArgumentParser()
options.add_argument("--card", required=True, help="folder of the simulated card; it ends when that is removed")
options.add_argument("--name", default="engine")
options.add_argument("--port", type=int, default=0)
options.add_argument("--vram", type=int, default=0)
options.add_argument("--title", help="overwrites its command line and environment, as setproctitle does")
options.add_argument("--daemon", action="store_true", help="double fork into a session of its own; exit 0 in front")
options.add_argument("--worker", help="the memory is held by a child of this title, in a session of its own")
options.add_argument("--backlog", type=int, default=5)
options.add_argument("--slow", type=float, default=0, help="seconds that a GET takes, one after the other")
options.add_argument("--count", help="file that gets a line for each GET")
options.add_argument("--leave-main", action="store_true", help="the main thread ends, the others serve")
options = options.parse_args()


def watch():
    while os.path.isdir(options.card):
        time.sleep(0.3)
    os._exit(0)


def claim(mb, name):
    """As simgpu's own: a lock file that proves life, and a record, under the lock of the card."""
    start = open("/proc/self/stat").read().rsplit(") ", 1)[1].split()[19]
    me = f"{os.stat('/proc/self/ns/pid').st_ino}-{os.getpid()}-{start}-0"
    with open(f"{options.card}/card.lock", "a") as card:
        fcntl.flock(card, fcntl.LOCK_EX)
        global lock
        lock = open(f"{options.card}/claims/{me}.lock", "x")
        fcntl.lockf(lock, fcntl.LOCK_EX)
        record = dict(device=0, mb=mb, kind="compute", name=name, pid=os.getpid(), dead_since_ms=None)
        with open(f"{options.card}/claims/{me}.new", "w") as draft:
            json.dump(record, draft)
        os.rename(f"{options.card}/claims/{me}.new", f"{options.card}/claims/{me}.json")


def hold(title):
    if title:
        import setproctitle

        setproctitle.setproctitle(title)
    if options.vram:
        claim(options.vram, options.name)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if options.count:
            with open(options.count, "a") as count:
                count.write(f"{self.path}\n")
        if self.path.startswith("/takes/"):
            time.sleep(float(self.path.removeprefix("/takes/")))
        time.sleep(options.slow)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


class Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = options.backlog

    def handle_error(self, *_):
        """A client that has gone away is no fault."""


signal.signal(signal.SIGTERM, signal.SIG_DFL)
if options.daemon:
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
if options.worker:
    if os.fork() == 0:
        os.setsid()
        hold(options.worker)
        watch()
elif options.title or options.vram:
    hold(options.title)
threading.Thread(target=watch, daemon=True).start()
if options.worker and options.title:
    import setproctitle

    setproctitle.setproctitle(options.title)
print(f"{options.name}: ready", flush=True)
if options.port:
    server = Server(("127.0.0.1", options.port), Handler)
    if options.leave_main:
        import ctypes

        threading.Thread(target=server.serve_forever).start()
        ctypes.CDLL(None).pthread_exit(None)
    server.serve_forever()
while True:
    time.sleep(1000)
