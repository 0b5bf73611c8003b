%% @private Reports the revocation lists that resumptions are checked against, for the log, the metrics and the operator's
%% functions.
%%
%% A thread of the native library reads the lists, and reads them again when they change.
-module(rekindle_crls).

-behaviour(rekindle_watcher).

-export([watch/0, log_events/0, crls/0, unreadable/0, next_updates/0, findings/0]).

-include("rekindle_log.hrl").

%% The doctor warns this long before a list becomes too old.
-define(WARN_BEFORE_S, 86_400).

%% @doc All lists. See {@link rekindle_admin:crls/0}.
-spec crls() -> [rekindle_admin:crl()].
crls() ->
    lists:usort(lists:append([shown(File) || File <- files(rekindle_nif:crls())])).

files(All) ->
    lists:usort(lists:append([Files || {_, _, Files} <- All])).

%% @doc How many files and folders cannot be read now; `undefined' if no scope is checked against lists.
-spec unreadable() -> non_neg_integer() | undefined.
unreadable() ->
    case rekindle_nif:crls() of
        [] -> undefined;
        All -> length(lists:usort([Path || {Path, _, Error, _} <- files(All), Error =/= undefined]))
    end.

%% @doc For each authority, when the newest of its lists becomes too old, in seconds since 1970. Lists for different certificates
%% do not replace each other: then the earliest time counts.
-spec next_updates() -> [{Issuer :: binary(), Seconds :: integer()}].
next_updates() ->
    Shown = [{rekindle_certificate:shown_name(Issuer), Next} || {Issuer, Next, _} <- newest(files(rekindle_nif:crls()))],
    %% An issuer may have lists for different certificates. The first one that becomes too old ends resumptions.
    maps:to_list(maps:from_list(lists:reverse(lists:sort(Shown)))).

%% Lists of one issuer for the same certificates replace each other, so only the one that becomes too old last counts. If one of
%% them has no next update, none becomes too old, and this returns none of them.
newest(Files) ->
    %% A list without a next update has the atom `undefined', which compares as larger than any number.
    Newest = maps:map(fun(_, Ends) -> lists:max(Ends) end, complete_lists(Files)),
    [{Issuer, Next, Path} || {Next, Issuer, Path} <- maps:values(Newest), is_integer(Next)].

complete_lists(Files) ->
    Lists = [{Covers, {Next, Issuer, Path}} || {Path, Of, _, _} <- Files, {Issuer, _, _, Next, false, Covers, true} <- Of],
    maps:groups_from_list(fun({Covers, _}) -> Covers end, fun({_, List}) -> List end, Lists).

shown({Path, [], Error, _}) ->
    [
        #{
            path => shown_path(Path),
            issuer => undefined,
            entries => 0,
            this_update => undefined,
            next_update => undefined,
            delta => false,
            error => Error
        }
    ];
shown({Path, Lists, Error, _}) ->
    [
        #{
            path => shown_path(Path),
            issuer => rekindle_certificate:shown_name(Issuer),
            entries => Entries,
            this_update => time(ThisUpdate),
            next_update => time(NextUpdate),
            delta => IsDelta,
            error => Error
        }
     || {Issuer, Entries, ThisUpdate, NextUpdate, IsDelta, _, _} <- Lists
    ].

shown_path(Path) ->
    case unicode:characters_to_list(Path) of
        Text when is_list(Text) -> Text;
        _ -> binary_to_list(Path)
    end.

time(undefined) -> undefined;
time(Seconds) -> calendar:system_time_to_universal_time(Seconds, second).

%% ---- what is wrong ----

%% @doc The findings about the lists, for {@link rekindle_doctor:findings/0}.
-spec findings() -> [rekindle_doctor:finding()].
findings() ->
    All = rekindle_nif:crls(),
    Files = files(All),
    unread(All) ++ lists:append([broken(File) || File <- Files]) ++ expiries(Files) ++ only_changes(Files) ++ empty(All).

unread(All) ->
    case [true || {IsRead, IsComplete, _} <- All, not (IsRead andalso IsComplete)] of
        [] ->
            [];
        _ ->
            [
                {error,
                    "not all revocation lists of the option crls have been read yet. Until they have, no session with a client "
                    "certificate is resumed, unless {stale_crls, resume} is set."}
            ]
    end.

broken({_, _, undefined, _}) ->
    [];
broken({Path, _, Error, false}) ->
    [{error, io_lib:format("the revocation list ~ts cannot be used: ~ts.", [shown_path(Path), Error])}];
