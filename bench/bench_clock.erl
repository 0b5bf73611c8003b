%% @doc CPU time and memory of this operating-system process, from Linux's figures of its threads.
-module(bench_clock).

-export([cpu/0, cpu/1, cpu/2, cpu_of_erlang/0, cpu_of_native/0, rss/0, settle/0]).
-export([percentile/2, median/1]).

-define(BYTES, 64).

%% @doc CPU time of all threads of this node in nanoseconds, user and system, including those of the native library.
-spec cpu() -> non_neg_integer().
cpu() ->
    cpu("self").

-spec cpu(OsPid :: string()) -> non_neg_integer().
cpu(OsPid) ->
    cpu(OsPid, fun(_) -> true end).

%% @doc The same for the threads whose names `IsMeant' accepts.
-spec cpu(OsPid :: string(), fun((Name :: binary()) -> boolean())) -> non_neg_integer().
cpu(OsPid, IsMeant) ->
    Tasks = "/proc/" ++ OsPid ++ "/task",
    {ok, Ids} = file:list_dir(Tasks),
    Threads = [filename:join(Tasks, Id) || Id <- Ids],
    lists:sum([run_time(Thread) || Thread <- Threads, IsMeant(name(Thread))]).

%% @doc The same for the threads that run Erlang code and collect garbage. It leaves out the threads that read files, so that
%% reading this clock hardly counts.
-spec cpu_of_erlang() -> non_neg_integer().
cpu_of_erlang() ->
    cpu("self", fun is_scheduler/1).

%% @doc The same for the threads of Rekindle's library.
-spec cpu_of_native() -> non_neg_integer().
cpu_of_native() ->
    cpu("self", fun is_native/1).

%% The names are like `1_scheduler' and `1_dirty_cpu_sch' up to OTP 25, and like `erts_sched_1' and `erts_dcpus_1' later.
is_scheduler(Name) ->
    re:run(Name, "^[0-9]+_(scheduler|dirty_cpu)|^erts_(sched|dcpus)_") =/= nomatch.

is_native(Name) ->
    string:prefix(Name, "rekindle-") =/= nomatch.

run_time(Thread) ->
    case read(filename:join(Thread, "schedstat")) of
        {ok, Text} -> binary_to_integer(hd(binary:split(Text, <<" ">>)));
        %% The thread has ended.
        {error, _} -> 0
    end.

%% A thread keeps its name, so the clock reads it only once.
name(Thread) ->
    case get({?MODULE, Thread}) of
        undefined ->
            case read(filename:join(Thread, "comm")) of
                {ok, Text} ->
                    Name = string:trim(Text),
                    put({?MODULE, Thread}, Name),
                    Name;
                {error, _} ->
                    <<>>
            end;
        Name ->
            Name
    end.

%% Without the node's file server, whose work would count.
read(Name) ->
    case file:open(Name, [read, raw, binary]) of
        {ok, File} ->
            Read = file:read(File, ?BYTES),
            ok = file:close(File),
            Read;
        {error, _} = Error ->
            Error
    end.

%% @doc Resident bytes of this node.
-spec rss() -> non_neg_integer().
rss() ->
    {ok, Text} = file:read_file("/proc/self/status"),
    {match, [Kib]} = re:run(Text, "VmRSS:\\s+([0-9]+)", [{capture, all_but_first, list}]),
    1024 * list_to_integer(Kib).

%% @doc Collects the garbage of all processes, and lets other threads finish their work.
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
