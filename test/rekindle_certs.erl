%% @doc Certificates for tests and the demo, made afresh with `public_key'.
%%
%% One CA signs the server and client certificates; a second, unrelated CA signs a
%% client certificate that a server trusting only the first must refuse. They are valid
%% for a week and belong to `localhost' and 127.0.0.1.
-module(rekindle_certs).

-include_lib("public_key/include/public_key.hrl").

-export([make/1]).

-export_type([certs/0, identity/0]).

-type identity() :: #{cert := file:filename(), key := file:filename()}.
%% The PEM files of one certificate and its private key.

-type certs() :: #{
    ca := file:filename(),
    other_ca := file:filename(),
    server := #{rsa := identity(), ec := identity()},
    client := #{rsa := identity(), ec := identity()},
    other_client := identity()
}.

%% @doc Makes all certificates, writes them as PEM files into `Dir', which must exist, and
%% returns their names.
-spec make(Dir :: file:filename()) -> certs().
make(Dir) ->
    Ca = root("Rekindle test CA"),
    OtherCa = root("Unrelated test CA"),
    {RsaServer, RsaClient} = pair(Ca, rsa),
    {EcServer, EcClient} = pair(Ca, ec),
    {_, OtherClient} = pair(OtherCa, ec),
    #{
        ca => write_ca(Dir, "ca", Ca),
        other_ca => write_ca(Dir, "other_ca", OtherCa),
        server => #{
            rsa => write(Dir, "server_rsa", RsaServer),
            ec => write(Dir, "server_ec", EcServer)
        },
        client => #{
            rsa => write(Dir, "client_rsa", RsaClient),
            ec => write(Dir, "client_ec", EcClient)
        },
        other_client => write(Dir, "other_client", OtherClient)
    }.

root(Name) ->
    public_key:pkix_test_root_cert(Name, [digest(), key(ec)]).

%% A server and a client certificate, each {DerCertificate, {KeyType, DerKey}}.
pair(Root, KeyType) ->
    Peer = [digest(), key(KeyType)],
    #{server_config := Server, client_config := Client} = public_key:pkix_test_data(#{
        server_chain => chain(Root, [{extensions, server_extensions(KeyType)} | Peer]),
        client_chain => chain(Root, Peer)
    }),
    {cert_and_key(Server), cert_and_key(Client)}.

%% Not a map literal: OTP 25's types forbid the root that its documentation allows.
chain(Root, Peer) ->
    maps:from_list([{root, Root}, {intermediates, []}, {peer, Peer}]).

%% The default is SHA-1, which OpenSSL 3 refuses.
digest() ->
    {digest, sha256}.

key(rsa) ->
    {key, {rsa, 2048, 65537}};
key(ec) ->
    {key, {namedCurve, secp256r1}}.

server_extensions(KeyType) ->
    [
        #'Extension'{
            extnID = ?'id-ce-subjectAltName',
            extnValue = [{dNSName, "localhost"}, {iPAddress, <<127, 0, 0, 1>>}],
            critical = false
        },
        #'Extension'{
            extnID = ?'id-ce-keyUsage',
            extnValue = key_usage(KeyType),
            critical = false
        }
    ].

%% keyEncipherment allows cipher suites with RSA key exchange, which `public_key' leaves out.
key_usage(rsa) ->
    [digitalSignature, keyEncipherment];
key_usage(ec) ->
    [digitalSignature, keyAgreement].

cert_and_key(Config) ->
    {proplists:get_value(cert, Config), proplists:get_value(key, Config)}.

write(Dir, Name, {Cert, {KeyType, Key}}) ->
    #{
        cert => write_pem(Dir, Name ++ "_cert.pem", {'Certificate', Cert, not_encrypted}),
        key => write_pem(Dir, Name ++ "_key.pem", {KeyType, Key, not_encrypted})
    }.

write_ca(Dir, Name, #{cert := Cert}) ->
    write_pem(Dir, Name ++ "_cert.pem", {'Certificate', Cert, not_encrypted}).

write_pem(Dir, Name, Entry) ->
    File = filename:join(Dir, Name),
    ok = file:write_file(File, public_key:pem_encode([Entry])),
    File.
