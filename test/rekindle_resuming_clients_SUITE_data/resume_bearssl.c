/* Two connections over TLS 1.2, the second with the session of the first. Arguments: the port, the server's certificate in DER. */

#include <arpa/inet.h>
#include <bearssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void check(int is_good, const char *call)
{
    if (!is_good) {
        fprintf(stderr, "%s failed\n", call);
        exit(1);
    }
}

static int read_some(void *fd, unsigned char *bytes, size_t length)
{
    ssize_t got = read(*(int *)fd, bytes, length);
    return got > 0 ? (int)got : -1;
}

static int write_some(void *fd, const unsigned char *bytes, size_t length)
{
    ssize_t put = write(*(int *)fd, bytes, length);
    return put > 0 ? (int)put : -1;
}

/* The server's key, which the client takes for good without a look at the certificate that the server sends. */
static const br_x509_pkey *server_key(const char *file)
{
    static br_x509_decoder_context decoder;
    unsigned char bytes[8192];
    FILE *certificate = fopen(file, "rb");
    check(certificate != NULL, file);
    br_x509_decoder_init(&decoder, NULL, NULL);
    br_x509_decoder_push(&decoder, bytes, fread(bytes, 1, sizeof bytes, certificate));
    fclose(certificate);
    check(br_x509_decoder_get_pkey(&decoder) != NULL, "get_pkey");
    return br_x509_decoder_get_pkey(&decoder);
}

static void connect_once(br_ssl_client_context *client, int port, int has_session)
{
    static unsigned char buffer[BR_SSL_BUFSIZE_BIDI];
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    /* Closing waits for the server's close_notify, which need not come. */
    struct timeval timeout = {.tv_sec = 5};
    br_sslio_context io;
    char answer[6];

    check(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) == 0, "socket");
    check(connect(fd, (struct sockaddr *)&peer, sizeof peer) == 0, "connect");
    br_ssl_engine_set_buffer(&client->eng, buffer, sizeof buffer, 1);
    /* It keeps the session of the last connection. */
    check(br_ssl_client_reset(client, "localhost", has_session), "reset");
    br_sslio_init(&io, &client->eng, read_some, &fd, write_some, &fd);
    check(br_sslio_write_all(&io, "hello\n", 6) == 0 && br_sslio_flush(&io) == 0, "handshake");
    check(br_sslio_read_all(&io, answer, sizeof answer) == 0, "read");
    br_sslio_close(&io);
    close(fd);
}

int main(int argc, char **argv)
{
    br_ssl_client_context client;
    br_x509_minimal_context minimal;
    br_x509_knownkey_context known;
    const br_x509_pkey *key;

    if (argc != 3)
        return 2;
    key = server_key(argv[2]);
    check(key->key_type == BR_KEYTYPE_EC, "elliptic curve");
    br_ssl_client_init_full(&client, &minimal, NULL, 0);
    br_x509_knownkey_init_ec(&known, &key->key.ec, BR_KEYTYPE_KEYX | BR_KEYTYPE_SIGN);
    br_ssl_engine_set_x509(&client.eng, &known.vtable);
    for (int n = 0; n < 2; n++)
        connect_once(&client, atoi(argv[1]), n > 0);
    return 0;
}
