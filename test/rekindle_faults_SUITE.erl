%% Tests that OTP's processes survive whatever fails in the native library. The suite builds a library that panics or refuses on
%% demand (the cargo feature `testing`), and uses it in nodes of its own.
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
        faults_of_a_client_that_starts_over_are_logged_less_and_less,
        caches_of_a_module_that_was_unloaded_and_loaded_itself_count_faults,
        caches_of_a_module_that_is_gone_count_faults_and_log_them,
        a_process_restarted_without_the_module_does_not_end_its_supervisor,
        a_module_that_finds_no_library_any_more_is_not_loaded_again_and_again,
        the_client_manager_starts_over_with_a_module_that_was_loaded_again
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
            %% Six connections register six sessions and look up five. The last one may register a moment later.
            Faults = fun() ->
                [#{faults := Number}] = scopes(Node, server),
                Number
            end,
            rekindle_node:await(fun() -> Faults() >= 11 end),
            ?assertEqual({Mode, 11}, {Mode, Faults()}),
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
                %% The registered term was no session.
                ?assertEqual(0, rekindle:size(Cache)),
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

%% The manager's order no longer has a session whose deletion failed.
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
        ?assertError(out_of_sync, rekindle:size(Cache)),
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
    %% The manager starts over when it is about to register the first of them.
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
            %% Before it the scope is looked for, the store opened, and told what to check.
            ok = rekindle_node:call(Node, rekindle_nif, inject_one_fault, [Mode, 3]),
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
        seven_logged()
    end),
    ?assertEqual([1, 2, 4, 8, 16, 32, 64], lists:sort(counts(Lines))),
    ?assertEqual([], [Line || Line <- Lines, string:find(Line, Secret) =/= nomatch]),
    [?assertMatch([_ | _], string:find(hd(Lines), Part)) || Part <- ["nif_panicked", "faults.rs:"]],
    rekindle_node:stop(Node).

%% ssl_manager does this if one kind of call keeps failing.
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
                ?assertError(out_of_sync, rekindle:size(Cache))
            end
         || N <- lists:seq(1, 100)
        ],
        seven_logged()
    end),
    ?assertEqual([1, 2, 4, 8, 16, 32, 64], lists:sort(counts(Lines))),
    rekindle_node:stop(Node).

%% ---- a module that is unloaded ----

