%% @doc Certificates for tests and the demo, made with `public_key'.
%%
%% One CA signs the server and client certificates; a second, unrelated CA signs a
%% client certificate that a server trusting only the first must refuse. They are valid
%% for a week and belong to `localhost' and 127.0.0.1.
-module(rekindle_certs).

-include_lib("public_key/include/public_key.hrl").

-export([make/1, with_certs/1, series/1, forger/1, shaped/1, sized/1]).

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

%% @doc The configuration of a suite, with all certificates as `certs'.
-spec with_certs(Config) -> Config when Config :: [{atom(), term()}].
with_certs(Config) ->
    {ok, _} = application:ensure_all_started(public_key),
    [{certs, make(proplists:get_value(priv_dir, Config))} | Config].

%% @doc This many client certificates of one authority, as DER, and the authority's own. Half of them have an elliptic
%% curve's key, half an RSA key.
-spec series(pos_integer()) -> {Authority :: public_key:der_encoded(), [public_key:der_encoded()]}.
series(Number) ->
    #{cert := Authority, key := Key} = Ca = root("Rekindle test CA"),
    Samples = {certificate(element(2, pair(Ca, ec))), certificate(element(2, pair(Ca, rsa)))},
    {Authority, [public_key:pkix_sign(device(N, element(1 + N rem 2, Samples)), Key) || N <- lists:seq(0, Number - 1)]}.

certificate({Der, _}) ->
    #'OTPCertificate'{tbsCertificate = Certificate} = public_key:pkix_decode_cert(Der, otp),
    Certificate.

device(N, #'OTPTBSCertificate'{subject = {rdnSequence, Names}} = Certificate) ->
    CommonName = {utf8String, iolist_to_binary(["device-", integer_to_list(N)])},
    %% Not as a record, which has another name in OTP 28 and later.
    Renamed = fun
        (Attribute) when element(2, Attribute) =:= ?'id-at-commonName' -> setelement(3, Attribute, CommonName);
        (Attribute) -> Attribute
    end,
    Certificate#'OTPTBSCertificate'{
        serialNumber = serial(N),
        subject = {rdnSequence, [lists:map(Renamed, Attributes) || Attributes <- Names]}
    }.

%% A serial number of sixteen bytes, as most authorities use.
serial(N) ->
    <<Serial:128>> = <<1:8, N:32, (crypto:strong_rand_bytes(11))/binary>>,
    Serial.

%% @doc Returns a fun that makes hundreds of thousands of certificates from one with an elliptic curve's key. Each has a serial
%% number, a key and a signature of its own, but the signatures are not valid.
-spec forger(public_key:der_encoded()) -> fun((0..16#FFFFFFFF) -> {Serial :: pos_integer(), public_key:der_encoded()}).
forger(Der) ->
    #'OTPTBSCertificate'{serialNumber = Serial} = certificate({Der, none}),
    [Before, Rest] = binary:split(Der, <<Serial:128>>),
    %% A bit string of 66 bytes that begins as an uncompressed point does.
    BeforePoint = <<3, 66, 0, 4>>,
    [Between, <<_:64/binary, AfterPoint/binary>>] = binary:split(Rest, BeforePoint),
    %% The last bytes of the signature's second number.
    AfterPointBytes = byte_size(AfterPoint) - 28,
    <<AfterPointButEnd:AfterPointBytes/binary, _:28/binary>> = AfterPoint,
    fun(N) ->
        Other = serial(N),
        <<Point:64/binary, End:28/binary>> = crypto:strong_rand_bytes(92),
        {Other, iolist_to_binary([Before, <<Other:128>>, Between, BeforePoint, Point, AfterPointButEnd, End])}
    end.

%% @doc Bytes with all that Rekindle reads of a certificate, and `Content' where a certificate has its key. They are in
%% the form that an authority gives a certificate, and no authority has signed them.
-spec shaped(Content :: binary()) -> public_key:der_encoded().
shaped(Content) ->
    Algorithm = tlv(16#30, tlv(6, <<16#2A, 16#86, 16#48, 16#CE, 16#3D, 4, 3, 2>>)),
    Name = tlv(16#30, tlv(16#31, tlv(16#30, [tlv(6, <<16#55, 4, 3>>), tlv(12, "Shaped CA")]))),
    Validity = tlv(16#30, [tlv(23, "500101000000Z"), tlv(23, "491231235959Z")]),
    Signed = tlv(16#30, [tlv(2, <<7>>), Algorithm, Name, Validity, tlv(4, Content)]),
    iolist_to_binary(tlv(16#30, [Signed, Algorithm, tlv(3, <<0, 1, 2, 3>>)])).

tlv(Tag, Content) ->
    Bytes = iolist_size(Content),
    Length =
        if
            Bytes < 16#80 -> <<Bytes>>;
            Bytes < 16#100 -> <<16#81, Bytes>>;
            Bytes < 16#10000 -> <<16#82, Bytes:16>>;
            true -> <<16#83, Bytes:24>>
        end,
    [Tag, Length, Content].

%% @doc Makes such bytes with random content. The result has exactly `Bytes' bytes; the least is 300.
-spec sized(Bytes :: pos_integer()) -> public_key:der_encoded().
sized(Bytes) ->
    Around = byte_size(shaped(<<0:Bytes/unit:8>>)) - Bytes,
    hd([
        Der
     || Less <- lists:seq(Around, Around - 8, -1),
        Der <- [shaped(crypto:strong_rand_bytes(Bytes - Less))],
        byte_size(Der) =:= Bytes
    ]).

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
