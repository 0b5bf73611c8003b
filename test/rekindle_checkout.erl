%% @doc The checkout that is tested, for suites that build something from it.
-module(rekindle_checkout).

-export([root/1, run_in/3]).

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
