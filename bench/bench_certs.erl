%% @doc Certificates for the benchmarks: servers with an ECDSA P-256 and an RSA 2048 key, and a client whose
%% certificate is filled up to the size the benchmarks ask for.
-module(bench_certs).

-include_lib("public_key/include/public_key.hrl").

-export([make/2, server_opts/2, pieces/1, like/2]).

-export_type([key/0, piece/0]).

-type key() :: ecdsa | rsa.

-type piece() :: binary() | {random | hex, Bytes :: pos_integer()}.
%% A part of a client's certificate: bytes that all certificates of one authority share, or random bytes that differ.

-define(DEVICE, "urn:device:").
-define(DEVICE_DIGITS, 32).
%% Sixteen bytes. The first byte makes the number positive.
-define(SERIAL, 16#5a000000000000000000000000000001).
%% A certificate ends with its signature, which has at least this many bytes.
-define(SIGNATURE_BYTES, 64).

%% @doc Writes everything as PEM files into `Dir'. The client's certificate has about `ClientBytes' bytes.
-spec make(Dir :: file:filename(), ClientBytes :: pos_integer()) -> ok.
make(Dir, ClientBytes) ->
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Root = public_key:pkix_test_root_cert("Rekindle bench CA", [{digest, sha256}, key(ecdsa)]),
    {Cert0, _} = client(Root, 0),
    {ClientCert, ClientKey} = client(Root, max(0, ClientBytes - byte_size(Cert0))),
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

%% @doc The options of a server in `Dir' with a certificate of type `Key', which may demand a client certificate.
-spec server_opts(Dir :: file:filename(), {key(), ClientCert :: boolean()}) -> [ssl:tls_server_option()].
server_opts(Dir, {Key, ClientCert}) ->
    [{certfile, pem(Dir, atom_to_list(Key))}, {keyfile, pem(Dir, atom_to_list(Key))}] ++
        case ClientCert of
            false -> [];
            true -> [{verify, verify_peer}, {fail_if_no_peer_cert, true}, {cacertfile, pem(Dir, "ca")}]
        end.

%% ---- other clients' certificates ----

%% @doc A client's certificate in pieces. Serial number, key, device number and signature differ between clients.
-spec pieces(public_key:der_encoded()) -> [piece()].
pieces(Cert) ->
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{serialNumber = Serial, subjectPublicKeyInfo = KeyInfo}} =
        public_key:pkix_decode_cert(Cert, otp),
    #'OTPSubjectPublicKeyInfo'{subjectPublicKey = #'RSAPublicKey'{modulus = Modulus}} = KeyInfo,
    {Device, Prefix} = binary:match(Cert, <<?DEVICE>>),
    Own = [
        number(Serial, Cert),
        number(Modulus, Cert),
        {Device + Prefix, hex, ?DEVICE_DIGITS div 2},
        {byte_size(Cert) - ?SIGNATURE_BYTES, random, ?SIGNATURE_BYTES}
    ],
    cut(lists:sort(Own), 0, Cert).

%% A number without its first byte, which determines its length and sign.
number(Number, Cert) ->
    {Place, Length} = binary:match(Cert, binary:encode_unsigned(Number)),
    {Place + 1, random, Length - 1}.

cut([], _, <<>>) ->
    [];
cut([], _, Rest) ->
    [Rest];
cut([{Place, Kind, Bytes} | Others], From, Cert) ->
    {Common, Own} = split_binary(Cert, Place - From),
    Length = length_of({Kind, Bytes}),
    <<_:Length/binary, Rest/binary>> = Own,
    [Common, {Kind, Bytes} | cut(Others, Place + Length, Rest)].

length_of({random, Bytes}) -> Bytes;
length_of({hex, Bytes}) -> 2 * Bytes.

%% @doc The certificate of the `N'th client.
-spec like([piece()], non_neg_integer()) -> iodata().
like(Pieces, N) ->
    Zeros = <<0:(8 * lists:sum([Bytes || {_, Bytes} <- Pieces]))>>,
    like_with(Pieces, crypto:crypto_one_time(aes_128_ctr, <<0:128>>, <<N:64, 0:64>>, Zeros, true)).

like_with([], <<>>) ->
    [];
like_with([{Kind, Bytes} | Pieces], Random) ->
    <<Own:Bytes/binary, Rest/binary>> = Random,
    [own(Kind, Own) | like_with(Pieces, Rest)];
like_with([Common | Pieces], Random) ->
    [Common | like_with(Pieces, Random)].

own(random, Bytes) -> Bytes;
own(hex, Bytes) -> binary:encode_hex(Bytes).

%% ---- the authority ----

client(#{key := RootKey} = Root, FillerBytes) ->
    {Cert, Key} = identity(Root, client, rsa, device(FillerBytes)),
    #'OTPCertificate'{tbsCertificate = Tbs} = public_key:pkix_decode_cert(Cert, otp),
    {public_key:pkix_sign(Tbs#'OTPTBSCertificate'{serialNumber = ?SERIAL}, RootKey), Key}.

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

%% A device's name: its number, and an address that is the same for all devices, cut to `FillerBytes' characters.
device(FillerBytes) ->
    Address = "?revocation=http://crl.example.org/devices/authority-of-the-second-line/current.crl",
    Filler = lists:sublist(lists:append(lists:duplicate(FillerBytes div length(Address) + 1, Address)), FillerBytes),
    Uri = ?DEVICE ++ lists:duplicate(?DEVICE_DIGITS, $0) ++ Filler,
    [#'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = [{uniformResourceIdentifier, Uri}], critical = false}].

write(Dir, Name, Cert, {KeyType, Key}) ->
    write_pem(Dir, Name, [{'Certificate', Cert, not_encrypted}, {KeyType, Key, not_encrypted}]).

write_pem(Dir, Name, Entries) ->
    ok = file:write_file(pem(Dir, Name), public_key:pem_encode(Entries)).

pem(Dir, Name) ->
    filename:join(Dir, Name ++ ".pem").
