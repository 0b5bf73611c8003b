/* Two connections over TLS 1.2 or DTLS 1.2, the second with the session of the first. Arguments: tls or dtls, the port. */

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

static void check(int is_good, const char *call)
{
    if (!is_good) {
        fprintf(stderr, "%s failed\n", call);
        exit(1);
    }
}

static WOLFSSL_SESSION *connect_once(WOLFSSL_CTX *context, int is_datagram, int port, WOLFSSL_SESSION *session)
{
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, is_datagram ? SOCK_DGRAM : SOCK_STREAM, 0);
    WOLFSSL *ssl = wolfSSL_new(context);
    char answer[6];

    check(fd >= 0 && ssl != NULL, "new");
    check(connect(fd, (struct sockaddr *)&peer, sizeof peer) == 0, "connect");
    if (is_datagram)
        check(wolfSSL_dtls_set_peer(ssl, &peer, sizeof peer) == WOLFSSL_SUCCESS, "dtls_set_peer");
    check(wolfSSL_set_fd(ssl, fd) == WOLFSSL_SUCCESS, "set_fd");
    if (session != NULL)
        check(wolfSSL_set_session(ssl, session) == WOLFSSL_SUCCESS, "set_session");
    check(wolfSSL_connect(ssl) == WOLFSSL_SUCCESS, "handshake");
    printf("reused %d\n", wolfSSL_session_reused(ssl));
    check(wolfSSL_write(ssl, "hello\n", 6) == 6, "write");
    check(wolfSSL_read(ssl, answer, sizeof answer) > 0, "read");
    session = wolfSSL_get1_session(ssl);
    wolfSSL_shutdown(ssl);
    wolfSSL_free(ssl);
    close(fd);
    return session;
}

int main(int argc, char **argv)
{
    WOLFSSL_SESSION *session = NULL;
    WOLFSSL_CTX *context;
    int is_datagram;

    if (argc != 3)
        return 2;
    is_datagram = strcmp(argv[1], "dtls") == 0;
    wolfSSL_Init();
    context = wolfSSL_CTX_new(is_datagram ? wolfDTLSv1_2_client_method() : wolfTLSv1_2_client_method());
    check(context != NULL, "CTX_new");
    wolfSSL_CTX_set_verify(context, WOLFSSL_VERIFY_NONE, NULL);
    for (int n = 0; n < 2; n++)
        session = connect_once(context, is_datagram, atoi(argv[2]), session);
    return 0;
}
