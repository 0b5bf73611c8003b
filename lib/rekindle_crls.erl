%% @private Revocation lists that resumptions are checked against: the option, what there is to say of them in the log, and
%% to an operator.
%%
%% A thread of the native library reads them, and again when they change.
-module(rekindle_crls).

-behaviour(rekindle_watcher).

-export([is_option/1, watch/0, log_events/0, crls/0, findings/0]).

-include("rekindle_log.hrl").

%% How many seconds before a list's next update is due the doctor warns.
-define(SOON, 86_400).

%% @doc Whether this is a list of file names.
-spec is_option(term()) -> boolean().
is_option(Paths) ->
    try
        lists:all(fun is_path/1, Paths)
    catch
        error:_ -> false
    end.

is_path(Path) when is_atom(Path) -> false;
is_path(Path) ->
    try unicode:characters_to_binary(Path) of
        Text -> is_binary(Text) andalso Text =/= <<>> andalso binary:match(Text, <<0>>) =:= nomatch
    catch
        error:_ -> false
    end.

%% @doc All lists that there are. See {@link rekindle_admin:crls/0}.
-spec crls() -> [rekindle_admin:crl()].
crls() ->
    lists:usort(lists:append([shown(File) || {_, _, Files} <- rekindle_nif:crls(), File <- Files])).

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
     || {Issuer, Entries, ThisUpdate, NextUpdate, IsDelta} <- Lists
    ].

shown_path(Path) ->
    case unicode:characters_to_list(Path) of
        Text when is_list(Text) -> Text;
        _ -> binary_to_list(Path)
    end.

time(undefined) -> undefined;
time(Seconds) -> calendar:system_time_to_universal_time(Seconds, second).

%% ---- what is wrong ----

%% @doc What is wrong with the lists, for {@link rekindle_doctor:findings/0}.
-spec findings() -> [rekindle_doctor:finding()].
findings() ->
    All = rekindle_nif:crls(),
    Files = lists:usort(lists:append([Files || {_, _, Files} <- All])),
    unread(All) ++ lists:append([broken(File) || File <- Files]) ++ ends(Files) ++ empty(All).

unread(All) ->
    case [true || {IsRead, IsComplete, _} <- All, not (IsRead andalso IsComplete)] of
        [] ->
            [];
        _ ->
            [{error,
                "not all revocation lists of the option crls were read yet: no session with a client certificate is resumed, "
                "unless {stale_crls, resume} is set."}]
    end.

broken({_, _, undefined, _}) ->
    [];
broken({Path, _, Error, false}) ->
    [{error, io_lib:format("the revocation list ~ts cannot be used: ~ts.", [shown_path(Path), Error])}];
broken({Path, _, Error, true}) ->
    [{warning, io_lib:format("the revocation list ~ts cannot be read again: ~ts. What was read before holds.", [shown_path(Path), Error])}].

%% By issuer the list that ends last, where it has ended or is about to.
ends(Files) ->
    Now = erlang:system_time(second),
    Lists = [{Issuer, {Next, Path}} || {Path, Of, _, _} <- Files, {Issuer, _, _, Next, false} <- Of],
    %% An atom is more than any number.
    Last = maps:map(fun(_, Ends) -> lists:max(Ends) end, maps:groups_from_list(fun(L) -> element(1, L) end, fun(L) -> element(2, L) end, Lists)),
    lists:append([ends(Issuer, Next, Path, Now) || {Issuer, {Next, Path}} <- maps:to_list(Last), is_integer(Next)]).

ends(Issuer, Next, Path, Now) when Next < Now ->
    [{error,
        io_lib:format("the revocation list of ~ts in ~ts ended at ~ts: sessions of its certificates are not resumed until there is a newer one, "
            "unless {stale_crls, resume} is set.",
            [rekindle_certificate:shown_name(Issuer), shown_path(Path), shown_time(Next)])}];
ends(Issuer, Next, Path, Now) when Next - Now =< ?SOON ->
    [{warning,
        io_lib:format("the revocation list of ~ts in ~ts ends at ~ts: without a newer one by then, all clients of that authority make full handshakes.",
            [rekindle_certificate:shown_name(Issuer), shown_path(Path), shown_time(Next)])}];
ends(_, _, _, _) ->
    [].

empty(All) ->
    [
        {warning, "the option crls names no revocation list at all: its folders are empty. No session is checked against a list."}
     || {true, true, Files} <- All, [] =:= [List || {_, Lists, _, _} <- Files, List <- Lists]
    ].

shown_time(Seconds) ->
    calendar:system_time_to_rfc3339(Seconds, [{offset, "Z"}]).

%% ---- what has happened ----

%% @doc Has what happens to the lists logged.
-spec watch() -> ok.
watch() ->
    rekindle_watcher:start(?MODULE).

%% @private
-spec log_events() -> boolean().
log_events() ->
    {Events, AreAny} = rekindle_nif:crl_events(),
    lists:foreach(fun tell/1, Events),
    AreAny.

tell({Path, {read, Lists, Entries}}) ->
    log(notice, Path, "read, with ~s in ~s", [counted(Entries, "entry", "entries"), counted(Lists, "list", "lists")]);
tell({Path, up}) ->
    log(notice, Path, "can be read again", []);
tell({Path, down}) ->
    log(warning, Path, "is no longer there. Its lists hold until there are newer ones of their issuers.", []);
tell({Path, {error, Error, true}}) ->
    log(warning, Path, "cannot be read again: ~ts. What was read before holds.", [Error]);
tell({Path, {error, Error, false}}) ->
    log(warning, Path, "cannot be used: ~ts. Until it was read, no session with a client certificate is resumed.", [Error]);
tell({Path, {expired, Issuer, NextUpdate}}) ->
    log(warning, Path, "the list of ~ts ended at ~ts: sessions of its certificates are not resumed until there is a newer one.",
        [rekindle_certificate:shown_name(Issuer), shown_time(NextUpdate)]).

counted(1, One, _) -> "1 " ++ One;
counted(Number, _, Many) -> integer_to_list(Number) ++ " " ++ Many.

log(Level, Path, Format, Args) ->
    ?LOG_LINE(Level, crls, "rekindle: revocation lists in ~ts: " ++ Format, [shown_path(Path) | Args]).
