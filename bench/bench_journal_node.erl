%% @doc Nodes with a journal, in which sessions are registered as OTP's cache process does it.
-module(bench_journal_node).

-export([start/2, start/3, stop/1, kill/1, call/2, info/0, info/1, journal/1, is_replayed/1, await/2, cpu_since/1]).
-export([cache/0, template/0, update_all/1, chunk/2, fill/2, scheduler_cpu/0, journal_cpu/0, now_us/0]).

-export_type([running/0]).

-type running() :: #{
    node := pid(),
    os_pid := string(),
    port := inet:port_number(),
    rss_before := non_neg_integer(),
    cpu_before := non_neg_integer()
}.

-define(CHUNK, 1000).

%% @doc Starts a node with one listener, whose scope has this journal. `rss_before' and `cpu_before' were measured before the
%% listener was opened.
-spec start(file:filename(), rekindle:journal()) -> running().
start(Certs, Journal) ->
    start(Certs, Journal, rekindle_node:free_port()).

-spec start(file:filename(), rekindle:journal(), inet:port_number()) -> running().
start(Certs, Journal, Port) ->
    Options = [{scope, #{Port => devices}}, {journal, Journal}, {max_bytes, 4 bsl 30}, {max_sessions, infinity}],
    Node = bench_node:start({rekindle, [{session_cb_init_args, Options}]}),
    {Rss, Cpu} = bench_node:call(Node, fun() -> prepare(Certs) end),
    ok = bench_node:call(Node, fun() -> listen(Certs, Port) end),
    #{node => Node, os_pid => bench_node:os_pid(Node), port => Port, rss_before => Rss, cpu_before => Cpu}.

prepare(Certs) ->
    persistent_term:put({?MODULE, template}, bench_sessions:template(Certs, {ecdsa, false})),
    bench_clock:settle(),
    {bench_clock:rss(), runtime()}.

%% Includes threads that have ended, such as a reader's.
runtime() ->
    1_000_000 * element(1, statistics(runtime)).

%% @doc CPU time in nanoseconds since before the listener was opened.
-spec cpu_since(running()) -> non_neg_integer().
cpu_since(#{cpu_before := Before} = Running) ->
    call(Running, fun runtime/0) - Before.

listen(Certs, Port) ->
    Listener = bench_handshakes:listen(Certs, {ecdsa, false}, Port),
    State = sys:get_state(bench_process:cache_of(Listener)),
    [Cache] = [Field || Field <- tuple_to_list(State), is_tuple(Field), element(1, Field) =:= server],
    persistent_term:put({?MODULE, cache}, Cache).

-spec stop(running()) -> ok.
stop(#{node := Node}) ->
    bench_node:stop(Node).

%% @doc Ends the node with SIGKILL.
-spec kill(running()) -> ok.
kill(#{node := Node, os_pid := OsPid}) ->
    Monitor = monitor(process, Node),
    [] = os:cmd("kill -9 " ++ OsPid),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    end.

-spec call(running(), fun(() -> Result)) -> Result.
call(#{node := Node}, Fun) ->
    bench_node:call(Node, Fun).

-spec info(running()) -> rekindle_admin:info().
info(Running) ->
    call(Running, fun info/0).

%% @doc The scope of the listener with the journal, in the node itself.
-spec info() -> rekindle_admin:info().
info() ->
    [Info] = [Info || #{scope := {shared, _, devices}} = Info <- rekindle_admin:info()],
    Info.

-spec journal(running()) -> rekindle_admin:journal().
journal(Running) ->
    maps:get(journal, info(Running)).

-spec is_replayed(rekindle_admin:info()) -> boolean().
is_replayed(#{journal := #{replay := Replay}}) -> Replay =/= undefined.

%% @doc Waits until the condition holds, and returns the time then, in microseconds.
-spec await(running(), fun((rekindle_admin:info()) -> boolean())) -> integer().
await(Running, Condition) ->
    call(Running, fun() -> await_here(Condition, now_us() + 120_000_000) end).

await_here(Condition, Deadline) ->
    Info = info(),
    case {Condition(Info), now_us()} of
        {true, Now} ->
            Now;
        {false, Now} when Now < Deadline ->
            timer:sleep(2),
            await_here(Condition, Deadline);
        {false, _} ->
            error({still_not_so, Info})
    end.

%% ---- in the node ----

%% @doc The cache that OTP's process passes to the callbacks.
-spec cache() -> rekindle:cache().
cache() ->
    persistent_term:get({?MODULE, cache}).

-spec template() -> bench_sessions:template().
template() ->
    persistent_term:get({?MODULE, template}).

-spec chunk(non_neg_integer(), non_neg_integer()) -> [Session :: tuple()].
chunk(From, To) ->
    bench_sessions:chunk(template(), From, To).

-spec update_all([Session :: tuple()]) -> ok.
update_all(Sessions) ->
    Cache = cache(),
    lists:foreach(fun(Session) -> rekindle:update(Cache, bench_sessions:key(Session), Session) end, Sessions).

%% @doc Registers the sessions from `From' to, but without, `To', and makes them meanwhile.
-spec fill(non_neg_integer(), non_neg_integer()) -> ok.
fill(From, To) when From >= To ->
    bench_clock:settle();
fill(From, To) ->
    Next = min(To, From + ?CHUNK),
    %% Never register more than the queue has room for.
    #{journal := Journal} = info(),
    case Journal of
        #{queued := Queued} when Queued > 50_000 ->
            timer:sleep(5),
            fill(From, To);
        _ ->
            update_all(chunk(From, Next - 1)),
            fill(Next, To)
    end.

%% @doc CPU time of the journals' threads, in nanoseconds.
-spec journal_cpu() -> non_neg_integer().
journal_cpu() ->
    bench_clock:cpu("self", fun is_journal/1).

%% @doc CPU time of all other threads, in nanoseconds, including OTP's processes.
-spec scheduler_cpu() -> non_neg_integer().
scheduler_cpu() ->
    bench_clock:cpu("self", fun(Name) -> not is_journal(Name) end).

is_journal(Name) ->
    string:prefix(Name, "rekindle-") =/= nomatch.

%% @doc The time that all nodes of this machine agree on.
-spec now_us() -> integer().
now_us() ->
    os:system_time(microsecond).
