%% @doc A fleet of three nodes, restarted one after the other, and then all devices at once: with sessions that the nodes
%% share, and with OTP's own cache.
%%
%% The devices are devices.py, with real handshakes; each comes to a random node. Nobody connects during the restarts.
-module(bench_storm).

-export([run/4]).

-define(NODES, 3).

%% @doc A row for the first storm, of devices without a session, and one for that after the restarts.
-spec run(file:filename(), gb_trees | rekindle, rekindle:journal(), #{python := string(), devices := pos_integer()}) -> [map()].
run(Certs, Name, Journal, #{python := Python, devices := Devices}) ->
    Ports = [rekindle_node:free_port() || _ <- lists:seq(1, ?NODES)],
    Nodes = [start(Certs, Name, Journal, Port, 2 * Devices) || Port <- Ports],
    Client = open_port({spawn_executable, Python}, [
        {args, ["bench/devices.py", integer_to_list(Devices)]},
        {line, 1 bsl 16},
        exit_status
    ]),
    First = storm(Client, Ports, Nodes, Devices),
    Name =:= rekindle andalso [await_sessions(Node, Devices) || Node <- Nodes],
    Restarted = [restart(Node, Certs, Name, Journal, Port, Devices) || {Node, Port} <- lists:zip(Nodes, Ports)],
    Second = storm(Client, Ports, Restarted, Devices),
    port_close(Client),
    lists:foreach(fun bench_node:stop/1, Restarted),
    [Row#{store => Name, storm => Storm, devices => Devices} || {Storm, Row} <- [{first, First}, {restarted, Second}]].

restart(Node, Certs, Name, Journal, Port, Devices) ->
    bench_node:stop(Node),
    Again = start(Certs, Name, Journal, Port, 2 * Devices),
    Name =:= rekindle andalso await_sessions(Again, Devices),
    Again.

start(Certs, Name, Journal, Port, Room) ->
    Config =
        case Name of
            gb_trees -> bench_store:ssl_env(gb_trees, Room);
            rekindle -> {rekindle, [{session_cb_init_args, [{scope, #{Port => devices}}, {journal, Journal}]}]}
        end,
    Node = bench_node:start(Config),
    _ = bench_node:call(Node, fun() -> bench_handshakes:listen(Certs, {ecdsa, false}, Port) end),
    Node.

await_sessions(Node, Devices) ->
    bench_node:call(Node, fun() -> await_here(Devices, 5000) end).

await_here(Devices, Tries) when Tries > 0 ->
    case lists:last(rekindle_admin:info()) of
        #{sessions := Devices} ->
            ok;
        _ ->
            timer:sleep(20),
            await_here(Devices, Tries - 1)
    end.

storm(Client, Ports, Nodes, Devices) ->
    OsPids = [bench_node:os_pid(Node) || Node <- Nodes],
    Before = [bench_clock:cpu(OsPid) || OsPid <- OsPids],
    port_command(Client, [lists:join(" ", [integer_to_list(Port) || Port <- Ports]), "\n"]),
    receive
        {Client, {data, {eol, Line}}} ->
            [Resumed, Failed, Took, ClientCpu] = [list_to_integer(Word) || Word <- string:lexemes(Line, " ")],
            Cpu = lists:sum([bench_clock:cpu(OsPid) || OsPid <- OsPids]) - lists:sum(Before),
            #{
                resumed => Resumed / Devices,
                failed => Failed,
                per_second => Devices * 1.0e9 / Took,
                server_cpu_ns => Cpu / Devices,
                client_cpu_ns => ClientCpu / Devices
            };
        {Client, {exit_status, Status}} ->
            error({devices_ended, Status})
    end.
