"""Renews the random numbers of Python and OpenSSL when the app has been restored.

    import reseed    # that is all, in the main thread

    appshot run --after-restore signal:USR2 -- python3 app.py

The signal waits for the process before its first instruction, and Python calls the
handler before the next line of the program.
"""

import os
import random
import signal
import ssl


def renew(*_):
    random.seed()  # from getrandom(2)
    ssl.RAND_add(os.urandom(32), 32)  # OpenSSL 3: its generators, those of all threads


signal.signal(signal.SIGUSR2, renew)
