%% Tests the record layout: it is found for the installed releases, for stripped ones and for changed ones, and no session of
%% another layout reaches OTP's process.
-module(rekindle_layout_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(rekindle_journals, [journal/2]).

%% rekindle_layout knows the layout of these OTP releases even without debug information.
-define(RELEASES_IN_TABLE, ["25", "27"]).

all() ->
    [
        the_fields_are_named,
        a_patch_release_with_the_same_fields_has_the_same_layout,
        a_stripped_release_has_the_layout_of_a_whole_one,
        a_stripped_release_that_is_not_known_has_a_layout_of_its_own,
        other_fields_under_the_same_version_are_another_layout,
        another_shape_is_another_layout_also_without_debug_information,
        a_file_that_was_replaced_is_not_believed,
        the_server_name_is_found,
        it_never_fails,
        a_session_of_other_fields_does_not_reach_otp
    ].

suite() ->
    [{timetrap, {minutes, 2}}].

init_per_suite(Config) ->
    [{certs, rekindle_certs:make(?config(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    Dir = filename:join(?config(priv_dir, Config), Case),
    ok = file:make_dir(Dir),
    [{dir, Dir}, {port, rekindle_node:free_port()} | Config].

end_per_testcase(_Case, _Config) ->
    ok.

%% ---- cases ----

the_fields_are_named(Config) ->
    Layout = layout([], Config),
    ?assertMatch(<<"fields:session_id,internal_id,peer_certificate,", _/binary>>, Layout),
    ?assertNotEqual(nomatch, binary:match(Layout, <<",time_stamp">>)).

a_patch_release_with_the_same_fields_has_the_same_layout(Config) ->
    ?assertEqual(layout([], Config), layout([version("99.9")], Config)).

a_stripped_release_has_the_layout_of_a_whole_one(Config) ->
    case lists:member(erlang:system_info(otp_release), ?RELEASES_IN_TABLE) of
        true -> ?assertEqual(layout([], Config), layout([fun strip/1], Config));
        false -> {skip, "THE FIELDS OF THIS RELEASE ARE NOT IN THE TABLE"}
    end.

a_stripped_release_that_is_not_known_has_a_layout_of_its_own(Config) ->
    Layout = layout([fun strip/1, version("99.9")], Config),
    ?assertMatch(<<"ssl-99.9:{", _/binary>>, Layout),
    ?assertEqual(Layout, layout([fun strip/1, version("99.9")], Config)),
    ?assertNotEqual(Layout, layout([fun strip/1, version("99.8")], Config)),
    %% The version does not tell that its code is another.
    ?assertNotEqual(Layout, layout([change(fun add_last/1), fun strip/1, version("99.9")], Config)).

other_fields_under_the_same_version_are_another_layout(Config) ->
    Layouts = [layout(Changes, Config) || Changes <- [[] | [[change(How)] || How <- changes()]]],
    ?assertEqual(length(Layouts), length(lists:usort(Layouts)), Layouts).

another_shape_is_another_layout_also_without_debug_information(Config) ->
    Layouts = [
        layout(Changes ++ [fun strip/1], Config)
     || Changes <- [[] | [[change(How)] || How <- [fun add_last/1, fun add_first/1]]]
    ],
    ?assertEqual(length(Layouts), length(lists:usort(Layouts)), Layouts).

%% A package was installed over the one that runs: the layout is that of the code that is loaded.
a_file_that_was_replaced_is_not_believed(Config) ->
    Folder = make_ssl([change(fun add_last/1)], Config),
    Node = rekindle_node:start_ssl([]),
    {module, _} = rekindle_node:call(Node, code, ensure_loaded, [ssl_session]),
    true = rekindle_node:call(Node, code, add_patha, [Folder]),
    Layout = rekindle_node:call(Node, rekindle_layout, layout, []),
    rekindle_node:stop(Node),
    ?assertNotEqual(layout([change(fun add_last/1)], Config), Layout).

the_server_name_is_found(_Config) ->
    Has = [
        <<"fields:session_id,sni">>,
        <<"fields:session_id,sni,ecc">>,
        <<"ssl-11.7.8:{17,11}:AB">>,
        <<"ssl-11.10:{17,11}:AB">>,
        <<"ssl-12.0:unknown:">>
    ],
    HasNot = [
        <<"fields:session_id,sni_2">>,
        <<"fields:session_id">>,
        <<"ssl-11.7.7.9:{17,11}:AB">>,
        <<"ssl-11.7:{17,11}:AB">>,
        <<"ssl-10.9.1:unknown:">>,
        <<"ssl-unknown:unknown:">>,
        <<"ssl-11.x:unknown:">>
    ],
    ?assertEqual(Has, [Layout || Layout <- Has ++ HasNot, rekindle_layout:has_server_name(Layout)]).

it_never_fails(_Config) ->
    rekindle_node:run_in_new(fun() ->
        %% No ssl at all; and one that is quite different.
        true = code:del_path(ssl),
        ok = application:unload(ssl),
        ?assertEqual(<<"ssl-unknown:unknown:">>, rekindle_layout:layout()),
        [
            begin
                {ok, Module, Beam} = compile:forms(forms(Text)),
                {module, Module} = code:load_binary(Module, "", Beam),
                ?assertMatch(<<"ssl-unknown:unknown:", _:32/binary>>, rekindle_layout:layout()),
                code:purge(Module)
            end
         || Text <- [
                "-module(ssl_session). -export([valid_session/2]). valid_session(_, _) -> true.",
                "-module(ssl_session). -export([valid_session/2]). valid_session(_, _) -> exit(kill).",
                "-module(ssl_session). -export([valid_session/2]). valid_session(_, _) -> 17."
            ]
        ]
    end).

%% OTP's cache process would crash over it, and its crash report hold the session.
a_session_of_other_fields_does_not_reach_otp(Config) ->
    First = start([], Config),
    Saved = rekindle_journals:save(1, ?config(port, Config), Config),
    rekindle_journals:await_written(First, 1),
    rekindle_node:kill(First),
    Second = start([make_ssl([change_all(fun add_last/1)], Config)], Config),
    rekindle_node:await(fun() -> journal(Second, replay) =/= undefined end),
    Processes = caches(Second),
    ?assertMatch(#{full := 1, resumed := 0}, rekindle_journals:offer(Saved, ?config(port, Config), Config)),
    ?assertMatch(#{layout := N} when N >= 1, journal(Second, skipped)),
    ?assertEqual(0, journal(Second, applied)),
    Lines = [unicode:characters_to_list(Line) || {warning, Line} <- rekindle_node:call(Second, rekindle_admin, findings, [])],
    ?assertMatch(
        [_],
        [Line || Line <- Lines, string:find(Line, "has other fields in its session records than this node's") =/= nomatch],
        Lines
    ),
    Own = rekindle_journals:save(2, ?config(port, Config), Config),
    ?assertMatch(#{full := 0, resumed := 1}, rekindle_journals:offer(Own, ?config(port, Config), Config)),
    ?assertEqual(Processes, caches(Second)),
    rekindle_node:stop(Second),
    %% It is there still for those who can read it.
    Third = start([], Config),
    rekindle_node:await(fun() -> journal(Third, replay) =/= undefined end),
    ?assertMatch(#{resumed := 1}, rekindle_journals:offer(Saved, ?config(port, Config), Config)),
    rekindle_node:stop(Third).

%% ---- ssl as others have it ----

%% The layout in a node whose ssl is changed so.
layout(Changes, Config) ->
    Node = rekindle_node:start([], [make_ssl(Changes, Config) || Changes =/= []]),
    Layout = rekindle_node:call(Node, rekindle_layout, layout, []),
    rekindle_node:stop(Node),
    Layout.

%% A folder with this node's ssl, changed by each of these.
make_ssl(Changes, Config) ->
    Folder = filename:join([?config(dir, Config), integer_to_list(erlang:unique_integer([positive])), "ebin"]),
    ok = filelib:ensure_dir(filename:join(Folder, "x")),
    {ok, Files} = file:list_dir(filename:join(code:lib_dir(ssl), "ebin")),
    [{ok, _} = file:copy(filename:join([code:lib_dir(ssl), "ebin", File]), filename:join(Folder, File)) || File <- Files],
    [Change(Folder) || Change <- Changes],
    Folder.

version(Version) ->
    fun(Folder) ->
        File = filename:join(Folder, "ssl.app"),
        {ok, [{application, ssl, Keys}]} = file:consult(File),
        ok = file:write_file(File, io_lib:format("~tp.~n", [{application, ssl, lists:keystore(vsn, 1, Keys, {vsn, Version})}]))
    end.

strip(Folder) ->
    {ok, _} = beam_lib:strip_files([filename:join(Folder, "ssl_session.beam")]),
    ok.

%% The module that is asked for the layout has another record.
change(How) ->
    change_modules("ssl_session.beam", How).

%% All modules that know the record have another one.
change_all(How) ->
    change_modules("*.beam", How).

change_modules(Modules, How) ->
    fun(Folder) -> lists:foreach(fun(File) -> change(File, How) end, filelib:wildcard(filename:join(Folder, Modules))) end.

change(File, How) ->
    {ok, {_, [{abstract_code, {raw_abstract_v1, Forms}}]}} = beam_lib:chunks(File, [abstract_code]),
    case [Form || {attribute, _, record, {session, _}} = Form <- Forms] of
        [{attribute, Line, record, {session, Fields}} = Form] ->
            Changed = [
                case F of
                    Form -> {attribute, Line, record, {session, How(Fields)}};
                    _ -> F
                end
             || F <- Forms
            ],
            {ok, _, Beam} = compile:forms(Changed, [debug_info]),
            ok = file:write_file(File, Beam);
        [] ->
            ok
    end.

changes() ->
    [fun add_last/1, fun add_first/1, fun swap/1].

add_last(Fields) -> Fields ++ [field(new)].
add_first(Fields) ->
    {Head, Tail} = lists:split(6, Fields),
    Head ++ [field(new) | Tail].
swap(Fields) ->
    {Init, [A, B]} = lists:split(length(Fields) - 2, Fields),
    Init ++ [B, A].

field(Name) -> {record_field, 1, {atom, 1, Name}}.

forms(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    forms(Tokens, []).

forms([], []) ->
    [];
forms([{dot, _} = Dot | Rest], Seen) ->
    {ok, Form} = erl_parse:parse_form(lists:reverse([Dot | Seen])),
    [Form | forms(Rest, [])];
forms([Token | Rest], Seen) ->
    forms(Rest, [Token | Seen]).

%% ---- nodes ----

start(Folders, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Node = rekindle_node:start(
        [{session_cb_init_args, [{journal, {folder, filename:join(?config(dir, Config), "journal")}}]}], Folders
    ),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    Options = [{port, ?config(port, Config)}, {certfile, Cert}, {keyfile, Key}, {reuseaddr, true}, {versions, ['tlsv1.2']}],
    {_, _} = rekindle_node:call(Node, rekindle_servers, start, [tls, Options]),
    Node.

caches(Node) ->
    rekindle_node:run(Node, fun() -> [Pid || {_, Pid, _, _} <- supervisor:which_children(ssl_server_session_cache_sup)] end).
