"""The WebSocket of the package websockets. See obey.js for orders and events."""

import asyncio
import json
import sys

import websockets

HEADERS = "extra_headers" if int(websockets.__version__.split(".")[0]) < 14 else "additional_headers"


def tell(**event):
    print(json.dumps(event), flush=True)


async def connect(sockets, id, open, protocols, user):
    try:
        socket = await websockets.connect(
            open,
            subprotocols=protocols or None,
            max_size=None,
            ping_interval=None,
            **{HEADERS: {"Authorization": "Bearer " + user} if user else {}},
        )
    except Exception as e:
        return tell(id=id, event="close", code=1006, text=str(e))
    sockets[id] = socket
    tell(id=id, event="open", text=socket.subprotocol or "")
    try:
        async for text in socket:
            tell(id=id, event="message", text=text)
    except websockets.ConnectionClosed:
        pass
    del sockets[id]
    tell(id=id, event="close", code=socket.close_code, text=socket.close_reason)


async def main():
    orders = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    sockets, tasks = {}, set()
    async for line in orders:
        order = json.loads(line)
        if "open" in order:
            task = connect(sockets, **order)
        elif order["id"] not in sockets:  # it was closed just now
            continue
        elif "say" in order:
            task = sockets[order["id"]].send(order["say"])
        else:
            task = sockets[order["id"]].close(order["close"])
        tasks.add(asyncio.ensure_future(task))  # only a weak reference is kept by asyncio


asyncio.run(main())
