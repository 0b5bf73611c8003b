%% @doc What a lookup that hits, one that misses, an insertion and a deletion cost.
%%
%% All caches are filled with the same sessions, in one node, and measured in turn, round by round. Every session
%% comes to the process that works on a cache in a message, as in OTP. Keys are random, asked for in random order,
%% and made before the clock starts. What the same loop takes with a cache that does nothing is taken off.
-module(bench_micro).

-export([run/4]).

-type settings() :: #{processes := [1..2], rounds := pos_integer(), lookups := pos_integer(), churn_chunks := pos_integer()}.

%% Sessions in one message: many more at once, and the garbage collections of gb_trees get costlier than they are.
-define(CHURN_CHUNK, 200).
-define(MISSING, 1 bsl 40).
-define(FRESH, 1 bsl 41).

%% @doc A row for each cache, number of processes and operation, with `Size' sessions in each cache.
%%
%% Two processes share one cache. Where they cannot (`gb_trees'), each has its own with half of the sessions.
-spec run(file:filename(), bench_sessions:workload(), Size :: pos_integer(), settings()) -> [map()].
run(Dir, Workload, Size, #{processes := Counts} = Settings) ->
    Template = bench_sessions:template(Dir, Workload),
    Crews = [crew(Name, Size, Counts) || Name <- bench_store:all()],
    fill(Template, Size, Crews),
    Rows = lists:append([
        measure(Operation, Template, Size, Crews, Processes, Settings)
     || Processes <- Counts, Operation <- [hit, miss, churn]
    ]),
    [Row#{size => Size, workload => Workload} || Row <- Rows].

%% ---- who works on a cache ----

%% The processes that share the sessions, alone and two together.
crew(gb_trees, _Size, Counts) ->
    Crew = maps:from_list([
        {Count, [worker(bench_store:open(gb_trees, []), {Rest, Count}) || Rest <- lists:seq(0, Count - 1)]}
     || Count <- Counts
    ]),
    Crew#{name => gb_trees, fill => lists:append(maps:values(Crew))};
crew(Name, Size, _Counts) ->
    Store = bench_store:open(Name, [{max_bytes, bench_store:max_bytes(Size)}, {max_sessions, infinity}]),
    [First, Second] = [worker(Store, {0, 1}) || _ <- [1, 2]],
    #{name => Name, 1 => [First], 2 => [First, Second], fill => [First]}.

worker(Store, Part) ->
    {spawn_link(fun() -> work(Store, none) end), Part}.

chunk_size(Size) ->
    min(1000, Size div 2).

fill(Template, Size, Crews) ->
    Chunk = chunk_size(Size),
    lists:foreach(
        fun(Index) ->
            Sessions = bench_sessions:chunk(Template, Index * Chunk, (Index + 1) * Chunk - 1),
            [
                ask(Worker, {insert, Sessions})
             || #{fill := Workers} <- Crews, {_, {Rest, Parts}} = Worker <- Workers, Index rem Parts =:= Rest
            ]
        end,
        lists:seq(0, Size div Chunk - 1)
    ).

%% ---- rounds ----

measure(churn, Template, _Size, Crews, Processes, #{rounds := Rounds, churn_chunks := Chunks}) ->
    Length = ?CHURN_CHUNK,
    Feed = [fresh(Template, Length, Number) || Number <- lists:seq(1, Chunks * Processes)],
    Nets = rounds(Rounds, Crews, fun(#{Processes := Workers}) -> churn(Workers, Feed) end),
    Count = Chunks * Processes * Length,
    lists:append([
        [
            row(Name, insert, Processes, Count, [Cpu * Insert / (Insert + Delete), Insert]),
            row(Name, delete, Processes, Count, [Cpu * Delete / (Insert + Delete), Delete])
        ]
     || {Name, [Cpu, Insert, Delete]} <- Nets
    ]);
measure(Operation, _Template, Size, Crews, Processes, #{rounds := Rounds, lookups := Lookups}) ->
    [
        ask(Worker, {keys, [key(Operation, Size, Part) || _ <- lists:seq(1, Lookups)]})
     || #{Processes := Workers} <- Crews, {_, Part} = Worker <- Workers
    ],
    Nets = rounds(Rounds, Crews, fun(#{name := Name, Processes := Workers}) ->
        lookups(Workers, expected(Name, Operation, Lookups))
    end),
    [row(Name, Operation, Processes, Lookups * Processes, Net) || {Name, Net} <- Nets].

%% All caches once in each round. The medians of each cache, less those of the cache that does nothing.
rounds(Rounds, Crews, Measure) ->
    All = [[{Name, Measure(Crew)} || #{name := Name} = Crew <- Crews] || _ <- lists:seq(1, Rounds)],
    [{null, Baseline} | Medians] = [
        {Name, medians([proplists:get_value(Name, Round) || Round <- All])}
     || #{name := Name} <- Crews
    ],
    [{Name, lists:zipwith(fun erlang:'-'/2, Of, Baseline)} || {Name, Of} <- Medians].

medians([[] | _]) -> [];
medians(Samples) -> [bench_clock:median([hd(Sample) || Sample <- Samples]) | medians([tl(Sample) || Sample <- Samples])].

row(Name, Operation, Processes, Count, [Cpu, Wall]) ->
    #{store => Name, operation => Operation, processes => Processes, cpu_ns => Cpu / Count, wall_ns => Wall / Count}.

%% [Cpu, Wall] in nanoseconds.
lookups(Workers, Expected) ->
    [prepare(Worker, lookups) || Worker <- Workers],
    Cpu = bench_clock:cpu(),
    Done = go(Workers),
    Used = bench_clock:cpu() - Cpu,
    [Expected = Hits || {Hits, _} <- Done],
    [Used, lists:max([Wall || {_, Wall} <- Done])].

%% [Cpu, WallOfInsertions, WallOfDeletions] in nanoseconds. The CPU time is that of both: they take turns too
%% short for that clock, and are told apart by the wall clock.
churn(Workers, Feed) ->
    Cpu = bench_clock:cpu(),
    Walls = churn_chunks(Workers, Feed, []),
    Used = bench_clock:cpu() - Cpu,
    [Used, lists:sum([Insert || {Insert, _} <- Walls]), lists:sum([Delete || {_, Delete} <- Walls])].

churn_chunks(_Workers, [], Walls) ->
    Walls;
churn_chunks(Workers, Feed, Walls) ->
    {Chunks, Rest} = lists:split(length(Workers), Feed),
    [prepare(Worker, {churn, Chunk}) || {Worker, Chunk} <- lists:zip(Workers, Chunks)],
    Done = go(Workers),
    Longest = {lists:max([Insert || {Insert, _} <- Done]), lists:max([Delete || {_, Delete} <- Done])},
    churn_chunks(Workers, Rest, [Longest | Walls]).

key(miss, _Size, _Part) ->
    bench_sessions:id(?MISSING + rand:uniform(?MISSING));
key(hit, Size, {Rest, Parts}) ->
    Number = rand:uniform(Size) - 1,
    Chunk = chunk_size(Size),
    Index = Number div Chunk,
    bench_sessions:id((Index - Index rem Parts + Rest) * Chunk + Number rem Chunk).

expected(null, _, _) -> 0;
expected(_, miss, _) -> 0;
expected(_, hit, Lookups) -> Lookups.

%% Sessions that are in no cache, and their keys in another order.
fresh(Template, Length, Number) ->
    First = ?FRESH + Number * Length,
    Sessions = bench_sessions:chunk(Template, First, First + Length - 1),
    Keys = [bench_sessions:id(N) || N <- lists:seq(First, First + Length - 1)],
    {Sessions, [Key || {_, Key} <- lists:sort([{rand:uniform(), Key} || Key <- Keys])]}.

%% ---- the processes ----

ask({Pid, _}, Task) ->
    Pid ! {self(), Task},
    receive
        {Pid, Reply} -> Reply
    end.

prepare(Worker, Task) ->
    ready = ask(Worker, Task).

go(Workers) ->
    [Pid ! {self(), go} || {Pid, _} <- Workers],
    [
        receive
            {Pid, Reply} -> Reply
        end
     || {Pid, _} <- Workers
    ].

work(Store, Keys) ->
    receive
        {From, {insert, Sessions}} ->
            Filled = insert(Store, Sessions),
            From ! {self(), ok},
            work(Filled, Keys);
        {From, {keys, New}} ->
            From ! {self(), ok},
            work(Store, New);
        {From, lookups} ->
            await_go(From),
            Start = erlang:monotonic_time(),
            Hits = lookup(Store, Keys, 0),
            From ! {self(), {Hits, since(Start)}},
            work(Store, Keys);
        {From, {churn, {Sessions, Gone}}} ->
            await_go(From),
            Start = erlang:monotonic_time(),
            More = insert(Store, Sessions),
            Inserted = since(Start),
            Again = erlang:monotonic_time(),
            Less = delete(More, Gone),
            From ! {self(), {Inserted, since(Again)}},
            work(Less, Keys)
    end.

await_go(From) ->
    From ! {self(), ready},
    receive
        {From, go} -> ok
    end.

since(Start) ->
    erlang:convert_time_unit(erlang:monotonic_time() - Start, native, nanosecond).

lookup(_Store, [], Hits) ->
    Hits;
lookup(Store, [Key | Keys], Hits) ->
    case bench_store:lookup(Store, Key) of
        undefined -> lookup(Store, Keys, Hits);
        _ -> lookup(Store, Keys, Hits + 1)
    end.

insert(Store, []) ->
    Store;
insert(Store, [{Key, Session} | Sessions]) ->
    insert(bench_store:insert(Store, Key, Session), Sessions).

delete(Store, []) ->
    Store;
delete(Store, [Key | Keys]) ->
    delete(bench_store:delete(Store, Key), Keys).
