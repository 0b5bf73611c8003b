%% @doc Shows that clients of other projects resume sessions that Rekindle keeps.
%%
%% Run it in a node of its own, with `demo/sys.config', the application and the test helpers
%% in the code path: `erl -noshell -config demo/sys.config -pa ... -s rekindle_demo main'.
-module(rekindle_demo).

-export([main/0]).

-type row() :: #{
    label := string(),
    run := fun(() -> rekindle_clients:result()),
    full := non_neg_integer(),
    resumed := non_neg_integer()
}.
%% A client to run, and the handshakes it must see.

-type outcome() :: {row(), rekindle_clients:result(), AsExpected :: boolean()}.

%% @doc Runs all clients, prints what happened, and ends the node: status 0 if everything was
%% as expected, 1 otherwise.
-spec main() -> no_return().
main() ->
    Status =
        try
            check_configuration(),
            {ok, _} = application:ensure_all_started(ssl),
            in_temporary_dir(fun demonstrate/1)
        of
            true -> 0;
            false -> 1
        catch
            throw:{configuration, Message} ->
                io:format("~ts~n", [Message]),
                1;
            Class:Reason:Stack ->
                io:format("The demo broke: ~p:~p~n~p~n", [Class, Reason, Stack]),
                1
        end,
    halt(Status).

%% Without this, OTP's own cache would make the same table.
check_configuration() ->
    _ = application:load(ssl),
    Keys = [session_cb, server_session_cb, client_session_cb],
    case [Key || Key <- Keys, application:get_env(ssl, Key) =/= {ok, rekindle}] of
        [] ->
            ok;
        Missing ->
            Text = "ssl is not configured to use rekindle: ~0p. Start with -config demo/sys.config",
            throw({configuration, io_lib:format(Text, [Missing])})
    end.

