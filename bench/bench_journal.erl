%% @doc Measures journals: their cost, speed and size, and what they lose in a crash. Writes `journal_fleet.md'.
-module(bench_journal).

-export([start/1]).

-import(bench_report, [table/2, count/1]).

-define(CLIENT_CERT_BYTES, 900).
-define(WARM_UP, 10_000).

%% @doc The arguments are `quick' or `full', the folder for the results and Python's command.
-spec start([string()]) -> no_return().
start([Mode, Results, Python]) ->
    Start = bench_report:start(),
    Dir = filename:join(filename:absname(Results), ".journal"),
    Certs = filename:join(Dir, "certs"),
    ok = bench_certs:make(Certs, ?CLIENT_CERT_BYTES),
    Keys = filename:join(Dir, "keys"),
    ok = file:write_file(Keys, ["bench ", base64:encode(crypto:strong_rand_bytes(32)), "\n"]),
    ok = file:change_mode(Keys, 8#600),
    Setting = (settings(list_to_atom(Mode)))#{dir => Dir, certs => Certs, keys => Keys, python => Python},
    Wanted =
        case os:getenv("PARTS") of
            false -> all;
            Names -> [list_to_atom(Name) || Name <- string:lexemes(Names, " ")]
        end,
    Parts = [
        begin
            io:format("~4b s  ~ts~n", [bench_report:seconds_since(Start), Part]),
            Text = Measure(Setting),
            io:format("~ts~n", [Text]),
            Text
        end
     || {Part, Measure} <- parts(), Wanted =:= all orelse lists:member(Part, Wanted)
    ],
    ok = file:del_dir_r(Dir),
    About = bench_report:about("make bench-journal", bench_report:machine(Start)),
    Text = ["# Journals\n\n", About, "\n" | Parts],
    ok = file:write_file(filename:join(Results, "journal_fleet.md"), unicode:characters_to_binary(Text)),
    halt(0).

settings(quick) ->
    #{
        registrations => {5, 5_000, 200},
        throughput => {3, 30_000},
        many => 50_000,
        kills => {2, [500, 5000]},
        latencies => 300,
        devices => 500,
        revocations => 5_000
    };
settings(full) ->
    #{
        registrations => {7, 20_000, 500},
        throughput => {3, 150_000},
        many => 1_000_000,
        kills => {10, [500, 5000]},
        latencies => 2000,
        devices => 20_000,
        revocations => 100_000
    }.

parts() ->
    [
        {registration, fun registration/1},
        {throughput, fun throughput/1},
        {many, fun many/1},
        {latency, fun latency/1},
        {revocations, fun revocations/1},
        {kills, fun kills/1},
        {storm, fun storm/1}
    ].

%% ---- what a registration costs ----

