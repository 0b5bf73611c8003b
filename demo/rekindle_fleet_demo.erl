%% @doc Shows how one device, openssl with one session, resumes on each node of a fleet while the nodes are restarted one after the
%% other, and that a revocation on one node holds on all.
%%
%% Three nodes share their sessions through a Valkey (or Redis) of the demo's own. Run it in a node of its own, with the
%% application and the test helpers in the code path: `erl -noshell -pa ... -s rekindle_fleet_demo main'.
-module(rekindle_fleet_demo).

-export([main/0]).

-define(NODES, ["A", "B", "C"]).

%% @doc Runs the demo, prints what happened, and ends the node: status 0 if everything was as expected.
-spec main() -> no_return().
main() ->
    Dir = filename:join(os:getenv("TMPDIR", "/tmp"), "rekindle-fleet-demo-" ++ os:getpid()),
    ok = file:make_dir(Dir),
    ok = file:change_mode(Dir, 8#700),
    Status =
        try demonstrate(Dir) of
            true -> 0;
            false -> 1
        catch
            Class:Reason:Stack ->
                io:format("The demo broke: ~p:~p~n~p~n", [Class, Reason, Stack]),
                1
        after
            file:del_dir_r(Dir)
        end,
    halt(Status).

demonstrate(Dir) ->
    [Program | _] = rekindle_valkey:programs(),
    Valkey = rekindle_valkey:start(Program, filename:join(Dir, "valkey")),
    try
        demonstrate(Dir, Program, Valkey)
    after
        rekindle_valkey:stop(Valkey)
    end.

demonstrate(Dir, Program, Valkey) ->
    KeyFile = filename:join(Dir, "keys"),
    ok = file:write_file(KeyFile, ["demo ", base64:encode(crypto:strong_rand_bytes(32)), "\n"]),
    ok = file:change_mode(KeyFile, 8#600),
    Certs = rekindle_certs:make(Dir),
    Fleet = #{
        certs => Certs,
        ports => maps:from_list([{Name, rekindle_node:free_port()} || Name <- ?NODES]),
        journal => {valkey, rekindle_valkey:url(Valkey), [{key_file, KeyFile}]},
        session => filename:join(Dir, "session.pem")
    },
    io:format(
        "Three nodes, A, B and C, share sessions through a ~s of their own. A device makes one full~n"
        "handshake and then goes from node to node, while these are restarted one after the other.~n~n",
        [Program]
    ),
    Nodes = maps:from_list([{Name, start(Name, Fleet)} || Name <- ?NODES]),
    First = step("a new device connects to A", full, save("A", Fleet)),
    await_sessions(1, Nodes),
    Hops = [step("the device comes to " ++ Name, resumed, offer(Name, Fleet)) || Name <- ?NODES],
    {Rolled, Restarts} = lists:foldl(fun(Name, {Now, Steps}) -> restart(Name, Now, Steps, Fleet) end, {Nodes, []}, ?NODES),
    Again = [step("after all were restarted, the device comes to " ++ Name, resumed, offer(Name, Fleet)) || Name <- ?NODES],
    print_nodes(Rolled),
    {ok, Dropped} = rekindle_node:call(maps:get("B", Rolled), rekindle_admin, flush, []),
    io:format("~n~b session dropped by rekindle_admin:flush() on B.~n", [Dropped]),
    await_sessions(0, Rolled),
    Revoked = [step("after that, the device comes to " ++ Name, full, offer(Name, Fleet)) || Name <- ?NODES],
    lists:foreach(fun rekindle_node:stop/1, maps:values(Rolled)),
    Steps = [First | Hops] ++ lists:append(lists:reverse(Restarts)) ++ Again ++ Revoked,
    AsExpected = length([ok || ok <- Steps]),
    io:format("~n~b of ~b steps were as expected.~n", [AsExpected, length(Steps)]),
    AsExpected =:= length(Steps).

restart(Name, Nodes, Steps, Fleet) ->
    rekindle_node:stop(maps:get(Name, Nodes)),
    Others = ?NODES -- [Name],
    Meanwhile = [
        step(["while ", Name, " is down, the device comes to ", Other], resumed, offer(Other, Fleet))
     || Other <- Others
    ],
    Restarted = Nodes#{Name := start(Name, Fleet)},
    await_sessions(1, Restarted),
    Back = step([Name, " is back, and the device comes to it"], resumed, offer(Name, Fleet)),
    {Restarted, [Meanwhile ++ [Back] | Steps]}.

start(Name, #{certs := #{server := #{ec := #{cert := Cert, key := Key}}}, ports := Ports, journal := Journal}) ->
    #{Name := Port} = Ports,
    Scope = #{Port => devices},
    Node = rekindle_node:start_ssl([{session_cb_init_args, [{scope, Scope}, {journal, Journal}]}]),
    ok = rekindle_node:call(Node, logger, set_primary_config, [level, error]),
    Options = [{versions, ['tlsv1.2']}, {certfile, Cert}, {keyfile, Key}, {port, Port}, {reuseaddr, true}],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, Options]),
    Node.

save(Name, #{ports := Ports, session := File} = Fleet) ->
    rekindle_clients:openssl_save(tls, maps:get(Name, Ports), File, client(Fleet)).

offer(Name, #{ports := Ports, session := File} = Fleet) ->
    rekindle_clients:openssl_offer(tls, maps:get(Name, Ports), File, client(Fleet)).

client(#{certs := #{ca := Ca}}) ->
    #{cafile => Ca}.

step(Text, Expected, #{full := Full, resumed := Resumed, output := Output}) ->
    Was =
        case {Full, Resumed} of
            {1, 0} -> full;
            {0, 1} -> resumed;
            _ -> neither
        end,
    io:format("  ~ts  ~s~s~n", [
        string:pad(Text, 56), string:pad(atom_to_list(Was), 8), [" NOT AS EXPECTED" || Was =/= Expected]
    ]),
    case Was of
        Expected ->
            ok;
        _ ->
            io:format("~s~n", [Output]),
            wrong
    end.

%% A session is known on the other nodes some milliseconds after it was made.
await_sessions(Count, Nodes) ->
    rekindle_node:await(fun() -> lists:all(fun(Node) -> maps:get(sessions, info(Node)) =:= Count end, maps:values(Nodes)) end).

info(Node) ->
    [Info] = [Info || #{role := server} = Info <- rekindle_node:call(Node, rekindle_admin, info, [])],
    Info.

print_nodes(Nodes) ->
    Row = fun(Cells) -> io:format("~ts~n", [lists:join("  ", [string:pad(Cell, 9) || Cell <- Cells])]) end,
    io:format("~n"),
    Row(["node", "journal", "sessions", "hits", "misses", "applied", "skipped", "replay"]),
    [
        begin
            #{sessions := Sessions, hits := Hits, misses := Misses, journal := Journal} = info(maps:get(Name, Nodes)),
            #{state := State, applied := Applied, skipped := Skipped, replay := Replay} = Journal,
            Numbers = [Sessions, Hits, Misses, Applied, lists:sum(maps:values(Skipped))],
            Row([Name, atom_to_list(State)] ++ [integer_to_list(N) || N <- Numbers] ++ [integer_to_list(Replay) ++ " ms"])
        end
     || Name <- ?NODES
    ],
    ok.
