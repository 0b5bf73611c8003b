%% @doc The caches that are compared, called the way OTP's processes call them.
-module(bench_store).

-export([all/0, max_bytes/1, open/2, lookup/2, insert/3, delete/2]).

-export_type([name/0, store/0]).

-type name() :: null | rekindle | gb_trees | ets_ordered_set | ets_set.
-type store() :: {Callbacks :: module(), Ref :: term()}.

%% @doc The baseline comes first.
-spec all() -> [name()].
all() ->
    [null, rekindle, gb_trees, ets_ordered_set, ets_set].

%% @doc Bytes that Rekindle is given where it is to hold so many sessions and the bound is not what is measured: its
%% default, or more than enough.
-spec max_bytes(pos_integer()) -> pos_integer().
max_bytes(Sessions) ->
    max(64 bsl 20, 4096 * Sessions).

%% @doc `Options' are Rekindle's. The tables are public where OTP's are protected, for two processes to write.
-spec open(name(), [rekindle:option()]) -> store().
open(null, _) ->
    {bench_null, none};
open(rekindle, Options) ->
    {rekindle, rekindle:init([{role, server} | Options])};
open(gb_trees, _) ->
    {ssl_server_session_cache_db, ssl_server_session_cache_db:init([{role, server}])};
open(ets_ordered_set, _) ->
    {ssl_client_session_cache_db, ets:new(bench, [ordered_set, public])};
open(ets_set, _) ->
    {ssl_client_session_cache_db, ets:new(bench, [set, public])}.

-spec lookup(store(), term()) -> term().
lookup({Callbacks, Ref}, Key) ->
    Callbacks:lookup(Ref, Key).

-spec insert(store(), term(), term()) -> store().
insert({ssl_server_session_cache_db = Callbacks, Ref}, Key, Session) ->
    {Callbacks, Callbacks:update(Ref, Key, Session)};
insert({Callbacks, Ref} = Store, Key, Session) ->
    Callbacks:update(Ref, Key, Session),
    Store.

-spec delete(store(), term()) -> store().
delete({ssl_server_session_cache_db = Callbacks, Ref}, Key) ->
    {Callbacks, Callbacks:delete(Ref, Key)};
delete({Callbacks, Ref} = Store, Key) ->
    Callbacks:delete(Ref, Key),
    Store.
