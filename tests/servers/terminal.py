# A command on a pseudo-terminal of its own, as script(1) and terminal multiplexers
# keep it: what comes in through the fifo `keys` is typed, what it writes goes to the
# file `screen`. Without a command, a shell.
import fcntl
import os
import pty
import select
import struct
import sys
import termios

os.chdir(sys.argv[1])
command = sys.argv[2:] or ["bash", "--norc", "--noprofile", "-i"]
pid, master = pty.fork()
if pid == 0:
    os.environ.update(TERM="xterm", HOME=os.getcwd(), LC_ALL="C.UTF-8")
    os.execvp(command[0], command)
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
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
