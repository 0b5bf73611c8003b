"""TLS 1.2 clients of OpenSSL's, one connection at a time, for bench_handshakes.erl.

Usage: handshakes.py CLIENT.pem, then a line for each task on standard input: `PORT full|resumed COUNT`.
Answers with a line of nanoseconds, one number for each connection, from before the TCP connection until the first
byte that the server sends after the handshake. Resumed connections offer sessions of earlier full ones by turns.
"""

import socket
import ssl
import struct
import sys
import time

SESSIONS_A_PORT = 30
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def context(certificate):
    result = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    result.check_hostname = False
    result.verify_mode = ssl.CERT_NONE
    result.maximum_version = ssl.TLSVersion.TLSv1_2
    result.load_cert_chain(certificate)
    return result


def connect(tls, port, session):
    """Connects, and returns how long it took and the session."""
    start = time.perf_counter_ns()
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A port in TIME_WAIT for each connection would use them all up.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        with tls.wrap_socket(raw, session=session) as connection:
            if connection.recv(1) != b"x":
                raise RuntimeError("the server did not answer")
            took = time.perf_counter_ns() - start
            if connection.session_reused != (session is not None):
                raise RuntimeError(f"resumed: {connection.session_reused}, offered: {session is not None}")
            return took, connection.session


def main():
    tls = context(sys.argv[1])
    sessions = {}
    for line in sys.stdin:
        port, kind, count = line.split()
        kept = sessions.setdefault(port, [])
        while len(kept) < SESSIONS_A_PORT:
            kept.append(connect(tls, int(port), None)[1])
        offers = [kept[n % len(kept)] if kind == "resumed" else None for n in range(int(count))]
        print(*(connect(tls, int(port), offer)[0] for offer in offers), flush=True)


main()
