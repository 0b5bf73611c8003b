%% A resumption is checked like a handshake: sessions of certificates that have ended or are revoked.
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
            wrong_options_are_refused
        ]},
        {lists, [], [
            a_client_that_is_on_a_list_is_not_resumed,
            a_list_is_read_again_when_it_changes,
            what_was_read_holds_when_a_list_is_lost,
            nothing_is_resumed_until_all_lists_were_read,
            a_list_that_is_too_old_ends_resumptions_of_its_issuer,
            a_session_in_a_journal_is_not_replayed_when_it_is_revoked,
            lists_say_what_public_key_says
        ]},
        {selectors, [], [
            an_authority_is_named_in_any_spelling,
            many_selectors_are_given_at_once
        ]},
        {doctor, [], [
            authorities_that_have_changed_are_found,
            revocation_lists_of_the_listener_alone_are_found,
            cipher_suites_that_were_taken_away_are_found,
            server_names_with_checks_of_their_own_are_found,
            random_ids_are_told_from_lost_sessions
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
    {Short, End} = ending_in(10, "short", Config),
    Long = rekindle_ca:issue(?config(ca, Config), "long"),
    [?assertEqual(full, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Short, Long]],
    [?assertEqual(resumed, connect(Server, Client, Config)) || Server <- [Tls, Dtls], Client <- [Short, Long]],
    ?assertMatch([Left] when Left =< 10, time_left(Node, Tls, "short")),
    ?assertMatch([Left] when Left > 86_000, time_left(Node, Tls, "long")),
    await_end(End),
    [
        begin
            ?assertEqual(refused, connect(Server, Short, Config)),
            ?assertEqual(resumed, connect(Server, Long, Config)),
            ?assertMatch(#{ended := 1, ended_by := #{expired := 1, revoked := 0, unknown := 0}, misses := 1}, info(Node, Server)),
            %% It is not dropped.
            ?assertEqual([0], time_left(Node, Server, "short"))
        end
     || Server <- [Tls, Dtls]
    ],
    rekindle_node:stop(Node).

sessions_of_certificates_that_have_ended_are_resumed_where_that_is_wanted(Config) ->
    Node = start_node([{expired_certificates, resume}]),
    Server = {tls, start(Node, tls, Config)},
    {Short, End} = ending_in(5, "tolerated", Config),
    full = connect(Server, Short, Config),
    await_end(End),
    ?assertEqual(resumed, connect(Server, Short, Config)),
    ?assertMatch(#{ended := 0, hits := 1}, info(Node, Server)),
    ?assertMatch([Left] when Left > 80_000, time_left(Node, Server, "tolerated")),
    rekindle_node:stop(Node).

a_session_in_a_journal_is_not_resumed_after_its_certificate_has_ended(Config) ->
    {Short, End} = ending_in(8, "journaled", Config),
    Long = rekindle_ca:issue(?config(ca, Config), "journaled_long"),
    Options = [{journal, {folder, filename:join(?config(dir, Config), "journal")}}],
    Port = rekindle_node:free_port(),
    Run = fun() ->
        Node = start_node(Options),
        {Node, {tls, start(Node, tls, [{port, Port}], Config)}}
    end,
    {First, Server} = Run(),
    [full = connect(Server, Client, Config) || Client <- [Short, Long]],
    rekindle_node:await(fun() -> maps:get(written, maps:get(journal, info(First, Server))) >= 3 end),
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
            {expired_certificates, true}, {expired_certificates, undefined}, {stale_crls, true}, {crls, "ca.crl"}, {crls, [""]},
            {crls, ["a\0b"]}, {crls, [ca]}, {crls, ["ca.crl" | "ca.crl"]}
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
            ?assertMatch(#{ended := 1, ended_by := #{expired := 0, revoked := 1, unknown := 0}}, info(Node, Server)),
            ?assertEqual([0], time_left(Node, Server, "bad"))
        end
     || Server <- [Tls, Dtls]
    ],
    ?assertMatch(
        [#{path := File, issuer := <<"O=Example,CN=Listed CA">>, entries := 1, this_update := {_, _}, next_update := {_, _},
            delta := false, error := undefined}],
        rekindle_node:call(Node, rekindle_admin, crls, [])),
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
        %% By rename.
        fun(Source) -> ok = file:rename(Source, File) end,
        %% In place.
        fun(Source) -> {ok, List} = file:read_file(Source), ok = file:write_file(File, List) end,
        %% As DER, by a link.
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
        [ok = file:write_file(Name, Content) || {Name, Content} <- [{File, Empty}, {InFolder, List}]],
        rekindle_node:await(fun() -> findings(Node) =:= [] end)
    end,
    %% Cut off.
    ok = file:write_file(InFolder, binary:part(List, 0, byte_size(List) - 40)),
    Holds("lists/ca.crl cannot be read again: it ends too early", "lists/ca.crl: cannot be read again: it ends too early"),
    Mend(),
    %% What a failed download leaves.
    ok = file:write_file(InFolder, "<html>404</html>"),
    Holds("it is no revocation list", "lists/ca.crl: cannot be read again: it is no revocation list"),
    Mend(),
    ok = file:delete(File),
    Holds("ca.crl cannot be read again: it is not there", "/ca.crl: cannot be read again: it is not there"),
    Mend(),
    ok = file:del_dir_r(Folder),
    Holds("lists cannot be read again: it is not there", "lists: cannot be read again: it is not there"),
    Mend(),
    ok = file:delete(InFolder),
    rekindle_node:await(fun() -> findings(Node) =/= [] end),
    Holds("lists/ca.crl cannot be read again: it is no longer there", "lists/ca.crl: is no longer there"),
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
    ?assertMatch(#{ended_by := #{unknown := 1}}, info(Node, Server)),
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
    End = erlang:system_time(second) + 6,
    rekindle_ca:list(Ca, File, ["-crlsec", "6"]),
    [await_lists(N, 0) || N <- [Node, Tolerant]],
    [full = connect(S, C, Config) || S <- [Server, Tolerated], C <- [Client, Stranger]],
    ?assertEqual(resumed, connect(Server, Client, Config)),
    [{warning, Soon}] = findings(Node),
    ?assertMatch({match, _}, re:run(Soon, "the revocation list of O=Example,CN=old in .*ca.crl ends at")),
    await_end(End + 1),
    ?assertEqual(full, connect(Server, Client, Config)),
    ?assertEqual(resumed, connect(Server, Stranger, Config)),
    ?assertEqual(resumed, connect(Tolerated, Client, Config)),
    ?assertMatch(#{ended := 1, ended_by := #{unknown := 1}}, info(Node, Server)),
    [{error, Ended}] = findings(Node),
    ?assertMatch({match, _}, re:run(Ended, "the revocation list of O=Example,CN=old in .*ca.crl ended at")),
    rekindle_node:await(fun() -> logged(Log, "the list of O=Example,CN=old ended at") =:= 1 end),
    rekindle_ca:list(Ca, File),
    rekindle_node:await(fun() -> connect(Server, Client, Config) =:= resumed end),
    ?assertEqual([], findings(Node)),
    [rekindle_node:stop(N) || N <- [Node, Tolerant]].

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
    rekindle_node:await(fun() -> maps:get(written, maps:get(journal, info(First, Server))) >= 3 end),
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
    #{ended_by := #{revoked := Ended}, journal := #{skipped := #{revoked := Skipped}}} = info(Second, Server),
    ?assertEqual(1, Ended + Skipped),
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
    rekindle_node:await(fun() -> [true || #{path := P, issuer := I} <- rekindle_admin:crls(), P =:= File, I =/= undefined] =/= [] end),
    [ListDer] = ders(File),
    [Authority] = [public_key:pkix_decode_cert(Der, otp) || Der <- ders(CaCert)],
    {ok, KeyPem} = file:read_file(CaKey),
    [Key | _] = [public_key:pem_entry_decode(Entry) || {Type, _, _} = Entry <- public_key:pem_decode(KeyPem), Type =/= 'EcpkParameters'],
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
            ?assertEqual({ok, 1}, rekindle_node:call(Node, rekindle_admin, revoke, [{issuer, Issuer, rekindle_ca:serial(hd(Clients))}])),
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
            ok = rekindle:update(Cache, <<N:256>>, setelement(4, rekindle_sessions:make({session, otp_25, verified, N}, <<N:256>>), Der))
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
    {_, Port} = Server = {tls, start(Node, tls, [{cacertfile, CaFile}], Config)},
    full = connect(Server, Client, Config),
    ?assertEqual([], findings(Node)),
    {ok, Pem} = file:read_file(CaFile),
    rekindle_node:await(fun() -> ok = file:write_file(CaFile, Pem), findings(Node) =/= [] end),
    [{warning, Line}] = findings(Node),
    ?assertMatch({match, _}, re:run(Line, "ca.pem. have changed since 1 sessions were made.*rekindle_admin:flush." ++ integer_to_list(Port))),
    {ok, 1} = rekindle_node:call(Node, rekindle_admin, flush, [Port]),
    ?assertEqual([], findings(Node)),
    rekindle_node:stop(Node).

revocation_lists_of_the_listener_alone_are_found(Config) ->
    Folder = dir("lists", Config),
    Node = start_node([]),
    _ = start(Node, tls, [{crl_check, peer}, {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Folder}]}}}], Config),
    [{warning, Line}] = findings(Node),
    ?assertNotEqual(nomatch, string:find(Line, "write {crls, [\"" ++ Folder ++ "\"]} in session_cb_init_args")),
    rekindle_node:stop(Node),
    %% As it says.
    rekindle_ca:list(?config(ca, Config), filename:join(Folder, "ca.r0")),
    Checked = start_node([{crls, [Folder]}]),
    _ = start(Checked, tls, [{crl_check, peer}, {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Folder}]}}}], Config),
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
    ?assertMatch({match, _}, re:run(Line, "^1 sessions of the listener 127.0.0.1:" ++ integer_to_list(Other) ++ " have cipher suites")),
    rekindle_node:stop(Node).

