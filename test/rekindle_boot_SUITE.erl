%% @doc Tests how nodes with Rekindle start: distributed over TLS, where caches are opened before the native library can be
%% loaded; again in the same emulator; without debug information; from an archive.
-module(rekindle_boot_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2]).
-export([
    a_release_with_distribution_over_tls_resumes_in_embedded_mode/1,
    a_release_with_distribution_over_tls_resumes_in_interactive_mode/1
]).
-export([
    a_listener_gets_its_store_when_the_library_can_be_loaded/1,
    upgraded_sockets_get_their_store_when_the_library_can_be_loaded/1,
    the_client_gets_its_store_when_the_library_can_be_loaded/1,
    a_library_that_is_missing_then_is_reported_in_one_line/1
]).
-export([
    a_listener_that_is_opened_again_has_the_options_of_now/1,
    a_node_that_is_restarted_by_init_resumes/1,
    a_release_without_debug_information_resumes/1,
    an_escript_with_the_application_on_disk_resumes/1,
    an_escript_with_the_application_in_it_tells_why_not_in_one_line/1
]).
-export([accept/3, boot/2, serve_once/1]).

%% The element of OTP's session record that is in its order.
-define(INTERNAL_ID, 3).

-define(KEYS, [session_cb, server_session_cb, client_session_cb]).
-define(APPLICATIONS, [kernel, stdlib, crypto, asn1, public_key, ssl, sasl, rekindle]).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [{group, distribution}, {group, early}, {group, ways}].

groups() ->
    [
        {distribution, [], [
            a_release_with_distribution_over_tls_resumes_in_embedded_mode,
            a_release_with_distribution_over_tls_resumes_in_interactive_mode
        ]},
        {early, [], [
            a_listener_gets_its_store_when_the_library_can_be_loaded,
            upgraded_sockets_get_their_store_when_the_library_can_be_loaded,
            the_client_gets_its_store_when_the_library_can_be_loaded,
            a_library_that_is_missing_then_is_reported_in_one_line
        ]},
        {ways, [], [
            a_listener_that_is_opened_again_has_the_options_of_now,
            a_node_that_is_restarted_by_init_resumes,
            a_release_without_debug_information_resumes,
            an_escript_with_the_application_on_disk_resumes,
            an_escript_with_the_application_in_it_tells_why_not_in_one_line
        ]}
    ].

init_per_suite(Config) ->
    rekindle_certs:with_certs(Config).

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    rekindle_checkout:with_dir(Case, Config).

%% ---- distribution over TLS ----

a_release_with_distribution_over_tls_resumes_in_embedded_mode(Config) ->
    resumes_distribution("embedded", Config).

a_release_with_distribution_over_tls_resumes_in_interactive_mode(Config) ->
    resumes_distribution("interactive", Config).

