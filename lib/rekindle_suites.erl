%% @private Keeps sessions from journals out of scopes whose listeners no longer allow the sessions' cipher suites.
%%
%% ssl resumes a session with its own suite, and does not tell a cache which suites the listener allows. So the options of the
%% scope's listeners are looked up. Until they are known, sessions of all suites are read; then the others are dropped.
-module(rekindle_suites).

-export([start/1, apply_allowed/1]).
-export([narrow_when_closed/2]).

-include("rekindle_log.hrl").

%% How often, and how long apart, a listener is asked for its options: when its cache is opened, ssl may not know them yet.
-define(TRIES, 20).
-define(TRY_AGAIN_MS, 50).

%% @doc Does the same as {@link apply_allowed/1} in a process of its own, and again when the caller ends. The caller is OTP's process
%% for a listener of the scope that opens, and must not wait. It ends when the listener closes.
-spec start(rekindle_admin:scope_name()) -> ok.
start(Scope) ->
    Owner = self(),
    _ = spawn(fun() ->
        LogName = rekindle_scope:log_name(Scope),
        Monitor = monitor(process, Owner),
        apply_allowed(LogName),
        case Scope of
            %% This process may live long. So it must not keep an old version of this module in use.
            {shared, _, _} -> erlang:hibernate(?MODULE, narrow_when_closed, [LogName, Monitor]);
            _ -> ok
        end
    end),
    ok.

%% @private Then the other listeners of the scope may allow fewer suites.
-spec narrow_when_closed(LogName :: binary(), reference()) -> ok.
narrow_when_closed(LogName, Monitor) ->
    receive
        {'DOWN', Monitor, process, _, _} ->
            case allowed(LogName) of
                %% None is open any more, or their options are not known.
                {_, _, all} -> ok;
                none -> ok;
                Set -> apply_allowed(LogName, Set)
            end;
        _ ->
            erlang:hibernate(?MODULE, narrow_when_closed, [LogName, Monitor])
    end.

%% @doc Tells the journal of the scope with this name in its log which suites are allowed, and logs how many sessions were left
%% out.
-spec apply_allowed(LogName :: binary()) -> ok.
apply_allowed(LogName) ->
    apply_allowed(LogName, allowed(LogName)).

%% Each listener that opens starts such a process, so several can run at once. Each compares the suites again after it has set
%% them.
apply_allowed(LogName, {Scope, Number, Suites} = Set) ->
    case rekindle_nif:allow_suites(Number, Suites) of
        undefined ->
            ok;
        LeftOut ->
            log(Scope, LeftOut),
            case allowed(LogName) of
                Set -> ok;
                Other -> apply_allowed(LogName, Other)
            end
    end;
apply_allowed(_, none) ->
    ok.

log(_, 0) ->
    ok;
log(Scope, LeftOut) ->
    ?LOG_LINE(
        notice,
        journal,
        "rekindle: ~ts: ~b sessions of its journal are not resumed, because its option ciphers does not allow their cipher suites",
        [rekindle_scope:text(Scope), LeftOut]
    ).

%% The newest scope of that name, and the suites that its listeners allow together; `all' if that cannot be known.
allowed(LogName) ->
    allowed(LogName, ?TRIES).

allowed(LogName, TriesLeft) ->
    case scope(LogName) of
        {Scope, Number} ->
            Sockets = rekindle_scope:open_sockets(Scope),
            Opened = rekindle_doctor:opened(fun(Socket) -> lists:member(rekindle_scope:socket_name(Socket), Sockets) end),
            case lists:usort([rekindle_scope:socket_name(Socket) || {Socket, _} <- Opened]) of
                Sockets when Sockets =/= [] ->
                    {Scope, Number, union([rekindle_trust:allowed_suites(Options) || {_, Options} <- Opened])};
                _ when TriesLeft > 1 ->
                    timer:sleep(?TRY_AGAIN_MS),
                    allowed(LogName, TriesLeft - 1);
                _ ->
                    {Scope, Number, all}
            end;
        none ->
            none
    end.

union(Suites) ->
    case lists:member(all, Suites) of
        true -> all;
        false -> lists:usort(lists:append(Suites))
    end.

%% The newest scope of that name. An older one can remain for a moment after its last listener has closed.
scope(LogName) ->
    Scopes = [
        {Scope, Number}
     || #{scope := Scope, number := Number, journal := #{}} <- rekindle_info:all(), rekindle_scope:log_name(Scope) =:= LogName
    ],
    case Scopes of
        [] -> none;
        [_ | _] -> lists:last(Scopes)
    end.
