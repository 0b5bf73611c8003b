%% @doc Real handshakes with a listener whose cache already holds many sessions.
%%
%% The server is a node of its own. The client is OpenSSL's (handshakes.py), because it needs far less time than the
%% server, and makes one connection at a time: so the latencies are those of the server and not of a queue, and what
%% its process spends is the CPU time of that one handshake. The default cache and Rekindle take turns.
%%
%% Or, for `busy', connections come at a steady rate whether the server is ready or not, while sessions are registered,
%% as other listeners' cores would do it: so each connection that a pause of OTP's cache process delays is counted.
-module(bench_handshakes).

-export([run/4]).
-export([listen/3, accept/1]).

%% Numbers of connections. `busy' is for the last of the sizes only, and may be left out.
-type settings() :: #{
    python := string(),
    rounds := pos_integer(),
    full := pos_integer(),
    resumed := pos_integer(),
    busy => pos_integer()
}.

-define(ACCEPTORS, 8).
%% A second.
-define(ARRIVALS, 200).
-define(REGISTRATIONS, 2_000).
-define(REGISTRATIONS_AT_ONCE, 10).
%% Numbers no session in the cache has.
-define(NEW, 1 bsl 42).

%% @doc A row for each number of sessions in the cache, kind of handshake and cache. `Sizes' ascend.
-spec run(file:filename(), bench_sessions:workload(), Sizes :: [pos_integer()], settings()) -> [map()].
run(Dir, Workload, Sizes, #{python := Python} = Settings) ->
    Servers = [server(Name, Dir, Workload, lists:last(Sizes)) || Name <- [default, rekindle]],
    Client = open_port({spawn_executable, Python}, [
        {args, ["bench/handshakes.py", filename:join(Dir, "client.pem")]},
        {line, 1 bsl 24},
        exit_status
    ]),
    {_, Rows} = lists:foldl(
        fun(Size, {From, Rows}) ->
            fill(Servers, From, Size - 1),
            Kinds = [Kind || Kind <- [full, resumed, busy], is_map_key(Kind, Settings), Kind =/= busy orelse Size =:= lists:last(Sizes)],
            {Size, Rows ++ [Row#{size => Size, workload => Workload} || Row <- measure(Servers, Client, Kinds, Settings)]}
        end,
        {0, []},
        Sizes
    ),
    port_close(Client),
    [bench_node:stop(Node) || #{node := Node} <- Servers],
    Rows.

%% ---- the servers ----

server(Name, Dir, Workload, Size) ->
    %% Room for the sessions of the handshakes measured.
    Env =
        case Name of
            default -> [{session_cache_server_max, 2 * Size + 100_000}];
            rekindle -> [{session_cb_init_args, [{max_bytes, bench_store:max_bytes(Size)}]}]
        end,
    Node = bench_node:start({Name, Env}),
    Started = bench_node:call(Node, fun() -> start(Dir, Workload) end),
    Started#{node => Node, name => Name, os_pid => bench_node:os_pid(Node)}.

start(Dir, Workload) ->
    Template = bench_sessions:template(Dir, Workload),
    Listener = listen(Dir, Workload, 0),
    {ok, {_, Port}} = ssl:sockname(Listener),
    Cache = bench_process:cache_of(Listener),
    #{port => Port, cache => Cache, keeper => spawn(fun() -> keep(Template, Cache) end)}.

%% @doc A listener at this port, or at any if it is 0, that stays when the caller ends.
-spec listen(file:filename(), bench_sessions:workload(), inet:port_number()) -> ssl:sslsocket().
listen(Dir, Workload, Port) ->
    Self = self(),
    Keeper = spawn(fun() ->
        {ok, Listener} = ssl:listen(Port, options(Dir, Workload)),
        [spawn_link(?MODULE, accept, [Listener]) || _ <- lists:seq(1, ?ACCEPTORS)],
        Self ! {self(), Listener},
        timer:sleep(infinity)
    end),
    receive {Keeper, Listener} -> Listener end.

options(Dir, Workload) ->
    [
        {ip, {127, 0, 0, 1}}, {versions, ['tlsv1.2']}, {reuse_sessions, true}, {active, false}, {nodelay, true},
        {reuseaddr, true}, {backlog, 1024}, {log_level, none}
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

%% Until told to stop. What is due is made up for.
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

fill(Servers, From, To) ->
    Self = self(),
    Filling = [
        spawn_link(fun() ->
            ok = bench_node:call(Node, fun() -> fill_here(Keeper, From, To) end),
            Self ! {filled, self()}
        end)
     || #{node := Node, keeper := Keeper} <- Servers
    ],
    [
        receive
            {filled, Pid} -> ok
        end
     || Pid <- Filling
    ].

fill_here(Keeper, From, To) ->
    filled = ask(Keeper, {fill, From, To}),
    bench_clock:settle().

ask(Keeper, Task) ->
    Keeper ! {self(), Task},
    receive
        {Keeper, Reply} -> Reply
    end.

%% ---- the rounds ----

measure(Servers, Client, Kinds, #{rounds := Rounds} = Settings) ->
    lists:append([
        begin
            Count = maps:get(Kind, Settings),
            _ = [handshakes(Server, Client, Kind, max(20, Count div 20)) || Server <- Servers],
            All = [[{Name, handshakes(Server, Client, Kind, Count)} || #{name := Name} = Server <- Servers] || _ <- lists:seq(1, Rounds)],
            [row(Name, Kind, [proplists:get_value(Name, Round) || Round <- All]) || #{name := Name} <- Servers]
        end
     || Kind <- Kinds
    ]).

row(Name, Kind, Rounds) ->
    Latencies = lists:append([Of || {_, Of} <- Rounds]),
    Percentile = fun(Part) -> bench_clock:percentile(Latencies, Part) end,
    #{
        store => Name,
        handshake => Kind,
        count => length(Latencies),
        per_second => bench_clock:median([length(Of) * 1.0e9 / lists:sum(Of) || {_, Of} <- Rounds]),
        server_cpu_ns => bench_clock:median([Cpu / length(Of) || {Cpu, Of} <- Rounds]),
        p50_ns => Percentile(0.5),
        p99_ns => Percentile(0.99),
        p999_ns => Percentile(0.999),
        max_ns => lists:max(Latencies)
    }.

handshakes(#{node := Node, keeper := Keeper} = Server, Client, busy, Count) ->
    registering = bench_node:call(Node, fun() -> ask(Keeper, register) end),
    Done = connect(Server, Client, "resumed ~b ~b", [Count, ?ARRIVALS]),
    stopped = bench_node:call(Node, fun() -> ask(Keeper, stop) end),
    Done;
handshakes(Server, Client, Kind, Count) ->
    connect(Server, Client, "~s ~b", [Kind, Count]).

connect(#{port := Port, os_pid := OsPid}, Client, Format, Args) ->
    Before = bench_clock:cpu(OsPid),
    port_command(Client, io_lib:format("~b " ++ Format ++ "~n", [Port | Args])),
    receive
        {Client, {data, {eol, Line}}} ->
            Cpu = bench_clock:cpu(OsPid) - Before,
            {Cpu, [list_to_integer(Word) || Word <- string:lexemes(Line, " ")]};
        {Client, {exit_status, Status}} ->
            error({client_ended, Status})
    end.
