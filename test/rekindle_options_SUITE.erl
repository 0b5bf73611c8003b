%% @doc Tests which options of ssl's environment are accepted, which are refused, and what is logged.
-module(rekindle_options_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).

-export([
    good_values_are_taken/1,
    what_is_left_out_has_a_default/1,
    the_first_of_two_wins/1,
    what_is_not_ours_is_handed_back/1,
    unknown_names_are_reported_with_the_known_one_they_resemble/1,
    the_documented_type_has_the_options_of_the_schema/1,
    an_option_alone_is_true/1,
    a_bad_role_is_refused/1,
    a_bad_max_bytes_is_refused/1,
    a_bad_max_sessions_is_refused/1,
    a_bad_lifetime_is_refused/1,
    a_bad_scope_is_refused/1,
    a_bad_node_folder_is_refused/1,
    a_bad_wait_for_living_node_is_refused/1,
    a_bad_max_log_bytes_is_refused/1,
    a_journal_s_client_certificate_needs_its_key_and_tls/1,
    the_node_folder_is_known_without_a_listener/1,
    what_is_no_list_is_refused/1,
    an_error_is_one_line_whatever_the_value/1
]).
-export([
    a_bad_option_is_readable_when_ssl_is_started/1,
    a_bad_option_is_readable_when_a_permanent_ssl_ends_the_node/1,
    a_bad_option_is_readable_when_the_boot_script_starts_ssl/1,
    a_bad_option_fails_listen_until_it_is_corrected/1,
    a_bad_option_does_not_harm_other_listeners/1,
    no_room_for_sessions_fails_listen/1,
    one_session_is_room_enough/1,
    negative_room_is_room_enough/1,
    options_of_others_are_reported_once/1,
    a_missing_key_is_reported_once/1,
    all_keys_set_is_nothing_to_tell/1,
    each_release_reads_its_own_keys/1,
    a_listener_has_the_bounds_that_were_set/1
]).

%% A logger handler of the node under test.
-export([log/2]).