broken({Path, _, Error, true}) ->
    [
        {warning,
            io_lib:format("the revocation list ~ts cannot be read again: ~ts. What was read before stays in force.", [
                shown_path(Path), Error
            ])}
    ].

expiries(Files) ->
    %% By the clock that the store uses: Erlang's own time may lag behind it after it was set.
    Now = os:system_time(second),
    lists:append([expiry(Issuer, Next, Path, Now) || {Issuer, Next, Path} <- newest(Files)]).

expiry(Issuer, Next, Path, Now) when Next < Now ->
    [
        {error,
            io_lib:format(
                "the revocation list of ~ts in ~ts expired at ~ts. Until there is a newer one, sessions of this authority's clients are "
                "not resumed, unless {stale_crls, resume} is set.",
                [rekindle_certificate:shown_name(Issuer), shown_path(Path), shown_time(Next)]
            )}
    ];
expiry(Issuer, Next, Path, Now) when Next - Now =< ?WARN_BEFORE_S ->
    [
        {warning,
            io_lib:format(
                "the revocation list of ~ts in ~ts expires at ~ts. Without a newer one, all clients of this authority will make full handshakes.",
                [rekindle_certificate:shown_name(Issuer), shown_path(Path), shown_time(Next)]
            )}
    ];
expiry(_, _, _, _) ->
    [].

only_changes(Files) ->
    Authorities = [Authority || {Authority, _} <- maps:keys(complete_lists(Files))],
    [
        {error,
            io_lib:format("~ts is a delta list of ~ts, ~s", [
                shown_path(Path), rekindle_certificate:shown_name(Issuer), without_complete_list()
            ])}
     || {Path, Lists, _, _} <- Files,
        {Issuer, _, _, _, true, {Authority, _}, _} <- Lists,
        not lists:member(Authority, Authorities)
    ].

without_complete_list() ->
    "and its base list is not there. Until that is there, too, sessions of this authority's clients are not resumed, "
    "unless {stale_crls, resume} is set.".

empty(All) ->
    [
        {warning, "the option crls names no revocation list, so no session is checked against a revocation list."}
     || {true, true, Files} <- All, [] =:= [List || {_, Lists, _, _} <- Files, List <- Lists]
    ].

shown_time(Seconds) ->
    calendar:system_time_to_rfc3339(Seconds, [{offset, "Z"}]).

%% ---- events ----

%% @doc Starts the process that logs events of the lists, unless it runs.
-spec watch() -> ok.
watch() ->
    rekindle_watcher:start(?MODULE).

%% @private
-spec log_events() -> boolean().
log_events() ->
    {Events, AreAny} = rekindle_nif:crl_events(),
    lists:foreach(fun log/1, Events),
    AreAny.

log({Path, {read, Lists, Entries}}) ->
    log(notice, Path, " has been read: ~s with ~s", [counted(Lists, "list", "lists"), counted(Entries, "entry", "entries")]);
log({Path, up}) ->
    log(notice, Path, " can be read again", []);
log({Path, down}) ->
    log(
        warning, Path, " is no longer there. Its lists stay in force until newer ones for the same certificates replace them.", []
    );
log({Path, {error, Error, true}}) ->
    log(warning, Path, " cannot be read again: ~ts. What was read before stays in force.", [Error]);
log({Path, {error, Error, false}}) ->
    log(
        warning,
        Path,
        " cannot be used: ~ts. Until it has been read, no session with a client certificate is resumed, "
        "unless {stale_crls, resume} is set.",
        [Error]
    );
log({Path, {expired, Issuer, NextUpdate}}) ->
    log(
        warning,
        Path,
        ": the list of ~ts expired at ~ts. Until there is a newer one, sessions of this authority's clients are not resumed, "
        "unless {stale_crls, resume} is set.",
        [rekindle_certificate:shown_name(Issuer), shown_time(NextUpdate)]
    );
log({Path, {delta, Issuer}}) ->
    log(warning, Path, " is a delta list of ~ts, ~s", [rekindle_certificate:shown_name(Issuer), without_complete_list()]).

counted(1, One, _) -> "1 " ++ One;
counted(Number, _, Many) -> integer_to_list(Number) ++ " " ++ Many.

log(Level, Path, Format, Args) ->
    ?LOG_LINE(Level, crls, "rekindle: revocation lists: ~ts" ++ Format, [shown_path(Path) | Args]).
