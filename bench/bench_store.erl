%% @doc The caches to compare, which are called as OTP's cache process calls them.
-module(bench_store).

-export([names/1, open/2, join/3, lookup/2, insert/2, replace/3, delete/2, is_on_heap/1, live_bytes/1]).
-export([max_bytes/1, info/1, compress/1]).
-export([ssl_env/2]).

-export_type([name/0, store/0]).

-type name() :: loop | gb_trees | ets_ordered_set | ets_set | rekindle | rekindle_compressed.
%% `loop' does nothing. `gb_trees' is OTP's default. The last is Rekindle after it has compressed its certificates.

-opaque store() :: {Callbacks :: module(), Ref :: term(), RefForDeletions :: own | term()}.

-type ssl_env() :: {Callbacks :: module() | undefined, [{atom(), term()}]}.

%% @doc The caches to compare with sessions of this kind.
-spec names(bench_sessions:workload()) -> [name()].
names({_, ClientCert}) ->
    [loop, gb_trees, ets_ordered_set, ets_set, rekindle] ++ [rekindle_compressed || ClientCert].

%% @doc Opens a cache in the process that will use it. `Options' are Rekindle's.
-spec open(name(), #{scope := term(), options := [rekindle:option()]}) -> store().
open(loop, _) ->
    {bench_null, none, own};
open(gb_trees, _) ->
    {ssl_server_session_cache_db, ssl_server_session_cache_db:init([{role, server}]), own};
open(ets_ordered_set, _) ->
    {bench_ets, bench_ets:init([{role, server}, {table, ordered_set}]), own};
open(ets_set, _) ->
    {bench_ets, bench_ets:init([{role, server}, {table, set}]), own};
open(_, Config) ->
    %% Rekindle ignores deletions of OTP's process, but not those of another process with the same scope.
    Self = self(),
    Other = spawn_link(fun() -> Self ! {self(), init(Config)} end),
    Ref = init(Config),
    receive
        {Other, RefForDeletions} -> {rekindle, Ref, RefForDeletions}
    end.

%% Like OTP's process, this one monitors a listen socket, by which Rekindle finds the scope's name.
init(#{scope := Scope, options := Options}) ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    _ = monitor(port, Socket),
    {ok, Port} = inet:port(Socket),
    rekindle:init([{role, server}, {scope, #{Port => Scope}} | Options]).

%% @doc The cache of a second process beside one with `Store', and whether it has sessions of its own: OTP has a tree per
%% process, many processes read one ets table, and listeners can share a scope of Rekindle.
-spec join(name(), store(), map()) -> {shared | own, store()}.
join(gb_trees, _, Config) -> {own, open(gb_trees, Config)};
join(rekindle, _, Config) -> {shared, open(rekindle, Config)};
join(_, Store, _) -> {shared, Store}.

-spec lookup(store(), ssl:session_id()) -> tuple() | undefined.
lookup({Callbacks, Ref, _}, Key) ->
    Callbacks:lookup(Ref, Key).

-spec insert(store(), Session :: tuple()) -> store().
insert({Callbacks, Ref, RefForDeletions}, Session) ->
    Result = Callbacks:update(Ref, bench_sessions:key(Session), Session),
    {Callbacks, next(Callbacks, Ref, Result), RefForDeletions}.

%% @doc What OTP's process does when its cache is full: it deletes the oldest session first. Rekindle does not obey that, and
%% evicts one of its choice.
-spec replace(store(), Oldest :: ssl:session_id(), Session :: tuple()) -> store().
replace({Callbacks, Ref, RefForDeletions}, Oldest, Session) ->
    Result = Callbacks:delete(Ref, Oldest),
    insert({Callbacks, next(Callbacks, Ref, Result), RefForDeletions}, Session).

-spec delete(store(), ssl:session_id()) -> store().
delete({Callbacks, Ref, own}, Key) ->
    Result = Callbacks:delete(Ref, Key),
    {Callbacks, next(Callbacks, Ref, Result), own};
