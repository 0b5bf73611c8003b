/* Two connections over TLS 1.2 or DTLS 1.2, the second with the session of the first. Arguments: tls or dtls, the port. */

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <mbedtls/timing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int result, const char *call)
{
    if (result < 0) {
        fprintf(stderr, "%s: -0x%04x\n", call, -result);
        exit(1);
    }
}

static void connect_once(mbedtls_ssl_config *config, int is_datagram, const char *port, mbedtls_ssl_session *session, int has_session)
{
    mbedtls_net_context net;
    mbedtls_ssl_context ssl;
    mbedtls_timing_delay_context timer;
    unsigned char answer[6];
    int result;

    mbedtls_net_init(&net);
    mbedtls_ssl_init(&ssl);
    check(mbedtls_net_connect(&net, "127.0.0.1", port, is_datagram ? MBEDTLS_NET_PROTO_UDP : MBEDTLS_NET_PROTO_TCP), "connect");
    check(mbedtls_ssl_setup(&ssl, config), "setup");
    check(mbedtls_ssl_set_hostname(&ssl, "localhost"), "set_hostname");
    mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, mbedtls_net_recv_timeout);
    mbedtls_ssl_set_timer_cb(&ssl, &timer, mbedtls_timing_set_delay, mbedtls_timing_get_delay);
    if (has_session)
        check(mbedtls_ssl_set_session(&ssl, session), "set_session");
    check(mbedtls_ssl_handshake(&ssl), "handshake");
    check(mbedtls_ssl_write(&ssl, (const unsigned char *)"hello\n", 6), "write");
    do
        result = mbedtls_ssl_read(&ssl, answer, sizeof answer);
    while (result == MBEDTLS_ERR_SSL_WANT_READ || result == MBEDTLS_ERR_SSL_WANT_WRITE);
    check(result, "read");
    mbedtls_ssl_session_free(session);
    mbedtls_ssl_session_init(session);
    check(mbedtls_ssl_get_session(&ssl, session), "get_session");
    mbedtls_ssl_close_notify(&ssl);
    mbedtls_ssl_free(&ssl);
    mbedtls_net_free(&net);
}

int main(int argc, char **argv)
{
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ssl_config config;
    mbedtls_ssl_session session;
    int is_datagram;

    if (argc != 3)
        return 2;
    is_datagram = strcmp(argv[1], "dtls") == 0;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random);
    mbedtls_ssl_config_init(&config);
    mbedtls_ssl_session_init(&session);
    check(mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0), "seed");
    check(mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT,
                                      is_datagram ? MBEDTLS_SSL_TRANSPORT_DATAGRAM : MBEDTLS_SSL_TRANSPORT_STREAM,
                                      MBEDTLS_SSL_PRESET_DEFAULT), "config_defaults");
    mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_NONE);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
    mbedtls_ssl_conf_max_version(&config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
    for (int n = 0; n < 2; n++)
        connect_once(&config, is_datagram, argv[2], &session, n > 0);
    return 0;
}
