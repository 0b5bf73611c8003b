%% @private The scopes as a table for people.
-module(rekindle_table).

-export([of_scopes/1, of_journals/1, scope/1, bytes/1, duration/1]).

%% What a scope holds, and what happened in it. In two tables, as one would be too wide for a terminal.
-define(HELD_HEAD, ["scope", "sessions", "certified", "certs", "memory", "bound", "moved", "oldest", "lifetime"]).
-define(COUNTS_HEAD, ["scope", "hits", "misses", "other", "hit rate", "inserts", "expired", "evicted", "missed", "ended", "refused", "faults"]).

-define(REFUSED_HEAD, ["refused", "too large", "no room", "private key", "layout", "lifetime"]).

-define(JOURNAL_HEAD, ["journal", "state", "queued", "written", "dropped", "read", "applied", "skipped", "lag", "replay", "location"]).

-define(REVOCATIONS_HEAD, ["revocations of", "remembered", "unwritten", "missing", "log size", "folder size", "node folder"]).

-spec of_scopes([rekindle_admin:info()]) -> unicode:chardata().
of_scopes([]) ->
    "No listener and no client of this node uses Rekindle. rekindle_admin:doctor() tells why.\n";
of_scopes(Infos) ->
    [
        table([?HELD_HEAD | [held_row(Info) || Info <- Infos]]),
        $\n,
        table([?COUNTS_HEAD | [counts_row(Info) || Info <- Infos]])
        | of_refused([Info || #{refused := Refused} = Info <- Infos, Refused > 0])
    ].

%% Why sessions were refused, where any were.
of_refused([]) -> [];
of_refused(Infos) -> [$\n, table([?REFUSED_HEAD | [refused_row(Info) || Info <- Infos]])].

refused_row(#{scope := Scope, refused_by := By}) ->
    [scope(Scope) | [count(maps:get(Reason, By)) || Reason <- [too_large, no_room, private_key, layout, lifetime]]].

%% @doc The journals of those that have one, and what they know of revocations.
-spec of_journals([rekindle_admin:info()]) -> unicode:chardata().
of_journals(Infos) ->
    case [{scope(Label), Journal} || #{scope := Label, journal := #{} = Journal} <- Infos] of
        [] ->
            [];
        Journals ->
            [
                [$\n, table([Head | [[Scope | Row(Journal)] || {Scope, Journal} <- Journals]])]
             || {Head, Row} <- [{?JOURNAL_HEAD, fun journal_row/1}, {?REVOCATIONS_HEAD, fun revocations_row/1}]
            ]
    end.

revocations_row(#{node_folder := Folder, node_folder_bytes := FolderBytes, log_bytes := LogBytes} = Journal) ->
    Count = fun(Key) -> count(maps:get(Key, Journal)) end,
    FolderSize = case Folder of undefined -> "-"; _ -> bytes(FolderBytes) end,
    [Count(revocations), Count(unwritten), Count(missing), log_size(LogBytes), FolderSize, node_folder(Journal)].

log_size(undefined) -> "-";
log_size(Bytes) -> bytes(Bytes).

node_folder(#{node_folder := undefined}) -> "none";
node_folder(#{node_folder := Folder, node_folder_error := undefined}) -> Folder;
node_folder(#{node_folder := Folder, node_folder_error := Error}) -> [Folder, ": ", Error].

journal_row(Journal) ->
    Count = fun(Key) -> count(maps:get(Key, Journal)) end,
    #{state := State, since := Since, lag := Lag, replay := Replay, skipped := Skipped, location := Location} = Journal,
    [
        [atom_to_list(State), " ", duration(Since)], Count(queued), Count(written), Count(dropped), Count(read),
        Count(applied), count(lists:sum(maps:values(Skipped))), milliseconds(Lag), milliseconds(Replay), Location
    ].

milliseconds(undefined) -> "-";
milliseconds(Ms) when Ms < 10_000 -> io_lib:format("~b ms", [Ms]);
milliseconds(Ms) -> duration(Ms div 1000).

table([Head | _] = Cells) ->
    Rows = [[unicode:characters_to_list(Cell) || Cell <- Row] || Row <- Cells],
    Widths = [lists:max([string:length(lists:nth(Column, Row)) || Row <- Rows]) || Column <- lists:seq(1, length(Head))],
    [[line(Row, Widths), $\n] || Row <- Rows].

%% The first column to the left, numbers to the right.
line([First | Others], [Width | Widths]) ->
    [string:pad(First, Width) | [["  ", string:pad(Cell, W, leading)] || {Cell, W} <- lists:zip(Others, Widths)]].

held_row(Info) ->
    Count = fun(Key) -> count(maps:get(Key, Info)) end,
    #{scope := Scope, bytes := Bytes, max_bytes := MaxBytes, oldest := Oldest, lifetime := Lifetime} = Info,
    [
        scope(Scope), Count(sessions), Count(certified), Count(certificates), bytes(Bytes), bound(MaxBytes, Info), Count(moved),
        duration(Oldest), duration(Lifetime)
    ].

counts_row(#{scope := Scope, hit_rate := HitRate} = Info) ->
    Count = fun(Key) -> count(maps:get(Key, Info)) end,
    [
        scope(Scope), Count(hits), Count(misses), Count(unknown_misses), percent(HitRate), Count(inserts), Count(expired), Count(evicted),
        Count(evicted_misses), Count(ended), Count(refused), Count(faults)
    ].

%% @doc A scope's transport and name.
-spec scope(rekindle_admin:label()) -> unicode:chardata().
scope(Label) ->
    case rekindle_scope:transport(Label) of
        undefined -> rekindle_scope:name(Label);
        Transport -> io_lib:format("~s ~ts", [Transport, rekindle_scope:name(Label)])
    end.

%% Both bounds, where there is one in sessions.
bound(infinity, _) -> "-";
bound(MaxBytes, #{max_sessions := infinity}) -> bytes(MaxBytes);
bound(MaxBytes, #{max_sessions := MaxSessions}) -> [bytes(MaxBytes), ", ", count(MaxSessions)].

%% @doc Bytes, with a unit.
-spec bytes(non_neg_integer()) -> iolist().
bytes(Bytes) when Bytes < 1024 -> [integer_to_list(Bytes), " B"];
bytes(Bytes) when Bytes < 1 bsl 20 -> io_lib:format("~.1f KiB", [Bytes / 1024]);
bytes(Bytes) when Bytes < 1 bsl 30 -> io_lib:format("~.1f MiB", [Bytes / (1 bsl 20)]);
bytes(Bytes) -> io_lib:format("~.1f GiB", [Bytes / (1 bsl 30)]).

%% @doc Seconds, in the two largest units.
-spec duration(non_neg_integer() | infinity | undefined) -> iolist().
duration(Seconds) when not is_integer(Seconds) -> "-";
duration(Seconds) when Seconds < 60 -> [integer_to_list(Seconds), " s"];
duration(Seconds) when Seconds < 3600 -> two(Seconds, 60, "min", 1, "s");
duration(Seconds) when Seconds < 86400 -> two(Seconds, 3600, "h", 60, "min");
duration(Seconds) -> two(Seconds, 86400, "d", 3600, "h").

two(Seconds, Large, LargeName, Small, SmallName) ->
    case Seconds rem Large div Small of
        0 -> io_lib:format("~b ~s", [Seconds div Large, LargeName]);
        Rest -> io_lib:format("~b ~s ~b ~s", [Seconds div Large, LargeName, Rest, SmallName])
    end.

percent(undefined) -> "-";
percent(Part) -> io_lib:format("~.1f %", [100 * Part]).

count(Number) when Number < 1000 -> integer_to_list(Number);
count(Number) -> [count(Number div 1000), io_lib:format(",~3..0b", [Number rem 1000])].
