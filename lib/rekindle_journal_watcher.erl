%% @private Logs events of journals.
-module(rekindle_journal_watcher).

-behaviour(rekindle_watcher).

-export([start/0, log_events/0]).

-include("rekindle_log.hrl").

%% @doc Starts the process that logs, unless it runs.
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
    log(warning, Scope, Location, " does not work: ~ts. Until it works again, sessions stay in this node.", [Error]);
log({Scope, Location, {up, AfterMs, Dropped}}) ->
    log(notice, Scope, Location, " works again after ~ts. ~b sessions were not written.", [seconds(AfterMs), Dropped]);
log({Scope, Location, {replayed, Sessions, TookMs}}) ->
    log(notice, Scope, Location, ": ~b sessions were read in ~ts", [Sessions, seconds(TookMs)]),
    %% The sessions were made before the listener was opened, perhaps under other options. To look at all of them takes a while,
    %% and must neither delay the other events nor end this process.
    _ = spawn(fun() ->
        rekindle_suites:apply_allowed(Scope),
        rekindle_doctor:log(rekindle_doctor:outdated_suites(Scope))
    end),
    ok;
log({Scope, Location, {noticed, Notice}}) ->
    log(warning, Scope, Location, ": ~ts", [Notice]).

seconds(Ms) ->
    io_lib:format("~.1f s", [Ms / 1000]).

log(Level, Scope, Location, Format, Args) ->
    ?LOG_LINE(Level, journal, "rekindle: the journal of ~ts at ~ts" ++ Format, [
        rekindle_scope:text_of_log_name(Scope), Location | Args
    ]).
