"""A parent that builds data and forks 64 children, each behind a socket pair.

/ping is answered by the first child, /all by every one: its number, how often
it was asked, and a sum over the data, which only its own memory tells it.
"""
import http.server
import os
import socket
import sys

PORT, NONCE, CHILDREN = int(sys.argv[1]), sys.argv[2], 64
SHARE = 300
DATA = [(number, f"entry {number} of {NONCE}") for number in range(CHILDREN * SHARE)]


def child(number, end):
    """Touches a part of the data, so that some pages are its own."""
    own = [text.upper() for _, text in DATA[number * 100:(number + 1) * 100]]
    asked = 0
    while end.recv(1):
        asked += 1
        total = sum(value for value, _ in DATA[number * SHARE:(number + 1) * SHARE])
        end.sendall(f"{number}:{asked}:{total + len(own)}".encode())


def fork(number):
    near, far = socket.socketpair()
    if os.fork() == 0:
        near.close()
        for earlier in ENDS:
            earlier.close()
        child(number, far)
        os._exit(0)
    far.close()
    return near


ENDS = []
for index in range(CHILDREN):
    ENDS.append(fork(index))


def ask(end):
    end.sendall(b"?")
    return end.recv(100).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ends = ENDS if self.path == "/all" else ENDS[:1]
        body = " ".join([NONCE] + [ask(end) for end in ends]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
