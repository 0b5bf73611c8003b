%% @private Logs that sessions outlive a restart in, and that nodes share them by: the option, and what there is to
%% say of it in the log.
%%
%% The work is done by threads of the native library. Here is a process that asks them now and then what has
%% happened; it begins with the first journal and ends with the last one.
-module(rekindle_journal).

-export([check/1, open/4, is_for/2, is_shared/1]).
-export([watch/1]).

-include("rekindle_log.hrl").

-define(ASK_EVERY, 250).

%% Questions without any journal, after which the process ends.
-define(PATIENCE, 40).

-define(SCHEMES, ["redis", "rediss", "valkey", "valkeys"]).

%% @doc Checks the option. An error says what is wrong with it and what is allowed, without the value: it may have a
%% password in it.
-spec check(term()) -> ok | {error, Line :: string()}.
check(Option) ->
    try
        check_option(Option)
    catch
        throw:Why -> {error, lists:flatten(Why)}
    end.

check_option(none) ->
    ok;
check_option({folder, Dir}) ->
    check_option({folder, Dir, []});
check_option({folder, Dir, Options}) ->
    is_path(Dir) orelse throw("the folder is not a file name"),
    check_options(Options, [key_file]);
check_option({valkey, Url, Options}) ->
    check_url(Url),
    check_options(Options, [key_file, user, password_file, password_env, ca_file, cluster, partitions]),
    lists:keymember(key_file, 1, Options) orelse
        throw("key_file is missing; a log on another machine needs the same keys on every node"),
    ok;
check_option(_) ->
    throw("allowed: none, {folder, Dir}, {folder, Dir, Options} or {valkey, Url, Options}").

check_url(Url) ->
    Parsed =
        case is_text(Url) of
            true -> uri_string:parse(unicode:characters_to_list(Url));
            false -> throw("the URL is no string")
        end,
    case Parsed of
        #{scheme := Scheme, host := [_ | _]} ->
            lists:member(Scheme, ?SCHEMES) orelse
                throw(io_lib:format("the URL's scheme is ~ts; allowed: ~ts", [Scheme, lists:join(", ", ?SCHEMES)]));
        _ ->
            throw("the URL is none; allowed: for instance valkey://10.0.0.5:6379, or valkeys:// for TLS")
    end.

check_options(Options, Allowed) when is_list(Options) ->
    Names = [Name || {Name, _} <- Options],
    length(Names) =:= length(Options) orelse throw("its options are not {Name, Value}"),
    case [Name || Name <- Names, not lists:member(Name, Allowed)] of
        [] -> ok;
        [Unknown | _] -> throw(io_lib:format("it has no option ~0tp; allowed: ~0tp", [Unknown, Allowed]))
    end,
    lists:foreach(
        fun({Name, Value}) ->
            is_valid(Name, Value) orelse throw(io_lib:format("its option ~s has to be ~s", [Name, allowed(Name)]))
        end,
        Options
    );
check_options(_, _) ->
    throw("its options are not a list").

is_valid(cluster, Value) -> is_boolean(Value);
is_valid(partitions, Value) -> is_integer(Value) andalso Value >= 1 andalso Value =< 64;
is_valid(Name, Value) when Name =:= user; Name =:= password_env -> is_text(Value);
is_valid(_, Value) -> is_path(Value).

allowed(cluster) -> "true or false";
allowed(partitions) -> "an integer from 1 to 64, the same on every node";
allowed(user) -> "a string";
allowed(password_env) -> "the name of an environment variable";
allowed(_) -> "a file name".

is_text(Value) ->
    try unicode:characters_to_binary(Value) of
        Text -> is_binary(Text) andalso Text =/= <<>>
    catch
        error:_ -> false
    end.

is_path(Value) when is_atom(Value) -> false;
is_path(Value) -> is_text(Value).

%% @doc Whether a scope of this label can have such a journal.
-spec is_for(rekindle:journal(), rekindle_admin:label()) -> boolean().
is_for(none, _) -> false;
is_for(_, unnamed) -> false;
is_for(Journal, Label) -> not is_shared(Journal) orelse is_named(Label).

%% Sharing by accident would let clients in where they are not trusted: what leaves the node has a name that the
%% operator has given it.
is_named({shared, _, _}) -> true;
is_named(_) -> false.

%% @doc Whether other nodes take part in it.
-spec is_shared(rekindle:journal()) -> boolean().
is_shared(Journal) ->
    element(1, Journal) =:= valkey.

%% @doc Opens the journal of a server's scope where there is one to be. Whatever is wrong with it is logged, and the
%% listener works without.
-spec open(rekindle_nif:store(), rekindle_admin:label(), Socket :: term(), rekindle:journal()) -> ok.
open(_Store, _Label, _Socket, none) ->
    ok;
