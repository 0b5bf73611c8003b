%% @doc Tests how Rekindle gets into a node: missing libraries, modules that are loaded again, releases, dependencies.
-module(rekindle_install_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).

-export([
    a_missing_library_is_reported_in_one_line/1,
    a_file_that_is_no_library_is_reported_in_one_line/1,
    the_library_of_another_module_is_reported_in_one_line/1,
    a_library_with_unknown_functions_is_reported_in_one_line/1,
    a_missing_library_fails_listen_with_one_line/1,
    a_library_that_comes_later_can_be_loaded/1,
    a_library_without_journals_says_which_feature_is_missing/1
]).
-export([
    loading_the_callback_module_again_keeps_sessions/1,
    loading_the_native_module_again_is_refused/1,
    unloading_the_native_module_leaves_the_listeners_working/1,
    unloading_the_native_module_for_good_leaves_the_listeners_working/1,
    unloading_without_references_leaves_the_thread_its_code/1,
    the_library_is_never_unmapped/1,
    the_library_is_small/1
]).
-export([
    the_application_need_not_be_started/1,
    the_application_can_be_started/1,
    a_release_has_what_it_needs_and_nothing_of_otp/1,
    a_release_resumes_sessions/1,
    a_git_dependency_is_built_and_resumes_sessions/1,
    a_checkout_dependency_is_built_and_resumes_sessions/1,
    a_warning_fails_our_build_and_no_user_s/1
]).

-define(KEYS, [session_cb, server_session_cb, client_session_cb]).
-define(MINUTE, 60_000).
-define(MAX_LIBRARY_BYTES, 4_500_000).

all() ->
    [{group, missing}, {group, reloading}, {group, packaging}].

groups() ->
    [
        {missing, [], [
            a_missing_library_is_reported_in_one_line,
            a_file_that_is_no_library_is_reported_in_one_line,
            the_library_of_another_module_is_reported_in_one_line,
            a_library_with_unknown_functions_is_reported_in_one_line,
            a_missing_library_fails_listen_with_one_line,
            a_library_that_comes_later_can_be_loaded,
            a_library_without_journals_says_which_feature_is_missing
        ]},
        {reloading, [], [
            loading_the_callback_module_again_keeps_sessions,
            loading_the_native_module_again_is_refused,
            unloading_the_native_module_leaves_the_listeners_working,
            unloading_the_native_module_for_good_leaves_the_listeners_working,
            unloading_without_references_leaves_the_thread_its_code,
            the_library_is_never_unmapped,
            the_library_is_small
        ]},
        {packaging, [], [
            the_application_need_not_be_started,
            the_application_can_be_started,
            a_release_has_what_it_needs_and_nothing_of_otp,
            a_release_resumes_sessions,
            a_git_dependency_is_built_and_resumes_sessions,
            a_checkout_dependency_is_built_and_resumes_sessions,
            a_warning_fails_our_build_and_no_user_s
        ]}
    ].

init_per_suite(Config) ->
    rekindle_certs:with_certs(Config).

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    rekindle_checkout:with_dir(Case, Config).

end_per_testcase(_Case, Config) ->
    %% Copies of the checkout are large.
    file:del_dir_r(proplists:get_value(dir, Config)).

%% ---- a library that is missing, or not Rekindle's ----

a_missing_library_is_reported_in_one_line(Config) ->
    refuses_to_start(copy_of_application(Config), "No such file or directory").

a_file_that_is_no_library_is_reported_in_one_line(Config) ->
    App = copy_of_application(Config),
    ok = file:write_file(library(App), "This is no library.\n"),
    refuses_to_start(App, "Failed to load NIF library").

the_library_of_another_module_is_reported_in_one_line(Config) ->
    App = copy_of_application(Config),
    {ok, _} = file:copy(filename:join([code:priv_dir(crypto), "lib", "crypto.so"]), library(App)),
    refuses_to_start(App, "Library module name 'crypto' does not match").

%% The library is of a later version than the modules.
a_library_with_unknown_functions_is_reported_in_one_line(Config) ->
    App = copy_of_application(Config),
    {ok, _} = file:copy(library(code:lib_dir(rekindle)), library(App)),
    ok = without_function(filename:join([App, "ebin", "rekindle_nif.beam"]), {size, 1}),
    refuses_to_start(App, "Function not found rekindle_nif:size/1").