delete({Callbacks, _, RefForDeletions} = Store, Key) ->
    Callbacks:delete(RefForDeletions, Key),
    Store.

next(ssl_server_session_cache_db, _Ref, Tree) -> Tree;
next(_, Ref, _) -> Ref.

%% @doc Whether the sessions are on the heap of the process.
-spec is_on_heap(store()) -> boolean().
is_on_heap({Callbacks, _, _}) ->
    Callbacks =:= ssl_server_session_cache_db.

%% @doc Bytes in use by the cache of the calling process, without binaries.
-spec live_bytes(store()) -> non_neg_integer().
live_bytes({ssl_server_session_cache_db, _, _}) ->
    {_, Info} = process_info(self(), garbage_collection_info),
    Words = [Value || {Key, Value} <- Info, Key =:= heap_size orelse Key =:= old_heap_size],
    lists:sum(Words) * erlang:system_info(wordsize);
live_bytes({bench_null, _, _}) ->
    0;
live_bytes({bench_ets, Table, _}) ->
    ets:info(Table, memory) * erlang:system_info(wordsize);
live_bytes({rekindle, _, _}) ->
    %% A node measures one scope, beside those of listeners.
    [Bytes] = [Bytes || #{scope := {shared, _, _}, bytes := Bytes} <- rekindle_admin:info()],
    Bytes.

%% ---- Rekindle's scopes ----

%% @doc Bytes that Rekindle is given where its bound is not what is measured: its default, or so much that less than half
%% of it is used.
-spec max_bytes(Sessions :: pos_integer()) -> pos_integer().
max_bytes(Sessions) ->
    max(64 bsl 20, 4096 * Sessions).

-spec info(Scope :: term()) -> rekindle_admin:info().
info(Scope) ->
    [Info] = rekindle_admin:info({name, Scope}),
    Info.

%% @doc Has Rekindle compress the certificates in a scope, if it does so: it may when a scope is more than half full. The
%% bound follows what the scope takes, until that no longer shrinks.
-spec compress(Scope :: term()) -> ok.
compress(Scope) ->
    #{bytes := Bytes, sessions := Sessions} = info(Scope),
    {ok, 1} = rekindle_admin:set({name, Scope}, [{max_bytes, Bytes * 8 div 5}]),
    case settled(Scope, 20) of
        #{sessions := Sessions, bytes := Less} when Less < Bytes * 0.95 -> compress(Scope);
        #{sessions := Sessions} -> ok
    end.

%% The scope once its bytes have been the same for `Looks' looks.
settled(Scope, Looks) ->
    settled(Scope, Looks, Looks, info(Scope)).

settled(_, _, 0, Info) ->
    Info;
settled(Scope, Looks, Left, #{bytes := Bytes}) ->
    timer:sleep(100),
    case info(Scope) of
        #{bytes := Bytes} = Same -> settled(Scope, Looks, Left - 1, Same);
        Changed -> settled(Scope, Looks, Looks, Changed)
    end.

%% ---- OTP's own process ----

%% @doc The environment of ssl with which OTP's processes use this cache, with room for `Room' sessions.
-spec ssl_env(name(), Room :: pos_integer()) -> ssl_env().
ssl_env(gb_trees, Room) ->
    {undefined, [{session_cache_server_max, Room}]};
ssl_env(ets_ordered_set, Room) ->
    {bench_ets, [{session_cache_server_max, Room}, {session_cb_init_args, [{table, ordered_set}]}]};
ssl_env(ets_set, Room) ->
    {bench_ets, [{session_cache_server_max, Room}, {session_cb_init_args, [{table, set}]}]};
ssl_env(rekindle, Room) ->
    {rekindle, [{session_cb_init_args, [{max_bytes, max_bytes(Room)}, {max_sessions, Room}]}]}.
