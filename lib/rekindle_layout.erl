%% @private How this node's ssl lays out its session records. A journal names the layout of every session in it: a session
%% of another layout is skipped, because OTP's processes crash over a tuple that is not their own record.
%%
%% The layout is the list of the record's fields, and not ssl's version: releases with the same fields share their
%% sessions, and a record whose fields changed under the same version has another layout. Nothing is translated
%% from one layout to another.
%%
%% The fields are read from ssl's debug information, or from a table for releases that come without it. Both are only
%% believed where they agree with what the code does that is loaded: it is tried which tuples it takes. Where they do not,
%% the layout is ssl's version with a hash of the code.
-module(rekindle_layout).

-export([layout/0]).

%% It knows the record, and is used by OTP's cache process.
-define(MODULE_OF_SSL, ssl_session).

%% More elements than a session record has in any release.
-define(MAX_ARITY, 64).

%% The fields of releases without debug information, by major and minor version of ssl: those of OTP 25 and 27. More
%% releases are added here once their fields are known for all their patches.
-define(FIELDS_OF_OTP_27, [
    session_id, internal_id, peer_certificate, own_certificates, private_key, cipher_suite, master_secret, srp_username,
    is_resumable, time_stamp, ecc, sign_alg, dh_public_value
]).
-define(FIELDS_OF_OTP_25, [
    session_id, internal_id, peer_certificate, own_certificates, private_key, compression_method, cipher_suite, master_secret,
    srp_username, is_resumable, time_stamp, ecc, sign_alg, dh_public_value
]).

%% What of a record its code tells: how many elements the tuple has, and which of them is the time stamp.
-type shape() :: {Arity :: pos_integer(), StampPlace :: pos_integer()}.

%% @doc The layout. Never fails. It is found once for each ssl that is loaded, in some milliseconds.
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

find(Code, Version) ->
    Shape = shape(),
    case [Fields || Fields <- [from_debug_information(Code), from_table(Version)], has_shape(Fields, Shape)] of
        [Fields | _] -> iolist_to_binary(["fields:" | lists:join($,, [atom_to_binary(Field) || Field <- Fields])]);
        [] -> iolist_to_binary(["ssl-", Version, $:, io_lib:format("~0p", [Shape]), $:, binary:encode_hex(Code)])
    end.

%% Without a shape nothing is known of what the code takes.
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

%% ---- what the code takes ----

%% Of the tuples that could be a session, ssl takes one arity only, and compares one element with the time.
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

%% ---- what the fields are called ----

%% Of the code that is loaded, and not of a file that was put in its place since.
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
