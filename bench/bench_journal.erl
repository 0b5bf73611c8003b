%% @doc Measures journals: what they cost, how fast they are, how large, and what is lost when. Writes
%% `journal_fleet.md'.
-module(bench_journal).

-export([start/1]).

-import(bench_report, [table/2, count/1]).

-define(CLIENT_CERT_BYTES, 900).
-define(WARM_UP, 10_000).

%% @doc The arguments are `quick' or `full', the folder for the results and Python's command.
-spec start([string()]) -> no_return().
start([Mode, Results, Python]) ->
    Begun = erlang:monotonic_time(second),
    Dir = filename:join(filename:absname(Results), ".journal"),
    Certs = filename:join(Dir, "certs"),
    ok = bench_certs:make(Certs, ?CLIENT_CERT_BYTES),
    Keys = filename:join(Dir, "keys"),
    ok = file:write_file(Keys, ["bench ", base64:encode(crypto:strong_rand_bytes(32)), "\n"]),
    ok = file:change_mode(Keys, 8#600),
    Setting = (settings(list_to_atom(Mode)))#{dir => Dir, certs => Certs, keys => Keys, python => Python},
    Wanted = case os:getenv("PARTS") of false -> all; Names -> [list_to_atom(Name) || Name <- string:lexemes(Names, " ")] end,
    Parts = [
        begin
            say(Begun, "~ts", [Part]),
            Text = Measure(Setting),
            io:format("~ts~n", [Text]),
            Text
        end
     || {Part, Measure} <- parts(), Wanted =:= all orelse lists:member(Part, Wanted)
    ],
    ok = file:del_dir_r(Dir),
    Took = erlang:monotonic_time(second) - Begun,
    About = bench_report:about("make bench-journal", bench_report:machine(Took)),
    Text = ["# Journals\n\n", About, "\n" | Parts],
    ok = file:write_file(filename:join(Results, "journal_fleet.md"), unicode:characters_to_binary(Text)),
    halt(0).

settings(quick) ->
    #{
        registrations => {5, 5_000, 200}, throughput => {3, 30_000}, many => 50_000, kills => {2, [500, 5000]},
        latencies => 300, devices => 500
    };
settings(full) ->
    #{
        registrations => {7, 20_000, 500}, throughput => {3, 150_000}, many => 1_000_000, kills => {10, [500, 5000]},
        latencies => 2000, devices => 20_000
    }.

parts() ->
    [
        {registration, fun registration/1},
        {throughput, fun throughput/1},
        {many, fun many/1},
        {latency, fun latency/1},
        {kills, fun kills/1},
        {storm, fun storm/1}
    ].

%% ---- what a registration costs ----

