%% @doc Handshakes with a node whose journal works, and with nodes whose journals do not, beside one without.
%%
%% Connections come at a steady rate whether the server is ready or not (handshakes.py). The nodes take turns. A log fails
%% when its node's turn begins, and works again when the turn ends. So the turn includes the failure, the silence until the
%% node notices it, and the attempts after that. A second node without a journal shows how much of a difference is chance.
-module(bench_journal_faults).

-export([start/1]).

-define(ROUNDS, 10).
%% Connections of each kind per turn, and how many are due per second.
-define(COUNT, 500).
-define(RATES, #{full => 100, resumed => 200}).
-define(PASSWORD, "a password").

%% A node. Its journal must have `state' at the end of a turn; `mend_at_last' runs after all turns.
-type cell() :: #{
    name := string(),
    node := pid(),
    port := inet:port_number(),
    state := undefined | up | down,
    break := fun(() -> term()),
    mend := fun(() -> term()),
    mend_at_last => fun(() -> term())
}.

%% @doc The arguments are the folder for the results and Python's command.
-spec start([string()]) -> no_return().
start([Results, Python]) ->
    Start = bench_report:start(),
    Dir = filename:join(Results, ".journal_faults"),
    _ = file:del_dir_r(Dir),
    ok = bench_certs:make(Dir, 0),
    ok = file:write_file(keys(Dir), ["a ", base64:encode(crypto:strong_rand_bytes(32)), "\n"]),
    ok = file:change_mode(keys(Dir), 8#600),
    Disks = [
        {Kind, Disk}
     || {Kind, Options} <- [{"disk full", "size=8m"}, {"read-only", "ro"}], Disk <- mounted(filename:join(Dir, Kind), Options)
    ],
    Measured =
        try
            measure(cells(Dir, Disks), Dir, Python)
        after
            %% The servers end with this process, but not with the node.
            lists:foreach(fun rekindle_valkey:stop/1, servers()),
            [rekindle_clients:run("umount", ["-l", Disk], [], 10_000) || {_, Disk} <- Disks],
            file:del_dir_r(Dir)
        end,
    About = bench_report:about("make bench-journal", bench_report:machine(Start)),
    ok = file:write_file(filename:join(Results, "journal_faults.md"), page(Measured, About)),
    halt(0).

%% ---- the nodes ----

mounted(Disk, Options) ->
    ok = file:make_dir(Disk),
    {Status, _} = rekindle_clients:run("mount", ["-t", "tmpfs", "-o", Options, "tmpfs", Disk], [], 10_000),
    [Disk || Status =:= 0].

cells(Dir, Disks) ->
    Servers = [Working, _, Silent, Stopped, Full, Locked, Cut, Corrupted] = [start_valkey(Dir, #{}) || _ <- lists:seq(1, 8)],
    put(killed, lists:nth(2, Servers)),
    #{port := Port} = get(killed),
    [CutProxy, CorruptProxy] = [rekindle_proxy:start(maps:get(port, Server)) || Server <- [Cut, Corrupted]],
    Shared = filename:join(Dir, "journal"),
    [
        cell("none", none, Dir, #{state => undefined}),
        cell("none, once more", none, Dir, #{state => undefined}),
        cell("Valkey", valkey(Working, Dir), Dir, #{state => up}),
        cell("Valkey, killed, and empty afterwards", valkey(get(killed), Dir), Dir, #{
            break => fun() -> rekindle_valkey:stop(get(killed)) end,
            mend => fun() -> put(killed, start_valkey(Dir, #{port => Port})) end
        }),
        cell("Valkey, stopped (SIGSTOP)", valkey(Silent, Dir), Dir, #{
            break => fun() -> rekindle_valkey:suspend(Silent) end,
            mend => fun() -> rekindle_valkey:resume(Silent) end
        }),
        cell("Valkey, stopped all the time", valkey(Stopped, Dir), Dir, #{
            break => fun() -> rekindle_valkey:suspend(Stopped) end,
            mend_at_last => fun() -> rekindle_valkey:resume(Stopped) end
        }),
        cell("Valkey, full", valkey(Full, Dir), Dir, #{
            break => fun() -> configure(Full, "maxmemory", "1mb") end,
            mend => fun() -> configure(Full, "maxmemory", "0") end
        }),
        cell("Valkey, another password", valkey(Locked, Dir), Dir, #{
            break => fun() ->
                configure(Locked, "requirepass", "another"),
                rekindle_valkey:command(Locked#{password := "another"}, ["CLIENT", "KILL", "TYPE", "normal"])
            end,
            mend => fun() -> configure(Locked#{password := "another"}, "requirepass", ?PASSWORD) end
        }),
        proxied("Valkey, connections cut in a batch", Cut, CutProxy, {cut, to_server, 700}, Dir),
        proxied("Valkey, answers corrupted", Corrupted, CorruptProxy, {flip, to_client, 11}, Dir),
        cell("folder", folder(Shared, Dir), Dir, #{state => up}),
        cell("folder, in use by another node", folder(Shared, Dir), Dir, #{})
    ] ++ [on_disk(Kind, Disk, Dir) || {Kind, Disk} <- Disks].

proxied(Name, Server, Proxy, Mode, Dir) ->
    cell(Name, valkey(Server#{port := rekindle_proxy:port(Proxy)}, Dir), Dir, #{
        break => fun() -> rekindle_proxy:set(Proxy, Mode) end,
        mend => fun() -> rekindle_proxy:set(Proxy, pass) end
    }).

on_disk(Kind, Disk, Dir) ->
    Filler = filename:join(Disk, "filler"),
    Faults = #{
        "read-only" => #{},
        "disk full" => #{break => fun() -> fill(Filler) end, mend => fun() -> ok = file:delete(Filler) end}
    },
    cell("folder, " ++ Kind, folder(filename:join(Disk, "journal"), Dir), Dir, maps:get(Kind, Faults)).

start_valkey(Dir, Wanted) ->
    [Program | _] = rekindle_valkey:programs(),
    Folder = filename:join(Dir, "server" ++ integer_to_list(erlang:unique_integer([positive]))),
    Server = rekindle_valkey:start(Program, Folder, Wanted#{password => ?PASSWORD}),
    put(servers, [Server | servers()]),
    Server.

servers() ->
    [
        Server
     || #{owner := Owner} = Server <-
            case get(servers) of
                undefined -> [];
                All -> All
            end,
        is_process_alive(Owner)
    ].

configure(Server, Name, Value) ->
    "OK" = rekindle_valkey:command(Server, ["CONFIG", "SET", Name, Value]).

valkey(Server, Dir) -> {valkey, rekindle_valkey:url(Server), [{key_file, keys(Dir)}]}.

folder(Folder, Dir) -> {folder, Folder, [{key_file, keys(Dir)}]}.

keys(Dir) -> filename:join(Dir, "keys").

fill(File) ->
    [
        rekindle_clients:run("dd", ["if=/dev/zero", "of=" ++ File, Size, "oflag=append", "conv=notrunc"], [], 10_000)
     || Size <- ["bs=64k", "bs=512"]
    ].

-spec cell(string(), rekindle:journal(), file:filename(), map()) -> cell().
cell(Name, Journal, Dir, Fault) ->
    Port = rekindle_node:free_port(),
    Node = bench_node:start({rekindle, [{session_cb_init_args, [{journal, Journal}, {scope, #{Port => fleet}}]}]}),
    _ = bench_node:call(Node, fun() -> bench_handshakes:listen(Dir, {ecdsa, false}, Port) end),
    Nothing = fun() -> ok end,
    maps:merge(#{name => Name, node => Node, port => Port, state => down, break => Nothing, mend => Nothing}, Fault).

%% ---- the rounds ----

measure(Cells, Dir, Python) ->
    Client = open_port({spawn_executable, Python}, [
        {args, ["bench/handshakes.py", filename:join(Dir, "client.pem")]}, {line, 1 bsl 24}, exit_status
    ]),
    Kinds = maps:keys(?RATES),
    [connect(Cell, Client, Kind, 30) || Cell <- Cells, Kind <- Kinds],
    Rounds = [{Round, Cell} || Round <- lists:seq(1, ?ROUNDS), Cell <- Cells],
    Turns = lists:append([turn(Round, Cell, Kinds, Client) || {Round, Cell} <- Rounds]),
    Rows = [
        row(Kind, Cell, [Turn || {K, N, Turn} <- Turns, K =:= Kind, N =:= Name])
     || Kind <- Kinds, #{name := Name} = Cell <- Cells
    ],
    Recovered = [recovery(Cell) || #{mend_at_last := _} = Cell <- Cells],
    [bench_node:stop(Node) || #{node := Node} <- Cells],
    {Rows, Recovered}.

%% How long the journal did not work, and how long it took to recover, in milliseconds.
recovery(#{mend_at_last := Mend} = Cell) ->
    #{since := Seconds} = journal(Cell),
    _ = Mend(),
    Began = erlang:monotonic_time(millisecond),
    ok = rekindle_node:await(fun() -> state(Cell) =:= up end),
    {1000 * Seconds, erlang:monotonic_time(millisecond) - Began}.

turn(Round, #{name := Name, break := Break, mend := Mend, state := Expected} = Cell, Kinds, Client) ->
    io:format("round ~b: ~ts~n", [Round, Name]),
    _ = Break(),
    Turn = [{Kind, Name, connect(Cell, Client, Kind, ?COUNT)} || Kind <- Kinds],
    %% The fault had an effect.
    State = state(Cell),
    State =:= Expected orelse error({Name, State}),
    _ = Mend(),
    Turn.

state(Cell) ->
    case journal(Cell) of
        #{state := State} -> State;
        undefined -> undefined
    end.

journal(#{node := Node}) ->
    [Journal] = bench_node:call(Node, fun() -> [Journal || #{role := server, journal := Journal} <- rekindle_admin:info()] end),
    Journal.

connect(#{port := Port, node := Node}, Client, Kind, Count) ->
    OsPid = bench_node:os_pid(Node),
    Before = bench_clock:cpu(OsPid),
    port_command(Client, io_lib:format("~b ~s ~b ~b~n", [Port, Kind, Count, maps:get(Kind, ?RATES)])),
    receive
        {Client, {data, {eol, Line}}} ->
            {bench_clock:cpu(OsPid) - Before, [list_to_integer(Word) || Word <- string:lexemes(Line, " ")]};
        {Client, {exit_status, Status}} ->
            error({client_ended, Status})
    end.

row(Kind, #{name := Name}, Turns) ->
    All = lists:append([Of || {_, Of} <- Turns]),
    Figures = [
        bench_clock:percentile(All, 0.5),
        bench_clock:percentile(All, 0.999),
        lists:sum([Cpu || {Cpu, _} <- Turns]) / length(All)
    ],
    {Kind, Name, length(All), Figures}.

%% ---- the page ----

page({Rows, Recovered}, About) ->
    [
        "# Handshakes while a journal's log fails\n\n"
        "One node each, TLS 1.2, ECDSA P-256, no client certificates. ",
        integer_to_list(?ROUNDS),
        " turns of ",
        integer_to_list(?COUNT),
        " connections of each kind, due at a steady rate: ",
        [[integer_to_list(Rate), " ", atom_to_list(Kind), " per second; "] || {Kind, Rate} <- maps:to_list(?RATES)],
        "the time of a connection runs from when it was due to the first byte after its handshake. CPU is that of the whole node, with its journal. "
        "A log fails when its turn begins. Ratios are to the first row; the second row shows how much they vary by chance. "
        "No handshake failed, and all that had to resume did.\n\n",
        [
            io_lib:format("One server was stopped all the time, for ~b s. ~.1f s later its journal worked again.\n\n", [
                Down div 1000, Up / 1000
            ])
         || {Down, Up} <- Recovered
        ],
        About,
        " The clients share the cores.\n",
        [table(Kind, [Row || {K, _, _, _} = Row <- Rows, K =:= Kind]) || Kind <- maps:keys(?RATES)]
    ].

table(Kind, [{_, _, _, Base} | _] = Rows) ->
    Head = ["journal", "handshakes", "p50, ms", "ratio", "p99.9, ms", "ratio", "CPU per handshake, ms", "ratio"],
    [
        "\n## ",
        string:titlecase(atom_to_list(Kind)),
        "\n\n",
        bench_report:table(Head, [
            [Name, bench_report:count(Count) | lists:append([ratio(Figure, Of) || {Figure, Of} <- lists:zip(Figures, Base)])]
         || {_, Name, Count, Figures} <- Rows
        ])
    ].

ratio(Figure, Of) ->
    [io_lib:format("~.2f", [Value]) || Value <- [Figure / 1.0e6, Figure / Of]].
