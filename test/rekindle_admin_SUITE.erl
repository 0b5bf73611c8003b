%% Tests the operator's functions on a real node with real clients.
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
            what_was_refused_or_missed_is_counted_by_reason,
            no_line_is_wider_than_asked_for,
            the_reasons_are_those_there_are,
            a_scope_has_one_name,
            modules_call_each_other_one_way,
            text_is_printed_to_the_caller,
            text_is_shown_as_it_is_from_outside,
            without_a_library_it_says_so,
            the_table_is_printed_again_until_enter,
            sessions_are_shown_without_secrets,
            any_certificate_is_shown,
            pages_hold_each_session_once
        ]},
        {act, [], [
            a_flush_drops_the_sessions_of_the_scopes_meant,
            a_forgotten_session_is_not_resumed,
            revoked_clients_do_not_resume_and_others_do,
            a_certificate_with_another_signature_is_revoked_too,
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
            misspelt_keys_and_options_are_found,
            misplaced_options_are_found,
            an_ssl_that_is_not_started_is_found,
            modules_that_are_missing_are_found,
            a_late_configuration_is_found,
            a_cache_that_keeps_nothing_is_found,
            listeners_that_resume_nothing_are_found,
            listeners_whose_clients_speak_tls_1_3_are_found,
            wrong_options_and_a_missing_library_are_found,
            absurd_bounds_are_found,
            bounds_that_are_too_small_are_found,
            sessions_of_other_nodes_count_as_stored,
            reasons_why_nothing_is_resumed_are_found,
            folders_that_others_can_write_to_are_found,
            scopes_without_a_journal_are_found,
            what_is_wrong_in_many_scopes_is_reported_once,
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
        ?assertMatch(
            #{sessions := 1, hits := 2, misses := 0, inserts := 1, hit_rate := 1.0, oldest := Age} when is_integer(Age), Own
        ),
        ?assertMatch([#{misses := 1, hit_rate := Rate}] when Rate == 0, admin(Node, info, [Other])),
        ?assertMatch([#{scope := client, hit_rate := undefined}], admin(Node, info, [client])),
        Text = "tls 127.0.0.1:" ++ integer_to_list(Port),
        [?assertEqual([Port], Info(Which)) || Which <- [Port, {{127, 0, 0, 1}, Port}, Label, Own, Text, list_to_binary(Text)]],
        ?assertEqual([Port, Other], Info(all)),
        [?assertEqual([], Info(Which)) || Which <- [1, {{127, 0, 0, 2}, Port}, {name, none}, foo, "tls", [a | b], <<255>>]]
    end).

the_tables_tell_the_same(Config) ->
    Nothing = unicode:characters_to_list(rekindle_table:of_scopes([], 80)),
    ?assertNotEqual(nomatch, string:find(Nothing, "rekindle_admin:doctor()")),
    Env = [{session_cb_init_args, [{max_sessions, 1234}, {max_bytes, 10 bsl 20}, {lifetime, 90_000}]}],
    with_servers(1, Env, Config, fun(Node, [Port]) ->
        {1, 0} = save(Port, "ec", Config),
        {0, 1} = offer(Port, "ec", Config),
        Infos = [_, #{bytes := Bytes}] = rekindle_node:call(Node, rekindle_admin, info, []),
        [Held, Happened, Certified] = scope_tables(Infos),
        Scope = "tls 127.0.0.1:" ++ integer_to_list(Port),
        Memory = lists:flatten(rekindle_text:bytes(Bytes)),
        ?assertMatch(
            #{"sessions" := "1", "memory" := Memory, "bound" := "10.0 MiB, 1,234", "lifetime" := "1 d 1 h"},
            maps:get(Scope, Held)
        ),
        ?assertMatch(
            #{"hits" := "1", "misses" := "0", "hit rate" := "100.0 %", "inserts" := "1", "expired" := "0", "evicted" := "0"},
            maps:get(Scope, Happened)
        ),
        ?assertEqual(#{Scope => #{"kept" => "1", "certified sessions" => "1"}}, Certified),
        %% The note on the memory of a small scope is there, and it is true.
        Text = unicode:characters_to_list(rekindle_table:of_scopes(Infos, 80)),
        ?assertNotEqual(nomatch, string:find(Text, "Memory: the first session of a scope takes up to 40 KiB")),
        ?assert(Bytes =< 40 * 1024, Bytes),
        Large = unicode:characters_to_list(rekindle_table:of_scopes([Info#{bytes := 1 bsl 20} || Info <- Infos], 80)),
        ?assertEqual(nomatch, string:find(Large, "Memory: "))
    end).

%% The columns are told apart by numbers that no journal has made.
journals_have_tables_of_their_own(Config) ->
    Folder = filename:join(?config(priv_dir, Config), "tables"),
    with_servers(1, [{session_cb_init_args, [{journal, {folder, Folder}}]}], Config, fun(Node, [Port]) ->
        [#{journal := Journal} = Info] = admin(Node, info, [Port]),
        Scope = "tls 127.0.0.1:" ++ integer_to_list(Port),
        Text = fun(Changes) ->
            unicode:characters_to_list(rekindle_table:of_journals([Info#{journal := maps:merge(Journal, Changes)}], 80))
        end,
        Numbers = #{
            state => up,
            since => 61,
            queued => 1,
            written => 2,
            dropped => 3,
            read => 4,
            applied => 5,
            revocations => 6,
            unwritten => 7,
            missing => 8,
            log_bytes => 9,
            location => <<"/l">>,
            node_folder => <<"/f">>,
            node_folder_error => undefined,
            node_folder_bytes => 10,
            lag => 11,
            replay => 12_000
        },
        [#{Scope := Written}, #{Scope := Read}, #{Scope := Revocations}] = tables_of(Text(Numbers)),
        ?assertEqual(
            #{"state" => "up 1 min 1 s", "queued" => "1", "written" => "2", "dropped" => "3", "log size" => "9 B"}, Written
        ),
        ?assertEqual(#{"read" => "4", "applied" => "5", "skipped" => "0", "lag" => "11 ms", "replay" => "12 s"}, Read),
        ?assertEqual(#{"remembered" => "6", "unwritten" => "7", "missing" => "8", "folder size" => "10 B"}, Revocations),
        ?assertNotEqual(nomatch, string:find(Text(Numbers), Scope ++ ": log /l, node folder /f\n")),
        Skipped = maps:map(fun(_, _) -> 0 end, maps:get(skipped, Journal)),
        [_, #{Scope := #{"skipped" := "5"}}, #{Scope := Reasons}, _] = tables_of(
            Text(Numbers#{skipped => Skipped#{key := 2, future := 3}})
        ),
        ?assertEqual(#{"key" => "2", "future" => "3"}, Reasons),
        Failed = Text(Numbers#{node_folder_error => <<"full">>, log_bytes => undefined}),
        ?assertNotEqual(nomatch, string:find(Failed, "node folder /f, which cannot be used: full\n")),
        ?assertMatch([#{Scope := #{"log size" := "-"}} | _], tables_of(Failed)),
        Without = Text(Numbers#{node_folder => undefined}),
        ?assertNotEqual(nomatch, string:find(Without, "node folder none\n")),
        ?assertMatch([_, _, #{Scope := #{"folder size" := "-"}}], tables_of(Without)),
        ?assertEqual("", lists:flatten(rekindle_table:of_journals([Info#{journal := undefined}], 80)))
    end).

%% The columns are told apart by numbers that no store has made.
what_was_refused_or_missed_is_counted_by_reason(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        Scope = "tls 127.0.0.1:" ++ integer_to_list(Port),
        [Client, Info] = Infos = rekindle_node:call(Node, rekindle_admin, info, []),
        None = #{too_large => 0, no_room => 0, private_key => 0, layout => 0, lifetime => 0, certificate => 0},
        [?assertMatch(#{refused := 0, refused_by := None}, Some) || Some <- Infos],
        ?assertMatch([_, _], scope_tables(Infos)),
        By = #{too_large => 1, no_room => 2, private_key => 3, layout => 4, lifetime => 5, certificate => 6},
        Made = Info#{
            certified => 6,
            certificates => 7,
            evicted_misses => 8,
            lost_misses => 9,
            certificate_misses => 10,
            unknown_misses => 11,
            misses => 38,
            refused => 21,
            refused_by => By,
            faults => 16
        },
        [_, #{Scope := Happened}, Missed, Certified, Refused, RefusedAlso, Faults] = scope_tables([Client, Made]),
        ?assertMatch(#{"misses" := "38", "hit rate" := _}, Happened),
        ?assertEqual(#{Scope => #{"evicted" => "8", "lost" => "9", "certificate" => "10", "unknown" => "11"}}, Missed),
        ?assertEqual(#{Scope => #{"kept" => "7", "certified sessions" => "6"}}, Certified),
        Cells = #{"too large" => "1", "no room" => "2", "private key" => "3", "layout" => "4", "lifetime" => "5"},
        ?assertEqual(#{Scope => Cells}, Refused),
        ?assertEqual(#{Scope => #{"certificate" => "6"}}, RefusedAlso),
        ?assertEqual(#{Scope => #{"failed calls" => "16"}}, Faults)
    end).

%% With names, numbers and paths as long as they can be, and many scopes.
no_line_is_wider_than_asked_for(Config) ->
    Folder = filename:join(?config(priv_dir, Config), "wide"),
    with_servers(1, [{session_cb_init_args, [{journal, {folder, Folder}}]}], Config, fun(Node, [Port]) ->
        [#{journal := Journal} = Info] = admin(Node, info, [Port]),
        Large = fun
            (_, Value) when is_integer(Value) -> 123_456_789_012;
            (_, Value) when is_map(Value) -> maps:map(fun(_, _) -> 123_456_789_012 end, Value);
            (_, Value) -> Value
        end,
        Deep = list_to_binary(["/" | [["a_long_name_of_a_folder_", integer_to_list(N), "/"] || N <- lists:seq(1, 10)]]),
        Hard = (maps:map(Large, Info))#{
            max_sessions => 1_000_000_000,
            hit_rate => 1.0,
            journal => (maps:map(Large, Journal))#{
                location => Deep, node_folder => Deep, node_folder_error => <<"no room is left">>
            }
        },
        Ip = {16#2001, 16#db8, 16#85a3, 16#8d3, 16#1319, 16#8a2e, 16#370, 16#7348},
        Labels = [
            client,
            upgraded,
            {listener, dtls, {{10, 20, 30, 40}, 65535}},
            {listener, tls, {Ip, 65535}},
            {listener, tls, {{Ip, 65535}, [{netns, "/var/run/netns/customer_17"}, {bind_to_device, <<"eth0.100">>}]}},
            {shared, tls, lists:duplicate(300, $x)},
            {shared, tls, <<"für Geräte"/utf8>>}
            | [{listener, tls, {{10, 0, N div 256, N rem 256}, 8883}} || N <- lists:seq(1, 500)]
        ],
        Text = fun(Infos, Width) ->
            unicode:characters_to_list([rekindle_table:of_scopes(Infos, Width), rekindle_table:of_journals(Infos, Width)])
        end,
        Too = fun(Infos, Width) -> [Line || Line <- string:split(Text(Infos, Width), "\n", all), string:length(Line) > Width] end,
        [
            ?assertEqual({Width, []}, {Width, Too([Shown#{scope := Label} || Label <- Labels], Width)})
         || Shown <- [Info, Hard], Width <- [40, 80, 132]
        ],
        %% Nothing is lost.
        Counts = fun(Width) -> length(string:split(Text([Hard], Width), "123,456,789,012", all)) end,
        ?assertEqual(Counts(infinity), Counts(80)),
        ?assert(Counts(80) > 30),
        %% Usual numbers need one table each, and names stand beside them.
        Usual = Info#{
            scope := {listener, tls, {{10, 20, 30, 40}, 8883}},
            sessions := 98_765,
            bytes := 14 bsl 20,
            hits := 9_876_543,
            inserts := 987_654
        },
        ?assertMatch(
            [#{"tls 10.20.30.40:8883" := _}, #{"tls 10.20.30.40:8883" := _} | _], tables_of(rekindle_table:of_scopes([Usual], 80))
        )
    end).

%% The native library, the code, the types and the documentation have the same ones.
the_reasons_are_those_there_are(Config) ->
    Folder = filename:join(?config(priv_dir, Config), "reasons"),
    with_servers(1, [{session_cb_init_args, [{journal, {folder, Folder}}]}], Config, fun(Node, [Port]) ->
        [#{refused_by := Refused, certificate_misses_by := Missed, journal := #{skipped := Skipped}}] = admin(Node, info, [Port]),
        [
            begin
                Reasons = rekindle_info:reasons(Kind),
                ?assertEqual(lists:sort(Reasons), lists:sort(maps:keys(Counted))),
                ?assertEqual(lists:sort(Reasons), lists:sort(atoms_of_type(Type))),
                [?assertEqual({Page, Reasons}, {Page, documented(Page, Section, Config)}) || {Page, Section} <- Pages]
            end
         || {Kind, Counted, Type, Pages} <- [
                {refused_by, Refused, refusal, [{"docs/metrics.md", "## Why a session is refused"}]},
                {certificate_misses_by, Missed, certificate_miss, []},
                {skipped, Skipped, skipped, [{"docs/journal.md", "## What is left out"}]}
            ]
        ]
    end).

%% In text, in calls of rekindle_admin, and out of the log's own name for it.
a_scope_has_one_name(_Config) ->
    Named = [
        {client, "client"},
        {upgraded, "tls upgraded"},
        {{listener, tls, {{127, 0, 0, 1}, 8883}}, "tls 127.0.0.1:8883"},
        {{listener, dtls, {{0, 0, 0, 0, 0, 0, 0, 1}, 8884}}, "dtls [::1]:8884"},
        {
            {listener, tls, {{{10, 0, 0, 1}, 443}, [{bind_to_device, <<"eth0">>}]}},
            "tls 10.0.0.1:443 [{bind_to_device,<<\"eth0\">>}]"
        },
        {{listener, tls, {local, "/run/sock"}}, "tls local \"/run/sock\""},
        {{shared, tls, mqtt}, "tls shared: mqtt"},
        {{shared, tls, <<"für Geräte"/utf8>>}, "tls shared: <<\"für Geräte\"/utf8>>"},
        {{shared, dtls, #{a => [1.5, "b"]}}, "dtls shared: #{a => [1.5,\"b\"]}"}
    ],
    [
        begin
            LogName = rekindle_scope:log_name(Label),
            ?assertEqual(Label, rekindle_scope:of_log_name(LogName)),
            ?assertEqual(Text, unicode:characters_to_list(rekindle_scope:text(Label))),
            ?assertEqual(Text, unicode:characters_to_list(rekindle_scope:text_of_log_name(LogName))),
            {ok, [{string, _, Quoted}], _} = erl_scan:string(lists:flatten(rekindle_scope:quoted(Label))),
            ?assertEqual(Text, Quoted)
        end
     || {Label, Text} <- Named
    ],
    %% Names that cannot be read back from text.
    Process = rekindle_scope:log_name({shared, tls, self()}),
    ?assertEqual([Process, Process, <<"{a">>], [
        rekindle_scope:of_log_name(Process), rekindle_scope:text_of_log_name(Process), rekindle_scope:of_log_name(<<"{a">>)
    ]).

modules_call_each_other_one_way(_Config) ->
    {ok, Xref} = xref:start([]),
    ok = xref:set_default(Xref, [{warnings, false}, {verbose, false}]),
    {ok, Modules} = xref:add_directory(Xref, filename:dirname(code:which(rekindle))),
    ?assert(lists:member(rekindle_doctor, Modules)),
    {ok, Components} = xref:q(Xref, "components ME"),
    ?assertEqual([], [Circle || [_, _ | _] = Circle <- Components]),
    xref:stop(Xref).

atoms_of_type(Type) ->
    {ok, {_, [{abstract_code, {_, Forms}}]}} = beam_lib:chunks(code:which(rekindle_admin), [abstract_code]),
    [{type, _, union, Atoms}] = [Definition || {attribute, _, type, {Name, Definition, []}} <- Forms, Name =:= Type],
    [Atom || {atom, _, Atom} <- Atoms].

%% The first column of the first table after the heading.
documented(Page, Heading, Config) ->
    {ok, Text} = file:read_file(filename:join(rekindle_checkout:root(Config), Page)),
    [_, Section] = string:split(Text, Heading ++ "\n"),
    [Table | _] = [Part || Part <- string:split(Section, "\n\n", all), string:prefix(string:trim(Part), "|") =/= nomatch],
    {match, Rows} = re:run(Table, "(?m)^\\| `(\\w+)` \\|", [global, {capture, all_but_first, binary}]),
    [binary_to_existing_atom(Reason) || [Reason] <- Rows].

text_is_printed_to_the_caller(Config) ->
    with_servers(1, [{session_cb_init_args, [{max_byte, 1}]}], Config, fun(Node, [Port]) ->
        {1, 0} = save(Port, "ec", Config),
        Scope = "\ntls 127.0.0.1:" ++ integer_to_list(Port) ++ " ",
        {ok, Tables} = printed(Node, print, []),
        ?assertNotEqual(nomatch, string:find(Tables, Scope)),
        {ok, Narrow} = printed(Node, print, [#{width => 40}]),
        ?assertEqual([], [Line || Line <- string:split(Narrow, "\n", all), string:length(Line) > 40]),
        %% Ages in them may change in between.
        rekindle_node:await(fun() -> printed(Node, print, [#{width => 20}]) =:= printed(Node, print, [#{width => 1}]) end),
        {ok, Found} = printed(Node, doctor, []),
        ?assertNotEqual(nomatch, string:find(Found, "did you mean max_bytes?")),
        ?assertEqual([], [Line || Line <- string:split(Found, "\n", all), string:length(Line) > 80]),
        ?assertMatch([{warning, Line}] when is_binary(Line), admin(Node, findings, [])),
        {Report, ""} = printed(Node, report, []),
        ?assert(is_binary(Report)),
        [?assertNotEqual(nomatch, string:find(Report, Part)) || Part <- ["scope ", Scope, "warning: ", "did you mean"]]
    end).

%% The function's result, and the text that it prints.
printed(Node, Function, Args) ->
    rekindle_node:run(Node, fun() ->
        Self = self(),
        {Caller, Monitor} = spawn_monitor(fun() ->
            group_leader(Self, self()),
            exit({answer, apply(rekindle_admin, Function, Args)})
        end),
        collect(Caller, Monitor, [])
    end).

collect(Caller, Monitor, Printed) ->
    receive
        {io_request, Caller, As, Request} ->
            Caller ! {io_reply, As, ok},
            collect(Caller, Monitor, [Printed, chars(Request)]);
        {'DOWN', Monitor, process, _, {answer, Answer}} ->
            {Answer, unicode:characters_to_list(Printed)}
    end.

%% By rpc:call from another node, and with erl_call. A release's own script is in rekindle_install_SUITE.
text_is_shown_as_it_is_from_outside(_Config) ->
    Port = integer_to_list(rekindle_node:free_port()),
    Common = ["-hidden", "-setcookie", "shown", "-start_epmd", "false", "-erl_epmd_port", Port],
    Name = "shown@127.0.0.1",
    Node = rekindle_node:start([], [], [
        "-name",
        Name,
        "-kernel",
        "inet_dist_use_interface",
        "{127,0,0,1}",
        "inet_dist_listen_min",
        Port,
        "inet_dist_listen_max",
        Port
        | Common
    ]),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    Report = binary_to_list(admin(Node, report, [])),
    ?assertMatch({match, _}, re:run(Report, "^scope +sessions .*\nclient +0 .*\n\nNothing wrong found\\.\n$", [dotall])),
    Call = fun(Function) -> ["rpc:call('", Name, "', rekindle_admin, ", Function, ", [])"] end,
    Eval = ["ok = ", Call("print"), ", io:nl(), ok = ", Call("doctor"), ", halt()."],
    Outside = ["-noinput", "-name", "outside@127.0.0.1", "-dist_listen", "false", "-eval", lists:flatten(Eval) | Common],
    ?assertEqual({0, Report}, shown(rekindle_clients:run("erl", Outside, [], 30_000))),
    ErlCall = fun(Function) ->
        Args = [
            "-address",
            "127.0.0.1:" ++ Port,
            "-c",
            "shown",
            "-fetch_stdout",
            "-no_result_term",
            "-a",
            "rekindle_admin " ++ Function
        ],
        {0, Text} = shown(rekindle_clients:run("erl_call", Args, [], 30_000)),
        Text
    end,
    ?assertEqual(Report, ErlCall("print") ++ "\n" ++ ErlCall("doctor")),
    rekindle_node:stop(Node).

shown({Status, Output}) ->
    {Status, lists:flatten(string:replace(unicode:characters_to_list(Output), "\r", "", all))}.

without_a_library_it_says_so(_Config) ->
    Node = rekindle_node:start_ssl([]),
    %% A library that could not be loaded leaves this behind.
    ok = rekindle_node:call(Node, persistent_term, put, [rekindle_nif, {error, {"/lib/rekindle_nif.so", "wrong ELF class"}}]),
    Says = "the native library /lib/rekindle_nif.so cannot be loaded: wrong ELF class.",
    [
        ?assertNotEqual({Function, nomatch}, {Function, string:find(lists:flatten(string:replace(Text, "\n ", "", all)), Says)})
     || {Function, Text} <-
            [{Function, element(2, printed(Node, Function, []))} || Function <- [print, doctor]] ++
                [{report, admin(Node, report, [])}]
    ],
    rekindle_node:stop(Node).

the_table_is_printed_again_until_enter(Config) ->
    with_servers(1, [], Config, fun(Node, [_]) ->
        rekindle_node:run(Node, fun() ->
            Self = self(),
            {Top, Monitor} = spawn_monitor(fun() ->
                group_leader(Self, self()),
                rekindle_admin:top(1)
            end),
            %% The request for a line is answered after the table was printed twice.
            Asked =
                receive
                    {io_request, Top, As, {get_line, _, _}} -> As
                end,
            [
                receive
                    {io_request, From, To, Request} ->
                        ?assertMatch({match, _}, re:run(chars(Request), "127.0.0.1")),
                        From ! {io_reply, To, ok}
                end
             || _ <- [1, 2]
            ],
            Top ! {io_reply, Asked, "\n"},
            ?assertEqual(
                normal,
                receive
                    {'DOWN', Monitor, process, _, Reason} -> Reason
                end
            )
        end)
    end).

%% The tables of scopes.
scope_tables(Infos) ->
    tables_of(rekindle_table:of_scopes(Infos, 80)).

%% The rows of each table by scope, each with its cells by column.
tables_of(Chars) ->
    Text = string:trim(unicode:characters_to_list(Chars), leading, "\n"),
    [
        begin
            [[_ | Columns] | Rows] = [
                string:lexemes(re:replace(Line, "  +", "|", [global, unicode, {return, list}]), "|")
             || Line <- Lines
            ],
            maps:from_list([{Scope, maps:from_list(lists:zip(Columns, Cells))} || [Scope | Cells] <- Rows])
        end
     || Table <- string:split(Text, "\n\n", all),
        Lines <- [
            [
                Line
             || Line <- string:lexemes(Table, "\n"), string:find(Line, "  ") =/= nomatch, string:prefix(Line, "  ") =:= nomatch
            ]
        ],
        Lines =/= []
    ].

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
        ?assertEqual(
            openssl(["x509", "-noout", "-fingerprint", "-sha256", "-in", Cert], "Fingerprint=(.*)"), maps:get(fingerprint, Peer)
        ),
        ?assertEqual(
            binary_to_integer(openssl(["x509", "-noout", "-serial", "-in", Cert], "serial=(.*)"), 16), maps:get(serial, Peer)
        ),
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

any_certificate_is_shown(_Config) ->
    {_, [Der]} = rekindle_certs:series(1),
    Named = fun(Tag, <<_:8/binary>> = Name) -> binary:replace(Der, <<12, 8, "device-0">>, <<Tag, 8, Name/binary>>) end,
    [Bmp, Universal, Teletex, Utf8, Octets] = [30, 28, 20, 12, 4],
    Shown = [
        {Named(Bmp, <<"Ключ"/utf16>>), "CN=Ключ"},
        {Named(Bmp, <<"😀ab"/utf16>>), "CN=😀ab"},
        {Named(Universal, <<"Ж😀"/utf32>>), "CN=Ж😀"},
        {Named(Teletex, <<"Sch", 252, "ssel">>), "CN=Schüssel"},
        %% No characters.
        {Named(Bmp, <<16#D800:16, "abc"/utf16>>), "CN="},
        {Named(Universal, <<1:32, 16#7000000:32>>), "CN="},
        {Named(Utf8, <<255, "evice-0">>), "CN="},
        {Named(Octets, <<"device-0">>), "unreadable"}
    ],
    Value = fun(Tag, Content) -> <<Tag, (byte_size(Content)), Content/binary>> end,
    Parts = fun(Contents) -> Value(48, iolist_to_binary(Contents)) end,
    Algorithm = Parts([<<6, 1, 42>>]),
    %% public_key cannot decode it, and the native side can.
    Odd = Parts([Parts([<<2, 1, 7>>, Algorithm, Parts([<<"??">>]), Parts([])]), Algorithm, <<3, 2, 0, 9>>]),
    ?assertError(_, public_key:pkix_decode_cert(Odd, otp)),
    Node = rekindle_node:start_ssl([]),
    rekindle_node:run(Node, fun() ->
        Cache = rekindle:init([{role, server}]),
        Certificates = lists:enumerate([Odd | [Certificate || {Certificate, _} <- Shown]]),
        [
            ok = rekindle:update(
                Cache, <<N:256>>, setelement(4, rekindle_sessions:make({session, otp_25, verified, N}, <<N:256>>), Certificate)
            )
         || {N, Certificate} <- Certificates
        ],
        #{sessions := Sessions} = rekindle_admin:sessions(),
        ?assertEqual(length(Certificates), length(Sessions)),
        Peers = maps:from_list([{Fingerprint, Peer} || #{peer := #{fingerprint := Fingerprint} = Peer} <- Sessions]),
        Peer = fun(Certificate) -> maps:get(fingerprint(Certificate), Peers) end,
        [
            ?assertMatch(
                {_, [_]},
                {Text, [Subject || #{subject := Subject} <- [Peer(Certificate)], string:find(Subject, Text) =/= nomatch]}
            )
         || {Certificate, Text} <- Shown
        ],
        [
            ?assertNotEqual(nomatch, string:find(maps:get(issuer, Peer(Certificate)), "CN=Rekindle test CA,"))
         || {Certificate, _} <- Shown
        ],
        ?assertMatch(#{subject := <<"unreadable">>, issuer := <<"unreadable">>}, Peer(Odd)),
        ok = rekindle:terminate(Cache)
    end),
    rekindle_node:stop(Node),
    None = rekindle_certificate:summary(<<"none">>),
    ?assertEqual(
        #{subject => <<"unreadable">>, issuer => <<"unreadable">>, serial => undefined, fingerprint => fingerprint(<<"none">>)},
        None
    ).

fingerprint(Der) ->
    iolist_to_binary(lists:join($:, [binary:encode_hex(<<Byte>>) || <<Byte>> <= crypto:hash(sha256, Der)])).

openssl_name(Cipher) ->
    ssl:suite_to_openssl_str(ssl:str_to_suite(unicode:characters_to_list(Cipher))).

pages_hold_each_session_once(Config) ->
    with_servers(2, [], Config, fun(Node, Ports) ->
        rekindle_node:run(Node, fun() ->
            References = rekindle_servers:caches(),
            Held = [{Port, N} || {Port, Place} <- lists:zip(Ports, [0, 1000]), N <- lists:seq(Place + 1, Place + 300)],
            [rekindle:update(maps:get(Port, References), <<N:256>>, N) || {Port, N} <- Held],
            Met = all_pages(all, 7),
            ?assertEqual(
                lists:sort(Held),
                lists:sort([
                    {Port, binary:decode_unsigned(binary:decode_hex(Id))}
                 || #{scope := {_, _, {_, Port}}, id := Id} <- Met
                ])
            ),
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
        ?assertMatch(
            {error, {no_such_scope, 1, [{listener, tls, {_, Port}}, {listener, tls, {_, Other}}]}}, admin(Node, flush, [1])
        ),
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
        [
            ?assertMatch({error, {bad_session_id, _}}, admin(Node, forget, [Bad]))
         || Bad <- [<<1, 2>>, "xyz", foo, 17, [a | b], <<"AB">>]
        ]
    end).

revoked_clients_do_not_resume_and_others_do(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        #{cert := File} = identity("ec", Config),
        {ok, Pem} = file:read_file(File),
        [{_, Der, _}] = public_key:pem_decode(Pem),
        {ok, CaPem} = file:read_file(maps:get(ca, ?config(certs, Config))),
        [{_, CaDer, _}] = public_key:pem_decode(CaPem),
        #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{issuer = Issuer, serialNumber = Serial}} =
            Otp = public_key:pkix_decode_cert(Der, otp),
        Fingerprint = openssl(["x509", "-noout", "-fingerprint", "-sha256", "-in", File], "Fingerprint=(.*)"),
        Sha1 = openssl(["x509", "-noout", "-fingerprint", "-sha1", "-in", File], "Fingerprint=(.*)"),
        Own = [
            Der,
            Pem,
            binary_to_list(Pem),
            Otp,
            public_key:pkix_decode_cert(Der, plain),
            Fingerprint,
            binary_to_list(Fingerprint),
            string:lowercase(Fingerprint),
            crypto:hash(sha256, Der),
            Sha1,
            crypto:hash(sha, Der)
        ],
        ByIssuer = [{issuer, CaPem}, {issuer, CaDer}, {issuer, public_key:pkix_decode_cert(CaDer, otp)}, {issuer, Issuer}],
        [
            begin
                _ = [{1, 0} = save(Port, Name, Config) || Name <- ["ec", "rsa"]],
                ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
                ?assertEqual({ok, Dropped}, admin(Node, revoke, [Wanted])),
                ?assertEqual({ok, 0}, admin(Node, revoke, [Wanted])),
                ?assertEqual({1, 0}, offer(Port, "ec", Config)),
                ?assertEqual(
                    case Dropped of
                        1 -> {0, 1};
                        2 -> {1, 0}
                    end,
                    offer(Port, "rsa", Config)
                ),
                {ok, _} = admin(Node, flush, [])
            end
         || {Wanted, Dropped} <-
                [{Wanted, 1} || Wanted <- Own] ++ [{{issuer, CaDer, Serial}, 1}] ++ [{Wanted, 2} || Wanted <- ByIssuer]
        ],
        {ok, OtherCa} = file:read_file(maps:get(other_ca, ?config(certs, Config))),
        {1, 0} = save(Port, "ec", Config),
        [
            ?assertEqual({ok, 0}, admin(Node, revoke, [Other]))
         || Other <- [
                OtherCa, {issuer, OtherCa}, {issuer, CaDer, Serial + 1}, {issuer, OtherCa, Serial}, crypto:hash(sha256, <<>>)
            ]
        ],
        ?assertEqual({0, 1}, offer(Port, "ec", Config))
    end).

%% Of an ECDSA signature (r, s), everyone can make the signature (r, n - s), which is valid, too.
a_certificate_with_another_signature_is_revoked_too(Config) ->
    Order = 16#FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    #{client := #{ec := #{cert := File} = Client} = Clients} = Certs = ?config(certs, Config),
    {ok, Pem} = file:read_file(File),
    [{_, Der, _}] = public_key:pem_decode(Pem),
    Plain = #'Certificate'{signature = Signature} = public_key:pkix_decode_cert(Der, plain),
    #'ECDSA-Sig-Value'{s = S} = Values = public_key:der_decode('ECDSA-Sig-Value', Signature),
    Other = public_key:der_encode('ECDSA-Sig-Value', Values#'ECDSA-Sig-Value'{s = Order - S}),
    OtherDer = public_key:der_encode('Certificate', Plain#'Certificate'{signature = Other}),
    OtherFile = filename:join(?config(priv_dir, Config), "other_signature.pem"),
    ok = file:write_file(OtherFile, public_key:pem_encode([{'Certificate', OtherDer, not_encrypted}])),
    Disguised = [{certs, Certs#{client := Clients#{ec := Client#{cert := OtherFile}}}} | Config],
    with_servers(1, [], Config, fun(Node, [Port]) ->
        [
            begin
                {1, 0} = save(Port, "ec", Disguised),
                {1, 0} = save(Port, "rsa", Config),
                ?assertEqual({ok, 0}, admin(Node, revoke, [crypto:hash(sha256, Der)])),
                ?assertEqual({ok, 1}, admin(Node, revoke, [Wanted])),
                ?assertEqual({1, 0}, offer(Port, "ec", Disguised)),
                ?assertEqual({0, 1}, offer(Port, "rsa", Config)),
                {ok, _} = admin(Node, flush, [])
            end
         || Wanted <- [Pem, Der, Plain, public_key:pkix_decode_cert(Der, otp), OtherDer]
        ]
    end).

sessions_without_a_template_are_revoked_too(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        {1, 0} = save(Port, "ec", Config),
        rekindle_node:run(Node, fun() ->
            #{Port := Reference} = rekindle_servers:caches(),
            [{Key, Session}] = rekindle:foldl(fun(Held, Acc) -> [Held | Acc] end, [], Reference),
            %% There is a second field of 48 bytes, so the store cannot tell which is the secret.
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
             || N <- lists:seq(1, 3000),
                Of <- [
                    case N rem 3 of
                        0 -> undefined;
                        _ -> Certificate
                    end
                ]
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
        [EcPem, RsaPem] = [
            begin
                #{cert := File} = identity(Name, Config),
                {ok, Pem} = file:read_file(File),
                Pem
            end
         || Name <- Names
        ],
        Fingerprint = binary_to_list(
            openssl(
                ["x509", "-noout", "-fingerprint", "-sha256", "-in", maps:get(cert, identity("rsa", Config))], "Fingerprint=(.*)"
            )
        ),
        [
            begin
                [{1, 0} = save(Port, Name, Config) || Name <- Names],
                ok = rekindle_node:call(Node, rekindle_servers, sync_caches, []),
                ?assertEqual({List, {ok, Dropped}}, {List, admin(Node, revoke, [List])}),
                ?assertEqual([{1, 0} || _ <- lists:seq(1, Dropped)], [
                    Counts
                 || Name <- Names, {1, 0} = Counts <- [offer(Port, Name, Config)]
                ]),
                {ok, _} = admin(Node, flush, [])
            end
         || {List, Dropped} <- [
                {[EcPem, RsaPem], 2},
                {[EcPem], 1},
                {[EcPem, Fingerprint, EcPem], 2},
                {[crypto:strong_rand_bytes(32), Fingerprint], 1}
            ]
        ],
        %% If one is wrong, none is revoked.
        {1, 0} = save(Port, "ec", Config),
        [?assertMatch({error, {bad_certificate, _}}, admin(Node, revoke, [List])) || List <- [[EcPem, foo], [EcPem | foo], []]],
        ?assertEqual({0, 1}, offer(Port, "ec", Config))
    end).

what_is_no_certificate_is_refused(_Config) ->
    Bad = [
        foo,
        <<>>,
        <<"-----BEGIN">>,
        <<48, 3, 1, 2, 3>>,
        "AB:CD",
        {issuer, foo},
        {issuer, <<1>>, 2},
        {issuer, {rdnSequence, foo}, 2},
        {'OTPCertificate', a, b, c},
        17,
        [a | b]
    ],
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
            %% The short form of an option that is true.
            {[wait_for_living_node], "wait_for_living_node"},
            {[{lifetime, 10}, wait_for_living_node], "wait_for_living_node"},
            {[max_sessions], "max_sessions"},
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
        Upgraded = upgraded(Node, Config),
        {1, 0} = save(Port, "ec", Config),
        {1, 0} = save(Upgraded, "ec", Config),
        ?assertEqual([], findings(Node)),
        ?assertEqual({ok, "Nothing wrong found.\n"}, printed(Node, doctor, []))
    end).

%% With the level that each has on this release.
missing_keys_are_found(_Config) ->
    Node = rekindle_node:start_ssl([{client_session_cb, unset}]),
    Unset = fun(Key) -> ok = rekindle_node:call(Node, application, unset_env, [ssl, Key]) end,
    Set = fun(Key) -> ok = rekindle_node:call(Node, application, set_env, [ssl, Key, rekindle]) end,
    Keys = [session_cb, server_session_cb, client_session_cb],
    Release = erlang:system_info(otp_release),
    {Server, Client} =
        case list_to_integer(Release) < 29 of
            true -> {session_cb, session_cb};
            false -> {server_session_cb, client_session_cb}
        end,
    [
        begin
            lists:foreach(Set, Keys),
            Unset(Key),
            [{Level, Line} | _] = findings(Node),
            {Expected, Part} =
                if
                    Key =:= Server ->
                        {error, "reads " ++ atom_to_list(Key) ++ ", which is not set to rekindle, so no listener uses Rekindle"};
                    Key =:= Client ->
                        {warning, "so this node's clients do not use Rekindle"};
                    true ->
                        {warning, "this node works, but other OTP releases read other keys than OTP " ++ Release}
                end,
            ?assertEqual({Key, Expected}, {Key, Level}),
            contains(Line, [Part, "In sys.config, write {ssl, [{" ++ atom_to_list(Key) ++ ", rekindle}]}."])
        end
     || Key <- Keys
    ],
    lists:foreach(Unset, Keys),
    [{error, All}] = findings(Node),
    contains(All, ["write {ssl, [{session_cb, rekindle}, {server_session_cb, rekindle}, {client_session_cb, rekindle}]}."]),
    rekindle_node:stop(Node).

%% Only ssl is started. The application rekindle is not, and on this release ssl does not call Rekindle.
misspelt_keys_and_options_are_found(_Config) ->
    Node = rekindle_node:start_ssl([
        {session_cb, unset},
        {server_session_cb, unset},
        {sesion_cb, rekindle},
        {server_sesion_cb, rekindle},
        {session_cb_init_arg, []},
        {session_cb_init_args, [{max_byte, 1}, {depth, 2}, {secret, "password"}, lifetme]}
    ]),
    [{error, Missing} | Others] = findings(Node),
    contains(Missing, ["{session_cb, rekindle}, {server_session_cb, rekindle}"]),
    Lines = [Line || {warning, Line} <- Others],
    ?assertEqual(length(Others), length(Lines)),
    Text = lists:join("\n", lists:sort(Lines)),
    contains(lists:flatten(Text), [
        "the key sesion_cb, which nothing reads. Did you mean session_cb?",
        "the key server_sesion_cb, which nothing reads. Did you mean server_session_cb?",
        "the key session_cb_init_arg, which nothing reads. Did you mean session_cb_init_args?",
        "ignores: max_byte (did you mean max_bytes?), depth, secret, lifetme (did you mean lifetime?)."
    ]),
    ?assertEqual(nomatch, string:find(Text, "password")),
    rekindle_node:stop(Node).

misplaced_options_are_found(_Config) ->
    Node = rekindle_node:start_ssl([{max_bytes, 1_000_000}]),
    ok = rekindle_node:call(Node, application, set_env, [rekindle, lifetime, 5]),
    ok = rekindle_node:call(Node, application, set_env, [rekindle, log_domain, [rekindle]]),
    [{warning, Lifetime}, {warning, Bytes}] = findings(Node),
    contains(Lifetime, ["lifetime is in the environment of rekindle", "{ssl, [{session_cb_init_args, [{lifetime, ...}]}]}"]),
    contains(Bytes, ["max_bytes is in the environment of ssl"]),
    rekindle_node:stop(Node).

an_ssl_that_is_not_started_is_found(_Config) ->
    Node = rekindle_node:start([]),
    [{error, Line}] = findings(Node),
    contains(Line, ["ssl is not started in this node"]),
    %% Does what the finding says.
    {match, [Call]} = re:run(Line, "call (application:ensure_all_started\\(ssl\\))\\.", [{capture, all_but_first, list}]),
    {ok, Tokens, _} = erl_scan:string(Call ++ "."),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, {ok, _}, _} = rekindle_node:call(Node, erl_eval, exprs, [Expressions, []]),
    ?assertEqual([], findings(Node)),
    rekindle_node:stop(Node).

%% In a copy of the application, which is not loaded. rekindle_package_SUITE has a module of another release.
modules_that_are_missing_are_found(Config) ->
    App = filename:join(?config(priv_dir, Config), "rekindle"),
    Lib = code:lib_dir(rekindle),
    ok = file:make_dir(App),
    {0, _} = rekindle_clients:run("cp", ["-RL", filename:join(Lib, "ebin"), filename:join(Lib, "priv"), App], [], 30_000),
    ok = file:delete(filename:join(App, "ebin/rekindle_certificate.beam")),
    ok = file:write_file(filename:join(App, "ebin/rekindle_prometheus.beam"), "FOR1 of another release"),
    Keys = lists:append([["-ssl", Key, "rekindle"] || Key <- ["session_cb", "server_session_cb", "client_session_cb"]]),
    {ok, Node, _} = peer:start(#{
        connection => standard_io, args => ["-pa", filename:join(App, "ebin") | Keys], wait_boot => 30_000
    }),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    [{error, Line}] = findings(Node),
    contains(Line, [
        "OTP " ++ erlang:system_info(otp_release) ++ " cannot load",
        "rekindle_certificate (nofile)",
        "rekindle_prometheus (badfile)"
    ]),
    rekindle_node:stop(Node).

a_late_configuration_is_found(Config) ->
    Keys = [session_cb, server_session_cb, client_session_cb],
    Node = rekindle_node:start_ssl([{Key, unset} || Key <- Keys]),
    Start = fun(Kind) ->
        element(2, rekindle_node:call(Node, rekindle_servers, start, [Kind, server_opts(Config, 'tlsv1.2')]))
    end,
    Early = Start(tls),
    Upgraded = upgraded(Node, Config),
    {1, 0} = save(Upgraded, "ec", Config),
    [ok = rekindle_node:call(Node, application, set_env, [ssl, Key, rekindle]) || Key <- Keys],
    _Late = Start(tls),
    [{error, Listener}, {error, Sockets}, {warning, Started}] = findings(Node),
    contains(Started, ["ssl started before its keys were set"]),
    contains(Sockets, ["sockets that are upgraded with ssl:handshake/2 do not use Rekindle"]),
    contains(Listener, ["tls 127.0.0.1:" ++ integer_to_list(Early) ++ " does not use Rekindle"]),
    rekindle_node:stop(Node).

%% OTP starts another process in place of one that has ended, and the library is away just then. On OTP 29 it does so when a
%% client comes.
a_cache_that_keeps_nothing_is_found(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        Caches = fun() ->
            [Cache || {_, Cache, _, _} <- rekindle_node:call(Node, supervisor, which_children, [ssl_server_session_cache_sup])]
        end,
        [Before] = Caches(),
        ok = rekindle_node:call(Node, persistent_term, put, [rekindle_nif, {error, {"rekindle_nif.so", "away"}}]),
        true = rekindle_node:call(Node, erlang, exit, [Before, kill]),
        rekindle_node:await(fun() ->
            _ = save(Port, "ec", Config),
            Caches() -- [Before] =/= []
        end),
        ok = rekindle_node:call(Node, persistent_term, put, [rekindle_nif, ok]),
        [{error, Line}] = findings(Node),
        contains(Line, ["tls 127.0.0.1:" ++ integer_to_list(Port) ++ " keeps no sessions", "open the listener again"])
    end).

listeners_that_resume_nothing_are_found(Config) ->
    with_servers(1, [], Config, fun(Node, [_]) ->
        Start = fun(Opts) -> element(2, rekindle_node:call(Node, rekindle_servers, start, [tls, Opts])) end,
        Off = Start(lists:keyreplace(reuse_sessions, 1, server_opts(Config, 'tlsv1.2'), {reuse_sessions, false})),
        Newer = Start(server_opts(Config, 'tlsv1.3')),
        %% Does what the finding says.
        _ = Start([{session_tickets, stateless} | server_opts(Config, 'tlsv1.3')]),
        [{warning, NoReuse}, {note, Tickets}] = findings(Node),
        contains(NoReuse, [
            "tls 127.0.0.1:" ++ integer_to_list(Off) ++ " has {reuse_sessions, false}",
            "Write {reuse_sessions, true} in its options"
        ]),
        contains(Tickets, [
            "tls 127.0.0.1:" ++ integer_to_list(Newer) ++ " speaks TLS 1.3 only",
            "write {session_tickets, stateless} in its options"
        ])
    end).

listeners_whose_clients_speak_tls_1_3_are_found(Config) ->
    with_servers(1, [], Config, fun(Node, [_]) ->
        Opts = lists:keyreplace(versions, 1, server_opts(Config, 'tlsv1.2'), {versions, ['tlsv1.3', 'tlsv1.2']}),
        {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, Opts]),
        ?assertEqual([], findings(Node)),
        Connect = fun(To, Version) ->
            #{cert := Cert, key := Key} = identity("ec", Config),
            {ok, Socket} = ssl:connect("127.0.0.1", To, [
                {versions, [Version]}, {verify, verify_none}, {certfile, Cert}, {keyfile, Key}
            ]),
            Socket
        end,
        {ok, _} = application:ensure_all_started(ssl),
        Sockets = [Connect(Port, 'tlsv1.3') || _ <- [1, 2]],
        [{note, Line}] = findings(Node),
        contains(Line, ["tls 127.0.0.1:" ++ integer_to_list(Port) ++ " has open connections (2)", "They probably speak TLS 1.3"]),
        %% One that makes a session is enough.
        Older = Connect(Port, 'tlsv1.2'),
        rekindle_node:await(fun() -> findings(Node) =:= [] end),
        %% Does what the finding says.
        {_, WithTickets} = rekindle_node:call(Node, rekindle_servers, start, [tls, [{session_tickets, stateless} | Opts]]),
        Newer = Connect(WithTickets, 'tlsv1.3'),
        ?assertEqual([], findings(Node)),
        [ssl:close(Socket) || Socket <- [Newer, Older | Sockets]]
    end).

wrong_options_and_a_missing_library_are_found(_Config) ->
    Node = rekindle_node:start_ssl([]),
    ok = rekindle_node:call(Node, application, set_env, [ssl, session_cb_init_args, [{max_bytes, none}]]),
    [{error, Option}] = findings(Node),
    contains(Option, ["option max_bytes is none; allowed: ", "ssl's session_cb_init_args"]),
    ok = rekindle_node:call(Node, application, set_env, [ssl, server_session_cb_init_args, [{lifetime, none}]]),
    [{error, Server}] = findings(Node),
    contains(Server, ["option lifetime is none; allowed: ", "ssl's server_session_cb_init_args"]),
    ok = rekindle_node:call(Node, application, set_env, [ssl, server_session_cb_init_args, []]),
    ok = rekindle_node:call(Node, application, set_env, [ssl, session_cache_server_max, 0]),
    [{error, Room}] = findings(Node),
    contains(Room, ["session_cache_server_max is 0"]),
    ok = rekindle_node:call(Node, application, unset_env, [ssl, session_cache_server_max]),
    ok = rekindle_node:call(Node, persistent_term, put, [rekindle_nif, {error, {"rekindle_nif.so", "wrong ELF class"}}]),
    [{error, Library}] = findings(Node),
    contains(Library, ["the native library rekindle_nif.so cannot be loaded: wrong ELF class."]),
    rekindle_node:stop(Node).

%% Before a listener is open, and with one.
absurd_bounds_are_found(Config) ->
    [
        begin
            Node = rekindle_node:start_ssl(Env),
            [{Level, Before}] = findings(Node),
            contains(Before, Parts),
            {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, server_opts(Config, 'tlsv1.2')]),
            _ = rekindle_clients:openssl_reconnect(Port, client_opts("ec", Config)),
            [After] = [Line || {L, Line} <- findings(Node), L =:= Level],
            contains(After, ["tls 127.0.0.1:" ++ integer_to_list(Port) ++ ": " | Parts]),
            Sessions = [Sessions || #{role := server, sessions := Sessions} <- admin(Node, info, [])],
            ?assertEqual({Env, Kept}, {Env, Sessions}),
            rekindle_node:stop(Node)
        end
     || {Env, Level, Parts, Kept} <- [
            {[{session_cb_init_args, [{max_bytes, 64}]}], error, ["max_bytes is 64,", "{max_bytes, 67108864}"], [0]},
            {
                [{session_cb_init_args, [{max_bytes, 1 bsl 50}]}],
                warning,
                ["max_bytes is 1125899906842624 (1024.0 TiB)", "of memory"],
                [1]
            },
            {[{session_cb_init_args, [{max_sessions, 1}]}], warning, ["max_sessions is 1:", "{max_sessions, infinity}"], [1]},
            {[{session_cb_init_args, [{lifetime, 59}]}], warning, ["expire after 59 s", "{lifetime, 86400}"], [1]},
            {[{session_lifetime, 0}], error, ["session_lifetime is 0", "{session_lifetime, 86400}"], [0]}
        ]
    ].

reasons_why_nothing_is_resumed_are_found(Config) ->
    with_servers(1, [], Config, fun(Node, [Port]) ->
        Call = fun(Fun, Numbers) ->
            rekindle_node:run(Node, fun() ->
                [Fun(maps:get(Port, rekindle_servers:caches()), <<N:256>>, N) || N <- Numbers],
                ok
            end)
        end,
        Lookup = fun(Cache, Key, _) -> rekindle:lookup(Cache, Key) end,
        Call(fun rekindle:update/3, lists:seq(1, 1000)),
        Call(Lookup, lists:seq(10_001, 10_110)),
        [{note, Unknown}] = findings(Node),
        contains(Unknown, [
            "hardly any session is resumed. 110 lookups asked for ids that this scope does not know", "Go", "TLS 1.3"
        ]),
        [{ok, 1} = admin(Node, forget, [<<N:256>>]) || N <- lists:seq(1, 500)],
        Call(Lookup, lists:seq(1, 500)),
        [{note, Lost}] = findings(Node),
        ?assertMatch(
            {match, _},
            re:run(
                Lost,
                "hardly any session is resumed, although clients offer them: 0 had been evicted, [0-9]+ had expired or been dropped"
            )
        )
    end).

bounds_that_are_too_small_are_found(Config) ->
    with_servers(1, [{session_cb_init_args, [{max_sessions, 1000}]}], Config, fun(Node, [Port]) ->
        InCache = fun(Call, Numbers) ->
            rekindle_node:run(Node, fun() ->
                [Call(maps:get(Port, rekindle_servers:caches()), <<N:256>>, N) || N <- Numbers],
                ok
            end)
        end,
        Store = fun(From, To) -> InCache(fun rekindle:update/3, lists:seq(From, To)) end,
        Lookup = fun(From, To) -> InCache(fun(Cache, Key, _) -> rekindle:lookup(Cache, Key) end, lists:seq(From, To)) end,
        Store(1, 1000),
        [{note, Unoffered}] = findings(Node),
        contains(Unoffered, ["hardly any client offers one", "Java", "Python"]),
        Lookup(900, 999),
        ?assertEqual([], findings(Node)),
        Store(1001, 1100),
        %% Nobody misses what was evicted.
        [{note, Unmissed}] = findings(Node),
        contains(Unmissed, [
            "9 % of the sessions that were stored were dropped to make room, but hardly any client asked for one of them"
        ]),
        Lookup(1, 1100),
        [{warning, Sessions}] = findings(Node),
        contains(Sessions, [
            "9 % of the sessions", "clients asked for ", "Raise max_sessions, which is 1000, for example to {max_sessions, 2000}"
        ]),
        {ok, 1} = admin(Node, set, [Port, [{max_sessions, infinity}, {max_bytes, 100_000}]]),
        [{_, Bytes}] = findings(Node),
        ?assertMatch(
            {match, _},
            re:run(
                Bytes,
                "Raise max_bytes, which is 100000 \\(97.7 KiB\\), for example to {max_bytes, 200000}; a session takes [0-9]+ bytes here"
            )
        ),
        %% Ids that nobody has made.
        {ok, _} = admin(Node, flush, [Port]),
        Store(1, 10),
        Lookup(100_001, 130_000),
        [{warning, Unknown}] = findings(Node),
        contains(Unknown, ["lookups asked for ids that are not known", "If such lookups do not become fewer"])
    end).

%% Only a log that nodes share evicts, so the figures are made up.
sessions_of_other_nodes_count_as_stored(Config) ->
    Folder = filename:join(?config(priv_dir, Config), "stored"),
    with_servers(1, [{session_cb_init_args, [{journal, {folder, Folder}}]}], Config, fun(Node, [Port]) ->
        rekindle_node:await(fun() ->
            [#{journal := #{replay := Replay}}] = admin(Node, info, [Port]),
            is_integer(Replay)
        end),
        [#{journal := Journal} = Info] = admin(Node, info, [Port]),
        Counts = #{
            evicted => 9000,
            inserts => 2000,
            hits => 2000,
            misses => 2000,
            evicted_misses => 1000,
            sessions => 1000,
            bytes => 100_000
        },
        {ok, Module, Beam} = compile:forms([
            {attribute, 1, module, rekindle_info},
            {attribute, 1, export, [{all, 0}, {reasons, 1}]},
            {function, 1, reasons, 1, [{clause, 1, [{var, 1, '_'}], [], [{nil, 1}]}]},
            {function, 1, all, 0, [
                {clause, 1, [], [], [erl_parse:abstract([maps:merge(Info, Counts#{journal => Journal#{applied := 8000}})], 1)]}
            ]}
        ]),
        Former = rekindle_node:call(Node, code, which, [Module]),
        {module, Module} = rekindle_node:call(Node, code, load_binary, [Module, Former, Beam]),
        ok = rekindle_node:run(Node, fun() ->
            [Line] = [Line || {warning, Line} <- rekindle_doctor:findings()],
            contains(unicode:characters_to_list(Line), [
                "90 % of the sessions that were stored were dropped to make room, and clients asked"
            ])
        end)
    end).

folders_that_others_can_write_to_are_found(Config) ->
    [Journal, Own, Lists] =
        Folders = [filename:join([?config(priv_dir, Config), "rights", Name]) || Name <- ["journal", "own", "lists"]],
    [ok = filelib:ensure_dir(filename:join(Folder, "file")) || Folder <- Folders],
    Chmod = fun(Mode, Folder) -> ok = file:change_mode(Folder, Mode) end,
    [Chmod(8#777, Folder) || Folder <- Folders],
    Node = rekindle_node:start_ssl([{session_cb_init_args, [{journal, {folder, Journal}}, {node_folder, Own}, {crls, [Lists]}]}]),
    Found = [Line || {error, Line} <- findings(Node)],
    ?assertMatch([_, _, _], Found),
    [contains(lists:flatten(Found), ["can write to " ++ Folder ++ " (mode "]) || Folder <- Folders],
    %% Does what the finding says.
    [
        begin
            {match, [Command]} = re:run(Line, "Call: (chmod .*)$", [{capture, all_but_first, list}]),
            ?assertEqual("", os:cmd(Command))
        end
     || Line <- Found
    ],
    ?assertEqual([], findings(Node)),
    %% A journal that is open looks itself.
    Chmod(8#777, Journal),
    _ = rekindle_node:call(Node, rekindle_servers, start, [tls, server_opts(Config, 'tlsv1.2')]),
    rekindle_node:await(fun() ->
        [Line || {error, Line} <- findings(Node), string:find(Line, "the journal does not work") =/= nomatch] =/= []
    end),
    ?assertEqual([], [
        Line
     || {error, Line} <- findings(Node), string:find(Line, "can write to " ++ Journal ++ " (mode") =/= nomatch
    ]),
    Chmod(8#700, Journal),
    rekindle_node:stop(Node).

scopes_without_a_journal_are_found(Config) ->
    Args = fun(Options) -> [{session_cb_init_args, Options}] end,
    Folder = {journal, {folder, filename:join(?config(priv_dir, Config), "later")}},
    Valkey = {journal, {valkey, "valkey://127.0.0.1:1", [{key_file, "/nowhere"}]}},
    Late = rekindle_node:start_ssl([]),
    {_, Port} = rekindle_node:call(Late, rekindle_servers, start, [tls, server_opts(Config, 'tlsv1.2')]),
    ok = rekindle_node:call(Late, application, set_env, [ssl, session_cb_init_args, [Folder]]),
    [{warning, Opened}] = findings(Late),
    contains(Opened, [
        "tls 127.0.0.1:" ++ integer_to_list(Port), "it was opened before the option was set", "open the listener again"
    ]),
    rekindle_node:stop(Late),
    %% A log that nodes share needs a name, which upgraded sockets cannot have.
    Shared = rekindle_node:start_ssl(Args([Valkey])),
    {_, Named} = rekindle_node:call(Shared, rekindle_servers, start, [tls, server_opts(Config, 'tlsv1.2')]),
    {1, 0} = save(upgraded(Shared, Config), "ec", Config),
    [{warning, Name}, {note, Upgraded}] = findings(Shared),
    contains(Name, ["write {scope, #{" ++ integer_to_list(Named) ++ " => mqtt}}"]),
    contains(Upgraded, ["tls upgraded: ", "upgraded sockets"]),
    rekindle_node:stop(Shared).

what_is_wrong_in_many_scopes_is_reported_once(Config) ->
    with_servers(5, [{session_cb_init_args, [{max_bytes, 64}]}], Config, fun(Node, Ports) ->
        [{error, Line}] = findings(Node),
        First = lists:sublist(["tls 127.0.0.1:" ++ integer_to_list(Port) || Port <- Ports], 3),
        contains(Line, [lists:flatten([lists:join(", ", First), " and 2 more: max_bytes is 64,"])])
    end).

upgraded(Node, Config) ->
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [upgrade, server_opts(Config, 'tlsv1.2')]),
    Port.

contains(Line, Parts) ->
    [?assertNotEqual({Line, Part, nomatch}, {Line, Part, string:find(Line, Part)}) || Part <- Parts],
    ok.

starting_the_application_logs_what_is_wrong(_Config) ->
    Node = rekindle_node:start_ssl([{client_session_cb, unset}]),
    rekindle_node:run(Node, fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        {ok, [rekindle]} = application:ensure_all_started(rekindle),
        Line =
            receive
                {logged, warning, "rekindle: " ++ _ = L} -> L
            after 5000 -> error(nothing_logged)
            end,
        contains(Line, ["In sys.config, write {ssl, [{client_session_cb, rekindle}]}."]),
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
    Ports = [
        element(2, rekindle_node:call(Node, rekindle_servers, start, [tls, server_opts(Config, 'tlsv1.2')]))
     || _ <- lists:seq(1, Number)
    ],
    Fun(Node, Ports),
    rekindle_node:stop(Node).

server_opts(Config, Version) ->
    #{ca := Ca, server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    [
        {certfile, Cert},
        {keyfile, Key},
        {versions, [Version]},
        {cacertfile, Ca},
        {verify, verify_peer},
        {fail_if_no_peer_cert, true}
        %% OTP refuses the option if TLS 1.3 is the only version.
        | [{reuse_sessions, true} || Version =/= 'tlsv1.3']
    ].

admin(Node, Function, Args) ->
    rekindle_node:call(Node, rekindle_admin, Function, Args).

findings(Node) ->
    [{Level, unicode:characters_to_list(Line)} || {Level, Line} <- rekindle_node:call(Node, rekindle_doctor, findings, [])].

%% The client with a certificate of that key. `Name' may continue after it.
identity("ec" ++ _, Config) -> maps:get(ec, maps:get(client, ?config(certs, Config)));
identity("rsa" ++ _, Config) -> maps:get(rsa, maps:get(client, ?config(certs, Config))).

client_opts(Name, Config) ->
    #{cert := Cert, key := Key} = identity(Name, Config),
    #{cafile => maps:get(ca, ?config(certs, Config)), certfile => Cert, keyfile => Key}.

%% The numbers of full and of resumed handshakes.
save(Port, Name, Config) ->
    counts(rekindle_clients:openssl_save(tls, Port, session_file(Name, Config), client_opts(Name, Config))).

offer(Port, Name, Config) ->
    counts(rekindle_clients:openssl_offer(tls, Port, session_file(Name, Config), client_opts(Name, Config))).

counts(#{full := Full, resumed := Resumed}) ->
    {Full, Resumed}.

session_file(Name, Config) ->
    filename:join(?config(priv_dir, Config), Name ++ ".session").

%% The part of openssl's output that matches.
openssl(Args, Regexp) ->
    {0, Output} = rekindle_clients:run("openssl", Args, [], 10_000),
    {match, [Found]} = re:run(Output, Regexp, [{capture, all_but_first, binary}]),
    Found.
