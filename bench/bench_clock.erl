%% @doc CPU time and memory of a process of the operating system, by what Linux says of its threads.
-module(bench_clock).

-export([cpu/0, cpu/1, cpu/2, rss/0, settle/0]).
-export([median/1, percentile/2]).

%% @doc Nanoseconds all threads of this node have run, user and system, also those of the native library.
-spec cpu() -> non_neg_integer().
cpu() ->
    cpu("self").

-spec cpu(OsPid :: string()) -> non_neg_integer().
cpu(OsPid) ->
    cpu(OsPid, fun(_) -> true end).

%% @doc The same of the threads with such a name.
-spec cpu(OsPid :: string(), fun((Name :: binary()) -> boolean())) -> non_neg_integer().
cpu(OsPid, IsMeant) ->
    Tasks = "/proc/" ++ OsPid ++ "/task",
    case file:list_dir(Tasks) of
        {ok, Ids} ->
            Threads = [filename:join(Tasks, Id) || Id <- Ids],
            lists:sum([thread(filename:join(Thread, "schedstat")) || Thread <- Threads, IsMeant(name(Thread))]);
        {error, _} when OsPid =:= "self" -> 1_000_000 * element(1, erlang:statistics(runtime))
    end.

thread(File) ->
    case file:read_file(File) of
        {ok, Text} -> binary_to_integer(hd(binary:split(Text, <<" ">>)));
        %% The thread has ended.
        {error, _} -> 0
    end.

name(Thread) ->
    case file:read_file(filename:join(Thread, "comm")) of
        {ok, Name} -> string:trim(Name);
        {error, _} -> <<>>
    end.

%% @doc Resident bytes of this node.
-spec rss() -> non_neg_integer().
rss() ->
    {ok, Text} = file:read_file("/proc/self/status"),
    {match, [Kib]} = re:run(Text, "VmRSS:\\s+([0-9]+)", [{capture, all_but_first, list}]),
    1024 * list_to_integer(Kib).

%% @doc Collects the garbage of all processes, and lets other threads finish what they were at.
-spec settle() -> ok.
settle() ->
    _ = [erlang:garbage_collect(Pid) || Pid <- processes()],
    timer:sleep(300).

-spec median([number()]) -> number().
median(Values) ->
    percentile(Values, 0.5).

-spec percentile([number()], float()) -> number().
percentile(Values, Part) ->
    lists:nth(max(1, ceil(Part * length(Values))), lists:sort(Values)).
