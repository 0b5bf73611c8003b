%% @doc Functions that the properties share.
-module(rekindle_property).

-export([holds/1]).

-include_lib("proper/include/proper.hrl").

%% @doc Runs the body of a property in a process of its own, so that it leaves nothing behind and an exception only fails the
%% property. The body must return `true'.
-spec holds(fun(() -> term())) -> proper:test().
holds(Body) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({came_to, Body()}) end),
    receive
        {'DOWN', Monitor, process, Pid, Reason} ->
            ?WHENFAIL(io:format("~p~n", [Reason]), Reason =:= {came_to, true})
    end.