%% OTP's own clients of the distribution look for their sessions under another name than they register them with, and
%% do not resume. Others do.
resumes_distribution(Mode, Config) ->
    Release = make_release(Config),
    Port = rekindle_node:free_port(),
    %% No daemon of Erlang's is needed where all nodes listen on one port.
    [Server, Client] =
        Nodes = [start_distributed(Name, Port, Mode, Release, Config) || Name <- ["server@127.0.0.1", "client@127.0.0.2"]],
    ?assertEqual([list_to_atom(Mode), list_to_atom(Mode)], [rekindle_node:call(Node, code, get_mode, []) || Node <- Nodes]),
    Managers = [whereis(Node, ssl_manager_dist) || Node <- Nodes],
    [connect_nodes(Client, Server, 'server@127.0.0.1', N) || N <- lists:seq(1, 3)],
    ?assertEqual({1, 5}, openssl_reconnect(Port)),
    ?assertMatch(#{hits := 5, sessions := 4, faults := 0}, scope(Server, upgraded)),
    ?assertEqual(1, order_size(Server, whereis(Server, ssl_unknown_listener))),
    %% The first session is lost where ssl_manager was started before the library could be loaded.
    ?assert(lists:member(gb_trees:size(order(Client, ssl_manager_dist)), [2, 3])),
    ?assert(books_agree(Client, ssl_manager_dist)),
    ?assertEqual([0, 0], [Faults || #{scope := client, faults := Faults} <- rekindle_node:call(Client, rekindle_admin, info, [])]),
    ?assertEqual(Managers, [whereis(Node, ssl_manager_dist) || Node <- Nodes]),
    %% Other servers of the node resume as well.
    {ok, _} = rekindle_node:call(Server, application, ensure_all_started, [ssl]),
    ?assertEqual({1, 5}, openssl_reconnect(serve(Server, tls, Config))),
    [rekindle_node:stop(Node) || Node <- Nodes].

%% A boot script that loads each module of the applications, as embedded mode wants it.
make_release(Config) ->
    make_release([filename:dirname(code:which(rekindle))], Config).

make_release(Folders, Config) ->
    Dir = proplists:get_value(dir, Config),
    [_ = application:load(App) || App <- ?APPLICATIONS],
    Versions = [{App, element(2, {ok, _} = application:get_key(App, vsn))} || App <- ?APPLICATIONS],
    Release = {release, {"release", "1"}, {erts, erlang:system_info(version)}, Versions},
    ok = write_terms(filename:join(Dir, "release.rel"), [Release]),
    Options = [local, no_warn_sasl, {outdir, Dir}, {path, Folders}],
    ok = systools:make_script(filename:join(Dir, "release"), Options),
    ok = write_terms(filename:join(Dir, "sys.config"), [[{ssl, [{Key, rekindle} || Key <- ?KEYS]}]]),
    filename:join(Dir, "release").

start_distributed(Name, Port, Mode, Release, Config) ->
    {ok, Ip} = inet:parse_address(tl(string:find(Name, "@"))),
    Args = [
        "-proto_dist",
        "inet_tls",
        "-ssl_dist_optfile",
        dist_options(Config),
        "-start_epmd",
        "false",
        "-erl_epmd_port",
        integer_to_list(Port),
        "-kernel",
        "dist_auto_connect",
        "never",
        "net_setuptime",
        "60",
        "inet_dist_use_interface",
        lists:flatten(io_lib:format("~0p", [Ip])),
        "-name",
        Name,
        "-setcookie",
        "rekindle"
    ],
    start_release(Release, Mode, Args).

start_release(Release, Mode, Args) ->
    Config = filename:join(filename:dirname(Release), "sys"),
    Common = ["-boot", Release, "-mode", Mode, "-config", Config, "-env", "ERL_CRASH_DUMP_SECONDS", "0"],
    {ok, Node, _} = peer:start(#{connection => standard_io, args => Common ++ Args, wait_boot => 60_000}),
    [
        {module, _} = rekindle_node:call(Node, code, load_abs, [filename:rootname(code:which(Module))])
     || Module <- [rekindle_node, rekindle_log_lines, rekindle_servers, ?MODULE]
    ],
    Node.

dist_options(Config) ->
    #{ca := Ca, server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    File = filename:join(proplists:get_value(dir, Config), "dist.config"),
    Versions = {versions, ['tlsv1.2']},
    Server = [Versions, {certfile, Cert}, {keyfile, Key}, {reuse_sessions, true}],
    Client = [
        Versions, {cacertfile, Ca}, {verify, verify_peer}, {verify_fun, {fun ?MODULE:accept/3, []}}, {reuse_sessions, true}
    ],
    ok = write_terms(File, [[{server, Server}, {client, Client}]]),
    File.

%% The certificate does not contain the node's host.
accept(_Certificate, {bad_cert, hostname_check_failed}, State) -> {valid, State};
accept(_Certificate, {bad_cert, Reason}, _State) -> {fail, Reason};
accept(_Certificate, {extension, _}, State) -> {unknown, State};
accept(_Certificate, _Valid, State) -> {valid, State}.

%% Connects them for the Nth time.
connect_nodes(Client, Server, Name, N) ->
    ?assert(rekindle_node:call(Client, net_kernel, connect_node, [Name])),
    %% The session is registered once the handshake is done.
    rekindle_node:await(fun() -> [N] =:= [Sessions || #{scope := upgraded, sessions := Sessions} <- servers(Server)] end),
    ?assert(rekindle_node:call(Client, erlang, disconnect_node, [Name])),
    rekindle_node:await(fun() -> rekindle_node:call(Client, erlang, nodes, []) =:= [] end).

%% ---- the boot, and what OTP's processes do meanwhile ----

a_listener_gets_its_store_when_the_library_can_be_loaded(Config) ->
    Node = start_early(Config),
    Port = serve(Node, tls, Config),
    gets_its_store(Node, Port, listener_cache(Node)),
    rekindle_node:stop(Node).

upgraded_sockets_get_their_store_when_the_library_can_be_loaded(Config) ->
    Node = start_early(Config),
    Port = serve(Node, upgrade, Config),
    %% The cache is opened with the first connection.
    ?assertEqual({6, 0}, openssl_reconnect(Port)),
    gets_its_store(Node, Port, whereis(Node, ssl_unknown_listener)),
    rekindle_node:stop(Node).

gets_its_store(Node, Port, Process) ->
    ?assertEqual({6, 0}, openssl_reconnect(Port)),
    ?assertEqual([], rekindle_log_lines:taken(Node)),
    load_library(Node),
    %% The doctor does not take the caches for OTP's own.
    ?assertEqual([], rekindle_node:call(Node, rekindle_admin, findings, [])),
    ?assertEqual({1, 5}, openssl_reconnect(Port)),
    ?assert(rekindle_node:call(Node, erlang, is_process_alive, [Process])),
    ?assertEqual(1, order_size(Node, Process)),
    ?assertMatch([#{sessions := 1, hits := 5, faults := 0}], servers(Node)),
    ?assertEqual([], rekindle_log_lines:taken(Node)),
    %% Nothing else keeps the store.
    ok = rekindle_node:call(Node, application, stop, [ssl]),
    rekindle_node:await(fun() -> servers(Node) =:= [] end).

the_client_gets_its_store_when_the_library_can_be_loaded(Config) ->
    Node = start_early(Config),
    Port = serve(Node, tls, Config),
    Manager = whereis(Node, ssl_manager),
    Ids = [connect(Node, Port, Save, Config) || Save <- [true, save, true, save]],
    ?assertEqual(4, length(lists:usort(Ids))),
    ?assertEqual(0, order_size(Node, Manager)),
    load_library(Node),
    %% ssl_manager starts over when it is to register the first session, which it drops.
    _ = connect(Node, Port, save, Config),
    Id = connect(Node, Port, save, Config),
    ?assertEqual(Id, connect(Node, Port, true, Config)),
    ?assertEqual(Manager, whereis(Node, ssl_manager)),
    ?assertEqual(1, order_size(Node, Manager)),
    ?assert(books_agree(Node, ssl_manager)),
    ?assertMatch(#{sessions := 1, faults := 0}, scope(Node, client)),
    ?assertEqual([], rekindle_log_lines:taken(Node)),
    rekindle_node:stop(Node).

%% The listener works on: it is too late to refuse it.
a_library_that_is_missing_then_is_reported_in_one_line(Config) ->
    App = filename:join(proplists:get_value(dir, Config), "rekindle"),
    ok = file:make_dir(App),
    {0, _} = rekindle_clients:run("cp", ["-R", filename:dirname(code:which(rekindle)), App], [], 60_000),
    Node = start_early(Config),
    Port = serve(Node, tls, Config),
    ?assertEqual({6, 0}, openssl_reconnect(Port)),
    %% The node has no memory of the library, and looks for it elsewhere.
    true = rekindle_node:call(Node, persistent_term, erase, [rekindle_nif]),
    true = rekindle_node:call(Node, code, replace_path, [rekindle, filename:join(App, "ebin")]),
    load_library(Node),
    [?assertEqual({6, 0}, openssl_reconnect(Port)) || _ <- lists:seq(1, 2)],
    Told = [Line || Line <- rekindle_log_lines:taken(Node), string:find(Line, "cannot be loaded") =/= nomatch],
    ?assertMatch([_], Told),
    ?assertNotEqual(nomatch, string:find(Told, filename:join(App, "priv/rekindle_nif.so"))),
    ?assertEqual(1, order_size(Node, listener_cache(Node))),
    rekindle_node:stop(Node).

%% ---- a node in which it is too early ----

%% Makes the state of embedded mode before the modules' on_load functions have run: OTP knows the module, but it is not loaded.
start_early(Config) ->
    Node = start_release(make_release(Config), "embedded", []),
    ok = rekindle_log_lines:collect(Node),
    ok = rekindle_node:call(Node, application, stop, [ssl]),
    true = rekindle_node:call(Node, erlang, delete_module, [rekindle_nif]),
    true = rekindle_node:call(Node, erlang, purge_module, [rekindle_nif]),
    ?assertMatch({file, _}, rekindle_node:call(Node, code, is_loaded, [rekindle_nif])),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    Node.

load_library(Node) ->
    ?assertEqual({module, rekindle_nif}, rekindle_node:call(Node, code, load_file, [rekindle_nif])).

%% ---- other ways ----

a_listener_that_is_opened_again_has_the_options_of_now(Config) ->
    Node = rekindle_node:start_ssl([]),
    Port = rekindle_node:free_port(),
    {Server, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, [{port, Port} | tls_options(Config)]]),
    Folder = filename:join(proplists:get_value(dir, Config), "journal"),
    Options = [{scope, #{Port => mqtt}}, {journal, {folder, Folder}}],
    ok = rekindle_node:call(Node, application, set_env, [ssl, session_cb_init_args, Options]),
    ?assertEqual({1, 5}, openssl_reconnect(Port)),
    ?assertMatch([#{scope := {listener, tls, _}, journal := undefined}], servers(Node)),
    ok = rekindle_node:call(Node, rekindle_servers, stop, [Server]),
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, [{port, Port} | tls_options(Config)]]),
    ?assertEqual({1, 5}, openssl_reconnect(Port)),
    %% The scope of the closed listener can be there for a moment.
    ?assertMatch([#{hits := 5, journal := #{}}], [Info || #{scope := {shared, tls, mqtt}} = Info <- servers(Node)]),
    rekindle_node:stop(Node).

a_node_that_is_restarted_by_init_resumes(Config) ->
    Boots = filename:join(proplists:get_value(dir, Config), "boots"),
    Eval = io_lib:format("~s:boot(~0p, ~0p).", [?MODULE, Boots, tls_options(Config)]),
    {0, Output} = erl(["-eval", lists:flatten(Eval)]),
    ?assertEqual([<<"0 1 5">>, <<"1 1 5">>, <<"2 1 5">>], told(Output)).

%% Runs the fun at each of three boots.
boot(Boots, Options) ->
    Number =
        case file:read_file(Boots) of
            {ok, Written} -> binary_to_integer(Written);
            {error, enoent} -> 0
        end,
    ok = file:write_file(Boots, integer_to_binary(Number + 1)),
    {Full, Resumed} = serve_once(Options),
    io:format("told: ~b ~b ~b~n", [Number, Full, Resumed]),
    case Number of
        2 -> init:stop();
        _ -> init:restart()
    end.

serve_once(Options) ->
    [application:set_env(ssl, Key, rekindle) || Key <- ?KEYS],
    {ok, _} = application:ensure_all_started(ssl),
    {_, Port} = rekindle_servers:start(tls, Options),
    openssl_reconnect(Port).

%% OTP's modules that have to do with sessions are without it, too.
a_release_without_debug_information_resumes(Config) ->
    Apps = [ssl, public_key, rekindle],
    Folders = [copy_application(App, ["ebin", "priv"], Config) || App <- Apps],
    Files = lists:append([filelib:wildcard(filename:join(Folder, "*.beam")) || Folder <- Folders]),
    {ok, _} = beam_lib:strip_files(Files),
    Node = start_release(make_release(Folders, Config), "embedded", []),
    [
        ?assertMatch({error, beam_lib, {missing_chunk, _, "Dbgi"}}, beam_lib:chunks(which(Node, Module), [debug_info]))
     || Module <- [rekindle, rekindle_nif]
    ],
    ?assert(lists:member(which(Node, ssl_session), Files)),
    ?assertEqual({1, 5}, openssl_reconnect(serve(Node, tls, Config))),
    ?assertMatch([#{hits := 5, faults := 0}], servers(Node)),
    rekindle_node:stop(Node).

which(Node, Module) ->
    rekindle_node:call(Node, code, which, [Module]).

copy_application(App, Parts, Config) ->
    From =
        case App of
            rekindle -> filename:dirname(filename:dirname(code:which(rekindle)));
            _ -> code:lib_dir(App)
        end,
    To = filename:join(proplists:get_value(dir, Config), App),
    ok = file:make_dir(To),
    Present = [Path || Part <- Parts, Path <- [filename:join(From, Part)], filelib:is_dir(Path)],
    {0, _} = rekindle_clients:run("cp", ["-RL"] ++ Present ++ [To], [], 60_000),
    filename:join(To, "ebin").

an_escript_with_the_application_on_disk_resumes(Config) ->
    Folders = [filename:dirname(code:which(Module)) || Module <- [rekindle, ?MODULE]],
    Script = escript(["-pa " ++ Folder ++ " " || Folder <- Folders], [], Config),
    {0, Output} = rekindle_clients:run("escript", [Script], [], 60_000),
    ?assertEqual([<<"1 5">>], told(Output)).

an_escript_with_the_application_in_it_tells_why_not_in_one_line(Config) ->
    Files = filelib:wildcard(filename:join(filename:dirname(code:which(rekindle)), "*")),
    Archive = [{"rekindle/ebin/" ++ filename:basename(File), element(2, {ok, _} = file:read_file(File))} || File <- Files],
    Script = escript("-pa escript/rekindle/ebin -pa " ++ filename:dirname(code:which(?MODULE)), Archive, Config),
    {_, Output} = rekindle_clients:run("sh", ["-c", "cd \"$0\" && exec escript escript", filename:dirname(Script)], [], 60_000),
    Line = "(?m)^rekindle: the native library .*/escript/rekindle/priv/rekindle_nif\\.so cannot be loaded: it is in an archive",
    ?assertMatch({match, [_]}, re:run(Output, Line, [global]), Output),
    ?assertEqual([], told(Output)).

escript(Arguments, Archive, Config) ->
    Dir = proplists:get_value(dir, Config),
    Source = filename:join(Dir, "main.erl"),
    Text = [
        "-module(main). -export([main/1]).\n",
        "main(_) -> {Full, Resumed} = rekindle_boot_SUITE:serve_once(",
        io_lib:format("~0p", [tls_options(Config)]),
        "),\n",
        "io:format(\"told: ~b ~b~n\", [Full, Resumed]).\n"
    ],
    ok = file:write_file(Source, Text),
    {ok, main, Beam} = compile:file(Source, [binary]),
    Script = filename:join(Dir, "escript"),
    Sections = [
        shebang, {emu_args, lists:flatten(["-escript main main " | Arguments])}, {archive, [{"main.beam", Beam} | Archive], []}
    ],
    ok = escript:create(Script, Sections),
    Script.

erl(Args) ->
    Folders = [filename:dirname(code:which(Module)) || Module <- [rekindle, ?MODULE]],
    Paths = lists:append([["-pa", Folder] || Folder <- Folders]),
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    rekindle_clients:run(Erl, ["-noinput", "-env", "ERL_CRASH_DUMP_SECONDS", "0"] ++ Paths ++ Args, [], 60_000).

told(Output) ->
    case re:run(Output, "(?m)^told: (.*)$", [global, {capture, all_but_first, binary}]) of
        {match, Found} -> lists:append(Found);
        nomatch -> []
    end.

%% ---- OTP's processes ----

whereis(Node, Name) ->
    rekindle_node:call(Node, erlang, whereis, [Name]).

listener_cache(Node) ->
    [{_, Process, _, _}] = rekindle_node:call(Node, supervisor, which_children, [ssl_server_session_cache_sup]),
    Process.

order_size(Node, Process) ->
    gb_trees:size(order(Node, Process)).

%% The fields are found by content, as their places differ between releases.
order(Node, Process) ->
    [Order] = [
        Field
     || {Size, _} = Field <- tuple_to_list(rekindle_node:call(Node, sys, get_state, [Process])), is_integer(Size)
    ],
    Order.

%% Whether the manager's order has exactly the stored sessions.
books_agree(Node, Manager) ->
    Stored = rekindle_node:run(Node, fun() ->
        [Cache] = [Field || Field <- tuple_to_list(sys:get_state(Manager)), is_tuple(Field), element(1, Field) =:= client],
        rekindle:foldl(fun({_, Session}, InternalIds) -> [element(?INTERNAL_ID, Session) | InternalIds] end, [], Cache)
    end),
    lists:sort(Stored) =:= gb_trees:keys(order(Node, Manager)).

scope(Node, Scope) ->
    [Info] = [Info || #{scope := Label} = Info <- rekindle_node:call(Node, rekindle_admin, info, []), Label =:= Scope],
    Info.

servers(Node) ->
    [Info || #{role := server} = Info <- rekindle_node:call(Node, rekindle_admin, info, [])].

%% ---- servers and clients ----

serve(Node, Kind, Config) ->
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [Kind, tls_options(Config)]),
    Port.

tls_options(Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    [{versions, ['tlsv1.2']}, {certfile, Cert}, {keyfile, Key}].

openssl_reconnect(Port) ->
    #{full := Full, resumed := Resumed} = rekindle_clients:openssl_reconnect(Port, #{}),
    {Full, Resumed}.

%% The session's id.
connect(Node, Port, Reuse, Config) ->
    #{ca := Ca} = proplists:get_value(certs, Config),
    Options = [{versions, ['tlsv1.2']}, {verify, verify_peer}, {cacertfile, Ca}, {reuse_sessions, Reuse}],
    rekindle_node:run(Node, fun() ->
        {ok, Socket} = ssl:connect("localhost", Port, Options),
        {ok, [{session_id, Id}]} = ssl:connection_information(Socket, [session_id]),
        ok = ssl:close(Socket),
        Id
    end).

write_terms(File, Terms) ->
    file:write_file(File, [io_lib:format("~tp.~n", [Term]) || Term <- Terms]).
