# A shell on a pseudo-terminal of its own, as script(1) and terminal multiplexers
# keep it: what comes in through the fifo `keys` is typed, what the shell writes
# goes to the file `screen`.
import os
import pty
import select
import sys

os.chdir(sys.argv[1])
pid, master = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
keys = os.open("keys", os.O_RDWR)
screen = os.open("screen", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
while True:
    ready, _, _ = select.select([keys, master], [], [])
    if keys in ready:
        os.write(master, os.read(keys, 4096))
    if master in ready:
        try:
            os.write(screen, os.read(master, 4096))
        except OSError:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
