%% @doc Handshakes with a node whose journal works, and with nodes whose journals do not, beside one without.
%%
%% Connections come at a steady rate whether the server is ready or not (handshakes.py). The nodes take turns. A log fails
%% as its node's turn begins and works again as it ends, so the turn has the failure itself, the silence until it is
%% noticed, and the tries after that. A second node without a journal shows how much of a difference is chance.
-module(bench_journal_faults).

-export([start/1]).

-define(ROUNDS, 5).
%% Connections of a kind a turn, and how many are due each second.
-define(COUNT, 500).
-define(RATES, #{full => 100, resumed => 200}).
-define(ACCEPTORS, 8).
-define(PASSWORD, "a password").

-record(cell, {
    name :: string(),
    node :: pid(),
    port :: inet:port_number(),
    break = fun() -> ok end :: fun(() -> term()),
    mend = fun() -> ok end :: fun(() -> term())
}).

%% @doc The arguments are the folder for the results and Python's command.
-spec start([string()]) -> no_return().
start([Results, Python]) ->
    Began = erlang:monotonic_time(second),
    Dir = filename:join(Results, ".journal_faults"),
    _ = file:del_dir_r(Dir),
    ok = bench_certs:make(Dir, 0),
    ok = file:write_file(keys(Dir), ["a ", base64:encode(crypto:strong_rand_bytes(32)), "\n"]),
    ok = file:change_mode(keys(Dir), 8#600),
    Disk = filename:join(Dir, "disk"),
    ok = file:make_dir(Disk),
    {Mounted, _} = rekindle_clients:run("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", Disk], [], 10_000),
    Table =
        try
            measure(cells(Dir, [Disk || Mounted =:= 0]), Dir, Python)
        after
            _ = rekindle_clients:run("umount", ["-l", Disk], [], 10_000),
            file:del_dir_r(Dir)
        end,
    Machine = bench_report:machine("journal_faults", erlang:monotonic_time(second) - Began),
    ok = file:write_file(filename:join(Results, "journal_faults.md"), page(Table, Machine)),
    halt(0).

%% ---- the nodes ----

cells(Dir, Disks) ->
    [Working, Ending, Silent, Full] = [start_valkey(Dir, Name, #{}) || Name <- ["working", "ending", "silent", "full"]],
    Memory = fun(Bytes) -> fun() -> "OK" = rekindle_valkey:command(Full, ["CONFIG", "SET", "maxmemory", Bytes]) end end,
    [
        cell("none", none, Dir),
        cell("none, once more", none, Dir),
        cell("Valkey", valkey(Working, Dir), Dir),
        (cell("Valkey, killed", valkey(Ending, Dir), Dir))#cell{
            break = fun() -> rekindle_valkey:stop(get_server(Ending)) end,
            mend = fun() -> put(ending, start_valkey(Dir, "ending", maps:with([port], Ending))) end
        },
        (cell("Valkey, stopped (SIGSTOP)", valkey(Silent, Dir), Dir))#cell{
            break = fun() -> rekindle_valkey:suspend(Silent) end,
            mend = fun() -> rekindle_valkey:resume(Silent) end
        },
        (cell("Valkey, full", valkey(Full, Dir), Dir))#cell{break = Memory("1mb"), mend = Memory("0")},
        cell("folder", folder(filename:join(Dir, "journal"), Dir), Dir)
        | [
            (cell("folder, disk full", folder(filename:join(Disk, "journal"), Dir), Dir))#cell{
                break = fun() -> fill(filename:join(Disk, "filler")) end,
                mend = fun() -> ok = file:delete(filename:join(Disk, "filler")) end
            }
         || Disk <- Disks
        ]
    ].

get_server(First) ->
    case get(ending) of
        undefined -> First;
        Server -> Server
    end.

