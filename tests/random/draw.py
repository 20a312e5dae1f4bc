"""Draws numbers each time it is asked to, by a file: `label=number ...`."""
import os
import random
import ssl
import sys
import time

place, recipe = sys.argv[1:3]
if recipe != "none":
    sys.path.insert(0, recipe)
    import reseed  # noqa: F401


def draw():
    return {
        "random": f"{random.random():.17f}",
        "openssl": ssl.RAND_bytes(16).hex(),
        "kernel": os.urandom(16).hex(),
    }


draw()
open(f"{place}/ready", "w").close()
while True:
    time.sleep(0.01)
    name = open("/run/appshot-instance/name").read().strip()
    if os.path.exists(f"{place}/ask-{name}"):
        words = [f"{label}={number}" for label, number in draw().items()]
        with open(f"{place}/next-{name}", "w") as out:
            out.write(" ".join(words))
        os.rename(f"{place}/next-{name}", f"{place}/drawn-{name}")
        os.remove(f"{place}/ask-{name}")
