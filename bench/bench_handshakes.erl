%% @doc Real handshakes with a listener whose cache already holds many sessions.
%%
%% Each server is a node of its own. The client uses OpenSSL (handshakes.py), which needs far less time than the server, and
%% makes one connection at a time. So the latencies are those of the server and not of a queue, and the CPU time of its
%% process is that of one handshake. The servers take turns.
%%
%% In the measurement of a busy cache, connections come at a steady rate whether the server is ready or not. Meanwhile other
%% sessions are registered, and each evicts an old one. So every connection that a pause of OTP's cache process delays counts.
-module(bench_handshakes).

-export([run/5, busy/4]).
-export([listen/3, accept/1]).

%% Numbers of connections in each round.
-type settings() :: #{python := string(), rounds := pos_integer(), full := pos_integer(), resumed := pos_integer()}.
-type busy_settings() :: #{python := string(), rounds := pos_integer(), connections := pos_integer()}.

-define(ACCEPTORS, 8).
-define(WARM_UP, 60).
%% Per second.
-define(ARRIVALS, 200).
-define(REGISTRATIONS, 2_000).
-define(REGISTRATIONS_AT_ONCE, 10).
%% Room for the sessions of the measured handshakes.
-define(SPARE_ROOM, 100_000).
%% Numbers that no session in the cache has.
-define(NEW, 1 bsl 42).

