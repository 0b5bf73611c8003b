%% @doc Tests that the lines and commands of the README and of the pages on installing and options work.
-module(rekindle_readme_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).

-export([
    the_readme_is_short/1,
    the_figures_are_those_of_the_results/1,
    the_figures_of_journals_are_those_of_the_results/1,
    the_sys_config_is_that_of_the_demo/1,
    a_node_with_the_sys_config_resumes_sessions/1,
    tickets_resume_tls_1_3/1,
    a_rebar3_project_builds_the_dependency/1,
    a_mix_project_resumes_sessions/1,
    the_page_on_installing_has_the_same_lines/1,
    the_pages_name_this_version/1,
    the_options_are_those_there_are/1,
    the_defaults_are_those_there_are/1,
    the_make_commands_are_there/1,
    the_help_lists_every_target/1,
    the_files_it_links_to_are_there/1
]).

-define(MINUTE, 60_000).

all() ->
    [
        the_readme_is_short,
        the_figures_are_those_of_the_results,
        the_figures_of_journals_are_those_of_the_results,
        the_sys_config_is_that_of_the_demo,
        a_node_with_the_sys_config_resumes_sessions,
        tickets_resume_tls_1_3,
        a_rebar3_project_builds_the_dependency,
        a_mix_project_resumes_sessions,
        the_page_on_installing_has_the_same_lines,
        the_pages_name_this_version,
        the_options_are_those_there_are,
        the_defaults_are_those_there_are,
        the_make_commands_are_there,
        the_help_lists_every_target,
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
    %% The files that cargo builds are large.
    file:del_dir_r(proplists:get_value(dir, Config)).

%% ---- the first screen ----

-define(MOST_WORDS, 700).

the_readme_is_short(Config) ->
    ?assert(length(words(proplists:get_value(readme, Config))) =< ?MOST_WORDS).

%% Those of prose and tables: without code blocks, comments and the addresses of links.
words(Page) ->
    Without = fun(Regexp, Text) -> re:replace(Text, Regexp, "", [global, unicode, {return, binary}]) end,
    Prose = lists:foldl(Without, Page, ["(?ms)^```.*?^```$", "(?m)^    .*$", "<!--.*?-->", "(?<=\\])\\([^)]*\\)"]),
    [Word || Word <- re:split(Prose, "\\s+", [unicode]), re:run(Word, "\\w", [unicode, ucp]) =/= nomatch].

the_figures_are_those_of_the_results(Config) ->
    {ok, Results} = file:read_file(in_root("bench/results/results.json", Config)),
    case binary:match(Results, <<"\"rows\"">>) of
        nomatch ->
            {skip, "NOT TRIED, bench/results/results.json has the form of an earlier version: run make bench"};
        _ ->
            ?assertNotEqual(nomatch, binary:match(Results, <<"\"busy\": false">>)),
            [
                ?assertEqual(
                    {0, <<>>}, run_in(in_root(".", Config), ["python3", "bench/figures.py", "--check", "bench/results", Page])
                )
             || Page <- ["README.md", "docs/sizing.md"]
            ]
    end.

%% The columns of the table, and the figures of the restart. The page rounds some of them.
the_figures_of_journals_are_those_of_the_results(Config) ->
    {ok, Page} = file:read_file(in_root("docs/journal.md", Config)),
    {ok, Results} = file:read_file(in_root("bench/results/journal_fleet.md", Config)),
    {ok, Faults} = file:read_file(in_root("bench/results/journal_faults.md", Config)),
    ?assertEqual(nomatch, binary:match(<<Results/binary, Faults/binary>>, <<"Busy machine">>)),
    [_, Section] = binary:split(Page, <<"\n## Figures\n">>),
    Cells = captured("(?m)^\\|[^|]*\\|([^|]*\\|[^|]*)\\|$", Section),
    [Restart] = captured("(?ms)^(\\*\\*What happens after a restart.*?)$\\s^$", Section),
    Figures = lists:append([numbers(Text) || Text <- [Restart | Cells]]),
    ?assert(length(Figures) > 15),
    Measured = [number(Text) || Text <- numbers(Results)],
    ?assertEqual([], [Figure || Figure <- Figures, not lists:any(fun(Number) -> is_rounded(Figure, Number) end, Measured)]).

%% Versions such as 1.2.3 are no numbers.
numbers(Text) ->
    captured("(?<![0-9.])([0-9][0-9,]*(?:\\.[0-9]+)?)(?!\\.?[0-9])", Text).

number(Text) ->
    try
        binary_to_float(without_commas(Text))
    catch
        error:badarg -> binary_to_integer(without_commas(Text))
    end.

without_commas(Text) ->
    binary:replace(Text, <<",">>, <<>>, [global]).

%% Whether the figure is this number, or this number rounded to the figure's last digit that is not 0.
is_rounded(Figure, Number) ->
    Unit =
        case binary:split(without_commas(Figure), <<".">>) of
            [_, Fraction] -> math:pow(10, -byte_size(Fraction));
            [Whole] -> math:pow(10, byte_size(Whole) - byte_size(string:trim(Whole, trailing, "0")))
        end,
    abs(number(Figure) - Number) =< Unit / 2.

%% ---- sys.config ----

the_sys_config_is_that_of_the_demo(Config) ->
    ?assertEqual(file:consult(in_root("demo/sys.config", Config)), file:consult(sys_config(Config))).

a_node_with_the_sys_config_resumes_sessions(Config) ->
    Folders = [filename:absname(filename:dirname(code:which(Module))) || Module <- [rekindle, rekindle_servers]],
    Args = ["-config", filename:rootname(sys_config(Config)), "-pa" | Folders],
    {ok, Node, _} = peer:start(#{connection => standard_io, args => Args, wait_boot => 30_000}),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [ssl]),
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, server_options(Config)]),
    [Command] = blocks("sh", "See that it works", Config),
    [Printed] = blocks("text", "See that it works", Config),
    ?assertEqual({0, Printed}, run_in(in_root(".", Config), ["sh", "-c", with_port(Command, Port)])),
    Info = rekindle_node:call(Node, rekindle_admin, info, []),
    ?assertMatch([#{scope := {listener, tls, {_, Port}}, hits := 5}], of_role(server, Info)),
    ?assertMatch([#{scope := client}], of_role(client, Info)),
    %% And what the README says to type next works.
    [Example] = blocks("erlang", "See that it works", Config),
    ?assertEqual([<<"print">>, <<"doctor">>], captured("rekindle_admin:(\\w+)\\(\\)\\.", Example)),
    ?assertEqual(ok, rekindle_node:call(Node, rekindle_admin, print, [])),
    ?assertEqual(ok, rekindle_node:call(Node, rekindle_admin, doctor, [])),
    ?assertEqual([], rekindle_node:call(Node, rekindle_admin, findings, [])),
    rekindle_node:stop(Node).

with_port(Command, Port) ->
    unicode:characters_to_list(string:replace(Command, "127.0.0.1:8443", ["127.0.0.1:", integer_to_list(Port)])).

tickets_resume_tls_1_3(Config) ->
    [Option] = captured("(?m)^\\|.* TLS 1\\.3 only .*`(\\{session_tickets, \\w+\\})`", proplists:get_value(readme, Config)),
    {ok, Tokens, _} = erl_scan:string(binary_to_list(Option) ++ "."),
    {ok, Tickets} = erl_parse:parse_term(Tokens),
    {_, Port} = rekindle_servers:start(tls, [
        Tickets | lists:keyreplace(versions, 1, server_options(Config), {versions, ['tlsv1.3']})
    ]),
    File = filename:join(proplists:get_value(dir, Config), "ticket"),
    %% A ticket comes after the handshake.
    ?assertEqual(
        [<<"New">>], openssl_tls_1_3(["while [ ! -s ", File, " ]; do sleep 0.1; done"], Port, ["-sess_out ", File], Config)
    ),
    ?assertEqual([<<"Reused">>], openssl_tls_1_3("true", Port, ["-sess_in ", File], Config)).

openssl_tls_1_3(Input, Port, Arguments, Config) ->
    Client = ["openssl s_client -connect 127.0.0.1:", integer_to_list(Port), " -tls1_3 ", Arguments],
    {0, Output} = run_in(in_root(".", Config), ["sh", "-c", lists:flatten([Input, " | ", Client])]),
    captured("(?m)^(New|Reused), TLSv1\\.3", Output).

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
    [Block] = blocks("erlang", "Install", Config),
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
    [Dependency] = blocks("elixir", "Install", Config),
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

the_page_on_installing_has_the_same_lines(Config) ->
    {ok, Page} = file:read_file(in_root("docs/installing.md", Config)),
    Lines = [Block || Language <- ["erlang", "elixir"], Block <- blocks(Language, "Install", Config)],
    ?assertEqual([], [Block || Block <- Lines, string:find(Page, Block) =:= nomatch]).

%% All places where a reader finds a dependency to copy.
the_pages_name_this_version(Config) ->
    Pages = ["README.md" | filelib:wildcard("docs/**/*.md", proplists:get_value(root, Config))],
    Named = [
        {Page, Version}
     || Page <- Pages,
        {ok, Text} <- [file:read_file(in_root(Page, Config))],
        Version <- captured("\\btag(?:,|:) \"v([\\d.]+)\"", Text)
    ],
    ?assert(length(Named) > 4),
    Version = list_to_binary(rekindle_checkout:version(Config)),
    ?assertEqual([], [Other || {_, Found} = Other <- Named, Found =/= Version]).

%% ---- options ----

%% ssl sets the role.
the_options_are_those_there_are(Config) ->
    Schema = [
        {Option, unicode:characters_to_binary(rekindle_options:notation(Type))}
     || {Option, Type, _} <- rekindle_options:schema()
    ],
    ?assertEqual(
        lists:sort(lists:keydelete(role, 1, Schema)), lists:sort([{Option, Type} || {Option, Type, _} <- options(Config)])
    ).

the_defaults_are_those_there_are(Config) ->
    Defaults = maps:from_list([{Option, Default} || {Option, _, Default} <- rekindle_options:schema()]),
    [
        case maps:get(Option, Defaults) of
            %% Left to ssl's environment or to other options, which the page names in words.
            undefined -> ?assertNotMatch(<<"`", _/binary>>, Default);
            [] -> ?assertEqual(<<"`[]`">>, Default);
            Atom when is_atom(Atom) -> ?assertEqual(<<"`", (atom_to_binary(Atom))/binary, "`">>, Default);
            Number -> ?assertMatch([<<_/binary>>], captured(["^(", integer_to_list(Number), ") "], Default))
        end
     || {Option, _, Default} <- options(Config)
    ].

%% The rows of the table: the option, what is allowed, and the default.
options(Config) ->
    {ok, Page} = file:read_file(in_root("docs/options.md", Config)),
    Row = "(?m)^\\| `\\{(\\w+), (.*)\\}` \\| (.*?) \\| .* \\|$",
    {match, Rows} = re:run(Page, Row, [global, unicode, {capture, all_but_first, binary}]),
    [
        {binary_to_atom(Option), iolist_to_binary(string:replace(Type, "\\|", "|", all)), Default}
     || [Option, Type, Default] <- Rows
    ].

%% ---- commands and files ----

the_make_commands_are_there(Config) ->
    {ok, Makefile} = file:read_file(in_root("Makefile", Config)),
    Commands = captured("(?m)(?:^    |`)make ([\\w-]+)", proplists:get_value(readme, Config)),
    ?assertEqual([], [<<"demo">>, <<"test">>] -- Commands),
    ?assertEqual([], lists:usort(Commands) -- captured("(?m)^([\\w-]+):", Makefile)).

the_help_lists_every_target(Config) ->
    {ok, Makefile} = file:read_file(in_root("Makefile", Config)),
    {0, Help} = run_in(in_root(".", Config), ["make", "--no-print-directory", "help"]),
    ?assertEqual(captured("(?m)^([\\w-]+):", Makefile), captured("(?m)^make ([\\w-]+) ", Help)).

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