start_valkey(Dir, Name, Wanted) ->
    [Program | _] = rekindle_valkey:programs(),
    rekindle_valkey:start(Program, filename:join(Dir, Name), Wanted#{password => ?PASSWORD}).

valkey(Server, Dir) -> {valkey, rekindle_valkey:url(Server), [{key_file, keys(Dir)}]}.

folder(Folder, Dir) -> {folder, Folder, [{key_file, keys(Dir)}]}.

keys(Dir) -> filename:join(Dir, "keys").

fill(File) ->
    [rekindle_clients:run("dd", ["if=/dev/zero", "of=" ++ File, Size, "oflag=append", "conv=notrunc"], [], 10_000)
     || Size <- ["bs=64k", "bs=512"]].

cell(Name, Journal, Dir) ->
    Port = rekindle_node:free_port(),
    Node = bench_node:start({rekindle, [{session_cb_init_args, [{journal, Journal}, {scope, #{Port => fleet}}]}]}),
    ok = bench_node:call(Node, fun() -> listen(Port, Dir) end),
    #cell{name = Name, node = Node, port = Port}.

listen(Port, Dir) ->
    Self = self(),
    %% The caller ends with the call, and would take the listener with it.
    _ = spawn(fun() ->
        {ok, Listener} = ssl:listen(Port, [
            {ip, {127, 0, 0, 1}}, {versions, ['tlsv1.2']}, {active, false}, {nodelay, true}, {reuseaddr, true},
            {backlog, 1024}, {log_level, none}
            | bench_certs:server_opts(Dir, {ecdsa, false})
        ]),
        [spawn_link(bench_handshakes, accept, [Listener]) || _ <- lists:seq(1, ?ACCEPTORS)],
        Self ! listening,
        timer:sleep(infinity)
    end),
    receive listening -> ok end.

%% ---- the rounds ----

measure(Cells, Dir, Python) ->
    Script = filename:join(os:getenv("REKINDLE_BENCH", "bench"), "handshakes.py"),
    Client = open_port({spawn_executable, Python}, [
        {args, [Script, filename:join(Dir, "client.pem")]}, {line, 1 bsl 24}, exit_status
    ]),
    Kinds = maps:keys(?RATES),
    [connect(Cell, Client, Kind, 30) || Cell <- Cells, Kind <- Kinds],
    Rounds = [{Round, Cell} || Round <- lists:seq(1, ?ROUNDS), Cell <- Cells],
    Turns = lists:append([turn(Round, Cell, Kinds, Client) || {Round, Cell} <- Rounds]),
    Rows = [row(Kind, Cell, [Turn || {K, N, Turn} <- Turns, K =:= Kind, N =:= Name]) || Kind <- Kinds, #cell{name = Name} = Cell <- Cells],
    [bench_node:stop(Node) || #cell{node = Node} <- Cells],
    Rows.

turn(Round, #cell{name = Name, break = Break, mend = Mend} = Cell, Kinds, Client) ->
    io:format("round ~b: ~ts~n", [Round, Name]),
    _ = Break(),
    Turn = [{Kind, Name, connect(Cell, Client, Kind, ?COUNT)} || Kind <- Kinds],
    State = state(Cell),
    State =:= expected(Name) orelse error({Name, State}),
    _ = Mend(),
    Turn.

%% The fault was one.
expected("none" ++ _) -> undefined;
expected(Name) when Name =:= "Valkey"; Name =:= "folder" -> up;
expected(_) -> down.

state(#cell{node = Node}) ->
    bench_node:call(Node, fun() ->
        case [Journal || #{role := server, journal := Journal} <- rekindle_admin:info()] of
            [#{state := State}] -> State;
            [undefined] -> undefined
        end
    end).

connect(#cell{port = Port, node = Node}, Client, Kind, Count) ->
    OsPid = bench_node:os_pid(Node),
    Before = bench_clock:cpu(OsPid),
    port_command(Client, io_lib:format("~b ~s ~b ~b~n", [Port, Kind, Count, maps:get(Kind, ?RATES)])),
    receive
        {Client, {data, {eol, Line}}} ->
            {bench_clock:cpu(OsPid) - Before, [list_to_integer(Word) || Word <- string:lexemes(Line, " ")]};
        {Client, {exit_status, Status}} ->
            error({client_ended, Status})
    end.

row(Kind, #cell{name = Name}, Turns) ->
    All = lists:append([Of || {_, Of} <- Turns]),
    Figures = [
        bench_clock:percentile(All, 0.5),
        bench_clock:percentile(All, 0.999),
        lists:sum([Cpu || {Cpu, _} <- Turns]) / length(All)
    ],
    {Kind, Name, length(All), Figures}.

%% ---- the page ----

page(Rows, #{cpu := Cpu, cores := Cores, otp := Otp, seconds := Seconds, load_after := Load, commit := Commit}) ->
    [
        "# Handshakes while a journal's log fails\n\n"
        "One node each, TLS 1.2, ECDSA P-256, no client certificates. ", integer_to_list(?ROUNDS), " turns of ",
        integer_to_list(?COUNT), " connections of a kind, due at a steady rate: ",
        [[integer_to_list(Rate), " ", atom_to_list(Kind), " a second; "] || {Kind, Rate} <- maps:to_list(?RATES)],
        "latency counts from when one was due to the first byte after its handshake, CPU is the whole node's, journal included. "
        "A log fails as its turn begins. Ratios are to the first row; the second one tells how far they go by chance. "
        "Each handshake was of the kind that is said: none failed, and all that were to be resumed were.\n\n",
        Cpu, ", ", integer_to_list(Cores), " cores, shared with the clients; OTP ", Otp, "; commit ", Commit, "; took ",
        integer_to_list(Seconds), " s; load ", Load, " after.\n",
        [table(Kind, [Row || {K, _, _, _} = Row <- Rows, K =:= Kind]) || Kind <- maps:keys(?RATES)]
    ].

table(Kind, [{_, _, _, Base} | _] = Rows) ->
    [
        "\n## ", string:titlecase(atom_to_list(Kind)), "\n\n"
        "| Journal | Handshakes | p50, ms | ratio | p99.9, ms | ratio | CPU a handshake, ms | ratio |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|\n",
        [
            ["| ", Name, " | ", integer_to_list(Count), [
                io_lib:format(" | ~.2f | ~.2f", [Figure / 1.0e6, Figure / Of])
             || {Figure, Of} <- lists:zip(Figures, Base)
            ], " |\n"]
         || {_, Name, Count, Figures} <- Rows
        ]
    ].
