%% @doc What docs/guides tell their reader to do is done, to the letter, on other ports and in other folders.
%%
%% The servers of Debian's packages are skipped where they are not installed.
-module(rekindle_guides_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).

-export([
    otp/1,
    rabbitmq/1,
    rabbitmq_with_advanced_config/1,
    yaws/1,
    cowboy/1,
    cowboy_in_rebar3_shell/1,
    upgraded/1,
    distribution/1,
    elixir/1,
    elixir_before_the_dependency_is_there/1,
    rebar3_release/1,
    mix_release/1,
    the_list_is_complete/1
]).

-define(MINUTE, 60_000).

all() ->
    [
        otp,
        rabbitmq,
        rabbitmq_with_advanced_config,
        yaws,
        cowboy,
        cowboy_in_rebar3_shell,
        upgraded,
        distribution,
        elixir,
        elixir_before_the_dependency_is_there,
        rebar3_release,
        mix_release,
        the_list_is_complete
    ].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(public_key),
    Root = rekindle_checkout:root(Config),
    Dir = proplists:get_value(priv_dir, Config),
    Epmd = integer_to_list(rekindle_node:free_port()),
    Suite = [
        {epmd_port, Epmd},
        {root, Root},
        {origin, rekindle_checkout:origin(Dir, Config)},
        {certs, rekindle_certs:make(Dir)}
        | Config
    ],
    %% What all servers use that are no project of the reader's.
    Opt = filename:join(Dir, "suite"),
    ok = file:make_dir(Opt),
    Library = filename:join(Opt, "opt/rekindle"),
    ok = rekindle_guide:follow(guide("README.md", Suite), place(Opt, [{"/opt/rekindle", Library}], Suite)),
    [{library, Library} | Suite].

end_per_suite(Config) ->
    remove_fetched(filename:join(proplists:get_value(priv_dir, Config), "suite")),
    %% The first node has started it.
    _ = rekindle_checkout:run_in(".", ["epmd", "-port", proplists:get_value(epmd_port, Config), "-kill"], ?MINUTE).

init_per_testcase(Case, Config) ->
    case [Program || Program <- programs(Case), os:find_executable(Program) =:= false] of
        [] ->
            Dir = filename:join(proplists:get_value(priv_dir, Config), Case),
            ok = filelib:ensure_path(filename:join(Dir, "home")),
            [{dir, Dir} | Config];
        Missing ->
            {skip, lists:concat(["NOT TRIED, not installed: " | lists:join(", ", Missing)])}
    end.

programs(rabbitmq) -> ["rabbitmq-server"];
programs(rabbitmq_with_advanced_config) -> ["rabbitmq-server"];
programs(yaws) -> ["yaws"];
%% It comes with Cowboy.
programs(cowboy) -> ["rabbitmq-server"];
programs(cowboy_in_rebar3_shell) -> ["rabbitmq-server"];
programs(upgraded) -> ["haproxy"];
programs(elixir) -> ["elixir"];
programs(elixir_before_the_dependency_is_there) -> ["elixir"];
programs(mix_release) -> ["elixir"];
programs(_) -> [].

end_per_testcase(_Case, Config) ->
    Dir = proplists:get_value(dir, Config),
    ok = rekindle_guide:stop(Dir),
    remove_fetched(Dir).

%% ---- servers ----

otp(Config) ->
    follow("otp.md", place(ports([8443]), Config), Config).

distribution(Config) ->
    follow("distribution.md", place(ports([8443]), Config), Config).

rabbitmq(Config) ->
    follow("rabbitmq.md", fun(Title) -> Title =/= <<"Not in advanced.config">> end, rabbitmq_place(Config), Config).

rabbitmq_with_advanced_config(Config) ->
    Sections = [<<"The listener">>, <<"Not in advanced.config">>],
    follow("rabbitmq.md", fun(Title) -> lists:member(Title, Sections) end, rabbitmq_place(Config), Config).

rabbitmq_place(Config) ->
    Etc = in_dir("etc/rabbitmq", Config),
    ok = filelib:ensure_path(Etc),
    Port = integer_to_list(rekindle_node:free_port()),
    #{env := Env} = Place = place([{" = 5671\\b", " = 127.0.0.1:5671"}, {"\\b5671\\b", Port}], Config),
    Settings = [
        {"RABBITMQ_CONF_ENV_FILE", filename:join(Etc, "rabbitmq-env.conf")},
        {"RABBITMQ_CONFIG_FILE", filename:join(Etc, "rabbitmq.conf")},
        {"RABBITMQ_ADVANCED_CONFIG_FILE", filename:join(Etc, "advanced.config")},
        {"RABBITMQ_ENABLED_PLUGINS_FILE", filename:join(Etc, "enabled_plugins")},
        {"RABBITMQ_MNESIA_BASE", in_dir("db", Config)},
        {"RABBITMQ_LOG_BASE", in_dir("log", Config)},
        {"RABBITMQ_NODENAME", "rekindle@localhost"},
        {"RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1"},
        {"RABBITMQ_NODE_PORT", integer_to_list(rekindle_node:free_port())},
        {"RABBITMQ_DIST_PORT", integer_to_list(rekindle_node:free_port())}
    ],
    Place#{env := Settings ++ Env}.

yaws(Config) ->
    ok = filelib:ensure_path(in_dir("var/log/yaws", Config)),
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    Etc = in_dir("etc/yaws", Config),
    ok = filelib:ensure_path(Etc),
    {ok, _} = file:copy(Cert, filename:join(Etc, "yaws-cert.pem")),
    {ok, _} = file:copy(Key, filename:join(Etc, "yaws-key.pem")),
    %% heart would start it again when it is ended.
    follow("yaws.md", place([{"--heart ", ""}, {"/var/log/", in_dir("var/log/", Config)} | ports([8443])], Config), Config).