caches_of_a_module_that_was_unloaded_and_loaded_itself_count_faults(Config) ->
    Node = start(Config),
    {Server, Port} = start_server(Node, Config),
    {_, UpgradePort} = start_server(Node, upgrade, Config),
    Caches = cache_processes(Node),
    [?assertEqual({1, 5}, reconnect(P)) || P <- [Port, UpgradePort]],
    collect_lines(Node),
    unload(Node),
    [?assertEqual({6, 0}, reconnect(P)) || P <- [Port, UpgradePort]],
    ?assertEqual(Caches, cache_processes(Node)),
    %% Each: six sessions to register, and five to look up.
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch([#{faults := 11}, #{faults := 11}], scopes(Node, server)),
    ?assertEqual([1, 1, 2, 2, 4, 4, 8, 8], counts_logged(Node, 8)),
    %% A cache that is opened with the present module works.
    ok = rekindle_node:call(Node, rekindle_servers, stop, [Server]),
    {_, NextPort} = start_server(Node, Config),
    ?assertEqual({1, 5}, reconnect(NextPort)),
    ?assertEqual({6, 0}, reconnect(UpgradePort)),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch([22], [Faults || #{scope := upgraded, faults := Faults} <- scopes(Node, server)]),
    ?assertMatch([0], [Faults || #{scope := {listener, _, {_, P}}, faults := Faults} <- scopes(Node, server), P =:= NextPort]),
    ?assertEqual([16], counts_logged(Node, 1)),
    rekindle_node:stop(Node).

caches_of_a_module_that_is_gone_count_faults_and_log_them(Config) ->
    Node = start(Config),
    {_, Port} = start_server(Node, Config),
    Caches = cache_processes(Node),
    ?assertEqual({1, 5}, reconnect(Port)),
    collect_lines(Node),
    take_away(Node),
    [?assertEqual({6, 0}, reconnect(Port)) || _ <- [1, 2]],
    ?assertEqual(Caches, cache_processes(Node)),
    ?assertEqual([1, 2, 4, 8, 16], counts_logged(Node, 5)),
    ?assertNotEqual(nomatch, string:find(failure_to_listen(Node, Config), "the module is not loaded")),
    ?assertEqual(0, rekindle_node:run(Node, fun() -> value_of(rekindle_up) end)),
    bring_back(Node),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch([#{faults := 22}], scopes(Node, server)),
    ?assertEqual({6, 0}, reconnect(Port)),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch([#{faults := 33}], scopes(Node, server)),
    ?assertEqual(Caches, cache_processes(Node)),
    ?assertEqual(1, rekindle_node:run(Node, fun() -> value_of(rekindle_up) end)),
    rekindle_node:stop(Node).

%% The same for a listener that starts another process.
a_process_restarted_without_the_module_does_not_end_its_supervisor(Config) ->
    Node = start(Config),
    {_, UpgradePort} = start_server(Node, upgrade, Config),
    {_, Port} = start_server(Node, Config),
    [?assertEqual({1, 5}, reconnect(P)) || P <- [UpgradePort, Port]],
    Supervisor = rekindle_node:call(Node, erlang, whereis, [ssl_upgrade_server_session_cache_sup]),
    Killed = [rekindle_node:call(Node, erlang, whereis, [ssl_unknown_listener]) | cache_processes(Node)],
    take_away(Node),
    rekindle_node:run(Node, fun() ->
        [exit(Process, kill) || Process <- Killed],
        rekindle_node:await(fun() -> not lists:member(whereis(ssl_unknown_listener), [undefined | Killed]) end)
    end),
    Restarted = rekindle_node:call(Node, erlang, whereis, [ssl_unknown_listener]),
    [?assertEqual({6, 0}, reconnect(P)) || P <- [UpgradePort, Port]],
    bring_back(Node),
    [?assertEqual({6, 0}, reconnect(P)) || P <- [UpgradePort, Port]],
    ?assertEqual(
        [Supervisor, Restarted],
        [
            rekindle_node:call(Node, erlang, whereis, [Name])
         || Name <- [ssl_upgrade_server_session_cache_sup, ssl_unknown_listener]
        ]
    ),
    rekindle_node:stop(Node).

%% Each call would make the code server look for it, and OTP log that it was not found.
a_module_that_finds_no_library_any_more_is_not_loaded_again_and_again(Config) ->
    Bare = filename:join([?config(priv_dir, Config), "bare", "rekindle"]),
    Ebin = filename:join(Bare, "ebin"),
    [Beam, Copy] = [filename:join(Folder, "rekindle_nif.beam") || Folder <- [?config(faulty, Config), Ebin]],
    ok = filelib:ensure_dir(Copy),
    {ok, _} = file:copy(Beam, Copy),
    Node = start(Config),
    {_, Port} = start_server(Node, Config),
    Caches = cache_processes(Node),
    ?assertEqual({1, 5}, reconnect(Port)),
    true = rekindle_node:call(Node, code, add_patha, [Ebin]),
    unload(Node),
    ?assertEqual({6, 0}, reconnect(Port)),
    ?assertEqual(true, rekindle_node:call(Node, erlang, module_loaded, [rekindle_nif])),
    Missing = filename:join([Bare, "priv", "rekindle_nif.so"]),
    ?assertMatch({error, {Missing, _}}, rekindle_node:call(Node, rekindle_nif, loaded, [])),
    true = rekindle_node:call(Node, code, del_path, [Ebin]),
    bring_back(Node),
    ?assertMatch([#{faults := 11}], scopes(Node, server)),
    ?assertEqual(Caches, cache_processes(Node)),
    {_, NextPort} = start_server(Node, Config),
    ?assertEqual({1, 5}, reconnect(NextPort)),
    rekindle_node:stop(Node).

the_client_manager_starts_over_with_a_module_that_was_loaded_again(Config) ->
    Node = start(Config),
    {_, Port} = start_server(Node, Config),
    Manager = rekindle_node:call(Node, erlang, whereis, [ssl_manager]),
    ?assertMatch(#{full := 1, resumed := 1}, erlang_client(Node, Port, Config)),
    take_away(Node),
    ?assertMatch(#{full := 2, resumed := 0}, erlang_client(Node, Port, Config)),
    bring_back(Node),
    %% A listener that knows the module, too.
    {_, NextPort} = start_server(Node, Config),
    _ = erlang_client(Node, NextPort, Config),
    ?assertMatch(#{full := 1, resumed := 1}, erlang_client(Node, NextPort, Config)),
    ?assertEqual(Manager, rekindle_node:call(Node, erlang, whereis, [ssl_manager])),
    rekindle_node:stop(Node).

failure_to_listen(Node, Config) ->
    try start_server(Node, Config) of
        Listener -> ct:fail({listens, Listener})
    catch
        error:Reason -> lists:flatten(io_lib:format("~0tp", [Reason]))
    end.

unload(Node) ->
    true = rekindle_node:call(Node, code, delete, [rekindle_nif]),
    false = rekindle_node:call(Node, code, purge, [rekindle_nif]).

%% In embedded mode, a module that was unloaded has no functions. Nor has the empty module that is loaded here.
take_away(Node) ->
    {ok, rekindle_nif, Empty} = compile:forms([{attribute, 1, module, rekindle_nif}]),
    unload(Node),
    {module, rekindle_nif} = rekindle_node:call(Node, code, load_binary, [rekindle_nif, "nowhere", Empty]).

bring_back(Node) ->
    {module, rekindle_nif} = rekindle_node:call(Node, code, load_file, [rekindle_nif]),
    false = rekindle_node:call(Node, code, purge, [rekindle_nif]).

value_of(Metric) ->
    [Value] = [Value || {Name, _, _, [{[], Value}]} <- rekindle_metrics:families(), Name =:= Metric],
    Value.

%% ---- what is logged ----

collect_lines(Node) ->
    rekindle_node:run(Node, fun() ->
        Collector = spawn(fun Keep() ->
            receive
                {take, From, Ref} ->
                    From ! {Ref, logged()},
                    Keep()
            end
        end),
        true = register(?MODULE, Collector),
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => Collector})
    end).

%% The counts in as many lines as are expected, and more if there are, in order.
counts_logged(Node, Expected) ->
    rekindle_node:run(Node, fun() -> lists:sort(counts_logged(Expected, [], 100)) end).

counts_logged(Expected, Lines, Tries) when length(Lines) < Expected, Tries > 0 ->
    timer:sleep(50),
    counts_logged(Expected, Lines ++ take_lines(), Tries - 1);
counts_logged(_, Lines, _) ->
    counts(Lines ++ take_lines()).

take_lines() ->
    Ref = make_ref(),
    ?MODULE ! {take, self(), Ref},
    receive
        {Ref, Lines} -> Lines
    end.

counts(Lines) ->
    [
        list_to_integer(Count)
     || Line <- Lines, {match, [Count]} <- [re:run(Line, "(\\d+) so far", [{capture, all_but_first, list}])]
    ].

%% A logger handler.
log(#{msg := {"rekindle: " ++ _ = Format, Args}}, #{config := Pid}) ->
    Pid ! {logged, lists:flatten(io_lib:format(Format, Args))};
log(_, _) ->
    ok.

%% Each line comes from a process of its own, in any order. An eighth would be one too many.
seven_logged() ->
    [
        receive
            {logged, Line} -> Line
        after 10_000 -> "none"
        end
     || _ <- lists:seq(1, 7)
    ] ++ logged().

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
    start_server(Node, tls, Config).

start_server(Node, Kind, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Opts = [{certfile, Cert}, {keyfile, Key}, {versions, ['tlsv1.2']}],
    rekindle_node:call(Node, rekindle_servers, start, [Kind, Opts]).

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
    receive
        {'DOWN', Monitor, process, _, {result, Result}} -> Result
    end.