%% If only the server's callback is Rekindle, ssl starts, and listening fails.
a_missing_library_fails_listen_with_one_line(Config) ->
    App = copy_of_application(Config),
    Eval =
        "{ok, _} = application:ensure_all_started(ssl),"
        "[application:set_env(ssl, Key, rekindle) || Key <- [session_cb, server_session_cb]],"
        "Result = try ssl:listen(0, [{ip, {127, 0, 0, 1}}]) catch Class:Reason -> {Class, Reason} end,",
    reported_in_one_line(App, "No such file or directory", erl(App, [], Eval)).

a_library_that_comes_later_can_be_loaded(Config) ->
    App = copy_of_application(Config),
    Node = rekindle_node:start([], [filename:join(App, "ebin")]),
    {error, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    {ok, _} = file:copy(library(code:lib_dir(rekindle)), library(App)),
    ?assertEqual({module, rekindle_nif}, load_again(Node, rekindle_nif)),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    ?assertEqual({1, 1}, full_and_resumed(serve(Node, tls, Config))),
    ?assertEqual(filename:join([App, "ebin", "rekindle.beam"]), rekindle_node:call(Node, code, which, [rekindle])),
    rekindle_node:stop(Node).

%% The listener works without its journal.
a_library_without_journals_says_which_feature_is_missing(Config) ->
    case os:find_executable("rustc") of
        false -> {skip, "rustc is not installed"};
        _ -> says_which_feature_is_missing(without_journals(Config), Config)
    end.

says_which_feature_is_missing(App, Config) ->
    Dir = proplists:get_value(dir, Config),
    Port = rekindle_node:free_port(),
    [
        begin
            Args = [{journal, Journal}, {scope, #{Port => mqtt}}],
            Node = rekindle_node:start([{session_cb_init_args, Args}], [filename:join(App, "ebin")]),
            ok = rekindle_log_lines:collect(Node),
            {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
            {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, [{port, Port} | server_options(tls, Config)]]),
            ?assertEqual({1, 1}, full_and_resumed(Port)),
            ?assertEqual(
                [
                    "rekindle: no journal for tls shared: mqtt: the native library was built without the feature " ++ Feature ++
                        " (see REKINDLE_FEATURES)"
                ],
                rekindle_log_lines:taken(Node)
            ),
            rekindle_node:stop(Node)
        end
     || {Feature, Journal} <- [
            {"folder", {folder, filename:join(Dir, "journal")}},
            {"valkey", {valkey, "valkey://127.0.0.1:1", [{key_file, filename:join(Dir, "keys")}]}}
        ]
    ].

%% Not built for release, which takes longer. That of the suites that want faults is in the same place: they build it again.
without_journals(Config) ->
    Root = rekindle_checkout:root(Config),
    Cargo = ["cargo", "build", "--quiet", "--locked", "--package", "rekindle_nif", "--no-default-features"],
    {0, _} = rekindle_checkout:run_in(Root, Cargo ++ ["--target-dir", "target"], 5 * ?MINUTE),
    App = copy_of_application(Config),
    {ok, _} = file:copy(filename:join(Root, "target/debug/librekindle_nif.so"), library(App)),
    App.

%% The application as it is installed, but for its library.
copy_of_application(Config) ->
    App = filename:join(proplists:get_value(dir, Config), "rekindle"),
    Ebin = filename:join(App, "ebin"),
    ok = file:make_dir(App),
    ok = file:make_dir(Ebin),
    ok = file:make_dir(filename:join(App, "priv")),
    Files = filelib:wildcard(filename:join([code:lib_dir(rekindle), "ebin", "*"])),
    [{ok, _} = file:copy(File, filename:join(Ebin, filename:basename(File))) || File <- Files],
    App.

library(App) ->
    filename:join([App, "priv", "rekindle_nif.so"]).

without_function(File, {Name, Arity} = Function) ->
    {ok, {Module, [{abstract_code, {_, Forms}}]}} = beam_lib:chunks(File, [abstract_code]),
    Kept = lists:filtermap(
        fun
            ({attribute, Line, export, Functions}) ->
                {true, {attribute, Line, export, lists:delete(Function, Functions)}};
            ({attribute, _, spec, {Spec, _}}) ->
                Spec =/= Function;
            ({function, _, FormName, FormArity, _}) ->
                {FormName, FormArity} =/= {Name, Arity};
            (_) ->
                true
        end,
        Forms
    ),
    {ok, Module, Binary} = compile:forms(Kept, []),
    file:write_file(File, Binary).

refuses_to_start(App, Reason) ->
    Keys = lists:append([["-ssl", atom_to_list(Key), "rekindle"] || Key <- ?KEYS]),
    reported_in_one_line(App, Reason, erl(App, Keys, "Result = application:ensure_all_started(ssl),")).

%% A node without any other rekindle in its code path, which tells what became of `Result'.
erl(App, Args, Eval) ->
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Common = ["-noinput", "-env", "ERL_CRASH_DUMP_SECONDS", "0", "-pa", filename:join(App, "ebin")],
    Tell = "ok = logger_std_h:filesync(default), io:format(\"~nresult: ~0tp~n\", [Result]), init:stop().",
    rekindle_clients:run(Erl, Common ++ Args ++ ["-eval", Eval ++ Tell], [], ?MINUTE).

%% The supervisors' reports hold the line as well, deep within.
reported_in_one_line(App, Reason, {Status, Output}) ->
    Line = ["rekindle: the native library \\Q", library(App), "\\E cannot be loaded: .*\\Q", Reason, "\\E.*"],
    ?assertEqual(0, Status, Output),
    ?assertEqual(1, count(["(?m)^=ERROR REPORT====.*\\R", Line, "$"], Output), Output),
    ?assertEqual(1, count(["(?m)^result: .*\\{native_library,\"", Line], Output), Output),
    ?assertEqual(0, count("\\bundef\\b", Output), Output).

count(Regexp, Output) ->
    case re:run(Output, Regexp, [global, unicode]) of
        {match, Matches} -> length(Matches);
        nomatch -> 0
    end.

%% ---- modules loaded again, and unloaded ----

loading_the_callback_module_again_keeps_sessions(Config) ->
    Node = rekindle_node:start_ssl([]),
    Port = serve(Node, tls, Config),
    save_session(Port, Config),
    Sessions = client_sessions(Node, Port, save, Config),
    ?assertMatch([_], Sessions),
    [
        begin
            ?assertEqual({module, rekindle}, load_again(Node, rekindle)),
            ?assertEqual({0, 1}, offer_session(Port, Config)),
            ?assertEqual(Sessions, client_sessions(Node, Port, true, Config))
        end
     || _ <- lists:seq(1, 3)
    ],
    ?assertEqual({1, 1}, full_and_resumed(Port)),
    rekindle_node:stop(Node).

loading_the_native_module_again_is_refused(Config) ->
    Node = rekindle_node:start_ssl([]),
    Port = serve(Node, tls, Config),
    save_session(Port, Config),
    [
        begin
            ?assertEqual({error, on_load_failure}, Load()),
            ?assertEqual(ok, rekindle_node:call(Node, rekindle_nif, loaded, [])),
            ?assertEqual({0, 1}, offer_session(Port, Config))
        end
     || Load <- [
            fun() -> load_again(Node, rekindle_nif) end,
            fun() -> rekindle_node:call(Node, code, load_file, [rekindle_nif]) end,
            fun() -> rekindle_node:call(Node, c, l, [rekindle_nif]) end
        ]
    ],
    ?assertEqual({1, 1}, full_and_resumed(Port)),
    ?assertEqual({1, 1}, full_and_resumed(serve(Node, tls, Config))),
    ?assertEqual(0, faults(Node)),
    rekindle_node:stop(Node).

%% The next call loads the module again, whose library does not know the references of the old one.
unloading_the_native_module_leaves_the_listeners_working(Config) ->
    Node = rekindle_node:start_ssl([]),
    Port = serve(Node, tls, Config),
    save_session(Port, Config),
    unload(Node, rekindle_nif),
    a_tick_of_the_thread(),
    works_without_sessions(Node, Port, Config),
    ?assertEqual({1, 1}, full_and_resumed(serve(Node, tls, Config))),
    rekindle_node:stop(Node).

%% The node does not load modules when they are called.
unloading_the_native_module_for_good_leaves_the_listeners_working(Config) ->
    Node = rekindle_node:start_ssl([]),
    Port = serve(Node, tls, Config),
    save_session(Port, Config),
    Ebin = filename:dirname(rekindle_node:call(Node, code, which, [rekindle_nif])),
    true = rekindle_node:call(Node, code, del_path, [Ebin]),
    unload(Node, rekindle_nif),
    a_tick_of_the_thread(),
    ?assertMatch({error, _}, rekindle_node:call(Node, code, load_file, [rekindle_nif])),
    works_without_sessions(Node, Port, Config),
    true = rekindle_node:call(Node, code, add_patha, [Ebin]),
    ?assertEqual({module, rekindle_nif}, rekindle_node:call(Node, code, load_file, [rekindle_nif])),
    ?assertEqual({1, 1}, full_and_resumed(serve(Node, tls, Config))),
    works_without_sessions(Node, Port, Config),
    rekindle_node:stop(Node).

%% The VM closes the library then, while the thread runs its code. Some C libraries keep a closed library mapped anyway, so this
%% alone does not show that Rekindle's is linked never to be unmapped.
unloading_without_references_leaves_the_thread_its_code(Config) ->
    Node = rekindle_node:start_ssl([]),
    Port = serve(Node, tls, Config),
    ?assertEqual({1, 1}, full_and_resumed(Port)),
    ok = rekindle_node:call(Node, application, stop, [ssl]),
    unload(Node, rekindle_nif),
    a_tick_of_the_thread(),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    ?assertEqual({1, 1}, full_and_resumed(serve(Node, tls, Config))),
    ?assertEqual(0, faults(Node)),
    rekindle_node:stop(Node).

the_library_is_never_unmapped(_Config) ->
    case os:find_executable("readelf") of
        false ->
            {skip, "readelf is not installed"};
        _ ->
            {0, Output} = rekindle_clients:run("readelf", ["-dW", library(code:lib_dir(rekindle))], [], ?MINUTE),
            ?assertEqual(1, count("\\(FLAGS_1\\).*\\bNODELETE\\b", Output), Output)
    end.

%% With all kinds of journals. docs/installing.md has the sizes.
the_library_is_small(_Config) ->
    ?assert(filelib:file_size(library(code:lib_dir(rekindle))) =< ?MAX_LIBRARY_BYTES).

load_again(Node, Module) ->
    _ = rekindle_node:call(Node, code, purge, [Module]),
    rekindle_node:call(Node, code, load_file, [Module]).

unload(Node, Module) ->
    true = rekindle_node:call(Node, code, delete, [Module]),
    %% No process runs in the code, or it would be killed.
    false = rekindle_node:call(Node, code, purge, [Module]),
    false = rekindle_node:call(Node, erlang, module_loaded, [Module]).

a_tick_of_the_thread() ->
    timer:sleep(2500).

works_without_sessions(Node, Port, Config) ->
    [Cache] = [Pid || {Pid, ListenerPort} <- caches(Node), ListenerPort =:= Port],
    ?assertEqual({1, 0}, offer_session(Port, Config)),
    ?assertEqual({2, 0}, full_and_resumed(Port)),
    ?assertEqual({6, 0}, openssl_reconnect(Port)),
    ?assertEqual([undefined, ok, undefined, ok, [], acc, true, ok], rekindle_node:run(Node, fun() -> ask(Cache) end)),
    ?assert(rekindle_node:call(Node, erlang, is_process_alive, [Cache])).

%% All callbacks that OTP may call, one after the other.
ask(Pid) ->
    Cache = reference(Pid),
    Id = <<1:256>>,
    [
        rekindle:lookup(Cache, Id),
        rekindle:update(Cache, Id, {any, term}),
        rekindle:lookup(Cache, Id),
        rekindle:delete(Cache, Id),
        rekindle:select_session(Cache, {"localhost", 443}),
        rekindle:foldl(fun(_, _) -> met end, acc, Cache),
        is_integer(rekindle:size(Cache)),
        rekindle:terminate(Cache)
    ].

reference(Pid) ->
    [Cache] = [Field || Field <- tuple_to_list(sys:get_state(Pid)), element_1(Field) =:= server],
    Cache.

element_1(Tuple) when is_tuple(Tuple), tuple_size(Tuple) > 0 -> element(1, Tuple);
element_1(_) -> none.

%% OTP's cache processes, each with its listener's port.
caches(Node) ->
    rekindle_node:run(Node, fun() ->
        [
            {Pid, element(2, Address)}
         || Pid <- processes(),
            proc_lib:translate_initial_call(Pid) =:= {ssl_server_session_cache, init, 1},
            {monitors, [{port, Socket}]} <- [process_info(Pid, monitors)],
            {ok, Address} <- [inet:sockname(Socket)]
        ]
    end).

faults(Node) ->
    lists:sum([Faults || #{faults := Faults} <- rekindle_node:call(Node, rekindle_admin, info, [])]).

%% ---- the application ----

the_application_need_not_be_started(Config) ->
    Node = rekindle_node:start_ssl([]),
    ?assertEqual({1, 1}, full_and_resumed(serve(Node, tls, Config))),
    ?assertEqual({1, 1}, full_and_resumed(dtls, serve(Node, dtls, Config))),
    ?assertEqual(false, lists:keyfind(rekindle, 1, rekindle_node:call(Node, application, which_applications, []))),
    rekindle_node:stop(Node).

the_application_can_be_started(Config) ->
    Node = rekindle_node:start([]),
    {ok, Started} = rekindle_node:call(Node, application, ensure_all_started, [rekindle]),
    ?assertEqual([ssl, rekindle], [App || App <- Started, App =:= ssl orelse App =:= rekindle]),
    Port = serve(Node, tls, Config),
    save_session(Port, Config),
    ok = rekindle_node:call(Node, application, stop, [rekindle]),
    ?assertEqual({0, 1}, offer_session(Port, Config)),
    rekindle_node:stop(Node).

%% ---- a release ----

a_release_has_what_it_needs_and_nothing_of_otp(Config) ->
    Files = [Name || Name <- tarball_names(make_tarball(Config)), lists:last(Name) =/= $/],
    Ours = [File || "lib/" ++ File <- Files],
    [App] = lists:usort([hd(filename:split(File)) || File <- Ours]),
    ?assertMatch("rekindle-" ++ _, App),
    Modules = ["rekindle.beam", "rekindle_admin.beam", "rekindle_nif.beam"],
    [?assert(lists:member(filename:join([App, "ebin", Module]), Ours), Module) || Module <- Modules],
    ?assertEqual([filename:join([App, "priv", "rekindle_nif.so"])], [File || File <- Ours, is_private(File)]),
    %% No sources, no folder of cargo's, no tests.
    ?assertEqual([], [File || File <- Ours, not is_private(File), not is_code(File)]).

a_release_resumes_sessions(Config) ->
    Release = unpack(make_tarball(Config), Config),
    Port = rekindle_node:free_port(),
    listen_on_loopback_only(Release),
    Foreground = spawn_monitor(fun() -> exit({ended, release(Release, Port, ["foreground"])}) end),
    try
        await_release(Release, Port, 60),
        ?assertEqual("embedded", eval(Release, Port, "code:get_mode()")),
        ?assertEqual("{ok, rekindle}", eval(Release, Port, "application:get_env(ssl, session_cb)")),
        ListenerPort = list_to_integer(eval(Release, Port, serve_there(Config))),
        ?assertEqual({1, 5}, openssl_reconnect(ListenerPort)),
        ?assertEqual("5", eval(Release, Port, "lists:sum([Hits || #{hits := Hits} <- rekindle_admin:info()])")),
        Report = eval(Release, Port, "binary_to_list(rekindle_admin:report())"),
        ?assertMatch(
            {Report, {match, _}},
            {Report,
                re:run(Report, "\"scope +sessions .*\ntls 127\\.0\\.0\\.1:.*\nNothing wrong found\\.\n", [multiline, dotall])}
        ),
        Nif = eval(Release, Port, "code:which(rekindle_nif)"),
        ?assertNotEqual(nomatch, string:find(Nif, filename:join(Release, "lib/rekindle-")))
    after
        stop_release(Release, Port, Foreground)
    end.

make_tarball(Config) ->
    Checkout = copy_of_checkout(Config),
    {0, _} = run_in(Checkout, ["rebar3", "as", "prod", "tar"]),
    [Tarball] = filelib:wildcard(filename:join(Checkout, "_build/prod/rel/rekindle/*.tar.gz")),
    Tarball.

tarball_names(Tarball) ->
    {ok, Names} = erl_tar:table(Tarball, [compressed]),
    Names.

is_private(File) ->
    lists:member("priv", filename:split(File)).

is_code(File) ->
    lists:member("ebin", filename:split(File)) andalso
        lists:member(filename:extension(File), [".beam", ".app"]).

unpack(Tarball, Config) ->
    Release = filename:join(proplists:get_value(dir, Config), "release"),
    ok = file:make_dir(Release),
    ok = erl_tar:extract(Tarball, [compressed, {cwd, Release}]),
    Release.

%% The node's own arguments, as operators write them; without a daemon of Erlang's left behind.
listen_on_loopback_only(Release) ->
    [File] = filelib:wildcard(filename:join(Release, "releases/*/vm.args")),
    Args = [
        "-name rekindle@127.0.0.1\n",
        "-setcookie ",
        integer_to_list(erlang:unique_integer([positive])),
        "\n",
        "-kernel inet_dist_use_interface {127,0,0,1}\n"
    ],
    ok = file:write_file(File, Args).

release(Release, Port, Args) ->
    Env = ["env", "ERL_DIST_PORT=" ++ integer_to_list(Port), "ERL_CRASH_DUMP_SECONDS=0"],
    run_in(Release, Env ++ ["bin/rekindle" | Args]).

await_release(Release, Port, Tries) when Tries > 0 ->
    case release(Release, Port, ["ping"]) of
        {0, _} ->
            ok;
        _ ->
            timer:sleep(500),
            await_release(Release, Port, Tries - 1)
    end.

eval(Release, Port, Expression) ->
    {0, Output} = release(Release, Port, ["eval", Expression ++ "."]),
    string:trim(unicode:characters_to_list(Output)).

%% No module is loaded when it is called there.
serve_there(Config) ->
    Servers = filename:rootname(filename:absname(code:which(rekindle_servers))),
    Options = io_lib:format("~0tp", [server_options(tls, Config)]),
    lists:flatten([
        "begin {module, _} = code:load_abs(\"",
        Servers,
        "\"), ",
        "{_, Port} = rekindle_servers:start(tls, ",
        Options,
        "), Port end"
    ]).

stop_release(Release, Port, {Pid, Monitor}) ->
    _ = release(Release, Port, ["stop"]),
    receive
        {'DOWN', Monitor, process, Pid, {ended, {Status, Output}}} ->
            ct:log("The release ended with ~0p:~n~ts", [Status, Output]),
            ?assertEqual(0, Status)
    after 30_000 ->
        %% Kills the program, too.
        exit(Pid, kill),
        error(release_does_not_stop)
    end.

%% ---- a dependency ----

a_git_dependency_is_built_and_resumes_sessions(Config) ->
    Origin = copy_of_checkout(Config),
    Target = move_target_away(Origin, Config),
    make_repository(Origin),
    Git = {git, "file://" ++ Origin, {branch, "trunk"}},
    Project = make_project([{rekindle, Git}], Config),
    {0, _} = run_in(Project, ["rebar3", "get-deps"]),
    Dependency = filename:join(Project, "_build/default/lib/rekindle"),
    ok = file:rename(Target, filename:join(Dependency, "target")),
    rekindle_checkout:older_than_target(Dependency),
    {0, _} = run_in(Project, ["rebar3", "compile"]),
    resumes_from(Dependency, Config).

a_checkout_dependency_is_built_and_resumes_sessions(Config) ->
    Project = make_project([rekindle], Config),
    Checkouts = filename:join(Project, "_checkouts"),
    ok = file:make_dir(Checkouts),
    ok = file:rename(copy_of_checkout(Config), filename:join(Checkouts, "rekindle")),
    {0, _} = run_in(Project, ["rebar3", "compile"]),
    resumes_from(filename:join(Project, "_build/default/checkouts/rekindle"), Config).

%% The compiler warns of more, like that of a later release.
a_warning_fails_our_build_and_no_user_s(Config) ->
    Project = make_project([rekindle], Config),
    Checkout = filename:join(Project, "_checkouts/rekindle"),
    ok = filelib:ensure_dir(Checkout),
    ok = file:rename(copy_of_checkout(Config), Checkout),
    ok = file:write_file(filename:join(Checkout, "lib/rekindle_table.erl"), "\nunused() -> ok.\n", [append]),
    {0, Output} = run_in(Project, ["rebar3", "compile"]),
    ?assertEqual(1, count("function unused/0 is unused", Output), Output),
    {0, _} = run_in(Checkout, ["rebar3", "compile"]),
    {Status, _} = run_in(Checkout, ["rebar3", "as", "ci", "compile"]),
    ?assertNotEqual(0, Status).

%% The files that cargo has built are not in the repository, but save another build.
move_target_away(Checkout, Config) ->
    Target = filename:join(proplists:get_value(dir, Config), "target"),
    ok = file:rename(filename:join(Checkout, "target"), Target),
    Target.

make_repository(Dir) ->
    Identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"],
    [
        {0, _} = run_in(Dir, ["git" | Args])
     || Args <- [
            ["init", "--quiet"],
            ["checkout", "--quiet", "-b", "trunk"],
            ["add", "--all"],
            Identity ++ ["-c", "commit.gpgsign=false", "commit", "--quiet", "--message", "copy"]
        ]
    ].

make_project(Deps, Config) ->
    Project = filename:join(proplists:get_value(dir, Config), "project"),
    Source = filename:join(Project, "src"),
    App =
        {application, user, [
            {description, "Uses rekindle"},
            {vsn, "1"},
            {registered, []},
            {applications, [kernel, stdlib, rekindle]}
        ]},
    ok = file:make_dir(Project),
    ok = file:make_dir(Source),
    ok = write_term(filename:join(Source, "user.app.src"), App),
    ok = write_term(filename:join(Project, "rebar.config"), {deps, Deps}),
    Project.

write_term(File, Term) ->
    file:write_file(File, io_lib:format("~tp.~n", [Term])).

resumes_from(App, Config) ->
    ?assert(filelib:is_regular(library(App))),
    Ebin = filename:join(App, "ebin"),
    Node = rekindle_node:start([], [Ebin]),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [rekindle]),
    ?assertEqual(filename:join(Ebin, "rekindle_nif.beam"), rekindle_node:call(Node, code, which, [rekindle_nif])),
    ?assertEqual(App, rekindle_node:call(Node, code, lib_dir, [rekindle])),
    ?assertEqual({1, 1}, full_and_resumed(serve(Node, tls, Config))),
    rekindle_node:stop(Node).

%% ---- the checkout ----

copy_of_checkout(Config) ->
    Copy = filename:join(proplists:get_value(dir, Config), "checkout"),
    Root = rekindle_checkout:root(Config),
    ok = file:make_dir(Copy),
    {ok, Names} = file:list_dir(Root),
    Sources = [filename:join(Root, Name) || Name <- Names, not lists:member(Name, not_copied())],
    {0, _} = rekindle_clients:run("cp", ["-Rp"] ++ Sources ++ [Copy], [], ?MINUTE),
    rekindle_checkout:with_target(Copy, Config),
    Copy.

not_copied() ->
    [".git", "_build", "priv", "target", "test"].

run_in(Dir, Command) ->
    rekindle_checkout:run_in(Dir, Command, 5 * ?MINUTE).

%% ---- servers and clients ----

serve(Node, Kind, Config) ->
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [Kind, server_options(Kind, Config)]),
    Port.

server_options(Kind, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    Version =
        case Kind of
            tls -> 'tlsv1.2';
            dtls -> 'dtlsv1.2'
        end,
    [{versions, [Version]}, {certfile, Cert}, {keyfile, Key}].

save_session(Port, Config) ->
    ?assertMatch(#{full := 1}, rekindle_clients:openssl_save(tls, Port, session_file(Config), #{})).

offer_session(Port, Config) ->
    handshakes(rekindle_clients:openssl_offer(tls, Port, session_file(Config), #{})).

session_file(Config) ->
    filename:join(proplists:get_value(dir, Config), "session.pem").

full_and_resumed(Port) ->
    full_and_resumed(tls, Port).

full_and_resumed(Proto, Port) ->
    handshakes(rekindle_clients:openssl_two_processes(Proto, Port, #{})).

openssl_reconnect(Port) ->
    handshakes(rekindle_clients:openssl_reconnect(Port, #{})).

%% The ids of two connections' sessions, which the node's own ssl_manager keeps.
client_sessions(Node, Port, Reuse, Config) ->
    #{ca := Ca} = proplists:get_value(certs, Config),
    Opts = #{cafile => Ca, reuse_sessions => Reuse},
    #{output := Ids} = rekindle_node:call(Node, rekindle_clients, erlang, [Port, Opts]),
    lists:usort(binary:split(Ids, <<"\n">>, [global, trim])).

handshakes(#{full := Full, resumed := Resumed}) ->
    {Full, Resumed}.
