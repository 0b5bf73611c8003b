"""Fetches a page twice over TLS 1.2 with the BoringSSL of curl_cffi. Arguments: the port."""

import sys

from curl_cffi import Curl, CurlOpt

TLS_1_2_ONLY = 6 | 6 << 16

curl = Curl()
for _ in range(2):
    curl.setopt(CurlOpt.URL, f"https://127.0.0.1:{sys.argv[1]}/".encode())
    curl.setopt(CurlOpt.SSLVERSION, TLS_1_2_ONLY)
    curl.setopt(CurlOpt.SSL_VERIFYPEER, 0)
    curl.setopt(CurlOpt.SSL_VERIFYHOST, 0)
    curl.setopt(CurlOpt.WRITEFUNCTION, lambda data: len(data))
    curl.perform()
