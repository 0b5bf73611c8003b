%% @doc A session cache in an ets table, like OTP's own for clients, but without the server's private key, so that a lookup
%% copies a term of the same size as with Rekindle. The option `{table, set | ordered_set}' chooses the table.
-module(bench_ets).

-behaviour(ssl_session_cache_api).

-export([init/1, terminate/1, lookup/2, update/3, delete/2, foldl/3, select_session/2, size/1]).

-define(OTP, ssl_client_session_cache_db).
%% The place in the session record of OTP 25 to 29.
-define(PRIVATE_KEY, 6).

init(Args) ->
    ets:new(?MODULE, [proplists:get_value(table, Args, ordered_set), protected]).

terminate(Table) -> ?OTP:terminate(Table).

lookup(Table, Key) -> ?OTP:lookup(Table, Key).

update(Table, Key, Session) -> ?OTP:update(Table, Key, setelement(?PRIVATE_KEY, Session, undefined)).

delete(Table, Key) -> ?OTP:delete(Table, Key).

foldl(Fun, Acc, Table) -> ?OTP:foldl(Fun, Acc, Table).

select_session(Table, PartialKey) -> ?OTP:select_session(Table, PartialKey).

size(Table) -> ?OTP:size(Table).
