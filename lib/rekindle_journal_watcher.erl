%% @private Logs what happens to journals. The threads of the native library do not log: here is a process that asks
%% them now and then. It begins with the first journal and ends with the last one.
-module(rekindle_journal_watcher).

-export([start/0]).
-export([watch/1]).

-include("rekindle_log.hrl").

-define(QUESTION_INTERVAL_MS, 250).

%% Questions without any journal, after which the process ends.
-define(QUESTIONS_WITHOUT_JOURNAL, 40).

%% @doc Starts it, where it does not run.
-spec start() -> ok.
start() ->
    case whereis(?MODULE) of
        undefined ->
            %% Not linked: it must not take OTP's process with it.
            _ = spawn(fun() ->
                try register(?MODULE, self()) of
                    true -> watch(?QUESTIONS_WITHOUT_JOURNAL)
                catch
                    error:badarg -> ok
                end
            end),
            ok;
        _ ->
            ok
    end.

%% @private Called with its module, to go on in a new version.
-spec watch(non_neg_integer()) -> ok.
watch(0) ->
    ok;
watch(QuestionsLeft) ->
    {Events, IsAnyJournal} = rekindle_nif:journal_events(),
    lists:foreach(fun log/1, Events),
    timer:sleep(?QUESTION_INTERVAL_MS),
    case IsAnyJournal of
        true -> ?MODULE:watch(?QUESTIONS_WITHOUT_JOURNAL);
        false -> ?MODULE:watch(QuestionsLeft - 1)
    end.

log({Scope, Location, {down, Error}}) ->
    log(warning, Scope, Location, "does not work: ~ts. Sessions stay in this node until it does.", [Error]);
log({Scope, Location, {up, AfterMs, Dropped}}) ->
    log(notice, Scope, Location, "works again after ~ts; ~b sessions were not written", [seconds(AfterMs), Dropped]);
log({Scope, Location, {replayed, Sessions, TookMs}}) ->
    log(notice, Scope, Location, "~b sessions were read from it in ~ts", [Sessions, seconds(TookMs)]);
log({Scope, Location, {noticed, Notice}}) ->
    log(warning, Scope, Location, "~ts", [Notice]).

seconds(Ms) ->
    io_lib:format("~.1f s", [Ms / 1000]).

log(Level, Scope, Location, Format, Args) ->
    ?LOG_LINE(Level, journal, "rekindle: the journal of ~ts at ~ts: " ++ Format, [shown(Scope), Location | Args]).

%% As in tables. A scope that has ended is not there to ask.
shown(Scope) ->
    case [Label || #{scope := Label} <- rekindle_nif:info(), rekindle_journal:name(Label) =:= Scope] of
        [Label | _] -> rekindle_table:scope(Label);
        [] -> Scope
    end.
