"""A server that notes what it is told: signals, and requests at /ok, /refuse and /hang.
Its helper notes signals only."""
import http.server
import os
import signal
import sys
import time

place, port = sys.argv[1], int(sys.argv[2])


def note(*words):
    with open(f"{place}/told", "a") as out:
        print(*words, file=out)


class Told(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        note("POST", self.path, body)
        while self.path == "/hang" and not os.path.exists(f"{place}/release"):
            time.sleep(0.01)
        code, text = (503, b"busy with a migration") if self.path == "/refuse" else (200, b"")
        self.send_response(code)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_):
        pass


role = "server"
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: note("signal", int(number), "to", role))
if os.fork() == 0:
    role = "helper"
    while True:
        signal.pause()
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Told)
open(f"{place}/ready", "w").close()
server.serve_forever()
