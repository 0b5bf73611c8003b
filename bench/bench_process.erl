%% @doc Measures OTP's cache process of a real listener while it fills, and when it is full.
%%
%% A process registers sessions as connections do it, a few at a time, so that no call waits behind many others. A second
%% process asks for a random stored session every millisecond.
-module(bench_process).

-export([run/4, cache_of/1, register_all/4]).

-define(BATCH, 10).

%% @doc Returns a row for each of `Sizes', which must ascend: the process at that size, and its worst values since the size
%% before. Then one for a tenth as many sessions again; the last of `Sizes' must be the most that the cache holds.
-spec run(file:filename(), bench_sessions:workload(), [pos_integer()], bench_store:name()) -> [map()].
run(Dir, Workload, Sizes, Name) ->
    Template = bench_sessions:template(Dir, Workload),
    Options = [{ip, {127, 0, 0, 1}}, {versions, ['tlsv1.2']} | bench_certs:server_opts(Dir, Workload)],
    {ok, Listener} = ssl:listen(0, Options),
    Cache = cache_of(Listener),
    Tracer = spawn_link(fun() -> trace(#{}, []) end),
    1 = erlang:trace(Cache, true, [garbage_collection, monotonic_timestamp, {tracer, Tracer}]),
    Last = lists:last(Sizes),
    Segments = lists:zip3([0 | Sizes], Sizes ++ [Last + Last div 10], [filling || _ <- Sizes] ++ [full]),
    [
        (segment(Template, Cache, Tracer, From, To))#{store => Name, phase => Phase, size => min(To, Last)}
     || {From, To, Phase} <- Segments
    ].

%% @doc The cache process of a listener.
-spec cache_of(ListenSocket :: term()) -> pid().
cache_of(ListenSocket) ->
    [Pid] = search(ListenSocket),
    Pid.

search({session_id_tracker, Pid}) -> [Pid];
search([Head | Tail]) -> search(Head) ++ search(Tail);
search(Term) when is_tuple(Term) -> search(tuple_to_list(Term));
search(_) -> [].

segment(Template, Cache, Tracer, From, To) ->
    _ = ask(Tracer, longest),
    Registered = counters:new(1, []),
    counters:put(Registered, 1, From),
    Caller = spawn_link(fun() -> call(Cache, From, Registered, []) end),
    Cpu = bench_clock:cpu(),
    register_all(Template, Cache, From, To - 1, fun(Done) -> counters:put(Registered, 1, Done) end),
    Used = bench_clock:cpu() - Cpu,
    Latencies = ask(Caller, stop),
    {_, Bytes} = process_info(Cache, memory),
    #{
        process_bytes => Bytes,
        registration_cpu_ns => Used / (To - From),
        longest_gc_ns => ask(Tracer, longest),
        calls => length(Latencies),
        call_p50_ns => bench_clock:percentile(Latencies, 0.5),
        call_p99_ns => bench_clock:percentile(Latencies, 0.99),
        call_max_ns => lists:max(Latencies)
    }.

%% @doc Registers the sessions `From' to `To' with a cache process.
-spec register_all(bench_sessions:template(), pid(), non_neg_integer(), non_neg_integer()) -> ok.
register_all(Template, Cache, From, To) ->
    register_all(Template, Cache, From, To, fun(_) -> ok end).

register_all(_Template, _Cache, From, To, _Report) when From > To ->
    ok;
register_all(Template, Cache, From, To, Report) ->
    Last = min(To, From + ?BATCH - 1),
    [ssl_server_session_cache:register_session(Cache, Session) || Session <- bench_sessions:chunk(Template, From, Last)],
    %% The process answers this call after all registrations.
    _ = ssl_server_session_cache:new_session_id(Cache),
    Report(Last + 1),
    register_all(Template, Cache, Last + 1, To, Report).

%% ---- the caller ----

%% Asks for sessions that were registered since the caller started, because older ones may be gone.
call(Cache, From, Registered, Latencies) ->
    receive
        {Asker, stop} when Latencies =/= [] ->
            Asker ! {self(), Latencies}
    after 1 ->
        Number = From + rand:uniform(max(1, counters:get(Registered, 1) - From)) - 1,
        Start = erlang:monotonic_time(),
        _ = ssl_server_session_cache:reuse_session(Cache, bench_sessions:id(Number)),
        call(Cache, From, Registered, [nanoseconds(erlang:monotonic_time() - Start) | Latencies])
    end.

%% ---- the tracer ----

trace(Started, Lengths) ->
    receive
        {trace_ts, _, Event, _, Time} when Event =:= gc_minor_start; Event =:= gc_major_start ->
            trace(Started#{kind(Event) => Time}, Lengths);
        {trace_ts, _, Event, _, Time} when Event =:= gc_minor_end; Event =:= gc_major_end ->
            trace(Started, longer(Time - maps:get(kind(Event), Started, Time), Lengths));
        {From, longest} ->
            From ! {self(), nanoseconds(lists:max([0 | Lengths]))},
            trace(Started, [])
    end.

kind(gc_minor_start) -> minor;
kind(gc_minor_end) -> minor;
kind(gc_major_start) -> major;
kind(gc_major_end) -> major.

longer(Length, [Longest]) when Longest >= Length -> [Longest];
longer(Length, _) -> [Length].

ask(Pid, Task) ->
    Pid ! {self(), Task},
    receive
        {Pid, Reply} -> Reply
    end.

nanoseconds(Native) ->
    erlang:convert_time_unit(Native, native, nanosecond).
