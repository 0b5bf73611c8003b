%% @doc The checkout that is tested, for suites that build something from it.
-module(rekindle_checkout).

-export([root/1, run_in/3, testing_build/1]).

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

%% @doc Runs a program in a folder, and logs what it prints.
-spec run_in(file:filename(), [string()], pos_integer()) ->
    {ExitStatus :: non_neg_integer() | timeout | closed, Output :: binary()}.
run_in(Dir, Command, TimeoutMs) ->
    Args = ["-c", "cd \"$0\" && exec \"$@\"", Dir | Command],
    {_, Output} = Result = rekindle_clients:run("sh", Args, [], TimeoutMs),
    ct:log("~0tp~n~ts", [Command, Output]),
    Result.

%% @doc Makes an application folder like the real one, but with faults to order and a clock that can be
%% put forward: the cargo feature `testing'. Returns its folder of beam files.
-spec testing_build(Config :: [{atom(), term()}]) -> file:filename().
testing_build(Config) ->
    Root = root(Config),
    Cargo = ["cargo", "build", "--quiet", "--locked", "--package", "rekindle_nif", "--features", "testing"],
    {0, _} = run_in(Root, Cargo ++ ["--target-dir", "target"], 180_000),
    PrivDir = proplists:get_value(priv_dir, Config),
    [Ebin, Priv] = [filename:join([PrivDir, "rekindle", Name]) || Name <- ["ebin", "priv"]],
    [ok = filelib:ensure_dir(filename:join(Folder, "x")) || Folder <- [Ebin, Priv]],
    Library = filename:join([Root, "target", "debug", "librekindle_nif.so"]),
    {ok, _} = file:copy(Library, filename:join(Priv, "rekindle_nif.so")),
    Source = filename:join([Root, "lib", "rekindle_nif.erl"]),
    {ok, rekindle_nif} = compile:file(Source, [{outdir, Ebin}, {d, 'REKINDLE_TESTING'}]),
    Ebin.