open(_Store, unnamed, _Socket, _Journal) ->
    %% It has no name that it could have again.
    ok;
open(Store, Label, Socket, Journal) ->
    case is_for(Journal, Label) of
        true ->
            %% Atoms that sessions have have to be there before sessions are read.
            _ = [code:ensure_loaded(Module) || Module <- [ssl_handshake, ssl_cipher, tls_v1, public_key]],
            case rekindle_nif:open_journal(Store, native(Label, Socket, Journal)) of
                ok -> watch();
                {error, Why} -> log(warning, Label, "there is none: ~ts", [Why])
            end;
        false ->
            log(warning, Label, "there is none: a log that nodes share is for listeners that have a name in the option scope", [])
    end.

native(Label, Socket, Journal) ->
    Private = case is_named(Label) of true -> #{}; false -> #{private => Socket} end,
    Private#{
        scope => name(Label),
        layout => rekindle_layout:layout(),
        key_file => key_file(Journal),
        log => native_log(Journal)
    }.

name(Label) ->
    unicode:characters_to_binary(io_lib:format("~0tp", [Label])).

native_log({folder, Dir}) -> {folder, path(Dir)};
native_log({folder, Dir, _}) -> {folder, path(Dir)};
native_log({valkey, Url, Options}) ->
    Given = maps:from_list([{Name, native_option(Name, Value)} || {Name, Value} <- Options, Name =/= key_file]),
    {valkey, maps:merge(#{url => text(Url), cluster => false, partitions => 1}, Given)}.

native_option(Name, Value) when Name =:= cluster; Name =:= partitions -> Value;
native_option(Name, Value) when Name =:= user; Name =:= password_env -> text(Value);
native_option(_, Value) -> path(Value).

text(Value) ->
    unicode:characters_to_binary(Value).

key_file({folder, Dir}) -> path(filename:join(Dir, "keys"));
key_file({folder, Dir, Options}) -> path(proplists:get_value(key_file, Options, filename:join(Dir, "keys")));
key_file({valkey, _, Options}) -> path(proplists:get_value(key_file, Options)).

path(Path) ->
    Absolute = filename:absname(Path),
    case is_binary(Absolute) of
        true -> Absolute;
        false -> unicode:characters_to_binary(Absolute, unicode, file:native_name_encoding())
    end.

%% ---- what has happened ----

watch() ->
    case whereis(?MODULE) of
        undefined ->
            %% Not linked: it must not take OTP's process with it.
            _ = spawn(fun() ->
                try register(?MODULE, self()) of
                    true -> watch(?PATIENCE)
                catch
                    error:badarg -> ok
                end
            end),
            ok;
        _ ->
            ok
    end.

%% @private Called with its module, to go on in a new version.
-spec watch(non_neg_integer()) -> ok.
watch(0) ->
    ok;
watch(Patience) ->
    {Events, IsAnyJournal} = rekindle_nif:journal_events(),
    lists:foreach(fun tell/1, Events),
    timer:sleep(?ASK_EVERY),
    case IsAnyJournal of
        true -> ?MODULE:watch(?PATIENCE);
        false -> ?MODULE:watch(Patience - 1)
    end.

tell({Scope, Location, {down, Error}}) ->
    log(warning, Scope, Location, "does not work: ~ts. Sessions stay in this node until it does.", [Error]);
tell({Scope, Location, {up, AfterMs, Dropped}}) ->
    log(notice, Scope, Location, "works again after ~ts; ~b sessions were not written", [seconds(AfterMs), Dropped]);
tell({Scope, Location, {replayed, Sessions, TookMs}}) ->
    log(notice, Scope, Location, "~b sessions were read from it in ~ts", [Sessions, seconds(TookMs)]);
tell({Scope, Location, {noticed, Notice}}) ->
    log(warning, Scope, Location, "~ts", [Notice]).

seconds(Ms) ->
    io_lib:format("~.1f s", [Ms / 1000]).

log(Level, Label, Format, Args) ->
    ?LOG_LINE(Level, journal, "rekindle: the journal of ~ts: " ++ Format, [rekindle_table:scope(Label) | Args]).

log(Level, Scope, Location, Format, Args) ->
    ?LOG_LINE(Level, journal, "rekindle: the journal of ~ts at ~ts: " ++ Format, [shown(Scope), Location | Args]).

%% As in tables. A scope that has ended is not there to ask.
shown(Scope) ->
    case [Label || #{scope := Label} <- rekindle_nif:info(), name(Label) =:= Scope] of
        [Label | _] -> rekindle_table:scope(Label);
        [] -> Scope
    end.
