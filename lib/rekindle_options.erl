%% @private Checks what the operator wrote into ssl's environment: `session_cb_init_args' and the keys that name the cache.
%%
%% The schema says which options there are. Checks, errors, defaults, suggestions, and the table in docs/options.md follow from it.
-module(rekindle_options).

-export([parse/1, parse_limits/1, configured/0, limits/1, to_native/1, path_to_native/1]).
-export([schema/0, notation/1, unknown/1, missing_keys/0, misspelt_keys/0, args_key/0]).

-export_type([options/0, error/0, type/0]).

%% `lifetime' is in seconds. An option is `undefined' if the operator did not set it and it has no default of its own.
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

-type type() ::
    role | bytes | sessions | seconds | boolean | path | paths | text | variable | partitions | action | scope | journal.
%% The type of an option's value.

-define(LIMITS, [max_bytes, max_sessions, lifetime]).

%% 366 days in seconds: the store keeps no session longer.
-define(MAX_LIFETIME, 31_622_400).

%% The native side takes these bounds as signed numbers of 64 bits.
-define(MAX_BOUND, 16#7FFF_FFFF_FFFF_FFFF).

%% `min/2' turns `infinity' into this, because an atom compares as larger than any number.
-define(NO_BOUND, 16#FFFF_FFFF_FFFF_FFFF).

-define(SSL_KEYS, [session_cb, server_session_cb, client_session_cb]).
-define(ARGS_KEYS, [session_cb_init_args, server_session_cb_init_args, client_session_cb_init_args]).

-define(SCHEMES, ["redis", "rediss", "valkey", "valkeys"]).
-define(TLS_SCHEMES, ["rediss", "valkeys"]).

%% @doc All options: name, type and default. With the default `undefined', ssl's environment or another option decides.
-spec schema() -> [{atom(), type(), Default :: term()}].
schema() ->
    [
        {role, role, client},
        {max_bytes, bytes, 64 * 1024 * 1024},
        {max_sessions, sessions, undefined},
        {lifetime, seconds, undefined},
        {journal, journal, none},
        {node_folder, path, undefined},
        {wait_for_living_node, boolean, false},
        {max_log_bytes, bytes, undefined},
        {expired_certificates, action, full_handshake},
        {crls, paths, []},
        {stale_crls, action, full_handshake},
        {scope, scope, listener}
    ].

%% The options of a journal: name and type.
journal_schema(folder) ->
    [{key_file, path}];
journal_schema(valkey) ->
    [
        {key_file, path},
        {user, text},
        {password_file, path},
        {password_env, variable},
        {ca_file, path},
        {tls_cert_file, path},
        {tls_key_file, path},
        {cluster, boolean},
        {partitions, partitions}
    ].

defaults() ->
    maps:from_list([{Option, Default} || {Option, _, Default} <- schema()]).

type_of(Option) ->
    {Option, Type, _} = lists:keyfind(Option, 1, schema()),
    Type.

%% @doc The type as the documentation writes it.
-spec notation(type()) -> string().
notation(role) -> "server | client";
notation(bytes) -> "pos_integer()";
notation(sessions) -> "pos_integer() | infinity";
notation(seconds) -> "Seconds";
notation(boolean) -> "boolean()";
notation(path) -> "Dir";
notation(paths) -> "[Path]";
notation(action) -> "full_handshake | resume";
notation(scope) -> "listener | #{Port => Name}";
notation(journal) -> "none | {folder, Dir} | {folder, Dir, Options} | {valkey, Url, Options}".

%% The type as an error explains it.
allowed(role) -> "server or client (ssl sets it, leave it out)";
allowed(bytes) -> "a positive integer, in bytes";
allowed(sessions) -> "a positive integer, or infinity";
allowed(seconds) -> "a positive integer, in seconds, at most 31622400 (366 days)";
allowed(boolean) -> "true or false";
allowed(path) -> "a file name";
allowed(paths) -> "a list of names of files and folders, each a string";
allowed(text) -> "a string";
allowed(variable) -> "the name of an environment variable";
allowed(partitions) -> "an integer from 1 to 64, the same on every node";
allowed(action) -> "full_handshake or resume";
allowed(scope) -> "listener, or a map from Port or {IpAddress, Port} to a name".

accepts(role, Value) -> lists:member(Value, [server, client]);
accepts(bytes, Value) -> is_within(Value, ?MAX_BOUND);
accepts(sessions, Value) -> Value =:= infinity orelse is_within(Value, ?MAX_BOUND);
accepts(seconds, Value) -> is_within(Value, ?MAX_LIFETIME);
accepts(boolean, Value) -> is_boolean(Value);
accepts(path, Value) -> is_path(Value);
accepts(paths, Value) -> is_list_of(fun is_path/1, Value);
accepts(text, Value) -> is_text(Value);
accepts(variable, Value) -> is_text(Value);
accepts(partitions, Value) -> is_within(Value, 64);
accepts(action, Value) -> lists:member(Value, [full_handshake, resume]);
accepts(scope, listener) -> true;
accepts(scope, Names) -> is_map(Names) andalso lists:all(fun is_listener/1, maps:keys(Names));
accepts(journal, Value) -> check_journal(Value) =:= ok.

is_within(Value, Max) ->
    is_integer(Value) andalso Value > 0 andalso Value =< Max.

is_listener({Ip, Port}) ->
    inet:is_ip_address(Ip) andalso is_within(Port, 65535);
is_listener(Port) ->
    is_within(Port, 65535).

is_list_of(IsElement, List) ->
    try
        lists:all(IsElement, List)
    catch
        error:_ -> false
    end.

is_text(Value) ->
    try unicode:characters_to_binary(Value) of
        Text -> is_binary(Text) andalso Text =/= <<>>
    catch
        error:_ -> false
    end.

is_path(Value) ->
    not is_atom(Value) andalso is_text(Value) andalso
        binary:match(unicode:characters_to_binary(Value), <<0>>) =:= nomatch.

%% @doc Checks the argument of `rekindle:init/1'. Returns the options with defaults filled in, and the elements of the list that
%% Rekindle does not know; or one readable line about the first option that is wrong.
-spec parse(term()) -> {ok, options(), Foreign :: [term()]} | {error, error()}.
parse(Args) ->
    try length(Args) of
        _ -> parse(Args, #{}, [])
    catch
        error:badarg -> bad_option(session_cb_init_args, without_role(Args))
    end.

%% The arguments as the operator wrote them: ssl puts the role in front.
without_role([{role, _} | Args]) -> Args;
without_role(Args) -> Args.

parse([], Given, Foreign) ->
    {ok, maps:merge(defaults(), Given), lists:reverse(Foreign)};
parse([Arg | Rest], Given, Foreign) ->
    {Option, Value} = option(Arg),
    case lists:keyfind(Option, 1, schema()) of
        false ->
            parse(Rest, Given, [Arg | Foreign]);
        {_, Type, _} ->
            case accepts(Type, Value) of
                true -> parse(Rest, maps:merge(#{Option => Value}, Given), Foreign);
                false -> bad_option(Option, Value)
            end
    end.

%% An atom alone is the short form of `true'.
option({Option, Value}) -> {Option, Value};
option(Option) -> {Option, true}.

%% @doc The options that a listener gets if it is opened now.
-spec configured() -> {ok, options(), Foreign :: [term()]} | {error, error()}.
configured() ->
    parse(application:get_env(ssl, args_key(), [])).

%% @doc The key of ssl's environment that has these options.
-spec args_key() -> session_cb_init_args | server_session_cb_init_args.
args_key() ->
    case application:get_env(ssl, server_session_cb_init_args) of
        {ok, _} -> server_session_cb_init_args;
        undefined -> session_cb_init_args
    end.

%% @doc Checks new bounds or a new lifetime of a scope.
-spec parse_limits(term()) -> {ok, #{max_bytes | max_sessions | lifetime => term()}} | {error, error()}.
parse_limits(Limits) ->
    case parse(Limits) of
        {ok, _, [Foreign | _]} -> bad_option(limit, Foreign);
        {ok, Options, []} -> only_limits([Option || {Option, _} <- lists:map(fun option/1, Limits)], Options);
        {error, _} = Error -> Error
    end.

only_limits(Given, Options) ->
    case [Option || Option <- Given, not lists:member(Option, ?LIMITS)] of
        [] -> {ok, maps:with(Given, Options)};
        %% Without the option's value, which may contain a password.
        [Other | _] -> bad_option(limit, Other)
    end.

%% @doc The same options with a scope's bounds and lifetime, which ssl's environment decides if the options do not.
-spec limits(options()) -> #{max_bytes := term(), max_sessions := term(), lifetime := term(), _ => _}.
limits(Options) ->
    #{lifetime := SslLifetime} = ssl_config:pre_1_3_session_opts(server),
    Options#{max_sessions := max_sessions(Options), lifetime := lifetime(Options, SslLifetime)}.

max_sessions(#{max_sessions := undefined}) ->
    case application:get_env(ssl, session_cache_server_max) of
        {ok, Max} when is_integer(Max), Max > 0 -> Max;
        _ -> infinity
    end;
max_sessions(#{max_sessions := Max}) ->
    Max.

%% If ssl's lifetime is 0, no session may be resumed.
lifetime(_Options, SslLifetime) when SslLifetime =< 0 -> 0;
lifetime(#{lifetime := undefined}, SslLifetime) -> SslLifetime;
lifetime(#{lifetime := Lifetime}, _SslLifetime) -> Lifetime.

%% @doc Bounds and lifetime in the form of the native side.
-spec to_native(#{max_bytes := term(), max_sessions := term(), lifetime := term(), _ => _}) -> rekindle_nif:limits().
to_native(#{max_bytes := MaxBytes, max_sessions := MaxSessions, lifetime := Lifetime}) ->
    {min(MaxBytes, ?NO_BOUND), min(MaxSessions, ?NO_BOUND), min(1000 * Lifetime, ?NO_BOUND)}.

%% @doc A path in the form of the native side.
-spec path_to_native(file:name_all()) -> binary().
path_to_native(Path) ->
    Absolute = filename:absname(Path),
    case is_binary(Absolute) of
        true -> Absolute;
        false -> unicode:characters_to_binary(Absolute, unicode, file:native_name_encoding())
    end.

%% @doc The keys of ssl that do not name this cache. The release decides which of them ssl reads: `session_cb' up to the first
%% releases of OTP 27 and 28, the other two later.
-spec missing_keys() -> [atom()].
missing_keys() ->
    [Key || Key <- ?SSL_KEYS, application:get_env(ssl, Key) =/= {ok, rekindle}].

%% @doc The keys of ssl's environment that look like misspelt ones, and the key that was probably meant.
-spec misspelt_keys() -> [{Key :: atom(), Meant :: atom()}].
misspelt_keys() ->
    Known = ?SSL_KEYS ++ ?ARGS_KEYS,
    [
        {Key, Meant}
     || {Key, _} <- application:get_all_env(ssl), not lists:member(Key, Known), Meant <- similar(Key, Known)
    ].

%% @doc The names of unknown options, each with the known option that it resembles. Values are left out, because one may be a
%% password.
-spec unknown(Foreign :: [term()]) -> [unicode:chardata()].
unknown(Foreign) ->
    Options = [Option || {Option, _, _} <- schema()],
    [named(Option, Options) || Option <- Foreign].

named(Option, Options) when is_tuple(Option), tuple_size(Option) > 0, is_atom(element(1, Option)) ->
    named(element(1, Option), Options);
named(Option, Options) when is_atom(Option) -> [io_lib:format("~0tp", [Option]), suggestion(Option, Options)];
named(_, _) ->
    "...".

suggestion(Name, Known) ->
    [io_lib:format(" (did you mean ~s?)", [Meant]) || Meant <- similar(Name, Known)].

%% The known name that is most similar, if it is similar enough.
similar(Name, Known) when is_atom(Name) ->
    Text = atom_to_list(Name),
    {Distance, Nearest} = lists:min([{distance(Text, atom_to_list(Other)), Other} || Other <- Known]),
    [Nearest || Distance =< max(1, length(Text) div 4)];
similar(_, _) ->
    [].

%% The Levenshtein distance: how many characters have to be added, removed or replaced to turn one text into the other.
distance(One, Other) ->
    lists:last(lists:foldl(fun(Char, Row) -> next_row(Char, Other, Row) end, lists:seq(0, length(Other)), One)).

next_row(Char, Other, [Diagonal | _] = Row) ->
    next_row(Char, Other, Row, [Diagonal + 1]).

next_row(_, [], _, Done) ->
    lists:reverse(Done);
next_row(Char, [OtherChar | Other], [Diagonal, Above | Row], [Left | _] = Done) ->
    Replaced =
        case Char of
            OtherChar -> Diagonal;
            _ -> Diagonal + 1
        end,
    next_row(Char, Other, [Above | Row], [lists:min([Replaced, Above + 1, Left + 1]) | Done]).

%% Without the value, which may contain a password.
bad_option(journal, Value) ->
    {error, Why} = check_journal(Value),
    {error, {bad_option, "rekindle: option journal: " ++ Why}};
bad_option(limit, Value) ->
    bad_option(limit, Value, "max_bytes, max_sessions and lifetime, each with a value");
bad_option(session_cb_init_args, Value) ->
    bad_option(session_cb_init_args, Value, "a proper list of options");
bad_option(Option, Value) ->
    bad_option(Option, Value, allowed(type_of(Option))).

bad_option(Option, Value, Allowed) ->
    Line = io_lib:format("rekindle: option ~s is ~0tp; allowed: ~s", [Option, Value, Allowed]),
    {error, {bad_option, lists:flatten(Line)}}.

%% ---- journals ----

%% An error says what is wrong and what is allowed. It leaves out the value, which may contain a password.
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
    check_each(Options, journal_schema(folder));
check({valkey, Url, Options}) ->
    Scheme = check_url(Url),
    check_each(Options, journal_schema(valkey)),
    lists:keymember(key_file, 1, Options) orelse
        throw("key_file is missing; nodes that share a log need a file with the same keys"),
    check_client_certificate([Name || {Name, _} <- Options, Name =:= tls_cert_file orelse Name =:= tls_key_file], Scheme);
check(_) ->
    throw("allowed: none, {folder, Dir}, {folder, Dir, Options} or {valkey, Url, Options}").

check_client_certificate([], _Scheme) ->
    ok;
check_client_certificate(Given, Scheme) ->
    lists:usort(Given) =:= [tls_cert_file, tls_key_file] orelse
        throw("tls_cert_file and tls_key_file belong together; give both or neither"),
    lists:member(Scheme, ?TLS_SCHEMES) orelse
        throw(
            io_lib:format("tls_cert_file needs TLS; write the URL with one of these schemes: ~ts", [
                lists:join(", ", ?TLS_SCHEMES)
            ])
        ),
    ok.

check_url(Url) ->
    Parsed =
        case is_text(Url) of
            true -> uri_string:parse(unicode:characters_to_list(Url));
            false -> throw("the URL is not a string")
        end,
    case Parsed of
        #{scheme := Scheme, host := [_ | _]} ->
            lists:member(Scheme, ?SCHEMES) orelse
                throw(io_lib:format("the URL's scheme is ~ts; allowed: ~ts", [Scheme, lists:join(", ", ?SCHEMES)])),
            Scheme;
        _ ->
            throw("the URL is not valid; allowed: for example valkey://10.0.0.5:6379, or valkeys:// for TLS")
    end.

check_each(Options, Schema) when is_list(Options) ->
    is_list_of(fun(Option) -> is_tuple(Option) andalso tuple_size(Option) =:= 2 end, Options) orelse
        throw("its options are not {Name, Value}"),
    lists:foreach(fun(Option) -> check_one(Option, Schema) end, Options);
check_each(_, _) ->
    throw("its options are not a list").

check_one({Name, Value}, Schema) ->
    case lists:keyfind(Name, 1, Schema) of
        {_, Type} ->
            accepts(Type, Value) orelse throw(io_lib:format("its option ~s has to be ~s", [Name, allowed(Type)]));
        false ->
            Names = [Known || {Known, _} <- Schema],
            throw(io_lib:format("it has no option ~0tp~s; allowed: ~0tp", [Name, suggestion(Name, Names), Names]))
    end.
