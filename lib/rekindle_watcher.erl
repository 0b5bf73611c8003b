%% @private Processes that log what the native library's threads have noticed. The threads do not log: a process asks them
%% now and then. It begins when there is something to ask about, and ends some seconds after the last of it.
-module(rekindle_watcher).

-export([start/1]).
-export([watch/2]).

-define(QUESTION_INTERVAL_MS, 250).

%% Questions without anything to ask about, after which the process ends.
-define(QUESTIONS_IN_VAIN, 40).

%% Logs what has happened since the last call, and tells whether more may happen.
-callback log_events() -> boolean().

%% @doc Starts the process that asks for a module, unless it runs. It is registered under the module's name.
-spec start(module()) -> ok.
start(Module) ->
    case whereis(Module) of
        undefined ->
            %% Not linked: it must not take OTP's process with it.
            _ = spawn(fun() ->
                try register(Module, self()) of
                    true -> watch(Module, ?QUESTIONS_IN_VAIN)
                catch
                    error:badarg -> ok
                end
            end),
            ok;
        _ ->
            ok
    end.

%% @private Called with its module, to go on in a new version.
-spec watch(module(), non_neg_integer()) -> ok.
watch(_Module, 0) ->
    ok;
watch(Module, QuestionsLeft) ->
    IsMoreToCome = Module:log_events(),
    timer:sleep(?QUESTION_INTERVAL_MS),
    case IsMoreToCome of
        true -> ?MODULE:watch(Module, ?QUESTIONS_IN_VAIN);
        false -> ?MODULE:watch(Module, QuestionsLeft - 1)
    end.