in_temporary_dir(Fun) ->
    Base = os:getenv("TMPDIR", "/tmp"),
    Dir = filename:join(Base, "rekindle-demo-" ++ os:getpid()),
    ok = file:make_dir(Dir),
    try
        %% It will hold private keys and master secrets.
        ok = file:change_mode(Dir, 8#700),
        Fun(Dir)
    after
        file:del_dir_r(Dir)
    end.

-spec demonstrate(file:filename()) -> boolean().
demonstrate(Dir) ->
    Certs = rekindle_certs:make(Dir),
    Servers = start_servers(Certs),
    Outcomes = [run(Row) || Row <- rows(Dir, Certs, Servers)],
    Info = rekindle_admin:info(),
    lists:foreach(fun({_, {Server, _}}) -> rekindle_servers:stop(Server) end, Servers),
    {Restart, RestartInfo} = restart(Dir, Certs),
    print_clients(Outcomes ++ [Restart]),
    print_cache(Info ++ RestartInfo),
    Verdict = hits_agree(Outcomes ++ [Restart], Info ++ RestartInfo),
    lists:foreach(fun print_failure/1, Outcomes ++ [Restart]),
    Verdict andalso lists:all(fun({_, _, AsExpected}) -> AsExpected end, Outcomes ++ [Restart]).

%% A node of its own with a journal in a folder: one connection, the node is killed and started again, and one more
%% with the same session.
restart(Dir, #{ca := Ca} = Certs) ->
    Opts = #{cafile => Ca},
    File = filename:join(Dir, "restart.pem"),
    Port = rekindle_node:free_port(),
    First = start_journalled(Dir, Port, Certs),
    Restart = row("openssl, node restarted between", 1, 1, fun() ->
        Saved = rekindle_clients:openssl_save(tls, Port, File, Opts),
        await_journal(First, fun(#{written := Written, queued := Queued}) -> Written > 0 andalso Queued =:= 0 end),
        rekindle_node:stop(First),
        Second = start_journalled(Dir, Port, Certs),
        await_journal(Second, fun(#{applied := Applied}) -> Applied =:= 1 end),
        Offered = rekindle_clients:openssl_offer(tls, Port, File, Opts),
        put(restarted, Second),
        rekindle_clients:both("openssl s_client, restarted between", Saved, Offered)
    end),
    Outcome = run(Restart),
    Second = get(restarted),
    Info = [I || #{role := server} = I <- rekindle_node:call(Second, rekindle_admin, info, [])],
    rekindle_node:stop(Second),
    {Outcome, Info}.

start_journalled(Dir, Port, #{server := #{ec := #{cert := Cert, key := Key}}}) ->
    Args = [{journal, {folder, filename:join(Dir, "journal")}}],
    Node = rekindle_node:start_ssl([{session_cb_init_args, Args}]),
    ok = rekindle_node:call(Node, logger, set_primary_config, [level, error]),
    Options = [{versions, ['tlsv1.2']}, {certfile, Cert}, {keyfile, Key}, {port, Port}, {reuseaddr, true}],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, Options]),
    Node.

await_journal(Node, Condition) ->
    rekindle_node:await(fun() ->
        [Journal] = [J || #{role := server, journal := J} <- rekindle_node:call(Node, rekindle_admin, info, [])],
        Condition(Journal)
    end).

start_servers(#{server := #{ec := #{cert := Cert, key := Key}}}) ->
    Files = [{certfile, Cert}, {keyfile, Key}],
    Tls = [{versions, ['tlsv1.2']} | Files],
    Dtls = [{versions, ['dtlsv1.2']} | Files],
    [
        {tls, rekindle_servers:start(tls, Tls)},
        {other_tls, rekindle_servers:start(tls, Tls)},
        {dtls, rekindle_servers:start(dtls, Dtls)},
        {upgrade, rekindle_servers:start(upgrade, Tls)}
    ].

%% ---- the clients ----

-spec rows(file:filename(), rekindle_certs:certs(), list()) -> [row()].
rows(Dir, #{ca := Ca}, Servers) ->
    [Tls, Other, Dtls, Upgraded] = [port(Key, Servers) || Key <- [tls, other_tls, dtls, upgrade]],
    Opts = #{cafile => Ca, sess_file => filename:join(Dir, "session.pem")},
    TwoProcesses = fun(Proto, Port, More) ->
        fun() -> rekindle_clients:openssl_two_processes(Proto, Port, maps:merge(Opts, More)) end
    end,
    [
        row("openssl s_client -reconnect", 1, 5, fun() ->
            rekindle_clients:openssl_reconnect(Tls, Opts)
        end),
        row("openssl, session kept in a file", 1, 1, TwoProcesses(tls, Tls, #{})),
        row("openssl, the same over DTLS", 1, 1, TwoProcesses(dtls, Dtls, #{})),
        row("openssl, the same, upgraded socket", 1, 1, TwoProcesses(tls, Upgraded, #{})),
        row("curl", 1, 1, fun() -> rekindle_clients:curl(Tls, Opts) end),
        row("Python ssl", 1, 1, fun() -> rekindle_clients:python(Tls, Opts) end),
        row("Erlang ssl", 1, 1, fun() -> rekindle_clients:erlang(Tls, Opts) end),
        row("Erlang ssl, DTLS", 1, 1, fun() -> rekindle_clients:erlang_dtls(Dtls, Opts) end),
        row(
            "openssl, offered to another listener",
            2,
            0,
            TwoProcesses(tls, Tls, #{
                second_port => Other
            })
        )
    ].

port(Key, Servers) ->
    {Key, {_, Port}} = lists:keyfind(Key, 1, Servers),
    Port.

row(Label, Full, Resumed, Run) ->
    #{label => Label, full => Full, resumed => Resumed, run => Run}.

%% A client that cannot be run fails its row, not the demo.
-spec run(row()) -> outcome().
run(#{label := Label, run := Run, full := Full, resumed := Resumed} = Row) ->
    try Run() of
        #{full := Full, resumed := Resumed} = Result -> {Row, Result, true};
        Result -> {Row, Result, false}
    catch
        error:{not_installed, Program} -> {Row, not_run(Label, Program), false}
    end.

not_run(Label, Program) ->
    Evidence = Program ++ " is not installed",
    #{client => Label, full => 0, resumed => 0, evidence => Evidence, output => <<>>}.

%% OTP asks the cache once for each handshake that resumes, so it cannot have had fewer hits.
hits_agree(Outcomes, Info) ->
    Resumed = lists:sum([N || {_, #{resumed := N}, _} <- Outcomes]),
    Hits = lists:sum([N || #{role := server, hits := N} <- Info]),
    io:format("The clients resumed ~b sessions; the servers found ~b in the cache: ~ts.~n", [
        Resumed, Hits, verdict(Hits >= Resumed)
    ]),
    Hits >= Resumed.

verdict(true) -> "rekindle did it";
verdict(false) -> "NOT all by rekindle".

%% ---- the report ----

print_clients(Outcomes) ->
    io:format(
        "~nEach client makes a full handshake, then offers its session again. A resumed handshake~n"
        "needs no certificate and no signature. The last client offers the session to a listener~n"
        "that did not make it, which must refuse.~n~n"
    ),
    Header = ["client", "full handshakes", "resumed", "as expected", "evidence"],
    print_table(Header, [client_cells(Outcome) || Outcome <- Outcomes]).

client_cells({#{label := Label}, #{full := Full, resumed := Resumed} = Result, AsExpected}) ->
    #{evidence := Evidence} = Result,
    [Label, integer_to_list(Full), integer_to_list(Resumed), yes_no(AsExpected), Evidence].

yes_no(true) -> "yes";
yes_no(false) -> "NO".

print_cache(Info) ->
    io:format("~nWhat the cache holds:~n~n"),
    Counters = ["hits", "misses", "expired", "evicted", "faults"],
    Header = ["scope", "sessions", "bytes", "at most" | Counters],
    print_table(Header, [cache_cells(Scope) || Scope <- Info]),
    io:format("~n").

cache_cells(#{scope := Scope, sessions := Sessions, bytes := Bytes, max_bytes := Max} = Info) ->
    Counters = [maps:get(Key, Info) || Key <- [hits, misses, expired, evicted, faults]],
    [scope_name(Scope), integer_to_list(Sessions), integer_to_list(Bytes), limit(Max)] ++
        [integer_to_list(Counter) || Counter <- Counters].

scope_name({listener, Proto, {Ip, Port}}) when is_tuple(Ip), is_integer(Port) ->
    lists:concat([string:uppercase(atom_to_list(Proto)), " listener ", inet:ntoa(Ip), ":", Port]);
scope_name({shared, Proto, Name}) ->
    lists:flatten(io_lib:format("shared ~ts ~0tp", [Proto, Name]));
scope_name(upgraded) ->
    "upgraded sockets";
scope_name(client) ->
    "outgoing connections";
scope_name(Other) ->
    lists:flatten(io_lib:format("~0tp", [Other])).

limit(infinity) -> "no limit";
limit(Bytes) -> integer_to_list(Bytes div (1024 * 1024)) ++ " MiB".

print_failure({_, _, true}) ->
    ok;
print_failure({#{label := Label, full := Full, resumed := Resumed}, #{output := Output}, false}) ->
    io:format("~nNOT AS EXPECTED: ~ts (expected: ~b full, ~b resumed). Its output:~n~s~n", [
        Label, Full, Resumed, Output
    ]).

print_table(Header, Rows) ->
    Widths = [lists:max([length(Cell) || Cell <- Column]) || Column <- columns([Header | Rows])],
    Rule = [lists:duplicate(Width, $-) || Width <- Widths],
    lists:foreach(fun(Row) -> print_row(Row, Widths) end, [Header, Rule | Rows]).

columns([[] | _]) ->
    [];
columns(Rows) ->
    [[hd(Row) || Row <- Rows] | columns([tl(Row) || Row <- Rows])].

print_row(Row, Widths) ->
    Cells = [string:pad(Cell, Width) || {Cell, Width} <- lists:zip(Row, Widths)],
    io:format("~ts~n", [string:trim(lists:flatten(lists:join("  ", Cells)), trailing)]).
