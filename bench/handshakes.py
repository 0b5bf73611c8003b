"""TLS 1.2 clients of OpenSSL's, for bench_handshakes.erl.

Usage: handshakes.py CLIENT.pem, then a line for each task on standard input: `PORT KIND COUNT`, for one connection
after the other, or `PORT KIND COUNT RATE` for RATE connections per second, whether earlier ones have ended or not. Prints a
line of nanoseconds, one number per connection: from before the TCP connection, or from when it was due, until the first
byte that the server sends after the handshake.

Connections of the kind `full` offer no session; those that are `resumed` or `returning` offer the sessions of earlier
full ones, one after the other. A session that does not resume is an error, or, for those that are `returning`, makes
the number negative, and the new session takes its place.
"""

import concurrent.futures
import socket
import ssl
import struct
import sys
import time

SESSIONS_PER_PORT = 30
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
    """Connects, and returns how long it took, whether the session was resumed, and the one there is now."""
    start = due or time.perf_counter_ns()
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A port in TIME_WAIT for each connection would use them all up.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        with tls.wrap_socket(raw, session=session) as connection:
            if connection.recv(1) != b"x":
                raise RuntimeError("the server did not answer")
            took = time.perf_counter_ns() - start
            return took, connection.session_reused, connection.session


class Devices:
    """Clients of one port, with a session each."""

    def __init__(self, tls, port):
        self.tls, self.port = tls, port
        self.sessions = [connect(tls, port, None)[2] for _ in range(SESSIONS_PER_PORT)]

    def come(self, kind, number, due=None):
        if due:
            time.sleep(max(0, due - time.perf_counter_ns()) / 1e9)
        if kind == "full":
            return connect(self.tls, self.port, None, due)[0]
        place = number % SESSIONS_PER_PORT
        took, resumed, self.sessions[place] = connect(self.tls, self.port, self.sessions[place], due)
        if resumed:
            return took
        if kind == "returning":
            return -took
        raise RuntimeError("a session was not resumed")

    def come_all(self, kind, count, rate=None):
        if rate is None:
            return [self.come(kind, number) for number in range(count)]
        start = time.perf_counter_ns()
        due = [start + number * 1_000_000_000 // rate for number in range(count)]
        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS_AT_ONCE) as pool:
            return list(pool.map(lambda number: self.come(kind, number, due[number]), range(count)))


def main():
    tls = context(sys.argv[1])
    devices = {}
    for line in sys.stdin:
        port, kind, *numbers = line.split()
        if port not in devices:
            devices[port] = Devices(tls, int(port))
        print(*devices[port].come_all(kind, *map(int, numbers)), flush=True)


main()
