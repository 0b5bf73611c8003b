%% @doc A fresh operating-system process for each measurement, so that no measurement influences another.
-module(bench_node).

-export([run/2, start/1, call/2, stop/1, os_pid/1]).
-export([apply_fun/1]).

-type config() :: {SessionCallbacks :: module() | undefined, SslEnv :: [{atom(), term()}]}.
%% With `undefined', ssl uses its default caches.

-define(KEYS, [session_cb, server_session_cb, client_session_cb]).

%% @doc Runs `Fun' in a node of its own with these settings of ssl.
-spec run(config(), fun(() -> Result)) -> Result.
run(Config, Fun) ->
    Node = start(Config),
    try
        call(Node, Fun)
    after
        stop(Node)
    end.

-spec start(config()) -> pid().
start({Callbacks, SslEnv}) ->
    {ok, Node, _} = peer:start(#{connection => standard_io, args => arguments(), wait_boot => 60_000}),
    Env = [{Key, Callbacks} || Callbacks =/= undefined, Key <- ?KEYS] ++ SslEnv,
    ok = call(Node, fun() -> prepare(Env) end),
    Node.

-spec call(pid(), fun(() -> Result)) -> Result.
call(Node, Fun) ->
    peer:call(Node, ?MODULE, apply_fun, [Fun], infinity).

-spec stop(pid()) -> ok.
stop(Node) ->
    peer:stop(Node).

-spec os_pid(pid()) -> string().
os_pid(Node) ->
    call(Node, fun() -> os:getpid() end).

%% @private
apply_fun(Fun) ->
    Fun().

prepare(Env) ->
    _ = application:load(ssl),
    [ok = application:set_env(ssl, Key, Value) || {Key, Value} <- Env],
    {ok, _} = application:ensure_all_started(ssl),
    logger:set_primary_config(level, error).

%% Schedulers must not spin while they wait for work, because that would count as CPU time.
arguments() ->
    Folders = [filename:absname(filename:dirname(code:which(Module))) || Module <- [?MODULE, rekindle]],
    ["+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"] ++ lists:append([["-pa", Folder] || Folder <- Folders]).
