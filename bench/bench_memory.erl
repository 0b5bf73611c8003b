%% @doc What a session takes in memory, and whether Rekindle keeps to the bytes it was given.
%%
%% Live bytes are what the cache has in use: heap and binaries, tables and binaries, or what Rekindle counts. Resident
%% bytes are what the process of the operating system has grown by, garbage and free space of the allocators included.
-module(bench_memory).

-export([sessions/4, bound/3]).

-define(WARM_UP, 20_000).
%% Larger ones make the memory of the process that makes the sessions come and go by megabytes.
-define(CHUNK, 100).

%% @doc Fills the cache, then replaces all sessions three times over, the oldest first. Run it in a fresh node.
-spec sessions(file:filename(), bench_sessions:workload(), pos_integer(), bench_store:name()) -> map().
sessions(Dir, Workload, Size, Name) ->
    Template = bench_sessions:template(Dir, Workload),
    warm_up(Template),
    Before = {bench_clock:rss(), erlang:memory(binary)},
    Store = start(Name, [{max_bytes, bench_store:max_bytes(Size)}, {max_sessions, Size}]),
    insert_all(Store, Template, Size, 0, Size),
    Filled = measure(Store, Before, Size),
    insert_all(Store, Template, Size, Size, 4 * Size),
    Churned = measure(Store, Before, Size),
    #{store => Name, workload => Workload, size => Size, filled => Filled, churned => Churned}.

%% @doc Twice as many sessions again as fit into `MaxBytes', and how many bytes the process has grown by then.
-spec bound(file:filename(), bench_sessions:workload(), MaxBytes :: pos_integer()) -> map().
bound(Dir, Workload, MaxBytes) ->
    Template = bench_sessions:template(Dir, Workload),
    warm_up(Template),
    Before = bench_clock:rss(),
    Store = start(rekindle, [{max_bytes, MaxBytes}, {max_sessions, infinity}]),
    First = bound_loop(Store, Template, 0, fun(#{evicted := Evicted}) -> Evicted > 0 end),
    bench_clock:settle(),
    Full = bench_clock:rss() - Before,
    _ = bound_loop(Store, Template, First, fun(#{evicted := Evicted, sessions := Held}) -> Evicted > 2 * Held end),
    bench_clock:settle(),
    #{sessions := Sessions, bytes := Counted} = info(),
    #{
        workload => Workload,
        max_bytes => MaxBytes,
        sessions => Sessions,
        counted_bytes => Counted,
        resident_full => Full,
        resident_churned => bench_clock:rss() - Before
    }.

bound_loop(Store, Template, From, Enough) ->
    insert_all(Store, Template, 1 bsl 60, From, From + ?CHUNK),
    case Enough(info()) of
        true -> From + ?CHUNK;
        false -> bound_loop(Store, Template, From + ?CHUNK, Enough)
    end.

%% Grows what grows in any case.
warm_up(Template) ->
    insert_all(start(null, []), Template, ?WARM_UP, 0, ?WARM_UP),
    bench_clock:settle().

measure({Name, Pid} = Store, {Rss, Binary}, Size) ->
    timer:sleep(300),
    Resident = bench_clock:rss() - Rss,
    bench_clock:settle(),
    Live = live(Name, Store) + erlang:memory(binary) - Binary,
    true = is_process_alive(Pid),
    #{resident => Resident / Size, live => Live / Size}.

%% Beside binaries.
live(rekindle, _) ->
    #{bytes := Counted} = info(),
    Counted;
live(gb_trees, {_, Pid}) ->
    {_, Info} = process_info(Pid, garbage_collection_info),
    Words = [Value || {Key, Value} <- Info, Key =:= heap_size orelse Key =:= old_heap_size],
    lists:sum(Words) * erlang:system_info(wordsize);
live(_, Store) ->
    {_, Table} = ask(Store, store),
    ets:info(Table, memory) * erlang:system_info(wordsize).

%% Of the cache opened last: that of the listener the template came from may still be there.
info() ->
    lists:last(rekindle_admin:info()).

%% ---- the process that has the cache: as OTP's, it also opened it ----

start(Name, Options) ->
    {Name, spawn_link(fun() -> work(bench_store:open(Name, Options)) end)}.

%% Those from `From' up to, but without, `To'. The BEAM's caches hold at most `Size': the oldest goes first.
insert_all(Store, Template, Size, From, To) ->
    lists:foreach(
        fun(First) ->
            ask(Store, {insert, Size, First, bench_sessions:chunk(Template, First, First + ?CHUNK - 1)}),
            erlang:garbage_collect()
        end,
        lists:seq(From, To - 1, ?CHUNK)
    ).

ask({_, Pid}, Task) ->
    Pid ! {self(), Task},
    receive
        {Pid, Reply} -> Reply
    end.

work(Store) ->
    receive
        {From, store} ->
            From ! {self(), Store},
            work(Store);
        {From, {insert, Size, First, Sessions}} ->
            New = insert(Store, Size, First, Sessions),
            tidy_up(New),
            From ! {self(), ok},
            work(New)
    end.

%% What messages leave behind is no part of a cache, but can be megabytes. Where the heap is the cache, garbage is part
%% of it and left to the BEAM.
tidy_up({ssl_server_session_cache_db, _}) -> ok;
tidy_up(_) -> erlang:garbage_collect().

insert(Store, _Size, _Number, []) ->
    Store;
insert(Store, Size, Number, [{Key, Session} | Sessions]) when Number < Size ->
    insert(bench_store:insert(Store, Key, Session), Size, Number + 1, Sessions);
insert(Store, Size, Number, [{Key, Session} | Sessions]) ->
    %% Rekindle has its own bound, and does not obey the process that opened it.
    Less = bench_store:delete(Store, bench_sessions:id(Number - Size)),
    insert(bench_store:insert(Less, Key, Session), Size, Number + 1, Sessions).
