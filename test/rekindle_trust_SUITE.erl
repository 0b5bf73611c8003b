%% A resumption is checked like a handshake: sessions of certificates that have ended or are revoked.
-module(rekindle_trust_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

all() ->
    [{group, validity}].

groups() ->
    [
        {validity, [], [
            a_session_is_not_resumed_after_its_certificate_has_ended,
            sessions_of_certificates_that_have_ended_are_resumed_where_that_is_wanted,
            a_session_in_a_journal_is_not_resumed_after_its_certificate_has_ended,
            wrong_options_are_refused
        ]}
    ].

suite() ->
    [{timetrap, {minutes, 3}}].

init_per_suite(Config) ->
    Dir = ?config(priv_dir, Config),
    Ca = rekindle_ca:new(filename:join(Dir, "ca"), "Device CA"),
    [{certs, rekindle_certs:make(Dir)}, {ca, Ca} | Config].

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    Dir = filename:join(?config(priv_dir, Config), Case),
    ok = filelib:ensure_dir(filename:join(Dir, "file")),
    [{dir, Dir} | Config].

end_per_testcase(_Case, _Config) ->
    ok.

%% ---- validity ----

a_session_is_not_resumed_after_its_certificate_has_ended(Config) ->
    Node = start_node([{lifetime, 86_400}]),
    [Tls, Dtls] = [{Proto, start(Node, Proto, Config)} || Proto <- [tls, dtls]],
    {Short, End} = ending_in(10, "short", Config),
    Long = rekindle_ca:issue(?config(ca, Config), "long"),
    [?assertEqual(full, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Short, Long]],
    [?assertEqual(resumed, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Short, Long]],
    ?assertMatch([Left] when Left =< 10, time_left(Node, Tls, "short")),
    ?assertMatch([Left] when Left > 86_000, time_left(Node, Tls, "long")),
    await_end(End),
    [
        begin
            ?assertEqual(refused, connect(Server, Short, Config)),
            ?assertEqual(resumed, connect(Server, Long, Config)),
            ?assertMatch(#{ended := 1, ended_by := #{expired := 1, revoked := 0, unknown := 0}, misses := 1}, info(Node, Server)),
            %% It is not dropped.
            ?assertEqual([0], time_left(Node, Server, "short"))
        end
     || Server <- [Tls, Dtls]
    ],
    rekindle_node:stop(Node).

sessions_of_certificates_that_have_ended_are_resumed_where_that_is_wanted(Config) ->
    Node = start_node([{expired_certificates, resume}]),
    Server = {tls, start(Node, tls, Config)},
    {Short, End} = ending_in(5, "tolerated", Config),
    full = connect(Server, Short, Config),
    await_end(End),
    ?assertEqual(resumed, connect(Server, Short, Config)),
    ?assertMatch(#{ended := 0, hits := 1}, info(Node, Server)),
    ?assertMatch([Left] when Left > 80_000, time_left(Node, Server, "tolerated")),
    rekindle_node:stop(Node).

a_session_in_a_journal_is_not_resumed_after_its_certificate_has_ended(Config) ->
    {Short, End} = ending_in(8, "journaled", Config),
    Long = rekindle_ca:issue(?config(ca, Config), "journaled_long"),
    Options = [{journal, {folder, filename:join(?config(dir, Config), "journal")}}],
    Port = rekindle_node:free_port(),
    Run = fun() ->
        Node = start_node(Options),
        {Node, {tls, start(Node, tls, [{port, Port}], Config)}}
    end,
    {First, Server} = Run(),
    [full = connect(Server, Client, Config) || Client <- [Short, Long]],
    rekindle_node:await(fun() -> maps:get(written, maps:get(journal, info(First, Server))) >= 3 end),
    ok = rekindle_node:call(First, init, stop, []),
    rekindle_node:stop(First),
    await_end(End),
    {Second, Server} = Run(),
    Replayed = fun() -> maps:get(journal, info(Second, Server)) end,
    rekindle_node:await(fun() -> is_integer(maps:get(replay, Replayed())) end),
    ?assertMatch(#{applied := 1, skipped := #{expired := 1}}, Replayed()),
    ?assertEqual(resumed, connect(Server, Long, Config)),
    ?assertEqual(refused, connect(Server, Short, Config)),
    rekindle_node:stop(Second).

wrong_options_are_refused(_Config) ->
    [
        begin
            {error, {bad_option, Line}} = rekindle_options:parse([Option]),
            ?assertNotEqual(nomatch, string:find(Line, "rekindle: option " ++ atom_to_list(element(1, Option)))),
            ?assertNotEqual(nomatch, string:find(Line, "allowed: "))
        end
     || Option <- [{expired_certificates, true}, {expired_certificates, undefined}]
    ],
    ?assertMatch({error, {bad_option, _}}, rekindle_options:parse_limits([{expired_certificates, resume}])).

%% ---- nodes and clients ----

start_node(Options) ->
    rekindle_node:start_ssl([{session_cb_init_args, Options}]).

start(Node, Proto, Config) ->
    start(Node, Proto, [], Config).

start(Node, Proto, More, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    #{cert := Ca} = ?config(ca, Config),
    Version = maps:get(Proto, #{tls => 'tlsv1.2', dtls => 'dtlsv1.2'}),
    Options = [
        {certfile, Cert}, {keyfile, Key}, {cacertfile, Ca}, {versions, [Version]}, {verify, verify_peer},
        {fail_if_no_peer_cert, true}, {reuse_sessions, true}
    ],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [Proto, More ++ Options]),
    Port.

%% Offers the client's session of the last time if there was one: `full', `resumed', or `refused'.
connect({Proto, Port}, #{cert := Cert, key := Key} = Client, Config) ->
    File = session_file(Port, Client),
    Opts = #{cafile => maps:get(ca, ?config(certs, Config)), certfile => Cert, keyfile => Key},
    Result =
        case filelib:is_file(File) of
            true -> rekindle_clients:openssl_offer(Proto, Port, File, Opts#{extra => ["-sess_out", File]});
            false -> rekindle_clients:openssl_save(Proto, Port, File, Opts)
        end,
    case Result of
        #{full := 1, resumed := 0} -> full;
        #{full := 0, resumed := 1} -> resumed;
        #{full := 0, resumed := 0} -> refused
    end.

session_file(Port, #{cert := Cert}) ->
    lists:concat([Cert, ".", Port, ".session"]).

%% A certificate that ends so many seconds from now, and the last second in which it is valid.
ending_in(Seconds, Name, Config) ->
    End = erlang:system_time(second) + Seconds,
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(End, second),
    Text = lists:flatten(io_lib:format("~4..0b~2..0b~2..0b~2..0b~2..0b~2..0bZ", [Year, Month, Day, Hour, Minute, Second])),
    {rekindle_ca:issue(?config(ca, Config), Name, ["-enddate", Text]), End}.

await_end(End) ->
    timer:sleep(max(0, 1000 * (End + 1) - erlang:system_time(millisecond))).

info(Node, {_, Port}) ->
    [Info] = rekindle_node:call(Node, rekindle_admin, info, [Port]),
    Info.

%% Of the sessions of the client with this name.
time_left(Node, {_, Port}, Name) ->
    #{sessions := Sessions} = rekindle_node:call(Node, rekindle_admin, sessions, [Port]),
    Subject = iolist_to_binary(["O=Example,CN=", Name]),
    [Left || #{time_left := Left, peer := #{subject := S}} <- Sessions, is_subject(S, Subject, Name)].

is_subject(Subject, Subject, _) -> true;
is_subject(Subject, _, Name) -> Subject =:= iolist_to_binary(["CN=", Name, ",O=Example"]).
