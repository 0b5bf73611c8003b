%% @doc The checkout that is tested, for suites that build something from it.
-module(rekindle_checkout).

-export([root/1, run_in/3, testing_build/1, version/1, origin/2, with_target/2, older_than_target/1, with_dir/2]).

-define(MINUTE, 60_000).

%% @doc The checkout's folder, above the suite's data folder.
-spec root(Config :: [{atom(), term()}]) -> file:filename().
root(Config) ->
    above(filename:absname(proplists:get_value(data_dir, Config))).

above(Dir) ->
    case filelib:is_regular(filename:join(Dir, "native/build.sh")) of
        true ->
            Dir;
        false ->
            Parent = filename:dirname(Dir),
            true = Parent =/= Dir,
            above(Parent)
    end.

%% @doc The configuration of a case, with an empty folder of its own as `dir'.
-spec with_dir(Case :: atom(), Config) -> Config when Config :: [{atom(), term()}].
with_dir(Case, Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), Case),
    ok = file:make_dir(Dir),
    [{dir, Dir} | Config].

%% @doc Runs a program in a folder, and logs what it prints. Where rebar3 builds is no business of another one there.
-spec run_in(file:filename(), [string()], pos_integer()) ->
    {ExitStatus :: non_neg_integer() | timeout | closed, Output :: binary()}.
run_in(Dir, Command, TimeoutMs) ->
    Args = ["-c", "unset REBAR_BASE_DIR; cd \"$0\" && exec \"$@\"", Dir | Command],
    {_, Output} = Result = rekindle_clients:run("sh", Args, [], TimeoutMs),
    ct:log("~0tp~n~ts", [Command, Output]),
    Result.

%% @doc Makes an application folder like the real one, but with faults to order and a clock that can be
%% put forward: the cargo feature `testing'. Returns its folder of beam files.
-spec testing_build(Config :: [{atom(), term()}]) -> file:filename().
testing_build(Config) ->
    Root = root(Config),
    Cargo = ["cargo", "build", "--quiet", "--locked", "--package", "rekindle_nif", "--features", "testing"],
    {0, _} = run_in(Root, Cargo ++ ["--target-dir", "target"], 5 * ?MINUTE),
    PrivDir = proplists:get_value(priv_dir, Config),
    [Ebin, Priv] = [filename:join([PrivDir, "rekindle", Name]) || Name <- ["ebin", "priv"]],
    [ok = filelib:ensure_dir(filename:join(Folder, "x")) || Folder <- [Ebin, Priv]],
    Library = filename:join([Root, "target", "debug", "librekindle_nif.so"]),
    {ok, _} = file:copy(Library, filename:join(Priv, "rekindle_nif.so")),
    Source = filename:join([Root, "lib", "rekindle_nif.erl"]),
    {ok, rekindle_nif} = compile:file(Source, [{outdir, Ebin}, {d, 'REKINDLE_TESTING'}]),
    Ebin.

%% @doc Makes a repository of the checkout as it is now in this folder, with a tag for its version. The checkout's files
%% stay where they are.
-spec origin(file:filename(), Config :: [{atom(), term()}]) -> Repository :: file:filename().
origin(Dir, Config) ->
    Origin = filename:join(Dir, "rekindle.git"),
    Root = root(Config),
    Git = ["git", "--git-dir=" ++ Origin, "--work-tree=" ++ Root, "-c", "commit.gpgsign=false"],
    Identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"],
    [
        {0, _} = run_in(Root, Git ++ Identity ++ Args, ?MINUTE)
     || Args <- [
            ["init", "--quiet"],
            ["symbolic-ref", "HEAD", "refs/heads/main"],
            ["add", "--all"],
            ["commit", "--quiet", "--message", "copy"],
            ["tag", "v" ++ version(Config)]
        ]
    ],
    Origin.

%% @doc The version of the checkout.
-spec version(Config :: [{atom(), term()}]) -> string().
version(Config) ->
    {ok, [{application, rekindle, Properties}]} = file:consult(filename:join(root(Config), "lib/rekindle.app.src")),
    proplists:get_value(vsn, Properties).

%% @doc Copies to a copy of the checkout what cargo has built here: it is no part of the repository, but saves
%% building all of it again.
-spec with_target(file:filename(), Config :: [{atom(), term()}]) -> ok.
with_target(Copy, Config) ->
    Target = filename:join(Copy, "target"),
    ok = file:make_dir(Target),
    {0, _} = run_in(Target, ["cp", "-Rp", filename:join(root(Config), "target/release"), "."], ?MINUTE),
    older_than_target(Copy).

%% @doc Makes the native sources older than the files that were built from them, so that cargo does not build them again: git gives
%% the sources today's date.
-spec older_than_target(file:filename()) -> ok.
older_than_target(Copy) ->
    Touch = ["find", "Cargo.toml", "Cargo.lock", "native", "-exec", "touch", "-t", "200001010000", "{}", "+"],
    {0, _} = run_in(Copy, Touch, ?MINUTE),
    ok.
