%% @doc What the README tells its reader to write is what works.
-module(rekindle_readme_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).

-export([
    the_sys_config_is_that_of_the_demo/1,
    a_node_with_the_sys_config_resumes_sessions/1,
    a_rebar3_project_builds_the_dependency/1,
    a_mix_project_resumes_sessions/1,
    the_options_are_those_there_are/1,
    the_defaults_are_those_there_are/1,
    the_make_commands_are_there/1,
    the_files_it_links_to_are_there/1
]).

-define(MINUTE, 60_000).

all() ->
    [
        the_sys_config_is_that_of_the_demo,
        a_node_with_the_sys_config_resumes_sessions,
        a_rebar3_project_builds_the_dependency,
        a_mix_project_resumes_sessions,
        the_options_are_those_there_are,
        the_defaults_are_those_there_are,
        the_make_commands_are_there,
        the_files_it_links_to_are_there
    ].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(public_key),
    Root = rekindle_checkout:root(Config),
    {ok, Readme} = file:read_file(filename:join(Root, "README.md")),
    Certs = rekindle_certs:make(proplists:get_value(priv_dir, Config)),
    [{root, Root}, {readme, Readme}, {certs, Certs} | Config].

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    rekindle_checkout:with_dir(Case, Config).

end_per_testcase(_Case, Config) ->
    %% What cargo builds is large.
    file:del_dir_r(proplists:get_value(dir, Config)).

%% ---- sys.config ----

the_sys_config_is_that_of_the_demo(Config) ->
    ?assertEqual(file:consult(in_root("demo/sys.config", Config)), file:consult(sys_config(Config))).

