"""Publishes one block, written from BLOCK.md and ARCHIVE.md alone: with a socket, and
no client library. It prints what the server answers.

    python3 publish.py HOST PORT PARTITIONS USER MSG-ID ID...
"""

import json
import socket
import struct
import sys


def archive(id, user):
    """An order_rejected of P0."""
    id, user, source = id.encode(), user.encode(), b"publish.py"
    order, instrument, reason = b"o-17", b"cu2512", "资金不足".encode()
    now = 1729468800123456789
    fields = struct.pack("<IIIIq", len(order), len(instrument), len(reason), 4003, now)
    strings = id + user + source + order + instrument + reason
    size = 26 + len(fields) + len(strings)
    header = struct.pack("<3sBIIHHqBB", b"QXN", 1, size, len(source), len(id), len(user), now, 2, 0)
    return header + fields + strings


def fnv1a(b):
    h = 14695981039346656037
    for c in b:
        h = (h ^ c) * 1099511628211 % 2**64
    return h


host, port, partitions, user, msg_id, *ids = sys.argv[1:]
subject = "notification.P0.%d" % (fnv1a(user.encode()) % int(partitions))
data = b"".join(archive(id, user) for id in ids)
header = "NATS/1.0\r\nNats-Msg-Id: %s\r\nNotification-Entries: %d\r\n\r\n" % (msg_id, len(ids))
header = header.encode()

with socket.create_connection((host, int(port)), timeout=60) as s:
    lines = s.makefile("rb")
    assert lines.readline().startswith(b"INFO ")
    s.sendall(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n')
    s.sendall(b"SUB _INBOX.publish-py 1\r\n")
    s.sendall(b"HPUB %s _INBOX.publish-py %d %d\r\n" % (subject.encode(), len(header), len(header) + len(data)))
    s.sendall(header + data + b"\r\n")
    while True:
        words = lines.readline().split()
        assert words and words[0] != b"-ERR", words
        if words[0] == b"PING":
            s.sendall(b"PONG\r\n")
        if words[0] in (b"MSG", b"HMSG"):
            answer = lines.read(int(words[-1]))
            break

ack = json.loads(answer)
assert "error" not in ack, ack
print(ack["stream"], ack["seq"], "duplicate" if ack.get("duplicate") else "new")
