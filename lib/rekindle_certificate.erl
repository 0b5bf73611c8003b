%% @private Client certificates: which ones an operator selects, and what to show of one.
-module(rekindle_certificate).

-include_lib("public_key/include/public_key.hrl").

-export([selectors/1, summary/1, shown_name/1, from_hex/1]).

%% Tags of DER.
-define(INTEGER, 16#02).
-define(SEQUENCE, 16#30).
%% The tag of a certificate's version, which may be missing.
-define(VERSION, 16#A0).

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

%% @doc The selected certificates in the form of the native side.
-spec selectors(rekindle_admin:certificate_selector() | [rekindle_admin:certificate_selector()]) ->
    {ok, [rekindle_nif:certificate_selector()]} | {error, {bad_certificate, Line :: string()}}.
selectors([First | _] = Several) when not is_integer(First), length(Several) > 0 ->
    try
        {ok, lists:append([Some || One <- Several, {ok, Some} <- [good(selectors(One))]])}
    catch
        throw:Error -> Error
    end;
selectors({issuer, Issuer}) ->
    of_issuer(Issuer, fun(Name) -> {issuer, Name} end);
selectors({issuer, Issuer, Serial}) when is_integer(Serial) ->
    of_issuer(Issuer, fun(Name) -> {issuer, Name, integer_content(Serial)} end);
selectors(Given) ->
    case fingerprint(Given) of
        {ok, Hash, Fingerprint} ->
            {ok, [{Hash, Fingerprint}]};
        error ->
            case ders(Given) of
                [] -> bad();
                Ders -> numbers(Ders)
            end
    end.

%% By issuer and serial number, because the client can change the fingerprint: of an ECDSA signature (r, s) everyone can make the
%% signature (r, n - s), which is as valid.
numbers(Ders) ->
    try
        {ok, [{issuer, Issuer, integer_content(Serial)} || Der <- Ders, {Serial, Issuer, _Subject} <- [fields(Der)]]}
    catch
        error:_ -> bad()
    end.

good({ok, _} = Ok) -> Ok;
good({error, _} = Error) -> throw(Error).

%% The native side recognizes the name in whatever string type, case and spacing.
of_issuer(Issuer, Selector) ->
    case issuer_names(Issuer) of
        {ok, [_ | _] = Names} -> {ok, [Selector(Name) || Name <- Names]};
        _ -> bad()
    end.

%% A number in two's complement, in as few bytes as possible.
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

%% @doc The fields of a certificate that operators see. Those that cannot be read are named `unreadable', and the serial number
%% is `undefined' then.
-spec summary(public_key:der_encoded() | undefined) -> rekindle_admin:peer() | undefined.
summary(undefined) ->
    undefined;
summary(Der) ->
    {Serial, Issuer, Subject} =
        try
            fields(Der)
        catch
            error:_ -> {undefined, <<>>, <<>>}
        end,
    Fingerprint = lists:join($:, [binary:encode_hex(<<Byte>>) || <<Byte>> <= crypto:hash(sha256, Der)]),
    #{
        subject => shown_name(Subject, <<"unreadable">>),
        issuer => shown_name(Issuer, <<"unreadable">>),
        serial => Serial,
        fingerprint => iolist_to_binary(Fingerprint)
    }.

%% The serial number, and the issuer's and the subject's names in DER. They are read as the native side reads them:
%% `public_key' refuses a certificate if it cannot decode some other field.
fields(Der) ->
    [{?SEQUENCE, Certificate, _}] = values(Der),
    [{?SEQUENCE, Signed, _} | _] = values(Certificate),
    Fields = [Field || {Tag, _, _} = Field <- values(Signed), Tag =/= ?VERSION],
    [{?INTEGER, Number, _}, _Algorithm, {?SEQUENCE, _, Issuer}, _Validity, {?SEQUENCE, _, Subject} | _] = Fields,
    Bytes = byte_size(Number),
    <<Serial:Bytes/signed-unit:8>> = Number,
    {Serial, Issuer, Subject}.

%% The values in DER that follow each other here: of each the tag, the content, and all its bytes.
values(<<>>) -> [];
values(<<_, 0:1, Length:7, _/binary>> = Ders) -> values(Ders, 2, Length);
values(<<_, 1:1, Digits:7, Length:Digits/unit:8, _/binary>> = Ders) -> values(Ders, 2 + Digits, Length).

values(<<Tag, _/binary>> = Ders, HeaderBytes, Length) ->
    {Whole, Rest} = split_binary(Ders, HeaderBytes + Length),
    [{Tag, binary:part(Whole, HeaderBytes, Length), Whole} | values(Rest)].

%% @doc A name in DER, as openssl writes it.
-spec shown_name(binary()) -> binary().
shown_name(Der) ->
    shown_name(Der, <<"an authority whose name cannot be read">>).

shown_name(Der, Unreadable) ->
    try
        shown(pubkey_cert_records:transform(public_key:der_decode('Name', Der), decode))
    catch
        error:_ -> Unreadable
    end.

%% @doc Decodes hexadecimal digits, and ignores colons between them.
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

%% The certificates in DER, PEM or a record, as DER. The list is empty if the term is none of these.
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

%% The list is empty if one of them is no certificate.
certificates(Ders) ->
    try
        _ = [public_key:pkix_decode_cert(Der, otp) || Der <- Ders],
        Ders
    catch
        error:_ -> []
    end.

%% The subject of an authority's own certificate is the issuer of the certificates it makes.
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

%% The name may be decoded as in OTP's records or as in plain ones.
encoded(Name) ->
    lists:append([
        try
            [public_key:der_encode('Name', Plain(Name))]
        catch
            error:_ -> []
        end
     || Plain <- [fun(Otp) -> pubkey_cert_records:transform(Otp, encode) end, fun(As) -> As end]
    ]).

%% RFC 4514 writes the last name first. We keep the order that openssl prints, so that people can compare.
shown({rdnSequence, Names}) ->
    unicode:characters_to_binary(lists:join(",", [shown_attribute(Attribute) || Name <- Names, Attribute <- Name])).

shown_attribute({_, Type, Value}) ->
    [maps:get(Type, ?NAMES, shown_oid(Type)), "=", shown_value(Value)].

shown_oid(Type) ->
    lists:join(".", [integer_to_list(Number) || Number <- tuple_to_list(Type)]).

%% Characters beyond the first 65,536 are two units each.
shown_value({bmpString, Units}) ->
    text(<<<<(number(Unit)):16>> || Unit <- Units>>, {utf16, big});
shown_value({_, Value}) ->
    shown_value(Value);
shown_value(Characters) when is_list(Characters) ->
    text([number(Character) || Character <- Characters], unicode);
shown_value(Value) ->
    text(Value, unicode).

%% `public_key' turns a character that needs more than one byte into a tuple of four.
number({A, B, C, D}) -> binary:decode_unsigned(<<A, B, C, D>>);
number(Number) -> Number.

text(Value, Encoding) ->
    try unicode:characters_to_binary(Value, Encoding) of
        Text when is_binary(Text) -> Text;
        _ -> io_lib:format("~0tp", [Value])
    catch
        error:badarg -> io_lib:format("~0tp", [Value])
    end.
