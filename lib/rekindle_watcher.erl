%% @private Processes that log events of the native library's threads. The threads cannot log, so a process asks them for events.
%% It starts with the first journal or revocation list, and ends some seconds after the last one has ended.
-module(rekindle_watcher).

-export([start/1]).
-export([watch/2]).

-define(POLL_INTERVAL_MS, 250).

%% The process ends after this many polls in a row if nothing is left to watch.
-define(MAX_IDLE_POLLS, 40).

%% Logs the events since the last call. Returns whether there may be more.
-callback log_events() -> boolean().

%% @doc Starts the process that asks for this module's events, unless it runs. It is registered under the module's name.
-spec start(module()) -> ok.
start(Module) ->
    case whereis(Module) of
        undefined ->
            %% Not linked: the caller is a process of OTP's, and must survive it.
            _ = spawn(fun() -> registers(Module) andalso watch(Module, ?MAX_IDLE_POLLS) end),
            ok;
        _ ->
            ok
    end.

%% @private Exported so that the process continues in a new version of this module.
-spec watch(module(), non_neg_integer()) -> ok.
watch(Module, 0) ->
    true = unregister(Module),
    %% What was opened before that has started no other process.
    case Module:log_events() andalso registers(Module) of
        true -> ?MODULE:watch(Module, ?MAX_IDLE_POLLS);
        false -> ok
    end;
watch(Module, PollsLeft) ->
    IsMoreToCome = Module:log_events(),
    timer:sleep(?POLL_INTERVAL_MS),
    case IsMoreToCome of
        true -> ?MODULE:watch(Module, ?MAX_IDLE_POLLS);
        false -> ?MODULE:watch(Module, PollsLeft - 1)
    end.

%% Registers this process under the module's name. `false' if there is another one.
registers(Module) ->
    try
        register(Module, self())
    catch
        error:badarg -> false
    end.
