%% @private The numbers of {@link rekindle_admin:info/0} as metrics, for whoever hands them on.
-module(rekindle_metrics).

-export([scopes/0, families/0]).

-export_type([labels/0, family/0]).

-define(REFUSED, [too_large, no_room, private_key, layout, lifetime]).

-define(ENDED, [expired, revoked, unknown]).

-define(SKIPPED, [malformed, version, scope, log, layout, key, forged, future, expired, revoked, template, full]).

%% What tells one scope from others for good, and across restarts.
-type labels() :: #{role := server | client, transport := tls | dtls | none, scope := binary()}.

%% Everything that Prometheus has to know of one metric.
-type family() :: {Name :: atom(), Help :: string(), gauge | counter, [{[{Label :: atom(), atom() | binary()}], number()}]}.

%% @doc The scopes, each with its labels. Empty where the native library cannot be loaded. While a listener that
%% was opened again still has its old scope, only the new one is there: of two with the same labels, a scraper
%% takes none.
-spec scopes() -> [{labels(), rekindle_admin:info()}].
scopes() ->
    case rekindle_faults:library() of
        ok -> maps:to_list(maps:from_list([{labels(Info), Info} || Info <- rekindle_admin:info()]));
        {error, _} -> []
    end.

labels(#{role := Role, scope := Label}) ->
    Transport = case rekindle_scope:transport(Label) of undefined -> none; Known -> Known end,
    #{role => Role, transport => Transport, scope => unicode:characters_to_binary(rekindle_scope:name(Label))}.

%% @doc All metrics by Prometheus' conventions. One without a value in a scope, such as a bound that is not
%% set, has no series there.
-spec families() -> [family()].
families() ->
    Scopes = scopes(),
    Up = case rekindle_faults:library() of ok -> 1; {error, _} -> 0 end,
    [
        {rekindle_up, "Whether the native library is loaded.", gauge, [{[], Up}]}
        | [{Name, Help, Type, samples(Sources, Scopes)} || {Name, Help, Type, Sources} <- described()]
    ].

samples(Sources, Scopes) ->
    [
        {[{Label, maps:get(Label, Labels)} || Label <- [role, transport, scope]] ++ More, Value}
     || {Labels, Info} <- Scopes, {More, Source} <- Sources, Value <- [value(Source, Info)], is_number(Value)
    ].

value({journal, _}, #{journal := undefined}) -> undefined;
value({journal, Source}, #{journal := Journal}) -> value(Source, Journal);
value({skipped, Reason}, #{skipped := Skipped}) -> maps:get(Reason, Skipped);
value({refused, Reason}, #{refused_by := Refused}) -> maps:get(Reason, Refused);
value(node_folder, #{node_folder := undefined}) -> undefined;
value(node_folder, #{node_folder_error := undefined}) -> 1;
value(node_folder, #{node_folder_error := _}) -> 0;
value(node_folder_bytes, #{node_folder := undefined}) -> undefined;
value({ended, Reason}, #{ended_by := Ended}) -> maps:get(Reason, Ended);
value({seconds, Key}, Map) -> maps:get(Key, Map) / 1000;
value(state, #{state := up}) -> 1;
value(state, #{state := _}) -> 0;
value(Key, Map) -> maps:get(Key, Map).

%% Of each metric which entries of the info it is made of, with what labels of their own.
described() ->
    [
        {rekindle_sessions, "Sessions that are stored.", gauge, [{[], sessions}]},
        {rekindle_max_sessions, "Most sessions that are stored.", gauge, [{[], max_sessions}]},
        {rekindle_bytes, "Memory for sessions, index included.", gauge, [{[], bytes}]},
        {rekindle_max_bytes, "Most memory for sessions, index included.", gauge, [{[], max_bytes}]},
        {rekindle_templates, "Kinds of sessions that are stored in common parts.", gauge, [{[], templates}]},
        {rekindle_certificates, "Client certificates that are stored.", gauge, [{[], certificates}]},
        {rekindle_certified_sessions, "Sessions that count as certified: the newest of each client certificate.", gauge,
            [{[], certified}]},
        {rekindle_lifetime_seconds, "How long a session may be resumed.", gauge, [{[], lifetime}]},
        {rekindle_oldest_session_age_seconds, "Age of the oldest session.", gauge, [{[], oldest}]},
        {rekindle_lookups_total, "Lookups, by whether they found a session.", counter,
            [{[{result, hit}], hits}, {[{result, miss}], misses}]},
        {rekindle_evicted_misses_total, "Lookups of sessions that were evicted not long ago.", counter, [{[], evicted_misses}]},
        {rekindle_lost_misses_total, "Lookups of sessions that expired or were dropped not long ago.", counter, [{[], lost_misses}]},
        {rekindle_unknown_misses_total, "Lookups of ids that the scope does not know.", counter, [{[], unknown_misses}]},
        {rekindle_ended_misses_total, "Lookups of sessions that must not be resumed for their client's certificate, by reason.",
            counter, [{[{reason, Reason}], {ended, Reason}} || Reason <- ?ENDED]},
        {rekindle_inserts_total, "Sessions stored.", counter, [{[], inserts}]},
        {rekindle_expired_sessions_total, "Sessions dropped because their lifetime had run out.", counter, [{[], expired}]},
        {rekindle_evicted_sessions_total, "Sessions dropped to make room.", counter, [{[], evicted}]},
        {rekindle_moved_total, "Sessions and certificates moved together to give pages back.", counter, [{[], moved}]},
        {rekindle_refused_sessions_total, "Sessions that were not stored, by reason.", counter,
            [{[{reason, Reason}], {refused, Reason}} || Reason <- ?REFUSED]},
        {rekindle_faults_total, "Calls that failed in the native library.", counter, [{[], faults}]},
        {rekindle_journal_up, "Whether the scope's journal works.", gauge, [{[], {journal, state}}]},
        {rekindle_journal_queued_records, "Records that wait to be written.", gauge, [{[], {journal, queued}}]},
        {rekindle_journal_written_records_total, "Records written to the log.", counter, [{[], {journal, written}}]},
        {rekindle_journal_written_bytes_total, "Bytes of the records written to the log.", counter, [{[], {journal, written_bytes}}]},
        {rekindle_journal_dropped_sessions_total, "Sessions that were not written.", counter, [{[], {journal, dropped}}]},
        {rekindle_journal_read_records_total, "Records read from the log.", counter, [{[], {journal, read}}]},
        {rekindle_journal_applied_sessions_total, "Sessions put into the scope out of the log.", counter, [{[], {journal, applied}}]},
        {rekindle_journal_skipped_records_total, "Records read and left out, by reason.", counter,
            [{[{reason, Reason}], {journal, {skipped, Reason}}} || Reason <- ?SKIPPED]},
        {rekindle_journal_revocations, "Revocations that are remembered.", gauge, [{[], {journal, revocations}}]},
        {rekindle_journal_unwritten_revocations, "Revocations that are not in the log yet.", gauge, [{[], {journal, unwritten}}]},
        {rekindle_journal_missing_revocations, "Revocations that other nodes knew of and that are not there.", gauge,
            [{[], {journal, missing}}]},
        {rekindle_journal_log_bytes, "Size of the scope's log.", gauge, [{[], {journal, log_bytes}}]},
        {rekindle_journal_node_folder_up, "Whether revocations can be written to the node folder.", gauge,
            [{[], {journal, node_folder}}]},
        {rekindle_journal_node_folder_bytes, "Size of the revocations in the node folder.", gauge,
            [{[], {journal, node_folder_bytes}}]},
        {rekindle_journal_lag_seconds, "Age of the last session of another node when it came.", gauge, [{[], {journal, {seconds, lag}}}]},
        {rekindle_journal_clock_ahead_seconds, "How far the log's clock is ahead.", gauge, [{[], {journal, {seconds, clock_ahead}}}]}
    ].
