"""A TLS 1.2 peer of OpenSSL, through Python's ssl: tells of the session in one line of JSON, then echoes, or checks an echo.

    tls_peer.py serve|ask PORT CERT KEY CA CIPHERS [no-ems]

`serve` takes one connection and echoes until close_notify; with port 0 it chooses one and prints it first. `ask` sends 1 MB and
compares what comes back.
"""

import hashlib
import json
import socket
import ssl
import sys

SSL_OP_NO_EXTENDED_MASTER_SECRET = 1  # OpenSSL 3.0, openssl/ssl.h
PATIENCE = 60


def context(role, cert, key, ca, ciphers, options):
    side = ssl.PROTOCOL_TLS_SERVER if role == "serve" else ssl.PROTOCOL_TLS_CLIENT
    made = ssl.SSLContext(side)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(ciphers)
    made.set_alpn_protocols(["h2"])
    made.load_cert_chain(cert, key)
    made.load_verify_locations(ca)
    if "no-ems" in options:
        assert ssl.OPENSSL_VERSION_INFO >= (3, 0), ssl.OPENSSL_VERSION
        made.options |= SSL_OP_NO_EXTENDED_MASTER_SECRET
    return made


def tell(what):
    print(json.dumps(what), flush=True)


def session(tls):
    names = [name for kind, name in tls.getpeercert()["subjectAltName"] if kind == "URI"]
    return {"version": tls.version(), "cipher": tls.cipher()[0], "alpn": tls.selected_alpn_protocol(), "peer": names}


def echo(tls):
    while received := tls.recv(70_000):
        tls.sendall(received)


def ask(tls):
    pattern = bytes(at * 7 % 251 for at in range(20_000))
    sent, received = hashlib.sha256(), hashlib.sha256()
    for length in [1, 5, 16_384, 20_000] * 28:
        tls.sendall(pattern[:length])
        sent.update(pattern[:length])
        while length:
            part = tls.recv(length)
            assert part, "the peer ended"
            received.update(part)
            length -= len(part)
    assert sent.digest() == received.digest()


def main():
    role, port, cert, key, ca, ciphers, *options = sys.argv[1:]
    made = context(role, cert, key, ca, ciphers, options)
    if role == "serve":
        with socket.create_server(("127.0.0.1", int(port))) as listener:
            listener.settimeout(PATIENCE)
            tell({"port": listener.getsockname()[1]})
            plain, _ = listener.accept()
    else:
        plain = socket.create_connection(("127.0.0.1", int(port)), PATIENCE)
    plain.settimeout(PATIENCE)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        tls = made.wrap_socket(plain, server_side=role == "serve", suppress_ragged_eofs=False)
    except ssl.SSLError as error:
        tell({"refused": error.reason})
        return
    tell(session(tls))
    (echo if role == "serve" else ask)(tls)
    # Ends our side, and waits for the peer's close_notify.
    tls.unwrap()
    tell({"end": "close_notify"})


main()
