%% Makes logs fail in many ways while clients connect and resume without pause. No client notices it, and OTP's processes stay the
%% same. The operator reads one line when the log fails and one when it works again. Sessions that were made in the meantime reach
%% the log, and sessions that were revoked in the meantime resume nowhere.
-module(rekindle_journal_faults_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(rekindle_journals, [key/1, write_keys/2, save/3, offer/3, journal/2, await_written/2]).
-import(rekindle_node, [kill/1]).

-define(PASSWORD, "pass word/1").
-define(OTHER_PASSWORD, "another pass word").

%% Handshakes that clients finish while the log is broken.
-define(MEANWHILE, 60).
-define(QUEUE, 50).

all() ->
    [{group, valkey}, {group, network}, {group, folder}].

groups() ->
    [
        {valkey, [], [
            killed_and_started_again,
            stopped_for_some_seconds,
            full,
            started_again_empty,
            emptied,
            another_password
        ]},
        {network, [], [
            connections_are_cut_in_a_batch,
            nothing_goes_through,
            answers_are_corrupted,
            commands_are_corrupted
        ]},
        {folder, [], [
            the_disk_is_full,
            the_folder_is_read_only_at_a_restart,
            the_files_are_truncated,
            the_files_are_deleted
        ]}
    ].

suite() ->
    [{timetrap, {minutes, 2}}].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(ssl),
    [{certs, rekindle_certs:make(?config(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

init_per_group(folder, Config) ->
    Config;
init_per_group(_, Config) ->
    case rekindle_valkey:programs() of
        [] -> error(neither_valkey_server_nor_redis_server_is_installed);
        [Program | _] -> [{program, Program} | Config]
    end.

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(Case, Config) ->
    Dir = filename:join(?config(priv_dir, Config), Case),
    ok = file:make_dir(Dir),
    KeyFile = filename:join(Dir, "keys"),
    ok = write_keys(KeyFile, [key("a")]),
    [{dir, Dir}, {key_file, KeyFile} | Config].

end_per_testcase(_Case, Config) ->
    _ = [unmount(Config) || filelib:is_dir(mount_point(Config))],
    ok.

%% ---- the server ----

killed_and_started_again(Config) ->
    Kept = #{options => ["--appendonly", "yes", "--appendfsync", "always"]},
    Valkey = start_valkey(Config, Kept),
    fault(fleet(both(Valkey, Config), Config), Config, #{
        break => fun() -> rekindle_valkey:stop(Valkey) end,
        mend => fun() -> start_valkey(Config, Kept#{port => maps:get(port, Valkey)}) end
    }).

stopped_for_some_seconds(Config) ->
    Valkey = start_valkey(Config, #{}),
    fault(fleet(both(Valkey, Config), Config), Config, #{
        break => fun() -> rekindle_valkey:suspend(Valkey) end,
        mend => fun() -> rekindle_valkey:resume(Valkey) end,
        says => "no answer in time"
    }).

full(Config) ->
    Valkey = start_valkey(Config, #{options => ["--maxmemory-policy", "noeviction"]}),
    fault(fleet(both(Valkey, Config), Config), Config, #{
        break => fun() -> "OK" = rekindle_valkey:command(Valkey, ["CONFIG", "SET", "maxmemory", "1mb"]) end,
        mend => fun() -> "OK" = rekindle_valkey:command(Valkey, ["CONFIG", "SET", "maxmemory", "0"]) end,
        says => "OOM"
    }).

%% And a node that knows nothing of what was there before reads what was made since.
started_again_empty(Config) ->
    Valkey = start_valkey(Config, #{}),
    Fleet = fleet(both(Valkey, Config), Config),
    fault(Fleet, Config, #{
        break => fun() -> rekindle_valkey:stop(Valkey) end,
        mend => fun() -> start_valkey(Config, #{port => maps:get(port, Valkey)}) end,
        elsewhere => fun(_) -> (maps:get(start, Fleet))() end
    }).

%% Without an error of the server's that would tell. A node that starts then reads what was made since, which
%% refers to what was in the log before.
emptied(Config) ->
    Valkey = start_valkey(Config, #{}),
    Fleet = fleet(both(Valkey, Config), Config),
    fault(Fleet, Config, #{
        break => fun() -> "OK" = rekindle_valkey:command(Valkey, ["FLUSHALL"]) end,
        mend => fun() -> ok end,
        notices => "somebody has emptied the log",
        elsewhere => fun(_) -> (maps:get(start, Fleet))() end
    }).

another_password(Config) ->
    Valkey = start_valkey(Config, #{}),
    File = filename:join(?config(dir, Config), "password"),
    ok = file:write_file(File, [?PASSWORD, "\n"]),
    Journal = journal(rekindle_valkey:url(Valkey, ""), [{password_file, File}], Config),
    fault(fleet([Journal, Journal], Config), Config, #{
        break => fun() ->
            "OK" = rekindle_valkey:command(Valkey, ["CONFIG", "SET", "requirepass", ?OTHER_PASSWORD]),
            _ = rekindle_valkey:command(Valkey#{password := ?OTHER_PASSWORD}, ["CLIENT", "KILL", "TYPE", "normal"])
        end,
        mend => fun() -> ok = file:write_file(File, [?OTHER_PASSWORD, "\n"]) end,
        %% Connections end, and the next ones are refused.
        finds => "the password is refused"
    }).

%% ---- the network, between the first node and the server ----

%% A batch that is small enough goes through in between.
connections_are_cut_in_a_batch(Config) ->
    network({cut, to_server, 700}, #{comes_and_goes => true}, Config).

nothing_goes_through(Config) ->
    network(hold, #{says => "no answer in time"}, Config).

answers_are_corrupted(Config) ->
    network({flip, to_client, 11}, #{}, Config).

%% In their names first: what is changed elsewhere in one can only be told by TLS.
commands_are_corrupted(Config) ->
    network({flip, to_server, 11}, #{}, Config).

network(Mode, Expected, Config) ->
    Valkey = start_valkey(Config, #{}),
    Proxy = rekindle_proxy:start(maps:get(port, Valkey)),
    Through = rekindle_valkey:url(Valkey#{port := rekindle_proxy:port(Proxy)}),
    Fleet = fleet([journal(Url, [], Config) || Url <- [Through, rekindle_valkey:url(Valkey)]], Config),
    fault(Fleet, Config, Expected#{
        break => fun() -> rekindle_proxy:set(Proxy, Mode) end,
        mend => fun() -> rekindle_proxy:set(Proxy, pass) end
    }),
    rekindle_proxy:stop(Proxy).

%% ---- the folder ----

the_disk_is_full(Config) ->
    small_disk(Config),
    Filler = filename:join(mount_point(Config), "filler"),
    fault(single(Config), Config, #{
        break => fun() ->
            {_, _} = rekindle_clients:run("dd", ["if=/dev/zero", "of=" ++ Filler, "bs=64k"], [], 10_000),
            {_, _} = rekindle_clients:run(
                "dd", ["if=/dev/zero", "of=" ++ Filler, "bs=1", "oflag=append", "conv=notrunc"], [], 10_000
            )
        end,
        mend => fun() -> ok = file:delete(Filler) end,
        says => "full"
    }).

the_folder_is_read_only_at_a_restart(Config) ->
    small_disk(Config),
    #{first := {Node, Port}} = Single = single(Config),
    Old = save(old, Port, Config),
    await_written(Node, 1),
    kill(Node),
    remount("ro", Config),
    First = {Again, _} = (maps:get(start, Single))(),
    await(fun() -> journal(Again, state) =:= down end),
    fault(Single#{first := First}, Config, #{
        break => fun() -> ok end,
        mend => fun() -> remount("rw", Config) end,
        says => "Read-only file system",
        recovered => fun() -> await(fun() -> resumed(Old, Port, Config) =:= 1 end) end
    }).

the_files_are_truncated(Config) ->
    damage(fun truncate/1, Config).

the_files_are_deleted(Config) ->
    damage(fun(Files) -> [ok = file:delete(File, [raw]) || File <- Files] end, Config).

%% The log mends itself at once. So no time may pass between the files, or those of the new log would be damaged as well.
damage(Damage, Config) ->
    Single = single(Config),
    Folder = maps:get(folder, Single),
    fault(Single, Config, #{
        break => fun() -> Damage(filelib:wildcard(filename:join([Folder, "log-2", "*"]))) end,
        mend => fun() -> ok end,
        is_brief => true
    }).

truncate(Files) ->
    Devices = [element(2, {ok, _} = file:open(File, [read, write, raw])) || File <- Files],
    [ok = file:truncate(Device) || Device <- Devices],
    [ok = file:close(Device) || Device <- Devices].

%% A disk of its own, where the system allows it.
small_disk(Config) ->
    Point = mount_point(Config),
    ok = file:make_dir(Point),
    case rekindle_clients:run("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", Point], [], 10_000) of
        {0, _} ->
            ok;
        {_, Why} ->
            ok = file:del_dir(Point),
            throw({skip, lists:concat(["NO DISK CAN BE MOUNTED HERE, SO NONE IS FILLED: ", string:trim(binary_to_list(Why))])})
    end.

mount_point(Config) ->
    filename:join(?config(dir, Config), "disk").

remount(How, Config) ->
    {0, _} = rekindle_clients:run("mount", ["-o", "remount," ++ How, mount_point(Config)], [], 10_000),
    ok.

unmount(Config) ->
    rekindle_clients:run("umount", ["-l", mount_point(Config)], [], 10_000).

%% ---- a fault ----

%% Nothing is lost, and so nothing noticed, if the files are cut just while SQLite moves all of the write-ahead log.
await_brief(Break, Node) ->
    IsOver = fun(_) ->
        timer:sleep(100),
        lines(Node, "works again after") =/= []
    end,
    case lists:any(IsOver, lists:seq(1, 100)) of
        true ->
            ok;
        false ->
            _ = Break(),
            await_brief(Break, Node)
    end.

fault(#{first := {Node, Port}, ports := Ports} = World, Config, #{break := Break, mend := Mend} = Expected) ->
    Traffic = start_traffic(Port, Config),
    Processes = otp_processes(Node),
    Before = save(before, Port, Config),
    (maps:get(settle, World))(Before),
    _ = Break(),
    case Expected of
        #{is_brief := true} ->
            await_brief(Break, Node);
        %% By the node that is the first to write again what was lost.
        #{notices := Notice} ->
            await(fun() -> lists:any(fun(Peer) -> lines(Peer, Notice) =/= [] end, maps:get(nodes, World)) end);
        #{} ->
            await(fun() -> journal(Node, state) =:= down andalso is_named(Node) end)
    end,
    Made = [save({made, N}, Port, Config) || N <- [1, 2, 3]],
    Short = save(short, Port, Config),
    ?assertEqual([1, 1, 1, 1, 1], [resumed(File, Port, Config) || File <- [Before, Short | Made]]),
    %% It holds here at once, and is pending as long as the log cannot take it.
    [
        ?assertEqual(1, element(2, rekindle_node:call(Node, rekindle_admin, forget, [rekindle_clients:session_id(File)])))
     || File <- [Before, Short]
    ],
    Longest = await_handshakes(?MEANWHILE, Traffic, Node),
    await(fun() -> finds(maps:get(finds, Expected, ""), Node) end),
    _ = Mend(),
    await(fun() ->
        ?assertEqual(0, resumed(Short, Port, Config)),
        %% Another node may have read the session, and reads of its end only now.
        lists:all(fun(To) -> resumed(Short, To, Config) =:= 0 end, Ports) andalso journal(Node, state) =:= up andalso
            (is_map_key(notices, Expected) orelse length(lines(Node, "works again after")) >= 1)
    end),
    (maps:get(recovered, Expected, fun() -> ok end))(),
    Further = await_handshakes(?MEANWHILE, Traffic, Node),
    stop_traffic(Traffic),
    ?assertEqual(Processes, otp_processes(Node)),
    ?assert(max(Longest, Further) < ?QUEUE),
    await(fun() -> journal(Node, queued) =:= 0 end),
    ?assertEqual(0, journal(Node, dropped)),
    ?assertNot(is_named(Node)),
    check_log(Node, Expected),
    Elsewhere = maps:get(elsewhere, Expected, maps:get(elsewhere, World)),
    {Other, OtherPort} = Elsewhere(Node),
    [await(fun() -> resumed(File, OtherPort, Config) =:= 1 end) || File <- Made],
    [
        ?assertEqual({File, 0}, {File, resumed(File, To, Config)})
     || File <- [Before, Short], To <- lists:usort([OtherPort | Ports])
    ],
    _ = [rekindle_node:stop(Peer) || Peer <- lists:usort([Other | maps:get(nodes, World)]), is_process_alive(Peer)],
    ok.

%% By the operator's means, and without the password.
is_named(Node) ->
    Lines = [Line || {error, Line} <- rekindle_node:call(Node, rekindle_admin, findings, [])],
    Found = [Line || Line <- Lines, string:find(Line, "the journal does not work") =/= nomatch],
    [no_password(Line) || Line <- Found],
    Found =/= [].

finds("", _) -> true;
finds(Text, Node) -> string:find(journal(Node, last_error), Text) =/= nomatch.

check_log(Node, Expected) ->
    All = lines(Node, ""),
    ct:log("~ts", [lists:join("\n", All)]),
    [no_password(Line) || Line <- All],
    Down = lines(Node, "does not work"),
    case Expected of
        #{notices := _} ->
            ?assertEqual([], Down);
        #{comes_and_goes := true} ->
            ?assertMatch({[_ | _], [_ | _]}, {Down, lines(Node, "works again after")});
        #{} ->
            %% In turn. On a busy machine the log may seem to fail once more, and not again and again.
            Parts = [{down, "does not work"}, {up, "works again after"}],
            Turns = [Turn || Line <- All, {Turn, Part} <- Parts, string:find(Line, Part) =/= nomatch],
            ?assert(lists:member(Turns, [[down, up], [down, up, down, up]]), Turns),
            ?assertNotEqual(nomatch, string:find(Down, maps:get(says, Expected, "")))
    end.

no_password(Line) ->
    [?assertEqual({nomatch, Line}, {string:find(Line, Part), Line}) || Part <- ["pass word", "pass%20word"]].

%% ---- clients ----

%% OTP's and OpenSSL's, all the time. One that does not get what it should ends the case.
start_traffic(Port, Config) ->
    Count = counters:new(1, []),
    Self = self(),
    File = filename:join(?config(dir, Config), "traffic.session"),
    Of = [
        fun() -> erlang_client(Port, Config) end,
        fun() ->
            _ = save(traffic, Port, Config),
            [?assertMatch(#{resumed := 1}, offer(File, Port, Config)) || _ <- [1, 2]],
            3
        end
    ],
    {Count, [spawn_link(fun() -> repeat(Self, Count, Client) end) || Client <- Of]}.

repeat(Starter, Count, Client) ->
    counters:add(Count, 1, Client()),
    receive
        stop -> Starter ! {self(), stopped}
    after 20 ->
        repeat(Starter, Count, Client)
    end.

stop_traffic({_, Clients}) ->
    [Client ! stop || Client <- Clients],
    [
        receive
            {Client, stopped} -> ok
        end
     || Client <- Clients
    ],
    ok.

%% A session, and four connections that resume it. How many handshakes that is.
erlang_client(Port, Config) ->
    {Id, _} = Session = connect(Port, [{reuse_sessions, save}], Config),
    [?assertMatch({Id, _}, connect(Port, [{reuse_session, Session}], Config)) || _ <- lists:seq(1, 4)],
    5.

connect(Port, Options, Config) ->
    #{ca := Ca} = ?config(certs, Config),
    Fixed = [{versions, ['tlsv1.2']}, {verify, verify_peer}, {cacertfile, Ca}, {active, false}, {mode, binary}],
    {ok, Socket} = ssl:connect({127, 0, 0, 1}, Port, Options ++ Fixed, 10_000),
    ok = ssl:send(Socket, "hello\n"),
    {ok, <<"hello\n">>} = ssl:recv(Socket, 6, 10_000),
    {ok, [{session_id, Id}, {session_data, Data}]} = ssl:connection_information(Socket, [session_id, session_data]),
    ok = ssl:close(Socket),
    {Id, Data}.

%% Waits until this many more handshakes were made. Returns the longest message queue of OTP's processes in that time.
await_handshakes(More, {Count, _} = Traffic, Node) ->
    await_handshakes(counters:get(Count, 1) + More, Traffic, Node, 0).

await_handshakes(Wanted, {Count, _} = Traffic, Node, Longest) ->
    Now = max(Longest, longest_queue(Node)),
    case counters:get(Count, 1) >= Wanted of
        true ->
            Now;
        false ->
            timer:sleep(20),
            await_handshakes(Wanted, Traffic, Node, Now)
    end.

%% A handshake in any case.
resumed(File, Port, Config) ->
    #{full := Full, resumed := Resumed} = offer(File, Port, Config),
    ?assertEqual(1, Full + Resumed),
    Resumed.

%% ---- nodes ----

start_valkey(Config, Wanted) ->
    Dir = filename:join(?config(dir, Config), "server"),
    rekindle_valkey:start(?config(program, Config), Dir, Wanted#{password => ?PASSWORD}).

journal(Url, Options, Config) ->
    {journal, {valkey, Url, [{key_file, ?config(key_file, Config)} | Options]}}.

both(Valkey, Config) ->
    Journal = journal(rekindle_valkey:url(Valkey), [], Config),
    [Journal, Journal].

%% Two nodes: what is made on the first gets to the second.
fleet(Journals, Config) ->
    [First, Second] = [start_node(Journal, rekindle_node:free_port(), Config) || Journal <- Journals],
    {Other, OtherPort} = Second,
    #{
        first => First,
        ports => [Port || {_, Port} <- [First, Second]],
        nodes => [Node || {Node, _} <- [First, Second]],
        settle => fun(Before) -> await(fun() -> resumed(Before, OtherPort, Config) =:= 1 end) end,
        elsewhere => fun(_) -> {Other, OtherPort} end,
        start => fun() -> start_node(lists:last(Journals), rekindle_node:free_port(), Config) end
    }.

%% One node: what is made on it gets to the one after.
single(Config) ->
    Disk = mount_point(Config),
    Folder = filename:join(
        case filelib:is_dir(Disk) of
            true -> Disk;
            false -> ?config(dir, Config)
        end,
        "journal"
    ),
    Port = rekindle_node:free_port(),
    Start = fun() -> start_node({journal, {folder, Folder, [{key_file, ?config(key_file, Config)}]}}, Port, Config) end,
    First = {Node, _} = Start(),
    #{
        first => First,
        ports => [Port],
        nodes => [Node],
        folder => Folder,
        settle => fun(_) -> ok end,
        elsewhere => fun(Killed) ->
            kill(Killed),
            Second = {Again, _} = Start(),
            await(fun() -> journal(Again, replay) =/= undefined end),
            Second
        end,
        start => Start
    }.

start_node(Journal, Port, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Node = rekindle_node:start_ssl([{session_cb_init_args, [Journal, {scope, #{Port => fleet}}]}]),
    watch_log(Node),
    Options = [{certfile, Cert}, {keyfile, Key}, {port, Port}, {versions, ['tlsv1.2']}, {reuseaddr, true}],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, Options]),
    {Node, Port}.

watch_log(Node) ->
    ok = rekindle_node:run(Node, fun() ->
        Self = self(),
        _ = spawn(fun() ->
            ?MODULE = ets:new(?MODULE, [named_table, public, ordered_set]),
            Self ! ready,
            timer:sleep(infinity)
        end),
        receive
            ready -> ok
        end,
        logger:add_handler(?MODULE, ?MODULE, #{})
    end).

%% The handler of that node.
log(Event, _) ->
    Line = unicode:characters_to_list(logger_formatter:format(Event, #{single_line => true})),
    ets:insert(?MODULE, {erlang:unique_integer([monotonic]), string:trim(Line)}).

%% The lines of that node's log that contain this text.
lines(Node, Part) ->
    All = rekindle_node:call(Node, ets, tab2list, [?MODULE]),
    [Line || {_, Line} <- All, string:find(Line, Part) =/= nomatch].

otp_processes(Node) ->
    rekindle_node:run(Node, fun() -> [whereis(ssl_manager) | caches()] end).

longest_queue(Node) ->
    rekindle_node:run(Node, fun() ->
        lists:max([Length || Pid <- [whereis(ssl_manager) | caches()], {_, Length} <- [process_info(Pid, message_queue_len)]])
    end).

caches() ->
    lists:sort([Pid || {_, Pid, _, _} <- supervisor:which_children(ssl_server_session_cache_sup), is_pid(Pid)]).

%% A server that keeps silent takes some seconds each time it is tried.
await(Condition) ->
    await(Condition, erlang:monotonic_time(second) + 30).

await(Condition, Deadline) ->
    Condition() orelse
        begin
            erlang:monotonic_time(second) < Deadline orelse error(still_not_so_after_30_s),
            timer:sleep(20),
            await(Condition, Deadline)
        end.
