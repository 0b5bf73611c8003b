%% @doc Certificates for the benchmarks: servers with an ECDSA P-256 and an RSA 2048 key, and a client whose
%% certificate is filled up to the size the benchmarks ask for.
-module(bench_certs).

-include_lib("public_key/include/public_key.hrl").

-export([make/2, server_opts/2]).

-export_type([key/0]).

-type key() :: ecdsa | rsa.

%% @doc Writes everything as PEM files into `Dir'. The client's certificate has about `ClientBytes' bytes.
-spec make(Dir :: file:filename(), ClientBytes :: pos_integer()) -> ok.
make(Dir, ClientBytes) ->
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Root = public_key:pkix_test_root_cert("Rekindle bench CA", [{digest, sha256}, key(ecdsa)]),
    {Cert0, _} = identity(Root, client, rsa, filler(0)),
    {ClientCert, ClientKey} = identity(Root, client, rsa, filler(max(0, ClientBytes - byte_size(Cert0)))),
    write(Dir, "client", ClientCert, ClientKey),
    [
        begin
            {Cert, PrivateKey} = identity(Root, server, Key, []),
            write(Dir, atom_to_list(Key), Cert, PrivateKey)
        end
     || Key <- [ecdsa, rsa]
    ],
    #{cert := RootCert} = Root,
    write_pem(Dir, "ca", [{'Certificate', RootCert, not_encrypted}]).

%% @doc The options of a server in `Dir' that answers with `Key', and demands a client certificate or not.
-spec server_opts(Dir :: file:filename(), {key(), ClientCert :: boolean()}) -> [ssl:tls_server_option()].
server_opts(Dir, {Key, ClientCert}) ->
    [{certfile, pem(Dir, atom_to_list(Key))}, {keyfile, pem(Dir, atom_to_list(Key))}] ++
        case ClientCert of
            false -> [];
            true -> [{verify, verify_peer}, {fail_if_no_peer_cert, true}, {cacertfile, pem(Dir, "ca")}]
        end.

identity(Root, Role, Key, Extensions) ->
    Other = chain(Root, [{digest, sha256}, key(ecdsa)]),
    Wanted = chain(Root, [{digest, sha256}, key(Key), {extensions, Extensions}]),
    Chains =
        case Role of
            server -> #{server_chain => Wanted, client_chain => Other};
            client -> #{server_chain => Other, client_chain => Wanted}
        end,
    #{server_config := Server, client_config := Client} = public_key:pkix_test_data(Chains),
    Config =
        case Role of
            server -> Server;
            client -> Client
        end,
    {proplists:get_value(cert, Config), proplists:get_value(key, Config)}.

%% Not a map literal: OTP 25's types forbid the root that its documentation allows.
chain(Root, Peer) ->
    maps:from_list([{root, Root}, {intermediates, []}, {peer, Peer}]).

key(rsa) -> {key, {rsa, 2048, 65537}};
key(ecdsa) -> {key, {namedCurve, secp256r1}}.

%% An address of that many characters.
filler(Bytes) ->
    Uri = "urn:device:" ++ lists:duplicate(max(0, Bytes), $x),
    [#'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = [{uniformResourceIdentifier, Uri}], critical = false}].

write(Dir, Name, Cert, {KeyType, Key}) ->
    write_pem(Dir, Name, [{'Certificate', Cert, not_encrypted}, {KeyType, Key, not_encrypted}]).

write_pem(Dir, Name, Entries) ->
    ok = file:write_file(pem(Dir, Name), public_key:pem_encode(Entries)).

pem(Dir, Name) ->
    filename:join(Dir, Name ++ ".pem").
