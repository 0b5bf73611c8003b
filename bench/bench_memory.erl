%% @doc How much memory a session takes, and whether Rekindle respects `max_bytes'.
%%
%% Live bytes are in use by the cache: heap and binaries, tables and binaries, or what Rekindle counts. Resident bytes are the
%% growth of the operating-system process, including garbage and free space of the allocators.
-module(bench_memory).

-export([sessions/4, bound/3]).

-define(SCOPE, bench).
-define(WARM_UP, 20_000).
%% With larger batches, the memory of the process that makes the sessions would grow and shrink by megabytes.
-define(CHUNK, 100).

%% @doc Fills the cache, then replaces all sessions three times, the oldest first. Run it in a fresh node.
-spec sessions(file:filename(), bench_sessions:workload(), pos_integer(), bench_store:name()) -> map().
sessions(Dir, Workload, Size, Name) ->
    Template = bench_sessions:template(Dir, Workload),
    warm_up(Name, Template),
    Before = {bench_clock:rss(), erlang:memory(binary)},
    Worker = start(Name, ?SCOPE, [{max_bytes, bench_store:max_bytes(Size)}, {max_sessions, Size}]),
    insert_all(Worker, Template, Size, 0, Size),
    Filled = measure(Worker, Before, Size),
    insert_all(Worker, Template, Size, Size, 4 * Size),
    Churned = measure(Worker, Before, Size),
    #{store => Name, workload => Workload, size => Size, filled => Filled, churned => Churned}.

%% @doc Registers as many sessions as fit into `MaxBytes' and twice as many again, and returns by how many bytes the process has
%% grown.
-spec bound(file:filename(), bench_sessions:workload(), MaxBytes :: pos_integer()) -> map().
bound(Dir, Workload, MaxBytes) ->
    Template = bench_sessions:template(Dir, Workload),
    warm_up(rekindle, Template),
    Before = bench_clock:rss(),
    Worker = start(rekindle, ?SCOPE, [{max_bytes, MaxBytes}, {max_sessions, infinity}]),
    First = insert_until(Worker, Template, 0, fun(#{evicted := Evicted}) -> Evicted > 0 end),
    bench_clock:settle(),
    Full = bench_clock:rss() - Before,
    _ = insert_until(Worker, Template, First, fun(#{evicted := Evicted, sessions := Held}) -> Evicted > 2 * Held end),
    bench_clock:settle(),
    #{sessions := Sessions, bytes := Counted} = bench_store:info(?SCOPE),
    #{
        workload => Workload,
        max_bytes => MaxBytes,
        sessions => Sessions,
        counted_bytes => Counted,
        resident_full => Full,
        resident_churned => bench_clock:rss() - Before
    }.

insert_until(Worker, Template, From, Enough) ->
    insert_all(Worker, Template, infinity, From, From + ?CHUNK),
    case Enough(bench_store:info(?SCOPE)) of
        true -> From + ?CHUNK;
        false -> insert_until(Worker, Template, From + ?CHUNK, Enough)
    end.

%% Grows the parts of the node that grow with any cache, and loads the code of this one.
warm_up(Name, Template) ->
    lists:foreach(
        fun({Cache, Sessions}) ->
            Worker = start(Cache, warm_up, []),
            insert_all(Worker, Template, infinity, 0, Sessions),
            bench_worker:stop(Worker)
        end,
        [{loop, ?WARM_UP}, {Name, ?CHUNK}]
    ),
    %% A second after a scope has gone, Rekindle lets the system's allocator give back what it does not use.
    timer:sleep(2_000),
    bench_clock:settle().

measure(Worker, {Rss, Binary}, Size) ->
    timer:sleep(300),
    Resident = bench_clock:rss() - Rss,
    bench_clock:settle(),
    Live = bench_worker:run(Worker, fun(Store) -> {bench_store:live_bytes(Store), Store} end) + erlang:memory(binary) - Binary,
    #{resident => Resident / Size, live => Live / Size}.

start(Name, Scope, Options) ->
    bench_worker:start(fun() -> bench_store:open(Name, #{scope => Scope, options => Options}) end).

%% Registers the sessions from `From' to `To' - 1. A cache holds at most `Size'; the oldest goes first.
insert_all(Worker, Template, Size, From, To) ->
    lists:foreach(
        fun(First) ->
            ok = bench_worker:run(
                Worker, inserting(Size, First, bench_sessions:chunk(Template, First, min(First + ?CHUNK, To) - 1))
            ),
            erlang:garbage_collect()
        end,
        lists:seq(From, To - 1, ?CHUNK)
    ).

inserting(Size, First, Sessions) ->
    fun(Store) ->
        {_, Filled} = lists:foldl(fun(Session, {N, Acc}) -> {N + 1, insert(Acc, Size, N, Session)} end, {First, Store}, Sessions),
        tidy_up(Filled),
        {ok, Filled}
    end.

insert(Store, Size, N, Session) when N < Size ->
    bench_store:insert(Store, Session);
insert(Store, Size, N, Session) ->
    bench_store:replace(Store, bench_sessions:id(N - Size), Session).

%% The garbage of messages is no part of a cache, but can take megabytes. If the heap is the cache, garbage is a part of it,
%% and only the BEAM collects it.
tidy_up(Store) ->
    bench_store:is_on_heap(Store) orelse erlang:garbage_collect().
