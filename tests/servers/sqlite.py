"""A database in WAL mode: a writer amid its transaction, with changes that nobody else sees,
a reader of another thread and one of another process, each with a snapshot that is older."""
import http.server
import os
import sqlite3
import sys
import threading
import time

lock = threading.Lock()
ticks = 0


def opened(name):
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma wal_autocheckpoint=20")
    return connection


def seen(connection):
    return connection.execute("select count(*), coalesce(sum(n), 0) from t").fetchone()


def reading(connection):
    connection.execute("begin")
    return seen(connection)


def other_process(name, asked, answers):
    connection = opened(name)
    reading(connection)
    for line in asked:
        if line == "anew\n":
            connection.execute("commit")
            reading(connection)
        print(seen(connection), file=answers, flush=True)
    os._exit(0)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(str(answer(self.path)).encode())

    def log_message(self, *_):
        pass


def other(line):
    print(line, file=ask, flush=True)
    return answered.readline().strip()


def answer(path):
    if path == "/ticks":
        return ticks
    if path == "/add":
        count, _ = seen(writer)
        writer.execute("insert into t values (?, randomblob(2000))", (count,))
        if count % 10 == 9:
            writer.execute("commit")
            reader.execute("commit")
            reading(reader)
            other("anew")
            writer.execute("begin immediate")
    whole = writer.execute("pragma integrity_check").fetchone()
    blobs = writer.execute("select hex(sum(length(b))), max(hex(substr(b, 1, 8))) from t").fetchone()
    return seen(writer), seen(reader), other("same"), whole, blobs, writer.in_transaction


def tick():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1


name = sys.argv[1] + "/database"
opened(name).execute("create table t (n integer, b blob)")
there, here = os.pipe(), os.pipe()
if os.fork() == 0:
    other_process(name, os.fdopen(there[0]), os.fdopen(here[1], "w"))
ask, answered = os.fdopen(there[1], "w"), os.fdopen(here[0])
writer, reader = opened(name), opened(name)
reading(reader)
writer.execute("begin immediate")
threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
