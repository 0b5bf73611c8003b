%% Tests that nodes share sessions through Valkey or Redis: a session of one node resumes on the others, a revocation on one node
%% holds on all, and nothing is shared by accident.
-module(rekindle_fleet_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(rekindle_journals, [
    key/1, write_keys/2, save/3, save/4, offer/3, offer/4, servers/1, journal/2, await_written/2, durably/3
]).

-define(EACH, ["valkey-server", "redis-server"]).

all() ->
    [{group, list_to_atom(Program)} || Program <- ?EACH].

groups() ->
    [
        {'valkey-server', [], [
            a_session_of_one_node_is_resumed_on_the_others,
            a_new_node_has_what_was_made_before,
            what_is_revoked_on_one_node_is_revoked_on_all,
            a_session_of_a_client_certificate_is_revoked_on_all,
            a_listener_without_a_name_shares_nothing,
            names_are_kept_apart,
            other_keys_open_nothing,
            a_patch_release_of_ssl_shares_its_sessions,
            keys_are_rotated_without_losing_a_session,
            the_documentation_s_options_are_right,
            the_doctor_sees_what_is_wrong_in_a_fleet,
            the_doctor_says_what_is_not_promised_without_a_node_folder,
            the_doctor_sees_clocks_that_differ,
            without_a_key_file_nodes_wait_for_it,
            the_metrics_have_the_journal,
            it_works_over_tls,
            a_server_that_asks_for_a_certificate_gets_it,
            it_works_with_a_cluster
        ]},
        {'redis-server', [], [a_session_of_one_node_is_resumed_on_the_others, a_new_node_has_what_was_made_before]}
    ].

suite() ->
    [{timetrap, {minutes, 3}}].

init_per_suite(Config) ->
    [{certs, rekindle_certs:make(?config(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

%% If neither server is installed, the suite fails, because it proves nothing then. If only Redis is installed, Valkey's cases use
%% Redis.
init_per_group(Group, Config) ->
    Program = atom_to_list(Group),
    case rekindle_valkey:programs() of
        [] ->
            error(neither_valkey_server_nor_redis_server_is_installed);
        ["redis-server"] when Program =:= "valkey-server" -> [{group, Group}, {program, "redis-server"} | Config];
        Programs ->
            case lists:member(Program, Programs) of
                true -> [{group, Group}, {program, Program} | Config];
                false -> {skip, Program ++ " IS NOT INSTALLED"}
            end
    end.

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(Case, Config) ->
    Dir = filename:join(?config(priv_dir, Config), lists:concat([Case, "_", ?config(group, Config)])),
    ok = file:make_dir(Dir),
    KeyFile = filename:join(Dir, "keys"),
    write_keys(KeyFile, [key("a")]),
    [{dir, Dir}, {key_file, KeyFile} | Config].

end_per_testcase(_Case, _Config) ->
    ok.

%% ---- cases ----

a_session_of_one_node_is_resumed_on_the_others(Config) ->
    Valkey = start_valkey(Config),
    Nodes = [{First, FirstPort} | Others] = start_nodes(3, Valkey, Config),
    Saved = save(1, FirstPort, Config),
    [await(fun() -> journal(Node, applied) =:= 1 end) || {Node, _} <- Others],
    await_written(First, 1),
    Written = [journal(Node, written) || {Node, _} <- Nodes],
    [?assertMatch(#{resumed := 1}, offer(Saved, Port, Config)) || {_, Port} <- Nodes],
    %% Those that were resumed elsewhere are no new ones.
    ?assertEqual(Written, [journal(Node, written) || {Node, _} <- Nodes]),
    stop_all(Nodes).

a_new_node_has_what_was_made_before(Config) ->
    Valkey = start_valkey(Config),
    [{First, Port}] = start_nodes(1, Valkey, Config),
    Saved = [save(N, Port, Config) || N <- lists:seq(1, 5)],
    await_written(First, 5),
    rekindle_node:stop(First),
    [{Second, OtherPort}] = start_nodes(1, Valkey, Config),
    await(fun() -> journal(Second, replay) =/= undefined end),
    ?assertEqual(5, journal(Second, applied)),
    [?assertMatch(#{resumed := 1}, offer(File, OtherPort, Config)) || File <- Saved],
    rekindle_node:stop(Second).

what_is_revoked_on_one_node_is_revoked_on_all(Config) ->
    Valkey = start_valkey(Config),
    Nodes = [{First, FirstPort}, {Second, SecondPort}] = start_nodes(2, Valkey, Config),
    Forgotten = save(1, FirstPort, Config),
    Flushed = save(2, SecondPort, Config),
    await(fun() -> sessions(First) =:= 2 andalso sessions(Second) =:= 2 end),
    1 = durably(Second, forget, [rekindle_clients:session_id(Forgotten)]),
    await(fun() -> sessions(First) =:= 1 end),
    ?assertMatch(#{resumed := 0}, offer(Forgotten, FirstPort, Config)),
    ?assertMatch(#{resumed := 1}, offer(Flushed, FirstPort, Config)),
    await(fun() -> sessions(Second) =:= 2 end),
    2 = durably(First, flush, []),
    await(fun() -> sessions(Second) =:= 0 end),
    ?assertMatch(#{resumed := 0}, offer(Flushed, SecondPort, Config)),
    %% And on one that comes later.
    [{Third, ThirdPort}] = start_nodes(1, Valkey, Config),
    await(fun() -> journal(Third, replay) =/= undefined end),
    [?assertMatch(#{resumed := 0}, offer(File, ThirdPort, Config)) || File <- [Forgotten, Flushed]],
    #{revoked := Revoked} = journal(Third, skipped),
    ?assert(Revoked >= 2),
    stop_all([{Third, ThirdPort} | Nodes]).

a_session_of_a_client_certificate_is_revoked_on_all(Config) ->
    #{ca := Ca, client := #{ec := Ec, rsa := Rsa}} = ?config(certs, Config),
    Valkey = start_valkey(Config),
    Verify = [{verify, verify_peer}, {fail_if_no_peer_cert, true}, {cacertfile, Ca}, {reuse_sessions, true}],
    Nodes = [{First, FirstPort}, {Second, SecondPort}] = [start_node(journal(Valkey, Config, []), Verify, Config) || _ <- [1, 2]],
    [Identity, Other] = [#{certfile => Cert, keyfile => Key} || #{cert := Cert, key := Key} <- [Ec, Rsa]],
    Stolen = save(1, FirstPort, Config, Identity),
    Kept = save(2, FirstPort, Config, Other),
    await(fun() -> sessions(Second) =:= 2 end),
    {ok, Pem} = file:read_file(maps:get(cert, Ec)),
    1 = durably(First, revoke, [Pem]),
    await(fun() -> sessions(Second) =:= 1 end),
    ?assertMatch(#{resumed := 0}, offer(Stolen, SecondPort, Config, Identity)),
    ?assertMatch(#{resumed := 1}, offer(Kept, SecondPort, Config, Other)),
    {ok, CaPem} = file:read_file(Ca),
    ?assert(durably(First, revoke, [{issuer, CaPem}]) >= 1),
    await(fun() -> sessions(Second) =:= 0 end),
    {Third, ThirdPort} = start_node(journal(Valkey, Config, []), Verify, Config),
    await(fun() -> journal(Third, replay) =/= undefined end),
    ?assertMatch(#{resumed := 0}, offer(Kept, ThirdPort, Config, Other)),
    ?assertEqual(0, journal(Third, applied)),
    stop_all([{Third, ThirdPort} | Nodes]).

a_listener_without_a_name_shares_nothing(Config) ->
    Valkey = start_valkey(Config),
    {Node, Port} = start_node(journal(Valkey, Config, []) ++ [{scope, listener}], [], Config),
    Saved = save(1, Port, Config),
    ?assertMatch(#{resumed := 1}, offer(Saved, Port, Config)),
    [#{journal := undefined}] = servers(Node),
    ?assertEqual("0", rekindle_valkey:command(Valkey, ["DBSIZE"])),
    [{warning, Line}] = rekindle_node:call(Node, rekindle_admin, findings, []),
    ?assertNotEqual(nomatch, string:find(Line, "write {scope, #{" ++ integer_to_list(Port) ++ " => ")),
    rekindle_node:stop(Node).

names_are_kept_apart(Config) ->
    Valkey = start_valkey(Config),
    [{First, FirstPort}] = start_nodes(1, Valkey, Config),
    Other = rekindle_node:free_port(),
    {Second, SecondPort} = start_node(journal(Valkey, Config, []) ++ [{scope, #{Other => another}}], [{port, Other}], Config),
    Saved = save(1, FirstPort, Config),
    await_written(First, 1),
    _ = save(2, SecondPort, Config),
    await_written(Second, 1),
    ?assertMatch(#{resumed := 0}, offer(Saved, SecondPort, Config)),
    ?assertEqual({0, 0}, {journal(First, applied), journal(Second, applied)}),
    stop_all([{First, 0}, {Second, 0}]).

other_keys_open_nothing(Config) ->
    Valkey = start_valkey(Config),
    [{First, FirstPort}] = start_nodes(1, Valkey, Config),
    KeyFile = filename:join(?config(dir, Config), "other_keys"),
    write_keys(KeyFile, [key("a")]),
    [{Second, SecondPort}] = start_nodes(1, Valkey, lists:keystore(key_file, 1, Config, {key_file, KeyFile})),
    Saved = save(1, FirstPort, Config),
    await(fun() -> journal(Second, state) =:= down end),
    ?assertMatch({match, _}, re:run(journal(Second, last_error), "do not open with the key a")),
    ?assertMatch(#{resumed := 0}, offer(Saved, SecondPort, Config)),
    ?assertMatch([{error, _}], rekindle_node:call(Second, rekindle_admin, findings, [])),
    %% What it would write is of no use to the others.
    ?assertMatch({pending, 0, #{}}, rekindle_node:call(Second, rekindle_admin, forget, [<<0:256>>])),
    ?assertEqual(up, journal(First, state)),
    {ok, Right} = file:read_file(?config(key_file, Config)),
    ok = write_keys(KeyFile, [Right]),
    %% The other one is of the full handshake.
    await(fun() -> sessions(Second) =:= 2 end),
    ?assertMatch(#{resumed := 1}, offer(Saved, SecondPort, Config)),
    stop_all([{First, 0}, {Second, 0}]).

%% The fields of its records are the same. rekindle_layout_SUITE has those whose fields are not.
a_patch_release_of_ssl_shares_its_sessions(Config) ->
    Valkey = start_valkey(Config),
    [{First, FirstPort}] = start_nodes(1, Valkey, Config),
    Saved = save(1, FirstPort, Config),
    {Second, SecondPort} = start_node(journal(Valkey, Config, []), [], Config, fun say_that_ssl_is_another/1),
    await(fun() -> sessions(Second) =:= 1 end),
    ?assertMatch(#{resumed := 1}, offer(Saved, SecondPort, Config)),
    Back = save(2, SecondPort, Config),
    await(fun() -> sessions(First) =:= 2 end),
    ?assertMatch(#{resumed := 1}, offer(Back, FirstPort, Config)),
    stop_all([{Node, 0} || Node <- [First, Second]]).

say_that_ssl_is_another(Node) ->
    rekindle_node:run(Node, fun() ->
        Env = application:get_all_env(ssl),
        {ok, [{application, ssl, Keys}]} = file:consult(code:where_is_file("ssl.app")),
        ok = application:unload(ssl),
        ok = application:load({application, ssl, lists:keystore(vsn, 1, Keys, {vsn, "0.1"})}),
        application:set_env([{ssl, Env}])
    end).

%% The option as docs/journal.md has it, and all of its table.
the_documentation_s_options_are_right(Config) ->
    {ok, Text} = file:read_file(filename:join(rekindle_checkout:root(Config), "docs/journal.md")),
    {match, Blocks} = re:run(Text, "(?s)```erlang\n(.*?)```", [global, {capture, all_but_first, list}]),
    Parsed = [
        begin
            {ok, Tokens, _} = erl_scan:string(Block ++ "."),
            {ok, {session_cb_init_args, Args}} = erl_parse:parse_term(Tokens),
            {ok, #{journal := Journal}, []} = rekindle_options:parse(Args),
            Journal
        end
     || [Block] <- Blocks
    ],
    ?assertMatch([{folder, _}, {valkey, _, _}], Parsed),
    {match, Rows} = re:run(Text, "(?m)^\\| `\\{(\\w+), .*`.* \\|", [global, {capture, all_but_first, list}]),
    Answers = ["ok", "pending"],
    Named = lists:usort([Option || [Option] <- Rows] ++ ["password_env"]) -- (["folder", "valkey"] ++ Answers),
    {error, {bad_option, Line}} = rekindle_options:parse([{journal, {valkey, "valkey://a", [{unknown, 1}]}}]),
    {match, [Allowed]} = re:run(Line, "allowed: \\[(.*)\\]", [{capture, all_but_first, list}]),
    ?assertEqual(lists:usort(string:lexemes(Allowed, ",")), Named).

%% Step by step, as docs/journal.md has it.
keys_are_rotated_without_losing_a_session(Config) ->
    Valkey = start_valkey(Config),
    [A, B, C] = [key(Id) || Id <- ["a", "b", "c"]],
    Files = [filename:join(?config(dir, Config), "keys_" ++ N) || N <- ["1", "2"]],
    [write_keys(File, [A, B]) || File <- Files],
    Nodes =
        [{First, FirstPort}, {Second, SecondPort}] = [
            hd(start_nodes(1, Valkey, lists:keystore(key_file, 1, Config, {key_file, File})))
         || File <- Files
        ],
    Step = fun(N) ->
        There = save({N, 1}, FirstPort, Config),
        Back = save({N, 2}, SecondPort, Config),
        await(fun() -> sessions(First) =:= 2 * N andalso sessions(Second) =:= 2 * N end),
        ?assertMatch(#{resumed := 1}, offer(There, SecondPort, Config)),
        ?assertMatch(#{resumed := 1}, offer(Back, FirstPort, Config))
    end,
    Step(1),
    [FirstFile, SecondFile] = Files,
    write_keys(FirstFile, [A, B, C]),
    [{_, {ok, [<<"a">>, <<"b">>, <<"c">>]}}] = rekindle_node:call(First, rekindle_admin, reload_keys, []),
    %% One seals with b already, the other with a still.
    Step(2),
    write_keys(SecondFile, [A, B, C]),
    await(fun() -> length(journal(Second, keys)) =:= 3 end),
    Step(3),
    ?assertEqual([0, 0], [lists:sum(maps:values(journal(Node, skipped))) || {Node, _} <- Nodes]),
    stop_all(Nodes).

the_doctor_sees_what_is_wrong_in_a_fleet(Config) ->
    Valkey = start_valkey(Config),
    [{First, FirstPort}] = start_nodes(1, Valkey, Config),
    #{server := #{rsa := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    {Second, _} = start_node(journal(Valkey, Config, []), [{certfile, Cert}, {keyfile, Key}], Config),
    ?assertEqual([], rekindle_node:call(First, rekindle_admin, findings, [])),
    Port = proplists:get_value(port, servers_port(Second)),
    _ = save(1, FirstPort, Config),
    _ = save(2, Port, Config, #{cipher => "ECDHE-RSA-AES256-GCM-SHA384"}),
    await(fun() -> sessions(First) =:= 2 andalso sessions(Second) =:= 2 end),
    [{note, Certificates}] = rekindle_node:call(First, rekindle_admin, findings, []),
    ?assertNotEqual(nomatch, string:find(Certificates, "2 server certificates")),
    ok = rekindle_valkey:stop(Valkey),
    await(fun() -> journal(First, state) =:= down end),
    [{error, Down} | _] = rekindle_node:call(First, rekindle_admin, findings, []),
    ?assertNotEqual(nomatch, string:find(Down, "the journal does not work")),
    ?assertEqual(nomatch, string:find(Down, maps:get(password, Valkey))),
    stop_all([{First, 0}, {Second, 0}]).

the_doctor_says_what_is_not_promised_without_a_node_folder(Config) ->
    Valkey = start_valkey(Config),
    {Node, _} = start_node(journal(Valkey, Config, []) ++ [{node_folder, none}], [], Config),
    [{note, Line}] = rekindle_node:call(Node, rekindle_admin, findings, []),
    [
        ?assertNotEqual({Line, nomatch}, {Line, string:find(Line, Part)})
     || Part <- ["node_folder", "A revocation is lost if", "wait_for_living_node"]
    ],
    rekindle_node:stop(Node).

the_doctor_sees_clocks_that_differ(Config) ->
    Valkey = start_valkey(Config),
    Proxy = rekindle_proxy:start(maps:get(port, Valkey)),
    rekindle_proxy:set(Proxy, {clock_ahead, 10}),
    {Node, _} = start_node(journal(Valkey#{port := rekindle_proxy:port(Proxy)}, Config, []), [], Config),
    await(fun() -> journal(Node, clock_ahead) > 5000 end),
    [{warning, Line}] = rekindle_node:call(Node, rekindle_admin, findings, []),
    %% An answer that comes late makes the difference seem another one.
    ?assertMatch({Line, {match, _}}, {Line, re:run(Line, "clocks .* differ by ([5-9]|1[0-5])\\.\\d s")}),
    rekindle_node:stop(Node),
    rekindle_proxy:stop(Proxy).

without_a_key_file_nodes_wait_for_it(Config) ->
    Valkey = start_valkey(Config),
    KeyFile = filename:join(?config(dir, Config), "later"),
    Later = lists:keystore(key_file, 1, Config, {key_file, KeyFile}),
    [{First, FirstPort}, {Second, SecondPort}] = Nodes = start_nodes(2, Valkey, Later),
    Saved = save(1, FirstPort, Config),
    ?assertMatch(#{resumed := 1}, offer(Saved, FirstPort, Config)),
    ?assertMatch(#{resumed := 0}, offer(Saved, SecondPort, Config)),
    await(fun() -> journal(First, state) =:= down end),
    [{error, Line}] = rekindle_node:call(First, rekindle_admin, findings, []),
    ?assertNotEqual({Line, nomatch}, {Line, string:find(Line, KeyFile)}),
    %% It is the same on all: nobody makes one.
    ?assertNot(filelib:is_file(KeyFile)),
    write_keys(KeyFile, [key("a")]),
    await(fun() -> sessions(First) =:= 2 andalso sessions(Second) =:= 2 end),
    ?assertMatch(#{resumed := 1}, offer(Saved, SecondPort, Config)),
    ?assertEqual([], rekindle_node:call(First, rekindle_admin, findings, [])),
    stop_all(Nodes).

the_metrics_have_the_journal(Config) ->
    Valkey = start_valkey(Config),
    [{Node, Port}] = start_nodes(1, Valkey, Config),
    _ = save(1, Port, Config),
    await_written(Node, 1),
    Text = unicode:characters_to_list(iolist_to_binary(rekindle_node:call(Node, rekindle_prometheus, text, []))),
    Labels = "role=\"server\",transport=\"tls\",scope=\"shared: fleet\"",
    [Written, Bytes] = [integer_to_list(journal(Node, Key)) || Key <- [written, written_bytes]],
    [
        ?assertNotEqual({Line, nomatch}, {Line, string:find(Text, Line)})
     || Line <- [
            "rekindle_journal_up{" ++ Labels ++ "} 1\n",
            "rekindle_journal_written_records_total{" ++ Labels ++ "} " ++ Written ++ "\n",
            "rekindle_journal_written_bytes_total{" ++ Labels ++ "} " ++ Bytes ++ "\n",
            "rekindle_journal_skipped_records_total{" ++ Labels ++ ",reason=\"forged\"} 0\n",
            "rekindle_journal_skipped_records_total{" ++ Labels ++ ",reason=\"log\"} 0\n",
            "rekindle_journal_unwritten_revocations{" ++ Labels ++ "} 0\n",
            "rekindle_journal_missing_revocations{" ++ Labels ++ "} 0\n",
            "rekindle_journal_node_folder_up{" ++ Labels ++ "} 1\n"
        ]
    ],
    rekindle_node:stop(Node).

it_works_over_tls(Config) ->
    #{ca := OtherCa} = ?config(certs, Config),
    #{ca := Ca} = Files = openssl_certs(?config(dir, Config)),
    Valkey = start_valkey(Config, #{tls => Files}),
    PasswordFile = filename:join(?config(dir, Config), "password"),
    ok = file:write_file(PasswordFile, [maps:get(password, Valkey), "\n"]),
    Url = rekindle_valkey:url(Valkey, ""),
    Journal = fun(CaFile) ->
        [{journal, {valkey, Url, [{key_file, ?config(key_file, Config)}, {password_file, PasswordFile}, {ca_file, CaFile}]}}]
    end,
    Nodes = [{First, FirstPort}, {Second, SecondPort}] = [start_node(Journal(Ca), [], Config) || _ <- [1, 2]],
    Saved = save(1, FirstPort, Config),
    await(fun() -> sessions(Second) =:= 1 end),
    ?assertMatch(#{resumed := 1}, offer(Saved, SecondPort, Config)),
    {Third, _} = start_node(Journal(OtherCa), [], Config),
    await(fun() -> journal(Third, state) =:= down end),
    ?assertEqual({0, up}, {sessions(Third), journal(First, state)}),
    stop_all([{Third, 0} | Nodes]).

a_server_that_asks_for_a_certificate_gets_it(Config) ->
    #{ca := Ca, cert := Cert, key := Key} = Files = openssl_certs(?config(dir, Config)),
    Valkey = start_valkey(Config, #{tls => Files, options => ["--tls-auth-clients", "yes"]}),
    Journal = fun(More) -> journal(Valkey, Config, [{ca_file, Ca} | More]) end,
    Nodes =
        [{_, FirstPort}, {Second, SecondPort}] =
        [start_node(Journal([{tls_cert_file, Cert}, {tls_key_file, Key}]), [], Config) || _ <- [1, 2]],
    Saved = save(1, FirstPort, Config),
    await(fun() -> sessions(Second) =:= 1 end),
    ?assertMatch(#{resumed := 1}, offer(Saved, SecondPort, Config)),
    {Third, _} = start_node(Journal([]), [], Config),
    await(fun() -> journal(Third, state) =:= down end),
    ?assertEqual(0, sessions(Third)),
    stop_all([{Third, 0} | Nodes]).

it_works_with_a_cluster(Config) ->
    Servers = [
        start_valkey(Config, #{
            options => ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--masterauth", "pass word/1"]
        })
     || _ <- [1, 2, 3]
    ],
    [One | _] = Servers,
    Addresses = [lists:concat(["127.0.0.1:", Port]) || #{port := Port} <- Servers],
    ct:log("~s", [
        rekindle_valkey:command(One, ["--cluster", "create" | Addresses] ++ ["--cluster-replicas", "0", "--cluster-yes"])
    ]),
    await(fun() -> string:find(rekindle_valkey:command(One, ["CLUSTER", "INFO"]), "cluster_state:ok") =/= nomatch end),
    Nodes =
        [{First, FirstPort}, {Second, SecondPort}] =
        [start_node(journal(One, Config, [{cluster, true}, {partitions, 8}]), [], Config) || _ <- [1, 2]],
    %% Records that wait until the log is known go to one of the servers.
    await(fun() -> journal(First, replay) =/= undefined end),
    Saved = [save(N, FirstPort, Config) || N <- lists:seq(1, 12)],
    await(fun() -> sessions(Second) =:= 12 end),
    [?assertMatch(#{resumed := 1}, offer(File, SecondPort, Config)) || File <- Saved],
    %% Each of the servers gets some of them. Those that are written at once go to one partition.
    await(fun() ->
        _ = save(more, FirstPort, Config),
        Keys = [rekindle_valkey:command(Server, ["DBSIZE"]) || Server <- Servers],
        ct:log("~p", [Keys]),
        not lists:member("0", Keys)
    end),
    {Third, ThirdPort} = start_node(journal(One, Config, [{cluster, true}, {partitions, 8}]), [], Config),
    await(fun() -> sessions(Third) =:= sessions(First) end),
    stop_all([{Third, ThirdPort} | Nodes]).

%% ---- helpers ----

start_valkey(Config) ->
    start_valkey(Config, #{}).

start_valkey(Config, Wanted) ->
    Dir = filename:join(?config(dir, Config), "server" ++ integer_to_list(erlang:unique_integer([positive]))),
    rekindle_valkey:start(?config(program, Config), Dir, Wanted).

start_nodes(Count, Valkey, Config) ->
    [start_node(journal(Valkey, Config, []), [], Config) || _ <- lists:seq(1, Count)].

journal(Valkey, Config, More) ->
    [{journal, {valkey, rekindle_valkey:url(Valkey), [{key_file, ?config(key_file, Config)} | More]}}].

start_node(Args, TlsOptions, Config) ->
    start_node(Args, TlsOptions, Config, fun(_) -> ok end).

start_node(Args, TlsOptions, Config, BeforeSsl) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Port = proplists:get_value(port, TlsOptions, rekindle_node:free_port()),
    Scope = [{scope, #{Port => fleet}} || not lists:keymember(scope, 1, Args)],
    Folder = [
        {node_folder, filename:join(?config(dir, Config), "node_" ++ integer_to_list(Port))}
     || not lists:keymember(node_folder, 1, Args)
    ],
    Node = rekindle_node:start([
        {session_cb_init_args, [Option || {_, Value} = Option <- Args ++ Scope ++ Folder, Value =/= none]}
    ]),
    ok = BeforeSsl(Node),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    Own = [{certfile, Cert}, {keyfile, Key}, {port, Port}, {versions, ['tlsv1.2']}],
    Options = TlsOptions ++ [Option || {Name, _} = Option <- Own, not lists:keymember(Name, 1, TlsOptions)],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, Options]),
    {Node, Port}.

servers_port(Node) ->
    [Sockets] = [rekindle_node:call(Node, rekindle_nif, sockets, [Label]) || #{scope := Label} <- servers(Node)],
    rekindle_node:run(Node, fun() ->
        [{port, Port} || Socket <- Sockets, {ok, Port} <- [inet:port(list_to_port(Socket))]]
    end).

stop_all(Nodes) ->
    [rekindle_node:stop(Node) || {Node, _} <- Nodes],
    ok.

%% An authority, and a certificate for 127.0.0.1, in a form that rustls accepts. It rejects public_key's test certificates, which
%% name the curve in the wrong place.
openssl_certs(Dir) ->
    [Ca, CaKey, Request, Cert, Key] = [
        filename:join(Dir, File)
     || File <- ["ca.pem", "ca.key", "server.csr", "server.pem", "server.key"]
    ],
    New = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test"],
    [
        {0, _} = rekindle_clients:run("openssl", Args, [], 10_000)
     || Args <- [
            ["req", "-x509", "-days", "2", "-keyout", CaKey, "-out", Ca | New],
            ["req", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", Key, "-out", Request | New],
            [
                "x509",
                "-req",
                "-in",
                Request,
                "-CA",
                Ca,
                "-CAkey",
                CaKey,
                "-CAcreateserial",
                "-copy_extensions",
                "copy",
                "-days",
                "2",
                "-out",
                Cert
            ]
        ]
    ],
    #{ca => Ca, cert => Cert, key => Key}.

await(Condition) ->
    rekindle_node:await(Condition).

sessions(Node) ->
    [#{sessions := Sessions}] = servers(Node),
    Sessions.
