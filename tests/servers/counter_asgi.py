"""An application for uvicorn: tasks of one loop, a pool of threads, a child process whose
pipes the loop watches."""
import asyncio
import hashlib
import sys

count = ticks = 0
child = None


async def tick():
    global ticks
    while True:
        await asyncio.sleep(0.01)
        ticks += 1


async def begin():
    global child
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-uc", "s = 0\nwhile True: s += int(input()); print(s)",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    asyncio.get_running_loop().ticking = asyncio.create_task(tick())
    asyncio.get_running_loop().turn = asyncio.Lock()


async def summed(number):
    async with asyncio.get_running_loop().turn:
        child.stdin.write(b"%d\n" % number)
        return (await child.stdout.readline()).decode().strip()


async def application(scope, receive, send):
    global count
    if scope["type"] == "lifespan":
        await receive()
        await begin()
        await send({"type": "lifespan.startup.complete"})
        return await receive()
    path = scope["path"]
    if path == "/add":
        count += 1
    told = str(ticks)
    if path != "/ticks":
        total = await summed(count if path == "/add" else 0)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(b"%d" % count * 100_000).hexdigest())
        told = f"{count} {total} {digest}"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": told.encode()})