server_names_with_checks_of_their_own_are_found(Config) ->
    #{other_ca := OtherCa} = ?config(certs, Config),
    Node = start_node([]),
    Plain = [{"one.example", [{honor_cipher_order, true}]}],
    _ = start(Node, tls, [{sni_hosts, Plain}], Config),
    ?assertEqual([], findings(Node)),
    Port = start(Node, tls, [{sni_hosts, [{"two.example", [{cacertfile, OtherCa}]} | Plain]}], Config),
    Expected = "the listener 127.0.0.1:" ++ integer_to_list(Port) ++ " decides by the server name whom it lets in (sni_hosts)",
    case list_to_integer(erlang:system_info(otp_release)) < 29 of
        true -> ?assertMatch([{warning, _}], findings(Node));
        false -> ?assertEqual([], findings(Node))
    end,
    [?assertNotEqual(nomatch, string:find(Line, Expected)) || {_, Line} <- findings(Node)],
    rekindle_node:stop(Node).

random_ids_are_told_from_lost_sessions(Config) ->
    Node = start_node([]),
    Server = {tls, Port} = {tls, start(Node, tls, Config)},
    #{cert := Cert, key := Key} = rekindle_ca:issue(?config(ca, Config), "random"),
    %% It can do TLS 1.3.
    Args = ["s_client", "-connect", "127.0.0.1:" ++ integer_to_list(Port), "-cert", Cert, "-key", Key],
    [{0, _} = rekindle_clients:run("openssl", Args, [{expect, "New, TLSv1.2"}, <<"Q\n">>], 15_000) || _ <- [1, 2, 3]],
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
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    #{cert := Ca} = ?config(ca, Config),
    Version = maps:get(Proto, #{tls => 'tlsv1.2', dtls => 'dtlsv1.2'}),
    Options = [
        {certfile, Cert}, {keyfile, Key}, {cacertfile, Ca}, {versions, [Version]}, {verify, verify_peer},
        {fail_if_no_peer_cert, true}, {reuse_sessions, true}
    ],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [Proto, More ++ [Option || {Name, _} = Option <- Options, not lists:keymember(Name, 1, More)]]),
    Port.

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

%% A certificate that ends so many seconds from now, and the last second in which it is valid.
ending_in(Seconds, Name, Config) ->
    End = erlang:system_time(second) + Seconds,
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(End, second),
    Text = lists:flatten(io_lib:format("~4..0b~2..0b~2..0b~2..0b~2..0b~2..0bZ", [Year, Month, Day, Hour, Minute, Second])),
    {rekindle_ca:issue(?config(ca, Config), Name, ["-enddate", Text]), End}.

await_end(End) ->
    timer:sleep(max(0, 1000 * (End + 1) - erlang:system_time(millisecond))).

%% Waits until all lists were read, and have so many entries.
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

%% Of the sessions of the client with this name.
time_left(Node, {_, Port}, Name) ->
    #{sessions := Sessions} = rekindle_node:call(Node, rekindle_admin, sessions, [Port]),
    Subject = iolist_to_binary(["O=Example,CN=", Name]),
    [Left || #{time_left := Left, peer := #{subject := S}} <- Sessions, is_subject(S, Subject, Name)].

is_subject(Subject, Subject, _) -> true;
is_subject(Subject, _, Name) -> Subject =:= iolist_to_binary(["CN=", Name, ",O=Example"]).
