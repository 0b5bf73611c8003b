%% @doc A separate node for a test, with its own ssl and environment, of which nothing is left afterwards.
-module(rekindle_node).

-export([start/1, start/2, start/3, start/4, start_ssl/1, run_in_new/1, stop/1, kill/1, call/4, run/2, await/1, free_port/0]).
-export([apply_fun/1]).

-define(KEYS, [session_cb, server_session_cb, client_session_cb]).

%% @doc A node whose ssl runs with Rekindle and with `SslEnv' as the rest of its environment.
-spec start([{atom(), term()}]) -> pid().
start(SslEnv) ->
    start(SslEnv, []).

%% @doc Same as `start/1', with folders of beam files that come before all others.
-spec start([{atom(), term()}], [file:filename()]) -> pid().
start(SslEnv, Folders) ->
    start(SslEnv, Folders, []).

%% @doc Same as `start/2', with arguments for `erl'.
-spec start([{atom(), term()}], [file:filename()], [string()]) -> pid().
start(SslEnv, Folders, Args) ->
    start(SslEnv, Folders, Args, []).

%% @doc Same as `start/3', with variables of the system's environment.
-spec start([{atom(), term()}], [file:filename()], [string()], [{string(), string()}]) -> pid().
start(SslEnv, Folders, Args, Variables) ->
    {ok, Node, _} = peer:start(#{
        connection => standard_io, args => code_path(Folders) ++ Args, env => Variables, wait_boot => 30_000
    }),
    case call(Node, application, load, [ssl]) of
        ok -> ok;
        {error, {already_loaded, ssl}} -> ok
    end,
    Env = [{Key, rekindle} || Key <- ?KEYS, not lists:keymember(Key, 1, SslEnv)] ++ SslEnv,
    [ok = call(Node, application, set_env, [ssl, Key, Value]) || {Key, Value} <- Env, Value =/= unset],
    Node.

%% @doc Same as `start/1', and starts ssl.
-spec start_ssl([{atom(), term()}]) -> pid().
start_ssl(SslEnv) ->
    Node = start(SslEnv),
    {ok, _} = call(Node, application, ensure_all_started, [ssl]),
    Node.

%% @doc Runs `Fun' in a node of its own (see `run/2'), ends the node, and returns the result.
-spec run_in_new(fun(() -> Answer)) -> Answer.
run_in_new(Fun) ->
    Node = start([]),
    try
        run(Node, Fun)
    after
        stop(Node)
    end.

-spec stop(pid()) -> ok.
stop(Node) ->
    peer:stop(Node).

%% @doc Kills the node, as a system without memory does.
-spec kill(pid()) -> ok.
kill(Node) ->
    Monitor = monitor(process, Node),
    {0, _} = rekindle_clients:run("kill", ["-9", call(Node, os, getpid, [])], [], 10_000),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    after 30_000 -> error(still_running)
    end.

-spec call(pid(), module(), atom(), [term()]) -> term().
call(Node, Module, Function, Args) ->
    peer:call(Node, Module, Function, Args, 120_000).

%% @doc Runs a fun of the caller's module there.
-spec run(pid(), fun(() -> Result)) -> Result.
run(Node, Fun) ->
    call(Node, ?MODULE, apply_fun, [Fun]).

%% @doc Waits until the condition holds. Fails after ten seconds.
-spec await(fun(() -> boolean())) -> ok.
await(Condition) ->
    await(Condition, 500).

await(Condition, Tries) ->
    case Condition() of
        true ->
            ok;
        false when Tries > 0 ->
            timer:sleep(20),
            await(Condition, Tries - 1);
        false ->
            error({still_not_so_after_10_s, Condition})
    end.

%% @doc A port of 127.0.0.1 that nobody uses, another one with each call. Ports from 32768 on are not among them, because the
%% system gives those to any client, also before a server listens. Other processes on this machine begin elsewhere.
-spec free_port() -> 13_000..19_999.
free_port() ->
    %% The native tests take those from 10,000 on.
    Port = 13_000 + (397 * list_to_integer(os:getpid()) + erlang:unique_integer([positive, monotonic])) rem 7_000,
    case gen_tcp:listen(Port, [{ip, {127, 0, 0, 1}}]) of
        {ok, Socket} ->
            ok = gen_tcp:close(Socket),
            Port;
        {error, eaddrinuse} ->
            free_port()
    end.

%% @private
-spec apply_fun(fun(() -> Result)) -> Result.
apply_fun(Fun) ->
    Fun().

%% The last `-pa' comes first.
code_path(Folders) ->
    Own = [filename:dirname(code:which(Module)) || Module <- [?MODULE, rekindle]],
    lists:append([["-pa", filename:absname(Folder)] || Folder <- Own ++ lists:reverse(Folders)]).
