"""A counter behind http.server: /ping answers, /count counts."""
import http.server
import sys

PORT, NONCE = int(sys.argv[1]), sys.argv[2]


class Handler(http.server.BaseHTTPRequestHandler):
    count = 0

    def do_GET(self):
        if self.path == "/count":
            Handler.count += 1
        body = f"{NONCE} {Handler.count}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
