%% @private The layout of this node's session records. A journal stores the layout with every session, and skips sessions of another
%% layout, because OTP's processes crash if they get a tuple that is not their own record. Nothing is translated from one
%% layout to another.
%%
%% The layout is the list of the record's fields. ssl's version would not do: releases with the same fields share their
%% sessions, and the fields may change under the same version.
%%
%% The fields come from ssl's debug information or, without that, from a table of releases. Both count only if they agree
%% with the loaded code, which is tried with tuples of all sizes. If neither agrees, the layout is ssl's version and a hash
%% of the code.
-module(rekindle_layout).

-export([layout/0, has_server_name/1]).

%% This module has the record, and OTP's cache process uses it.
-define(MODULE_OF_SSL, ssl_session).

%% No release has a session record with this many elements.
-define(MAX_ARITY, 64).

%% Of ssl, in OTP 29.1.2. This counts only where the fields are not known.
-define(FIRST_VERSION_WITH_SERVER_NAME, [11, 7, 8]).

%% The fields of OTP 25 and 27, for installations without debug information. Add a release only if its fields are the same in
%% all its patches.
-define(FIELDS_OF_OTP_25, [
    session_id,
    internal_id,
    peer_certificate,
    own_certificates,
    private_key,
    compression_method,
    cipher_suite,
    master_secret,
    srp_username,
    is_resumable,
    time_stamp,
    ecc,
    sign_alg,
    dh_public_value
]).
-define(FIELDS_OF_OTP_27, (?FIELDS_OF_OTP_25 -- [compression_method])).

%% What ssl's code reveals of the record: how many elements the tuple has, and which of them is the time stamp.
-type shape() :: {Arity :: pos_integer(), StampPlace :: pos_integer()}.

%% @doc The layout. Never fails. To find it takes some milliseconds, once for each version of ssl that is loaded.
-spec layout() -> binary().
layout() ->
    Code = md5(),
    Version = version(),
    case persistent_term:get(?MODULE, undefined) of
        {Code, Version, Layout} ->
            Layout;
        _ ->
            Layout = find(Code, Version),
            persistent_term:put(?MODULE, {Code, Version, Layout}),
            Layout
    end.

%% @doc Whether sessions of this layout have the server name that they were made under. Since they have it, ssl resumes them only
%% under this name.
-spec has_server_name(binary()) -> boolean().
has_server_name(<<"fields:", Fields/binary>>) ->
    lists:member(<<"sni">>, binary:split(Fields, <<",">>, [global]));
has_server_name(<<"ssl-", VersionAndRest/binary>>) ->
    [Version | _] = binary:split(VersionAndRest, <<":">>),
    try
        [binary_to_integer(Number) || Number <- binary:split(Version, <<".">>, [global])] >= ?FIRST_VERSION_WITH_SERVER_NAME
    catch
        error:badarg -> false
    end.

find(Code, Version) ->
    Shape = shape(),
    case [Fields || Fields <- [from_debug_information(Code), from_table(Version)], has_shape(Fields, Shape)] of
        [Fields | _] -> iolist_to_binary(["fields:" | lists:join($,, [atom_to_binary(Field) || Field <- Fields])]);
        [] -> iolist_to_binary(["ssl-", Version, $:, io_lib:format("~0p", [Shape]), $:, binary:encode_hex(Code)])
    end.

%% If the shape is unknown, no list of fields can be checked.
has_shape(Fields, {Arity, StampPlace}) ->
    length(Fields) + 1 =:= Arity andalso lists:nth(StampPlace - 1, Fields) =:= time_stamp;
has_shape(_, unknown) ->
    false.

md5() ->
    try
        ?MODULE_OF_SSL:module_info(md5)
    catch
        error:_ -> <<>>
    end.

version() ->
    case application:get_key(ssl, vsn) of
        {ok, Version} -> unicode:characters_to_binary(Version);
        undefined -> <<"unknown">>
    end.

%% ---- the shape ----

%% ssl accepts session tuples of one arity only, and compares one element with the time.
-spec shape() -> shape() | unknown.
shape() ->
    Now = erlang:monotonic_time(),
    case [Arity || Arity <- lists:seq(2, ?MAX_ARITY), is_taken(setelement(1, erlang:make_tuple(Arity, Now), session))] of
        [Arity] ->
            Empty = setelement(1, erlang:make_tuple(Arity, undefined), session),
            case [Place || Place <- lists:seq(2, Arity), is_taken(setelement(Place, Empty, Now))] of
                [Place] -> {Arity, Place};
                _ -> unknown
            end;
        _ ->
            unknown
    end.

is_taken(Tuple) ->
    try
        ?MODULE_OF_SSL:valid_session(Tuple, 1000) =:= true
    catch
        _:_ -> false
    end.

%% ---- the fields ----

%% The file may have been replaced since the code was loaded: its hash must be that of the loaded code.
from_debug_information(Code) ->
    try
        {_, Beam, _} = code:get_object_code(?MODULE_OF_SSL),
        {ok, {_, Code}} = beam_lib:md5(Beam),
        {ok, {_, [{abstract_code, {raw_abstract_v1, Forms}}]}} = beam_lib:chunks(Beam, [abstract_code]),
        [Fields] = [Fields || {attribute, _, record, {session, Fields}} <- Forms],
        [name(Field) || Field <- Fields]
    catch
        _:_ -> []
    end.

name({typed_record_field, Field, _Type}) -> name(Field);
name(Field) -> element(3, element(3, Field)).

from_table(Version) ->
    case string:lexemes(Version, ".") of
        [<<"10">>, <<"8">> | _] -> ?FIELDS_OF_OTP_25;
        [<<"11">>, <<"2">> | _] -> ?FIELDS_OF_OTP_27;
        _ -> []
    end.
