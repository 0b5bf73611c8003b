%% @private Scopes and their journals as tables for people.
-module(rekindle_table).

-export([of_scopes/2, of_journals/2]).

-import(rekindle_text, [bytes/1, count/1, duration/1, percent/1]).

%% In a larger scope, nobody notices what the first session takes.
-define(SMALL_BYTES, 256 * 1024).

%% @doc Tables of what scopes hold and of what has happened in them. All but the first two are left out if they would show only
%% zeros.
-spec of_scopes([rekindle_admin:info()], rekindle_text:width()) -> unicode:chardata().
of_scopes([], Width) ->
    rekindle_text:paragraphs(["No listener and no client of this node uses Rekindle. rekindle_admin:doctor() says why."], Width);
of_scopes(Infos, Width) ->
    Missed = [Info || #{misses := Misses} = Info <- Infos, Misses > 0],
    Certified = [Info || #{certificates := Certificates} = Info <- Infos, Certificates > 0],
    Refused = [Info || #{refused := Count} = Info <- Infos, Count > 0],
    Faulty = [Info || #{faults := Faults} = Info <- Infos, Faults > 0],
    [
        table(["scope", "sessions", "memory", "bound", "oldest", "lifetime"], fun held/1, Infos, Width),
        about_memory(Infos, Width),
        $\n,
        table(["scope", "hits", "misses", "hit rate", "inserts", "expired", "evicted"], fun happened/1, Infos, Width),
        more(["misses by reason", "evicted", "lost", "certificate", "unknown"], fun missed/1, Missed, Width),
        more(["certificates", "kept", "certified sessions"], counts([certificates, certified]), Certified, Width),
        by_reason("refused by reason", refused_by, Refused, Width),
        more(["faults", "failed calls"], counts([faults]), Faulty, Width)
    ].

held(#{sessions := Sessions, bytes := Bytes, oldest := Oldest, lifetime := Lifetime} = Info) ->
    [count(Sessions), bytes(Bytes), bound(Info), duration(Oldest), duration(Lifetime)].

%% The bound in bytes and, if there is one, the bound in sessions.
bound(#{max_bytes := infinity}) -> "-";
bound(#{max_bytes := MaxBytes, max_sessions := infinity}) -> bytes(MaxBytes);
bound(#{max_bytes := MaxBytes, max_sessions := MaxSessions}) -> [bytes(MaxBytes), ", ", count(MaxSessions)].

about_memory(Infos, Width) ->
    case [Info || #{role := server, sessions := Sessions, bytes := Bytes} = Info <- Infos, Sessions > 0, Bytes < ?SMALL_BYTES] of
        [] ->
            [];
        _ ->
            rekindle_text:paragraphs(
                [
                    "Memory: the first session of a scope takes up to 40 KiB, for the index, tables and first pages. Each further session "
                    "takes about 110 bytes, and a client certificate its own size once."
                ],
                Width
            )
    end.

happened(#{hits := Hits, misses := Misses, hit_rate := HitRate, inserts := Inserts, expired := Expired, evicted := Evicted}) ->
    [count(Hits), count(Misses), percent(HitRate), count(Inserts), count(Expired), count(Evicted)].

missed(#{evicted_misses := Evicted, lost_misses := Lost, certificate_misses := Certificate, unknown_misses := Unknown}) ->
    [count(Number) || Number <- [Evicted, Lost, Certificate, Unknown]].

%% Shows only reasons with a count above 0.
by_reason(Head, Kind, Infos, Width) ->
    IsCounted = fun(Reason) -> lists:any(fun(#{Kind := #{Reason := Count}}) -> Count > 0 end, Infos) end,
    Reasons = lists:filter(IsCounted, rekindle_info:reasons(Kind)),
    Names = [string:replace(atom_to_list(Reason), "_", " ", all) || Reason <- Reasons],
    more([Head | Names], fun(#{Kind := Counts}) -> [count(maps:get(Reason, Counts)) || Reason <- Reasons] end, Infos, Width).

%% @doc The journals of those that have one, and what they know of revocations.
-spec of_journals([rekindle_admin:info()], rekindle_text:width()) -> unicode:chardata().
of_journals(Infos, Width) ->
    Journals = [Journal#{scope => Scope} || #{scope := Scope, journal := #{} = Journal} <- Infos],
    Skipping = [Journal || #{skipped := Skipped} = Journal <- Journals, lists:sum(maps:values(Skipped)) > 0],
    [
        more(["journal", "state", "queued", "written", "dropped", "log size"], fun written/1, Journals, Width),
        more(["read from log", "read", "applied", "skipped", "lag", "replay"], fun read/1, Journals, Width),
        by_reason("skipped by reason", skipped, Skipping, Width),
        more(["revocations", "remembered", "unwritten", "missing", "folder size"], fun revocations/1, Journals, Width)
        | places(Journals, Width)
    ].

written(#{state := State, since := Since, log_bytes := LogBytes} = Journal) ->
    [[atom_to_list(State), " ", duration(Since)] | (counts([queued, written, dropped]))(Journal)] ++ [size_of(LogBytes)].

read(#{skipped := Skipped, lag := Lag, replay := Replay} = Journal) ->
    (counts([read, applied]))(Journal) ++ [count(lists:sum(maps:values(Skipped))), milliseconds(Lag), milliseconds(Replay)].

revocations(#{node_folder := undefined} = Journal) -> revocations(Journal, undefined);
revocations(#{node_folder_bytes := Bytes} = Journal) -> revocations(Journal, Bytes).

revocations(Journal, FolderBytes) ->
    (counts([revocations, unwritten, missing]))(Journal) ++ [size_of(FolderBytes)].

size_of(undefined) -> "-";
size_of(Bytes) -> bytes(Bytes).

milliseconds(undefined) -> "-";
milliseconds(Ms) when Ms < 10_000 -> io_lib:format("~b ms", [Ms]);
milliseconds(Ms) -> duration(Ms div 1000).

%% Sentences, because paths can be long.
places([], _) ->
    [];
places(Journals, Width) ->
    [$\n | rekindle_text:paragraphs([place(Journal) || Journal <- Journals], Width)].

place(#{scope := Scope, location := Location} = Journal) ->
    [rekindle_scope:text(Scope), ": log ", Location, ", node folder ", node_folder(Journal)].

node_folder(#{node_folder := undefined}) -> "none";
node_folder(#{node_folder := Folder, node_folder_error := undefined}) -> Folder;
node_folder(#{node_folder := Folder, node_folder_error := Error}) -> [Folder, ", which cannot be used: ", Error].

%% ---- rows ----

%% A table after others, if it has rows.
more(_Head, _Cells, [], _Width) -> [];
more(Head, Cells, Infos, Width) -> [$\n, table(Head, Cells, Infos, Width)].

table(Head, Cells, Infos, Width) ->
    rekindle_text:table({Head, [[rekindle_scope:text(Scope) | Cells(Info)] || #{scope := Scope} = Info <- Infos]}, Width).

counts(Keys) ->
    fun(Info) -> [count(maps:get(Key, Info)) || Key <- Keys] end.
