%% Tests the checks of a resumption: sessions of expired and of revoked certificates must not resume.
-module(rekindle_trust_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

all() ->
    [{group, validity}, {group, lists}, {group, selectors}, {group, doctor}].

groups() ->
    [
        {validity, [], [
            a_session_is_not_resumed_after_its_certificate_has_ended,
            sessions_of_certificates_that_have_ended_are_resumed_where_that_is_wanted,
            a_session_in_a_journal_is_not_resumed_after_its_certificate_has_ended,
            a_certificate_in_another_form_is_not_resumed,
            wrong_options_are_refused
        ]},
        {lists, [], [
            a_client_that_is_on_a_list_is_not_resumed,
            a_list_is_read_again_when_it_changes,
            what_was_read_holds_when_a_list_is_lost,
            nothing_is_resumed_until_all_lists_were_read,
            a_list_that_is_too_old_ends_resumptions_of_its_issuer,
            lists_that_do_without_another_one_are_found,
            a_list_that_is_gone_does_not_end_resumptions,
            a_session_in_a_journal_is_not_replayed_when_it_is_revoked,
            lists_say_what_public_key_says,
            a_watcher_that_ends_sees_a_list_that_is_opened
        ]},
        {selectors, [], [
            an_authority_is_named_in_any_spelling,
            many_selectors_are_given_at_once
        ]},
        {doctor, [], [
            authorities_that_have_changed_are_found,
            revocation_lists_of_the_listener_alone_are_found,
            cipher_suites_that_were_taken_away_are_found,
            cipher_suites_of_server_names_are_no_reason_to_flush,
            cipher_suites_that_were_taken_away_are_not_resumed_from_a_journal,
            cipher_suites_that_another_listener_under_the_name_allows_are_resumed,
            cipher_suites_that_were_taken_away_are_logged_when_a_journal_was_read,
            server_names_with_checks_of_their_own_are_found,
            random_ids_are_distinguished_from_lost_sessions
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
    {Short, End} = ending_in(20, "short", Config),
    Long = rekindle_ca:issue(?config(ca, Config), "long"),
    [?assertEqual(full, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Short, Long]],
    [?assertEqual(resumed, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Short, Long]],
    ?assertMatch([Left] when Left =< 20, time_left(Node, Tls, "short")),
    ?assertMatch([Left] when Left > 86_000, time_left(Node, Tls, "long")),
    await_end(End),
    [
        begin
            ?assertEqual(refused, connect(Server, Short, Config)),
            ?assertEqual(resumed, connect(Server, Long, Config)),
            ?assertMatch(
                #{certificate_misses := 1, certificate_misses_by := #{expired := 1, revoked := 0, unknown := 0}, misses := 1},
                info(Node, Server)
            ),
            %% The session is not dropped.
            ?assertEqual([0], time_left(Node, Server, "short"))
        end
     || Server <- [Tls, Dtls]
    ],
    rekindle_node:stop(Node).

sessions_of_certificates_that_have_ended_are_resumed_where_that_is_wanted(Config) ->
    Node = start_node([{expired_certificates, resume}]),
    Server = {tls, start(Node, tls, Config)},
    {Short, End} = ending_in(12, "tolerated", Config),
    full = connect(Server, Short, Config),
    await_end(End),
    ?assertEqual(resumed, connect(Server, Short, Config)),
    ?assertMatch(#{certificate_misses := 0, hits := 1}, info(Node, Server)),
    ?assertMatch([Left] when Left > 80_000, time_left(Node, Server, "tolerated")),
    rekindle_node:stop(Node).

%% OTP verifies what is signed. A client can write the rest of its certificate as it likes, and would have a session whose end,
%% issuer and fingerprint nobody finds.
a_certificate_in_another_form_is_not_resumed(Config) ->
    Node = start_node([]),
    Server = {tls, Port} = {tls, start(Node, tls, Config)},
    #{cert := Cert, key := Key} = rekindle_ca:issue(?config(ca, Config), "formed"),
    {ok, Pem} = file:read_file(Cert),
    [{'Certificate', Der, not_encrypted}] = public_key:pem_decode(Pem),
    Twice = fun(Form) ->
        case visit(Port, Form, Key, {reuse_sessions, false}) of
            {Id, _} = Session -> [Id, element(1, visit(Port, Form, Key, {reuse_session, Session}))];
            refused -> refused
        end
    end,
    ?assertMatch([Id, Id] when is_binary(Id), Twice(Der)),
    Visits = [{Name, Twice(Form)} || {Name, Form} <- forms(Der)],
    ?assertEqual([], [Visit || {_, [Id, Id]} = Visit <- Visits]),
    Accepted = [Name || {Name, Ids} <- Visits, Ids =/= refused],
    Refused = 2 * length(Accepted),
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch(#{refused_by := #{certificate := Refused}, sessions := 1}, info(Node, Server)),
    rekindle_node:stop(Node),
    {comment, io_lib:format("OTP accepts ~0p", [Accepted])}.

%% Of one certificate. What is signed is the same in all.
forms(<<16#30, 16#82, Length:16, Content/binary>> = Der) ->
    SignedBytes = length_of(Content),
    <<Signed:SignedBytes/binary, AlgorithmAndSignature/binary>> = Content,
    AlgorithmBytes = length_of(AlgorithmAndSignature),
    <<Algorithm:AlgorithmBytes/binary, 3, SignatureBytes, Signature/binary>> = AlgorithmAndSignature,
    [
        {longer_length, <<16#30, 16#83, 0, Length:16, Content/binary>>},
        {indefinite_length, <<16#30, 16#80, Content/binary, 0, 0>>},
        {longer_tag, <<16#3F, 16#10, 16#82, Length:16, Content/binary>>},
        {bytes_at_the_end, <<Der/binary, 0>>},
        {longer_length_of_the_signature,
            <<16#30, 16#82, (Length + 1):16, Signed/binary, Algorithm/binary, 3, 16#81, SignatureBytes, Signature/binary>>},
        {an_element_more, <<16#30, 16#82, (Length + 2):16, Content/binary, 5, 0>>}
    ].

%% Of the first element, with its tag and length.
length_of(<<16#30, 16#82, Length:16, _/binary>>) -> 4 + Length;
length_of(<<16#30, 16#81, Length, _/binary>>) -> 3 + Length;
length_of(<<16#30, Length, _/binary>>) when Length < 16#80 -> 2 + Length.

%% The session.
visit(Port, Der, Key, Reuse) ->
    Options = [{cert, Der}, {keyfile, Key}, {verify, verify_none}, {versions, ['tlsv1.2']}, {active, false}, Reuse],
    case ssl:connect("127.0.0.1", Port, Options, 10_000) of
        {ok, Socket} ->
            ok = ssl:send(Socket, "echo\n"),
            {ok, _} = ssl:recv(Socket, 0, 10_000),
            {ok, Session} = ssl:connection_information(Socket, [session_id, session_data]),
            ok = ssl:close(Socket),
            {proplists:get_value(session_id, Session), proplists:get_value(session_data, Session)};
        {error, _} ->
            refused
    end.

a_session_in_a_journal_is_not_resumed_after_its_certificate_has_ended(Config) ->
    Options = [{journal, {folder, filename:join(?config(dir, Config), "journal")}}],
    Port = rekindle_node:free_port(),
    Run = fun() ->
        Node = start_node(Options),
        {Node, {tls, start(Node, tls, [{port, Port}], Config)}}
    end,
    {First, Server} = Run(),
    {Short, End} = ending_in(15, "journaled", Config),
    Long = rekindle_ca:issue(?config(ca, Config), "journaled_long"),
    [full = connect(Server, Client, Config) || Client <- [Short, Long]],
    rekindle_journals:await_written(First, 2),
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
     || Option <- [
            {expired_certificates, true},
            {expired_certificates, undefined},
            {stale_crls, true},
            {crls, "ca.crl"},
            {crls, [""]},
            {crls, ["a\0b"]},
            {crls, [ca]},
            {crls, ["ca.crl" | "ca.crl"]}
        ]
    ],
    [
        ?assertMatch({error, {bad_option, _}}, rekindle_options:parse_limits([Option]))
     || Option <- [{expired_certificates, resume}, {crls, []}, {stale_crls, resume}]
    ].

%% ---- revocation lists ----

%% The listener has the same folder as its own.
a_client_that_is_on_a_list_is_not_resumed(Config) ->
    #{cert := CaFile} = Ca = rekindle_ca:new(dir("ca", Config), "Listed CA"),
    [Good, Bad] = [rekindle_ca:issue(Ca, Name) || Name <- ["good", "bad"]],
    Folder = dir("lists", Config),
    {0, Hash} = rekindle_clients:run("openssl", ["x509", "-in", CaFile, "-noout", "-hash"], [], 15_000),
    File = filename:join(Folder, string:trim(binary_to_list(Hash)) ++ ".r0"),
    rekindle_ca:list(Ca, File),
    Node = start_node([{crls, [Folder]}]),
    Checks = [{cacertfile, CaFile}, {crl_check, peer}, {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Folder}]}}}],
    [Tls, Dtls] = [{Proto, start(Node, Proto, Checks, Config)} || Proto <- [tls, dtls]],
    await_lists(Node, 0),
    [?assertEqual(full, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Good, Bad]],
    [?assertEqual(resumed, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Good, Bad]],
    rekindle_ca:revoke(Ca, Bad),
    rekindle_ca:list(Ca, File),
    await_lists(Node, 1),
    [
        begin
            ?assertEqual(refused, connect(Server, Bad, Config)),
            ?assertEqual(resumed, connect(Server, Good, Config)),
            ?assertMatch(
                #{certificate_misses := 1, certificate_misses_by := #{expired := 0, revoked := 1, unknown := 0}},
                info(Node, Server)
            ),
            ?assertEqual([0], time_left(Node, Server, "bad"))
        end
     || Server <- [Tls, Dtls]
    ],
    ?assertMatch(
        [
            #{
                path := File,
                issuer := <<"O=Example,CN=Listed CA">>,
                entries := 1,
                this_update := {_, _},
                next_update := {_, _},
                delta := false,
                error := undefined
            }
        ],
        rekindle_node:call(Node, rekindle_admin, crls, [])
    ),
    ?assertEqual([], findings(Node)),
    rekindle_node:stop(Node).

a_list_is_read_again_when_it_changes(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Changing CA"),
    Clients = [rekindle_ca:issue(Ca, Name) || Name <- ["one", "two", "three"]],
    File = filename:join(?config(dir, Config), "ca.crl"),
    rekindle_ca:list(Ca, File),
    Node = start_node([{crls, [File]}]),
    Server = {tls, start(Node, tls, [{cacertfile, maps:get(cert, Ca)}], Config)},
    await_lists(Node, 0),
    [full = connect(Server, Client, Config) || Client <- Clients],
    Replace = [
        %% The file is replaced by a rename.
        fun(Source) -> ok = file:rename(Source, File) end,
        %% The file is rewritten in place.
        fun(Source) ->
            {ok, List} = file:read_file(Source),
            ok = file:write_file(File, List)
        end,
        %% The list is DER, behind a link.
        fun(Source) ->
            Der = Source ++ ".der",
            {0, _} = rekindle_clients:run("openssl", ["crl", "-in", Source, "-outform", "DER", "-out", Der], [], 15_000),
            ok = file:delete(File),
            ok = file:make_symlink(Der, File)
        end
    ],
    [
        begin
            Offer = fun() -> connect(Server, Client, Config) end,
            ?assertEqual(resumed, Offer()),
            rekindle_ca:revoke(Ca, Client),
            rekindle_ca:list(Ca, File ++ ".new"),
            Do(File ++ ".new"),
            Begun = erlang:monotonic_time(millisecond),
            rekindle_node:await(fun() -> Offer() =:= full end),
            ct:log("after ~b ms", [erlang:monotonic_time(millisecond) - Begun])
        end
     || {Client, Do} <- lists:zip(Clients, Replace)
    ],
    rekindle_node:stop(Node).

what_was_read_holds_when_a_list_is_lost(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Lost CA"),
    [Good, Bad] = [rekindle_ca:issue(Ca, Name) || Name <- ["good", "bad"]],
    Folder = dir("lists", Config),
    [File, InFolder] = [filename:join(?config(dir, Config), "ca.crl"), filename:join(Folder, "ca.crl")],
    rekindle_ca:list(Ca, File),
    {ok, Empty} = file:read_file(File),
    rekindle_ca:revoke(Ca, Bad),
    rekindle_ca:list(Ca, InFolder),
    {ok, List} = file:read_file(InFolder),
    Log = filename:join(?config(dir, Config), "log"),
    Node = start_node([{crls, [File, Folder]}]),
    log_to(Node, Log),
    Server = {tls, start(Node, tls, [{cacertfile, maps:get(cert, Ca)}], Config)},
    await_lists(Node, 1),
    [full = connect(Server, Client, Config) || Client <- [Good, Bad]],
    Holds = fun(Finding, Line) ->
        rekindle_node:await(fun() -> findings(Node) =/= [] end),
        ?assertMatch([{warning, _}], findings(Node)),
        [{_, Found}] = findings(Node),
        ?assertMatch({match, _}, re:run(Found, Finding)),
        rekindle_node:await(fun() -> logged(Log, Line) =:= 1 end),
        ?assertEqual(full, connect(Server, Bad, Config)),
        ?assertEqual(resumed, connect(Server, Good, Config))
    end,
    Mend = fun() ->
        ok = filelib:ensure_dir(InFolder),
        [
            ok = rekindle_ca:replace(Name, fun(Made) -> file:write_file(Made, Content) end)
         || {Name, Content} <- [{File, Empty}, {InFolder, List}]
        ],
        rekindle_node:await(fun() -> findings(Node) =:= [] end)
    end,
    %% The file is cut off.
    ok = file:write_file(InFolder, binary:part(List, 0, byte_size(List) - 40)),
    Holds("lists/ca.crl cannot be read again: it ends too early", "lists/ca.crl cannot be read again: it ends too early"),
    Mend(),
    %% A failed download leaves such a file.
    ok = file:write_file(InFolder, "<html>404</html>"),
    Holds("it is not a revocation list", "lists/ca.crl cannot be read again: it is not a revocation list"),
    Mend(),
    ok = file:delete(File),
    Holds("ca.crl cannot be read again: it is not there", "/ca.crl cannot be read again: it is not there"),
    Mend(),
    %% Root may read everything, but not a link to itself.
    ok = rekindle_ca:replace(InFolder, fun(Made) -> file:make_symlink(InFolder, Made) end),
    Holds("lists/ca.crl cannot be read again: it cannot be read: ", "lists/ca.crl cannot be read again: it cannot be read: "),
    Mend(),
    %% The only list in a file is replaced by that of another authority.
    rekindle_ca:list(?config(ca, Config), InFolder),
    Holds(
        "lists/ca.crl cannot be read again: a list is no longer in it",
        "lists/ca.crl cannot be read again: a list is no longer in it"
    ),
    Mend(),
    ok = file:rename(Folder, Folder ++ ".away"),
    Holds("lists cannot be read again: it is not there", "lists cannot be read again: it is not there"),
    Mend(),
    ok = file:delete(InFolder),
    rekindle_node:await(fun() -> findings(Node) =/= [] end),
    Holds("lists/ca.crl cannot be read again: it is no longer there", "lists/ca.crl is no longer there"),
    rekindle_node:stop(Node).

nothing_is_resumed_until_all_lists_were_read(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Late CA"),
    Client = rekindle_ca:issue(Ca, "client"),
    File = filename:join(?config(dir, Config), "ca.crl"),
    [Node, Tolerant] = [start_node([{crls, [File]} | More]) || More <- [[], [{stale_crls, resume}]]],
    Start = fun(N) -> {tls, start(N, tls, [{cacertfile, maps:get(cert, Ca)}], Config)} end,
    [Server, Other] = [Start(N) || N <- [Node, Tolerant]],
    [full = connect(S, Client, Config) || S <- [Server, Other]],
    rekindle_node:await(fun() -> length(findings(Node)) =:= 2 end),
    ?assertMatch([{error, _}, {error, _}], findings(Node)),
    ?assertEqual(full, connect(Server, Client, Config)),
    ?assertMatch(#{certificate_misses_by := #{unknown := 1}}, info(Node, Server)),
    rekindle_node:await(fun() -> connect(Other, Client, Config) =:= resumed end),
    rekindle_ca:list(Ca, File),
    await_lists(Node, 0),
    ?assertEqual(resumed, connect(Server, Client, Config)),
    ?assertEqual([], findings(Node)),
    [rekindle_node:stop(N) || N <- [Node, Tolerant]].

a_list_that_is_too_old_ends_resumptions_of_its_issuer(Config) ->
    [Ca, Other] = Cas = [rekindle_ca:new(dir(Name, Config), Name) || Name <- ["old", "young"]],
    [Client, Stranger] = [rekindle_ca:issue(C, "client") || C <- Cas],
    File = filename:join(?config(dir, Config), "ca.crl"),
    Certs = filename:join(?config(dir, Config), "cas.pem"),
    ok = file:write_file(Certs, [element(2, {ok, _} = file:read_file(Cert)) || #{cert := Cert} <- [Ca, Other]]),
    Log = filename:join(?config(dir, Config), "log"),
    Node = start_node([{crls, [File]}]),
    log_to(Node, Log),
    Tolerant = start_node([{crls, [File]}, {stale_crls, resume}]),
    [Server, Tolerated] = [{tls, start(N, tls, [{cacertfile, Certs}], Config)} || N <- [Node, Tolerant]],
    rekindle_ca:list(Ca, File, ["-crlsec", "15"]),
    [await_lists(N, 0) || N <- [Node, Tolerant]],
    [{_, End}] = rekindle_node:call(Node, rekindle_crls, next_updates, []),
    [full = connect(S, C, Config) || S <- [Server, Tolerated], C <- [Client, Stranger]],
    ?assertEqual(resumed, connect(Server, Client, Config)),
    [{warning, Soon}] = findings(Node),
    ?assertMatch({match, _}, re:run(Soon, "the revocation list of O=Example,CN=old in .*ca.crl expires at")),
    await_end(End + 1),
    ?assertEqual(full, connect(Server, Client, Config)),
    ?assertEqual(resumed, connect(Server, Stranger, Config)),
    ?assertEqual(resumed, connect(Tolerated, Client, Config)),
    ?assertMatch(#{certificate_misses := 1, certificate_misses_by := #{unknown := 1}}, info(Node, Server)),
    [{error, Ended}] = findings(Node),
    ?assertMatch({match, _}, re:run(Ended, "the revocation list of O=Example,CN=old in .*ca.crl expired at")),
    rekindle_node:await(fun() -> logged(Log, "the list of O=Example,CN=old expired at") =:= 1 end),
    rekindle_ca:list(Ca, File),
    rekindle_node:await(fun() -> connect(Server, Client, Config) =:= resumed end),
    ?assertEqual([], findings(Node)),
    [rekindle_node:stop(N) || N <- [Node, Tolerant]].

%% Whenever the sessions of an authority are not resumed, the doctor and the log say why.
lists_that_do_without_another_one_are_found(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Partial CA"),
    Client = rekindle_ca:issue(Ca, "client"),
    Folder = dir("lists", Config),
    [Delta, Whole, Part] = [filename:join(Folder, Name) || Name <- ["delta.crl", "whole.crl", "part.crl"]],
    rekindle_ca:list(Ca, Delta, ["-crlexts", "delta_list"]),
    Log = filename:join(?config(dir, Config), "log"),
    Node = start_node([{crls, [Folder]}]),
    log_to(Node, Log),
    Server = {tls, start(Node, tls, [{cacertfile, maps:get(cert, Ca)}], Config)},
    await_lists(Node, 0),
    full = connect(Server, Client, Config),
    ?assertEqual(full, connect(Server, Client, Config)),
    [{error, Lone}] = findings(Node),
    ?assertMatch(
        {match, _}, re:run(Lone, "delta.crl is a delta list of O=Example,CN=Partial CA, and its base list is not there")
    ),
    rekindle_node:await(fun() -> logged(Log, "delta.crl is a delta list of") =:= 1 end),
    rekindle_ca:list(Ca, Whole),
    rekindle_node:await(fun() -> findings(Node) =:= [] end),
    ?assertEqual(resumed, connect(Server, Client, Config)),
    %% The list of one part does not help where that of another part has ended.
    rekindle_ca:list(Ca, Part, ["-crlexts", "part_list", "-crlsec", "2"]),
    rekindle_node:await(fun() -> connect(Server, Client, Config) =:= full end),
    rekindle_node:await(fun() -> logged(Log, "part.crl: the list of O=Example,CN=Partial CA expired at") =:= 1 end),
    [{error, Ended}] = findings(Node),
    ?assertMatch({match, _}, re:run(Ended, "the revocation list of O=Example,CN=Partial CA in .*part.crl expired at")),
    [{_, End}] = rekindle_node:call(Node, rekindle_crls, next_updates, []),
    ?assert(End < erlang:system_time(second)),
    rekindle_node:stop(Node).

%% The authority adds a distribution point, so no list ever replaces the old one.
a_list_that_is_gone_does_not_end_resumptions(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Moving CA"),
    [Good, Bad] = [rekindle_ca:issue(Ca, Name) || Name <- ["good", "bad"]],
    Folder = dir("lists", Config),
    [Old, New] = [filename:join(Folder, Name) || Name <- ["old.crl", "new.crl"]],
    Log = filename:join(?config(dir, Config), "log"),
    Node = start_node([{crls, [Folder]}]),
    log_to(Node, Log),
    Server = {tls, start(Node, tls, [{cacertfile, maps:get(cert, Ca)}], Config)},
    [full = connect(Server, Client, Config) || Client <- [Good, Bad]],
    rekindle_ca:revoke(Ca, Bad),
    rekindle_ca:list(Ca, Old, ["-crlsec", "15"]),
    await_lists(Node, 1),
    [{_, End}] = rekindle_node:call(Node, rekindle_crls, next_updates, []),
    ?assertEqual([resumed, full], [connect(Server, Client, Config) || Client <- [Good, Bad]]),
    %% Times in lists are whole seconds.
    timer:sleep(1100),
    rekindle_ca:list(Ca, New, ["-crlexts", "part_list"]),
    ok = file:delete(Old),
    rekindle_node:await(fun() -> logged(Log, "old.crl is no longer there") =:= 1 end),
    await_end(End + 1),
    ?assertEqual([resumed, full], [connect(Server, Client, Config) || Client <- [Good, Bad]]),
    [{warning, Gone}] = findings(Node),
    ?assertMatch({match, _}, re:run(Gone, "old.crl cannot be read again: it is no longer there")),
    [{_, Next}] = rekindle_node:call(Node, rekindle_crls, next_updates, []),
    ?assert(Next > erlang:system_time(second) + 1000),
    ?assertEqual(0, logged(Log, "expired at")),
    rekindle_node:stop(Node).

a_session_in_a_journal_is_not_replayed_when_it_is_revoked(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Journal CA"),
    [Good, Bad] = [rekindle_ca:issue(Ca, Name) || Name <- ["good", "bad"]],
    File = filename:join(?config(dir, Config), "ca.crl"),
    rekindle_ca:list(Ca, File),
    Port = rekindle_node:free_port(),
    Run = fun() ->
        Node = start_node([{crls, [File]}, {journal, {folder, filename:join(?config(dir, Config), "journal")}}]),
        {Node, {tls, start(Node, tls, [{port, Port}, {cacertfile, maps:get(cert, Ca)}], Config)}}
    end,
    {First, Server} = Run(),
    await_lists(First, 0),
    [full = connect(Server, Client, Config) || Client <- [Good, Bad]],
    rekindle_journals:await_written(First, 2),
    ok = rekindle_node:call(First, init, stop, []),
    rekindle_node:stop(First),
    rekindle_ca:revoke(Ca, Bad),
    rekindle_ca:list(Ca, File),
    {Second, Server} = Run(),
    await_lists(Second, 1),
    rekindle_node:await(fun() -> is_integer(maps:get(replay, maps:get(journal, info(Second, Server)))) end),
    ?assertEqual(resumed, connect(Server, Good, Config)),
    ?assertEqual(full, connect(Server, Bad, Config)),
    %% Told at the replay, or at the lookup if the lists were read after it.
    #{certificate_misses_by := #{revoked := Missed}, journal := #{skipped := #{revoked := Skipped}}} = info(Second, Server),
    ?assertEqual(1, Missed + Skipped),
    rekindle_node:stop(Second).

%% Lists of openssl's with random entries, and random certificates.
lists_say_what_public_key_says(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Random CA"),
    {ok, _} = application:ensure_all_started(ssl),
    Property = proper:forall(entries(), fun(Entries) -> is_as_public_key_says(Entries, Ca, Config) end),
    true = proper:quickcheck(Property, [{numtests, 15}, {max_size, 30}, {to_file, user}]).

entries() ->
    Small = proper_types:integer(1, 50),
    Large = proper_types:integer(1 bsl 120, 1 bsl 158),
    Reasons = ["", ",unspecified", ",keyCompromise", ",CACompromise", ",superseded", ",certificateHold", ",removeFromCRL"],
    Entry = {proper_types:oneof([Small, Large]), proper_types:oneof([none, proper_types:oneof(Reasons)])},
    proper_types:list(Entry).

is_as_public_key_says(Entries, #{dir := Dir, cert := CaCert, key := CaKey} = Ca, Config) ->
    Unique = maps:to_list(maps:from_list(Entries)),
    Lines = [
        ["R\t400101000000Z\t260101000000Z", Reason, "\t", hexadecimal(Serial), "\tunknown\t/CN=x\n"]
     || {Serial, Reason} <- Unique, Reason =/= none
    ],
    ok = file:write_file(filename:join(Dir, "index.txt"), Lines),
    File = filename:join(?config(dir, Config), integer_to_list(erlang:unique_integer([positive])) ++ ".crl"),
    rekindle_ca:list(Ca, File),
    Cache = rekindle:init([{role, server}, {crls, [File]}]),
    rekindle_node:await(fun() ->
        [true || #{path := P, issuer := I} <- rekindle_admin:crls(), P =:= File, I =/= undefined] =/= []
    end),
    [ListDer] = ders(File),
    [Authority] = [public_key:pkix_decode_cert(Der, otp) || Der <- ders(CaCert)],
    {ok, KeyPem} = file:read_file(CaKey),
    [Key | _] = [
        public_key:pem_entry_decode(Entry)
     || {Type, _, _} = Entry <- public_key:pem_decode(KeyPem), Type =/= 'EcpkParameters'
    ],
    lists:all(
        fun({Serial, _}) ->
            Der = signed(Serial, Authority, Key),
            Session = setelement(4, rekindle_sessions:make({session, otp_25, verified, 1}, <<Serial:256>>), Der),
            ok = rekindle:update(Cache, <<Serial:256>>, Session),
            IsResumed = rekindle:lookup(Cache, <<Serial:256>>) =/= undefined,
            IsResumed =:= (validated(Der, ListDer, Authority) =:= valid)
        end,
        Unique
    ).

validated(Der, ListDer, Authority) ->
    Certificate = public_key:pkix_decode_cert(Der, otp),
    Point = public_key:pkix_dist_point(Certificate),
    List = public_key:der_decode('CertificateList', ListDer),
    Issuer = fun(_, _, _, _) -> {ok, Authority, []} end,
    public_key:pkix_crls_validate(Certificate, [{Point, {ListDer, List}}], [{issuer_fun, {Issuer, none}}]).

%% The authority's own certificate, with another number.
signed(Serial, Authority, Key) ->
    Tbs = element(2, Authority),
    public_key:pkix_sign(setelement(3, Tbs, Serial), Key).

ders(File) ->
    {ok, Pem} = file:read_file(File),
    [Der || {_, Der, not_encrypted} <- public_key:pem_decode(Pem)].

hexadecimal(Serial) ->
    Digits = integer_to_list(Serial, 16),
    lists:duplicate(length(Digits) rem 2, $0) ++ Digits.

%% The list is opened when the watcher has asked for the last time. The watcher's name is still registered then, so that no other
%% one starts.
a_watcher_that_ends_sees_a_list_that_is_opened(_Config) ->
    Test = self(),
    Asked = fun(Watcher) ->
        receive
            {Watcher, asks} -> ok
        after 5000 -> ct:fail("the watcher does not ask")
        end
    end,
    Start = fun() ->
        Watcher = spawn_link(fun() ->
            true = register(?MODULE, self()),
            put(test, Test),
            rekindle_watcher:watch(?MODULE, 1)
        end),
        Asked(Watcher),
        Watcher ! {answer, false},
        Watcher
    end,
    Watcher = Start(),
    ok = rekindle_watcher:start(?MODULE),
    Asked(Watcher),
    Watcher ! {answer, true},
    Asked(Watcher),
    ?assertEqual(Watcher, whereis(?MODULE)),
    unlink(Watcher),
    exit(Watcher, kill),
    rekindle_node:await(fun() -> whereis(?MODULE) =:= undefined end),
    %% Another one has started in the meantime, or nothing was opened.
    [
        begin
            Ending = Start(),
            Reference = monitor(process, Ending),
            Asked(Ending),
            ?assertEqual(undefined, whereis(?MODULE)),
            IsReplaced andalso register(?MODULE, self()),
            Ending ! {answer, IsReplaced},
            receive
                {'DOWN', Reference, process, Ending, Why} -> ?assertEqual(normal, Why)
            after 5000 -> ct:fail("it does not end")
            end,
            IsReplaced andalso unregister(?MODULE)
        end
     || IsReplaced <- [true, false]
    ],
    ok.

%% Called by the watcher.
log_events() ->
    get(test) ! {self(), asks},
    receive
        {answer, IsMoreToCome} -> IsMoreToCome
    end.

%% ---- selectors ----

an_authority_is_named_in_any_spelling(Config) ->
    Ca = rekindle_ca:new(dir("ca", Config), "Spelled CA"),
    Other = rekindle_ca:new(dir("other", Config), "spelled  ca", #{mask => "default"}),
    Clients = [rekindle_ca:issue(Ca, Name) || Name <- ["one", "two"]],
    Node = start_node([]),
    Server = {tls, start(Node, tls, [{cacertfile, maps:get(cert, Ca)}], Config)},
    %% The other's name is written in another string type, in other letters and with more spaces.
    [Pem, OtherPem] = [element(2, {ok, _} = file:read_file(Cert)) || #{cert := Cert} <- [Ca, Other]],
    [
        begin
            [full = connect(Server, Client, Config) || Client <- Clients],
            ?assertEqual(
                {ok, 1}, rekindle_node:call(Node, rekindle_admin, revoke, [{issuer, Issuer, rekindle_ca:serial(hd(Clients))}])
            ),
            ?assertEqual([full, resumed], [connect(Server, Client, Config) || Client <- Clients]),
            ?assertEqual({ok, 2}, rekindle_node:call(Node, rekindle_admin, revoke, [{issuer, Issuer}])),
            ?assertEqual({ok, 0}, rekindle_node:call(Node, rekindle_admin, revoke, [{issuer, Issuer}]))
        end
     || Issuer <- [Pem, OtherPem]
    ],
    rekindle_node:stop(Node).

many_selectors_are_given_at_once(_Config) ->
    {Authority, Ders} = rekindle_certs:series(60),
    Node = start_node([]),
    rekindle_node:run(Node, fun() ->
        Cache = rekindle:init([{role, server}]),
        Numbered = lists:enumerate(Ders),
        [
            ok = rekindle:update(
                Cache, <<N:256>>, setelement(4, rekindle_sessions:make({session, otp_25, verified, N}, <<N:256>>), Der)
            )
         || {N, Der} <- Numbered
        ],
        Wanted = [
            case N rem 3 of
                0 -> Der;
                1 -> crypto:hash(sha, Der);
                2 -> {issuer, Authority, element(3, element(2, public_key:pkix_decode_cert(Der, otp)))}
            end
         || {N, Der} <- Numbered, N > 10
        ],
        ?assertEqual({ok, 50}, rekindle_admin:revoke(Wanted)),
        ?assertMatch({error, {bad_certificate, _}}, rekindle_admin:revoke([hd(Ders), {issuer, nobody}])),
        ?assertEqual({ok, 10}, rekindle_admin:revoke([{issuer, Authority}, {issuer, Authority}])),
        ok = rekindle:terminate(Cache)
    end),
    rekindle_node:stop(Node).

%% ---- the doctor, and counts ----

authorities_that_have_changed_are_found(Config) ->
    #{cert := CaFile} = Ca = rekindle_ca:new(dir("ca", Config), "Changed CA"),
    Client = rekindle_ca:issue(Ca, "client"),
    Node = start_node([]),
    Servers = [{Proto, start(Node, Proto, [{cacertfile, CaFile}], Config)} || Proto <- [tls, dtls]],
    [full = connect(Server, Client, Config) || Server <- Servers],
    ?assertEqual([], findings(Node)),
    {ok, Pem} = file:read_file(CaFile),
    %% The time of a file is in whole seconds.
    timer:sleep(1_100),
    ok = file:write_file(CaFile, Pem),
    %% At any time within a second.
    [
        begin
            ?assertEqual(2, length(findings(Node))),
            timer:sleep(100)
        end
     || _ <- lists:seq(1, 10)
    ],
    Found = [Line || {warning, Line} <- findings(Node)],
    [
        begin
            Name = lists:concat([Proto, " 127.0.0.1:", Port]),
            [Line] = [Line || Line <- Found, lists:prefix(Name, Line)],
            ?assertMatch(
                {match, _},
                re:run(
                    Line, "ca.pem. have changed since 1 of its sessions were made.*rekindle_admin:flush\\(\"" ++ Name ++ "\"\\)"
                )
            ),
            {ok, 1} = rekindle_node:call(Node, rekindle_admin, flush, [Name])
        end
     || {Proto, Port} <- Servers
    ],
    ?assertEqual([], findings(Node)),
    rekindle_node:stop(Node).

revocation_lists_of_the_listener_alone_are_found(Config) ->
    Folder = dir("lists", Config),
    Open = fun(Node) ->
        [
            {Proto, start(Node, Proto, [{crl_check, peer}, {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Folder}]}}}], Config)}
         || Proto <- [tls, dtls]
        ]
    end,
    Node = start_node([]),
    Opened = Open(Node),
    Found = [Line || {warning, Line} <- findings(Node)],
    [
        begin
            Name = lists:concat([Proto, " 127.0.0.1:", Port, " checks revocation lists"]),
            [Line] = [Line || Line <- Found, lists:prefix(Name, Line)],
            ?assertNotEqual(nomatch, string:find(Line, "Write {crls, [\"" ++ Folder ++ "\"]} into session_cb_init_args"))
        end
     || {Proto, Port} <- Opened
    ],
    rekindle_node:stop(Node),
    %% Follow the finding's advice.
    rekindle_ca:list(?config(ca, Config), filename:join(Folder, "ca.r0")),
    Checked = start_node([{crls, [Folder]}]),
    _ = Open(Checked),
    rekindle_node:await(fun() -> findings(Checked) =:= [] end),
    rekindle_node:stop(Checked).

cipher_suites_that_were_taken_away_are_found(Config) ->
    [One, Other] = Ports = [rekindle_node:free_port(), rekindle_node:free_port()],
    Node = start_node([{scope, maps:from_list([{Port, both} || Port <- Ports])}]),
    Client = rekindle_ca:issue(?config(ca, Config), "suites"),
    Server = {tls, start(Node, tls, [{port, One}], Config)},
    full = connect(Server, Client, Config),
    ?assertEqual([], findings(Node)),
    _ = start(Node, tls, [{port, Other}, {ciphers, ["ECDHE-ECDSA-CHACHA20-POLY1305"]}], Config),
    [{warning, Line}] = findings(Node),
    ?assertMatch(
        {match, _}, re:run(Line, "^tls 127.0.0.1:" ++ integer_to_list(Other) ++ ": 1 of its sessions have cipher suites")
    ),
    %% Follow the finding's advice.
    {match, [Call]} = re:run(Line, "rekindle_admin:flush\\((.*)\\)", [{capture, all_but_first, list}]),
    {ok, Tokens, _} = erl_scan:string(Call ++ "."),
    {ok, Which} = erl_parse:parse_term(Tokens),
    ?assertEqual({ok, 1}, rekindle_node:call(Node, rekindle_admin, flush, [Which])),
    ?assertEqual([], findings(Node)),
    rekindle_node:stop(Node).

cipher_suites_of_server_names_are_no_reason_to_flush(Config) ->
    #{cert := Cert, key := Key} = rekindle_ca:issue(?config(ca, Config), "suites_of_names"),
    Client = #{
        cafile => maps:get(ca, ?config(certs, Config)), certfile => Cert, keyfile => Key, extra => ["-servername", "localhost"]
    },
    Node = start_node([]),
    Options = [{ciphers, ["ECDHE-ECDSA-CHACHA20-POLY1305"]}, {sni_fun, fun rekindle_trust_SUITE:with_old_suite/1}],
    Port = start(Node, tls, Options, Config),
    #{full := 1} = rekindle_clients:openssl_save(tls, Port, filename:join(?config(dir, Config), "session"), Client),
    IsNoted = fun(Found) ->
        [{note, Line}] = Found,
        ?assertMatch({match, _}, re:run(Line, "1 of its sessions have cipher suites that its option ciphers does not allow")),
        ?assertMatch({match, _}, re:run(Line, "may allow them for some server names. If not, rekindle_admin:flush")),
        ?assertEqual(nomatch, re:run(Line, "Call "))
    end,
    IsNoted([Finding || {_, Line} = Finding <- findings(Node), string:find(Line, "cipher suites") =/= nomatch]),
    %% OTP 25 does not accept the option ciphers for a host.
    Infos = [info(Node, {tls, Port})],
    Suites = fun(Hosts) ->
        rekindle_node:call(Node, rekindle_trust, suites, [
            "tls", #{ciphers => [<<16#CCA9:16>>], sni_fun => undefined, sni_hosts => Hosts}, Infos
        ])
    end,
    IsNoted(Suites([{"a.example", []}, {"b.example", [{ciphers, [<<16#C02B:16>>]}]}])),
    ?assertMatch([{warning, _}], Suites([{"a.example", [{honor_cipher_order, true}]}])),
    rekindle_node:stop(Node).

with_old_suite(_ServerName) ->
    [{ciphers, ["ECDHE-ECDSA-AES128-GCM-SHA256"]}].

%% The client always offers both suites.
cipher_suites_that_were_taken_away_are_not_resumed_from_a_journal(Config) ->
    Log = filename:join(?config(dir, Config), "log"),
    [Old, New] = Suites = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    #{cert := Cert, key := Key} = rekindle_ca:issue(?config(ca, Config), "hardened"),
    Client = #{cafile => maps:get(ca, ?config(certs, Config)), certfile => Cert, keyfile => Key},
    Node = start_node([{journal, {folder, filename:join(?config(dir, Config), "journal")}}]),
    log_to(Node, Log),
    [cipher_suites_that_were_taken_away(Proto, Node, Log, Client, Old, New, Suites, Config) || Proto <- [tls, dtls]],
    rekindle_node:stop(Node).

cipher_suites_that_were_taken_away(Proto, Node, Log, Client, Old, New, Suites, Config) ->
    Port = rekindle_node:free_port(),
    Name = lists:concat([Proto, " 127.0.0.1:", Port]),
    File = fun(Suite) -> filename:join(?config(dir, Config), lists:concat([Proto, ".", Suite])) end,
    Offer = fun(Suite) ->
        Offered = Client#{cipher => lists:concat([Old, ":", New])},
        case rekindle_clients:openssl_offer(Proto, Port, File(Suite), Offered) of
            #{full := 1, resumed := 0} -> full;
            #{full := 0, resumed := 1} -> resumed
        end
    end,
    Info = fun() -> rekindle_node:call(Node, rekindle_admin, info, [Port]) end,
    %% Opens the listener with these options, waits until this many sessions were left out, and closes it again.
    With = fun(Options, LeftOut, Use) ->
        {Server, Port} = listen(Node, Proto, [{port, Port} | Options], Config),
        rekindle_node:await(fun() ->
            case Info() of
                [#{journal := #{replay := Replay, skipped := #{suite := LeftOut}}}] -> is_integer(Replay);
                _ -> false
            end
        end),
        Use(),
        ok = rekindle_node:call(Node, rekindle_servers, stop, [Server]),
        rekindle_node:await(fun() -> Info() =:= [] end)
    end,
    With([], 0, fun() ->
        [#{full := 1} = rekindle_clients:openssl_save(Proto, Port, File(Suite), Client#{cipher => Suite}) || Suite <- Suites],
        rekindle_node:await(fun() ->
            [#{sessions := Sessions, journal := #{queued := Queued, written := Written}}] = Info(),
            Sessions =:= 2 andalso Queued =:= 0 andalso Written >= 4
        end)
    end),
    Line = Name ++ ": 1 sessions of its journal are not resumed",
    Warning = Name ++ ": 1 of its sessions have cipher suites that its option ciphers does not allow",
    With([{ciphers, [New]}], 1, fun() ->
        ?assertEqual(full, Offer(Old)),
        ?assertEqual(resumed, Offer(New)),
        rekindle_node:await(fun() -> logged(Log, Line) =:= 1 end),
        ?assertEqual([], findings(Node))
    end),
    With([{ciphers, Suites}], 0, fun() -> [?assertEqual({Suite, resumed}, {Suite, Offer(Suite)}) || Suite <- Suites] end),
    %% The listener's options do not say what it allows under another name.
    With([{ciphers, [New]}, {sni_hosts, [{"old.example", [{honor_cipher_order, true}]}]}], 0, fun() ->
        rekindle_node:await(fun() -> logged(Log, Warning) > 0 end),
        ?assertEqual(resumed, Offer(Old))
    end),
    ?assertEqual(1, logged(Log, Line)).

cipher_suites_that_another_listener_under_the_name_allows_are_resumed(Config) ->
    [One, Other] = Ports = [rekindle_node:free_port(), rekindle_node:free_port()],
    Node = start_node([
        {scope, maps:from_list([{Port, both} || Port <- Ports])},
        {journal, {folder, filename:join(?config(dir, Config), "journal")}}
    ]),
    Client = rekindle_ca:issue(?config(ca, Config), "shared_suites"),
    Info = fun() -> rekindle_node:call(Node, rekindle_admin, info, [{name, both}]) end,
    {First, One} = listen(Node, tls, [{port, One}], Config),
    full = connect({tls, One}, Client, Config),
    rekindle_journals:await_written(Node, 1),
    ok = rekindle_node:call(Node, rekindle_servers, stop, [First]),
    rekindle_node:await(fun() -> Info() =:= [] end),
    One = start(Node, tls, [{port, One}, {ciphers, ["ECDHE-ECDSA-CHACHA20-POLY1305"]}], Config),
    rekindle_node:await(fun() ->
        [#{sessions := Sessions, journal := #{skipped := #{suite := LeftOut}}}] = Info(),
        {Sessions, LeftOut} =:= {0, 1}
    end),
    HasSessions = fun(Count) ->
        rekindle_node:await(fun() ->
            [#{sessions := Sessions}] = Info(),
            Sessions =:= Count
        end)
    end,
    {Second, Other} = listen(Node, tls, [{port, Other}], Config),
    HasSessions(1),
    ?assertEqual(resumed, connect({tls, One}, Client, Config)),
    %% This listener makes one of its own, with the suite that only it allows.
    full = connect({tls, Other}, rekindle_ca:issue(?config(ca, Config), "shared_suites_2"), Config),
    HasSessions(2),
    ok = rekindle_node:call(Node, rekindle_servers, stop, [Second]),
    HasSessions(0),
    Other = start(Node, tls, [{port, Other}], Config),
    HasSessions(2),
    ?assertEqual(resumed, connect({tls, One}, Client, Config)),
    rekindle_node:stop(Node).

cipher_suites_that_were_taken_away_are_logged_when_a_journal_was_read(Config) ->
    Port = rekindle_node:free_port(),
    Client = rekindle_ca:issue(?config(ca, Config), "journal_suites"),
    Line = "1 sessions of its journal are not resumed, because its option ciphers does not allow their cipher suites",
    %% How often a node with these options logs the line.
    Logged = fun(Name, Options, Use) ->
        Log = filename:join(?config(dir, Config), Name),
        Node = start_node([{journal, {folder, filename:join(?config(dir, Config), "journal")}}]),
        log_to(Node, Log),
        Server = {tls, start(Node, tls, [{port, Port} | Options], Config)},
        Use(Node, Server, Log),
        ok = rekindle_node:call(Node, init, stop, []),
        rekindle_node:stop(Node),
        logged(Log, Line)
    end,
    Make = fun(Node, Server, _) ->
        full = connect(Server, Client, Config),
        rekindle_journals:await_written(Node, 1)
    end,
    Read = fun(_, _, Log) -> rekindle_node:await(fun() -> logged(Log, ": 1 sessions were read") =:= 1 end) end,
    LeftOut = fun(_, _, Log) -> rekindle_node:await(fun() -> logged(Log, Line) > 0 end) end,
    ?assertEqual(0, Logged("first", [], Make)),
    ?assertEqual(0, Logged("same", [], Read)),
    ?assertEqual(1, Logged("hardened", [{ciphers, ["ECDHE-ECDSA-CHACHA20-POLY1305"]}], LeftOut)).

server_names_with_checks_of_their_own_are_found(Config) ->
    #{other_ca := OtherCa, server := #{rsa := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Node = start_node([]),
    HasName = rekindle_node:call(Node, rekindle_layout, has_server_name, [rekindle_node:call(Node, rekindle_layout, layout, [])]),
    Found = fun(Options) ->
        Name = "tls 127.0.0.1:" ++ integer_to_list(start(Node, tls, Options, Config)) ++ " ",
        [{Level, Line} || {Level, Line} <- findings(Node), lists:prefix(Name, Line)]
    end,
    Loose = [{verify, verify_none}, {fail_if_no_peer_cert, false}],
    Checks = [{cacertfile, OtherCa}],
    Other = [{certfile, Cert}, {keyfile, Key}],
    Plain = {"plain.example", [{honor_cipher_order, true}]},
    Sni = fun(Hosts) -> {sni_hosts, [Plain | [{Name, Own} || {Name, Own} <- lists:zip(["a.example", "b.example"], Hosts)]]} end,
    Quiet = [
        [{sni_hosts, [Plain]}],
        %% No client is asked for a certificate.
        [Sni([Checks, []]) | Loose],
        %% No other name has its certificate.
        [Sni([Other ++ Checks, []])],
        [Sni([[{certs_keys, [maps:from_list(Other)]} | Checks], []])],
        [{sni_fun, fun rekindle_trust_SUITE:options_of/1} | Loose]
    ],
    [?assertEqual({Options, []}, {Options, Found(Options)}) || Options <- Quiet],
    Warned = [
        [Sni([Checks, []])],
        [Sni([[{verify, verify_peer}], []]) | Loose],
        [Sni([Loose, []])],
        [Sni([Other ++ Checks, Other])],
        [Sni([Other ++ Checks, [{certs_keys, [maps:from_list(Other)]}]])]
    ],
    Lines = [{Options, Found(Options)} || Options <- Warned ++ [[{sni_fun, fun rekindle_trust_SUITE:options_of/1}]]],
    rekindle_node:stop(Node),
    case HasName of
        true ->
            [?assertEqual({Options, []}, {Options, Some}) || {Options, Some} <- Lines];
        false ->
            [?assertMatch({_, [{warning, _}]}, Line) || Line <- lists:droplast(Lines)],
            [{note, Note}] = element(2, lists:last(Lines)),
            ?assertMatch({match, _}, re:run(Note, "has an sni_fun. If it lets in different clients"))
    end.

options_of(_ServerName) ->
    [].

random_ids_are_distinguished_from_lost_sessions(Config) ->
    Node = start_node([]),
    Server = {tls, Port} = {tls, start(Node, tls, Config)},
    #{cert := Cert, key := Key} = rekindle_ca:issue(?config(ca, Config), "random"),
    %% The client supports TLS 1.3.
    Args = ["s_client", "-connect", "127.0.0.1:" ++ integer_to_list(Port), "-cert", Cert, "-key", Key],
    [{0, _} = rekindle_clients:run("openssl", Args, [{expect, "New, TLSv1.2"}, <<"Q\n">>], 15_000) || _ <- [1, 2, 3]],
    ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
    ?assertMatch(#{misses := 3, unknown_misses := 3, lost_misses := 0, inserts := 3}, info(Node, Server)),
    %% Alone with its certificate: so few sessions leave room to remember one that is lost, and not four.
    Client = #{cert := Lone} = rekindle_ca:issue(?config(ca, Config), "lone"),
    full = connect(Server, Client, Config),
    {ok, Pem} = file:read_file(Lone),
    {ok, 1} = rekindle_node:call(Node, rekindle_admin, revoke, [Pem]),
    ?assertEqual(full, connect(Server, Client, Config)),
    #{misses := 4, unknown_misses := Unknown, lost_misses := Lost} = info(Node, Server),
    ?assertEqual({3, 1}, {Unknown, Lost}),
    rekindle_node:stop(Node).

%% ---- nodes and clients ----

start_node(Options) ->
    rekindle_node:start_ssl([{session_cb_init_args, Options}]).

start(Node, Proto, Config) ->
    start(Node, Proto, [], Config).

start(Node, Proto, More, Config) ->
    {_, Port} = listen(Node, Proto, More, Config),
    Port.

listen(Node, Proto, More, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    #{cert := Ca} = ?config(ca, Config),
    Version = maps:get(Proto, #{tls => 'tlsv1.2', dtls => 'dtlsv1.2'}),
    Options = [
        {certfile, Cert},
        {keyfile, Key},
        {cacertfile, Ca},
        {versions, [Version]},
        {verify, verify_peer},
        {fail_if_no_peer_cert, true},
        {reuse_sessions, true}
    ],
    rekindle_node:call(Node, rekindle_servers, start, [
        Proto, More ++ [Option || {Name, _} = Option <- Options, not lists:keymember(Name, 1, More)]
    ]).

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

%% A certificate that expires in this many seconds, and the last second in which it is valid.
ending_in(Seconds, Name, Config) ->
    End = erlang:system_time(second) + Seconds,
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(End, second),
    Text = lists:flatten(io_lib:format("~4..0b~2..0b~2..0b~2..0b~2..0b~2..0bZ", [Year, Month, Day, Hour, Minute, Second])),
    {rekindle_ca:issue(?config(ca, Config), Name, ["-enddate", Text]), End}.

await_end(End) ->
    timer:sleep(max(0, 1000 * (End + 1) - erlang:system_time(millisecond))).

%% Waits until all lists were read and have this many entries.
await_lists(Node, Entries) ->
    rekindle_node:await(fun() ->
        case rekindle_node:call(Node, rekindle_nif, crls, []) of
            [{true, true, Files}] -> Entries =:= lists:sum([element(2, List) || {_, Lists, _, _} <- Files, List <- Lists]);
            _ -> false
        end
    end).

findings(Node) ->
    [{Level, unicode:characters_to_list(Line)} || {Level, Line} <- rekindle_node:call(Node, rekindle_doctor, findings, [])].

log_to(Node, File) ->
    ok = rekindle_node:call(Node, logger, add_handler, [trust, logger_std_h, #{config => #{file => File}}]).

%% How often a line was logged.
logged(File, Line) ->
    {ok, Text} = file:read_file(File),
    length(binary:matches(Text, iolist_to_binary(Line))).

dir(Name, Config) ->
    Dir = filename:join(?config(dir, Config), Name),
    ok = filelib:ensure_dir(filename:join(Dir, "file")),
    Dir.

info(Node, {_, Port}) ->
    [Info] = rekindle_node:call(Node, rekindle_admin, info, [Port]),
    Info.

%% The sessions of the client with this name.
time_left(Node, {_, Port}, Name) ->
    #{sessions := Sessions} = rekindle_node:call(Node, rekindle_admin, sessions, [Port]),
    Subject = iolist_to_binary(["O=Example,CN=", Name]),
    [Left || #{time_left := Left, peer := #{subject := S}} <- Sessions, is_subject(S, Subject, Name)].

is_subject(Subject, Subject, _) -> true;
is_subject(Subject, _, Name) -> Subject =:= iolist_to_binary(["CN=", Name, ",O=Example"]).
