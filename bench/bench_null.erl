%% @doc A cache that does nothing. It shows the cost of the measuring loop.
-module(bench_null).

-export([lookup/2, update/3, delete/2]).

lookup(_Ref, _Key) -> undefined.

update(_Ref, _Key, _Session) -> ok.

delete(_Ref, _Key) -> ok.
