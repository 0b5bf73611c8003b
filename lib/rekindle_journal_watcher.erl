%% @private Logs what happens to journals.
-module(rekindle_journal_watcher).

-behaviour(rekindle_watcher).

-export([start/0, log_events/0]).

-include("rekindle_log.hrl").

%% @doc Starts the process that asks, unless it runs.
-spec start() -> ok.
start() ->
    rekindle_watcher:start(?MODULE).

%% @private
-spec log_events() -> boolean().
log_events() ->
    {Events, IsAnyJournal} = rekindle_nif:journal_events(),
    lists:foreach(fun log/1, Events),
    IsAnyJournal.

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