registration(#{registrations := {Rounds, Burst, Single}} = Setting) ->
    with_valkey(Setting, fun(Valkey) ->
        Nodes = [{Kind, start_node(Kind, Valkey, Setting)} || Kind <- [none, folder, valkey]],
        Measure = fun(Node, Round) -> bench_journal_node:call(Node, fun() -> registrations(Round * 2 * Burst, Burst, Single) end) end,
        [Measure(Node, 0) || {_, Node} <- Nodes],
        All = [[{Kind, Measure(Node, Round)} || {Kind, Node} <- Nodes] || Round <- lists:seq(1, Rounds)],
        Medians = [
            {Kind, [bench_clock:median([element(Place, proplists:get_value(Kind, Round)) || Round <- All]) || Place <- [1, 2]]}
         || {Kind, _} <- Nodes
        ],
        [bench_journal_node:stop(Node) || {_, Node} <- Nodes],
        None = proplists:get_value(none, Medians),
        [
            "\n## What a registration costs\n\nCPU time in nanoseconds of a call of `rekindle:update/3` with a session as OTP has it, "
            "that of all threads but the journal's: where ", count(Burst), " calls follow each other; and where each comes 3 ms after "
            "the one before, with that timer's costs. Medians of ", integer_to_list(Rounds),
            " rounds by turns. Mark: the journal adds less than 2,000.\n\n",
            table(["journal", "one of many", "added", "timer and a single one", "added"], [
                [atom_to_list(Kind)] ++ lists:append([[whole(Value), whole(Value - Base)] || {Value, Base} <- lists:zip(Values, None)])
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

%% ---- how many a second ----

throughput(#{throughput := {Rounds, Sessions}} = Setting) ->
    Rows = [[atom_to_list(Kind) | throughput(Kind, Rounds, Sessions, Setting)] || Kind <- [folder, valkey]],
    [
        "\n## Into a log and out of it\n\n", count(Sessions), " sessions, registered as fast as one process can: into the log until all "
        "are written; out of it until another node has applied all while they are written (Valkey), or by a replay. CPU time for a "
        "session, of the journal's threads and of a whole node that replays. Medians of ", integer_to_list(Rounds), " rounds. Mark: 50,000 a second.\n\n",
        table(["journal", "in, a second", "in, CPU", "followed, a second", "replayed, a second", "replay, CPU"], Rows)
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
            spawn_link(fun() -> Self ! {self(), bench_journal_node:await(Node, fun(#{sessions := Held}) -> Held =:= Sessions end)} end)
         || Node <- Followers
        ],
        {Start, Written, InCpu} = bench_journal_node:call(Writer, fun() -> write(Sessions) end),
        Followed = [receive {Pid, Known} -> Sessions * 1.0e6 / (Known - Start) end || Pid <- Following],
        lists:foreach(fun bench_journal_node:stop/1, [Writer | Followers]),
        Reader = start_node(Kind, Log, Setting),
        bench_journal_node:await(Reader, fun bench_journal_node:is_replayed/1),
        #{sessions := Sessions, journal := #{replay := Replay}} = bench_journal_node:info(Reader),
        OutCpu = bench_journal_node:cpu_since(Reader),
        bench_journal_node:stop(Reader),
        #{
            in => Sessions * 1.0e6 / (Written - Start),
            in_cpu => InCpu / Sessions,
            followed => case Followed of [] -> none; [Rate] -> Rate end,
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

%% The template is a record, too.
await_written(Sessions) ->
    [#{dropped := 0, written := Written}] = [Journal || #{journal := #{} = Journal} <- rekindle_admin:info()],
    case Written > Sessions of
        true -> bench_journal_node:now_us();
        false -> timer:sleep(1), await_written(Sessions)
    end.

%% ---- a million ----

many(#{many := Sessions} = Setting) ->
    [
        "\n## ", count(Sessions), " sessions\n\nBytes a session: as sealed, in the log, on the wire or written to files (by `write`, and to "
        "the disk), and as the process of a node that has replayed them has grown, beside what Rekindle counts and beside a node "
        "that was told of them one by one. Marks: a record under 260 bytes, replay of a million under 15 s.\n\n",
        table(
            ["journal", "record", "kept", "on the wire, in", "out", "written", "to the disk", "of the records", "replay", "counted", "resident, replayed", "resident, registered"],
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
    bench_journal_node:call(Node, fun() -> bench_clock:settle(), bench_clock:rss() - Before end).

%% What the log takes, and what has come in and gone out.
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
        Known = receive {Watcher, Times} -> Times end,
        lists:foreach(fun bench_journal_node:stop/1, Nodes),
        [(Then - When) / 1000 || {When, Then} <- lists:zip(Made, Known)]
    end),
    [
        "\n## How soon a session is known elsewhere\n\nMilliseconds from before the registration on one node until a lookup on another finds "
        "it, through Valkey; ", count(Count), " sessions, one every 5 ms. The other node looks all the time.\n\n",
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
        undefined -> erlang:yield(), watch_for(Cache, Id);
        _ -> bench_journal_node:now_us()
    end.

%% ---- what is lost ----

kills(#{kills := {Kills, Rates}} = Setting) ->
    [
        "\n## What `kill -9` loses\n\nMilliseconds from the registration of the last session that is there again to the kill's last one, and "
        "sessions lost, with the journal in a folder; ", integer_to_list(Kills), " kills each, some time after a second of load.\n\n",
        table(["sessions a second", "median", "worst", "sessions, median", "worst"], [
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

%% When each was registered goes to a file, and so outlives the node as what it has written.
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
        "\n## All devices at once, after a rolling restart\n\nThree nodes, ", count(Devices), " devices (OpenSSL's TLS 1.2, ECDSA P-256, eight "
        "at a time, each to a random node). They come without a session; the nodes are restarted one after the other; they come back. "
        "CPU time for a connection. OTP's cache has room for all. Mark: 99 % resumed.\n\n",
        table(["cache", "storm", "resumed", "failed", "handshakes a second", "nodes' CPU", "devices' CPU"], [
            [
                maps:get(Store, #{rekindle => "Rekindle, Valkey", gb_trees => "OTP's own"}),
                maps:get(Storm, #{first => "first", restarted => "after the restarts"}),
                io_lib:format("~.2f %", [100 * Resumed]), integer_to_list(Failed), whole(Rate), [whole(Nodes / 1000), " µs"],
                [whole(Client / 1000), " µs"]
            ]
         || #{
                store := Store, storm := Storm, resumed := Resumed, failed := Failed, per_second := Rate, server_cpu_ns := Nodes,
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

say(Begun, Format, Args) ->
    io:format("~4b s  " ++ Format ++ "~n", [erlang:monotonic_time(second) - Begun | Args]).