a_node_with_the_sys_config_resumes_sessions(Config) ->
    Folders = [filename:absname(filename:dirname(code:which(Module))) || Module <- [rekindle, rekindle_servers]],
    Args = ["-config", filename:rootname(sys_config(Config)), "-pa" | Folders],
    {ok, Node, _} = peer:start(#{connection => standard_io, args => Args, wait_boot => 30_000}),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, server_options(Config)]),
    ?assertMatch(#{full := 1, resumed := 5}, rekindle_clients:openssl_reconnect(Port, #{})),
    Info = rekindle_node:call(Node, rekindle_admin, info, []),
    ?assertMatch([#{scope := {listener, tls, {_, Port}}, hits := 5}], of_role(server, Info)),
    ?assertMatch([#{scope := client}], of_role(client, Info)),
    %% And what the README says to type next works.
    [_, Example] = blocks("erlang", "Turn it on", Config),
    ?assertEqual([<<"print">>, <<"doctor">>], captured("rekindle_admin:(\\w+)\\(\\)\\.", Example)),
    ?assertEqual(ok, rekindle_node:call(Node, rekindle_admin, print, [])),
    ?assertEqual([], rekindle_node:call(Node, rekindle_admin, doctor, [])),
    rekindle_node:stop(Node).

sys_config(Config) ->
    File = filename:join(proplists:get_value(dir, Config), "sys.config"),
    [Block | _] = blocks("erlang", "Turn it on", Config),
    ok = file:write_file(File, Block),
    File.

of_role(Role, Info) ->
    [Scope || #{role := ScopeRole} = Scope <- Info, ScopeRole =:= Role].

server_options(Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    [{versions, ['tlsv1.2']}, {certfile, Cert}, {keyfile, Key}].

%% ---- dependencies ----

a_rebar3_project_builds_the_dependency(Config) ->
    [Block] = blocks("erlang", "Depend on it", Config),
    Project = project([{"rebar.config", with_origin(Block, Config)}, {"src/user.app.src", app()}], Config),
    {0, _} = run_in(Project, ["rebar3", "get-deps"]),
    Dependency = filename:join(Project, "_build/default/lib/rekindle"),
    rekindle_checkout:with_target(Dependency, Config),
    {0, _} = run_in(Project, ["rebar3", "compile"]),
    ?assert(filelib:is_regular(filename:join(Dependency, "ebin/rekindle.beam"))),
    ?assert(filelib:is_regular(filename:join(Dependency, "priv/rekindle_nif.so"))).

app() ->
    "{application, user, [{vsn, \"1\"}, {registered, []}, {applications, [kernel, stdlib, rekindle]}]}.\n".

%% First with config/config.exs, then with config/runtime.exs.
a_mix_project_resumes_sessions(Config) ->
    [Dependency] = blocks("elixir", "Depend on it", Config),
    [Settings] = blocks("elixir", "Turn it on", Config),
    Project = project(
        [
            {"mix.exs", mix_exs(with_origin(Dependency, Config))},
            {"config/config.exs", Settings},
            {"serve.exs", serve_exs()}
        ],
        Config
    ),
    {0, _} = mix(Project, ["deps.get"]),
    rekindle_checkout:with_target(filename:join(Project, "deps/rekindle"), Config),
    {0, _} = mix(Project, ["deps.compile"]),
    mix_resumes_sessions(Project, Config),
    ConfigExs = filename:join(Project, "config/config.exs"),
    ok = file:rename(ConfigExs, filename:join(Project, "config/runtime.exs")),
    mix_resumes_sessions(Project, Config).

mix_resumes_sessions(Project, Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    Result = filename:join(Project, "result"),
    Helpers = filename:absname(filename:dirname(code:which(rekindle_servers))),
    {0, _} = mix(Project, ["run", "serve.exs", Cert, Key, Result, Helpers]),
    {ok, [{Client, Info, Library, Env}]} = file:consult(Result),
    ok = file:delete(Result),
    ?assertMatch(#{full := 1, resumed := 5}, Client),
    ?assertMatch([#{hits := 5}], of_role(server, Info)),
    ?assertMatch([#{scope := client}], of_role(client, Info)),
    ?assertEqual(filename:join(Project, "_build/dev/lib/rekindle/ebin/rekindle_nif.beam"), Library),
    {ok, [[{ssl, Expected}]]} = file:consult(in_root("demo/sys.config", Config)),
    ?assertEqual([], Expected -- Env).

mix_exs(Dependency) ->
    [
        "defmodule User.MixProject do\n"
        "  use Mix.Project\n"
        "  def project, do: [app: :user, version: \"1.0.0\", deps: deps()]\n"
        "  def application, do: [extra_applications: [:ssl]]\n"
        "  defp deps do\n"
        "    [\n",
        Dependency,
        "    ]\n"
        "  end\n"
        "end\n"
    ].

serve_exs() ->
    %% Mix from 1.15 on drops what else was added to the path.
    "[cert, key, result, helpers] = System.argv()\n"
    "Code.prepend_path(helpers)\n"
    "options = [versions: [:\"tlsv1.2\"], certfile: cert, keyfile: key]\n"
    "{_, port} = :rekindle_servers.start(:tls, options)\n"
    "client = :rekindle_clients.openssl_reconnect(port, %{})\n"
    "info = :rekindle_admin.info()\n"
    "told = {client, info, :code.which(:rekindle_nif), Application.get_all_env(:ssl)}\n"
    ":ok = :file.write_file(result, :io_lib.format(\"~tp.~n\", [told]))\n".

%% Nothing of Hex: it is not needed, and to be fetched first.
mix(Project, Args) ->
    Env = ["MIX_HOME=" ++ filename:join(Project, "mix"), "MIX_REBAR3=" ++ os:find_executable("rebar3")],
    run_in(Project, ["env"] ++ Env ++ ["mix"] ++ Args).

%% The line as it is in the README, but for the place to fetch from.
with_origin(Text, Config) ->
    Place = "https://example.org/rekindle.git",
    ?assertNotEqual(nomatch, string:find(Text, Place)),
    string:replace(Text, Place, "file://" ++ rekindle_checkout:origin(proplists:get_value(dir, Config), Config)).

project(Files, Config) ->
    Project = filename:join(proplists:get_value(dir, Config), "project"),
    [
        begin
            File = filename:join(Project, Name),
            ok = filelib:ensure_dir(File),
            ok = file:write_file(File, Content)
        end
     || {Name, Content} <- Files
    ],
    Project.

run_in(Dir, Command) ->
    rekindle_checkout:run_in(Dir, Command, 5 * ?MINUTE).

%% ---- options ----

the_options_are_those_there_are(Config) ->
    {ok, Defaults, []} = rekindle_options:parse([]),
    %% ssl sets the role.
    ?assertEqual(lists:sort(maps:keys(Defaults)), lists:sort([role | [Option || {Option, _, _} <- options(Config)]])),
    [
        ?assertMatch({ok, #{Option := Value}, []}, rekindle_options:parse([{Option, Value}]))
     || {Option, Type, _} <- options(Config),
        Value <- values(Type)
    ].

the_defaults_are_those_there_are(Config) ->
    {ok, Defaults, []} = rekindle_options:parse([]),
    [
        case maps:get(Option, Defaults) of
            %% Left to ssl's environment or to other options, which the README names in words.
            undefined -> ?assertNotMatch(<<"`", _/binary>>, Default);
            [] -> ?assertEqual(<<"`[]`">>, Default);
            Atom when is_atom(Atom) -> ?assertEqual(<<"`", (atom_to_binary(Atom))/binary, "`">>, Default);
            Number -> ?assertMatch([<<_/binary>>], captured(["^(", integer_to_list(Number), ") "], Default))
        end
     || {Option, _, Default} <- options(Config)
    ].

%% The rows of the table: the option, what is allowed, and the default.
options(Config) ->
    Row = "(?m)^\\| `\\{(\\w+), (.*)\\}` \\| (.*?) \\| .* \\|$",
    {match, Rows} = re:run(section("Options", Config), Row, [global, unicode, {capture, all_but_first, binary}]),
    [{binary_to_atom(Option), Type, Default} || [Option, Type, Default] <- Rows].

%% Some of each type as the README writes it.
values(<<"pos_integer()">>) -> [1, 67_108_864];
values(<<"pos_integer() \\| infinity">>) -> [1, 1000, infinity];
values(<<"Seconds">>) -> [1, 86_400];
values(<<"none \\| {folder, Dir} \\| {valkey, Url, Options}">>) ->
    [none, {folder, "/var/lib/sessions"}, {valkey, "valkey://127.0.0.1", [{key_file, "/etc/keys"}]}];
values(<<"full_handshake \\| resume">>) -> [full_handshake, resume];
values(<<"Dir">>) -> ["/var/lib/app", <<"dir">>];
values(<<"boolean()">>) -> [true, false];
values(<<"[Path]">>) -> [[], ["/etc/ssl/crls", <<"ca.crl">>]];
values(<<"listener \\| #{Port => Name}">>) -> [listener, #{8883 => a, {{127, 0, 0, 1}, 8883} => b}].

%% ---- commands and files ----

the_make_commands_are_there(Config) ->
    {ok, Makefile} = file:read_file(in_root("Makefile", Config)),
    Commands = captured("(?m)(?:^    |`)make ([\\w-]+)", proplists:get_value(readme, Config)),
    ?assertEqual([], [<<"demo">>, <<"test">>] -- Commands),
    ?assertEqual([], lists:usort(Commands) -- captured("(?m)^([\\w-]+):", Makefile)).

the_files_it_links_to_are_there(Config) ->
    Links = captured("\\]\\(([^)#:]+)\\)", proplists:get_value(readme, Config)),
    ?assertNotEqual([], Links),
    ?assertEqual([], [Link || Link <- Links, not filelib:is_regular(in_root(Link, Config))]).

%% ---- the README ----

%% The code blocks of one language in a section.
blocks(Language, Title, Config) ->
    captured(["(?ms)^```", Language, "\n(.*?)^```$"], section(Title, Config)).

section(Title, Config) ->
    Readme = proplists:get_value(readme, Config),
    [Section] = captured(["(?ms)^## ", Title, "\n(.*?)(?=^## |\\z)"], Readme),
    Section.

captured(Regexp, Text) ->
    case re:run(Text, Regexp, [global, unicode, {capture, all_but_first, binary}]) of
        {match, Matches} -> lists:append(Matches);
        nomatch -> []
    end.

in_root(Name, Config) ->
    filename:join(proplists:get_value(root, Config), Name).
