"""A WebSocket server that echoes, and its client: dispatch_socket.py serve PORT | ask URI HOST"""

import asyncio
import sys

import websockets


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def serve(port):
    async with websockets.serve(echo, "127.0.0.1", port):
        await asyncio.Future()


async def ask(uri, host, hold):
    async with websockets.connect(uri, extra_headers={}, origin=None, host="127.0.0.1", port=int(host)) as socket:
        for number in range(200):
            for message in (f"text {number}", bytes([number]) * number * 40):
                await socket.send(message)
                assert await socket.recv() == message
        # Open and silent for longer than the app's idle time.
        await asyncio.sleep(hold)
        await socket.send("still there?")
        print(await socket.recv())


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2])))
else:
    asyncio.run(ask(sys.argv[2], sys.argv[3], float(sys.argv[4])))
