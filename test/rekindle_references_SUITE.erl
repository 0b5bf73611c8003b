%% Tests that listeners which are opened and closed leave nothing behind.
-module(rekindle_references_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0]).
-export([ten_thousand_references_leave_nothing/1]).

-define(NUMBER, 10_000).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [ten_thousand_references_leave_nothing].

ten_thousand_references_leave_nothing(_Config) ->
    case filelib:is_file("/proc/self/status") of
        true ->
            Node = rekindle_node:start([]),
            try rekindle_node:run(Node, fun measure/0) of
                Comment -> {comment, Comment}
            after
                rekindle_node:stop(Node)
            end;
        false ->
            {skip, "no /proc/self/status to read"}
    end.

%% The first round lets Erlang's own memory grow.
measure() ->
    [ok = rekindle_references:come_and_go(?NUMBER) || _ <- [1]],
    {Resident, Mapped} = settled(rekindle_references:memory(), 100),
    [ok = rekindle_references:come_and_go(?NUMBER) || _ <- [2, 3]],
    %% A page for every scope that was opened, and its 256 KiB of pages, would be far more: 5 GiB. Each thread of Erlang that
    %% allocates for the first time may map 64 MiB for its allocations (mallopt(3), M_ARENA_MAX).
    Returned = fun({Now, NowMapped}) -> Now < Resident + 16_384 andalso NowMapped < Mapped + 1_048_576 end,
    {Now, NowMapped} = until(Returned, 600, {Resident, Mapped}),
    lists:concat([Resident, " KiB resident, then ", Now, "; ", Mapped, " KiB mapped, then ", NowMapped]).

%% The number falls while the janitor still drops scopes.
settled(Before, Patience) ->
    receive
    after 100 -> ok
    end,
    case rekindle_references:memory() of
        Now when Now < Before, Patience > 0 -> settled(Now, Patience - 1);
        Now -> Now
    end.

until(IsTrue, Patience, Before) ->
    Now = rekindle_references:memory(),
    case IsTrue(Now) of
        true -> Now;
        false when Patience =:= 0 -> error({memory_kept, Now, {before, Before}});
        false -> receive
            after 100 -> until(IsTrue, Patience - 1, Before)
            end
    end.