%% @doc Returns a row for each number of sessions in the cache, kind of handshake and cache. `Sizes' must ascend. Each measured
%% quantity is a list with a value for each round.
-spec run(file:filename(), bench_sessions:workload(), Sizes :: [pos_integer()], [bench_store:name()], settings()) -> [map()].
run(Dir, Workload, Sizes, Names, Settings) ->
    Room = 2 * lists:last(Sizes) + ?SPARE_ROOM,
    with_servers(Dir, Workload, [{Name, Room} || Name <- Names], Settings, fun(Empty, Client) ->
        {_, Rows} = lists:foldl(
            fun(Size, {Servers, Rows}) ->
                Filled = fill([{Server, Size} || Server <- Servers]),
                Kinds = [{Kind, io_lib:format("~s ~b", [Kind, maps:get(Kind, Settings)])} || Kind <- [full, resumed]],
                New = [Row#{handshake => Kind} || {Kind, Task} <- Kinds, Row <- measure(Filled, Client, Task, Settings)],
                {Filled, Rows ++ New}
            end,
            {Empty, []},
            Sizes
        ),
        [Row#{workload => Workload} || Row <- Rows]
    end).

%% @doc Returns a row for each cache, while it is full and sessions are registered.
-spec busy(file:filename(), bench_sessions:workload(), [{bench_store:name(), Size :: pos_integer()}], busy_settings()) -> [map()].
busy(Dir, Workload, Caches, #{connections := Count} = Settings) ->
    with_servers(Dir, Workload, Caches, Settings, fun(Empty, Client) ->
        Filled = [Server#{registers => true} || Server <- fill(lists:zip(Empty, [Size || {_, Size} <- Caches]))],
        Task = io_lib:format("returning ~b ~b", [Count, ?ARRIVALS]),
        [Row#{workload => Workload} || Row <- measure(Filled, Client, Task, Settings)]
    end).

%% ---- the servers ----

with_servers(Dir, Workload, Caches, #{python := Python}, Use) ->
    Servers = [server(Dir, Workload, Name, Room) || {Name, Room} <- Caches],
    Client = open_port({spawn_executable, Python}, [
        {args, ["bench/handshakes.py", filename:join(Dir, "client.pem")]},
        {line, 1 bsl 24},
        exit_status
    ]),
    try
        Use(Servers, Client)
    after
        port_close(Client),
        [bench_node:stop(Node) || #{node := Node} <- Servers]
    end.

server(Dir, Workload, Name, Room) ->
    Node = bench_node:start(bench_store:ssl_env(Name, Room)),
    Started = bench_node:call(Node, fun() -> start(Dir, Workload) end),
    Started#{node => Node, name => Name, size => 0, registers => false, os_pid => bench_node:os_pid(Node)}.

start(Dir, Workload) ->
    Template = bench_sessions:template(Dir, Workload),
    Listener = listen(Dir, Workload, 0),
    {ok, {_, Port}} = ssl:sockname(Listener),
    Cache = bench_process:cache_of(Listener),
    #{port => Port, keeper => spawn(fun() -> keep(Template, Cache) end)}.

%% @doc Opens a listener at this port, or at any if it is 0. It stays open when the caller ends.
-spec listen(file:filename(), bench_sessions:workload(), inet:port_number()) -> ssl:sslsocket().
listen(Dir, Workload, Port) ->
    Self = self(),
    Keeper = spawn(fun() ->
        {ok, Listener} = ssl:listen(Port, options(Dir, Workload)),
        [spawn_link(?MODULE, accept, [Listener]) || _ <- lists:seq(1, ?ACCEPTORS)],
        Self ! {self(), Listener},
        timer:sleep(infinity)
    end),
    receive
        {Keeper, Listener} -> Listener
    end.

options(Dir, Workload) ->
    [
        {ip, {127, 0, 0, 1}},
        {versions, ['tlsv1.2']},
        {reuse_sessions, true},
        {active, false},
        {nodelay, true},
        {reuseaddr, true},
        {backlog, 1024},
        {log_level, none}
    ] ++ bench_certs:server_opts(Dir, Workload).

keep(Template, Cache) ->
    receive
        {From, {fill, First, Last}} ->
            bench_process:register_all(Template, Cache, First, Last),
            From ! {self(), filled},
            keep(Template, Cache);
        {From, register} ->
            From ! {self(), registering},
            Interval = erlang:convert_time_unit(1, second, native) * ?REGISTRATIONS_AT_ONCE div ?REGISTRATIONS,
            register_on(Template, Cache, ?NEW + erlang:unique_integer([positive]) bsl 24, erlang:monotonic_time(), Interval),
            keep(Template, Cache)
    end.

%% Registers sessions until it gets a message to stop, and catches up when it is late.
register_on(Template, Cache, First, Due, Interval) ->
    receive
        {From, stop} -> From ! {self(), stopped}
    after max(0, erlang:convert_time_unit(Due - erlang:monotonic_time(), native, millisecond)) ->
        bench_process:register_all(Template, Cache, First, First + ?REGISTRATIONS_AT_ONCE - 1),
        register_on(Template, Cache, First + ?REGISTRATIONS_AT_ONCE, Due + Interval, Interval)
    end.

%% @private
accept(Listener) ->
    {ok, Transport} = ssl:transport_accept(Listener),
    case ssl:handshake(Transport, 10_000) of
        {ok, Socket} ->
            _ = ssl:send(Socket, "x"),
            _ = ssl:recv(Socket, 0),
            ssl:close(Socket);
        {error, _} ->
            ok
    end,
    accept(Listener).

%% Fills all servers at once, each from its present size.
fill(Servers) ->
    Filling = [
        spawn_monitor(fun() ->
            filled = ask_keeper(Server, {fill, From, Size - 1}),
            ok = bench_node:call(Node, fun bench_clock:settle/0)
        end)
     || {#{node := Node, size := From} = Server, Size} <- Servers
    ],
    [
        normal =
            receive
                {'DOWN', Monitor, process, _, Reason} -> Reason
            end
     || {_, Monitor} <- Filling
    ],
    [Server#{size := Size} || {Server, Size} <- Servers].

ask_keeper(#{node := Node, keeper := Keeper}, Task) ->
    bench_node:call(Node, fun() ->
        Keeper ! {self(), Task},
        receive
            {Keeper, Reply} -> Reply
        end
    end).

%% ---- the rounds ----

measure(Servers, Client, Task, #{rounds := Rounds}) ->
    [connect(Server, Client, io_lib:format("resumed ~b", [?WARM_UP])) || Server <- Servers],
    All = [[turn(Server, Client, Task) || Server <- Servers] || _ <- lists:seq(1, Rounds)],
    [
        row(Server, [lists:nth(Place, Round) || Round <- All])
     || {Place, Server} <- lists:zip(lists:seq(1, length(Servers)), Servers)
    ].

turn(#{registers := true} = Server, Client, Task) ->
    registering = ask_keeper(Server, register),
    Done = connect(Server, Client, Task),
    stopped = ask_keeper(Server, stop),
    Done;
turn(Server, Client, Task) ->
    connect(Server, Client, Task).

%% The CPU time that the server has used, and the time of each connection.
connect(#{port := Port, os_pid := OsPid}, Client, Task) ->
    Before = bench_clock:cpu(OsPid),
    port_command(Client, io_lib:format("~b ~s~n", [Port, Task])),
    receive
        {Client, {data, {eol, Line}}} ->
            Cpu = bench_clock:cpu(OsPid) - Before,
            {Cpu, [list_to_integer(Word) || Word <- string:lexemes(Line, " ")]};
        {Client, {exit_status, Status}} ->
            error({client_ended, Status})
    end.

%% A negative time means that the connection's session was gone.
row(#{name := Name, size := Size}, Rounds) ->
    Each = fun(Of) -> [Of(Cpu, Times, [Time || Time <- Times, Time >= 0]) || {Cpu, Times} <- Rounds] end,
    Percentile = fun(Part) -> Each(fun(_, _, Kept) -> bench_clock:percentile(Kept, Part) end) end,
    #{
        store => Name,
        size => Size,
        count => lists:sum(Each(fun(_, Times, _) -> length(Times) end)),
        as_asked => lists:sum(Each(fun(_, _, Kept) -> length(Kept) end)),
        server_cpu_ns => Each(fun(Cpu, Times, _) -> Cpu / length(Times) end),
        p50_ns => Percentile(0.5),
        p99_ns => Percentile(0.99),
        p999_ns => Percentile(0.999),
        max_ns => Percentile(1.0)
    }.
