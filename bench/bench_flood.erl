%% @doc Devices that keep resuming while a listener is flooded: with lookups of ids that nobody has, as a client can send
%% them in a ClientHello, and with sessions that nobody comes back for.
%%
%% The devices are OTP's clients in this node, one after the other; the listener is in a node of its own. Processes of that node
%% send to OTP's cache process what a flood would send: this machine could not make as many handshakes.
-module(bench_flood).

-export([run/3]).
-export([flood/3]).

-type settings() :: #{
    devices := pos_integer(), resumptions := pos_integer(), lookups := pos_integer(), sessions := pos_integer()
}.

-define(FLOODERS, 2).
%% Lookups between two batches of registrations.
-define(CHUNK, 100).
-define(NEW, 1 bsl 43).

%% @doc Returns a row for the time before the flood and one for during it. The cache has room for ten times the devices.
-spec run(file:filename(), bench_store:name(), settings()) -> [map()].
run(Dir, Name, #{devices := Devices, resumptions := Resumptions} = Settings) ->
    {ok, _} = application:ensure_all_started(ssl),
    Node = bench_node:start(bench_store:ssl_env(Name, 10 * Devices)),
    {Port, Cache, Template} = bench_node:call(Node, fun() -> listen(Dir) end),
    Sessions = [Session || _ <- lists:seq(1, Devices), {_, Session, _} <- [connect(Port, none)]],
    %% Each device comes back once.
    {_, Held} = resume(Port, Sessions, Devices),
    {Before, Again} = resume(Port, Held, Resumptions),
    Self = self(),
    Flood = spawn_link(fun() ->
        Took = bench_node:call(Node, fun() -> flood(Cache, Template, Settings) end),
        Self ! {self(), Took}
    end),
    {During, _} = resume_until(Flood, Port, Again, []),
    bench_node:stop(Node),
    [(row(Results))#{store => Name, phase => Phase} || {Phase, Results} <- [{before, Before}, {during, During}]].

listen(Dir) ->
    Template = bench_sessions:template(Dir, {ecdsa, false}),
    Listener = bench_handshakes:listen(Dir, {ecdsa, false}, 0),
    {ok, {_, Port}} = ssl:sockname(Listener),
    {Port, bench_process:cache_of(Listener), Template}.

%% @private Returns when all lookups and registrations are done.
flood(Cache, Template, #{lookups := Lookups, sessions := Sessions}) ->
    Flooders = [
        spawn_monitor(fun() ->
            flood(Cache, Template, ?NEW + N * Sessions, Sessions div ?FLOODERS div ?CHUNK, Lookups div (Sessions div ?CHUNK))
        end)
     || N <- lists:seq(1, ?FLOODERS)
    ],
    [
        normal =
            receive
                {'DOWN', Monitor, process, _, Reason} -> Reason
            end
     || {_, Monitor} <- Flooders
    ],
    ok.

flood(_, _, _, 0, _) ->
    ok;
flood(Cache, Template, First, Chunks, Lookups) ->
    bench_process:register_all(Template, Cache, First, First + ?CHUNK - 1),
    [not_reusable = ssl_server_session_cache:reuse_session(Cache, crypto:strong_rand_bytes(32)) || _ <- lists:seq(1, Lookups)],
    flood(Cache, Template, First + ?CHUNK, Chunks - 1, Lookups).

%% ---- devices ----

resume(Port, Sessions, Number) ->
    lists:mapfoldl(fun(_, [Session | Others]) -> again(Port, Session, Others) end, Sessions, lists:seq(1, Number)).

%% The first device goes to the end of the queue, with its new session.
again(Port, Session, Others) ->
    {Resumed, Next, Took} = connect(Port, Session),
    {{Resumed, Took}, Others ++ [Next]}.

resume_until(Flood, Port, [Session | Others], Results) ->
    receive
        {Flood, ok} -> {Results, Others}
    after 0 ->
        {Result, Row} = again(Port, Session, Others),
        resume_until(Flood, Port, Row, [Result | Results])
    end.

connect(Port, Session) ->
    Offer = [{reuse_session, Session} || Session =/= none],
    Start = erlang:monotonic_time(),
    {ok, Socket} = ssl:connect({127, 0, 0, 1}, Port, [
        {versions, ['tlsv1.2']},
        {verify, verify_none},
        {active, false},
        {nodelay, true},
        {server_name_indication, disable},
        {reuse_sessions, save}
        | Offer
    ]),
    {ok, _} = ssl:recv(Socket, 1),
    Took = erlang:convert_time_unit(erlang:monotonic_time() - Start, native, nanosecond),
    {ok, [{session_id, Id}, {session_data, Data}]} = ssl:connection_information(Socket, [session_id, session_data]),
    ssl:close(Socket),
    {Session =/= none andalso element(1, Session) =:= Id, {Id, Data}, Took}.

row(Results) ->
    Latencies = [Took || {_, Took} <- Results],
    #{
        connections => length(Results),
        resumed => length([true || {true, _} <- Results]) / length(Results),
        p50_ns => bench_clock:percentile(Latencies, 0.5),
        p99_ns => bench_clock:percentile(Latencies, 0.99),
        max_ns => lists:max(Latencies)
    }.
