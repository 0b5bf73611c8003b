%% The client role: what ssl_manager, its validator and connecting processes see of the cache. Each case
%% that needs ssl has one of its own, in another node.
-module(rekindle_client_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1]).
-export([
    an_overflowing_cache_holds_its_maximum_and_the_newest/1,
    real_sessions_overflow_the_cache_and_the_newest_resumes/1,
    the_same_session_can_be_invalidated_twice/1,
    connections_that_end_in_fatal_alerts_drop_their_common_session/1,
    the_validator_drops_expired_sessions/1,
    the_validator_leaves_young_sessions_alone/1,
    init_without_role_opens_a_client_cache/1,
    the_manager_starts_over_after_an_exception_while_registering/1,
    sessions_with_private_keys_come_back_as_they_were_stored/1,
    tls_clients_resume_in_every_way/1,
    tls_1_3_clients_resume_with_a_1_2_server/1,
    dtls_clients_resume_in_every_way/1,
    clients_with_certificates_resume/1,
    equivalent_sessions_are_registered_once/1,
    a_deleted_session_is_found_for_a_moment_by_who_has_chosen_it/1,
    a_handshake_survives_the_deletion_of_the_session_it_offered/1,
    a_session_dropped_after_a_fatal_alert_is_not_resumed/1,
    size_is_true_for_everyone/1,
    terminate_empties_the_cache/1,
    client_managers_share_no_session/1,
    every_answer_is_that_of_the_default_cache/1
]).

-define(TIMEOUT, 15_000).
-define(HOST, "localhost").

%% Elements of OTP's session record at places that are the same in all releases.
-define(SESSION_ID, 2).
-define(INTERNAL_ID, 3).
-define(PRIVATE_KEY, 6).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [
        an_overflowing_cache_holds_its_maximum_and_the_newest,
        real_sessions_overflow_the_cache_and_the_newest_resumes,
        the_same_session_can_be_invalidated_twice,
        connections_that_end_in_fatal_alerts_drop_their_common_session,
        the_validator_drops_expired_sessions,
        the_validator_leaves_young_sessions_alone,
        init_without_role_opens_a_client_cache,
        the_manager_starts_over_after_an_exception_while_registering,
        sessions_with_private_keys_come_back_as_they_were_stored,
        tls_clients_resume_in_every_way,
        tls_1_3_clients_resume_with_a_1_2_server,
        dtls_clients_resume_in_every_way,
        clients_with_certificates_resume,
        equivalent_sessions_are_registered_once,
        a_deleted_session_is_found_for_a_moment_by_who_has_chosen_it,
        a_handshake_survives_the_deletion_of_the_session_it_offered,
        a_session_dropped_after_a_fatal_alert_is_not_resumed,
        size_is_true_for_everyone,
        terminate_empties_the_cache,
        client_managers_share_no_session,
        every_answer_is_that_of_the_default_cache
    ].