cowboy(Config) ->
    follow("cowboy.md", fun(Title) -> Title =/= <<"In rebar3 shell">> end, cowboy_place(Config), Config).

cowboy_in_rebar3_shell(Config) ->
    Sections = [<<"A project">>, <<"In rebar3 shell">>],
    follow("cowboy.md", fun(Title) -> lists:member(Title, Sections) end, cowboy_place(Config), Config).

%% Cowboy is RabbitMQ's here, and not fetched from Hex.
cowboy_place(Config) ->
    Libraries = in_dir("hello/_build/default/lib", Config),
    ok = filelib:ensure_path(Libraries),
    [
        begin
            [Library] = filelib:wildcard("/usr/lib/rabbitmq/lib/*/plugins/" ++ Name ++ "-*"),
            ok = file:make_symlink(Library, filename:join(Libraries, Name))
        end
     || Name <- ["cowboy", "cowlib", "ranch"]
    ],
    place([{"    cowboy,\n", ""} | ports([8443])], Config).

upgraded(Config) ->
    follow("upgraded.md", place(ports([8443, 8883, 8884, 8885]), Config), Config).

%% ---- projects ----

elixir(Config) ->
    follow("elixir.md", place(ports([8443]), Config), Config).

%% Hex starts ssl in Mix's own node to fetch packages.
elixir_before_the_dependency_is_there(Config) ->
    Task =
        "defmodule Mix.Tasks.Fetch do\n"
        "  use Mix.Task\n"
        "  def run(_), do: {:ok, _} = Application.ensure_all_started(:ssl)\n"
        "end\n",
    File = in_dir("fetch.exs", Config),
    ok = file:write_file(File, Task),
    Place = place([{"mix deps.get", "elixir -r " ++ File ++ " -S mix fetch"}, {"mix compile", "true"}], Config),
    follow("elixir.md", fun(Title) -> Title =:= <<"A project">> end, Place, Config).

rebar3_release(Config) ->
    follow("releases.md", fun(Title) -> Title =:= <<"rebar3 release">> end, place(ports([8443]), Config), Config).

mix_release(Config) ->
    Place = place(ports([8443]), Config),
    follow("elixir.md", fun(Title) -> Title =:= <<"A project">> end, Place, Config),
    follow("releases.md", fun(Title) -> Title =:= <<"mix release">> end, Place, Config).

%% ---- the list ----

the_list_is_complete(Config) ->
    {ok, Readme} = file:read_file(guide("README.md", Config)),
    {match, Listed} = re:run(Readme, "(?m)^\\| \\[(.*?)\\]\\(\\1\\)", [global, {capture, all_but_first, list}]),
    There = filelib:wildcard("*.md", in_root("docs/guides", Config)),
    ?assertEqual(There -- ["README.md"], lists:sort(lists:append(Listed))).

%% ---- where it is done ----

follow(Guide, Place, Config) ->
    rekindle_guide:follow(guide(Guide, Config), Place).

follow(Guide, Wanted, Place, Config) ->
    rekindle_guide:follow(guide(Guide, Config), Wanted, Place).

place(Replace, Config) ->
    place(proplists:get_value(dir, Config), [{"/opt/rekindle", proplists:get_value(library, Config)} | Replace], Config).

place(Dir, Replace, Config) ->
    #{
        dir => Dir,
        env => env(Dir, Config),
        replace => Replace ++
            [
                {"https://example.org/rekindle.git", "file://" ++ proplists:get_value(origin, Config)},
                {"/etc/(?=rabbitmq|yaws|default)", Dir ++ "/etc/"}
            ],
        after_command => fun() -> with_target(Dir, Config) end
    }.

%% Nothing of this user's or this machine's but the tools; no daemon and no port that others can reach.
env(Dir, Config) ->
    Home = os:getenv("HOME"),
    Bin = [in_root("test/guides/bin", Config), "/usr/lib/rabbitmq/bin", os:getenv("PATH"), "/usr/sbin"],
    [
        {"ROOT", Dir},
        {"HOME", filename:join(Dir, "home")},
        {"CARGO_HOME", os:getenv("CARGO_HOME", filename:join(Home, ".cargo"))},
        {"RUSTUP_HOME", os:getenv("RUSTUP_HOME", filename:join(Home, ".rustup"))},
        {"PATH", lists:append(lists:join(":", Bin))},
        {"ERL_AFLAGS", "-kernel inet_dist_use_interface {127,0,0,1}"},
        {"ERL_EPMD_ADDRESS", "127.0.0.1"},
        {"ERL_EPMD_PORT", proplists:get_value(epmd_port, Config)}
    ].

ports(Ports) ->
    [{["\\b", integer_to_list(Port), "\\b"], integer_to_list(rekindle_node:free_port())} || Port <- Ports].

%% What cargo has built saves building all of it again wherever the guides have fetched the repository.
with_target(Dir, Config) ->
    [
        rekindle_checkout:with_target(Fetched, Config)
     || Fetched <- fetched(Dir),
        not filelib:is_dir(filename:join(Fetched, "target"))
    ].

%% What cargo builds is large.
remove_fetched(Dir) ->
    [ok = file:del_dir_r(Fetched) || Fetched <- fetched(Dir)].

fetched(Dir) ->
    lists:append([
        filelib:wildcard(filename:join(Dir, Place))
     || Place <- ["rekindle", "*/deps/rekindle", "*/_build/default/lib/rekindle"]
    ]).

guide(Name, Config) ->
    in_root(filename:join("docs/guides", Name), Config).

in_root(Name, Config) ->
    filename:join(proplists:get_value(root, Config), Name).

in_dir(Name, Config) ->
    proplists:get_value(dir, Config) ++ "/" ++ Name.
