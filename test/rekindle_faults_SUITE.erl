%% Whatever fails in the native layer, OTP's processes live on: shown with a library that panics or
%% refuses on demand (the cargo feature `testing`), built here and used in nodes of its own.
-module(rekindle_faults_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

all() ->
    [
        a_server_without_its_library_makes_full_handshakes,
        every_server_callback_answers,
        every_client_callback_answers,
        the_client_manager_starts_over_after_a_fault,
        a_client_without_its_library_makes_full_handshakes,
        a_listener_that_could_open_no_store_works,
        a_listener_that_could_open_no_journal_works,
        faults_are_logged_less_and_less_and_without_secrets,
        faults_of_a_client_that_starts_over_are_logged_less_and_less
    ].

suite() ->
    [{timetrap, {minutes, 10}}].

init_per_suite(Config) ->
    Certs = rekindle_certs:make(?config(priv_dir, Config)),
    [{certs, Certs}, {faulty, rekindle_checkout:testing_build(Config)} | Config].

end_per_suite(_Config) ->
    ok.

a_server_without_its_library_makes_full_handshakes(Config) ->
    [
        begin
            Node = start(Config),
            {_, Port} = start_server(Node, Config),
            Caches = cache_processes(Node),
            ?assertEqual({1, 5}, reconnect(Port)),
            inject(Node, Mode),
            ?assertEqual({6, 0}, reconnect(Port)),
            [#{faults := Faults}] = scopes(Node, server),
            %% Six connections: six sessions to register and five to look up.
            ?assertEqual({Mode, 11}, {Mode, Faults}),
            inject(Node, none),
            ?assertEqual({1, 5}, reconnect(Port)),
            ?assertEqual(Caches, cache_processes(Node)),
            rekindle_node:stop(Node)
        end
     || Mode <- [panic, refusal]
    ].

every_server_callback_answers(Config) ->
    Node = start(Config),
    rekindle_node:run(Node, fun() ->
        Cache = rekindle:init([{role, server}]),
        Id = <<7:256>>,
        ok = rekindle:update(Cache, Id, a_term),
        [
            begin
                ok = rekindle_nif:inject_fault(Mode),
                ?assertEqual(undefined, rekindle:lookup(Cache, Id)),
                ?assertEqual(ok, rekindle:update(Cache, Id, another_term)),
                ?assertEqual(ok, rekindle:delete(Cache, Id)),
                ?assertEqual(1000, rekindle:size(Cache)),
                ?assertEqual(0, elsewhere(fun() -> rekindle:size(Cache) end)),
                ?assertEqual(ok, elsewhere(fun() -> rekindle:delete(Cache, Id) end)),
                ?assertEqual([], rekindle:select_session(Cache, {"host", 443})),
                ?assertEqual(acc, rekindle:foldl(fun(_, _) -> folded end, acc, Cache)),
                ?assertEqual(ok, rekindle:terminate(Cache)),
                ok = rekindle_nif:inject_fault(none),
                ?assertEqual(a_term, rekindle:lookup(Cache, Id))
            end
         || Mode <- [panic, refusal]
        ],
        Infos = rekindle_admin:info(),
        %% A use of it after: nobody else refers to it, and it would be gone otherwise.
        ?assertEqual(a_term, rekindle:lookup(Cache, Id)),
        %% lookup, update, size and delete from elsewhere, foldl, terminate; twice.
        ?assertMatch([_, #{faults := 12, sessions := 1}], Infos)
    end),
    rekindle_node:stop(Node).

every_client_callback_answers(Config) ->
    Node = start(Config),
    rekindle_node:run(Node, fun() ->
        Cache = rekindle:init([{role, client}]),
        Key = {{"host", 443}, <<7:256>>},
        ok = rekindle:update(Cache, Key, a_term),
        [
            begin
                ok = rekindle_nif:inject_fault(Mode),
                ?assertEqual(undefined, rekindle:lookup(Cache, Key)),
                ?assertEqual(ok, rekindle:update(Cache, Key, another_term)),
                ?assertEqual(ok, rekindle:delete(Cache, Key)),
                ?assertEqual(0, rekindle:size(Cache)),
                ?assertEqual([], rekindle:select_session(Cache, {"host", 443})),
                ?assertEqual(acc, rekindle:foldl(fun(_, _) -> folded end, acc, Cache)),
                ?assertEqual(ok, rekindle:terminate(Cache)),
                ok = rekindle_nif:inject_fault(none),
                ?assertEqual([a_term], rekindle:select_session(Cache, {"host", 443}))
            end
         || Mode <- [panic, refusal]
        ]
    end),
    rekindle_node:stop(Node).

%% A session whose deletion failed is one the manager has no note of any more.
the_client_manager_starts_over_after_a_fault(Config) ->
    Node = start(Config),
    rekindle_node:run(Node, fun() ->
        Cache = rekindle:init([{role, client}]),
        Key = {{"host", 443}, <<7:256>>},
        ok = rekindle:update(Cache, Key, a_term),
        ?assertEqual(1, rekindle:size(Cache)),
        ok = rekindle_nif:inject_fault(panic),
        ok = elsewhere(fun() -> rekindle:delete(Cache, Key) end),
        ok = rekindle_nif:inject_fault(none),
        ?assertEqual({a_term, 1}, {rekindle:lookup(Cache, Key), rekindle:size(Cache)}),
        ok = rekindle_nif:inject_fault(panic),
        ok = rekindle:delete(Cache, Key),
        ?assertEqual(0, rekindle:size(Cache)),
        ok = rekindle_nif:inject_fault(none),
        ?assertEqual(undefined, rekindle:lookup(Cache, Key)),
        ?assertError(books_adrift, rekindle:size(Cache)),
        ?assertEqual({a_term, 1}, elsewhere(fun() -> {rekindle:lookup(Cache, Key), rekindle:size(Cache)} end))
    end),
    rekindle_node:stop(Node).

a_client_without_its_library_makes_full_handshakes(Config) ->
    Node = start(Config),
    {_, Port} = start_server(Node, Config),
    Manager = rekindle_node:call(Node, erlang, whereis, [ssl_manager]),
    [
        begin
            inject(Node, Mode),
            #{full := 2, resumed := 0} = erlang_client(Node, Port, Config),
            rekindle_node:run(Node, fun() ->
                ssl_manager ! validate_sessions,
                _ = sys:get_state(ssl_manager)
            end)
        end
     || Mode <- [panic, refusal]
    ],
    inject(Node, none),
    %% The manager starts over where it would register the first of them.
    #{full := 2, resumed := 0} = erlang_client(Node, Port, Config),
    #{full := 1, resumed := 1} = erlang_client(Node, Port, Config),
    ?assertEqual(Manager, rekindle_node:call(Node, erlang, whereis, [ssl_manager])),
    rekindle_node:stop(Node).

a_listener_that_could_open_no_store_works(Config) ->
    Node = start(Config),
    inject(Node, panic),
    {_, Port} = start_server(Node, Config),
    inject(Node, none),
    Caches = cache_processes(Node),
    ?assertEqual({6, 0}, reconnect(Port)),
    ?assertEqual(Caches, cache_processes(Node)),
    ?assertEqual([], scopes(Node, server)),
    rekindle_node:stop(Node).

a_listener_that_could_open_no_journal_works(Config) ->
    [
        begin
            Folder = filename:join(?config(priv_dir, Config), lists:concat(["journal_", Mode])),
            Node = start(Config, [{session_cb_init_args, [{journal, {folder, Folder}}]}]),
            %% Before it the scope is looked for, and the store opened.
            ok = rekindle_node:call(Node, rekindle_nif, inject_one_fault, [Mode, 2]),
            {_, Port} = start_server(Node, Config),
            Caches = cache_processes(Node),
            ?assertEqual({1, 5}, reconnect(Port)),
            ?assertEqual(Caches, cache_processes(Node)),
            ?assertMatch([#{journal := undefined, faults := 0}], scopes(Node, server)),
            %% Another listener has one.
            _ = start_server(Node, Config),
            ?assertMatch([#{}], [Journal || #{journal := Journal} <- scopes(Node, server), Journal =/= undefined]),
            rekindle_node:stop(Node)
        end
     || Mode <- [panic, refusal]
    ].

faults_are_logged_less_and_less_and_without_secrets(Config) ->
    Node = start(Config),
    Secret = <<"this is a master secret of 48 bytes, not to be s">>,
    Lines = rekindle_node:run(Node, fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        Cache = rekindle:init([{role, server}]),
        ok = rekindle_nif:inject_fault(panic),
        [ok = rekindle:update(Cache, <<N:256>>, {session, Secret}) || N <- lists:seq(1, 100)],
        timer:sleep(500),
        logged()
    end),
    %% At 1, 2, 4, 8, 16, 32 and 64.
    ?assertEqual(7, length(Lines)),
    ?assertEqual([], [Line || Line <- Lines, string:find(Line, Secret) =/= nomatch]),
    [?assertMatch([_ | _], string:find(hd(Lines), Part)) || Part <- ["nif_panicked", "faults.rs:"]],
    rekindle_node:stop(Node).

%% As ssl_manager does where one kind of call keeps failing.
faults_of_a_client_that_starts_over_are_logged_less_and_less(Config) ->
    Node = start(Config),
    Lines = rekindle_node:run(Node, fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        [
            begin
                Cache = rekindle:init([{role, client}]),
                ok = rekindle_nif:inject_fault(panic),
                ok = rekindle:update(Cache, {{"localhost", 443}, <<N:256>>}, any),
                ok = rekindle_nif:inject_fault(none),
                ?assertError(books_adrift, rekindle:size(Cache))
            end
         || N <- lists:seq(1, 100)
        ],
        [receive {logged, Line} -> Line after 10_000 -> none end || _ <- lists:seq(1, 7)] ++ logged()
    end),
    %% Each from a process of its own, in any order.
    Counts = [list_to_integer(Count) || {match, [Count]} <- [re:run(Line, "(\\d+) so far", [{capture, all_but_first, list}]) || Line <- Lines]],
    ?assertEqual([1, 2, 4, 8, 16, 32, 64], lists:sort(Counts)),
    rekindle_node:stop(Node).

%% A logger handler.
log(#{msg := {"rekindle: " ++ _ = Format, Args}}, #{config := Pid}) ->
    Pid ! {logged, lists:flatten(io_lib:format(Format, Args))};
log(_, _) ->
    ok.

logged() ->
    receive
        {logged, Line} -> [Line | logged()]
    after 0 -> []
    end.

start(Config) ->
    start(Config, []).

start(Config, SslEnv) ->
    Node = rekindle_node:start(SslEnv, [?config(faulty, Config)]),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    Node.

inject(Node, Mode) ->
    ok = rekindle_node:call(Node, rekindle_nif, inject_fault, [Mode]).

start_server(Node, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Opts = [{certfile, Cert}, {keyfile, Key}, {versions, ['tlsv1.2']}],
    rekindle_node:call(Node, rekindle_servers, start, [tls, Opts]).

reconnect(Port) ->
    #{full := Full, resumed := Resumed} = rekindle_clients:openssl_reconnect(Port, #{}),
    {Full, Resumed}.

erlang_client(Node, Port, Config) ->
    #{ca := Ca} = ?config(certs, Config),
    rekindle_node:call(Node, rekindle_clients, erlang, [Port, #{cafile => Ca}]).

cache_processes(Node) ->
    supervisor_children(rekindle_node:call(Node, supervisor, which_children, [ssl_server_session_cache_sup])).

supervisor_children(Children) ->
    [Pid || {_, Pid, _, _} <- Children, is_pid(Pid)].

scopes(Node, Role) ->
    [Info || #{role := R} = Info <- rekindle_node:call(Node, rekindle_admin, info, []), R =:= Role].

elsewhere(Fun) ->
    {_, Monitor} = spawn_monitor(fun() -> exit({result, Fun()}) end),
    receive {'DOWN', Monitor, process, _, {result, Result}} -> Result end.
