%% @doc Measures the cost of a hit, a miss, an insertion and a deletion.
%%
%% All caches of a node hold the same sessions and are measured in turn, round by round, each in the process that opened it.
%% The data of that process is not on its heap, where each garbage collection would copy it, more often for one cache than for
%% another: keys are literals, and a session to insert is copied from a table, as a message is copied. A cache that does
%% nothing shows the cost of the loop, which the reader of the results subtracts.
-module(bench_micro).

-export([run/4]).

-type cache() :: {bench_store:name(), Size :: pos_integer(), Processes :: 1..2}.

-type settings() :: #{
    operations := [hit | miss | churn],
    rounds := pos_integer(),
    lookups := pos_integer(),
    churn := AtLeast :: pos_integer()
}.

-type row() :: #{
    store := bench_store:name(),
    workload := bench_sessions:workload(),
    size := pos_integer(),
    processes := 1..2,
    operation := hit | miss | insert | delete,
    words => non_neg_integer(),
    bytes => pos_integer(),
    cpu_ns := [float()],
    native_ns := [float()],
    wall_ns := [float()]
}.
%% `words' is the size of the term that a hit returns, `bytes' what Rekindle's scope takes. The others have a value for each
%% round, in nanoseconds per operation: CPU time of the threads that run Erlang; CPU time of Rekindle's own threads, then and
%% shortly after; and time by the clock, which counts two processes as one that is twice as fast.

%% Sessions inserted before they are deleted again, so that a cache keeps about its size.
-define(MOST_FRESH, 1000).
%% A round inserts at least one session for this many in the cache.
-define(CHURNED_SHARE, 4).
%% A pause in which Rekindle's own threads do the work that a turn has left for them.
-define(PAUSE_MS, 20).
%% Few enough keys not to push a small cache out of the processor's caches. A large cache has as many keys as sessions.
-define(FEWEST_KEYS, 20_000).
%% Numbers of sessions that are in no cache.
-define(MISSING, 1 bsl 40).
-define(FRESH, 1 bsl 41).

%% @doc Returns a row for each cache and operation. `Caches' says how many sessions are in each, and how many processes look
%% them up at once. One process makes the insertions.
-spec run(file:filename(), bench_sessions:workload(), [cache()], settings()) -> [row()].
run(Dir, Workload, Caches, #{operations := Operations} = Settings) ->
    Template = bench_sessions:template(Dir, Workload),
    Crews = [crew(Cache) || Cache <- Caches],
    fill(Template, Crews),
    [ok = bench_store:compress(Scope) || #{name := rekindle_compressed, scope := Scope} <- Crews],
    bench_clock:settle(),
    [Row#{workload => Workload} || Operation <- Operations, Row <- measure(Operation, Template, Crews, Settings)].

%% ---- the processes of a cache ----

%% A worker is `{Process, Number, Part}': it looks up sessions of this part.
crew({Name, Size, Processes} = Scope) ->
    Config = #{scope => Scope, options => [{max_bytes, bench_store:max_bytes(Size)}, {max_sessions, infinity}]},
    First = bench_worker:start(fun() -> bench_store:open(Name, Config) end),
    Workers = workers(Processes, First, Name, Config),
    %% If two workers have the same part, one of them fills the cache of both.
    #{name => Name, size => Size, scope => Scope, workers => Workers, fill => lists:ukeysort(3, Workers)}.

workers(1, First, _, _) ->
    [{First, 1, {0, 1}}];
workers(2, First, Name, Config) ->
    Store = bench_worker:run(First, fun(Store) -> {Store, Store} end),
    Self = self(),
    Second = bench_worker:start(fun() ->
        {Sessions, Joined} = bench_store:join(Name, Store, Config),
        Self ! {self(), Sessions},
        Joined
    end),
    receive
        {Second, own} -> [{First, 1, {0, 2}}, {Second, 2, {1, 2}}];
        {Second, shared} -> [{First, 1, {0, 1}}, {Second, 2, {0, 1}}]
    end.