-define(TOO_LARGE, 16#8000_0000_0000_0000).
-define(BAD, [{max_bytes, 0}]).
-define(BAD_LINE, "rekindle: option max_bytes is 0; allowed: a positive integer, in bytes").
-define(NO_ROOM_LINE, "rekindle: ssl's session_cache_server_max is 0; allowed: any other integer").

all() ->
    [{group, parsing}, {group, running}].

groups() ->
    [
        {parsing, [parallel], [
            good_values_are_taken,
            what_is_left_out_has_a_default,
            the_first_of_two_wins,
            what_is_not_ours_is_handed_back,
            unknown_names_are_reported_with_the_known_one_they_resemble,
            the_documented_type_has_the_options_of_the_schema,
            an_option_alone_is_true,
            a_bad_role_is_refused,
            a_bad_max_bytes_is_refused,
            a_bad_max_sessions_is_refused,
            a_bad_lifetime_is_refused,
            a_bad_scope_is_refused,
            a_bad_node_folder_is_refused,
            a_bad_wait_for_living_node_is_refused,
            a_bad_max_log_bytes_is_refused,
            a_journal_s_client_certificate_needs_its_key_and_tls,
            what_is_no_list_is_refused,
            an_error_is_one_line_whatever_the_value
        ]},
        {running, [], [
            the_node_folder_is_known_without_a_listener,
            a_bad_option_is_readable_when_ssl_is_started,
            a_bad_option_is_readable_when_a_permanent_ssl_ends_the_node,
            a_bad_option_is_readable_when_the_boot_script_starts_ssl,
            a_bad_option_fails_listen_until_it_is_corrected,
            a_bad_option_does_not_harm_other_listeners,
            no_room_for_sessions_fails_listen,
            one_session_is_room_enough,
            negative_room_is_room_enough,
            options_of_others_are_reported_once,
            a_missing_key_is_reported_once,
            all_keys_set_is_nothing_to_tell,
            each_release_reads_its_own_keys,
            a_listener_has_the_bounds_that_were_set
        ]}
    ].

init_per_suite(Config) ->
    rekindle_certs:with_certs(Config).

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    rekindle_checkout:with_dir(Case, Config).

end_per_testcase(_Case, _Config) ->
    ok.

%% ---- parsing ----

good_values_are_taken(_Config) ->
    Ipv6 = {0, 0, 0, 0, 0, 0, 0, 1},
    Good = [
        {role, server},
        {role, client},
        {max_bytes, 1},
        {max_bytes, ?TOO_LARGE - 1},
        {max_sessions, 1},
        {max_sessions, infinity},
        {max_sessions, ?TOO_LARGE - 1},
        {lifetime, 1},
        {lifetime, 31_622_400},
        {node_folder, "/var/lib/my_app"},
        {node_folder, <<"relative">>},
        {wait_for_living_node, true},
        {wait_for_living_node, false},
        {max_log_bytes, 1},
        {max_log_bytes, ?TOO_LARGE - 1},
        {scope, listener},
        {scope, #{}},
        {scope, #{1 => web, 65535 => {any, "term"}}},
        {scope, #{{{127, 0, 0, 1}, 443} => v4, {Ipv6, 8443} => v6, 443 => <<"both">>}}
    ],
    [?assertEqual({Option, Value}, {Option, parsed(Option, [{Option, Value}])}) || {Option, Value} <- Good].

what_is_left_out_has_a_default(_Config) ->
    Defaults = #{
        role => client,
        max_bytes => 67_108_864,
        max_sessions => undefined,
        lifetime => undefined,
        scope => listener,
        journal => none,
        node_folder => undefined,
        wait_for_living_node => false,
        max_log_bytes => undefined,
        expired_certificates => full_handshake,
        crls => [],
        stale_crls => full_handshake
    },
    ?assertEqual({ok, Defaults, []}, rekindle_options:parse([])),
    ?assertEqual({ok, Defaults#{lifetime := 5}, []}, rekindle_options:parse([{lifetime, 5}])).

the_first_of_two_wins(_Config) ->
    ?assertEqual(5, parsed(max_bytes, [{max_bytes, 5}, {lifetime, 1}, {max_bytes, 7}])),
    %% ssl puts the role in front, whatever the operator wrote.
    ?assertEqual(server, parsed(role, [{role, server}, {role, client}])),
    ?assertEqual(?BAD_LINE, refusal([{max_bytes, 5}, {max_bytes, 0}])).

what_is_not_ours_is_handed_back(_Config) ->
    Others = [{depth, 3}, compressed, {max_bytes, 1, 2}, {"max_bytes", 1}, 17, [], {max_byte, 0}],
    {ok, Options, Foreign} = rekindle_options:parse([{max_bytes, 9} | Others] ++ [{lifetime, 8}]),
    ?assertEqual(Others, Foreign),
    ?assertMatch(#{max_bytes := 9, lifetime := 8}, Options).

%% Without values: one may be a password.
unknown_names_are_reported_with_the_known_one_they_resemble(_Config) ->
    Told = fun(Foreign) -> lists:flatten(lists:join("; ", rekindle_options:unknown(Foreign))) end,
    [
        ?assertEqual({Name, Shown ++ " (did you mean " ++ Meant ++ "?)"}, {Name, Told([{Name, "password"}])})
     || {Name, Shown, Meant} <- [
            {max_byte, "max_byte", "max_bytes"},
            {maxbytes, "maxbytes", "max_bytes"},
            {max_session, "max_session", "max_sessions"},
            {life_time, "life_time", "lifetime"},
            {crl, "crl", "crls"},
            {jurnal, "jurnal", "journal"},
            {expired_certificate, "expired_certificate", "expired_certificates"},
            {'Scope', "'Scope'", "scope"}
        ]
    ],
    ?assertEqual("depth; compressed; ...; ...; ttl", Told([{depth, 3}, compressed, 17, {"max_bytes", 1}, {ttl, 1}])),
    %% Options of a journal.
    Line = refusal([{journal, {valkey, "valkey://a", [{key_file, "k"}, {pasword_file, "p"}]}}]),
    ?assertEqual(
        {prefix, "rekindle: option journal: it has no option pasword_file (did you mean password_file?); allowed: [key_file,"},
        {prefix,
            prefix_of(
                Line, "rekindle: option journal: it has no option pasword_file (did you mean password_file?); allowed: [key_file,"
            )}
    ).

the_documented_type_has_the_options_of_the_schema(_Config) ->
    {ok, {_, [{abstract_code, {_, Forms}}]}} = beam_lib:chunks(code:which(rekindle), [abstract_code]),
    [{type, _, union, Tuples}] = [Type || {attribute, _, type, {option, Type, []}} <- Forms],
    Documented = [Option || {type, _, tuple, [{atom, _, Option}, _]} <- Tuples],
    %% ssl sets the role.
    ?assertEqual([role | lists:sort(Documented)], [
        role | lists:sort([Option || {Option, _, _} <- rekindle_options:schema(), Option =/= role])
    ]),
    [?assert(is_list(rekindle_options:notation(Type))) || {_, Type, _} <- rekindle_options:schema()].

an_option_alone_is_true(_Config) ->
    ?assertEqual(true, parsed(wait_for_living_node, [wait_for_living_node])).

a_bad_role_is_refused(_Config) ->
    refused(role, "server or client", [both, "server", 1, undefined]).

a_bad_max_bytes_is_refused(_Config) ->
    refused(max_bytes, "a positive integer, in bytes", [infinity | no_bounds()]).

a_bad_max_sessions_is_refused(_Config) ->
    refused(max_sessions, "a positive integer, or infinity", no_bounds()).

a_bad_lifetime_is_refused(_Config) ->
    Allowed = "a positive integer, in seconds, at most 31622400",
    refused(lifetime, Allowed, [infinity, 31_622_401 | no_bounds()]).

a_bad_scope_is_refused(_Config) ->
    Ports = [0, -1, 65536, 443.0, https, "443", <<"443">>, undefined],
    Ips = [{1, 2, 3}, {256, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 65536}, "127.0.0.1", any, 1],
    Keys =
        Ports ++ [{{127, 0, 0, 1}, Port} || Port <- Ports] ++ [{Ip, 443} || Ip <- Ips] ++
            [{443, {127, 0, 0, 1}}, {{127, 0, 0, 1}, 443, tls}],
    Maps = [#{443 => good, Key => name} || Key <- Keys],
    Allowed = "listener, or a map from Port or {IpAddress, Port} to a name",
    refused(scope, Allowed, [listeners, undefined, 443, [{443, name}], "web", {443, name} | Maps]).

a_bad_node_folder_is_refused(_Config) ->
    refused(node_folder, "a file name", [undefined, folder, "", <<>>, 17, {folder, "x"}, [a, b], <<255>>]).

a_bad_wait_for_living_node_is_refused(_Config) ->
    refused_values(wait_for_living_node, "true or false", [yes, 1, "true", undefined]).

a_bad_max_log_bytes_is_refused(_Config) ->
    refused(max_log_bytes, "a positive integer, in bytes", [infinity | no_bounds()]).

a_journal_s_client_certificate_needs_its_key_and_tls(_Config) ->
    Journal = fun(Url, Options) -> [{journal, {valkey, Url, [{key_file, "k"} | Options]}}] end,
    Both = [{tls_cert_file, "c"}, {tls_key_file, <<"k">>}],
    [?assertMatch({ok, _, []}, rekindle_options:parse(Journal(Scheme ++ "://a", Both))) || Scheme <- ["valkeys", "rediss"]],
    [
        begin
            Line = refusal(Journal(Url, Options)),
            ?assertEqual(
                {prefix, "rekindle: option journal: " ++ Why}, {prefix, prefix_of(Line, "rekindle: option journal: " ++ Why)}
            )
        end
     || {Url, Options, Why} <- [
            {"valkeys://a", [{tls_cert_file, "c"}], "tls_cert_file and tls_key_file belong together"},
            {"valkeys://a", [{tls_key_file, "c"}], "tls_cert_file and tls_key_file belong together"},
            {"valkey://a", Both, "tls_cert_file needs TLS"},
            {"redis://a", Both, "tls_cert_file needs TLS"},
            {"valkeys://a", [{tls_cert_file, 7}, {tls_key_file, "k"}], "its option tls_cert_file has to be a file name"}
        ]
    ].

%% A revocation before any listener is open is written there.
the_node_folder_is_known_without_a_listener(_Config) ->
    Node = rekindle_node:start([]),
    Valkey = {journal, {valkey, "valkey://a", [{key_file, "k"}]}},
    [
        begin
            [set_env(Node, Key, Args) || {Key, Args} <- Env],
            ?assertEqual({Env, Expected}, {Env, rekindle_node:call(Node, rekindle_journal, node_folders, [])})
        end
     || {Env, Expected} <- [
            {[], []},
            {[{session_cb_init_args, [{journal, {folder, "/a"}}]}], [<<"/a">>]},
            {[{session_cb_init_args, [{journal, {folder, "/a", [{key_file, "/k"}]}}, {node_folder, "/b"}]}], [<<"/b">>]},
            {[{session_cb_init_args, [Valkey]}], [undefined]},
            {[{session_cb_init_args, [Valkey, {node_folder, <<"/c">>}]}], [<<"/c">>]},
            {[{session_cb_init_args, [{node_folder, "/d"}]}], []},
            {[{session_cb_init_args, [{journal, wrong}]}], []},
            {[{session_cb_init_args, nothing}], []},
            {[{server_session_cb_init_args, [{journal, {folder, "/e"}}]}], [<<"/e">>]}
        ]
    ],
    rekindle_node:stop(Node).

what_is_no_list_is_refused(_Config) ->
    [
        ?assertEqual(
            "rekindle: option session_cb_init_args is " ++ Shown ++ "; allowed: a proper list of options",
            refusal(Args)
        )
     || {Args, Shown} <- [
            {#{max_bytes => 1}, "#{max_bytes => 1}"},
            {max_bytes, "max_bytes"},
            {undefined, "undefined"},
            {[{role, server} | #{}], "#{}"},
            {[{role, server}, {max_bytes, 1} | lifetime], "[{max_bytes,1}|lifetime]"}
        ]
    ].

an_error_is_one_line_whatever_the_value(_Config) ->
    Values = [
        "two\nlines",
        <<"two\nlines">>,
        [lists:seq(1, 200)],
        #{key => lists:duplicate(100, {a, "long", <<"value">>})},
        [8364, 10, 8364]
    ],
    [
        begin
            Line = refusal([{Option, Value}]),
            ?assertEqual(nomatch, string:find(Line, "\n")),
            ?assert(io_lib:char_list(Line))
        end
     || Option <- [max_bytes, max_sessions, lifetime, scope], Value <- Values
    ].

no_bounds() ->
    [0, -1, 1.0, 1.0e12, none, undefined, "1", <<"1">>, {1, mb}, [], ?TOO_LARGE, 1 bsl 100].

parsed(Option, Args) ->
    {ok, #{Option := Value}, []} = rekindle_options:parse(Args),
    Value.

refusal(Args) ->
    {error, {bad_option, Line}} = rekindle_options:parse(Args),
    Line.

%% The option alone, without a value, is the proplists way to say `true'.
refused(Option, Allowed, Values) ->
    refused_terms(Option, Allowed, [{Option, true} | [{{Option, Value}, Value} || Value <- Values]]).

refused_values(Option, Allowed, Values) ->
    refused_terms(Option, Allowed, [{{Option, Value}, Value} || Value <- Values]).

refused_terms(Option, Allowed, Terms) ->
    Name = atom_to_list(Option),
    Expected = fun(Value) -> lists:flatten(["rekindle: option ", Name, " is ", Value, "; allowed: ", Allowed]) end,
    [
        ?assertEqual({prefix, Expected(shown(Value))}, {prefix, prefix_of(refusal([Arg]), Expected(shown(Value)))})
     || {Arg, Value} <- Terms
    ].

shown(Value) ->
    lists:flatten(io_lib:format("~0tp", [Value])).

prefix_of(Line, Expected) ->
    lists:sublist(Line, length(Expected)).

%% ---- a bad option, seen by who starts the node ----

a_bad_option_is_readable_when_ssl_is_started(Config) ->
    Eval =
        "Result = application:ensure_all_started(ssl), " ++
            "ok = logger_std_h:filesync(default), io:format(\"~nstart: ~0tp~n\", [Result]), init:stop().",
    {Status, Output} = erl(Config, ["-eval", Eval]),
    ?assertEqual(0, Status, Output),
    ?assertEqual(1, error_reports(?BAD_LINE, Output), Output),
    ?assertEqual(1, count("(?m)^start: \\{error,.*\\{bad_option,\"" ++ quoted(?BAD_LINE) ++ "\"\\}", Output), Output).

a_bad_option_is_readable_when_a_permanent_ssl_ends_the_node(Config) ->
    {Status, Output} = erl(Config, ["-eval", "application:ensure_all_started(ssl, permanent)."]),
    ?assertEqual(1, Status, Output),
    ?assertEqual(1, error_reports(?BAD_LINE, Output), Output).

a_bad_option_is_readable_when_the_boot_script_starts_ssl(Config) ->
    Boot = make_boot_script(proplists:get_value(dir, Config), [kernel, stdlib, crypto, asn1, public_key, ssl]),
    {Status, Output} = erl(Config, ["-boot", Boot]),
    ?assertEqual(1, Status, Output),
    ?assertEqual(1, error_reports(?BAD_LINE, Output), Output).

%% A process of the operating system with the bad option in its sys.config.
erl(Config, Args) ->
    File = filename:join(proplists:get_value(dir, Config), "sys.config"),
    Keys = [{Key, rekindle} || Key <- [session_cb, server_session_cb, client_session_cb]],
    Terms = [{ssl, [{session_cb_init_args, ?BAD} | Keys]}],
    ok = file:write_file(File, io_lib:format("~tp.~n", [Terms])),
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Ebin = filename:absname(filename:dirname(code:which(rekindle))),
    Common = ["-noinput", "-env", "ERL_CRASH_DUMP_SECONDS", "0", "-config", File, "-pa", Ebin],
    rekindle_clients:run(Erl, Common ++ Args, [], 30_000).

make_boot_script(Dir, Apps) ->
    Versions = [{App, app_version(App)} || App <- Apps],
    Release = {release, {"with_ssl", "1"}, {erts, erlang:system_info(version)}, Versions},
    Name = filename:join(Dir, "with_ssl"),
    ok = file:write_file(Name ++ ".rel", io_lib:format("~tp.~n", [Release])),
    Path = [filename:absname(filename:join(code:lib_dir(App), "ebin")) || App <- Apps],
    {ok, _, _} = systools:make_script(Name, [silent, local, no_warn_sasl, {path, Path}, {outdir, Dir}]),
    Name.

app_version(App) ->
    case application:load(App) of
        ok -> ok;
        {error, {already_loaded, App}} -> ok
    end,
    {ok, Version} = application:get_key(App, vsn),
    Version.

%% Whole lines only: the supervisors' reports hold the line as well, deep within.
error_reports(Line, Output) ->
    count("(?m)^=ERROR REPORT====.*\\R" ++ quoted(Line) ++ "$", Output).

count(Regexp, Output) ->
    case re:run(Output, Regexp, [global, unicode]) of
        {match, Matches} -> length(Matches);
        nomatch -> 0
    end.

quoted(Text) ->
    "\\Q" ++ Text ++ "\\E".

%% ---- a bad option, seen by who listens ----

a_bad_option_fails_listen_until_it_is_corrected(Config) ->
    Node = start_node([{server_session_cb_init_args, ?BAD}]),
    Manager = whereis(Node, ssl_manager),
    [
        begin
            ?assert(contains(?BAD_LINE, failure_to_listen(Node, Kind, Config))),
            ?assertEqual([{error, ?BAD_LINE}], take_lines(Node))
        end
     || Kind <- [tls, dtls]
    ],
    set_env(Node, server_session_cb_init_args, [{max_bytes, 1_000_000}]),
    [?assertEqual({1, 1}, full_and_resumed(Kind, serve(Node, Kind, Config))) || Kind <- [tls, dtls]],
    ?assertEqual(Manager, whereis(Node, ssl_manager)),
    rekindle_node:stop(Node).

%% If a cache process *ends* that often, OTP's supervisor ends as well, and all listeners with it.
a_bad_option_does_not_harm_other_listeners(Config) ->
    Node = start_node([]),
    Port = serve(Node, tls, Config),
    Caches = caches(Node),
    set_env(Node, server_session_cb_init_args, ?BAD),
    [?assert(contains(?BAD_LINE, failure_to_listen(Node, tls, Config))) || _ <- lists:seq(1, 6)],
    ?assertEqual({1, 1}, full_and_resumed(tls, Port)),
    ?assertEqual(Caches, caches(Node)),
    rekindle_node:stop(Node).

no_room_for_sessions_fails_listen(Config) ->
    Node = start_node([{session_cache_server_max, 0}]),
    [
        begin
            ?assert(contains(?NO_ROOM_LINE, failure_to_listen(Node, Kind, Config))),
            ?assertMatch([{error, ?NO_ROOM_LINE ++ _}], take_lines(Node))
        end
     || Kind <- [tls, dtls]
    ],
    set_env(Node, session_cache_server_max, 10),
    ?assertEqual({1, 1}, full_and_resumed(tls, serve(Node, tls, Config))),
    rekindle_node:stop(Node).

one_session_is_room_enough(Config) ->
    sessions_resume(Config, [{session_cache_server_max, 1}]).

negative_room_is_room_enough(Config) ->
    sessions_resume(Config, [{session_cache_server_max, -3}]).

%% This many sessions would crash the cache process if its book-keeping went wrong.
sessions_resume(Config, SslEnv) ->
    Node = start_node(SslEnv),
    Port = serve(Node, tls, Config),
    Caches = caches(Node),
    ?assertMatch([_], Caches),
    [?assertEqual({1, 1}, full_and_resumed(tls, Port)) || _ <- lists:seq(1, 4)],
    ?assertMatch(#{full := 1, resumed := 5}, rekindle_clients:openssl_reconnect(Port, #{})),
    ?assertEqual(Caches, caches(Node)),
    ?assertEqual([], take_lines(Node)),
    rekindle_node:stop(Node).

%% ---- log lines about the configuration ----

options_of_others_are_reported_once(Config) ->
    Node = start_node([{session_cb_init_args, [{depth, 3}, {max_bytes, 1_000_000}, {max_byte, 7}, other]}]),
    Ports = [serve(Node, Kind, Config) || Kind <- [tls, tls, dtls]],
    ?assertEqual(
        [{warning, "rekindle: unknown options are ignored: depth, max_byte (did you mean max_bytes?), other"}],
        take_lines(Node)
    ),
    ?assertEqual({1, 1}, full_and_resumed(tls, hd(Ports))),
    ?assertMatch([#{max_bytes := 1_000_000} | _], server_scopes(Node)),
    rekindle_node:stop(Node).

%% Leaves out session_cb: without it, the first releases of OTP 27 and all before it do not call Rekindle, so nothing could log a
%% line. Sessions resume in any case, on later releases from OTP's own cache.
a_missing_key_is_reported_once(Config) ->
    [
        begin
            Node = start_node([{Key, unset} || Key <- Missing]),
            Ports = [serve(Node, tls, Config) || _ <- [1, 2]],
            [{Level, Line}] = take_lines(Node),
            ?assertEqual(warning, Level),
            ?assertEqual(Missing, [Key || Key <- [server_session_cb, client_session_cb], names(Line, Key)]),
            ?assertNot(names(Line, session_cb)),
            ?assertEqual({1, 1}, full_and_resumed(tls, hd(Ports))),
            rekindle_node:stop(Node)
        end
     || Missing <- [[server_session_cb], [client_session_cb], [server_session_cb, client_session_cb]]
    ].

all_keys_set_is_nothing_to_tell(Config) ->
    Node = start_node([]),
    _ = [serve(Node, Kind, Config) || Kind <- [tls, dtls]],
    ?assertEqual([], take_lines(Node)),
    rekindle_node:stop(Node).

%% Which roles call us where only one key names us. On releases that know the new keys, the server reads its own only, and
%% the client the old one as well.
each_release_reads_its_own_keys(Config) ->
    [
        begin
            Node = start_node([{Key, unset} || Key <- ssl_keys(), Key =/= Only]),
            _ = serve(Node, tls, Config),
            Roles = lists:sort([Role || #{role := Role} <- rekindle_node:call(Node, rekindle_admin, info, [])]),
            ?assertEqual({Only, roles(Only, knows_new_keys(Node))}, {Only, Roles}),
            rekindle_node:stop(Node)
        end
     || Only <- ssl_keys()
    ].

ssl_keys() ->
    [session_cb, server_session_cb, client_session_cb].

roles(session_cb, false) -> [client, server];
roles(session_cb, true) -> [client];
roles(server_session_cb, true) -> [server];
roles(client_session_cb, true) -> [client];
roles(_, false) -> [].

%% The node cannot be used afterwards.
knows_new_keys(Node) ->
    set_env(Node, server_session_cb, of_the_new_key),
    #{session_cb := Callback} = rekindle_node:call(Node, ssl_config, pre_1_3_session_opts, [server]),
    Callback =:= of_the_new_key.

%% Matches whole words, because the other keys' names contain `session_cb'.
names(Line, Key) ->
    match =:= re:run(Line, "\\b" ++ atom_to_list(Key) ++ "\\b", [{capture, none}]).

%% ---- the bounds of a listener ----

a_listener_has_the_bounds_that_were_set(Config) ->
    Node = start_node([]),
    [
        begin
            [set_env(Node, Key, Value) || {Key, Value} <- SslEnv],
            Port = serve(Node, tls, Config),
            ?assertEqual({SslEnv, Bounds}, {SslEnv, bounds(Node, Port)}),
            [ok = rekindle_node:call(Node, application, unset_env, [ssl, Key]) || {Key, _} <- SslEnv]
        end
     || {SslEnv, Bounds} <- environments()
    ],
    rekindle_node:stop(Node).

%% ssl's environment, and {max_bytes, max_sessions, lifetime} that follow from it.
environments() ->
    Args = fun(Options) -> {session_cb_init_args, Options} end,
    [
        {[], {67_108_864, infinity, 86_400}},
        {[Args([{max_bytes, 4096}])], {4096, infinity, 86_400}},
        {[{session_cache_server_max, 5}], {67_108_864, 5, 86_400}},
        {[{session_cache_server_max, 5}, Args([{max_sessions, 7}])], {67_108_864, 7, 86_400}},
        {[{session_cache_server_max, 5}, Args([{max_sessions, infinity}])], {67_108_864, infinity, 86_400}},
        {[{session_cache_server_max, -5}], {67_108_864, infinity, 86_400}},
        {[Args([{max_sessions, 7}])], {67_108_864, 7, 86_400}},
        {[{session_lifetime, 100}], {67_108_864, infinity, 100}},
        {[{session_lifetime, 100}, Args([{lifetime, 50}])], {67_108_864, infinity, 50}},
        {[{session_lifetime, 100}, Args([{lifetime, 200}])], {67_108_864, infinity, 200}},
        {[{session_lifetime, 0}, Args([{lifetime, 50}])], {67_108_864, infinity, 0}},
        {[Args([{max_bytes, 4096}]), {server_session_cb_init_args, [{max_bytes, 8192}]}], {8192, infinity, 86_400}}
    ].

bounds(Node, Port) ->
    [Bounds] = [
        {MaxBytes, MaxSessions, Lifetime}
     || #{
            scope := {listener, tls, {{127, 0, 0, 1}, ListenerPort}},
            max_bytes := MaxBytes,
            max_sessions := MaxSessions,
            lifetime := Lifetime
        } <- server_scopes(Node),
        ListenerPort =:= Port
    ],
    Bounds.

server_scopes(Node) ->
    [Scope || #{role := server} = Scope <- rekindle_node:call(Node, rekindle_admin, info, [])].

%% ---- nodes, servers, clients ----

%% The log is watched from before ssl starts.
start_node(SslEnv) ->
    Node = rekindle_node:start(SslEnv),
    rekindle_node:run(Node, fun watch_log/0),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    Node.

serve(Node, Kind, Config) ->
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [Kind, server_options(Kind, Config)]),
    Port.

failure_to_listen(Node, Kind, Config) ->
    try rekindle_node:call(Node, rekindle_servers, start, [Kind, server_options(Kind, Config)]) of
        {_, Port} -> {listens, Port}
    catch
        _:Reason -> Reason
    end.

server_options(Kind, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    Version =
        case Kind of
            tls -> 'tlsv1.2';
            dtls -> 'dtlsv1.2'
        end,
    [{versions, [Version]}, {certfile, Cert}, {keyfile, Key}].

full_and_resumed(Proto, Port) ->
    #{full := Full, resumed := Resumed} = rekindle_clients:openssl_two_processes(Proto, Port, #{}),
    {Full, Resumed}.

caches(Node) ->
    rekindle_node:run(Node, fun() ->
        [
            Pid
         || Pid <- processes(), proc_lib:translate_initial_call(Pid) =:= {ssl_server_session_cache, init, 1}
        ]
    end).

whereis(Node, Name) ->
    Pid = rekindle_node:call(Node, erlang, whereis, [Name]),
    true = is_pid(Pid),
    Pid.

set_env(Node, Key, Value) ->
    ok = rekindle_node:call(Node, application, set_env, [ssl, Key, Value]).

contains(Line, Reason) ->
    nomatch =/= string:find(lists:flatten(io_lib:format("~0tp", [Reason])), Line).

%% ---- the log of a node ----

%% Sees what someone sees who has left the default handler as it comes, whose filters drop a lot.
watch_log() ->
    Keeper = spawn(fun() -> timer:sleep(infinity) end),
    ?MODULE = ets:new(?MODULE, [named_table, public, ordered_set]),
    true = ets:give_away(?MODULE, Keeper, []),
    {ok, #{filters := Filters, filter_default := Default}} = logger:get_handler_config(default),
    ok = logger:add_handler(?MODULE, ?MODULE, #{level => all, filters => Filters, filter_default => Default}).

%% @private
log(#{level := Level} = Event, _Config) ->
    Line = logger_formatter:format(Event, #{template => [msg], single_line => false}),
    ets:insert(?MODULE, {erlang:unique_integer([monotonic]), Level, unicode:characters_to_list(Line)}).

%% The lines that Rekindle has logged since the last call.
take_lines(Node) ->
    rekindle_node:run(Node, fun() ->
        Events = ets:tab2list(?MODULE),
        true = ets:delete_all_objects(?MODULE),
        [{Level, Line} || {_, Level, "rekindle: " ++ _ = Line} <- Events]
    end).
