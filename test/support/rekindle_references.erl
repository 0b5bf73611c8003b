%% @doc Opens and drops thousands of cache references, as listeners do that are opened and closed.
-module(rekindle_references).

-export([main/1, come_and_go/1, memory/0]).

%% @doc `-run rekindle_references main Number'. Does it twice: a table keeps old addresses until new ones replace them, and
%% LeakSanitizer sees a leak only when no address is left.
-spec main([string()]) -> no_return().
main([Number]) ->
    [ok = come_and_go(list_to_integer(Number)) || _ <- [1, 2]],
    halt(0).

%% @doc Opens this many references, half of them to scopes that others have, with a session in each. Returns when
%% the last scope is gone.
-spec come_and_go(pos_integer()) -> ok.
come_and_go(Number) ->
    {_, Monitor} = spawn_monitor(fun() ->
        Stores = [open(N) || N <- lists:seq(1, Number)],
        [stored = rekindle_nif:insert(Store, <<N:256>>, {any, N}) || {N, Store} <- lists:zip(lists:seq(1, Number), Stores)],
        Scopes = length(rekindle_nif:info()),
        %% This is the last use of the references.
        exit({opened, length(Stores), Scopes})
    end),
    receive
        {'DOWN', Monitor, process, _, {opened, Number, Scopes}} -> true = Scopes > Number div 2
    end,
    until_closed().

open(N) when N rem 4 =:= 0 ->
    rekindle_nif:open_client({client, N});
open(N) ->
    rekindle_nif:open_server({label, N div 2}, "a socket", true, {1 bsl 20, 1000, 60_000}).

%% The last references may be on a heap that is not freed yet.
until_closed() ->
    case rekindle_nif:info() of
        [] -> ok;
        _ -> receive
            after 10 -> until_closed()
            end
    end.

%% @doc The memory of this process in KiB: resident, and in all.
-spec memory() -> {pos_integer(), pos_integer()}.
memory() ->
    {ok, Status} = file:read_file("/proc/self/status"),
    [Resident, Mapped] = [
        begin
            {match, [KiB]} = re:run(Status, [Name, ":\\s+([0-9]+) kB"], [{capture, all_but_first, list}]),
            list_to_integer(KiB)
        end
     || Name <- ["VmRSS", "VmSize"]
    ],
    {Resident, Mapped}.
