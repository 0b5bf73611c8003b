%% @private What the operator wrote in `session_cb_init_args', checked.
-module(rekindle_options).

-export([parse/1, parse_limits/1, configured/0, to_native/1, path_to_native/1, missing_keys/0]).

-export_type([options/0, error/0]).

%% `lifetime' in seconds; `undefined' where the operator set none.
-type options() :: #{
    role := server | client,
    max_bytes := pos_integer(),
    max_sessions := pos_integer() | infinity | undefined,
    lifetime := pos_integer() | undefined,
    scope := rekindle:scope(),
    journal := rekindle:journal(),
    node_folder := file:name_all() | undefined,
    wait_for_living_node := boolean(),
    max_log_bytes := pos_integer() | undefined,
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
    node_folder => undefined,
    wait_for_living_node => false,
    max_log_bytes => undefined,
    expired_certificates => full_handshake,
    crls => [],
    stale_crls => full_handshake
}).

-define(LIMITS, [max_bytes, max_sessions, lifetime]).

%% 366 days in seconds: the store keeps no session longer.
-define(MAX_LIFETIME, 31_622_400).

%% Where the native side counts on 64 bits.
-define(MAX_BOUND, 16#7FFF_FFFF_FFFF_FFFF).

%% An atom is more than any number.
-define(NO_BOUND, 16#FFFF_FFFF_FFFF_FFFF).

-define(SSL_KEYS, [session_cb, server_session_cb, client_session_cb]).

-define(SCHEMES, ["redis", "rediss", "valkey", "valkeys"]).
-define(TLS_SCHEMES, ["rediss", "valkeys"]).

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

%% @doc The options that listeners of this node get, if they are opened now.
-spec configured() -> {ok, options(), Foreign :: [term()]} | {error, error()}.
configured() ->
    Args = application:get_env(ssl, session_cb_init_args, []),
    parse(application:get_env(ssl, server_session_cb_init_args, Args)).

%% @doc Checks what of a scope is to be changed: some of its bounds and lifetime.
-spec parse_limits(term()) -> {ok, #{max_bytes | max_sessions | lifetime => term()}} | {error, error()}.
parse_limits(Limits) ->
    case parse(Limits) of
        {ok, _, [Foreign | _]} -> bad_option(limit, Foreign);
        {ok, Options, []} -> only_limits([Option || {Option, _} <- Limits], Options);
        {error, _} = Error -> Error
    end.

only_limits(Given, Options) ->
    case [Option || Option <- Given, not lists:member(Option, ?LIMITS)] of
        [] -> {ok, maps:with(Given, Options)};
        %% Without its value: there may be a password in it.
        [Other | _] -> bad_option(limit, Other)
    end.

%% @doc Bounds and lifetime as the native side takes them.
-spec to_native(#{max_bytes := term(), max_sessions := term(), lifetime := term(), _ => _}) -> rekindle_nif:limits().
to_native(#{max_bytes := MaxBytes, max_sessions := MaxSessions, lifetime := Lifetime}) ->
    {min(MaxBytes, ?NO_BOUND), min(MaxSessions, ?NO_BOUND), min(1000 * Lifetime, ?NO_BOUND)}.

%% @doc A path as the native side takes it.
-spec path_to_native(file:name_all()) -> binary().
path_to_native(Path) ->
    Absolute = filename:absname(Path),
    case is_binary(Absolute) of
        true -> Absolute;
        false -> unicode:characters_to_binary(Absolute, unicode, file:native_name_encoding())
    end.

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
    check_journal(Journal) =:= ok;
is_valid(node_folder, Folder) ->
    is_path(Folder);
is_valid(wait_for_living_node, Value) ->
    is_boolean(Value);
is_valid(max_log_bytes, Bytes) ->
    is_integer(Bytes) andalso Bytes > 0 andalso Bytes =< ?MAX_BOUND;
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
    {error, Why} = check_journal(Value),
    {error, {bad_option, "rekindle: option journal: " ++ Why}};
bad_option(Option, Value) ->
    Line = io_lib:format("rekindle: option ~s is ~0tp; allowed: ~s", [Option, Value, allowed(Option)]),
    {error, {bad_option, lists:flatten(Line)}}.

allowed(role) -> "server or client (ssl sets it, leave it out)";
allowed(max_bytes) -> "a positive integer, in bytes";
allowed(max_sessions) -> "a positive integer, or infinity";
allowed(lifetime) -> "a positive integer, in seconds, at most 31622400 (366 days)";
allowed(scope) -> "listener, or a map from Port or {IpAddress, Port} to a name";
allowed(node_folder) -> "a file name";
allowed(wait_for_living_node) -> "true or false";
allowed(max_log_bytes) -> "a positive integer, in bytes";
allowed(crls) -> "a list of names of files and folders, each a string";
allowed(stale_crls) -> "full_handshake or resume";
allowed(expired_certificates) -> "full_handshake or resume";
allowed(limit) -> "max_bytes, max_sessions and lifetime, each with a value";
allowed(session_cb_init_args) -> "a proper list of options".

%% ---- journals ----

%% An error says what is wrong and what is allowed, without the value: it may have a password in it.
check_journal(Journal) ->
    try
        check(Journal)
    catch
        throw:Why -> {error, lists:flatten(Why)}
    end.

check(none) ->
    ok;
check({folder, Dir}) ->
    check({folder, Dir, []});
check({folder, Dir, Options}) ->
    is_path(Dir) orelse throw("the folder is not a file name"),
    check_each(Options, [key_file]);
check({valkey, Url, Options}) ->
    Scheme = check_url(Url),
    check_each(Options, [
        key_file, user, password_file, password_env, ca_file, tls_cert_file, tls_key_file, cluster, partitions
    ]),
    lists:keymember(key_file, 1, Options) orelse
        throw("key_file is missing; a log on another machine needs the same keys on every node"),
    check_client_certificate([Name || {Name, _} <- Options, Name =:= tls_cert_file orelse Name =:= tls_key_file], Scheme);
check(_) ->
    throw("allowed: none, {folder, Dir}, {folder, Dir, Options} or {valkey, Url, Options}").

check_client_certificate([], _Scheme) ->
    ok;
check_client_certificate(Given, Scheme) ->
    lists:usort(Given) =:= [tls_cert_file, tls_key_file] orelse
        throw("tls_cert_file and tls_key_file belong together; give both or neither"),
    lists:member(Scheme, ?TLS_SCHEMES) orelse
        throw(io_lib:format("tls_cert_file needs TLS; write the URL with one of these schemes: ~ts", [lists:join(", ", ?TLS_SCHEMES)])),
    ok.

check_url(Url) ->
    Parsed =
        case is_text(Url) of
            true -> uri_string:parse(unicode:characters_to_list(Url));
            false -> throw("the URL is no string")
        end,
    case Parsed of
        #{scheme := Scheme, host := [_ | _]} ->
            lists:member(Scheme, ?SCHEMES) orelse
                throw(io_lib:format("the URL's scheme is ~ts; allowed: ~ts", [Scheme, lists:join(", ", ?SCHEMES)])),
            Scheme;
        _ ->
            throw("the URL is none; allowed: for instance valkey://10.0.0.5:6379, or valkeys:// for TLS")
    end.

check_each(Options, Allowed) when is_list(Options) ->
    Names = [Name || {Name, _} <- Options],
    length(Names) =:= length(Options) orelse throw("its options are not {Name, Value}"),
    case [Name || Name <- Names, not lists:member(Name, Allowed)] of
        [] -> ok;
        [Unknown | _] -> throw(io_lib:format("it has no option ~0tp; allowed: ~0tp", [Unknown, Allowed]))
    end,
    lists:foreach(
        fun({Name, Value}) ->
            is_valid_value(Name, Value) orelse throw(io_lib:format("its option ~s has to be ~s", [Name, allowed_value(Name)]))
        end,
        Options
    );
check_each(_, _) ->
    throw("its options are not a list").

is_valid_value(cluster, Value) -> is_boolean(Value);
is_valid_value(partitions, Value) -> is_integer(Value) andalso Value >= 1 andalso Value =< 64;
is_valid_value(Name, Value) when Name =:= user; Name =:= password_env -> is_text(Value);
is_valid_value(_, Value) -> is_path(Value).

allowed_value(cluster) -> "true or false";
allowed_value(partitions) -> "an integer from 1 to 64, the same on every node";
allowed_value(user) -> "a string";
allowed_value(password_env) -> "the name of an environment variable";
allowed_value(_) -> "a file name".

is_text(Value) ->
    try unicode:characters_to_binary(Value) of
        Text -> is_binary(Text) andalso Text =/= <<>>
    catch
        error:_ -> false
    end.

is_path(Value) when is_atom(Value) -> false;
is_path(Value) -> is_text(Value).