fill(Template, Crews) ->
    Most = lists:max([Size || #{size := Size} <- Crews]),
    lists:foreach(fun(From) -> fill(Template, Crews, From, min(From + 1000, Most) - 1) end, lists:seq(0, Most - 1, 1000)).

fill(Template, Crews, From, To) ->
    Numbered = lists:zip(lists:seq(From, To), bench_sessions:chunk(Template, From, To)),
    bench_worker:run_all([
        {Worker, inserting([Session || {N, Session} <- Numbered, N < Size, N rem Parts =:= Rest])}
     || #{fill := Workers, size := Size} <- Crews, {Worker, _, {Rest, Parts}} <- Workers
    ]).

inserting(Sessions) ->
    fun(Store) -> {ok, lists:foldl(fun(Session, Acc) -> bench_store:insert(Acc, Session) end, Store, Sessions)} end.

%% ---- operations ----

measure(churn, Template, [#{size := Size} | _] = Crews, #{rounds := Rounds, churn := Sessions}) ->
    Length = min(?MOST_FRESH, max(1, Size div 5)),
    %% In each round the heap of a large tree is collected several times.
    Count = max(1, max(Sessions, Size div ?CHURNED_SHARE) div Length),
    Feed = feed(Template, Length, Count),
    Turns = rounds(Rounds, Crews, fun(_, _) -> fun(Store) -> churn(Store, Feed, Length, Count, {0, 0}) end end),
    [
        row(Crew, Operation, Length * Count, [churned(Operation, Turn) || Turn <- Of])
     || {Crew, Of} <- Turns, Operation <- [insert, delete]
    ];
measure(Operation, _Template, Crews, #{rounds := Rounds, lookups := Lookups}) ->
    Turns = rounds(Rounds, Crews, fun(#{size := Size}, {_, Number, Part}) ->
        Keys = keys({?MODULE, Operation, Size, Number, Part}, Lookups),
        fun(Store) -> {timed_lookups(Store, persistent_term:get(Keys), Lookups), Store} end
    end),
    [
        (row(Crew, Operation, Lookups * length(Workers), [looked_up(expected(Crew, Operation, Lookups), Turn) || Turn <- Of]))#{
            words => words(hd(Workers))
        }
     || {#{workers := Workers} = Crew, Of} <- Turns
    ].

row(#{name := Name, size := Size, workers := Workers} = Crew, Operation, Count, Samples) ->
    Each = fun(Place) -> [element(Place, Sample) / Count || Sample <- Samples] end,
    Row = #{
        store => Name,
        size => Size,
        processes => length(Workers),
        operation => Operation,
        cpu_ns => Each(1),
        native_ns => Each(2),
        wall_ns => Each(3)
    },
    case Name of
        rekindle -> Row#{bytes => bytes(Crew)};
        rekindle_compressed -> Row#{bytes => bytes(Crew)};
        _ -> Row
    end.

bytes(#{scope := Scope}) ->
    #{bytes := Bytes} = bench_store:info(Scope),
    Bytes.

%% The term is that of the first session.
words({Worker, _, _}) ->
    bench_worker:run(Worker, fun(Store) -> {erts_debug:flat_size(bench_store:lookup(Store, bench_sessions:id(0))), Store} end).

%% ---- turns ----

%% All caches have a turn in each round, and each round begins with another cache. The first round does not count.
rounds(Rounds, Crews, Task) ->
    Tasks = [{Crew, [{Worker, Task(Crew, All)} || {Worker, _, _} = All <- Workers]} || #{workers := Workers} = Crew <- Crews],
    [_ | Counted] = [
        begin
            {Last, First} = lists:split(Round rem length(Tasks), Tasks),
            [{Crew, turn(Work)} || {Crew, Work} <- First ++ Last]
        end
     || Round <- lists:seq(0, Rounds)
    ],
    [{Crew, [proplists:get_value(Crew, Round) || Round <- Counted]} || Crew <- Crews].

turn(Tasks) ->
    {Cpu, Native} = {bench_clock:cpu_of_erlang(), bench_clock:cpu_of_native()},
    Replies = bench_worker:run_all(Tasks),
    Used = bench_clock:cpu_of_erlang() - Cpu,
    timer:sleep(?PAUSE_MS),
    #{cpu => Used, native => bench_clock:cpu_of_native() - Native, replies => Replies}.

%% {Cpu, Native, Wall} of a turn.
looked_up(Expected, #{cpu := Cpu, native := Native, replies := Replies}) ->
    [Expected] = lists:usort([Hits || {_, _, Hits} <- Replies]),
    Wall = lists:max([End || {_, End, _} <- Replies]) - lists:min([Start || {Start, _, _} <- Replies]),
    {Cpu, Native, nanoseconds(Wall)}.

%% Insertions and deletions alternate too fast for the clock of CPU time, so the other clock separates them. The CPU time of
%% Rekindle's own threads counts for insertions.
churned(insert, #{cpu := Cpu, native := Native, replies := [{Insert, Delete}]}) ->
    {Cpu * Insert / (Insert + Delete), Native, nanoseconds(Insert)};
churned(delete, #{cpu := Cpu, replies := [{Insert, Delete}]}) ->
    {Cpu * Delete / (Insert + Delete), 0, nanoseconds(Delete)}.

nanoseconds(Native) ->
    erlang:convert_time_unit(Native, native, nanosecond).

%% ---- lookups ----

expected(#{name := loop}, _, _) -> 0;
expected(_, miss, _) -> 0;
expected(_, hit, Lookups) -> Lookups.

%% Random keys, in a tuple that is a literal.
keys({_, Operation, Size, _, Part} = Name, Lookups) ->
    Known = persistent_term:get(Name, none),
    Count = min(Lookups, max(?FEWEST_KEYS, Size)),
    Known =:= none andalso persistent_term:put(Name, list_to_tuple([key(Operation, Size, Part) || _ <- lists:seq(1, Count)])),
    Name.

key(miss, _Size, _Part) ->
    bench_sessions:id(?MISSING + rand:uniform(?MISSING));
key(hit, Size, {Rest, Parts}) ->
    Number = rand:uniform(Size) - 1,
    bench_sessions:id(Number - Number rem Parts + Rest).

timed_lookups(Store, Keys, Lookups) ->
    Start = erlang:monotonic_time(),
    Hits = lookups(Store, Keys, tuple_size(Keys), Lookups, 0),
    {Start, erlang:monotonic_time(), Hits}.

%% All keys, and those again.
lookups(_Store, _Keys, _N, 0, Hits) ->
    Hits;
lookups(Store, Keys, 0, Left, Hits) ->
    lookups(Store, Keys, tuple_size(Keys), Left, Hits);
lookups(Store, Keys, N, Left, Hits) ->
    case bench_store:lookup(Store, element(N, Keys)) of
        undefined -> lookups(Store, Keys, N - 1, Left - 1, Hits);
        _ -> lookups(Store, Keys, N - 1, Left - 1, Hits + 1)
    end.

%% ---- insertions and deletions ----

%% `Count' chunks of sessions in a table, and as a literal the keys of each chunk in another order.
feed(Template, Length, Count) ->
    Table = ets:new(?MODULE, [set, protected]),
    [ets:insert(Table, {N, bench_sessions:make(Template, ?FRESH + N)}) || N <- lists:seq(1, Length * Count)],
    persistent_term:put(
        ?MODULE, list_to_tuple([shuffled(Chunk * Length + 1, (Chunk + 1) * Length) || Chunk <- lists:seq(0, Count - 1)])
    ),
    Table.

shuffled(From, To) ->
    [Key || {_, Key} <- lists:sort([{rand:uniform(), bench_sessions:id(?FRESH + N)} || N <- lists:seq(From, To)])].

churn(Store, _Feed, _Length, 0, Walls) ->
    {Walls, Store};
churn(Store, Feed, Length, Chunk, {Insert, Delete}) ->
    Keys = element(Chunk, persistent_term:get(?MODULE)),
    Start = erlang:monotonic_time(),
    More = insertions(Store, Feed, Chunk * Length, Length),
    Middle = erlang:monotonic_time(),
    Less = deletions(More, Keys),
    End = erlang:monotonic_time(),
    churn(Less, Feed, Length, Chunk - 1, {Insert + Middle - Start, Delete + End - Middle}).

insertions(Store, _Feed, _N, 0) ->
    Store;
insertions(Store, Feed, N, Left) ->
    Session = ets:lookup_element(Feed, N, 2),
    insertions(bench_store:insert(Store, Session), Feed, N - 1, Left - 1).

deletions(Store, []) ->
    Store;
deletions(Store, [Key | Keys]) ->
    deletions(bench_store:delete(Store, Key), Keys).
