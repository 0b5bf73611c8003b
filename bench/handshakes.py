"""TLS 1.2 clients of OpenSSL's, for bench_handshakes.erl.

Usage: handshakes.py CLIENT.pem, then a line for each task on standard input: `PORT full|resumed COUNT`, for one
connection after the other, or `PORT resumed COUNT RATE` for so many that are due in each second, whether those before
are through or not. Answers with a line of nanoseconds, one number for each connection, from before the TCP connection,
or from when it was due, until the first byte that the server sends after the handshake. Resumed connections offer
sessions of earlier full ones by turns.
"""

import concurrent.futures
import socket
import ssl
import struct
import sys
import time

SESSIONS_A_PORT = 30
CONNECTIONS_AT_ONCE = 8
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def context(certificate):
    result = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    result.check_hostname = False
    result.verify_mode = ssl.CERT_NONE
    result.maximum_version = ssl.TLSVersion.TLSv1_2
    result.load_cert_chain(certificate)
    return result


def connect(tls, port, session, due=None):
    """Connects, and returns how long it took and the session."""
    start = due or time.perf_counter_ns()
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


def connect_when_due(tls, port, session, due):
    time.sleep(max(0, due - time.perf_counter_ns()) / 1e9)
    return connect(tls, port, session, due)[0]


def connect_all(tls, port, offers, rate):
    if rate is None:
        return [connect(tls, port, offer)[0] for offer in offers]
    start = time.perf_counter_ns()
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS_AT_ONCE) as pool:
        due = [start + n * 1_000_000_000 // rate for n in range(len(offers))]
        return list(pool.map(lambda offer, at: connect_when_due(tls, port, offer, at), offers, due))


def main():
    tls = context(sys.argv[1])
    sessions = {}
    for line in sys.stdin:
        port, kind, count, *rate = line.split()
        kept = sessions.setdefault(port, [])
        while len(kept) < SESSIONS_A_PORT:
            kept.append(connect(tls, int(port), None)[1])
        offers = [kept[n % len(kept)] if kind == "resumed" else None for n in range(int(count))]
        print(*connect_all(tls, int(port), offers, int(rate[0]) if rate else None), flush=True)


main()
