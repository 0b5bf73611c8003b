%% Tests journals in a folder: real clients resume sessions of the time before a restart, and no session comes back that must not
%% be resumed.
-module(rekindle_journal_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/file.hrl").

-compile([export_all, nowarn_export_all]).

-import(rekindle_journals, [servers/1, journal/2, await_written/2, durably/3]).
-import(rekindle_node, [kill/1]).

all() ->
    [{group, restart}, {group, revocation}, {group, trouble}].

groups() ->
    [
        {restart, [], [
            sessions_outlive_a_stop_and_a_kill,
            dtls_sessions_outlive_a_restart,
            client_certificates_outlive_a_restart,
            a_named_scope_outlives_a_restart_on_another_port,
            upgraded_sockets_outlive_a_restart
        ]},
        {revocation, [], [
            what_was_revoked_does_not_come_back,
            what_has_expired_does_not_come_back,
            a_listener_opened_again_has_the_sessions_of_its_log
        ]},
        {trouble, [], [
            a_wrong_option_is_named_and_no_password_shown,
            a_folder_that_cannot_be_used_costs_only_the_journal,
            a_key_file_that_others_may_read_is_not_used,
            two_nodes_do_not_share_a_folder,
            a_torn_log_gives_back_all_but_its_end
        ]}
    ].

suite() ->
    [{timetrap, {minutes, 3}}].

init_per_suite(Config) ->
    [{certs, rekindle_certs:make(?config(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    Dir = filename:join(?config(priv_dir, Config), Case),
    ok = file:make_dir(Dir),
    [{dir, Dir}, {folder, filename:join(Dir, "journal")}, {port, rekindle_node:free_port()} | Config].

end_per_testcase(_Case, _Config) ->
    ok.

%% ---- restart ----

sessions_outlive_a_stop_and_a_kill(Config) ->
    First = start(Config, []),
    Saved = [save(N, Config) || N <- lists:seq(1, 5)],
    await_written(First, 5),
    stop(First),
    Second = start(Config, []),
    await_applied(5, Second),
    [?assertMatch(#{resumed := 1}, offer(File, Config)) || File <- Saved],
    Later = save(6, Config),
    await_written(Second, 1),
    kill(Second),
    Third = start(Config, []),
    await_applied(6, Third),
    [?assertMatch(#{resumed := 1}, offer(File, Config)) || File <- [Later | Saved]],
    [#{hits := 6, misses := 0, faults := 0}] = servers(Third),
    rekindle_node:stop(Third).

dtls_sessions_outlive_a_restart(Config) ->
    First = start(dtls, Config, [], [{versions, ['dtlsv1.2']}]),
    Saved = save(1, Config, #{proto => dtls}),
    await_written(First, 1),
    kill(First),
    Second = start(dtls, Config, [], [{versions, ['dtlsv1.2']}]),
    await_applied(1, Second),
    ?assertMatch(#{resumed := 1}, offer(Saved, Config, #{proto => dtls})),
    rekindle_node:stop(Second).

client_certificates_outlive_a_restart(Config) ->
    #{ca := Ca, client := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Verify = [
        {versions, ['tlsv1.2']}, {verify, verify_peer}, {fail_if_no_peer_cert, true}, {cacertfile, Ca}, {reuse_sessions, true}
    ],
    First = start(tls, Config, [], Verify),
    Identity = #{certfile => Cert, keyfile => Key},
    Saved = save(1, Config, Identity),
    await_written(First, 1),
    kill(First),
    Second = start(tls, Config, [], Verify),
    await_applied(1, Second),
    #{sessions := [#{peer := #{subject := Subject}}]} = rekindle_node:call(Second, rekindle_admin, sessions, []),
    ?assert(is_binary(Subject)),
    ?assertMatch(#{resumed := 1}, offer(Saved, Config, Identity)),
    rekindle_node:stop(Second).

a_named_scope_outlives_a_restart_on_another_port(Config) ->
    Other = rekindle_node:free_port(),
    Names = [{scope, #{?config(port, Config) => mqtt, Other => mqtt}}],
    First = start(Config, Names),
    Saved = save(1, Config),
    await_written(First, 1),
    stop(First),
    Elsewhere = lists:keystore(port, 1, Config, {port, Other}),
    Second = start(Elsewhere, Names),
    await_applied(1, Second),
    ?assertMatch(#{resumed := 1}, offer(Saved, Elsewhere)),
    rekindle_node:stop(Second).

upgraded_sockets_outlive_a_restart(Config) ->
    First = start(upgrade, Config, [], [{versions, ['tlsv1.2']}]),
    Saved = save(1, Config),
    await_written(First, 1),
    kill(First),
    Second = start(upgrade, Config, [], [{versions, ['tlsv1.2']}]),
    %% ssl opens the cache with the first of them.
    _ = save(2, Config),
    await_applied(1, Second),
    ?assertMatch(#{resumed := 1}, offer(Saved, Config)),
    rekindle_node:stop(Second).

%% ---- revocation ----

what_was_revoked_does_not_come_back(Config) ->
    First = start(Config, []),
    Flushed = save(1, Config),
    await_written(First, 1),
    1 = durably(First, flush, []),
    Forgotten = save(2, Config),
    Kept = save(3, Config),
    Sessions = fun() -> maps:get(sessions, rekindle_node:call(First, rekindle_admin, sessions, [])) end,
    rekindle_node:await(fun() -> length(Sessions()) =:= 2 end),
    %% Two handshakes can take less than a second: which is which, the file tells.
    [Id] = [Id || #{id := Id} <- Sessions(), Id =:= rekindle_clients:session_id(Forgotten)],
    1 = durably(First, forget, [Id]),
    %% Three sessions, both revocations, and the knowledge of the first one.
    await_written(First, 3 + 3),
    kill(First),
    Second = start(Config, []),
    await_replayed(Second),
    ?assertMatch(#{resumed := 0}, offer(Flushed, Config)),
    ?assertMatch(#{resumed := 0}, offer(Forgotten, Config)),
    ?assertMatch(#{resumed := 1}, offer(Kept, Config)),
    ?assertMatch(#{revoked := 2}, journal(Second, skipped)),
    rekindle_node:stop(Second).

what_has_expired_does_not_come_back(Config) ->
    First = start(Config, [{lifetime, 3}]),
    await_replayed(First),
    Saved = save(1, Config),
    await_written(First, 1),
    stop(First),
    Second = start(Config, [{lifetime, 3}]),
    await_replayed(Second),
    timer:sleep(3500),
    ?assertMatch(#{resumed := 0}, offer(Saved, Config)),
    await_written(Second, 1),
    stop(Second),
    timer:sleep(3500),
    Third = start(Config, [{lifetime, 100}]),
    await_replayed(Third),
    ?assertMatch(#{expired := N} when N >= 2, journal(Third, skipped)),
    ?assertEqual(0, journal(Third, applied)),
    rekindle_node:stop(Third).

%% Also where its authorities have changed: docs/journal.md says what to do then.
a_listener_opened_again_has_the_sessions_of_its_log(Config) ->
    Node = start(Config, []),
    [Forgotten, Kept] = [save(N, Config) || N <- [1, 2]],
    await_written(Node, 2),
    1 = durably(Node, forget, [rekindle_clients:session_id(Forgotten)]),
    ok = rekindle_node:run(Node, fun() ->
        rekindle_servers:stop(whereis(the_server)),
        garbage_collect(),
        ok
    end),
    listen(Node, tls, Config, [{versions, ['tlsv1.2']}]),
    await_replayed(Node),
    ?assertMatch(#{resumed := 1}, offer(Kept, Config)),
    ?assertMatch(#{resumed := 0}, offer(Forgotten, Config)),
    rekindle_node:stop(Node).

%% ---- trouble ----

a_wrong_option_is_named_and_no_password_shown(_Config) ->
    Wrong = [
        {yes, "allowed: none, {folder, Dir}"},
        {{folder, 7}, "the folder is not a file name"},
        {{folder, "x", [{keyfile, "y"}]}, "no option keyfile (did you mean key_file?); allowed: [key_file]"},
        {{valkey, "http://:hunter2@localhost", [{key_file, "k"}]}, "scheme is http; allowed: redis, rediss, valkey, valkeys"},
        {{valkey, "valkey://:hunter2@localhost", []}, "key_file is missing"},
        {
            {valkey, "valkey://:hunter2@localhost", [{key_file, "k"}, {partitions, 0}]},
            "partitions has to be an integer from 1 to 64"
        },
        {{valkey, "hunter2", [{key_file, "k"}]}, "the URL is not valid"}
    ],
    [
        begin
            {error, {bad_option, Line}} = rekindle_options:parse([{journal, Value}]),
            ?assertEqual({Line, true}, {Line, lists:prefix("rekindle: option journal: ", Line)}),
            ?assertNotEqual({Line, nomatch}, {Line, string:find(Line, Part)}),
            ?assertEqual(nomatch, string:find(Line, "hunter2"))
        end
     || {Value, Part} <- Wrong
    ],
    {ok, _, []} = rekindle_options:parse([{journal, {folder, <<"x">>, [{key_file, "k"}]}}]),
    {ok, _, []} = rekindle_options:parse([{journal, {valkey, "valkeys://a:1", [{key_file, "k"}, {cluster, true}]}}]).

a_folder_that_cannot_be_used_costs_only_the_journal(Config) ->
    Folder = ?config(folder, Config),
    ok = file:write_file(Folder, "a file is in its place"),
    Node = start(Config, []),
    Saved = save(1, Config),
    ?assertMatch(#{resumed := 1}, offer(Saved, Config)),
    await(fun() -> journal(Node, state) =:= down end),
    ?assertNotEqual(nomatch, string:find(journal(Node, last_error), Folder)),
    [Line] = [Line || {error, Line} <- rekindle_node:call(Node, rekindle_admin, findings, [])],
    ?assertNotEqual(nomatch, string:find(Line, "the journal does not work")),
    ok = file:delete(Folder),
    await_written(Node, 1),
    await(fun() -> journal(Node, state) =:= up end),
    kill(Node),
    Second = start(Config, []),
    await_applied(1, Second),
    ?assertMatch(#{resumed := 1}, offer(Saved, Config)),
    rekindle_node:stop(Second).

a_key_file_that_others_may_read_is_not_used(Config) ->
    KeyFile = filename:join(?config(dir, Config), "my_keys"),
    Written = iolist_to_binary(rekindle_journals:key("2026-11")),
    ok = rekindle_journals:write_keys(KeyFile, [Written]),
    [_, Key] = string:lexemes(Written, " \n"),
    ok = file:change_mode(KeyFile, 8#640),
    Node = start(Config, [{journal, {folder, ?config(folder, Config), [{key_file, KeyFile}]}}]),
    _ = save(1, Config),
    await(fun() -> journal(Node, state) =:= down end),
    Error = journal(Node, last_error),
    ?assertNotEqual({Error, nomatch}, {Error, string:find(Error, "mode 640")}),
    ?assertEqual(nomatch, string:find(Error, Key)),
    [{_, {error, _}}] = rekindle_node:call(Node, rekindle_admin, reload_keys, []),
    ok = file:change_mode(KeyFile, 8#600),
    ?assertMatch([{_, {ok, [<<"2026-11">>]}}], rekindle_node:call(Node, rekindle_admin, reload_keys, [])),
    await_written(Node, 1),
    rekindle_node:stop(Node).

two_nodes_do_not_share_a_folder(Config) ->
    First = start(Config, []),
    Saved = save(1, Config),
    await_written(First, 1),
    Elsewhere = lists:keystore(port, 1, Config, {port, rekindle_node:free_port()}),
    Second = start(Elsewhere, []),
    Own = save(2, Elsewhere),
    ?assertMatch(#{resumed := 1}, offer(Own, Elsewhere)),
    await(fun() -> journal(Second, state) =:= down end),
    Error = journal(Second, last_error),
    ?assertNotEqual({Error, nomatch}, {Error, string:find(Error, "in use")}),
    ?assertMatch(#{resumed := 1}, offer(Saved, Config)),
    kill(First),
    await_written(Second, 1),
    rekindle_node:stop(Second).

%% After a power cut, the newest file may end anywhere.
a_torn_log_gives_back_all_but_its_end(Config) ->
    First = start(Config, []),
    %% One by one: those that are written at once would be lost together.
    Saved = [
        begin
            File = save(N, Config),
            await_written(First, N),
            File
        end
     || N <- lists:seq(1, 4)
    ],
    kill(First),
    {ok, Files} = files(?config(folder, Config)),
    {_, Size, Newest} = lists:last(lists:sort([{Info#file_info.mtime, Info#file_info.size, File} || {File, Info} <- Files])),
    ct:log("~ts has ~b bytes", [Newest, Size]),
    {ok, Device} = file:open(Newest, [read, write, raw, binary]),
    {ok, Content} = file:pread(Device, 0, Size),
    Used = used(Content, Size),
    {ok, _} = file:position(Device, Used - 100),
    ok = file:truncate(Device),
    ok = file:close(Device),
    Second = start(Config, []),
    await_replayed(Second),
    Resumed = lists:sum([N || File <- Saved, #{resumed := N} <- [offer(File, Config)]]),
    ct:log("~b of 4 resumed", [Resumed]),
    ?assert(Resumed >= 3),
    await(fun() -> journal(Second, state) =:= up end),
    rekindle_node:stop(Second).

%% Without the zeros at the end.
used(Content, Size) ->
    case binary:at(Content, Size - 1) of
        0 -> used(Content, Size - 1);
        _ -> Size
    end.

%% ---- helpers ----

start(Config, Options) ->
    start(tls, Config, Options, [{versions, ['tlsv1.2']}]).

start(Kind, Config, Options, TlsOptions) ->
    Journal = {journal, {folder, ?config(folder, Config)}},
    Args =
        case lists:keymember(journal, 1, Options) of
            true -> Options;
            false -> [Journal | Options]
        end,
    Node = rekindle_node:start_ssl([{session_cb_init_args, Args}]),
    listen(Node, Kind, Config, TlsOptions),
    Node.

listen(Node, Kind, Config, TlsOptions) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Options = [{port, ?config(port, Config)}, {certfile, Cert}, {keyfile, Key}, {reuseaddr, true} | TlsOptions],
    rekindle_node:run(Node, fun() ->
        {Server, _} = rekindle_servers:start(Kind, Options),
        _ = [unregister(the_server) || whereis(the_server) =/= undefined],
        register(the_server, Server)
    end).

stop(Node) ->
    Monitor = monitor(process, Node),
    ok = rekindle_node:call(Node, init, stop, []),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    after 30_000 -> error(still_running)
    end.

save(N, Config) ->
    save(N, Config, #{}).

save(N, Config, Client) ->
    rekindle_journals:save(N, ?config(port, Config), Config, Client).

offer(File, Config) ->
    offer(File, Config, #{}).

offer(File, Config, Client) ->
    rekindle_journals:offer(File, ?config(port, Config), Config, Client).

await_applied(Sessions, Node) ->
    await(fun() -> journal(Node, applied) =:= Sessions end).

await_replayed(Node) ->
    await(fun() -> journal(Node, replay) =/= undefined end).

await(Condition) ->
    rekindle_node:await(Condition).

files(Folder) ->
    Found = filelib:fold_files(Folder, ".*", true, fun(File, Files) -> [File | Files] end, []),
    {ok, [
        {File, Info}
     || File <- Found,
        {ok, Info} <- [file:read_file_info(File, [{time, posix}])],
        Info#file_info.size > 0,
        filename:basename(File) =/= "keys",
        filename:basename(File) =/= "lock"
    ]}.
