#!/usr/bin/env python3
"""A foreign node agent for the interoperability tests: speaks ZDS with nothing but the standard library.

  node_agent.py SOCKET

Takes one proxy at a time. Its orders come on stdin, one a line:

  add UID NAMESPACE NAME ACCOUNT PATH   a pod, and where its network namespace can be opened
  keep UID                              a pod whose namespace cannot be opened just now
  delete UID
  snapshot                              all pods have been named
  hang-up                               ends the connection and waits for the next one

Every observation is one line of JSON on stdout: `hello` with the version that the proxy speaks, then for each order
`ack` with the proxy's complaint, empty if it has none.
"""

import json
import os
import socket
import sys

PACKET_BYTES = 4096
TIMEOUT_SECONDS = 20

# Field numbers of WorkloadRequest.
ADD, DELETE, SNAPSHOT_SENT, KEEP = 1, 2, 3, 5


def say(**facts):
    print(json.dumps(facts), flush=True)


def number(value):
    """A varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(key, content):
    """A field with a length: text, or a message that is encoded already."""
    content = content.encode() if isinstance(content, str) else content
    return number(key << 3 | 2) + number(len(content)) + content


def fields(message):
    """The fields of a message: numbers and byte strings."""
    at = 0

    def take_number():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key, kind = divmod(take_number(), 8)
        if kind == 0:
            yield key, take_number()
        elif kind == 2:
            length = take_number()
            yield key, message[at : at + length]
            at += length
        else:
            sys.exit(f"a field of kind {kind}: {message.hex()}")


def order(words):
    """The request, and the namespace that goes with it."""
    match words:
        case ["add", uid, namespace, name, account, path]:
            info = field(1, name) + field(2, namespace) + field(3, account)
            return field(ADD, field(1, uid) + field(2, info)), path
        case ["keep", uid]:
            return field(KEEP, field(1, uid)), None
        case ["delete", uid]:
            return field(DELETE, field(2, uid)), None
        case ["snapshot"]:
            return field(SNAPSHOT_SENT, b""), None
    sys.exit(f"no such order: {words}")


def tell(proxy, request, path):
    namespaces = [os.open(path, os.O_RDONLY)] if path else []
    socket.send_fds(proxy, [request], namespaces)
    for namespace in namespaces:
        os.close(namespace)
    acks = [content for key, content in fields(proxy.recv(PACKET_BYTES)) if key == 1]
    errors = [error.decode() for ack in acks for key, error in fields(ack) if key == 1]
    say(ack="".join(errors) if acks else None)


def attend(proxy):
    """Follows the orders until one of them ends the connection; false at the end of all."""
    proxy.settimeout(TIMEOUT_SECONDS)
    say(hello=dict(fields(proxy.recv(PACKET_BYTES))).get(1))
    for line in sys.stdin:
        words = line.split()
        if words == ["hang-up"]:
            return True
        tell(proxy, *order(words))
    return False


def main():
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    listener.listen()
    say(listening=sys.argv[1])
    while True:
        proxy, _ = listener.accept()
        with proxy:
            if not attend(proxy):
                return


main()
