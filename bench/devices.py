"""TLS 1.2 devices for bench_storm.erl, by OpenSSL: each keeps its session and offers it when it comes back.

Usage: devices.py COUNT, then a line with the ports of the nodes for each storm on standard input. All devices connect,
each to a random one, some at a time. Answers with a line: resumed connections, failed ones, nanoseconds in all, and
nanoseconds of CPU time that this process has used for it.
"""

import concurrent.futures
import random
import socket
import ssl
import struct
import sys
import time

AT_ONCE = 8
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def connect(tls, port, session):
    """Connects, and returns whether the session was resumed, and the one there is now."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A port in TIME_WAIT for each connection would use them all up.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        with tls.wrap_socket(raw, session=session) as connection:
            if connection.recv(1) != b"x":
                raise OSError("the server did not answer")
            return connection.session_reused, connection.session


def storm(pool, tls, sessions, ports):
    order = list(range(len(sessions)))
    random.shuffle(order)

    def come_back(device):
        try:
            resumed, sessions[device] = connect(tls, random.choice(ports), sessions[device])
            return (resumed, False)
        except OSError:
            return (False, True)

    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    results = list(pool.map(come_back, order))
    took = (time.perf_counter_ns() - wall, time.process_time_ns() - cpu)
    return (sum(resumed for resumed, _ in results), sum(failed for _, failed in results), *took)


def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    sessions = [None] * int(sys.argv[1])
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for line in sys.stdin:
            print(*storm(pool, tls, sessions, [int(port) for port in line.split()]), flush=True)


main()
