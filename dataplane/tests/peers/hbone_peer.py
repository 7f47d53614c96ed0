#!/usr/bin/env python3
"""A foreign HBONE peer for the interoperability tests, on OpenSSL and the `h2` package.

  hbone_peer.py serve --listen IP:PORT --cert F --key F --ca F [--status N]
      Takes tunnels; answers each CONNECT with the status, and echoes the bytes of accepted ones.
  hbone_peer.py ask --connect IP:PORT --authority HOST:PORT --cert F --key F --ca F [--method M] [--send TEXT]
      Sends one request; prints the peer's settings, the status, and what came back until the end of the stream.

Every observation is one line of JSON on stdout.
"""

import argparse
import json
import socket
import ssl
import sys
import threading

import h2.config
import h2.connection
import h2.events
import h2.exceptions

READ_BYTES = 65536
TIMEOUT_SECONDS = 20


def say(**facts):
    print(json.dumps(facts), flush=True)


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def tls_context(options, server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(options.cert, options.key)
    context.load_verify_locations(options.ca)
    context.set_alpn_protocols(["h2"])
    return context


def http2(client_side):
    config = h2.config.H2Configuration(
        client_side=client_side,
        header_encoding="utf-8",
        # CONNECT has neither :scheme nor :path, which the package would refuse.
        validate_inbound_headers=False,
        validate_outbound_headers=False,
    )
    return h2.connection.H2Connection(config)


def describe(connection):
    names = [value for kind, value in (connection.getpeercert() or {}).get("subjectAltName", ()) if kind == "URI"]
    return {
        "tls": connection.version(),
        "cipher": connection.cipher()[0],
        "alpn": connection.selected_alpn_protocol(),
        "peer": names,
    }


class Echo:
    """One accepted tunnel: echoes each stream, no faster than the peer's windows allow."""

    def __init__(self, connection, status):
        self.connection = connection
        self.status = status
        self.http = http2(client_side=False)
        self.waiting = {}
        self.ended = set()

    def run(self):
        self.http.initiate_connection()
        self.flush()
        while data := self.connection.recv(READ_BYTES):
            for event in self.http.receive_data(data):
                self.take(event)
            for stream in list(self.waiting):
                self.send(stream)
            self.flush()

    def take(self, event):
        if isinstance(event, h2.events.RequestReceived):
            say(event="request", stream=event.stream_id, headers=dict(event.headers))
            accepted = self.status == 200
            self.http.send_headers(event.stream_id, [(":status", str(self.status))], end_stream=not accepted)
            if accepted:
                self.waiting[event.stream_id] = b""
        elif isinstance(event, h2.events.DataReceived):
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id in self.waiting:
                self.waiting[event.stream_id] += event.data
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            say(event="reset", stream=event.stream_id, code=int(event.error_code))
            self.waiting.pop(event.stream_id, None)

    def send(self, stream):
        rest = self.waiting[stream]
        while rest:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size, len(rest))
            if room <= 0:
                break
            self.http.send_data(stream, rest[:room])
            rest = rest[room:]
        self.waiting[stream] = rest
        if not rest and stream in self.ended:
            self.http.end_stream(stream)
            del self.waiting[stream]

    def flush(self):
        self.connection.sendall(self.http.data_to_send())


def serve_one(raw, context, status):
    try:
        connection = context.wrap_socket(raw, server_side=True)
    except (ssl.SSLError, OSError) as error:
        say(event="refused", error=str(error))
        return
    say(event="tunnel", **describe(connection))
    try:
        Echo(connection, status).run()
    except (ssl.SSLError, OSError, h2.exceptions.ProtocolError) as error:
        say(event="broken", error=repr(error))


def serve(options):
    context = tls_context(options, server=True)
    with socket.create_server(address(options.listen)) as listener:
        say(event="listening", at=options.listen)
        while True:
            raw, _ = listener.accept()
            threading.Thread(target=serve_one, args=(raw, context, options.status), daemon=True).start()


def ask(options):
    raw = socket.create_connection(address(options.connect), TIMEOUT_SECONDS)
    try:
        connection = tls_context(options, server=False).wrap_socket(raw)
    except ssl.SSLError as error:
        say(event="refused", error=str(error))
        return 3
    say(event="tunnel", **describe(connection))
    http = http2(client_side=True)
    http.initiate_connection()
    headers = [(":method", options.method), (":authority", options.authority)]
    if options.method != "CONNECT":
        headers += [(":scheme", "https"), (":path", "/")]
    http.send_headers(1, headers)
    connection.sendall(http.data_to_send())
    received = b""
    while True:
        data = connection.recv(READ_BYTES)
        if not data:
            say(event="closed", received=received.decode("latin-1"))
            return 4
        for event in http.receive_data(data):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                say(event="settings", values={int(k): v.new_value for k, v in event.changed_settings.items()})
            elif isinstance(event, h2.events.ResponseReceived):
                status = int(dict(event.headers)[":status"])
                say(event="response", status=status)
                if status == 200:
                    http.send_data(1, options.send.encode(), end_stream=True)
            elif isinstance(event, h2.events.DataReceived):
                http.acknowledge_received_data(event.flow_controlled_length, 1)
                received += event.data
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                reset = isinstance(event, h2.events.StreamReset)
                say(event="end", reset=reset, received=received.decode("latin-1"))
                return 0
        connection.sendall(http.data_to_send())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True)
    for role in ("serve", "ask"):
        command = roles.add_parser(role)
        for name in ("--cert", "--key", "--ca"):
            command.add_argument(name, required=True)
        if role == "serve":
            command.add_argument("--listen", required=True)
            command.add_argument("--status", type=int, default=200)
        else:
            command.add_argument("--connect", required=True)
            command.add_argument("--authority", required=True)
            command.add_argument("--method", default="CONNECT")
            command.add_argument("--send", default="")
    options = parser.parse_args()
    return serve(options) if options.role == "serve" else ask(options)


if __name__ == "__main__":
    sys.exit(main())
