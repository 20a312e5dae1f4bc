"""An application for gunicorn: its processes count together in memory that they share."""
import multiprocessing
import os
import threading
import time

count = multiprocessing.Value("q", 0)
threads = {}
ticks = 0


def tick():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1


def application(environ, start_response):
    # A thread of each worker, begun after the fork.
    if os.getpid() not in threads:
        threads[os.getpid()] = threading.Thread(target=tick, daemon=True)
        threads[os.getpid()].start()
    path = environ["PATH_INFO"]
    if path == "/add":
        with count.get_lock():
            count.value += 1
    told = {"/ticks": ticks, "/who": os.getpid()}.get(path, count.value)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(told).encode()]
