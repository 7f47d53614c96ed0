#!/usr/bin/env python3
"""A WebSocket application and its client, on the `websockets` package.

  websocket_peer.py serve --listen IP:PORT
      Gives back every message; ends with code 4000 when asked to.
  websocket_peer.py ask --connect IP:PORT --path PATH
      Says texts and bytes of many sizes, and pings; checks what comes back and how the other side ends.

The last line of `ask` is `good`.
"""

import argparse
import asyncio
import os

import websockets.asyncio.client
import websockets.asyncio.server
import websockets.exceptions

TIMEOUT_SECONDS = 20
SIZES = [0, 1, 125, 126, 65_535, 65_536, 1_000_003]


async def give_back(connection):
    async for message in connection:
        if message == "end":
            await connection.close(4000, "as you wish")
            return
        await connection.send(message)


async def serve(host, port):
    async with websockets.asyncio.server.serve(give_back, host, port, max_size=None):
        print("listening", flush=True)
        await asyncio.Future()


async def ask(host, port, path):
    async with asyncio.timeout(TIMEOUT_SECONDS):
        uri = f"ws://{host}:{port}{path}"
        async with websockets.asyncio.client.connect(uri, max_size=None) as connection:
            for size in SIZES:
                for message in (os.urandom(size), "x" * size):
                    await connection.send(message)
                    assert await connection.recv() == message, size
            await (await connection.ping(b"there?"))
            # Many at once, answered in order.
            for number in range(100):
                await connection.send(str(number))
            for number in range(100):
                assert await connection.recv() == str(number)
            await connection.send("end")
            try:
                await connection.recv()
                raise AssertionError("the connection goes on")
            except websockets.exceptions.ConnectionClosed as closed:
                assert closed.rcvd.code == 4000 and closed.rcvd.reason == "as you wish", closed
        # A message in many pieces, and the end from this side.
        async with websockets.asyncio.client.connect(uri, max_size=None) as connection:
            await connection.send(["a", "b" * 70_000, "c"])
            assert await connection.recv() == "a" + "b" * 70_000 + "c"
    print("good", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "ask"])
    parser.add_argument("--listen")
    parser.add_argument("--connect")
    parser.add_argument("--path", default="/")
    options = parser.parse_args()
    host, port = (options.listen or options.connect).rsplit(":", 1)
    if options.role == "serve":
        asyncio.run(serve(host, int(port)))
    else:
        asyncio.run(ask(host, int(port), options.path))


if __name__ == "__main__":
    main()