init_per_suite(Config) ->
    [{certs, rekindle_certs:make(proplists:get_value(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

%% ---- ssl_manager's book-keeping ----

an_overflowing_cache_holds_its_maximum_and_the_newest(Config) ->
    with_ssl(Config, [{session_cache_client_max, 5}], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        visit(Port, Certs, [{reuse_sessions, save}]),
        Template = the_session(),
        Hosts = ["host" ++ integer_to_list(N) || N <- lists:seq(1, 40)],
        [register_session(Host, Port, with_id(Template, new_id())) || Host <- Hosts],
        assert_same_manager(),
        ?assertEqual(5, rekindle:size(cache())),
        ?assertEqual(5, in_manager(fun() -> rekindle:size(cache_of_own_state()) end)),
        ?assertEqual(lists:nthtail(35, Hosts), lists:sort([Host || {{{Host, _}, _}, _} <- held()])),
        ?assertEqual([], rekindle:select_session(cache(), {?HOST, Port})),
        ?assertMatch([_], rekindle:select_session(cache(), {"host40", Port})),
        assert_books_agree()
    end).

real_sessions_overflow_the_cache_and_the_newest_resumes(Config) ->
    with_ssl(Config, [{session_cache_client_max, 5}], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        Ids = [visit(Port, Certs, [{reuse_sessions, save}]) || _ <- lists:seq(1, 12)],
        assert_same_manager(),
        ?assertEqual(lists:sort(lists:nthtail(7, Ids)), lists:sort([Id || {{_, Id}, _} <- held()])),
        assert_books_agree(),
        Newest = lists:last(Ids),
        ?assertEqual(Newest, visit(Port, Certs, [{reuse_session, Newest}])),
        ?assert(lists:member(visit(Port, Certs, [{reuse_sessions, true}]), lists:nthtail(7, Ids)))
    end).

the_same_session_can_be_invalidated_twice(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        Ids = [visit(Port, Certs, [{reuse_sessions, save}]) || _ <- lists:seq(1, 3)],
        Unwanted = session(Port, hd(Ids)),
        invalidate(Port, Unwanted),
        invalidate(Port, Unwanted),
        invalidate(Port, with_id(Unwanted, new_id())),
        assert_same_manager(),
        ?assertEqual(lists:sort(tl(Ids)), lists:sort([Id || {{_, Id}, _} <- held()])),
        assert_books_agree(),
        %% Stored again, it can be dropped again.
        register_session(?HOST, Port, Unwanted),
        ?assertEqual(3, rekindle:size(cache())),
        invalidate(Port, Unwanted),
        assert_same_manager(),
        ?assertEqual(2, rekindle:size(cache())),
        assert_books_agree()
    end).

%% Both connection processes have the manager drop the session; the second time it is not there.
connections_that_end_in_fatal_alerts_drop_their_common_session(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, ServerPort} = start_server(tls, Certs, []),
        #{port := Port} = start_proxy(ServerPort),
        {First, Id} = connect(Port, Certs, [{reuse_sessions, save}]),
        FirstRelay = next_relay(),
        {Second, Id} = connect(Port, Certs, [{reuse_sessions, true}]),
        SecondRelay = next_relay(),
        ?assertEqual(1, rekindle:size(cache())),
        end_in_fatal_alert(First, FirstRelay),
        rekindle_node:await(fun() -> rekindle:size(cache()) =:= 0 end),
        end_in_fatal_alert(Second, SecondRelay),
        %% The connection process waits a few milliseconds before it tells the manager.
        timer:sleep(500),
        assert_same_manager(),
        assert_books_agree(),
        ?assertNotEqual(Id, visit(Port, Certs, [{reuse_sessions, true}]))
    end).

the_validator_drops_expired_sessions(Config) ->
    with_ssl(Config, [{session_lifetime, 3}], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        lists:foreach(
            fun(_) ->
                visit(Port, Certs, [{reuse_sessions, save}]),
                Template = the_session(),
                [register_session(?HOST, Port, with_id(Template, new_id())) || _ <- lists:seq(1, 20)],
                ?assertEqual(21, rekindle:size(cache())),
                timer:sleep(3500),
                manager() ! validate_sessions,
                rekindle_node:await(fun() -> rekindle:size(cache()) =:= 0 end),
                assert_same_manager(),
                assert_books_agree()
            end,
            [first_time, second_time]
        )
    end).

the_validator_leaves_young_sessions_alone(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        Id = visit(Port, Certs, [{reuse_sessions, save}]),
        ssl_manager:init_session_validator([ssl_manager, cache(), rekindle, 600]),
        assert_same_manager(),
        ?assertMatch([{{_, Id}, _}], held())
    end).

init_without_role_opens_a_client_cache(_Config) ->
    Cache = rekindle:init([]),
    ?assertMatch(#{role := client}, lists:last(rekindle_admin:info())),
    Key = {{?HOST, 443}, new_id()},
    rekindle:update(Cache, Key, a_session),
    ?assertEqual(a_session, rekindle:lookup(Cache, Key)),
    ?assertEqual([a_session], rekindle:select_session(Cache, {?HOST, 443})),
    ?assertEqual(1, rekindle:size(Cache)),
    rekindle:delete(Cache, Key),
    ?assertEqual(undefined, rekindle:lookup(Cache, Key)).

%% The manager then calls terminate/1, and init/1 without the role.
the_manager_starts_over_after_an_exception_while_registering(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        Before = visit(Port, Certs, [{reuse_sessions, save}]),
        Old = cache(),
        _ = sys:replace_state(ssl_manager, fun(State) -> setelement(order_place(State), State, broken) end),
        Lost = visit(Port, Certs, [{reuse_sessions, save}]),
        assert_same_manager(),
        ?assertNotEqual(Old, cache()),
        ?assertEqual({0, 0}, {rekindle:size(Old), rekindle:size(cache())}),
        ?assertEqual(undefined, rekindle:lookup(Old, {{?HOST, Port}, Before})),
        After = visit(Port, Certs, [{reuse_sessions, true}]),
        ?assertNot(lists:member(After, [Before, Lost])),
        ?assertEqual(After, visit(Port, Certs, [{reuse_sessions, true}])),
        ?assertEqual(1, rekindle:size(cache())),
        assert_same_manager(),
        assert_books_agree(),
        Session = the_session(),
        invalidate(Port, Session),
        invalidate(Port, Session),
        assert_same_manager(),
        ?assertEqual(0, rekindle:size(cache()))
    end).

%% ---- what is handed out ----

sessions_with_private_keys_come_back_as_they_were_stored(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, demand_certificate(Certs)),
        erlang:trace(manager(), true, [call]),
        erlang:trace_pattern({rekindle, update, 3}, true, [global]),
        lists:foreach(
            fun(KeyType) ->
                Id = visit(Port, Certs, [{reuse_sessions, save} | identity(KeyType, Certs)]),
                {{Partial, Id} = Key, Stored} = traced_update(),
                ?assertEqual({?HOST, Port}, Partial),
                ?assertEqual(key_record(KeyType), element(1, element(?PRIVATE_KEY, Stored))),
                {Stamp, _} = element(?INTERNAL_ID, Stored),
                ?assert(lists:member(Stamp, tl(tl(tl(tuple_to_list(Stored)))))),
                ?assert(Stored =:= rekindle:lookup(cache(), Key)),
                ?assert(Stored =:= in_manager(fun() -> rekindle:lookup(cache_of_own_state(), Key) end)),
                ?assert(lists:any(fun(S) -> S =:= Stored end, rekindle:select_session(cache(), Partial))),
                ?assert(lists:any(fun(Pair) -> Pair =:= {Key, Stored} end, held()))
            end,
            [rsa, ec]
        ),
        ?assertEqual(2, length(held()))
    end).

tls_clients_resume_in_every_way(Config) ->
    resume_in_every_way(Config, tls, [{versions, ['tlsv1.2']}]).

tls_1_3_clients_resume_with_a_1_2_server(Config) ->
    resume_in_every_way(Config, tls, [{versions, ['tlsv1.3', 'tlsv1.2']}]).

dtls_clients_resume_in_every_way(Config) ->
    resume_in_every_way(Config, dtls, [{protocol, dtls}, {versions, ['dtlsv1.2']}]).

resume_in_every_way(Config, Kind, Opts) ->
    with_ssl(Config, [], fun(Certs) ->
        {Server, Port} = start_server(Kind, Certs, []),
        Visit = fun(Opt) -> visit(Port, Certs, [Opt | Opts]) end,
        {Socket, First} = connect(Port, Certs, [{reuse_sessions, save} | Opts]),
        {ok, Known} = ssl:connection_information(Socket, [session_id, session_data]),
        ok = ssl:close(Socket),
        [First, Data] = [proplists:get_value(Item, Known) || Item <- [session_id, session_data]],
        Second = Visit({reuse_sessions, save}),
        ?assertNotEqual(First, Second),
        ?assertEqual(First, Visit({reuse_session, First})),
        ?assertEqual(Second, Visit({reuse_session, Second})),
        ?assertEqual(First, Visit({reuse_session, {First, Data}})),
        invalidate(Port, session(Port, First)),
        ?assertEqual(Second, Visit({reuse_sessions, true})),
        ?assertEqual(Second, Visit({reuse_sessions, true})),
        Fresh = Visit({reuse_sessions, false}),
        ?assertNot(lists:member(Fresh, [First, Second])),
        assert_same_manager(),
        ?assertEqual(
            [First, Second, First, Second, First, Second, Second, Fresh],
            server_view(Server, 8)
        )
    end).

clients_with_certificates_resume(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {Server, Port} = start_server(tls, Certs, demand_certificate(Certs)),
        [Rsa, Ec] = [
            visit(Port, Certs, [{reuse_sessions, save} | identity(KeyType, Certs)])
         || KeyType <- [rsa, ec]
        ],
        %% ssl offers one of the selected sessions that was made with the same certificate.
        ?assertEqual(Ec, visit(Port, Certs, [{reuse_sessions, true} | identity(ec, Certs)])),
        ?assertEqual(Rsa, visit(Port, Certs, [{reuse_sessions, true} | identity(rsa, Certs)])),
        ?assertEqual([Rsa, Ec, Ec, Rsa], server_view(Server, 4))
    end).

equivalent_sessions_are_registered_once(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {Server, Port} = start_server(tls, Certs, demand_certificate(Certs)),
        Opts = identity(rsa, Certs),
        [Id | Others] = [visit(Port, Certs, [{reuse_sessions, true} | Opts]) || _ <- lists:seq(1, 3)],
        ?assertEqual([Id, Id], Others),
        ?assertEqual([Id, Id, Id], server_view(Server, 3)),
        %% A second connection that was made at the same time as the first does this.
        Twin = with_id(the_session(), new_id()),
        put(ssl_manager, ssl_manager),
        ok = ssl_manager:register_session(?HOST, Port, Twin, unique),
        assert_same_manager(),
        ?assertMatch([{{_, Id}, _}], held()),
        assert_books_agree()
    end).

%% ---- deleted sessions ----

a_deleted_session_is_found_for_a_moment_by_who_has_chosen_it(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        Id = visit(Port, Certs, [{reuse_sessions, save}]),
        Session = the_session(),
        Key = {{?HOST, Port}, Id},
        Cache = cache(),
        Lookup = fun() -> rekindle:lookup(Cache, Key) end,
        Select = fun() -> rekindle:select_session(Cache, {?HOST, Port}) end,
        [Named, Selected, Late, Later] = Connections = [connection() || _ <- lists:seq(1, 4)],
        %% With and without the option that names the session to offer.
        [?assert(in_connection(Connection, Lookup) =:= Session) || Connection <- [Named, Late]],
        [?assertMatch([_], in_connection(Connection, Select)) || Connection <- [Selected, Later]],
        ?assert(Lookup() =:= Session),
        invalidate(Port, Session),
        ?assertEqual(undefined, Lookup()),
        ?assertEqual(undefined, elsewhere(Lookup)),
        ?assertEqual(undefined, in_manager(fun() -> rekindle:lookup(cache_of_own_state(), Key) end)),
        [?assertEqual(undefined, in_connection(connection(), Lookup)) || _ <- lists:seq(1, 2)],
        assert_not_listed(Port),
        timer:sleep(1000),
        [?assert(in_connection(Connection, Lookup) =:= Session) || Connection <- [Named, Selected]],
        %% When these connections begin again, they no longer offer it.
        [?assertEqual(undefined, in_connection(Connection, Lookup)) || Connection <- [Named, Selected]],
        ?assertEqual([], in_connection(Later, Select)),
        ?assertEqual(undefined, in_connection(Later, Lookup)),
        timer:sleep(4500),
        ?assertEqual(undefined, in_connection(Late, Lookup)),
        assert_not_listed(Port),
        assert_same_manager(),
        [exit(Connection, kill) || Connection <- Connections]
    end).

%% Makes this process look like one of OTP's connections.
connection() ->
    spawn(fun() ->
        put(ssl_manager, ssl_manager),
        serve()
    end).

serve() ->
    receive
        {run, From, Fun} ->
            From ! {self(), Fun()},
            serve()
    end.

in_connection(Connection, Fun) ->
    Connection ! {run, self(), Fun},
    receive
        {Connection, Result} -> Result
    end.

assert_not_listed(Port) ->
    ?assertEqual([], rekindle:select_session(cache(), {?HOST, Port})),
    ?assertEqual([], held()),
    ?assertEqual(0, rekindle:size(cache())),
    ?assertEqual(0, in_manager(fun() -> rekindle:size(cache_of_own_state()) end)).

%% The client has offered the session, and looks it up again when the server's answer arrives.
a_handshake_survives_the_deletion_of_the_session_it_offered(Config) ->
    [survives_the_deletion(Offer, Config) || Offer <- [any, the_one]].

survives_the_deletion(Offer, Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {Server, ServerPort} = start_server(tls, Certs, []),
        #{port := Port} = Proxy = start_proxy(ServerPort),
        Offered = visit(Port, Certs, [{reuse_sessions, save}]),
        hold(Proxy),
        Option =
            case Offer of
                any -> {reuse_sessions, true};
                the_one -> {reuse_session, Offered}
            end,
        Client = in_background(fun() -> visit(Port, Certs, [Option]) end),
        Relay = await_held(),
        invalidate(Port, the_session()),
        assert_not_listed(Port),
        release(Proxy, Relay),
        ?assertEqual(Offered, result(Client)),
        ?assertEqual([Offered, Offered], server_view(Server, 2)),
        ?assertEqual([], rekindle_servers:failures(Server)),
        ?assertNotEqual(Offered, visit(Port, Certs, [Option])),
        assert_same_manager(),
        assert_books_agree()
    end).

%% RFC 5246, 7.2.2.
a_session_dropped_after_a_fatal_alert_is_not_resumed(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, ServerPort} = start_server(tls, Certs, []),
        #{port := Port} = start_proxy(ServerPort),
        {Connection, Id} = connect(Port, Certs, [{reuse_sessions, save}]),
        Relay = next_relay(),
        ?assertEqual(Id, visit(Port, Certs, [{reuse_session, Id}])),
        end_in_fatal_alert(Connection, Relay),
        rekindle_node:await(fun() -> rekindle:size(cache()) =:= 0 end),
        [?assertNotEqual(Id, visit(Port, Certs, [Option])) || Option <- [{reuse_session, Id}, {reuse_sessions, true}]],
        assert_same_manager(),
        assert_books_agree()
    end).

%% ---- the cache by itself ----

size_is_true_for_everyone(_Config) ->
    Cache = rekindle:init([{role, client}]),
    Sizes = fun() -> {rekindle:size(Cache), elsewhere(fun() -> rekindle:size(Cache) end)} end,
    ?assertEqual({0, 0}, Sizes()),
    [
        begin
            rekindle:update(Cache, {{?HOST, N}, new_id()}, N),
            ?assertEqual({N, N}, Sizes())
        end
     || N <- lists:seq(1, 1500)
    ],
    Keys = [Key || {Key, _} <- held(Cache)],
    rekindle:update(Cache, hd(Keys), again),
    ?assertEqual({1500, 1500}, Sizes()),
    [rekindle:delete(Cache, Key) || Key <- lists:sublist(Keys, 1000)],
    ?assertEqual({500, 500}, Sizes()),
    [rekindle:delete(Cache, Key) || Key <- lists:sublist(Keys, 1000)],
    ?assertEqual({500, 500}, Sizes()).

terminate_empties_the_cache(_Config) ->
    Cache = rekindle:init([{role, client}]),
    Keys = [{{?HOST, 443}, new_id()} || _ <- lists:seq(1, 10)],
    [rekindle:update(Cache, Key, Key) || Key <- Keys],
    %% Not even a session that was deleted a moment ago may be left.
    rekindle:delete(Cache, hd(Keys)),
    rekindle:terminate(Cache),
    rekindle:terminate(Cache),
    Ask = fun() ->
        {
            [rekindle:lookup(Cache, Key) || Key <- Keys],
            rekindle:select_session(Cache, {?HOST, 443}),
            rekindle:size(Cache),
            rekindle:foldl(fun(_, _) -> met end, acc, Cache)
        }
    end,
    Nothing = {[undefined || _ <- Keys], [], 0, acc},
    ?assertEqual(Nothing, Ask()),
    ?assertEqual(Nothing, elsewhere(Ask)),
    Info = lists:last(rekindle_admin:info()),
    rekindle:delete(Cache, hd(Keys)),
    ?assertMatch(#{role := client, sessions := 0, bytes := 0, faults := 0}, Info).

client_managers_share_no_session(Config) ->
    with_ssl(Config, [], fun(Certs) ->
        {_, Port} = start_server(tls, Certs, []),
        Mine = rekindle:init([{role, client}]),
        Id = visit(Port, Certs, [{reuse_sessions, save}]),
        Key = {{?HOST, Port}, Id},
        ?assertEqual({1, 0}, {rekindle:size(cache()), rekindle:size(Mine)}),
        ?assertEqual(undefined, rekindle:lookup(Mine, Key)),
        ?assertEqual([], rekindle:select_session(Mine, {?HOST, Port})),
        ?assertEqual([], held(Mine)),
        rekindle:update(Mine, Key, mine),
        ?assertEqual([mine], rekindle:select_session(Mine, {?HOST, Port})),
        ?assertEqual(Id, element(?SESSION_ID, the_session())),
        ?assertEqual([1, 1], [Sessions || #{role := client, sessions := Sessions} <- rekindle_admin:info()]),
        rekindle:terminate(Mine),
        ?assertEqual(Id, visit(Port, Certs, [{reuse_sessions, true}]))
    end).

%% ---- compared with the default ----

every_answer_is_that_of_the_default_cache(_Config) ->
    Seed = erlang:phash2(erlang:timestamp()),
    ct:log("seed: ~b", [Seed]),
    _ = rand:seed(exsss, Seed),
    Caches = {ssl_client_session_cache_db:init([{role, client}]), rekindle:init([{role, client}])},
    [compare(Step, Seed, random_call(), Caches) || Step <- lists:seq(1, 2000)],
    {Default, Ours} = Caches,
    ?assert(rekindle:size(Ours) > 0),
    ssl_client_session_cache_db:terminate(Default),
    rekindle:terminate(Ours),
    [compare(ended, Seed, Call, Caches) || Call <- [{lookup, [random_key()]}, {select_session, [random_peer()]}, fold]].

compare(Step, Seed, Call, {Default, Ours}) ->
    Expected = answer(ssl_client_session_cache_db, Default, Call),
    Answer = answer(rekindle, Ours, Call),
    Expected =:= Answer orelse ct:fail({differs, Step, {seed, Seed}, Call, {default, Expected}, {rekindle, Answer}}).

%% OTP ignores the results of update and delete.
answer(Module, Cache, {update, Args}) ->
    _ = apply(Module, update, [Cache | Args]),
    done;
answer(Module, Cache, {delete, Args}) ->
    _ = apply(Module, delete, [Cache | Args]),
    done;
answer(Module, Cache, {select_session, Args}) ->
    lists:sort(apply(Module, select_session, [Cache | Args]));
answer(Module, Cache, fold) ->
    lists:sort(Module:foldl(fun(Pair, Acc) -> [Pair | Acc] end, [], Cache));
answer(Module, Cache, {Function, Args}) ->
    apply(Module, Function, [Cache | Args]).

random_call() ->
    case rand:uniform(100) of
        N when N =< 35 -> {update, [random_key(), random_session()]};
        N when N =< 60 -> {delete, [random_key()]};
        N when N =< 75 -> {lookup, [random_key()]};
        N when N =< 90 -> {select_session, [random_peer()]};
        N when N =< 97 -> {size, []};
        _ -> fold
    end.

random_key() ->
    {random_peer(), one_of([<<N:256>> || N <- lists:seq(1, 5)] ++ [<<>>, <<1>>])}.

%% Some keys are the beginning of another one, as a term or as bytes.
random_peer() ->
    one_of([
        {"a", 1},
        {"a", 256},
        {"a", 65_536},
        {"ab", 1},
        {[$a, 256], 1},
        {"", 1},
        {{127, 0, 0, 1}, 1},
        {{127, 0, 0, 1}, 256},
        {{0, 0, 0, 0, 0, 0, 0, 1}, 1},
        1,
        256
    ]).

random_session() ->
    Stamp = erlang:monotonic_time(),
    {session, <<(rand:uniform(5)):256>>, {Stamp, erlang:unique_integer()}, undefined, [rand:bytes(300)],
        {'ECPrivateKey', 1, rand:bytes(32)}, rand:bytes(48), true, Stamp}.

one_of(List) ->
    lists:nth(rand:uniform(length(List)), List).

%% ---- in the node of a case: servers and connections ----

with_ssl(Config, Env, Case) ->
    Certs = proplists:get_value(certs, Config),
    Node = rekindle_node:start_ssl(Env),
    try
        rekindle_node:run(Node, fun() ->
            put(manager_at_start, manager()),
            Case(Certs)
        end)
    after
        rekindle_node:stop(Node)
    end.

start_server(Kind, #{server := #{rsa := #{cert := Cert, key := Key}}}, Opts) ->
    Versions = #{tls => ['tlsv1.2'], dtls => ['dtlsv1.2']},
    Common = [{certfile, Cert}, {keyfile, Key}, {versions, map_get(Kind, Versions)}, {reuse_sessions, true}],
    rekindle_servers:start(Kind, Common ++ Opts).

demand_certificate(#{ca := Ca}) ->
    [{cacertfile, Ca}, {verify, verify_peer}, {fail_if_no_peer_cert, true}].

identity(KeyType, #{client := Client}) ->
    #{KeyType := #{cert := Cert, key := Key}} = Client,
    [{certfile, Cert}, {keyfile, Key}].

key_record(rsa) -> 'RSAPrivateKey';
key_record(ec) -> 'ECPrivateKey'.

%% A connection on which a line has come back: then the server is done with its handshake, too.
connect(Port, #{ca := Ca}, Opts) ->
    Versions = [{versions, ['tlsv1.2']} || not lists:keymember(versions, 1, Opts)],
    Common = [{verify, verify_peer}, {cacertfile, Ca}, {active, false}, {mode, binary}],
    {ok, Socket} = ssl:connect(?HOST, Port, Common ++ Versions ++ Opts, ?TIMEOUT),
    ok = ssl:send(Socket, <<"hello\n">>),
    {ok, <<"hello\n">>} = ssl:recv(Socket, 6, ?TIMEOUT),
    {ok, [{session_id, Id}]} = ssl:connection_information(Socket, [session_id]),
    %% A registration may be in the manager's mailbox still; it answers in order.
    _ = manager_state(),
    {Socket, Id}.

visit(Port, Certs, Opts) ->
    {Socket, Id} = connect(Port, Certs, Opts),
    _ = ssl:close(Socket),
    Id.

%% The session ids of the handshakes, as the server saw them.
server_view(Server, Count) ->
    rekindle_node:await(fun() -> length(rekindle_servers:handshakes(Server)) >= Count end),
    [Id || #{session_id := Id} <- rekindle_servers:handshakes(Server)].

%% ---- in the node of a case: the manager and its cache ----

manager() ->
    whereis(ssl_manager).

manager_state() ->
    sys:get_state(ssl_manager).

assert_same_manager() ->
    _ = manager_state(),
    ?assertEqual(get(manager_at_start), manager()).

cache() ->
    element(2, manager_state()).

%% It is found by content, because it is not the last field in all releases.
order_place(State) ->
    [Place] = [Place || Place <- lists:seq(1, tuple_size(State)), is_gb_tree(element(Place, State))],
    Place.

is_gb_tree({Size, Root}) when is_integer(Size) ->
    Root =:= nil orelse (is_tuple(Root) andalso tuple_size(Root) =:= 4);
is_gb_tree(_) ->
    false.

%% The manager's order has exactly the sessions of the cache.
assert_books_agree() ->
    State = manager_state(),
    Ordered = gb_trees:values(element(order_place(State), State)),
    ?assertEqual(lists:sort([Key || {Key, _} <- held()]), lists:sort(Ordered)).

%% Runs a fun in the manager's own process.
in_manager(Fun) ->
    Self = self(),
    Ref = make_ref(),
    _ = sys:replace_state(ssl_manager, fun(State) ->
        put(own_state, State),
        Self ! {Ref, Fun()},
        erase(own_state),
        State
    end),
    receive
        {Ref, Result} -> Result
    after ?TIMEOUT -> error(raised_in_manager)
    end.

cache_of_own_state() ->
    element(2, get(own_state)).

held() ->
    held(cache()).

held(Cache) ->
    rekindle:foldl(fun(Pair, Acc) -> [Pair | Acc] end, [], Cache).

the_session() ->
    [{_, Session}] = held(),
    Session.

session(Port, Id) ->
    rekindle:lookup(cache(), {{?HOST, Port}, Id}).

register_session(Host, Port, Session) ->
    put(ssl_manager, ssl_manager),
    ok = ssl_manager:register_session(Host, Port, Session, true).

invalidate(Port, Session) ->
    put(ssl_manager, ssl_manager),
    ok = ssl_manager:invalidate_session(?HOST, Port, Session),
    _ = manager_state(),
    ok.

with_id(Session, Id) ->
    setelement(?SESSION_ID, Session, Id).

new_id() ->
    crypto:strong_rand_bytes(32).

traced_update() ->
    receive
        {trace, _, call, {rekindle, update, [_, Key, Session]}} -> {Key, Session}
    after ?TIMEOUT -> error(no_update)
    end.

%% ---- in the node of a case: a proxy that can hold back what the server says, and add to what the client says ----

start_proxy(ServerPort) ->
    Self = self(),
    Hold = atomics:new(1, []),
    {ok, Listener} = gen_tcp:listen(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}]),
    {ok, Port} = inet:port(Listener),
    spawn_link(fun() -> accept_relays(Listener, ServerPort, Hold, Self) end),
    #{port => Port, hold => Hold}.

accept_relays(Listener, ServerPort, Hold, Controller) ->
    {ok, Client} = gen_tcp:accept(Listener),
    {ok, Server} = gen_tcp:connect({127, 0, 0, 1}, ServerPort, [binary, {active, false}]),
    Relay = spawn_link(fun() ->
        receive
            start -> ok
        end,
        [ok = inet:setopts(Socket, [{active, true}]) || Socket <- [Client, Server]],
        relay(Client, Server, Hold, Controller)
    end),
    [ok = gen_tcp:controlling_process(Socket, Relay) || Socket <- [Client, Server]],
    Relay ! start,
    Controller ! {relay, Relay},
    accept_relays(Listener, ServerPort, Hold, Controller).

relay(Client, Server, Hold, Controller) ->
    receive
        {tcp, Client, Data} ->
            _ = gen_tcp:send(Server, Data),
            relay(Client, Server, Hold, Controller);
        {tcp, Server, Data} ->
            wait_if_held(Hold, Controller),
            _ = gen_tcp:send(Client, Data),
            relay(Client, Server, Hold, Controller);
        {to_server, Data} ->
            _ = gen_tcp:send(Server, Data),
            relay(Client, Server, Hold, Controller);
        {tcp_closed, _} ->
            [gen_tcp:close(Socket) || Socket <- [Client, Server]]
    end.

wait_if_held(Hold, Controller) ->
    case atomics:get(Hold, 1) of
        0 ->
            ok;
        1 ->
            Controller ! {held, self()},
            receive
                release -> ok
            end
    end.

next_relay() ->
    receive
        {relay, Relay} -> Relay
    after ?TIMEOUT -> error(no_relay)
    end.

hold(#{hold := Hold}) ->
    atomics:put(Hold, 1, 1).

await_held() ->
    receive
        {held, Relay} -> Relay
    after ?TIMEOUT -> error(nothing_held)
    end.

release(#{hold := Hold}, Relay) ->
    atomics:put(Hold, 1, 0),
    Relay ! release.

%% The server cannot decrypt it.
end_in_fatal_alert(Socket, Relay) ->
    Relay ! {to_server, [<<23, 3, 3, 64:16>>, crypto:strong_rand_bytes(64)]},
    {error, {tls_alert, {bad_record_mac, _}}} = ssl:recv(Socket, 0, ?TIMEOUT).

%% ---- anywhere ----

elsewhere(Fun) ->
    result(in_background(Fun)).

in_background(Fun) ->
    spawn_monitor(fun() -> exit({result, Fun()}) end).

result({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> error({in_background, Reason})
    after ?TIMEOUT -> error(timeout)
    end.
