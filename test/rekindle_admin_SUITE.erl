%% What an operator sees and does, on a real node with real clients.
-module(rekindle_admin_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").
-include_lib("public_key/include/public_key.hrl").

-compile([export_all, nowarn_export_all]).

all() ->
    [{group, look}, {group, act}, {group, doctor}].

groups() ->
    [
        {look, [], [
            info_tells_of_the_scopes_meant,
            the_tables_tell_the_same,
            journals_have_tables_of_their_own,
            refusals_are_told_by_reason,
            the_table_is_printed_again_until_enter,
            sessions_are_shown_without_secrets,
            pages_hold_each_session_once
        ]},
        {act, [], [
            a_flush_drops_the_sessions_of_the_scopes_meant,
            a_forgotten_session_is_not_resumed,
            revoked_clients_do_not_resume_and_others_do,
            sessions_without_a_template_are_revoked_too,
            all_of_many_sessions_are_revoked,
            several_certificates_are_revoked_in_one_call,
            what_is_no_certificate_is_refused,
            limits_are_changed_at_once,
            wrong_limits_change_nothing
        ]},
        {doctor, [], [
            nothing_is_found_where_all_is_well,
            missing_keys_are_found,
            a_late_configuration_is_found,
            listeners_that_resume_nothing_are_found,
            wrong_options_and_a_missing_library_are_found,
            bounds_that_are_too_small_are_found,
            starting_the_application_logs_what_is_wrong
        ]}
    ].

suite() ->
    [{timetrap, {minutes, 5}}].

init_per_suite(Config) ->
    [{certs, rekindle_certs:make(?config(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

%% ---- look ----

info_tells_of_the_scopes_meant(Config) ->
    with_servers(2, [], Config, fun(Node, [Port, Other]) ->
        ?assertEqual({1, 0}, save(Port, "ec", Config)),
        ?assertEqual({0, 1}, offer(Port, "ec", Config)),
        ?assertEqual({0, 1}, offer(Port, "ec", Config)),
        _ = offer(Other, "ec", Config),
        Info = fun(Which) -> [P || #{scope := {_, _, {_, P}}} <- admin(Node, info, [Which])] end,
        [#{scope := Label} = Own] = admin(Node, info, [Port]),
        ?assertMatch(#{sessions := 1, hits := 2, misses := 0, inserts := 1, hit_rate := 1.0, oldest := Age} when is_integer(Age), Own),
        ?assertMatch([#{misses := 1, hit_rate := Rate}] when Rate == 0, admin(Node, info, [Other])),
        ?assertMatch([#{scope := client, hit_rate := undefined}], admin(Node, info, [client])),
        [?assertEqual([Port], Info(Which)) || Which <- [Port, {{127, 0, 0, 1}, Port}, Label, Own]],
        ?assertEqual([Port, Other], Info(all)),
        [?assertEqual([], Info(Which)) || Which <- [1, {{127, 0, 0, 2}, Port}, {name, none}, foo]]
    end).

the_tables_tell_the_same(Config) ->
    ?assertMatch({match, _}, re:run(rekindle_table:of_scopes([]), "doctor")),
    Env = [{session_cb_init_args, [{max_sessions, 1234}, {max_bytes, 10 bsl 20}, {lifetime, 90_000}]}],
    with_servers(1, Env, Config, fun(Node, [Port]) ->
        {1, 0} = save(Port, "ec", Config),
        {0, 1} = offer(Port, "ec", Config),
        [Held, Counts] = tables(rekindle_node:call(Node, rekindle_admin, info, [])),
        Scope = "tls 127.0.0.1:" ++ integer_to_list(Port),
        ?assertMatch(
            #{"sessions" := "1", "certified" := _, "certs" := _, "bound" := "10.0 MiB, 1,234", "moved" := "0", "lifetime" := "1 d 1 h"},
            maps:get(Scope, Held)),
        ?assertMatch(
            #{"hits" := "1", "misses" := "0", "missed" := "0", "hit rate" := "100.0 %", "inserts" := "1", "evicted" := "0", "refused" := "0"},
            maps:get(Scope, Counts))
    end).

%% The columns are told apart by numbers that no journal has made.
journals_have_tables_of_their_own(Config) ->
    Folder = filename:join(?config(priv_dir, Config), "tables"),
    with_servers(1, [{session_cb_init_args, [{journal, {folder, Folder}}]}], Config, fun(Node, [Port]) ->
        [#{journal := Journal} = Info] = admin(Node, info, [Port]),
        Scope = "tls 127.0.0.1:" ++ integer_to_list(Port),
        Rows = fun(Changes) ->
            tables_of(rekindle_table:of_journals([Info#{journal := maps:merge(Journal, Changes)}]))
        end,
        Numbers = #{
            state => up, queued => 1, written => 2, dropped => 3, read => 4, applied => 5, revocations => 6, unwritten => 7, missing => 8,
            log_bytes => 9, node_folder => <<"/f">>, node_folder_error => undefined, node_folder_bytes => 10
        },
        [#{Scope := Log}, #{Scope := Revocations}] = Rows(Numbers),
        ?assertMatch(#{"queued" := "1", "written" := "2", "dropped" := "3", "read" := "4", "applied" := "5"}, Log),
        ?assertEqual(
            #{
                "remembered" => "6", "unwritten" => "7", "missing" => "8", "log size" => "9 B", "folder size" => "10 B",
                "node folder" => "/f"
            },
            Revocations
        ),
        [_, #{Scope := Failed}] = Rows(Numbers#{node_folder_error => <<"full">>, log_bytes => undefined}),
        ?assertMatch(#{"node folder" := "/f: full", "log size" := "-"}, Failed),
        [_, #{Scope := Without}] = Rows(Numbers#{node_folder => undefined}),
        ?assertMatch(#{"node folder" := "none", "folder size" := "-"}, Without),
        ?assertEqual([], rekindle_table:of_journals([Info#{journal := undefined}]))
    end).

%% The columns are told apart by numbers that no store has made.
refusals_are_told_by_reason(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        Held = "tls 127.0.0.1:" ++ integer_to_list(Port),
        [Client, Info] = rekindle_node:call(Node, rekindle_admin, info, []),
        None = #{too_large => 0, no_room => 0, private_key => 0, layout => 0, lifetime => 0},
        [?assertMatch(#{refused := 0, refused_by := None}, Scope) || Scope <- [Client, Info]],
        By = #{too_large => 1, no_room => 2, private_key => 3, layout => 4, lifetime => 5},
        Made = Info#{
            certified => 6, certificates => 7, moved => 8, evicted_misses => 9, evicted => 10, ended => 11, refused => 15, refused_by => By
        },
        [HeldCells, Counts, Refused] = tables([Client, Made]),
        ?assertMatch(#{Held := #{"certified" := "6", "certs" := "7", "moved" := "8"}}, HeldCells),
        ?assertMatch(#{Held := #{"missed" := "9", "evicted" := "10", "ended" := "11", "refused" := "15"}}, Counts),
        Cells = #{"too large" => "1", "no room" => "2", "private key" => "3", "layout" => "4", "lifetime" => "5"},
        ?assertEqual(#{Held => Cells}, Refused)
    end).

%% Of each table the rows by scope, of each row the cells by column.
tables(Infos) ->
    Text = rekindle_table:of_scopes(Infos),
    ?assertEqual([], [Line || Line <- string:lexemes(unicode:characters_to_list(Text), "\n"), string:length(Line) > 110]),
    tables_of(Text).

tables_of(Chars) ->
    Text = string:trim(unicode:characters_to_list(Chars), leading, "\n"),
    [
        begin
            [[_ | Columns] | Rows] = [string:lexemes(re:replace(Line, "  +", "|", [global, {return, list}]), "|") || Line <- string:lexemes(Table, "\n")],
            maps:from_list([{Scope, maps:from_list(lists:zip(Columns, Cells))} || [Scope | Cells] <- Rows])
        end
     || Table <- string:split(Text, "\n\n", all)
    ].

the_table_is_printed_again_until_enter(Config) ->
    with_servers(1, [], Config, fun(Node, [_]) ->
        rekindle_node:run(Node, fun() ->
            Self = self(),
            {Top, Monitor} = spawn_monitor(fun() -> group_leader(Self, self()), rekindle_admin:top(1) end),
            %% Asked for a line, answered after the table was printed twice.
            Asked = receive {io_request, Top, As, {get_line, _, _}} -> As end,
            [receive {io_request, From, To, Request} -> ?assertMatch({match, _}, re:run(chars(Request), "127.0.0.1")), From ! {io_reply, To, ok} end || _ <- [1, 2]],
            Top ! {io_reply, Asked, "\n"},
            ?assertEqual(normal, receive {'DOWN', Monitor, process, _, Reason} -> Reason end)
        end)
    end).

chars({put_chars, unicode, Chars}) -> Chars;
chars({put_chars, unicode, Module, Function, Args}) -> apply(Module, Function, Args).

sessions_are_shown_without_secrets(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        {1, 0} = save(Port, "ec", Config),
        [{0, 1} = offer(Port, "ec", Config) || _ <- [1, 2, 3]],
        #{sessions := [Session], next := done} = Page = admin(Node, sessions, []),
        #{scope := {listener, tls, _}, id := Id, age := Age, time_left := Left, cipher := Cipher, peer := Peer} = Session,
        ?assertEqual(86400, Age + Left),
        ?assertNot(maps:is_key(resumed, Session)),
        LastUse = maps:get(age_at_last_use, Session),
        ?assert(LastUse =:= undefined orelse (is_integer(LastUse) andalso 0 =< LastUse andalso LastUse =< Age), LastUse),
        %% openssl's word for all that it prints as well.
        #{cert := Cert} = identity("ec", Config),
        ?assertEqual(openssl(["x509", "-noout", "-fingerprint", "-sha256", "-in", Cert], "Fingerprint=(.*)"), maps:get(fingerprint, Peer)),
        ?assertEqual(binary_to_integer(openssl(["x509", "-noout", "-serial", "-in", Cert], "serial=(.*)"), 16), maps:get(serial, Peer)),
        NameOpts = ["-nameopt", "RFC2253,-dn_rev,-esc_2253"],
        ?assertEqual(openssl(["x509", "-noout", "-subject", "-in", Cert | NameOpts], "subject=(.*)"), maps:get(subject, Peer)),
        ?assertEqual(openssl(["x509", "-noout", "-issuer", "-in", Cert | NameOpts], "issuer=(.*)"), maps:get(issuer, Peer)),
        File = session_file("ec", Config),
        ?assertEqual(openssl(["sess_id", "-noout", "-text", "-in", File], "Session-ID: (.*)"), Id),
        Suite = openssl(["sess_id", "-noout", "-text", "-in", File], "Cipher *: (.*)"),
        ?assertEqual(Suite, unicode:characters_to_binary(openssl_name(Cipher))),
        Secret = binary:decode_hex(openssl(["sess_id", "-noout", "-text", "-in", File], "Master-Key: (.*)")),
        ?assertEqual(48, byte_size(Secret)),
        ?assertEqual(nomatch, binary:match(term_to_binary(Page), Secret)),
        ?assertEqual(nomatch, string:find(term_to_binary(Page), binary:encode_hex(Secret)))
    end).

openssl_name(Cipher) ->
    ssl:suite_to_openssl_str(ssl:str_to_suite(unicode:characters_to_list(Cipher))).

pages_hold_each_session_once(Config) ->
    with_servers(2, [], Config, fun(Node, Ports) ->
        rekindle_node:run(Node, fun() ->
            References = rekindle_servers:caches(),
            Held = [{Port, N} || {Port, Place} <- lists:zip(Ports, [0, 1000]), N <- lists:seq(Place + 1, Place + 300)],
            [rekindle:update(maps:get(Port, References), <<N:256>>, N) || {Port, N} <- Held],
            Met = all_pages(all, 7),
            ?assertEqual(lists:sort(Held), lists:sort([{Port, binary:decode_unsigned(binary:decode_hex(Id))} || #{scope := {_, _, {_, Port}}, id := Id} <- Met])),
            ?assertMatch(#{cipher := undefined, peer := undefined, age_at_last_use := undefined}, hd(Met)),
            ?assertEqual(300, length(all_pages(hd(Ports), 50)))
        end),
        ?assertMatch({error, {no_such_scope, 1, [_, _]}}, admin(Node, sessions, [1]))
    end).

all_pages(Which, Limit) ->
    all_pages(Which, Limit, rekindle_admin:sessions(Which, #{limit => Limit})).

all_pages(_, Limit, #{sessions := Sessions, next := done}) ->
    ?assert(length(Sessions) =< Limit),
    Sessions;
all_pages(Which, Limit, #{sessions := Sessions, next := Next}) ->
    ?assertEqual(Limit, length(Sessions)),
    Sessions ++ all_pages(Which, Limit, rekindle_admin:sessions(Which, #{limit => Limit, from => Next})).

%% ---- act ----

a_flush_drops_the_sessions_of_the_scopes_meant(Config) ->
    with_servers(2, [], Config, fun(Node, [Port, Other]) ->
        [{1, 0} = save(P, "ec" ++ integer_to_list(P), Config) || P <- [Port, Other]],
        ?assertEqual({ok, 1}, admin(Node, flush, [Port])),
        ?assertEqual({1, 0}, offer(Port, "ec" ++ integer_to_list(Port), Config)),
        ?assertEqual({0, 1}, offer(Other, "ec" ++ integer_to_list(Other), Config)),
        ?assertEqual({ok, 2}, admin(Node, flush, [])),
        ?assertEqual({ok, 0}, admin(Node, flush, [all])),
        ?assertMatch({error, {no_such_scope, 1, [{listener, tls, {_, Port}}, {listener, tls, {_, Other}}]}}, admin(Node, flush, [1])),
        ?assertMatch({error, {no_such_scope, client, _}}, admin(Node, flush, [client]))
    end).

a_forgotten_session_is_not_resumed(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        Forms = [fun binary:decode_hex/1, fun(Hex) -> Hex end, fun(Hex) -> string:lowercase(binary_to_list(Hex)) end],
        [
            begin
                {1, 0} = save(Port, "ec", Config),
                {1, 0} = save(Port, "rsa", Config),
                Id = openssl(["sess_id", "-noout", "-text", "-in", session_file("ec", Config)], "Session-ID: (.*)"),
                ?assertEqual({ok, 1}, admin(Node, forget, [Form(Id)])),
                ?assertEqual({ok, 0}, admin(Node, forget, [Form(Id)])),
                ?assertEqual({1, 0}, offer(Port, "ec", Config)),
                ?assertEqual({0, 1}, offer(Port, "rsa", Config))
            end
         || Form <- Forms
        ],
        [?assertMatch({error, {bad_session_id, _}}, admin(Node, forget, [Bad])) || Bad <- [<<1, 2>>, "xyz", foo, 17, [a | b], <<"AB">>]]
    end).

revoked_clients_do_not_resume_and_others_do(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        #{cert := File} = identity("ec", Config),
        {ok, Pem} = file:read_file(File),
        [{_, Der, _}] = public_key:pem_decode(Pem),
        {ok, CaPem} = file:read_file(maps:get(ca, ?config(certs, Config))),
        [{_, CaDer, _}] = public_key:pem_decode(CaPem),
        #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{issuer = Issuer, serialNumber = Serial}} = Otp = public_key:pkix_decode_cert(Der, otp),
        Fingerprint = openssl(["x509", "-noout", "-fingerprint", "-sha256", "-in", File], "Fingerprint=(.*)"),
        Sha1 = openssl(["x509", "-noout", "-fingerprint", "-sha1", "-in", File], "Fingerprint=(.*)"),
        Own = [
            Der, Pem, binary_to_list(Pem), Otp, public_key:pkix_decode_cert(Der, plain), Fingerprint, binary_to_list(Fingerprint),
            string:lowercase(Fingerprint), crypto:hash(sha256, Der), Sha1, crypto:hash(sha, Der)
        ],
        ByIssuer = [{issuer, CaPem}, {issuer, CaDer}, {issuer, public_key:pkix_decode_cert(CaDer, otp)}, {issuer, Issuer}],
        [
            begin
                _ = [{1, 0} = save(Port, Name, Config) || Name <- ["ec", "rsa"]],
                ?assertEqual({ok, Dropped}, admin(Node, revoke, [Wanted])),
                ?assertEqual({ok, 0}, admin(Node, revoke, [Wanted])),
                ?assertEqual({1, 0}, offer(Port, "ec", Config)),
                ?assertEqual(case Dropped of 1 -> {0, 1}; 2 -> {1, 0} end, offer(Port, "rsa", Config)),
                {ok, _} = admin(Node, flush, [])
            end
         || {Wanted, Dropped} <- [{Wanted, 1} || Wanted <- Own] ++ [{{issuer, CaDer, Serial}, 1}] ++ [{Wanted, 2} || Wanted <- ByIssuer]
        ],
        {ok, OtherCa} = file:read_file(maps:get(other_ca, ?config(certs, Config))),
        {1, 0} = save(Port, "ec", Config),
        [?assertEqual({ok, 0}, admin(Node, revoke, [Other])) || Other <- [OtherCa, {issuer, OtherCa}, {issuer, CaDer, Serial + 1}, {issuer, OtherCa, Serial}, crypto:hash(sha256, <<>>)]],
        ?assertEqual({0, 1}, offer(Port, "ec", Config))
    end).

sessions_without_a_template_are_revoked_too(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        {1, 0} = save(Port, "ec", Config),
        rekindle_node:run(Node, fun() ->
            #{Port := Reference} = rekindle_servers:caches(),
            [{Key, Session}] = rekindle:foldl(fun(Held, Acc) -> [Held | Acc] end, [], Reference),
            %% A second field of 48 bytes: which of them is the secret cannot be told.
            Odd = list_to_tuple(tuple_to_list(setelement(2, Session, <<7:256>>)) ++ [binary:copy(<<1>>, 48)]),
            ok = rekindle:update(Reference, <<7:256>>, Odd),
            ?assertMatch(#{templates := 1, sessions := 2, refused := 0}, hd(rekindle_admin:info(Port))),
            #{sessions := Sessions} = rekindle_admin:sessions(Port),
            [#{peer := Peer, cipher := Cipher}, #{peer := Peer, cipher := Cipher}] = Sessions,
            ?assertEqual({ok, 2}, rekindle_admin:revoke(maps:get(fingerprint, Peer))),
            ?assertEqual(undefined, rekindle:lookup(Reference, Key))
        end)
    end).

all_of_many_sessions_are_revoked(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        {1, 0} = save(Port, "ec", Config),
        rekindle_node:run(Node, fun() ->
            #{Port := Reference} = rekindle_servers:caches(),
            [{_, Session}] = rekindle:foldl(fun(Held, Acc) -> [Held | Acc] end, [], Reference),
            Certificate = element(4, Session),
            [
                ok = rekindle:update(Reference, <<N:256>>, setelement(4, setelement(2, Session, <<N:256>>), Of))
             || N <- lists:seq(1, 3000), Of <- [case N rem 3 of 0 -> undefined; _ -> Certificate end]
            ],
            ?assertMatch([#{sessions := 3001, templates := 1}], rekindle_admin:info(Port)),
            ?assertEqual({ok, 2001}, rekindle_admin:revoke(Certificate)),
            Left = [Key || Key <- rekindle:foldl(fun({Key, _}, Acc) -> [Key | Acc] end, [], Reference)],
            ?assertEqual([<<N:256>> || N <- lists:seq(3, 3000, 3)], lists:sort(Left))
        end)
    end).

several_certificates_are_revoked_in_one_call(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        Names = ["ec", "rsa"],
        [EcPem, RsaPem] = [begin #{cert := File} = identity(Name, Config), {ok, Pem} = file:read_file(File), Pem end || Name <- Names],
        Fingerprint = binary_to_list(openssl(["x509", "-noout", "-fingerprint", "-sha256", "-in", maps:get(cert, identity("rsa", Config))], "Fingerprint=(.*)")),
        [
            begin
                [{1, 0} = save(Port, Name, Config) || Name <- Names],
                ?assertEqual({List, {ok, Dropped}}, {List, admin(Node, revoke, [List])}),
                ?assertEqual([{1, 0} || _ <- lists:seq(1, Dropped)], [Counts || Name <- Names, {1, 0} = Counts <- [offer(Port, Name, Config)]]),
                {ok, _} = admin(Node, flush, [])
            end
         || {List, Dropped} <- [{[EcPem, RsaPem], 2}, {[EcPem], 1}, {[EcPem, Fingerprint, EcPem], 2}, {[crypto:strong_rand_bytes(32), Fingerprint], 1}]
        ],
        %% One that is wrong, and none is revoked.
        {1, 0} = save(Port, "ec", Config),
        [?assertMatch({error, {bad_certificate, _}}, admin(Node, revoke, [List])) || List <- [[EcPem, foo], [EcPem | foo], []]],
        ?assertEqual({0, 1}, offer(Port, "ec", Config))
    end).

what_is_no_certificate_is_refused(_Config) ->
    Bad = [foo, <<>>, <<"-----BEGIN">>, <<48, 3, 1, 2, 3>>, "AB:CD", {issuer, foo}, {issuer, <<1>>, 2}, {issuer, {rdnSequence, foo}, 2}, {'OTPCertificate', a, b, c}, 17, [a | b]],
    [?assertMatch({error, {bad_certificate, "allowed: " ++ _}}, rekindle_admin:revoke(Wanted)) || Wanted <- Bad].

limits_are_changed_at_once(Config) ->
    Env = [{session_cb_init_args, [{max_sessions, 1000}, {lifetime, 3600}]}],
    with_servers(2, Env, Config, fun(Node, [Port, Other]) ->
        rekindle_node:run(Node, fun() ->
            #{Port := Reference, Other := Beside} = rekindle_servers:caches(),
            [rekindle:update(R, <<N:256>>, N) || R <- [Reference, Beside], N <- lists:seq(1, 500)],
            ?assertEqual({ok, 1}, rekindle_admin:set(Port, [{max_sessions, 20}])),
            rekindle_node:await(fun() -> rekindle:size(Reference) =:= 20 end),
            ?assertMatch([#{max_sessions := 20, lifetime := 3600, evicted := 480}], rekindle_admin:info(Port)),
            ?assertEqual({ok, 1}, rekindle_admin:set(Port, [{max_sessions, infinity}, {max_bytes, 1 bsl 30}])),
            [rekindle:update(Reference, <<N:256>>, N) || N <- lists:seq(1, 2000)],
            ?assertMatch([#{max_sessions := infinity, max_bytes := 1 bsl 30, sessions := 2000}], rekindle_admin:info(Port)),
            ?assertMatch([#{max_sessions := 1000, sessions := 500}], rekindle_admin:info(Other)),
            timer:sleep(1100),
            ?assertEqual({ok, 2}, rekindle_admin:set(all, [{lifetime, 1}])),
            ?assertEqual(undefined, rekindle:lookup(Reference, <<1:256>>)),
            rekindle_node:await(fun() -> rekindle:size(Reference) + rekindle:size(Beside) =:= 0 end)
        end)
    end).

wrong_limits_change_nothing(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        Before = limits(Node, Port),
        Wrong = [
            {[{max_sessions, 0}], "max_sessions is 0"},
            {[{lifetime, 10}, {max_bytes, -1}], "max_bytes is -1"},
            {[{scope, listener}], "scope"},
            {[{role, client}], "role"},
            {[{speed, 3}], "speed"},
            {foo, "foo"}
        ],
        [
            begin
                {error, {bad_option, Line}} = admin(Node, set, [Port, Limits]),
                ?assertNotEqual(nomatch, string:find(Line, Named)),
                ?assertNotEqual(nomatch, string:find(Line, "allowed: "))
            end
         || {Limits, Named} <- Wrong
        ],
        ?assertEqual(Before, limits(Node, Port)),
        ?assertMatch({error, {no_such_scope, 1, [_]}}, admin(Node, set, [1, [{lifetime, 5}]]))
    end).

limits(Node, Port) ->
    [Info] = admin(Node, info, [Port]),
    maps:with([max_bytes, max_sessions, lifetime], Info).

%% ---- doctor ----

nothing_is_found_where_all_is_well(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        _ = rekindle_node:call(Node, rekindle_servers, start, [dtls, server_opts(Config, 'dtlsv1.2')]),
        {1, 0} = save(Port, "ec", Config),
        ?assertEqual([], findings(Node)),
        ?assertEqual("Nothing wrong found.\n", rekindle_doctor:format([]))
    end).

missing_keys_are_found(_Config) ->
    Node = rekindle_node:start_ssl([{client_session_cb, unset}]),
    ?assertMatch([{warning, "in sys.config, write {ssl, [{client_session_cb, rekindle}]}" ++ _}], findings(Node)),
    [ok = rekindle_node:call(Node, application, unset_env, [ssl, Key]) || Key <- [session_cb, server_session_cb]],
    ?assertMatch([{error, "in sys.config, write {ssl, [{session_cb, rekindle}, {server_session_cb, rekindle}, {client_session_cb" ++ _}], findings(Node)),
    rekindle_node:stop(Node).

a_late_configuration_is_found(Config) ->
    Keys = [session_cb, server_session_cb, client_session_cb],
    Node = rekindle_node:start_ssl([{Key, unset} || Key <- Keys]),
    Start = fun() -> element(2, rekindle_node:call(Node, rekindle_servers, start, [tls, server_opts(Config, 'tlsv1.2')])) end,
    Early = Start(),
    [ok = rekindle_node:call(Node, application, set_env, [ssl, Key, rekindle]) || Key <- Keys],
    _Late = Start(),
    [{error, Listener}, {warning, Started}] = findings(Node),
    ?assertMatch({match, _}, re:run(Started, "^ssl had started before its keys were set")),
    Address = "127.0.0.1:" ++ integer_to_list(Early),
    ?assertEqual({match, [Address]}, re:run(Listener, "the listener (\\S+) does not use Rekindle", [{capture, all_but_first, list}])),
    rekindle_node:stop(Node).

listeners_that_resume_nothing_are_found(Config) ->
    with_servers(1, [], Config, fun(Node, [_]) ->
        Start = fun(Opts) -> element(2, rekindle_node:call(Node, rekindle_servers, start, [tls, Opts])) end,
        Off = Start(lists:keyreplace(reuse_sessions, 1, server_opts(Config, 'tlsv1.2'), {reuse_sessions, false})),
        Newer = Start(server_opts(Config, 'tlsv1.3')),
        [{warning, NoReuse}, {note, Tickets}] = findings(Node),
        ?assertMatch({match, _}, re:run(NoReuse, "127.0.0.1:" ++ integer_to_list(Off) ++ " has {reuse_sessions, false}")),
        ?assertMatch({match, _}, re:run(Tickets, "127.0.0.1:" ++ integer_to_list(Newer) ++ " speaks TLS 1.3 only"))
    end).

wrong_options_and_a_missing_library_are_found(_Config) ->
    Node = rekindle_node:start_ssl([]),
    ok = rekindle_node:call(Node, application, set_env, [ssl, session_cb_init_args, [{max_bytes, none}]]),
    ?assertMatch([{error, "rekindle: option max_bytes is none; allowed: " ++ _}], findings(Node)),
    %% Where the library could not be loaded, this is what is left of the attempt.
    ok = rekindle_node:call(Node, persistent_term, put, [rekindle_nif, {error, {"rekindle_nif.so", "wrong ELF class"}}]),
    ?assertMatch([{error, "the native library rekindle_nif.so cannot be loaded: wrong ELF class" ++ _} | _], findings(Node)),
    rekindle_node:stop(Node).

bounds_that_are_too_small_are_found(Config) ->
    with_servers(1, [{session_cb_init_args, [{max_sessions, 1000}]}], Config, fun(Node, [Port]) ->
        Fill = fun(From, To) ->
            rekindle_node:run(Node, fun() -> [rekindle:update(maps:get(Port, rekindle_servers:caches()), <<N:256>>, N) || N <- lists:seq(From, To)], ok end)
        end,
        Lookup = fun() -> rekindle_node:run(Node, fun() -> [rekindle:lookup(maps:get(Port, rekindle_servers:caches()), <<N:256>>) || N <- lists:seq(900, 999)], ok end) end,
        Fill(1, 1000),
        ?assertMatch([{note, _}], findings(Node)),
        Lookup(),
        ?assertEqual([], findings(Node)),
        Fill(1001, 1100),
        ?assertMatch([{warning, _}], findings(Node)),
        [{_, Sessions}] = findings(Node),
        ?assertMatch({match, _}, re:run(Sessions, "9 % of the sessions stored were dropped.*max_sessions, which is 1000")),
        {ok, 1} = admin(Node, set, [Port, [{max_sessions, infinity}, {max_bytes, 100_000}]]),
        [{_, Bytes}] = findings(Node),
        ?assertMatch({match, _}, re:run(Bytes, "raise max_bytes, which is 97.7 KiB; a session takes [0-9]+ bytes"))
    end).

starting_the_application_logs_what_is_wrong(_Config) ->
    Node = rekindle_node:start_ssl([{client_session_cb, unset}]),
    rekindle_node:run(Node, fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        {ok, [rekindle]} = application:ensure_all_started(rekindle),
        Line = receive {logged, warning, "rekindle: in sys.config, write" ++ _ = L} -> L after 5000 -> error(nothing_logged) end,
        ?assertNotEqual(nomatch, string:find(Line, "client_session_cb")),
        ok = application:stop(rekindle),
        %% The cache goes on.
        ?assertMatch([], [Info || #{role := server} = Info <- rekindle_admin:info()])
    end),
    rekindle_node:stop(Node).

%% A logger handler.
log(#{level := Level} = Event, #{config := Pid}) ->
    Pid ! {logged, Level, unicode:characters_to_list(logger_formatter:format(Event, #{template => [msg], single_line => true}))}.

%% ---- servers and clients ----

%% Runs `Fun' with a node and the ports of listeners there that ask for client certificates.
with_servers(Number, Env, Config, Fun) ->
    Node = rekindle_node:start_ssl(Env),
    Ports = [element(2, rekindle_node:call(Node, rekindle_servers, start, [tls, server_opts(Config, 'tlsv1.2')])) || _ <- lists:seq(1, Number)],
    Fun(Node, Ports),
    rekindle_node:stop(Node).

server_opts(Config, Version) ->
    #{ca := Ca, server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    [
        {certfile, Cert}, {keyfile, Key}, {versions, [Version]}, {cacertfile, Ca}, {verify, verify_peer}, {fail_if_no_peer_cert, true}
        %% OTP refuses the option where there is only 1.3.
        | [{reuse_sessions, true} || Version =/= 'tlsv1.3']
    ].

admin(Node, Function, Args) ->
    rekindle_node:call(Node, rekindle_admin, Function, Args).

findings(Node) ->
    [{Level, unicode:characters_to_list(Line)} || {Level, Line} <- rekindle_node:call(Node, rekindle_doctor, findings, [])].

%% The client whose certificate is of that key. `Name' may go on after it.
identity("ec" ++ _, Config) -> maps:get(ec, maps:get(client, ?config(certs, Config)));
identity("rsa" ++ _, Config) -> maps:get(rsa, maps:get(client, ?config(certs, Config))).

client_opts(Name, Config) ->
    #{cert := Cert, key := Key} = identity(Name, Config),
    #{cafile => maps:get(ca, ?config(certs, Config)), certfile => Cert, keyfile => Key}.

%% How many full handshakes, and how many resumed.
save(Port, Name, Config) ->
    counts(rekindle_clients:openssl_save(tls, Port, session_file(Name, Config), client_opts(Name, Config))).

offer(Port, Name, Config) ->
    counts(rekindle_clients:openssl_offer(tls, Port, session_file(Name, Config), client_opts(Name, Config))).

counts(#{full := Full, resumed := Resumed}) ->
    {Full, Resumed}.

session_file(Name, Config) ->
    filename:join(?config(priv_dir, Config), Name ++ ".session").

%% What openssl prints.
openssl(Args, Regexp) ->
    {0, Output} = rekindle_clients:run("openssl", Args, [], 10_000),
    {match, [Found]} = re:run(Output, Regexp, [{capture, all_but_first, binary}]),
    Found.
