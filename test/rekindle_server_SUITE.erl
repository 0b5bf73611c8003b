%% Tests the server role: real clients resume, OTP's cache process does not crash, no session leaves its scope, and no private key
%% is stored.
-module(rekindle_server_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

all() ->
    [
        {group, resumption},
        {group, releases},
        {group, cache_process},
        {group, lifetime},
        {group, scope},
        {group, secrets},
        {group, memory}
    ].

groups() ->
    [
        {resumption, [], [
            tls_clients_resume,
            dtls_clients_resume,
            clients_of_an_upgraded_socket_resume
        ]},
        {releases, [], [
            a_killed_cache_process_is_replaced_or_missed,
            a_session_is_resumed_under_its_server_name,
            server_names_make_no_templates,
            a_server_that_verifies_its_clients_resumes_by_default_or_when_told_to
        ]},
        {cache_process, [], [
            it_survives_more_sessions_than_the_store_holds,
            it_survives_a_flush_between_registrations,
            it_survives_lifetimes_running_out,
            it_survives_a_store_that_holds_sessions_before_its_first,
            it_survives_a_lookup_of_an_expired_session,
            its_order_holds_one_session_whatever_the_maximum_is_or_becomes,
            a_restarted_one_survives_another_maximum,
            a_replaced_one_survives_another_maximum,
            a_listener_survives_a_refusal_to_its_next_one,
            a_size_asked_out_of_turn_costs_one_resumption_at_most,
            what_it_finds_expired_holds_nothing_of_a_session,
            it_keeps_little_on_its_heap_and_no_secret,
            it_survives_an_upgrade_of_the_callback_module
        ]},
        {lifetime, [], [
            an_expired_session_is_not_resumed,
            a_lifetime_longer_than_that_of_ssl_counts,
            a_session_lifetime_of_zero_resumes_nothing,
            a_process_restarted_with_a_lifetime_of_zero_resumes_and_lives_on
        ]},
        {scope, [], [
            listeners_do_not_share_sessions,
            sockets_of_one_address_share_sessions,
            listeners_of_one_name_share_sessions,
            tls_and_dtls_of_one_name_do_not_share_sessions,
            a_listener_opened_again_does_not_have_the_old_sessions,
            an_address_on_another_device_is_another_one,
            a_client_certificate_check_is_not_bypassed
        ]},
        {secrets, [], [
            no_private_key_is_held,
            a_resumed_connection_renegotiates,
            a_resumed_connection_with_client_certificate_renegotiates
        ]},
        {memory, [], [
            a_closed_listener_gives_its_memory_back,
            a_dead_cache_process_gives_its_memory_back_off_the_schedulers,
            the_size_is_true_for_all_but_the_cache_process
        ]}
    ].

suite() ->
    [{timetrap, {minutes, 3}}].

init_per_suite(Config) ->
    Certs = rekindle_certs:make(?config(priv_dir, Config)),
    [{certs, Certs} | Config].

end_per_suite(_Config) ->
    ok.

%% ---- resumption ----

tls_clients_resume(Config) ->
    Node = rekindle_node:start_ssl([]),
    {Server, Port} = start_server(Node, tls, server_opts(Config)),
    Clients = [openssl_reconnect, curl, python, erlang],
    Expected = [{1, 5}, {1, 1}, {1, 1}, {1, 1}],
    Results = [rekindle_node:call(Node, rekindle_clients, Client, [Port, client_opts(Config)]) || Client <- Clients],
    ?assertEqual(lists:zip(Clients, Expected), lists:zip(Clients, [counts(Result) || Result <- Results])),
    ?assertEqual({1, 1}, counts(offer_own_session(tls, Port, Config))),
    %% The server's own view: each of the 5 clients made one session, and 14 connections in all.
    ?assertMatch({5, 14}, await_handshakes(Node, Server, 14)),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch(#{hits := 9, inserts := 5, faults := 0}, scope_of(Node, Port)),
    rekindle_node:stop(Node).

dtls_clients_resume(Config) ->
    Node = rekindle_node:start_ssl([]),
    {Server, Port} = start_server(Node, dtls, server_opts(Config)),
    ?assertEqual({1, 1}, counts(rekindle_node:call(Node, rekindle_clients, erlang_dtls, [Port, client_opts(Config)]))),
    ?assertEqual({1, 1}, counts(offer_own_session(dtls, Port, Config))),
    ?assertMatch({2, 4}, await_handshakes(Node, Server, 4)),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch(#{scope := {listener, dtls, _}, hits := 2, faults := 0}, scope_of(Node, Port)),
    rekindle_node:stop(Node).

clients_of_an_upgraded_socket_resume(Config) ->
    Node = rekindle_node:start_ssl([]),
    {Server, Port} = start_server(Node, upgrade, server_opts(Config)),
    ?assertEqual({1, 5}, counts(rekindle_clients:openssl_reconnect(Port, client_opts(Config)))),
    ?assertMatch({1, 6}, await_handshakes(Node, Server, 6)),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch([#{hits := 5, faults := 0}], [Info || #{scope := upgraded} = Info <- info(Node)]),
    rekindle_node:stop(Node).

%% ---- where releases differ by design ----

%% A listener of OTP 25 or 27 goes on without sessions until it is opened again. One of OTP 29 starts another process
%% for the next connection.
a_killed_cache_process_is_replaced_or_missed(Config) ->
    [
        begin
            Node = rekindle_node:start_ssl([]),
            Port = rekindle_node:free_port(),
            {Server, Port} = start_server(Node, Kind, [{port, Port} | server_opts(Config)]),
            ?assertEqual({1, 1}, counts(offer_own_session(Kind, Port, Config))),
            [Cache] = cache_processes(Node),
            true = rekindle_node:call(Node, erlang, exit, [Cache, kill]),
            rekindle_node:await(fun() -> not rekindle_node:call(Node, erlang, is_process_alive, [Cache]) end),
            Expected =
                case listeners_replace_cache_processes(Node) of
                    true -> {1, 1};
                    false -> {2, 0}
                end,
            ?assertEqual({Kind, Expected}, {Kind, counts(offer_own_session(Kind, Port, Config))}),
            ok = rekindle_node:call(Node, rekindle_servers, stop, [Server]),
            {_, Port} = start_server(Node, Kind, [{port, Port} | server_opts(Config)]),
            ?assertEqual({1, 1}, counts(offer_own_session(Kind, Port, Config))),
            ?assertMatch([], [Info || #{faults := Faults} = Info <- info(Node), Faults > 0]),
            rekindle_node:stop(Node)
        end
     || Kind <- [tls, dtls]
    ].

%% If the listener starts another process, the supervisor does not.
listeners_replace_cache_processes(Node) ->
    {ok, {_, [#{restart := Restart}]}} = rekindle_node:call(Node, ssl_server_session_cache_sup, init, [[]]),
    Restart =:= temporary.

%% The last patches of OTP 29 note the name in the session, and refuse to resume it under another one. Before, it
%% is not noted, and counts for nothing.
a_session_is_resumed_under_its_server_name(Config) ->
    [
        begin
            Node = rekindle_node:start_ssl([]),
            {_, Port} = start_server(Node, Kind, server_opts(Config)),
            Under = fun(Name) -> #{extra => ["-servername", Name]} end,
            save(Kind, Port, "name", Config, Under("localhost")),
            Same = {0, 1},
            Other =
                case lists:member("localhost", tuple_to_list(the_session(Node))) of
                    true -> {1, 0};
                    false -> {0, 1}
                end,
            [
                ?assertEqual({Kind, Opts, Expected}, {Kind, Opts, counts(offer(Kind, Port, "name", Config, Opts))})
             || {Opts, Expected} <- [
                    {Under("localhost"), Same},
                    {Under("other.example"), Other},
                    {#{}, Other},
                    {Under("localhost"), Same}
                ]
            ],
            save(Kind, Port, "nameless", Config),
            ?assertEqual({0, 1}, counts(offer(Kind, Port, "nameless", Config))),
            ?assertEqual(Other, counts(offer(Kind, Port, "nameless", Config, Under("localhost")))),
            rekindle_node:stop(Node)
        end
     || Kind <- [tls, dtls]
    ].

server_names_make_no_templates(Config) ->
    Node = rekindle_node:start_ssl([]),
    {_, Port} = start_server(Node, tls, server_opts(Config)),
    [
        begin
            Under = #{extra => ["-servername", lists:concat(["host", N, ".example"])]},
            save(tls, Port, "host", Config, Under),
            ?assertEqual({0, 1}, counts(offer(tls, Port, "host", Config, Under))),
            ?assertMatch(#{sessions := N, templates := 1}, scope_of(Node, Port))
        end
     || N <- lists:seq(1, 5)
    ],
    rekindle_node:stop(Node).

%% With {verify, verify_peer}, OTP 29 resumes only with {reuse_sessions, true}.
a_server_that_verifies_its_clients_resumes_by_default_or_when_told_to(Config) ->
    #{ca := Ca, client := #{ec := Client}} = ?config(certs, Config),
    Verify = [{verify, verify_peer}, {fail_if_no_peer_cert, true}, {cacertfile, Ca} | server_opts(Config)],
    Node = rekindle_node:start_ssl([]),
    Resumes = fun(Opts) ->
        {Server, Port} = start_server(Node, tls, Opts),
        save(tls, Port, "verified", Config, certificate(Client)),
        Counts = counts(offer(tls, Port, "verified", Config, certificate(Client))),
        #{sessions := Sessions, hits := Hits, misses := Misses} = scope_of(Node, Port),
        {option_reuse_sessions(Node, Server), Counts, {Sessions, Hits, Misses}}
    end,
    Resumed = {true, {0, 1}, {1, 1, 0}},
    %% ssl does not call the cache.
    NotResumed = {false, {1, 0}, {0, 0, 0}},
    Default = Resumes(Verify),
    ?assert(Default =:= Resumed orelse Default =:= NotResumed, Default),
    ?assertEqual(Resumed, Resumes([{reuse_sessions, true} | Verify])),
    ?assertEqual(NotResumed, Resumes([{reuse_sessions, false} | Verify])),
    ?assertEqual(Resumed, Resumes(server_opts(Config))),
    rekindle_node:stop(Node).

%% The options as ssl has completed them: the listen socket contains the map of all options.
option_reuse_sessions(Node, Server) ->
    Socket = rekindle_node:call(Node, rekindle_servers, listen_socket, [Server]),
    [Reuse] = lists:usort(reuse_sessions(Socket)),
    Reuse.

reuse_sessions(#{reuse_sessions := Reuse}) -> [Reuse];
reuse_sessions(Term) when is_tuple(Term) -> lists:flatmap(fun reuse_sessions/1, tuple_to_list(Term));
reuse_sessions(_) -> [].

the_session(Node) ->
    rekindle_node:run(Node, fun() ->
        [Cache] = rekindle_servers:cache_processes(),
        [{_, Session}] = rekindle:foldl(fun(Held, Acc) -> [Held | Acc] end, [], reference(Cache)),
        Session
    end).

%% ---- OTP's cache process ----

it_survives_more_sessions_than_the_store_holds(Config) ->
    with_cache_process([{session_cb_init_args, [{max_sessions, 100}]}], Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(10_000)),
        ?assertEqual(100, held(Cache)),
        Newest = <<10_000:256>>,
        ?assertEqual(Newest, element(2, reuse(Cache, Newest))),
        ?assertEqual(not_reusable, reuse(Cache, <<1:256>>))
    end).

it_survives_a_flush_between_registrations(Config) ->
    with_cache_process([], Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(50)),
        ok = rekindle:terminate(reference(Cache)),
        ?assertEqual(0, held(Cache)),
        register_all(Cache, Sample, ids(50)),
        ?assertEqual(50, held(Cache))
    end).

it_survives_lifetimes_running_out(Config) ->
    Env = [{session_lifetime, 4}],
    with_cache_process(Env, Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(50)),
        timer:sleep(4100),
        register_all(Cache, Sample, [<<51:256>>]),
        %% Also the sample. The last one may have expired by then as well.
        rekindle_node:await(fun() ->
            [#{expired := Expired}] = [Info || #{role := server} = Info <- rekindle_admin:info()],
            Expired >= 51 andalso held(Cache) =< 1
        end)
    end).

it_survives_a_store_that_holds_sessions_before_its_first(Config) ->
    [Port, OtherPort] = unused_ports(2),
    Env = [{session_cb_init_args, [{scope, #{Port => both, OtherPort => both}}]}],
    with_cache_process(Env, [{port, Port}], Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(50)),
        {_, OtherPort} = rekindle_servers:start(tls, for_transport(tls, [{port, OtherPort} | server_opts(Config)])),
        [Other] = rekindle_servers:cache_processes() -- [Cache],
        ?assertEqual(51, held(Other)),
        register_all(Other, Sample, [<<N:256>> || N <- lists:seq(51, 60)]),
        ?assertEqual(61, held(Other)),
        ?assertEqual(1, order_size(Other))
    end).

it_survives_a_lookup_of_an_expired_session(Config) ->
    Env = [{session_lifetime, 4}],
    with_cache_process(Env, Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(2)),
        ?assertEqual(<<1:256>>, element(2, reuse(Cache, <<1:256>>))),
        timer:sleep(4100),
        ?assertEqual(not_reusable, reuse(Cache, <<1:256>>)),
        ?assertEqual(not_reusable, reuse(Cache, <<2:256>>))
    end).

its_order_holds_one_session_whatever_the_maximum_is_or_becomes(Config) ->
    [
        with_cache_process(Kind, maximum(First), [], Config, fun(Cache, Sample) ->
            Later = [5000, 20, 2, 1, 0, -7, 1 bsl 70, -1 bsl 70, 1.0, infinity],
            [
                begin
                    ok = application:set_env(ssl, session_cache_server_max, Max),
                    Ids = [<<Number:128, N:128>> || N <- lists:seq(1, 10)],
                    register_all(Cache, Sample, Ids),
                    ?assertEqual({Kind, First, Max, 1}, {Kind, First, Max, order_size(Cache)}),
                    [?assertEqual(Id, element(2, reuse(Cache, Id))) || Id <- Ids]
                end
             || {Number, Max} <- lists:enumerate(Later)
            ],
            ?assertEqual(101, held(Cache))
        end)
     || {Kind, First} <- [{tls, 500}, {tls, 1}, {tls, 3}, {tls, -1}, {tls, 1 bsl 70}, {dtls, 500}, {upgrade, 500}]
    ].

%% The maximum of OTP's book-keeping, and not of the store.
maximum(Max) ->
    [{session_cache_server_max, Max}, {session_cb_init_args, [{max_sessions, infinity}]}].

%% OTP's supervisor starts a process in place of one that crashed with the maximum that it read for that one; the
%% environment may have another by then. If the new one does not start, the supervisor ends, and all
%% listeners with it.
a_restarted_one_survives_another_maximum(Config) ->
    Node = rekindle_node:start_ssl(maximum(500)),
    {_, Port} = start_server(Node, tls, server_opts(Config)),
    {_, UpgradePort} = start_server(Node, upgrade, server_opts(Config)),
    ?assertEqual({1, 1}, counts(offer_own_session(tls, Port, Config))),
    ?assertEqual({1, 1}, counts(offer_own_session(tls, UpgradePort, Config))),
    Supervisors = [
        ssl_upgrade_server_session_cache_sup | [ssl_server_session_cache_sup || not listeners_replace_cache_processes(Node)]
    ],
    Started = [rekindle_node:call(Node, erlang, whereis, [Name]) || Name <- [ssl_manager | Supervisors]],
    Sample = rekindle_node:run(Node, fun() -> a_session(hd(children_of([ssl_upgrade_server_session_cache_sup]))) end),
    [
        begin
            set_env(Node, session_cache_server_max, Max),
            rekindle_node:run(Node, fun() ->
                [Killed] = children_of([Supervisor]),
                Restarted = after_kill(Killed, Supervisor),
                register_all(Restarted, Sample, ids(20)),
                [?assertEqual(Id, element(2, reuse(Restarted, Id))) || Id <- ids(20)],
                ?assertEqual({Max, [Restarted], 1}, {Max, children_of([Supervisor]), order_size(Restarted)})
            end),
            ?assertEqual({1, 1}, counts(offer_own_session(tls, UpgradePort, Config)))
        end
     || Supervisor <- Supervisors, Max <- [5000, 0, 1]
    ],
    ?assertEqual(Started, [rekindle_node:call(Node, erlang, whereis, [Name]) || Name <- [ssl_manager | Supervisors]]),
    set_env(Node, session_cache_server_max, 10),
    {_, OtherPort} = start_server(Node, tls, server_opts(Config)),
    ?assertEqual({1, 1}, counts(offer_own_session(tls, OtherPort, Config))),
    ?assertEqual([0], lists:usort([Faults || #{faults := Faults} <- info(Node)])),
    rekindle_node:stop(Node).

after_kill(Killed, Supervisor) ->
    exit(Killed, kill),
    rekindle_node:await(fun() ->
        case children_of([Supervisor]) of
            [Pid] -> Pid =/= Killed;
            [] -> false
        end
    end),
    [Restarted] = children_of([Supervisor]),
    Restarted.

%% If the listener starts another process, that process reads the maximum again.
a_replaced_one_survives_another_maximum(Config) ->
    Node = rekindle_node:start_ssl(maximum(500)),
    Replaces = listeners_replace_cache_processes(Node),
    [a_replaced_one_survives_another_maximum(Kind, Node, Config) || Replaces, Kind <- [tls, dtls]],
    rekindle_node:stop(Node),
    Replaces orelse {skip, "the listeners of this release replace no cache process"}.

a_replaced_one_survives_another_maximum(Kind, Node, Config) ->
    {_, Port} = start_server(Node, Kind, server_opts(Config)),
    CacheProcesses = fun() -> rekindle_node:call(Node, ?MODULE, children_of, [[supervisor_of(Kind)]]) end,
    [
        begin
            [Killed] = CacheProcesses(),
            set_env(Node, session_cache_server_max, Max),
            true = rekindle_node:call(Node, erlang, exit, [Killed, kill]),
            [?assertEqual({1, 1}, counts(offer_own_session(Kind, Port, Config))) || _ <- lists:seq(1, 3)],
            [Cache] = CacheProcesses(),
            ?assertEqual({Kind, Max, 1}, {Kind, Max, rekindle_node:call(Node, ?MODULE, order_size, [Cache])})
        end
     || Max <- [5000, 2, -7]
    ].

supervisor_of(tls) -> ssl_server_session_cache_sup;
supervisor_of(dtls) -> dtls_server_session_cache_sup.

%% These options refuse a new listener. But if an open listener, or OTP's supervisor, starts another cache process, a refusal would
%% end what works.
a_listener_survives_a_refusal_to_its_next_one(Config) ->
    Refusals = [{session_cache_server_max, 0, 10}, {session_cb_init_args, [{max_bytes, 0}], []}],
    [
        begin
            Node = rekindle_node:start_ssl([]),
            {_, Port} = start_server(Node, Kind, server_opts(Config)),
            ?assertEqual({1, 1}, counts(offer_own_session(Kind, Port, Config))),
            [Killed] = cache_processes(Node),
            set_env(Node, Key, Wrong),
            true = rekindle_node:call(Node, erlang, exit, [Killed, kill]),
            [
                ?assertEqual({Key, Kind, {2, 0}}, {Key, Kind, counts(offer_own_session(Kind, Port, Config))})
             || _ <- lists:seq(1, 6)
            ],
            ?assertMatch({'EXIT', _}, attempt(fun() -> start_server(Node, Kind, server_opts(Config)) end)),
            set_env(Node, Key, Right),
            {_, OtherPort} = start_server(Node, Kind, server_opts(Config)),
            ?assertEqual({1, 1}, counts(offer_own_session(Kind, OtherPort, Config))),
            rekindle_node:stop(Node)
        end
     || Kind <- [tls, dtls], {Key, Wrong, Right} <- Refusals
    ].

attempt(Fun) ->
    try
        Fun()
    catch
        Class:Reason -> {'EXIT', {Class, Reason}}
    end.

%% Nothing of OTP's does it. The next lookup may then be that of a client that wants to resume.
a_size_asked_out_of_turn_costs_one_resumption_at_most(Config) ->
    with_cache_process([], Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(3)),
        Reference = reference(Cache),
        AskSize = fun() -> as_cache_process(Cache, fun() -> rekindle:size(Reference) end) end,
        ?assertEqual(1, AskSize()),
        [?assertEqual(<<N:256>>, element(2, reuse(Cache, <<N:256>>))) || N <- [1, 2]],
        ?assertEqual(not_reusable, reuse(Cache, <<3:256>>)),
        [?assertEqual(<<N:256>>, element(2, reuse(Cache, <<N:256>>))) || N <- [1, 2, 3]],
        ?assertEqual(0, order_size(Cache)),
        ?assertEqual(0, AskSize()),
        register_all(Cache, Sample, [<<4:256>>]),
        [?assertEqual(<<N:256>>, element(2, reuse(Cache, <<N:256>>))) || N <- [1, 2, 3, 4]]
    end).

what_it_finds_expired_holds_nothing_of_a_session(Config) ->
    with_cache_process([], Config, fun(Cache, Sample) ->
        Ids = [First, Newest] = ids(2),
        register_all(Cache, Sample, Ids),
        Reference = reference(Cache),
        LookUp = fun() -> [rekindle:lookup(Reference, Id) || Id <- Ids] end,
        [Session, Stub] = as_cache_process(Cache, fun() ->
            _ = rekindle:size(Reference),
            LookUp()
        end),
        ?assertEqual(First, element(2, Session)),
        %% The lifetime does not matter.
        [?assertNot(ssl_session:valid_session(Stub, Lifetime)) || Lifetime <- [0, 86_400, 1 bsl 64]],
        [session, Newest, {Stamp, Unique} | Fields] = tuple_to_list(Stub),
        ?assert(is_integer(Stamp) andalso is_integer(Unique)),
        ?assertMatch([_], lists:usort(Fields)),
        ?assert(is_integer(hd(Fields))),
        %% Only that process is answered so, and only before it registers the next.
        ?assertEqual(Ids, [element(2, Found) || Found <- LookUp()]),
        register_all(Cache, Sample, [<<3:256>>]),
        ?assertEqual(Ids, [element(2, Found) || Found <- as_cache_process(Cache, LookUp)])
    end).

%% Sessions of twenty kinds.
it_keeps_little_on_its_heap_and_no_secret(Config) ->
    with_cache_process(tls, [{session_cb_init_args, [{max_bytes, 1 bsl 30}]}], [], Config, fun(Cache, Sample) ->
        Sessions = [of_kind(N rem 20, with_id(Sample, crypto:hash(sha256, <<N:64>>))) || N <- lists:seq(1, 20_000)],
        [register_all(Cache, Session, [element(2, Session)]) || Session <- Sessions],
        Ids = [element(2, Session) || Session <- Sessions],
        ?assertEqual([], [Id || Id <- Ids, Id =/= element(2, reuse(Cache, Id))]),
        erlang:garbage_collect(Cache),
        {memory, Bytes} = process_info(Cache, memory),
        ?assert(Bytes < 100 * 1024, Bytes),
        {dictionary, Dictionary} = process_info(Cache, dictionary),
        Kept = proplists:get_value(rekindle_templates, Dictionary),
        ?assertEqual(8, length([Record || Record <- tuple_to_list(Kept), is_tuple(Record)])),
        Encoded = term_to_binary(Dictionary),
        ?assertNotEqual(nomatch, binary:match(Encoded, hd(element(5, Sample)))),
        [Secret] = [Field || <<_:384>> = Field <- tuple_to_list(Sample)],
        ?assertEqual(nomatch, binary:match(Encoded, Secret))
    end).

%% The kind differs by its cipher suite.
of_kind(Number, Session) ->
    list_to_tuple([
        case Field of
            <<_:16>> -> <<Number:16>>;
            _ -> Field
        end
     || Field <- tuple_to_list(Session)
    ]).

%% The first version of it kept nothing in the process's dictionary, and had other notes. Its order held one session.
it_survives_an_upgrade_of_the_callback_module(Config) ->
    in_node(tls, maximum(3), [], Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(5)),
        _ = as_cache_process(Cache, fun() -> erase(rekindle_order) end),
        _ = sys:replace_state(Cache, fun(State) -> of_first_version(State) end),
        [?assertEqual(<<N:256>>, element(2, reuse(Cache, <<N:256>>))) || N <- lists:seq(1, 5)],
        ?assertEqual(6, held(Cache)),
        register_all(Cache, Sample, [<<N:256>> || N <- lists:seq(6, 50)]),
        ?assertEqual({true, 2, 51}, {lists:member(Cache, rekindle_servers:cache_processes()), order_size(Cache), held(Cache)}),
        ok = rekindle:delete(reference(Cache), <<1:256>>),
        ?assertEqual(not_reusable, reuse(Cache, <<1:256>>)),
        ?assertMatch([], [Info || #{faults := Faults} = Info <- rekindle_admin:info(), Faults > 0])
    end).

of_first_version(State) ->
    {server, Store, Owner, _Label, _Notes} = Reference = reference_in(State),
    Notes = atomics:new(2, []),
    ok = atomics:put(Notes, 2, 1),
    list_to_tuple([
        case Field of
            Reference -> {server, Store, Owner, 3, Notes};
            _ -> Field
        end
     || Field <- tuple_to_list(State)
    ]).

%% ---- lifetime ----

an_expired_session_is_not_resumed(Config) ->
    Node = rekindle_node:start_ssl([{session_lifetime, 3600}, {session_cb_init_args, [{lifetime, 6}]}]),
    {_, Port} = start_server(Node, tls, server_opts(Config)),
    save(tls, Port, "short", Config),
    ?assertEqual({0, 1}, counts(offer(tls, Port, "short", Config))),
    timer:sleep(6100),
    ?assertEqual({1, 0}, counts(offer(tls, Port, "short", Config))),
    rekindle_node:stop(Node).

a_lifetime_longer_than_that_of_ssl_counts(Config) ->
    Node = rekindle_node:start_ssl([{session_lifetime, 1}, {session_cb_init_args, [{lifetime, 3600}]}]),
    {_, Port} = start_server(Node, tls, server_opts(Config)),
    Caches = cache_processes(Node),
    save(tls, Port, "long", Config),
    timer:sleep(2100),
    ?assertEqual({0, 1}, counts(offer(tls, Port, "long", Config))),
    ?assertEqual(Caches, cache_processes(Node)),
    rekindle_node:stop(Node).

a_session_lifetime_of_zero_resumes_nothing(Config) ->
    Node = rekindle_node:start_ssl([{session_lifetime, 0}, {session_cb_init_args, [{lifetime, 3600}]}]),
    {Server, Port} = start_server(Node, tls, server_opts(Config)),
    Caches = cache_processes(Node),
    ?assertEqual({6, 0}, counts(rekindle_clients:openssl_reconnect(Port, client_opts(Config)))),
    ?assertMatch({_, 6}, await_handshakes(Node, Server, 6)),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertEqual(Caches, cache_processes(Node)),
    ?assertMatch(#{sessions := 0, refused := 6, faults := 0}, scope_of(Node, Port)),
    rekindle_node:stop(Node).

%% A supervisor restarts a process with the lifetime that it had, whatever the environment has by then.
a_process_restarted_with_a_lifetime_of_zero_resumes_and_lives_on(Config) ->
    Node = rekindle_node:start_ssl([{session_lifetime, 0}]),
    {_, Port} = start_server(Node, upgrade, server_opts(Config)),
    ?assertEqual({6, 0}, counts(rekindle_clients:openssl_reconnect(Port, client_opts(Config)))),
    set_env(Node, session_lifetime, 3600),
    Supervisor = ssl_upgrade_server_session_cache_sup,
    Restarted = rekindle_node:run(Node, fun() ->
        [Killed] = children_of([Supervisor]),
        after_kill(Killed, Supervisor)
    end),
    ?assertEqual({1, 5}, counts(rekindle_clients:openssl_reconnect(Port, client_opts(Config)))),
    ?assertEqual([Restarted], rekindle_node:call(Node, ?MODULE, children_of, [[Supervisor]])),
    ?assertEqual([0], lists:usort([Faults || #{faults := Faults} <- info(Node)])),
    rekindle_node:stop(Node).

%% ---- scope ----

listeners_do_not_share_sessions(Config) ->
    Node = rekindle_node:start_ssl([]),
    {_, Port} = start_server(Node, tls, server_opts(Config)),
    {_, OtherPort} = start_server(Node, tls, server_opts(Config)),
    save(tls, Port, "own", Config),
    ?assertEqual({1, 0}, counts(offer(tls, OtherPort, "own", Config))),
    ?assertEqual({0, 1}, counts(offer(tls, Port, "own", Config))),
    rekindle_node:stop(Node).

sockets_of_one_address_share_sessions(Config) ->
    Node = rekindle_node:start_ssl([]),
    ReusePort = {raw, 1, 15, <<1:32/native>>},
    {_, Port} = start_server(Node, tls, [ReusePort | server_opts(Config)]),
    {_, Port} = start_server(Node, tls, [ReusePort, {port, Port} | server_opts(Config)]),
    ?assertEqual(2, length(cache_processes(Node))),
    save(tls, Port, "reuseport", Config),
    %% The kernel chooses the socket: all 16 to the first one has a chance of 1 in 65,536.
    [?assertEqual({0, 1}, counts(offer(tls, Port, "reuseport", Config))) || _ <- lists:seq(1, 16)],
    ?assertMatch(#{sessions := 1, hits := 16}, scope_of(Node, Port)),
    rekindle_node:stop(Node).

listeners_of_one_name_share_sessions(Config) ->
    [Port, OtherPort, ThirdPort] = unused_ports(3),
    Names = #{Port => both, {{127, 0, 0, 1}, OtherPort} => both},
    Node = rekindle_node:start_ssl([{session_cb_init_args, [{scope, Names}]}]),
    [start_server(Node, tls, [{port, P} | server_opts(Config)]) || P <- [Port, OtherPort, ThirdPort]],
    save(tls, Port, "named", Config),
    ?assertEqual({0, 1}, counts(offer(tls, OtherPort, "named", Config))),
    ?assertEqual({1, 0}, counts(offer(tls, ThirdPort, "named", Config))),
    ?assertMatch([#{sessions := 1}], [Info || #{scope := {shared, tls, both}} = Info <- info(Node)]),
    rekindle_node:stop(Node).

tls_and_dtls_of_one_name_do_not_share_sessions(Config) ->
    [Port] = unused_ports(1),
    Node = rekindle_node:start_ssl([{session_cb_init_args, [{scope, #{Port => both}}]}]),
    {_, Port} = start_server(Node, tls, [{port, Port} | server_opts(Config)]),
    {_, Port} = start_server(Node, dtls, [{port, Port} | server_opts(Config)]),
    save(tls, Port, "transport", Config),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch(
        [#{scope := {shared, tls, both}, sessions := 1}, #{scope := {shared, dtls, both}, sessions := 0}],
        [Info || #{role := server} = Info <- info(Node)]
    ),
    rekindle_node:stop(Node).

%% The cache process of the closed listener is kept from ending: the worst case of a race.
a_listener_opened_again_does_not_have_the_old_sessions(Config) ->
    Node = rekindle_node:start_ssl([]),
    Port = rekindle_node:free_port(),
    {Server, Port} = start_server(Node, tls, [{port, Port} | server_opts(Config)]),
    save(tls, Port, "again", Config),
    [Cache] = cache_processes(Node),
    ok = rekindle_node:call(Node, sys, suspend, [Cache]),
    ok = rekindle_node:call(Node, rekindle_servers, stop, [Server]),
    {_, Port} = start_server(Node, tls, [{port, Port} | server_opts(Config)]),
    ?assert(rekindle_node:call(Node, erlang, is_process_alive, [Cache])),
    ?assertEqual({1, 0}, counts(offer(tls, Port, "again", Config))),
    rekindle_node:stop(Node).

an_address_on_another_device_is_another_one(Config) ->
    Node = rekindle_node:start_ssl([]),
    {_, Port} = start_server(Node, tls, [{bind_to_device, <<"lo">>} | server_opts(Config)]),
    [#{scope := Scope}] = [Info || #{role := server} = Info <- info(Node)],
    ?assertEqual({listener, tls, {{{127, 0, 0, 1}, Port}, [{bind_to_device, <<"lo">>}]}}, Scope),
    rekindle_node:stop(Node).

%% The second listener trusts another authority. It refuses the client in a full handshake, and must
%% not take the session either that the client got from the first one (CVE-2025-23419 in nginx).
a_client_certificate_check_is_not_bypassed(Config) ->
    [Port, OtherPort] = unused_ports(2),
    Bypass = [{scope, #{Port => careless, OtherPort => careless}}],
    ?assertEqual(full_handshake_refused, outcome_at_other_authority([], Port, OtherPort, Config)),
    %% The documentation warns of this case. It shows that the test above can fail.
    ?assertEqual(resumed, outcome_at_other_authority(Bypass, Port, OtherPort, Config)).

outcome_at_other_authority(InitArgs, Port, OtherPort, Config) ->
    #{ca := Ca, other_ca := OtherCa, client := #{ec := Client}} = ?config(certs, Config),
    Node = rekindle_node:start_ssl([{session_cb_init_args, InitArgs}]),
    Strict = [{verify, verify_peer}, {fail_if_no_peer_cert, true}, {reuse_sessions, true} | server_opts(Config)],
    {_, Port} = start_server(Node, tls, [{port, Port}, {cacertfile, Ca} | Strict]),
    {Other, OtherPort} = start_server(Node, tls, [{port, OtherPort}, {cacertfile, OtherCa} | Strict]),
    save(tls, Port, "bypass", Config, certificate(Client)),
    _ = offer(tls, OtherPort, "bypass", Config, certificate(Client)),
    rekindle_node:await(fun() ->
        [] =/=
            rekindle_node:call(Node, rekindle_servers, handshakes, [Other]) ++
                rekindle_node:call(Node, rekindle_servers, failures, [Other])
    end),
    Outcome =
        case rekindle_node:call(Node, rekindle_servers, handshakes, [Other]) of
            [] -> full_handshake_refused;
            [_] -> resumed
        end,
    rekindle_node:stop(Node),
    Outcome.

%% ---- secrets ----

no_private_key_is_held(Config) ->
    [no_private_key_is_held(KeyType, Config) || KeyType <- [rsa, ec]].

no_private_key_is_held(KeyType, Config) ->
    #{server := #{KeyType := #{key := KeyFile}}} = ?config(certs, Config),
    Secrets = private_numbers(KeyFile),
    Node = rekindle_node:start_ssl([]),
    {_, Port} = start_server(Node, tls, server_opts(KeyType, Config)),
    ?assertEqual({1, 5}, counts(rekindle_clients:openssl_reconnect(Port, client_opts(Config)))),
    Session = the_session(Node),
    ?assertEqual(undefined, element(6, Session)),
    Encoded = term_to_binary(Session),
    [?assertEqual(nomatch, binary:match(Encoded, Secret)) || Secret <- Secrets],
    rekindle_node:stop(Node).

a_resumed_connection_renegotiates(Config) ->
    renegotiate([], #{}, Config).

a_resumed_connection_with_client_certificate_renegotiates(Config) ->
    #{ca := Ca, client := #{rsa := Client}} = ?config(certs, Config),
    Verify = [{verify, verify_peer}, {fail_if_no_peer_cert, true}, {cacertfile, Ca}, {reuse_sessions, true}],
    renegotiate(Verify, certificate(Client), Config).

renegotiate(Verify, ClientOpts, Config) ->
    [
        begin
            Node = rekindle_node:start_ssl([]),
            {_, Port} = start_server(Node, tls, Verify ++ server_opts(KeyType, Config)),
            save(tls, Port, "renegotiate", Config, ClientOpts),
            Opts = maps:merge(client_opts(Config), ClientOpts#{initiator => Initiator}),
            File = session_file("renegotiate", Config),
            #{survived := Survived} = Result = rekindle_clients:openssl_renegotiate(Port, File, Opts),
            %% openssl makes a full handshake of its own renegotiation, and resumes when asked to.
            Expected = #{client => {1, 1}, server => {0, 2}},
            ?assertEqual(
                {KeyType, Initiator, true, maps:get(Initiator, Expected)},
                {KeyType, Initiator, Survived, counts(Result)}
            ),
            rekindle_node:stop(Node)
        end
     || KeyType <- [rsa, ec], Initiator <- [client, server]
    ].

%% ---- memory ----

a_closed_listener_gives_its_memory_back(Config) ->
    Node = rekindle_node:start_ssl([]),
    {Server, Port} = start_server(Node, tls, server_opts(Config)),
    save(tls, Port, "closed", Config),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch(#{sessions := 1}, scope_of(Node, Port)),
    ok = rekindle_node:call(Node, rekindle_servers, stop, [Server]),
    rekindle_node:await(fun() -> [] =:= [Info || #{role := server} = Info <- info(Node)] end),
    rekindle_node:stop(Node).

%% Both holders of the reference are killed, so that a scheduler drops the last one. The work must be
%% done by the janitor's thread.
a_dead_cache_process_gives_its_memory_back_off_the_schedulers(Config) ->
    Sessions = 500_000,
    Env = [{session_cb_init_args, [{max_bytes, 4_000_000_000}]}],
    in_node(tls, Env, [], Config, fun(Cache, Sample) ->
        Holder = holder_of(Cache, Sample, Sessions),
        Full = rekindle_memory:resident_bytes(),
        Held = lists:sum([Bytes || #{bytes := Bytes} <- rekindle_admin:info()]),
        JanitorBefore = janitor_cpu_ns(),
        [exit(Pid, kill) || Pid <- [Cache, Holder]],
        erlang:garbage_collect(),
        %% OTP starts another process for the listener, with an empty store.
        rekindle_node:await(fun() -> lists:all(fun(#{sessions := Left}) -> Left =:= 0 end, rekindle_admin:info()) end),
        rekindle_node:await(fun() -> rekindle_memory:resident_bytes() < Full - Held div 2 end),
        ?assert(janitor_cpu_ns() - JanitorBefore > 1_000_000)
    end).

holder_of(Cache, Sample, Sessions) ->
    Self = self(),
    Holder = spawn(fun() ->
        Reference = reference(Cache),
        fill(Reference, Sample, Sessions),
        erlang:garbage_collect(),
        Self ! {full, self(), rekindle:size(Reference)},
        receive
            forever -> Reference
        end
    end),
    receive
        {full, Holder, Size} -> ?assertEqual(Sessions + 1, Size)
    end,
    Holder.

fill(_Reference, _Sample, 0) ->
    ok;
fill(Reference, Sample, Number) ->
    Id = <<Number:256>>,
    ok = rekindle:update(Reference, Id, with_id(Sample, Id)),
    fill(Reference, Sample, Number - 1).

the_size_is_true_for_all_but_the_cache_process(Config) ->
    in_node(tls, [{session_cache_server_max, 7}], [], Config, fun(Cache, Sample) ->
        register_all(Cache, Sample, ids(5)),
        Reference = reference(Cache),
        ?assertEqual(6, rekindle:size(Reference)),
        ?assertEqual(1, as_cache_process(Cache, fun() -> rekindle:size(Reference) end)),
        exit(Cache, kill),
        rekindle_node:await(fun() -> not is_process_alive(Cache) end),
        ?assertEqual(6, rekindle:size(Reference)),
        ok = rekindle:delete(Reference, <<1:256>>),
        ?assertEqual(5, rekindle:size(Reference))
    end).

%% ---- in the test node ----

server_opts(Config) ->
    server_opts(ec, Config).

server_opts(KeyType, Config) ->
    #{server := #{KeyType := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    [{certfile, Cert}, {keyfile, Key}, {versions, ['tlsv1.2', 'dtlsv1.2']}].

client_opts(Config) ->
    #{ca := Ca} = ?config(certs, Config),
    #{cafile => Ca}.

certificate(#{cert := Cert, key := Key}) ->
    #{certfile => Cert, keyfile => Key}.

start_server(Node, Kind, Opts) ->
    rekindle_node:call(Node, rekindle_servers, start, [Kind, for_transport(Kind, Opts)]).

for_transport(Kind, Opts) ->
    Version =
        case Kind of
            dtls -> 'dtlsv1.2';
            _ -> 'tlsv1.2'
        end,
    lists:keystore(versions, 1, Opts, {versions, [Version]}).

save(Proto, Port, Name, Config) ->
    save(Proto, Port, Name, Config, #{}).

save(Proto, Port, Name, Config, Opts) ->
    File = session_file(Name, Config),
    Result = rekindle_clients:openssl_save(Proto, Port, File, maps:merge(client_opts(Config), Opts)),
    ?assertEqual({1, 0}, counts(Result)).

offer(Proto, Port, Name, Config) ->
    offer(Proto, Port, Name, Config, #{}).

offer(Proto, Port, Name, Config, Opts) ->
    rekindle_clients:openssl_offer(Proto, Port, session_file(Name, Config), maps:merge(client_opts(Config), Opts)).

offer_own_session(Proto, Port, Config) ->
    Opts = client_opts(Config),
    rekindle_clients:openssl_two_processes(Proto, Port, Opts#{sess_file => session_file("two", Config)}).

session_file(Name, Config) ->
    filename:join(?config(priv_dir, Config), Name ++ ".session").

counts(#{full := Full, resumed := Resumed}) ->
    {Full, Resumed}.

%% The number of sessions that the server saw, and of handshakes.
await_handshakes(Node, Server, Number) ->
    rekindle_node:await(fun() -> length(rekindle_node:call(Node, rekindle_servers, handshakes, [Server])) >= Number end),
    Ids = [Id || #{session_id := Id} <- rekindle_node:call(Node, rekindle_servers, handshakes, [Server])],
    %% A client may have closed before the server could ask for the id.
    {length(lists:usort(Ids) -- [unknown]), length(Ids)}.

info(Node) ->
    rekindle_node:call(Node, rekindle_admin, info, []).

scope_of(Node, Port) ->
    [Info] = [Info || #{scope := {listener, _, {_, P}}} = Info <- info(Node), P =:= Port],
    Info.

unused_ports(Number) ->
    [rekindle_node:free_port() || _ <- lists:seq(1, Number)].

private_numbers(KeyFile) ->
    {ok, Pem} = file:read_file(KeyFile),
    [Entry] = public_key:pem_decode(Pem),
    case public_key:pem_entry_decode(Entry) of
        Key when element(1, Key) =:= 'RSAPrivateKey' ->
            [binary:encode_unsigned(element(N, Key)) || N <- [5, 6, 7]] ++
                [binary:encode_unsigned(element(N, Key), little) || N <- [5, 6, 7]];
        Key when element(1, Key) =:= 'ECPrivateKey' ->
            [element(3, Key)]
    end.

%% ---- in the node with the cache ----

%% Runs `Fun' with the cache process of a new listener and a session a real client made there. The
%% process must be the same afterwards, with one session in its own order.
with_cache_process(Env, Config, Fun) ->
    with_cache_process(Env, [], Config, Fun).

with_cache_process(Env, ListenOpts, Config, Fun) ->
    with_cache_process(tls, Env, ListenOpts, Config, Fun).

with_cache_process(Kind, Env, ListenOpts, Config, Fun) ->
    in_node(Kind, Env, ListenOpts, Config, fun(Cache, Sample) ->
        Fun(Cache, Sample),
        ?assert(lists:member(Cache, rekindle_servers:cache_processes())),
        ?assertEqual(1, order_size(Cache)),
        ?assertMatch([], [Info || #{faults := Faults} = Info <- rekindle_admin:info(), Faults > 0])
    end).

in_node(Kind, Env, ListenOpts, Config, Fun) ->
    Node = rekindle_node:start_ssl(Env),
    {_, Port} = start_server(Node, Kind, ListenOpts ++ server_opts(Config)),
    Proto =
        case Kind of
            upgrade -> tls;
            _ -> Kind
        end,
    _ = rekindle_clients:openssl_save(Proto, Port, session_file("sample", Config), client_opts(Config)),
    rekindle_node:run(Node, fun() ->
        [Cache] = rekindle_servers:cache_processes(),
        rekindle_node:await(fun() -> held(Cache) =:= 1 end),
        Fun(Cache, a_session(Cache))
    end),
    rekindle_node:stop(Node).

a_session(Cache) ->
    [{_, Session} | _] = rekindle:foldl(fun(Held, Acc) -> [Held | Acc] end, [], reference(Cache)),
    Session.

set_env(Node, Key, Value) ->
    ok = rekindle_node:call(Node, application, set_env, [ssl, Key, Value]).

cache_processes(Node) ->
    rekindle_node:call(Node, rekindle_servers, cache_processes, []).

children_of(Supervisors) ->
    [Pid || Supervisor <- Supervisors, {_, Pid, _, _} <- supervisor:which_children(Supervisor), is_pid(Pid)].

%% Fields of the process's state by content: it differs between releases.
reference(Cache) ->
    reference_in(sys:get_state(Cache)).

reference_in(State) ->
    [Reference] = [Field || Field <- tuple_to_list(State), is_record(Field, server, 5)],
    Reference.

order_size(Cache) ->
    [Size] = [Size || {Size, Tree} <- tuple_to_list(sys:get_state(Cache)), is_integer(Size), is_tuple(Tree) orelse Tree =:= nil],
    Size.

as_cache_process(Cache, Fun) ->
    Self = self(),
    sys:replace_state(Cache, fun(State) ->
        Self ! {Cache, Fun()},
        State
    end),
    receive
        {Cache, Result} -> Result
    end.

held(Cache) ->
    rekindle:size(reference(Cache)).

ids(Number) ->
    [<<N:256>> || N <- lists:seq(1, Number)].

register_all(Cache, Sample, Ids) ->
    [ssl_server_session_cache:register_session(Cache, with_id(Sample, Id)) || Id <- Ids],
    _ = sys:get_state(Cache),
    ok.

%% A session as a connection registers it, with a stamp of its own.
with_id(Sample, Id) ->
    {Stamp, _} = element(3, Sample),
    Now = erlang:monotonic_time(),
    Fields = [
        if
            Field =:= Stamp -> Now;
            true -> Field
        end
     || Field <- tuple_to_list(Sample)
    ],
    setelement(3, setelement(2, list_to_tuple(Fields), Id), {Now, 1}).

reuse(Cache, Id) ->
    ssl_server_session_cache:reuse_session(Cache, Id).

janitor_cpu_ns() ->
    [Task] = [
        filename:dirname(File)
     || File <- filelib:wildcard("/proc/self/task/*/comm"),
        {ok, <<"rekindle-janito", _/binary>>} <- [file:read_file(File)]
    ],
    {ok, Stat} = file:read_file(filename:join(Task, "schedstat")),
    [Ns | _] = binary:split(Stat, <<" ">>),
    binary_to_integer(Ns).
