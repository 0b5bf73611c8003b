%% @private What the operator wrote in `session_cb_init_args', checked.
-module(rekindle_options).

-export([parse/1, parse_limits/1, to_native/1, missing_keys/0]).

-export_type([options/0, error/0]).

%% `lifetime' in seconds; `undefined' where the operator set none.
-type options() :: #{
    role := server | client,
    max_bytes := pos_integer(),
    max_sessions := pos_integer() | infinity | undefined,
    lifetime := pos_integer() | undefined,
    scope := rekindle:scope(),
    journal := rekindle:journal(),
    expired_certificates := full_handshake | resume,
    crls := [file:name_all()],
    stale_crls := full_handshake | resume
}.

-type error() :: rekindle_admin:bad_option().

-define(DEFAULTS, #{
    role => client,
    max_bytes => 64 * 1024 * 1024,
    max_sessions => undefined,
    lifetime => undefined,
    scope => listener,
    journal => none,
    expired_certificates => full_handshake,
    crls => [],
    stale_crls => full_handshake
}).

%% 366 days in seconds: the store keeps no session longer.
-define(MAX_LIFETIME, 31_622_400).

%% Where the native side counts on 64 bits.
-define(MAX_BOUND, 16#7FFF_FFFF_FFFF_FFFF).

%% An atom is more than any number.
-define(NO_BOUND, 16#FFFF_FFFF_FFFF_FFFF).

-define(SSL_KEYS, [session_cb, server_session_cb, client_session_cb]).

%% @doc Checks the argument of `rekindle:init/1'. Answers the options, defaults filled in, and what in
%% the list is not ours; or one readable line about the first option that is wrong.
-spec parse(term()) -> {ok, options(), Foreign :: [term()]} | {error, error()}.
parse(Args) ->
    try length(Args) of
        _ -> parse(Args, #{}, [])
    catch
        error:badarg -> bad_option(session_cb_init_args, without_role(Args))
    end.

%% As the operator wrote it: ssl puts the role in front.
without_role([{role, _} | Args]) -> Args;
without_role(Args) -> Args.

parse([{Option, Value} | Rest], Given, Foreign) when is_map_key(Option, ?DEFAULTS) ->
    case {is_valid(Option, Value), Given} of
        {false, _} -> bad_option(Option, Value);
        {true, #{Option := _}} -> parse(Rest, Given, Foreign);
        {true, _} -> parse(Rest, Given#{Option => Value}, Foreign)
    end;
parse([Option | _], _, _) when is_map_key(Option, ?DEFAULTS) ->
    bad_option(Option, true);
parse([Other | Rest], Given, Foreign) ->
    parse(Rest, Given, [Other | Foreign]);
parse([], Given, Foreign) ->
    {ok, maps:merge(?DEFAULTS, Given), lists:reverse(Foreign)}.

%% @doc Checks what of a scope is to be changed: some of its bounds and lifetime.
-spec parse_limits(term()) -> {ok, #{max_bytes | max_sessions | lifetime => term()}} | {error, error()}.
parse_limits(Limits) ->
    case parse(Limits) of
        {ok, _, [Foreign | _]} -> bad_option(limit, Foreign);
        {ok, Options, []} -> only_limits(maps:with([Option || {Option, _} <- Limits], Options));
        {error, _} = Error -> Error
    end.

only_limits(#{role := Role}) -> bad_option(limit, {role, Role});
only_limits(#{scope := Scope}) -> bad_option(limit, {scope, Scope});
only_limits(#{journal := _}) -> bad_option(limit, journal);
only_limits(#{crls := _}) -> bad_option(limit, crls);
only_limits(#{stale_crls := Action}) -> bad_option(limit, {stale_crls, Action});
only_limits(#{expired_certificates := Action}) -> bad_option(limit, {expired_certificates, Action});
only_limits(Limits) -> {ok, Limits}.

%% @doc Bounds and lifetime as the native side takes them.
-spec to_native(#{max_bytes := term(), max_sessions := term(), lifetime := term(), _ => _}) -> rekindle_nif:limits().
to_native(#{max_bytes := MaxBytes, max_sessions := MaxSessions, lifetime := Lifetime}) ->
    {min(MaxBytes, ?NO_BOUND), min(MaxSessions, ?NO_BOUND), min(1000 * Lifetime, ?NO_BOUND)}.

%% @doc The keys of ssl's that do not name this cache. Which of them ssl reads depends on the release:
%% `session_cb' up to OTP 27, the other two from OTP 29 on.
-spec missing_keys() -> [atom()].
missing_keys() ->
    [Key || Key <- ?SSL_KEYS, application:get_env(ssl, Key) =/= {ok, rekindle}].

is_valid(role, Role) ->
    Role =:= server orelse Role =:= client;
is_valid(max_bytes, Bytes) ->
    is_integer(Bytes) andalso Bytes > 0 andalso Bytes =< ?MAX_BOUND;
is_valid(max_sessions, Sessions) ->
    Sessions =:= infinity orelse
        (is_integer(Sessions) andalso Sessions > 0 andalso Sessions =< ?MAX_BOUND);
is_valid(lifetime, Seconds) ->
    is_integer(Seconds) andalso Seconds > 0 andalso Seconds =< ?MAX_LIFETIME;
is_valid(scope, listener) ->
    true;
is_valid(scope, Names) ->
    is_map(Names) andalso lists:all(fun is_listener/1, maps:keys(Names));
is_valid(journal, Journal) ->
    rekindle_journal:check(Journal) =:= ok;
is_valid(crls, Paths) ->
    rekindle_crls:is_option(Paths);
is_valid(Option, Action) when Option =:= expired_certificates; Option =:= stale_crls ->
    Action =:= full_handshake orelse Action =:= resume.

is_listener({Ip, Port}) ->
    inet:is_ip_address(Ip) andalso is_port_number(Port);
is_listener(Port) ->
    is_port_number(Port).

is_port_number(Port) ->
    is_integer(Port) andalso Port > 0 andalso Port =< 65535.

%% There may be a password in it.
bad_option(journal, Value) ->
    {error, Why} = rekindle_journal:check(Value),
    {error, {bad_option, "rekindle: option journal: " ++ Why}};
bad_option(Option, Value) ->
    Line = io_lib:format("rekindle: option ~s is ~0tp; allowed: ~s", [Option, Value, allowed(Option)]),
    {error, {bad_option, lists:flatten(Line)}}.

allowed(role) -> "server or client (ssl sets it, leave it out)";
allowed(max_bytes) -> "a positive integer, in bytes";
allowed(max_sessions) -> "a positive integer, or infinity";
allowed(lifetime) -> "a positive integer, in seconds, at most 31622400 (366 days)";
allowed(scope) -> "listener, or a map from Port or {IpAddress, Port} to a name";
allowed(crls) -> "a list of names of files and folders, each a string";
allowed(stale_crls) -> "full_handshake or resume";
allowed(expired_certificates) -> "full_handshake or resume";
allowed(limit) -> "max_bytes, max_sessions and lifetime, each with a value";
allowed(session_cb_init_args) -> "a proper list of options".