registration(#{registrations := {Rounds, Burst, Single}} = Setting) ->
    with_valkey(Setting, fun(Valkey) ->
        Nodes = [{Kind, start_node(Kind, Valkey, Setting)} || Kind <- [none, folder, valkey]],
        Measure = fun(Node, Round) ->
            bench_journal_node:call(Node, fun() -> registrations(Round * 2 * Burst, Burst, Single) end)
        end,
        [Measure(Node, 0) || {_, Node} <- Nodes],
        All = [[{Kind, Measure(Node, Round)} || {Kind, Node} <- Nodes] || Round <- lists:seq(1, Rounds)],
        Medians = [
            {Kind, [bench_clock:median([element(Place, proplists:get_value(Kind, Round)) || Round <- All]) || Place <- [1, 2]]}
         || {Kind, _} <- Nodes
        ],
        [bench_journal_node:stop(Node) || {_, Node} <- Nodes],
        None = proplists:get_value(none, Medians),
        [
            "\n## What a registration costs\n\nCPU time of a call of `rekindle:update/3` with a session of OTP, in nanoseconds, without that of "
            "the journal's threads. In the first two columns, ",
            count(Burst),
            " calls follow each other. In the others, a timer makes "
            "a call every 3 ms, and its costs are included. Medians of ",
            integer_to_list(Rounds),
            " rounds, in which the journals take turns. Target: the journal adds less than 2,000.\n\n",
            table(["journal", "one of many", "added", "timer and one call", "added"], [
                [atom_to_list(Kind)] ++
                    lists:append([[whole(Value), whole(Value - Base)] || {Value, Base} <- lists:zip(Values, None)])
             || {Kind, Values} <- Medians
            ])
        ]
    end).

registrations(From, Burst, Single) ->
    {Singles, Many} = lists:split(Single, bench_journal_node:chunk(From, From + Single + Burst - 1)),
    bench_clock:settle(),
    Cpu = bench_journal_node:scheduler_cpu(),
    bench_journal_node:update_all(Many),
    Used = bench_journal_node:scheduler_cpu() - Cpu,
    timer:sleep(500),
    CpuOfSingles = bench_journal_node:scheduler_cpu(),
    [
        begin
            timer:sleep(3),
            ok = bench_journal_node:update_all([Session])
        end
     || Session <- Singles
    ],
    {Used / Burst, (bench_journal_node:scheduler_cpu() - CpuOfSingles) / Single}.

%% ---- throughput ----

throughput(#{throughput := {Rounds, Sessions}} = Setting) ->
    Rows = [[atom_to_list(Kind) | throughput(Kind, Rounds, Sessions, Setting)] || Kind <- [folder, valkey]],
    [
        "\n## Into a log and out of it\n\n",
        count(Sessions),
        " sessions, which one process registers as fast as it can. *Written*: until "
        "all are in the log. *Followed*: until another node has applied all, while they are written. *Replayed*: by a node that starts. "
        "CPU time per session, of the journal's threads and of the whole node that replays. Medians of ",
        integer_to_list(Rounds),
        " rounds. Target: 50,000 per second.\n\n",
        table(
            ["journal", "written per second", "CPU, writing", "followed per second", "replayed per second", "CPU, replay"], Rows
        )
    ].

throughput(Kind, Rounds, Sessions, Setting) ->
    Samples = [throughput(Kind, Sessions, Setting) || _ <- lists:seq(1, Rounds)],
    [
        case [Value || #{Key := Value} <- Samples, Value =/= none] of
            [] -> "";
            Values -> [whole(bench_clock:median(Values)), Unit]
        end
     || {Key, Unit} <- [{in, ""}, {in_cpu, " ns"}, {followed, ""}, {replayed, ""}, {out_cpu, " ns"}]
    ].

throughput(Kind, Sessions, Setting) ->
    with_log(Kind, Setting, fun(Log) ->
        Writer = start_node(Kind, Log, Setting),
        Followers = [start_node(Kind, Log, Setting) || Kind =:= valkey],
        [bench_journal_node:await(Node, fun bench_journal_node:is_replayed/1) || Node <- [Writer | Followers]],
        Self = self(),
        Following = [
            spawn_link(fun() ->
                Self ! {self(), bench_journal_node:await(Node, fun(#{sessions := Held}) -> Held =:= Sessions end)}
            end)
         || Node <- Followers
        ],
        {Start, Written, InCpu} = bench_journal_node:call(Writer, fun() -> write(Sessions) end),
        Followed = [
            receive
                {Pid, Known} -> Sessions * 1.0e6 / (Known - Start)
            end
         || Pid <- Following
        ],
        lists:foreach(fun bench_journal_node:stop/1, [Writer | Followers]),
        Reader = start_node(Kind, Log, Setting),
        bench_journal_node:await(Reader, fun bench_journal_node:is_replayed/1),
        #{sessions := Sessions, journal := #{replay := Replay}} = bench_journal_node:info(Reader),
        OutCpu = bench_journal_node:cpu_since(Reader),
        bench_journal_node:stop(Reader),
        #{
            in => Sessions * 1.0e6 / (Written - Start),
            in_cpu => InCpu / Sessions,
            followed =>
                case Followed of
                    [] -> none;
                    [Rate] -> Rate
                end,
            replayed => Sessions * 1.0e3 / max(1, Replay),
            out_cpu => OutCpu / Sessions
        }
    end).

write(Sessions) ->
    All = bench_journal_node:chunk(0, Sessions - 1),
    bench_clock:settle(),
    Cpu = bench_journal_node:journal_cpu(),
    Start = bench_journal_node:now_us(),
    bench_journal_node:update_all(All),
    Written = await_written(Sessions),
    {Start, Written, bench_journal_node:journal_cpu() - Cpu}.

%% The log also has a record for the template.
await_written(Sessions) ->
    [#{dropped := 0, written := Written}] = [Journal || #{journal := #{} = Journal} <- rekindle_admin:info()],
    case Written > Sessions of
        true ->
            bench_journal_node:now_us();
        false ->
            timer:sleep(1),
            await_written(Sessions)
    end.

%% ---- a million ----

many(#{many := Sessions} = Setting) ->
    [
        "\n## ",
        count(Sessions),
        " sessions\n\nBytes per session: of the sealed record, in the log, on the wire, and written to files (by `write`, and to "
        "the disk). The last three columns are what Rekindle counts in a node that has replayed the log, how much the process of that "
        "node has grown, and how much a process grows that registers the sessions one by one. Targets: a record under 260 bytes, "
        "replay of a million under 15 s.\n\n",
        table(
            [
                "journal",
                "record",
                "kept",
                "on the wire, in",
                "out",
                "written",
                "to the disk",
                "of the records",
                "replay",
                "counted",
                "resident, replayed",
                "resident, registered"
            ],
            [[atom_to_list(Kind) | many(Kind, Sessions, Setting)] || Kind <- [folder, valkey]]
        )
    ].

many(Kind, Sessions, Setting) ->
    with_log(Kind, Setting, fun(Log) ->
        {KeptBefore, _, _} = size_of(Kind, Log),
        Writer = start_node(Kind, Log, Setting),
        bench_journal_node:await(Writer, fun bench_journal_node:is_replayed/1),
        {CharsBefore, DiskBefore} = written(Writer),
        ok = bench_journal_node:call(Writer, fun() -> bench_journal_node:fill(0, Sessions) end),
        bench_journal_node:await(Writer, fun(#{journal := #{written := Written}}) -> Written > Sessions end),
        %% Synced.
        timer:sleep(500),
        #{written := Records, written_bytes := Bytes, dropped := 0} = bench_journal_node:journal(Writer),
        {Chars, Disk} = written(Writer),
        Registered = grown(Writer),
        bench_journal_node:stop(Writer),
        {Kept, In, OutBefore} = size_of(Kind, Log),
        Reader = start_node(Kind, Log, Setting),
        bench_journal_node:await(Reader, fun bench_journal_node:is_replayed/1),
        {_, _, Out} = size_of(Kind, Log),
        #{sessions := Sessions, bytes := Counted, journal := #{replay := Replay}} = bench_journal_node:info(Reader),
        Replayed = grown(Reader),
        bench_journal_node:stop(Reader),
        Each = fun(Value) -> one(Value / Sessions) end,
        [one(Bytes / Records), Each(Kept - KeptBefore)] ++
            case Kind of
                valkey -> [Each(In), Each(Out - OutBefore), "", "", ""];
                folder -> ["", "", Each(Chars - CharsBefore), Each(Disk - DiskBefore), ["×", one((Chars - CharsBefore) / Bytes)]]
            end ++
            [io_lib:format("~.1f s", [Replay / 1000]), Each(Counted), Each(Replayed), Each(Registered)]
    end).

grown(#{rss_before := Before} = Node) ->
    bench_journal_node:call(Node, fun() ->
        bench_clock:settle(),
        bench_clock:rss() - Before
    end).

%% The size of the log, and the bytes that the server has received and sent.
size_of(folder, Folder) ->
    {filelib:fold_files(Folder, "", true, fun(File, Sum) -> Sum + filelib:file_size(File) end, 0), 0, 0};
size_of(valkey, Valkey) ->
    Info = rekindle_valkey:command(Valkey, ["INFO"]),
    list_to_tuple([
        begin
            {match, [Number]} = re:run(Info, Name ++ ":([0-9]+)", [{capture, all_but_first, list}]),
            list_to_integer(Number)
        end
     || Name <- ["used_memory", "total_net_input_bytes", "total_net_output_bytes"]
    ]).

written(#{os_pid := OsPid}) ->
    {ok, Text} = file:read_file("/proc/" ++ OsPid ++ "/io"),
    {match, [Chars, Disk]} = re:run(Text, "wchar: ([0-9]+).*\nwrite_bytes: ([0-9]+)", [dotall, {capture, all_but_first, list}]),
    {list_to_integer(Chars), list_to_integer(Disk)}.

%% ---- how soon ----

latency(#{latencies := Count} = Setting) ->
    Times = with_valkey(Setting, fun(Valkey) ->
        [One, Other] = Nodes = [start_node(valkey, Valkey, Setting) || _ <- [1, 2]],
        [bench_journal_node:await(Node, fun bench_journal_node:is_replayed/1) || Node <- Nodes],
        Self = self(),
        Watcher = spawn_link(fun() -> Self ! {self(), bench_journal_node:call(Other, fun() -> watch(0, Count) end)} end),
        Made = bench_journal_node:call(One, fun() -> make_slowly(0, Count) end),
        Known =
            receive
                {Watcher, Times} -> Times
            end,
        lists:foreach(fun bench_journal_node:stop/1, Nodes),
        [(Then - When) / 1000 || {When, Then} <- lists:zip(Made, Known)]
    end),
    [
        "\n## How soon a session is known elsewhere\n\nMilliseconds from before the registration on one node until a lookup on another node "
        "finds the session, through Valkey; ",
        count(Count),
        " sessions, one every 5 ms. The other node looks all the time.\n\n",
        table(["median", "p99", "longest"], [[two(bench_clock:percentile(Times, Part)) || Part <- [0.5, 0.99, 1.0]]])
    ].

make_slowly(From, Count) ->
    timer:sleep(500),
    Cache = bench_journal_node:cache(),
    [
        begin
            timer:sleep(5),
            Now = bench_journal_node:now_us(),
            ok = rekindle:update(Cache, bench_sessions:key(Session), Session),
            Now
        end
     || Session <- bench_journal_node:chunk(From, From + Count - 1)
    ].

watch(From, Count) ->
    Cache = bench_journal_node:cache(),
    [watch_for(Cache, bench_sessions:id(N)) || N <- lists:seq(From, From + Count - 1)].

watch_for(Cache, Id) ->
    case rekindle:lookup(Cache, Id) of
        undefined ->
            erlang:yield(),
            watch_for(Cache, Id);
        _ ->
            bench_journal_node:now_us()
    end.

%% ---- revocations of another node ----

revocations(#{many := Sessions, revocations := Count} = Setting) ->
    {DurableMs, AppliedMs, Revoked, Calls} = with_valkey(Setting, fun(Valkey) ->
        [One, Other] = Nodes = [start_node(valkey, Valkey, Setting) || _ <- [1, 2]],
        [bench_journal_node:await(Node, fun bench_journal_node:is_replayed/1) || Node <- Nodes],
        ok = bench_journal_node:call(Other, fun() -> bench_journal_node:fill(0, Sessions) end),
        bench_journal_node:await(One, fun(#{sessions := Held}) -> Held =:= Sessions end),
        Self = self(),
        Remembers = fun(#{journal := #{revocations := Known}}) -> Known =:= Count end,
        Calls = spawn_link(fun() ->
            Self ! {self(), bench_journal_node:call(Other, fun() -> register_until(Remembers, Sessions) end)}
        end),
        %% The other node has begun.
        timer:sleep(1000),
        {Start, End, Revoked} = bench_journal_node:call(One, fun() -> revoke(Count) end),
        Applied = bench_journal_node:await(Other, Remembers),
        Times =
            receive
                {Calls, All} -> All
            end,
        lists:foreach(fun bench_journal_node:stop/1, Nodes),
        {(End - Start) / 1000, (Applied - Start) / 1000, Revoked, Times}
    end),
    [
        "\n## Revocations of another node\n\nOne call on one node revokes ",
        count(Count),
        " certificates by their fingerprints. Another "
        "node holds ",
        count(Sessions),
        " sessions, and registers a session every millisecond meanwhile. Milliseconds until the call "
        "answers, until the other node has applied all, and of a registration there. Marks: applied in 10,000, a registration in 50.\n\n",
        table(["answer", "after", "applied after", "registrations", "median", "p99", "longest"], [
            [atom_to_list(Revoked), whole(DurableMs), whole(AppliedMs), count(length(Calls))] ++
                [two(bench_clock:percentile(Calls, Part)) || Part <- [0.5, 0.99, 1.0]]
        ])
    ].

revoke(Count) ->
    Fingerprints = [<<N:256>> || N <- lists:seq(1, Count)],
    Start = bench_journal_node:now_us(),
    Revoked = element(1, rekindle_admin:revoke(Fingerprints)),
    {Start, bench_journal_node:now_us(), Revoked}.

%% Registers new sessions until the condition holds, and returns how long each took, in milliseconds.
register_until(Condition, From) ->
    register_until(Condition, From, []).

register_until(Condition, From, Times) ->
    timer:sleep(1),
    [Session] = bench_journal_node:chunk(From, From),
    Start = erlang:monotonic_time(nanosecond),
    ok = rekindle:update(bench_journal_node:cache(), bench_sessions:key(Session), Session),
    Took = (erlang:monotonic_time(nanosecond) - Start) / 1.0e6,
    IsDone = (From rem 100 =:= 0) andalso Condition(bench_journal_node:info()),
    case IsDone of
        true -> [Took | Times];
        false -> register_until(Condition, From + 1, [Took | Times])
    end.

%% ---- what is lost ----

kills(#{kills := {Kills, Rates}} = Setting) ->
    [
        "\n## What `kill -9` loses\n\nLost sessions, and the milliseconds from the registration of the last session that was kept to that of the last "
        "session before the kill, with the journal in a folder; ",
        integer_to_list(Kills),
        " kills each, after more than a second of load.\n\n",
        table(["sessions per second", "median", "worst", "sessions, median", "worst"], [
            begin
                Lost = killed(Rate, Kills, Setting),
                [count(Rate)] ++
                    [one(bench_clock:percentile([Ms || {Ms, _} <- Lost], Part)) || Part <- [0.5, 1.0]] ++
                    [integer_to_list(bench_clock:percentile([Number || {_, Number} <- Lost], Part)) || Part <- [0.5, 1.0]]
            end
         || Rate <- Rates
        ])
    ].

killed(Rate, Kills, Setting) ->
    with_log(folder, Setting, fun(Folder) ->
        Times = Folder ++ ".times",
        First = start_node(folder, Folder, Setting),
        {Lost, Last, _} = lists:foldl(
            fun(_, {Lost, Node, From}) ->
                ok = bench_journal_node:call(Node, fun() -> load(From, Rate, Times) end),
                timer:sleep(1000 + rand:uniform(200)),
                bench_journal_node:kill(Node),
                Again = start_node(folder, Folder, Setting),
                bench_journal_node:await(Again, fun bench_journal_node:is_replayed/1),
                {ok, Made} = file:read_file(Times),
                Stamps = [Stamp || <<Stamp:64>> <= Made],
                Held = bench_journal_node:call(Again, fun() -> held(From, length(Stamps)) end),
                {[lost(Stamps, Held) | Lost], Again, From + length(Stamps)}
            end,
            {[], First, 0},
            lists:seq(1, Kills)
        ),
        bench_journal_node:stop(Last),
        Lost
    end).

%% The node writes to a file when it registered each session. The file survives the node, as its log does.
load(From, Rate, Times) ->
    spawn(fun() ->
        {ok, File} = file:open(Times, [write, raw, binary]),
        load(bench_journal_node:cache(), File, From, 0, Rate, bench_journal_node:now_us())
    end),
    ok.

load(Cache, File, From, Count, Rate, Start) ->
    case (bench_journal_node:now_us() - Start) * Rate div 1_000_000 of
        Due when Due > Count ->
            [Session] = bench_journal_node:chunk(From + Count, From + Count),
            ok = rekindle:update(Cache, bench_sessions:key(Session), Session),
            ok = file:write(File, <<(bench_journal_node:now_us()):64>>),
            load(Cache, File, From, Count + 1, Rate, Start);
        _ ->
            timer:sleep(1),
            load(Cache, File, From, Count, Rate, Start)
    end.

held(From, Count) ->
    Cache = bench_journal_node:cache(),
    [rekindle:lookup(Cache, bench_sessions:id(N)) =/= undefined || N <- lists:seq(From, From + Count - 1)].

lost(Stamps, Held) ->
    Kept = [Stamp || {Stamp, true} <- lists:zip(Stamps, Held)],
    {(lists:last(Stamps) - lists:last(Kept)) / 1000, length(Stamps) - length(Kept)}.

%% ---- the storm ----

storm(#{devices := Devices, certs := Certs} = Setting) ->
    Shared = with_valkey(Setting, fun(Valkey) -> bench_storm:run(Certs, rekindle, journal(valkey, Valkey, Setting), Setting) end),
    Rows = Shared ++ bench_storm:run(Certs, gb_trees, none, Setting),
    [
        "\n## All devices at once, after a rolling restart\n\nThree nodes, ",
        count(Devices),
        " devices (OpenSSL's TLS 1.2, ECDSA P-256, eight "
        "at a time, each to a random node). The devices come without a session; the nodes are restarted one after the other; the devices "
        "come back. CPU time per connection. OTP's cache has room for all. Target: 99 % resumed.\n\n",
        table(["cache", "storm", "resumed", "failed", "handshakes per second", "nodes' CPU", "devices' CPU"], [
            [
                maps:get(Store, #{rekindle => "Rekindle, Valkey", gb_trees => "OTP's own"}),
                maps:get(Storm, #{first => "first", restarted => "after the restarts"}),
                io_lib:format("~.2f %", [100 * Resumed]),
                integer_to_list(Failed),
                whole(Rate),
                [whole(Nodes / 1000), " µs"],
                [whole(Client / 1000), " µs"]
            ]
         || #{
                store := Store,
                storm := Storm,
                resumed := Resumed,
                failed := Failed,
                per_second := Rate,
                server_cpu_ns := Nodes,
                client_cpu_ns := Client
            } <- Rows
        ])
    ].

%% ---- logs and nodes ----

start_node(Kind, Log, #{certs := Certs} = Setting) ->
    bench_journal_node:start(Certs, journal(Kind, Log, Setting)).

journal(none, _, _) -> none;
journal(folder, #{dir := Server}, Setting) -> journal(folder, Server ++ ".folder", Setting);
journal(folder, Folder, #{keys := Keys}) -> {folder, Folder, [{key_file, Keys}]};
journal(valkey, Server, #{keys := Keys}) -> {valkey, rekindle_valkey:url(Server), [{key_file, Keys}]}.

with_log(valkey, Setting, Use) -> with_valkey(Setting, Use);
with_log(folder, Setting, Use) -> Use(fresh("folder", Setting)).

with_valkey(Setting, Use) ->
    [Program | _] = rekindle_valkey:programs(),
    Server = rekindle_valkey:start(Program, fresh("valkey", Setting)),
    try
        Use(Server)
    after
        rekindle_valkey:stop(Server)
    end.

fresh(Name, #{dir := Dir}) ->
    filename:join(Dir, Name ++ integer_to_list(erlang:unique_integer([positive]))).

%% ---- words ----

whole(Value) when Value < 0 -> ["-", whole(-Value)];
whole(Value) -> count(round(Value)).

one(Value) -> io_lib:format("~.1f", [float(Value)]).
two(Value) -> io_lib:format("~.2f", [float(Value)]).
