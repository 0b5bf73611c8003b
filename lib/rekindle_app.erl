%% @private The application. Nobody needs to start it, because ssl calls the cache in any case. At its start it logs what the
%% doctor finds; when it stops, it waits for revocations that are not in a log yet.
-module(rekindle_app).

-behaviour(application).
-behaviour(supervisor).

-export([start/2, prep_stop/1, stop/1]).
-export([init/1]).

-include("rekindle_log.hrl").

%% How long the application's stop waits until all revocations are in their logs.
-define(WAIT_FOR_LOGS_MS, 2000).
-define(POLL_INTERVAL_MS, 20).

start(_Type, _Args) ->
    try
        rekindle_doctor:log(rekindle_doctor:findings())
    catch
        %% The doctor looks at OTP's internals. If that fails, the application starts nevertheless.
        _:_ -> ok
    end,
    supervisor:start_link({local, rekindle_sup}, ?MODULE, []).

%% Without a node folder, a revocation that is in no log is lost when the node ends.
prep_stop(State) ->
    try
        wait_for_logs(?WAIT_FOR_LOGS_MS div ?POLL_INTERVAL_MS)
    catch
        %% The library may not be there.
        _:_ -> ok
    end,
    State.

wait_for_logs(PollsLeft) ->
    case rekindle_nif:unwritten() of
        0 ->
            ok;
        _ when PollsLeft > 0 ->
            timer:sleep(?POLL_INTERVAL_MS),
            wait_for_logs(PollsLeft - 1);
        Unwritten ->
            log_unwritten(Unwritten)
    end.

log_unwritten(Unwritten) ->
    Journals = [Journal || #{journal := #{unwritten := N} = Journal} <- rekindle_nif:info(), N > 0],
    Remembered = [
        N
     || #{unwritten := N, node_folder := Folder, node_folder_error := undefined} <- Journals, Folder =/= undefined
    ],
    Consequence =
        %% Listeners that have closed are not among these journals.
        case lists:sum(Remembered) of
            N when N >= Unwritten ->
                "the node folder has them, and they are written when the node runs again";
            _ ->
                "they are lost unless a node_folder has them, so revoke again on another node"
        end,
    ?LOG_LINE(warning, unwritten, "rekindle: the application stops before ~b revocations are in the log: ~s", [
        Unwritten, Consequence
    ]).

stop(_State) ->
    ok.

init([]) ->
    {ok, {#{}, []}}.
