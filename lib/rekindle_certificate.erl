%% @private Client certificates: which one an operator means, and what to show of one.
-module(rekindle_certificate).

-include_lib("public_key/include/public_key.hrl").

-export([wanted/1, summary/1, shown_name/1, from_hex/1]).

%% X.520 and RFC 4519 attribute types.
-define(NAMES, #{
    {2, 5, 4, 3} => "CN",
    {2, 5, 4, 5} => "serialNumber",
    {2, 5, 4, 6} => "C",
    {2, 5, 4, 7} => "L",
    {2, 5, 4, 8} => "ST",
    {2, 5, 4, 10} => "O",
    {2, 5, 4, 11} => "OU",
    {0, 9, 2342, 19200300, 100, 1, 1} => "UID",
    {0, 9, 2342, 19200300, 100, 1, 25} => "DC",
    {1, 2, 840, 113549, 1, 9, 1} => "emailAddress"
}).

%% @doc The certificates that are meant, as the native side takes them.
-spec wanted(rekindle_admin:wanted() | [rekindle_admin:wanted()]) ->
    {ok, [rekindle_nif:wanted()]} | {error, {bad_certificate, Line :: string()}}.
wanted([First | _] = Several) when not is_integer(First), length(Several) > 0 ->
    try
        {ok, lists:append([Some || One <- Several, {ok, Some} <- [good(wanted(One))]])}
    catch
        throw:Error -> Error
    end;
wanted({issuer, Issuer}) ->
    of_issuer(Issuer, fun(Name) -> {issuer, Name} end);
wanted({issuer, Issuer, Serial}) when is_integer(Serial) ->
    of_issuer(Issuer, fun(Name) -> {issuer, Name, integer_content(Serial)} end);
wanted(Wanted) ->
    case fingerprint(Wanted) of
        {ok, Hash, Fingerprint} ->
            {ok, [{Hash, Fingerprint}]};
        error ->
            case ders(Wanted) of
                [] -> bad();
                Ders -> {ok, [{sha256, crypto:hash(sha256, Der)} || Der <- Ders]}
            end
    end.

good({ok, _} = Ok) -> Ok;
good({error, _} = Error) -> throw(Error).

%% However certificates have the name, the native side knows it.
of_issuer(Issuer, Wanted) ->
    case issuer_names(Issuer) of
        {ok, [_ | _] = Names} -> {ok, [Wanted(Name) || Name <- Names]};
        _ -> bad()
    end.

%% Two's complement, in as few bytes as it takes.
integer_content(Serial) ->
    integer_content(Serial, 1).

integer_content(Serial, Bytes) ->
    case <<Serial:Bytes/signed-unit:8>> of
        <<Serial:Bytes/signed-unit:8>> = Content -> Content;
        _ -> integer_content(Serial, Bytes + 1)
    end.

bad() ->
    {error,
        {bad_certificate,
            "allowed: a certificate as DER, PEM or record, a SHA-256 or SHA-1 fingerprint, {issuer, Issuer} or "
            "{issuer, Issuer, Serial} with the issuer's certificate or name"}}.

%% @doc What to show of a certificate.
-spec summary(public_key:der_encoded() | undefined) -> rekindle_admin:peer() | undefined.
summary(undefined) ->
    undefined;
summary(Der) ->
    #'OTPCertificate'{tbsCertificate = Certificate} = public_key:pkix_decode_cert(Der, otp),
    #'OTPTBSCertificate'{subject = Subject, issuer = Issuer, serialNumber = Serial} = Certificate,
    Fingerprint = lists:join($:, [binary:encode_hex(<<Byte>>) || <<Byte>> <= crypto:hash(sha256, Der)]),
    #{
        subject => shown(Subject),
        issuer => shown(Issuer),
        serial => Serial,
        fingerprint => iolist_to_binary(Fingerprint)
    }.

%% @doc A name in DER, as openssl writes it.
-spec shown_name(binary()) -> binary().
shown_name(Der) ->
    try
        shown(pubkey_cert_records:transform(public_key:der_decode('Name', Der), decode))
    catch
        error:_ -> <<"an authority whose name cannot be read">>
    end.

%% @doc The bytes that hexadecimal digits stand for; colons between them are passed over.
-spec from_hex(term()) -> {ok, binary()} | error.
from_hex(Digits) ->
    try
        {ok, binary:decode_hex(binary:replace(iolist_to_binary(Digits), <<":">>, <<>>, [global]))}
    catch
        error:_ -> error
    end.

fingerprint(Bytes) when byte_size(Bytes) =:= 32 -> {ok, sha256, Bytes};
fingerprint(Bytes) when byte_size(Bytes) =:= 20 -> {ok, sha, Bytes};
fingerprint(Digits) ->
    case from_hex(Digits) of
        {ok, Bytes} when byte_size(Bytes) =:= 32; byte_size(Bytes) =:= 20 -> fingerprint(Bytes);
        _ -> error
    end.

%% The certificates that DER, PEM or a record stands for, as DER. None if it is none of these.
ders(Record) when is_tuple(Record) ->
    try
        case element(1, Record) of
            'OTPCertificate' -> certificates([public_key:pkix_encode('OTPCertificate', Record, otp)]);
            'Certificate' -> certificates([public_key:der_encode('Certificate', Record)])
        end
    catch
        error:_ -> []
    end;
ders(Text) when is_list(Text) ->
    try
        ders(iolist_to_binary(Text))
    catch
        error:badarg -> []
    end;
ders(<<"-----BEGIN", _/binary>> = Pem) ->
    try
        certificates([Der || {'Certificate', Der, not_encrypted} <- public_key:pem_decode(Pem)])
    catch
        error:_ -> []
    end;
ders(Der) when is_binary(Der) ->
    certificates([Der]);
ders(_) ->
    [].

%% None if one of them is no certificate.
certificates(Ders) ->
    try
        _ = [public_key:pkix_decode_cert(Der, otp) || Der <- Ders],
        Ders
    catch
        error:_ -> []
    end.

%% An authority is called in the certificates it issues what it is called in its own.
issuer_names({rdnSequence, _} = Name) ->
    {ok, lists:usort(encoded(Name))};
issuer_names(Issuer) ->
    case ders(Issuer) of
        [Der] ->
            #'OTPCertificate'{tbsCertificate = Certificate} = public_key:pkix_decode_cert(Der, otp),
            issuer_names(Certificate#'OTPTBSCertificate'.subject);
        _ ->
            error
    end.

%% The name may be as it is in OTP's records or as in plain ones.
encoded(Name) ->
    lists:append([
        try
            [public_key:der_encode('Name', Plain(Name))]
        catch
            error:_ -> []
        end
     || Plain <- [fun(Otp) -> pubkey_cert_records:transform(Otp, encode) end, fun(As) -> As end]
    ]).

%% The last of the names first, as RFC 4514 has it, would be hard to compare with what openssl prints.
shown({rdnSequence, Names}) ->
    unicode:characters_to_binary(lists:join(",", [shown_attribute(Attribute) || Name <- Names, Attribute <- Name])).

shown_attribute({_, Type, Value}) ->
    [maps:get(Type, ?NAMES, shown_oid(Type)), "=", shown_value(Value)].

shown_oid(Type) ->
    lists:join(".", [integer_to_list(Number) || Number <- tuple_to_list(Type)]).

shown_value({_, Value}) -> shown_value(Value);
shown_value(Value) ->
    case unicode:characters_to_binary(Value) of
        Text when is_binary(Text) -> Text;
        _ -> io_lib:format("~0tp", [Value])
    end.
