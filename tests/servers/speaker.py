"""An app with TCP connections, each told what to do with its own, one order after the other."""
import os, socket, struct, sys

where = sys.argv[1]
orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
orders.bind(where)
listeners = {}
made, sent, read = {}, {}, {}


def pattern(begin, count):
    """What either side sends: each byte tells where it stands, as far as a byte can."""
    first = begin % 256
    return (bytes(range(256)) * (count // 256 + 2))[first : first + count]


def accept(name, ip):
    made[name] = listeners[ip].accept()[0]
    sent[name] = read[name] = 0


def listen(ip):
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    listeners[ip] = one = socket.socket(family, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((ip, 0))
    one.listen(20)
    return one.getsockname()[1]


def connect(name, ip, port):
    made[name] = socket.create_connection((ip, int(port)))
    sent[name] = read[name] = 0


def send(name, count):
    made[name].sendall(pattern(sent[name], int(count)))
    sent[name] += int(count)


def fill(name):
    """As much as goes."""
    made[name].setblocking(False)
    begin = sent[name]
    try:
        while True:
            sent[name] += made[name].send(pattern(sent[name], 65536))
    except BlockingIOError:
        pass
    made[name].setblocking(True)
    return sent[name] - begin


def take(name, count):
    count = int(count)
    while count:
        got = made[name].recv(min(count, 65536))
        assert got, f"{name}: it has ended, {count} bytes before"
        assert got == pattern(read[name], len(got)), f"{name}: other bytes from {read[name]} on"
        read[name] += len(got)
        count -= len(got)


def end(name):
    got = made[name].recv(1)
    assert got == b"", f"{name}: it has not ended"


def state(name):
    return made[name].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def shut(name):
    made[name].shutdown(socket.SHUT_WR)


def close(name):
    made.pop(name).close()


def option(name, level, number, value):
    made[name].setsockopt(int(level), int(number), int(value))


def options(name):
    names = [(1, 9), (6, 1), (6, 4), (6, 18), (1, 2), (0, 1)]
    return " ".join(str(made[name].getsockopt(level, number)) for level, number in names)


doing = {f.__name__: f for f in (accept, listen, connect, send, fill, take, end, state, shut, close, option, options)}
while True:
    order, back = orders.recvfrom(65536)
    name, *words = order.decode().split()
    try:
        answer = f"ok {doing[name](*words)}"
    except Exception as error:
        answer = f"failed: {error!r}"
    orders.sendto(answer.encode(), back)
