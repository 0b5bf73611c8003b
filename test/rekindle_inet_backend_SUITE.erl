%% @doc Tests listeners whose sockets are not ports: `inet_backend = socket', for the node or for one listener.
-module(rekindle_inet_backend_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1]).
-export([
    listeners_have_their_names/1,
    the_doctor_knows_their_options/1,
    upgraded_sockets_have_theirs/1,
    a_listener_may_have_the_backend_alone/1,
    listeners_share_under_one_name_only/1,
    a_listener_opened_again_is_another_one/1,
    a_journal_outlives_a_restart_with_another_backend/1,
    a_cache_process_is_replaced_whatever_the_options_are/1
]).
-export([
    listeners_work_and_one_line_tells_what_they_lack/1
]).

-define(NODE, ["-kernel", "inet_backend", "socket"]).
-define(LOCALHOST, {127, 0, 0, 1}).

suite() ->
    [{timetrap, {minutes, 3}}].

%% From OTP 27 on, a cache process's label has its socket.
all() ->
    {module, _} = code:ensure_loaded(proc_lib),
    case erlang:function_exported(proc_lib, get_label, 1) of
        true -> [{group, told}];
        false -> [{group, untold}]
    end.

groups() ->
    [
        {told, [], [
            listeners_have_their_names,
            the_doctor_knows_their_options,
            upgraded_sockets_have_theirs,
            a_listener_may_have_the_backend_alone,
            listeners_share_under_one_name_only,
            a_listener_opened_again_is_another_one,
            a_journal_outlives_a_restart_with_another_backend,
            a_cache_process_is_replaced_whatever_the_options_are
        ]},
        {untold, [], [
            listeners_work_and_one_line_tells_what_they_lack
        ]}
    ].

init_per_suite(Config) ->
    rekindle_certs:with_certs(Config).

end_per_suite(_Config) ->
    ok.

%% ---- where OTP tells the socket ----

listeners_have_their_names(Config) ->
    Node = start(?NODE, []),
    [
        begin
            {_, Port} = serve(Node, Kind, [], Config),
            ?assertEqual({1, 1}, full_and_resumed(Kind, Port)),
            ?assert(lists:member({listener, Kind, {?LOCALHOST, Port}}, scopes_with_hits(Node))),
            ?assertEqual({ok, 1}, rekindle_node:call(Node, rekindle_admin, flush, [Port]))
        end
     || Kind <- [tls, dtls]
    ],
    ?assertEqual([], rekindle_log_lines:taken(Node)),
    rekindle_node:stop(Node).

%% Those of a DTLS listener it does not know: no process of the listener tells its socket.
the_doctor_knows_their_options(Config) ->
    Node = start(?NODE, []),
    {_, Port} = serve(Node, tls, [{reuse_sessions, false}], Config),
    {_, Resuming} = serve(Node, tls, [{reuse_sessions, true}], Config),
    Lines = [Line || {warning, Line} <- rekindle_node:call(Node, rekindle_admin, findings, [])],
    About = fun(Number) -> [Line || Line <- Lines, string:find(Line, ":" ++ integer_to_list(Number) ++ " has ") =/= nomatch] end,
    ?assertMatch({[_], []}, {About(Port), About(Resuming)}),
    rekindle_node:stop(Node).

upgraded_sockets_have_theirs(Config) ->
    Node = start(?NODE, []),
    {_, Port} = serve(Node, upgrade, [], Config),
    ?assertEqual({1, 1}, full_and_resumed(tls, Port)),
    ?assertEqual([upgraded], scopes_with_hits(Node)),
    ?assertEqual([], rekindle_log_lines:taken(Node)),
    rekindle_node:stop(Node).

%% Not every release's ssl accepts these options.
a_listener_may_have_the_backend_alone(Config) ->
    Node = start([], []),
    Options = [[{inet_backend, socket}], [{cb_info, {tls_socket_tcp, tcp, tcp_closed, tcp_error}}]],
    Opened = [open(Node, Option ++ [{ip, ?LOCALHOST} | options(tls, Config)]) || Option <- Options],
    [
        begin
            {listener, tls, {?LOCALHOST, Port}} = Label,
            ?assert(is_integer(Port))
        end
     || {ok, Label} <- Opened
    ],
    ?assertEqual([], rekindle_log_lines:taken(Node)),
    rekindle_node:stop(Node),
    [ok || {ok, _} <- Opened] =/= [] orelse {skip, "ssl of this release takes no such option"}.

%% The new scope's name.
open(Node, Options) ->
    rekindle_node:run(Node, fun() ->
        Before = [Number || #{number := Number} <- rekindle_admin:info()],
        try ssl:listen(0, Options) of
            {ok, _} ->
                [Label] = [
                    Label
                 || #{number := Number, scope := Label} <- rekindle_admin:info(), not lists:member(Number, Before)
                ],
                {ok, Label}
        catch
            _:_ -> refused
        end
    end).

listeners_share_under_one_name_only(Config) ->
    [One, Another, Alone] = Ports = [rekindle_node:free_port() || _ <- lists:seq(1, 3)],
    Node = start(?NODE, [{scope, #{One => name, {?LOCALHOST, Another} => name}}]),
    [serve(Node, tls, [{port, Port}], Config) || Port <- Ports],
    File = save(One, Config),
    ?assertEqual([{0, 1}, {0, 1}, {1, 0}], [offer(Port, File) || Port <- [One, Another, Alone]]),
    ?assertEqual([{shared, tls, name}], scopes_with_hits(Node)),
    rekindle_node:stop(Node).

a_listener_opened_again_is_another_one(Config) ->
    Node = start(?NODE, []),
    Port = rekindle_node:free_port(),
    {Server, Port} = serve(Node, tls, [{port, Port}], Config),
    File = save(Port, Config),
    ?assertEqual({0, 1}, offer(Port, File)),
    ok = rekindle_node:call(Node, rekindle_servers, stop, [Server]),
    {_, Port} = serve(Node, tls, [{port, Port}], Config),
    ?assertEqual({1, 0}, offer(Port, File)),
    rekindle_node:stop(Node).

a_journal_outlives_a_restart_with_another_backend(Config) ->
    Folder = filename:join(proplists:get_value(priv_dir, Config), "journal"),
    Options = [{journal, {folder, Folder}}],
    Port = rekindle_node:free_port(),
    File = filename:join(proplists:get_value(priv_dir, Config), "session.pem"),
    [
        begin
            Node = start(Args, Options),
            serve(Node, tls, [{port, Port}], Config),
            Before =:= 0 orelse rekindle_node:await(fun() -> journal(Node, applied) =:= Before end),
            Before =:= 0 orelse ?assertEqual({0, 1}, offer(Port, File)),
            ?assertMatch(#{full := 1}, rekindle_clients:openssl_save(tls, Port, File, #{})),
            rekindle_journals:await_written(Node, 1),
            rekindle_node:stop(Node)
        end
     || {Before, Args} <- [{0, ?NODE}, {1, ?NODE}, {2, []}, {3, ?NODE}]
    ].

%% From OTP 29 on listeners see to a new cache process. It must not be refused, or the listener ends.
a_cache_process_is_replaced_whatever_the_options_are(Config) ->
    Node = start(?NODE, []),
    {ok, {_, [#{restart := Restart}]}} = rekindle_node:call(Node, ssl_server_session_cache_sup, init, [[]]),
    [a_cache_process_is_replaced(Kind, Node, Config) || Restart =:= temporary, Kind <- [tls, dtls]],
    rekindle_node:stop(Node),
    Restart =:= temporary orelse {skip, "the listeners of this release replace no cache process"}.

a_cache_process_is_replaced(Kind, Node, Config) ->
    {_, Port} = serve(Node, Kind, [], Config),
    ?assertEqual({1, 1}, full_and_resumed(Kind, Port)),
    set_options(Node, [{max_bytes, 0}]),
    [{_, Cache, _, _}] = rekindle_node:call(Node, supervisor, which_children, [supervisor_of(Kind)]),
    true = rekindle_node:call(Node, erlang, exit, [Cache, kill]),
    [?assertEqual({Kind, {2, 0}}, {Kind, full_and_resumed(Kind, Port)}) || _ <- lists:seq(1, 3)],
    set_options(Node, []).

supervisor_of(tls) -> ssl_server_session_cache_sup;
supervisor_of(dtls) -> dtls_server_session_cache_sup.

%% ---- where it does not ----

listeners_work_and_one_line_tells_what_they_lack(Config) ->
    Folder = filename:join(proplists:get_value(priv_dir, Config), "no_journal"),
    Node = start(?NODE, [{scope, #{1 => name}}, {journal, {folder, Folder}}]),
    Ports = [element(2, serve(Node, tls, [], Config)) || _ <- lists:seq(1, 2)],
    [?assertEqual({1, 1}, full_and_resumed(tls, Port)) || Port <- Ports],
    {_, DtlsPort} = serve(Node, dtls, [], Config),
    ?assertEqual({1, 1}, full_and_resumed(dtls, DtlsPort)),
    ?assertEqual({1, 0}, offer(lists:last(Ports), save(hd(Ports), Config))),
    ?assertEqual([unnamed, unnamed, unnamed], scopes_with_hits(Node)),
    ?assertNot(filelib:is_dir(Folder)),
    {_, Upgrade} = serve(Node, upgrade, [], Config),
    ?assertEqual({1, 1}, full_and_resumed(tls, Upgrade)),
    Told = [Line || Line <- rekindle_log_lines:taken(Node), string:find(Line, "inet_backend = ") =/= nomatch],
    ?assertMatch(["rekindle: a listener's socket is not a port" ++ _], Told),
    rekindle_node:stop(Node),
    %% No line is logged without a reason.
    Ordinary = start([], []),
    {_, Port} = serve(Ordinary, tls, [], Config),
    ?assertEqual({1, 1}, full_and_resumed(tls, Port)),
    ?assertEqual([], rekindle_log_lines:taken(Ordinary)),
    rekindle_node:stop(Ordinary).

%% ---- nodes, servers and clients ----

start(Args, Options) ->
    Node = rekindle_node:start([{session_cb_init_args, Options}], [], Args),
    ok = rekindle_log_lines:collect(Node),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    Node.

set_options(Node, Options) ->
    ok = rekindle_node:call(Node, application, set_env, [ssl, session_cb_init_args, Options]).

serve(Node, Kind, Where, Config) ->
    rekindle_node:call(Node, rekindle_servers, start, [Kind, Where ++ options(Kind, Config)]).

options(Kind, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    Version =
        case Kind of
            dtls -> 'dtlsv1.2';
            _ -> 'tlsv1.2'
        end,
    [{versions, [Version]}, {certfile, Cert}, {keyfile, Key}].

scopes_with_hits(Node) ->
    [Label || #{role := server, scope := Label, hits := Hits} <- rekindle_node:call(Node, rekindle_admin, info, []), Hits > 0].

journal(Node, Number) ->
    [Journal] = [Journal || #{journal := #{} = Journal} <- rekindle_node:call(Node, rekindle_admin, info, [])],
    maps:get(Number, Journal).

full_and_resumed(Proto, Port) ->
    handshakes(rekindle_clients:openssl_two_processes(Proto, Port, #{})).

save(Port, Config) ->
    File = filename:join(proplists:get_value(priv_dir, Config), "saved" ++ integer_to_list(Port)),
    ?assertMatch(#{full := 1}, rekindle_clients:openssl_save(tls, Port, File, #{})),
    File.

offer(Port, File) ->
    handshakes(rekindle_clients:openssl_offer(tls, Port, File, #{})).

handshakes(#{full := Full, resumed := Resumed}) ->
    {Full, Resumed}.
