%% Tests that a revocation holds, whatever happens to the log, to nodes, to clocks and to keys, with real nodes, real servers, and
%% openssl as the device whose session must not resume.
-module(rekindle_revocation_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(rekindle_journals, [key/1, write_keys/2, journal/2, durably/3]).
-import(rekindle_node, [await/1, kill/1]).

%% Orders in which an attacker appends what is in the log.
-define(ORDERS, 6).

-define(DAYS, "4000").

all() ->
    [{group, fleet}, {group, lost}, {group, attack}, {group, folder}, {group, keys}, {group, clocks}].

groups() ->
    [
        {fleet, [], [
            a_revoked_device_stays_out_of_every_node,
            several_devices_are_revoked_in_one_call,
            the_answer_says_what_is_pending_and_a_kill_changes_nothing,
            the_answer_says_what_is_pending_and_a_stop_changes_nothing,
            a_server_that_hangs_gets_the_revocation_when_it_goes_on,
            a_node_that_waits_for_a_living_one_waits_for_it
        ]},
        {lost, [], [
            a_log_that_was_set_back_gets_its_revocations_again,
            a_lost_control_stream_is_filled_by_a_living_node,
            a_lost_control_stream_is_noticed_when_nobody_lives,
            keys_that_are_evicted_come_back,
            a_replica_that_lagged_is_reported
        ]},
        {attack, [], [
            copies_of_records_in_any_order_bring_nothing_back,
            an_old_flush_that_is_copied_drops_nothing
        ]},
        {folder, [], [
            it_holds_right_behind_the_answer,
            it_holds_for_listeners_that_open_later,
            wrong_options_make_no_revocation_durable,
            a_full_disk_is_reported_and_written_later,
            a_copied_node_folder_keeps_what_both_revoke,
            it_holds_when_init_restarts_the_node,
            a_folder_that_others_can_write_is_not_used
        ]},
        {keys, [], [
            keys_that_come_late_open_what_was_there,
            keys_that_others_may_read_are_read_once_they_may_not,
            keys_on_a_disk_that_is_away_are_not_made,
            keys_that_come_in_the_wrong_order_lose_no_revocation
        ]},
        {clocks, [], [
            a_node_that_is_behind_revokes_on_all,
            a_clock_that_is_behind_at_the_start_loses_nothing,
            a_clock_that_is_ahead_at_the_start_loses_nothing
        ]}
    ].

suite() ->
    [{timetrap, {minutes, 2}}].

init_per_suite(Config) ->
    case rekindle_valkey:programs() of
        [] -> error(neither_valkey_server_nor_redis_server_is_installed);
        [Program | _] -> [{program, Program}, {certs, make_certs(?config(priv_dir, Config))} | Config]
    end.

end_per_suite(_Config) ->
    ok.

init_per_group(clocks, Config) ->
    case faketime() of
        [] -> {skip, "libfaketime IS NOT INSTALLED, SO NO CLOCK WAS WRONG"};
        [Library | _] -> [{faketime, Library} | Config]
    end;
init_per_group(_, Config) ->
    Config.

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(Case, Config) ->
    Dir = filename:join(?config(priv_dir, Config), Case),
    ok = file:make_dir(Dir),
    KeyFile = filename:join(Dir, "keys"),
    ok = write_keys(KeyFile, [key("a")]),
    Ports = [rekindle_node:free_port() || _ <- lists:seq(1, 4)],
    [{dir, Dir}, {key_file, KeyFile}, {ports, Ports}, {server_port, rekindle_node:free_port()} | Config].

end_per_testcase(_Case, Config) ->
    Disk = path("disk", Config),
    _ = [rekindle_clients:run("umount", ["-l", Disk], [], 10_000) || filelib:is_dir(Disk)],
    ok.

%% ---- a fleet ----

a_revoked_device_stays_out_of_every_node(Config) ->
    _ = server(Config),
    [First, Second] = start_all([1, 2], valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    [await(fun() -> resumed(File, Second, Config) =:= 1 end) || File <- [Stolen, Kept]],
    _ = revoke_durably(First, [dev], Config),
    ?assertEqual(0, journal(node_of(First), unwritten)),
    await(fun() -> resumed(Stolen, Second, Config) =:= 0 end),
    Third = start(3, valkey(Config), Config),
    await_replayed(Third),
    [?assertEqual({0, 1}, {resumed(Stolen, Node, Config), resumed(Kept, Node, Config)}) || Node <- [First, Second, Third]],
    stop_all([First, Second, Third]).

several_devices_are_revoked_in_one_call(Config) ->
    _ = server(Config),
    [First, Second] = start_all([1, 2], valkey(Config), Config),
    {Stolen, Other} = save_both(First, Config),
    [await(fun() -> resumed(File, Second, Config) =:= 1 end) || File <- [Stolen, Other]],
    _ = revoke_durably(First, [dev, other], Config),
    [await(fun() -> resumed(File, Second, Config) =:= 0 end) || File <- [Stolen, Other]],
    stop_all([First, Second]).

the_answer_says_what_is_pending_and_a_kill_changes_nothing(Config) ->
    pending(fun(Node) -> kill(Node) end, Config).

the_answer_says_what_is_pending_and_a_stop_changes_nothing(Config) ->
    LogFile = path("node.log", Config),
    pending(
        fun(Node) ->
            ok = rekindle_node:call(Node, logger, add_handler, [to_file, logger_std_h, #{config => #{file => LogFile}}]),
            {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [rekindle]),
            stop_in_order(Node)
        end,
        Config
    ),
    {ok, Logged} = file:read_file(LogFile),
    ?assertMatch([_], [
        Line
     || Line <- string:lexemes(binary_to_list(Logged), "\n"),
        string:find(Line, "rekindle: the application stops before ") =/= nomatch
    ]).

%% The log is set back to a time before, too.
pending(End, Config) ->
    Server = server(Config),
    First = start(1, [memory(1, Config) | valkey(Config)], Config),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    "OK" = rekindle_valkey:command(Server, ["SAVE"]),
    ok = rekindle_valkey:stop(Server),
    await(fun() -> journal(node_of(First), state) =:= down end),
    {pending, _, Pending} = revoke(First, [dev], Config),
    ?assertMatch([{{shared, tls, f}, Why}] when is_binary(Why), maps:to_list(Pending)),
    ?assert(journal(node_of(First), unwritten) >= 1),
    ?assertMatch([_], findings(First, "are not in the log yet")),
    ?assertEqual(0, resumed(Stolen, First, Config)),
    End(node_of(First)),
    _ = server(Config),
    Again = start(1, [memory(1, Config) | valkey(Config)], Config),
    await_replayed(Again),
    ?assertEqual({0, 1}, {resumed(Stolen, Again, Config), resumed(Kept, Again, Config)}),
    await(fun() -> journal(node_of(Again), unwritten) =:= 0 end),
    %% It is in the log now, for those who know nothing.
    Other = start(2, valkey(Config), Config),
    await_replayed(Other),
    ?assertEqual({0, 1}, {resumed(Stolen, Other, Config), resumed(Kept, Other, Config)}),
    stop_all([Again, Other]).

a_server_that_hangs_gets_the_revocation_when_it_goes_on(Config) ->
    Server = server(Config),
    [First, Second] = start_all([1, 2], valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    [await(fun() -> resumed(File, Second, Config) =:= 1 end) || File <- [Stolen, Kept]],
    rekindle_valkey:suspend(Server),
    ?assertMatch({pending, _, #{}}, revoke(First, [dev], Config)),
    ?assertEqual(0, resumed(Stolen, First, Config)),
    rekindle_valkey:resume(Server),
    await(fun() -> journal(node_of(First), unwritten) =:= 0 end),
    await(fun() -> resumed(Stolen, Second, Config) =:= 0 end),
    ?assertEqual(1, resumed(Kept, Second, Config)),
    stop_all([First, Second]).

a_node_that_waits_for_a_living_one_waits_for_it(Config) ->
    _ = server(Config),
    First = start(1, [memory(1, Config) | valkey(Config)], Config),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    _ = revoke_durably(First, [dev], Config),
    kill(node_of(First)),
    Waiting = start(2, [{wait_for_living_node, true} | valkey(Config)], Config),
    await(fun() -> journal(node_of(Waiting), state) =/= starting end),
    ?assertNotEqual(up, journal(node_of(Waiting), state)),
    ?assertEqual({0, 0}, {resumed(Stolen, Waiting, Config), resumed(Kept, Waiting, Config)}),
    Again = start(1, [memory(1, Config) | valkey(Config)], Config),
    await(fun() -> resumed(Kept, Waiting, Config) =:= 1 end),
    [?assertEqual(0, resumed(Stolen, Node, Config)) || Node <- [Waiting, Again]],
    stop_all([Waiting, Again]).

%% ---- a log that was lost ----

a_log_that_was_set_back_gets_its_revocations_again(Config) ->
    Server = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    "OK" = rekindle_valkey:command(Server, ["SAVE"]),
    _ = revoke_durably(First, [dev], Config),
    ok = rekindle_valkey:stop(Server),
    _ = server(Config),
    is_put_back(Stolen, Kept, First, Config).

a_lost_control_stream_is_filled_by_a_living_node(Config) ->
    Server = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    _ = revoke_durably(First, [dev], Config),
    delete_control(Server),
    is_put_back(Stolen, Kept, First, Config).

keys_that_are_evicted_come_back(Config) ->
    Server = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    _ = revoke_durably(First, [dev], Config),
    %% All that the server can drop it drops.
    [
        "OK" = rekindle_valkey:command(Server, ["CONFIG", "SET", Name, Value])
     || {Name, Value} <- [{"maxmemory-policy", "allkeys-random"}, {"maxmemory", "1"}]
    ],
    await(fun() ->
        _ = rekindle_valkey:command(Server, ["SET", "x", "y"]),
        streams(Server) =:= []
    end),
    [
        "OK" = rekindle_valkey:command(Server, ["CONFIG", "SET", Name, Value])
     || {Name, Value} <- [{"maxmemory", "0"}, {"maxmemory-policy", "noeviction"}]
    ],
    %% The log's records are lost with it. New sessions reach the other nodes.
    Later = save(later, First, other, Config),
    await(fun() -> journal(node_of(First), state) =:= up andalso streams(Server) =/= [] end),
    Third = start(3, valkey(Config), Config),
    await(fun() -> resumed(Later, Third, Config) =:= 1 end),
    ?assertEqual([0, 0], [resumed(Stolen, Node, Config) || Node <- [First, Third]]),
    ?assertEqual(1, resumed(Kept, First, Config)),
    stop_all([First, Third]).

%% A failover to a replica that had not heard of it.
a_replica_that_lagged_is_reported(Config) ->
    Server = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    Replica = replica(Server, rekindle_node:free_port(), "replica", Config),
    "OK" = rekindle_valkey:command(Replica, ["REPLICAOF", "NO", "ONE"]),
    _ = revoke_durably(First, [dev], Config),
    ok = rekindle_valkey:stop(Server),
    Promoted = replica(Replica, ?config(server_port, Config), "promoted", Config),
    "OK" = rekindle_valkey:command(Promoted, ["REPLICAOF", "NO", "ONE"]),
    is_put_back(Stolen, Kept, First, Config).

replica(#{port := Port, password := Password} = Of, Own, Name, Config) ->
    Options = ["--replicaof", "127.0.0.1 " ++ integer_to_list(Port), "--masterauth", Password],
    Replica = rekindle_valkey:start(?config(program, Config), path(Name, Config), #{port => Own, options => Options}),
    await(fun() -> length(streams(Replica)) =:= length(streams(Of)) end),
    Replica.

%% A node that knows puts it back, and one that comes later does not resume the device.
is_put_back(Stolen, Kept, First, Config) ->
    Later = save(later, First, other, Config),
    await(fun() -> journal(node_of(First), state) =:= up andalso journal(node_of(First), unwritten) =:= 0 end),
    Third = start(3, valkey(Config), Config),
    await(fun() -> journal(node_of(Third), revocations) >= 1 end),
    await(fun() -> resumed(Later, Third, Config) =:= 1 end),
    ?assertEqual({0, 1}, {resumed(Stolen, Third, Config), resumed(Kept, Third, Config)}),
    ?assertEqual({0, 1}, {resumed(Stolen, First, Config), resumed(Kept, First, Config)}),
    stop_all([First, Third]).

a_lost_control_stream_is_noticed_when_nobody_lives(Config) ->
    Server = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, _} = save_both(First, Config),
    _ = revoke_durably(First, [dev], Config),
    Later = save(later, First, other, Config),
    %% And the revocation, and the knowledge of it that the last session has.
    await_written(First, 3 + 2),
    kill(node_of(First)),
    delete_control(Server),
    Second = start(2, valkey(Config), Config),
    await(fun() -> journal(node_of(Second), state) =:= down end),
    ?assertEqual({0, 0}, {resumed(Stolen, Second, Config), resumed(Later, Second, Config)}),
    ?assertMatch([_], findings(Second, "control records are lost")),
    ?assertEqual({ok, 1}, rekindle_node:call(node_of(Second), rekindle_admin, replay_anyway, [{name, f}])),
    await(fun() -> journal(node_of(Second), state) =:= up end),
    %% The records that the sessions refer to are lost with the revocation.
    ?assertEqual({0, 0}, {resumed(Stolen, Second, Config), resumed(Later, Second, Config)}),
    ?assertEqual({ok, 0}, rekindle_node:call(node_of(Second), rekindle_admin, replay_anyway, [all])),
    stop_all([Second]).

%% ---- an attacker who can write to the log, and has no key ----

copies_of_records_in_any_order_bring_nothing_back(Config) ->
    Server = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, _} = save_both(First, Config),
    _ = revoke_durably(First, [dev], Config),
    await_written(First, 2),
    kill(node_of(First)),
    _ = lua(
        Server,
        "for _, key in ipairs(redis.call('KEYS', 'rekindle:*')) do redis.call('COPY', key, 'saved:' .. key) end return 1",
        []
    ),
    Count = list_to_integer(
        lua(
            Server,
            "local n = 0 for _, key in ipairs(redis.call('KEYS', 'saved:*')) do n = n + redis.call('XLEN', key) end return n",
            []
        )
    ),
    ?assert(Count >= 4),
    InOrder = lists:seq(1, Count),
    Orders = [InOrder, lists:reverse(InOrder) | [shuffle(InOrder) || _ <- lists:seq(3, ?ORDERS)]],
    [
        begin
            _ = lua(Server, append_script(), [integer_to_list(N) || N <- Order]),
            Node = start(2, valkey(Config), Config),
            await_settled(Node),
            ?assertEqual({Order, 0}, {Order, resumed(Stolen, Node, Config)}),
            kill(node_of(Node))
        end
     || Order <- Orders
    ].

%% The streams as they were, and behind that everything in this order, in each of them.
append_script() ->
    "local all, keys = {}, redis.call('KEYS', 'saved:*') "
    "table.sort(keys) "
    "for _, saved in ipairs(keys) do "
    "  local key = string.sub(saved, 7) "
    "  redis.call('DEL', key) "
    "  for _, entry in ipairs(redis.call('XRANGE', saved, '-', '+')) do "
    "    all[#all + 1] = entry[2] "
    "    redis.call('XADD', key, '*', unpack(entry[2])) "
    "  end "
    "end "
    "for _, saved in ipairs(keys) do "
    "  for _, n in ipairs(ARGV) do redis.call('XADD', string.sub(saved, 7), '*', unpack(all[tonumber(n)])) end "
    "end "
    "return 1".

an_old_flush_that_is_copied_drops_nothing(Config) ->
    Server = server(Config),
    [First, Second] = start_all([1, 2], valkey(Config), Config),
    Old = save(old, First, dev, Config),
    await(fun() -> resumed(Old, Second, Config) =:= 1 end),
    _ = durably(node_of(First), flush, []),
    await(fun() -> resumed(Old, Second, Config) =:= 0 end),
    {New, Kept} = save_both(First, Config),
    [await(fun() -> resumed(File, Second, Config) =:= 1 end) || File <- [New, Kept]],
    Read = [read_records(Node) || Node <- [First, Second]],
    Copied = list_to_integer(
        lua(
            Server,
            "local n = 0 "
            "for _, key in ipairs(redis.call('KEYS', 'rekindle:*control*')) do "
            "  for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do n = n + 1 redis.call('XADD', key, '*', unpack(entry[2])) end "
            "end "
            "return n",
            []
        )
    ),
    ?assert(Copied >= 1),
    %% All of it was read by the time that what comes behind it was.
    [Last, Also] = [save(N, First, other, Config) || N <- [1, 2]],
    [await(fun() -> resumed(File, Second, Config) =:= 1 end) || File <- [Last, Also]],
    [await(fun() -> read_records(Node) >= Before + Copied end) || {Node, Before} <- lists:zip([First, Second], Read)],
    [?assertEqual([1, 1], [resumed(File, Node, Config) || File <- [New, Kept]]) || Node <- [First, Second]],
    stop_all([First, Second]).

read_records(Node) ->
    journal(node_of(Node), read).

shuffle(List) ->
    [Element || {_, Element} <- lists:sort([{rand:uniform(), Element} || Element <- List])].

%% ---- one node and its folder ----

it_holds_right_behind_the_answer(Config) ->
    _ = server(Config),
    [it_holds_right_behind_the_answer(Journal, Config, 5) || Journal <- [folder(Config), valkey(Config)]].

%% An answer that it is pending promises nothing: then the same is done again, with other sessions.
it_holds_right_behind_the_answer(Journal, Config, Tries) ->
    First = start(1, Journal, Config),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    ?assertEqual(1, resumed(Stolen, First, Config)),
    case revoke_and_die(First, Config) of
        {ok, _} ->
            Again = start(1, Journal, Config),
            await_replayed(Again),
            ?assertEqual({0, 1}, {resumed(Stolen, Again, Config), resumed(Kept, Again, Config)}),
            kill(node_of(Again));
        {pending, _, _} when Tries > 1 ->
            it_holds_right_behind_the_answer(Journal, Config, Tries - 1)
    end.

revoke_and_die({Node, _}, Config) ->
    Answer = path("answer", Config),
    Pem = pem(dev, Config),
    Monitor = monitor(process, Node),
    _ =
        catch rekindle_node:run(Node, fun() ->
            Answered = rekindle_admin:revoke(Pem),
            ok = file:write_file(Answer, term_to_binary(Answered)),
            os:cmd("kill -9 " ++ os:getpid())
        end),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    after 30_000 -> error(still_running)
    end,
    {ok, Written} = file:read_file(Answer),
    binary_to_term(Written).

%% Revokes before the node has opened the scope, while its sessions are only in the log.
it_holds_for_listeners_that_open_later(Config) ->
    Server = server(Config),
    [
        begin
            First = start(1, Args, Config),
            {Stolen, Kept} = save_both(First, Config),
            await_written(First, 2),
            kill(node_of(First)),
            Again = start_ssl(1, Args, Config),
            %% The log of a scope that is not open is written when one opens.
            ?assertEqual(0, element(2, revoke(Again, [dev], Config))),
            listen(Again, Config),
            await_replayed(Again),
            ?assertEqual({0, 1}, {resumed(Stolen, Again, Config), resumed(Kept, Again, Config)}),
            %% And in the next life.
            await(fun() -> journal(node_of(Again), unwritten) =:= 0 end),
            kill(node_of(Again)),
            Third = start(1, Args, Config),
            await_replayed(Third),
            ?assertEqual({0, 1}, {resumed(Stolen, Third, Config), resumed(Kept, Third, Config)}),
            kill(node_of(Third))
        end
     || Args <- [folder(Config), [memory(1, Config) | valkey(Config)]]
    ],
    rekindle_valkey:stop(Server).

wrong_options_make_no_revocation_durable(Config) ->
    Right = [scope(Config) | folder(Config)],
    Node = start_ssl(1, folder(Config), Config),
    Set = fun(Options) -> ok = rekindle_node:call(node_of(Node), application, set_env, [ssl, session_cb_init_args, Options]) end,
    Set([{max_bytes, 0} | Right]),
    {pending, 0, #{<<"options">> := Why}} = revoke(Node, [dev], Config),
    ?assertMatch({match, _}, re:run(Why, "max_bytes.*revoke again")),
    Set(Right),
    ?assertNotMatch({pending, _, #{<<"options">> := _}}, revoke(Node, [dev], Config)),
    stop_all([Node]).

a_full_disk_is_reported_and_written_later(Config) ->
    os:find_executable("mount") =/= false orelse throw({skip, "mount IS NOT INSTALLED"}),
    Disk = path("disk", Config),
    ok = file:make_dir(Disk),
    case rekindle_clients:run("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", Disk], [], 10_000) of
        {0, _} -> ok;
        {_, Why} -> throw({skip, "NO DISK CAN BE MOUNTED HERE, SO NONE IS FILLED: " ++ binary_to_list(Why)})
    end,
    Filler = filename:join(Disk, "filler"),
    Journal = [{journal, {folder, filename:join(Disk, "journal"), [{key_file, ?config(key_file, Config)}]}}],
    First = start(1, Journal, Config),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    {_, _} = rekindle_clients:run("dd", ["if=/dev/zero", "of=" ++ Filler, "bs=64k"], [], 10_000),
    {_, _} = rekindle_clients:run("dd", ["if=/dev/zero", "of=" ++ Filler, "bs=1", "oflag=append", "conv=notrunc"], [], 10_000),
    ?assertMatch({pending, _, #{}}, revoke(First, [dev], Config)),
    ?assertEqual(0, resumed(Stolen, First, Config)),
    ok = file:delete(Filler),
    await(fun() -> journal(node_of(First), unwritten) =:= 0 end),
    kill(node_of(First)),
    Again = start(1, Journal, Config),
    await_replayed(Again),
    ?assertEqual({0, 1}, {resumed(Stolen, Again, Config), resumed(Kept, Again, Config)}),
    kill(node_of(Again)).

%% This happens if a machine's image is a copy of another one's.
a_copied_node_folder_keeps_what_both_revoke(Config) ->
    _ = server(Config),
    First = start(1, [memory(1, Config) | valkey(Config)], Config),
    {Stolen, Other} = save_both(First, Config),
    0 = durably(node_of(First), forget, [crypto:strong_rand_bytes(32)]),
    await_written(First, 2),
    kill(node_of(First)),
    {0, _} = rekindle_clients:run("cp", ["-a", path("node_1", Config), path("node_2", Config)], [], 10_000),
    [Again, Copy] = start_all([1, 2], fun(N) -> [memory(N, Config) | valkey(Config)] end, Config),
    [await_replayed(Node) || Node <- [Again, Copy]],
    _ = revoke_durably(Again, [dev], Config),
    _ = revoke_durably(Copy, [other], Config),
    [await(fun() -> resumed(File, Node, Config) =:= 0 end) || File <- [Stolen, Other], Node <- [Again, Copy]],
    stop_all([Again, Copy]),
    Third = start(3, valkey(Config), Config),
    await_replayed(Third),
    ?assertEqual([0, 0], [resumed(File, Third, Config) || File <- [Stolen, Other]]),
    stop_all([Third]).

it_holds_when_init_restarts_the_node(Config) ->
    Eval = io_lib:format("~s:boot(~0p).", [
        ?MODULE, maps:from_list([{Key, ?config(Key, Config)} || Key <- [dir, certs, ports, key_file]])
    ]),
    Folders = [filename:dirname(code:which(Module)) || Module <- [?MODULE, rekindle]],
    Args = ["-noinput" | lists:append([["-pa", filename:absname(Folder)] || Folder <- Folders])],
    {0, Output} = rekindle_clients:run("erl", Args ++ ["-eval", lists:flatten(Eval)], [], 60_000),
    ?assertMatch({match, [<<"0 1">>]}, re:run(Output, "told: (\\d \\d)", [{capture, all_but_first, binary}]), Output).

%% The node runs this at each boot. Only at its first boot it revokes.
boot(Map) ->
    Config = maps:to_list(Map),
    Args = [scope(Config) | folder(Config)],
    [
        application:set_env(ssl, Key, Value)
     || {Key, Value} <- [
            {session_cb_init_args, Args} | [{Key, rekindle} || Key <- [session_cb, server_session_cb, client_session_cb]]
        ]
    ],
    {ok, _} = application:ensure_all_started(ssl),
    {_, _} = rekindle_servers:start(tls, listen_options(1, Config)),
    Here = {self(), hd(?config(ports, Config))},
    await(fun() ->
        [#{journal := #{replay := Replay}}] = own_servers(),
        Replay =/= undefined
    end),
    case filelib:is_file(path("booted", Config)) of
        false ->
            {_, _} = save_both(Here, Config),
            1 = element(2, rekindle_admin:revoke(pem(dev, Config))),
            await(fun() ->
                [#{journal := #{queued := Queued, unwritten := Unwritten}}] = own_servers(),
                Queued + Unwritten =:= 0
            end),
            ok = file:write_file(path("booted", Config), <<>>),
            init:restart();
        true ->
            Offered = [
                resumed({Who, path(File, Config)}, Here, Config)
             || {Who, File} <- [{dev, "stolen.session"}, {other, "kept.session"}]
            ],
            io:format("told: ~b ~b~n", Offered),
            init:stop()
    end.

own_servers() ->
    [Info || #{role := server} = Info <- rekindle_admin:info()].

a_folder_that_others_can_write_is_not_used(Config) ->
    _ = server(Config),
    [Journal, Memory] = [path(Name, Config) || Name <- ["journal", "node_1"]],
    [
        begin
            ok = file:make_dir(Dir),
            ok = file:change_mode(Dir, 8#770)
        end
     || Dir <- [Journal, Memory]
    ],
    First = start(1, folder(Config), Config),
    await(fun() -> journal(node_of(First), state) =:= down end),
    says_why(journal(node_of(First), last_error), Journal),
    ok = file:change_mode(Journal, 8#700),
    await(fun() -> journal(node_of(First), state) =:= up end),
    Second = start(1, [memory(1, Config) | valkey(Config)], stopped(First, Config)),
    await(fun() -> journal(node_of(Second), node_folder_error) =/= undefined end),
    says_why(journal(node_of(Second), node_folder_error), Memory),
    ?assertMatch([_], findings(Second, "the node folder")),
    stop_all([Second]).

says_why(Error, _Folder) ->
    ?assertMatch({match, _}, re:run(Error, "770|writ"), Error).

stopped(Node, Config) ->
    stop_all([Node]),
    Config.

%% ---- keys ----

keys_that_come_late_open_what_was_there(Config) ->
    _ = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    _ = revoke_durably(First, [dev], Config),
    await_written(First, 2),
    KeyFile = ?config(key_file, Config),
    Later = KeyFile ++ ".later",
    ok = file:rename(KeyFile, Later),
    Second = start(2, valkey(Config), Config),
    await(fun() -> journal(node_of(Second), state) =:= down end),
    ?assertEqual({0, 0}, {resumed(Stolen, Second, Config), resumed(Kept, Second, Config)}),
    ?assertNot(filelib:is_file(KeyFile)),
    ok = file:rename(Later, KeyFile),
    await(fun() -> resumed(Kept, Second, Config) =:= 1 end),
    ?assertEqual(0, resumed(Stolen, Second, Config)),
    await(fun() -> journal(node_of(Second), state) =:= up end),
    stop_all([First, Second]).

keys_that_others_may_read_are_read_once_they_may_not(Config) ->
    _ = server(Config),
    First = start(1, valkey(Config), Config),
    {Stolen, Kept} = save_both(First, Config),
    _ = revoke_durably(First, [dev], Config),
    await_written(First, 2),
    ok = file:change_mode(?config(key_file, Config), 8#640),
    Second = start(2, valkey(Config), Config),
    await(fun() -> journal(node_of(Second), state) =:= down end),
    ?assertMatch({match, _}, re:run(journal(node_of(Second), last_error), "640")),
    ok = file:change_mode(?config(key_file, Config), 8#600),
    await(fun() -> resumed(Kept, Second, Config) =:= 1 end),
    ?assertEqual(0, resumed(Stolen, Second, Config)),
    stop_all([First, Second]).

%% The node starts and revokes while the disk with its key file is away.
keys_on_a_disk_that_is_away_are_not_made(Config) ->
    [Mounted, Away] = [path(Name, Config) || Name <- ["mounted", "away"]],
    ok = file:make_dir(Mounted),
    KeyFile = filename:join(Mounted, "keys"),
    ok = write_keys(KeyFile, [key("a")]),
    Journal = [{journal, {folder, path("journal", Config), [{key_file, KeyFile}]}}],
    First = start(1, Journal, Config),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    stop_in_order(node_of(First)),
    ok = file:rename(Mounted, Away),
    ok = file:make_dir(Mounted),
    Second = start(1, Journal, Config),
    await(fun() -> journal(node_of(Second), state) =:= down end),
    ?assertMatch({pending, 0, #{}}, revoke(Second, [dev], Config)),
    ?assertNot(filelib:is_file(KeyFile)),
    stop_in_order(node_of(Second)),
    ok = file:del_dir(Mounted),
    ok = file:rename(Away, Mounted),
    Third = start(1, Journal, Config),
    await_replayed(Third),
    ?assertEqual({0, 1}, {resumed(Stolen, Third, Config), resumed(Kept, Third, Config)}),
    stop_all([Third]).

%% Two new ones at once: what one node seals, the other cannot open for a while.
keys_that_come_in_the_wrong_order_lose_no_revocation(Config) ->
    _ = server(Config),
    Old = key("old"),
    Files = [path(Name, Config) || Name <- ["keys_1", "keys_2"]],
    [ok = write_keys(File, [Old]) || File <- Files],
    [FirstFile, SecondFile] = Files,
    [First, Second] = start_all([1, 2], fun(N) -> valkey([{key_file, lists:nth(N, Files)} | Config]) end, Config),
    {Stolen, Kept} = save_both(First, Config),
    [await(fun() -> resumed(File, Second, Config) =:= 1 end) || File <- [Stolen, Kept]],
    New = [Old, key("newer"), key("newest")],
    ok = write_keys(FirstFile, New),
    [{_, {ok, [_, _, _]}}] = rekindle_node:call(node_of(First), rekindle_admin, reload_keys, []),
    %% It is pending if the other node has already said that it lacks the key.
    ?assertNotMatch({error, _}, revoke(First, [dev], Config)),
    %% The other one knows that there is something that it cannot read.
    await(fun() -> maps:get(key, journal(node_of(Second), skipped)) >= 1 end),
    await(fun() -> journal(node_of(Second), state) =/= up end),
    ok = write_keys(SecondFile, New),
    await(fun() -> resumed(Stolen, Second, Config) =:= 0 end),
    [await(fun() -> journal(node_of(Node), state) =:= up end) || Node <- [First, Second]],
    ?assertEqual(1, resumed(Kept, Second, Config)),
    _ = revoke_durably(First, [other], Config),
    await(fun() -> resumed(Kept, Second, Config) =:= 0 end),
    stop_all([First, Second]).

%% ---- clocks ----

a_node_that_is_behind_revokes_on_all(Config) ->
    _ = server(Config),
    First = start(1, valkey(Config), Config),
    Second = start(2, valkey(Config), faked([{"FAKETIME", "-60s"}], Config)),
    {Stolen, Kept} = save_both(First, Config),
    [await(fun() -> resumed(File, Second, Config) =:= 1 end) || File <- [Stolen, Kept]],
    _ = revoke_durably(Second, [dev], Config),
    await(fun() -> resumed(Stolen, First, Config) =:= 0 end),
    Third = start(3, valkey(Config), Config),
    await_replayed(Third),
    [?assertEqual({0, 1}, {resumed(Stolen, Node, Config), resumed(Kept, Node, Config)}) || Node <- [First, Second, Third]],
    stop_all([First, Second, Third]).

a_clock_that_is_behind_at_the_start_loses_nothing(Config) ->
    wrong_clock("-10d", Config).

a_clock_that_is_ahead_at_the_start_loses_nothing(Config) ->
    wrong_clock("+400d", Config).

%% Sessions that are made while the clock is wrong may be lost.
wrong_clock(Offset, Config) ->
    Clock = path("clock", Config),
    Set = fun(To) ->
        ok = file:write_file(Clock ++ ".new", [To, "\n"]),
        ok = file:rename(Clock ++ ".new", Clock)
    end,
    Faked = faked([{"FAKETIME_TIMESTAMP_FILE", Clock}, {"FAKETIME_NO_CACHE", "1"}, {"FAKETIME_XRESET", "1"}], Config),
    Set("+0d"),
    First = start(1, folder(Config), Faked),
    {Stolen, Kept} = save_both(First, Config),
    await_written(First, 2),
    _ = revoke_durably(First, [dev], Config),
    kill(node_of(First)),
    Set(Offset),
    Second = start(1, folder(Config), Faked),
    await(fun() -> journal(node_of(Second), state) =/= starting end),
    Set("+0d"),
    Now = erlang:system_time(second),
    await(fun() -> abs(rekindle_node:call(node_of(Second), os, system_time, [second]) - Now) < 60 end),
    New = save(new, Second, other, Config),
    await(fun() -> resumed(Kept, Second, Config) =:= 1 end),
    ?assertEqual({0, 1}, {resumed(Stolen, Second, Config), resumed(New, Second, Config)}),
    await_written(Second, 1),
    kill(node_of(Second)),
    Third = start(1, folder(Config), Faked),
    await_replayed(Third),
    ?assertEqual([0, 1, 1], [resumed(File, Third, Config) || File <- [Stolen, Kept, New]]),
    kill(node_of(Third)).

%% The monotonic clock goes on as it is.
faked(Variables, Config) ->
    Preloaded = [{"LD_PRELOAD", ?config(faketime, Config)}, {"DONT_FAKE_MONOTONIC", "1"}, {"FAKETIME_DONT_FAKE_MONOTONIC", "1"}],
    [{variables, Preloaded ++ Variables} | Config].

%% ---- the log ----

%% Always at the same address, with what it has saved.
server(Config) ->
    rekindle_valkey:start(?config(program, Config), path("server", Config), #{port => ?config(server_port, Config)}).

valkey(Config) ->
    Url = rekindle_valkey:url(#{port => ?config(server_port, Config), password => "pass word/1", tls => false}),
    [{journal, {valkey, Url, [{key_file, ?config(key_file, Config)}]}}].

folder(Config) ->
    [{journal, {folder, path("journal", Config)}}].

memory(N, Config) ->
    {node_folder, path("node_" ++ integer_to_list(N), Config)}.

path(Name, Config) ->
    filename:join(?config(dir, Config), Name).

lua(Server, Script, Args) ->
    rekindle_valkey:command(Server, ["EVAL", Script, "0" | Args]).

streams(Server) ->
    [Key || Key <- string:lexemes(rekindle_valkey:command(Server, ["KEYS", "rekindle:*"]), "\n")].

delete_control(Server) ->
    [Control] = [Key || Key <- streams(Server), string:find(Key, "control") =/= nomatch],
    "1" = rekindle_valkey:command(Server, ["DEL", Control]).

%% ---- nodes ----

start_all(Numbers, Args, Config) when is_list(Args) ->
    start_all(Numbers, fun(_) -> Args end, Config);
start_all(Numbers, Args, Config) ->
    Self = self(),
    Starters = [{N, spawn_link(fun() -> Self ! {self(), start(N, Args(N), Config)} end)} || N <- Numbers],
    [
        receive
            {Starter, Node} -> Node
        end
     || {_, Starter} <- Starters
    ].

%% A node, and the port that it listens on: the one of this number.
start(N, Args, Config) ->
    Node = start_ssl(N, Args, Config),
    listen(Node, Config),
    Node.

start_ssl(N, Args, Config) ->
    Env = [{session_cb_init_args, [scope(Config) | Args]}],
    Node = rekindle_node:start(Env, [], [], proplists:get_value(variables, Config, [])),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    {Node, lists:nth(N, ?config(ports, Config))}.

listen({Node, Port}, Config) ->
    [N] = [N || {N, P} <- lists:zip(lists:seq(1, 4), ?config(ports, Config)), P =:= Port],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, listen_options(N, Config)]).

scope(Config) ->
    {scope, maps:from_list([{Port, f} || Port <- ?config(ports, Config)])}.

listen_options(N, Config) ->
    #{ca := Ca, server := #{cert := Cert, key := Key}} = ?config(certs, Config),
    [
        {port, lists:nth(N, ?config(ports, Config))},
        {reuseaddr, true},
        {versions, ['tlsv1.2']},
        {certfile, Cert},
        {keyfile, Key},
        {cacertfile, Ca},
        {verify, verify_peer},
        {fail_if_no_peer_cert, true},
        {reuse_sessions, true}
    ].

node_of({Node, _Port}) ->
    Node.

stop_all(Nodes) ->
    [rekindle_node:stop(node_of(Node)) || Node <- Nodes],
    ok.

stop_in_order(Node) ->
    Monitor = monitor(process, Node),
    ok = rekindle_node:call(Node, init, stop, []),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    after 30_000 -> error(still_running)
    end.

%% The answer, which may be that it is pending.
revoke({Node, _}, Devices, Config) ->
    rekindle_node:call(Node, rekindle_admin, revoke, [selector(Devices, Config)]).

revoke_durably({Node, _}, Devices, Config) ->
    durably(Node, revoke, [selector(Devices, Config)]).

selector(Devices, Config) ->
    case [pem(Device, Config) || Device <- Devices] of
        [One] -> One;
        Several -> Several
    end.

await_written({Node, _}, Sessions) ->
    rekindle_journals:await_written(Node, Sessions).

await_replayed({Node, _}) ->
    await(fun() -> journal(Node, state) =:= up andalso journal(Node, replay) =/= undefined end).

%% Read, or not to be read.
await_settled({Node, _}) ->
    await(fun() -> journal(Node, state) =:= down orelse journal(Node, replay) =/= undefined end).

findings({Node, _}, Part) ->
    [
        Line
     || {_, Line} <- rekindle_node:call(Node, rekindle_doctor, findings, []),
        string:find(unicode:characters_to_list(Line), Part) =/= nomatch
    ].

%% ---- devices ----

%% The sessions of two devices: one that will be revoked, and one that will not.
save_both(Node, Config) ->
    {save(stolen, Node, dev, Config), save(kept, Node, other, Config)}.

%% Whose it is, and the file.
save(Name, {_, Port}, Device, Config) ->
    {Device, rekindle_journals:save(Name, Port, Config, client(Device, Config))}.

resumed({Device, File}, {_, Port}, Config) ->
    #{full := Full, resumed := Resumed} = rekindle_journals:offer(File, Port, Config, client(Device, Config)),
    ?assertEqual(1, Full + Resumed),
    Resumed.

client(Device, Config) ->
    #{Device := #{cert := Cert, key := Key}} = ?config(certs, Config),
    #{certfile => Cert, keyfile => Key}.

pem(Device, Config) ->
    #{Device := #{cert := File}} = ?config(certs, Config),
    {ok, Pem} = file:read_file(File),
    Pem.

%% Valid for years, as clocks are wrong here.
make_certs(Dir) ->
    File = fun(Name) -> filename:join(Dir, Name) end,
    New = fun(Name) ->
        [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=" ++ Name,
            "-keyout",
            File(Name ++ ".key")
        ]
    end,
    openssl(["req", "-x509", "-days", ?DAYS, "-out", File("ca.pem") | New("ca")]),
    Identities = [
        begin
            openssl(["req", "-out", File(Name ++ ".csr") | New(Name)]),
            openssl([
                "x509",
                "-req",
                "-in",
                File(Name ++ ".csr"),
                "-CA",
                File("ca.pem"),
                "-CAkey",
                File("ca.key"),
                "-CAcreateserial",
                "-days",
                ?DAYS,
                "-out",
                File(Name ++ ".pem")
            ]),
            {list_to_atom(Name), #{cert => File(Name ++ ".pem"), key => File(Name ++ ".key")}}
        end
     || Name <- ["server", "dev", "other"]
    ],
    maps:from_list([{ca, File("ca.pem")} | Identities]).

%% Two hours ago, so that they are valid for a node whose clock is behind.
openssl(Args) ->
    Earlier = lists:append([["LD_PRELOAD=" ++ Library, "FAKETIME=-2h"] || Library <- lists:sublist(faketime(), 1)]),
    {0, _} = rekindle_clients:run("env", Earlier ++ ["openssl" | Args], [], 10_000),
    ok.

faketime() ->
    filelib:wildcard("/usr/lib/*/faketime/libfaketime.so.1").
