%% @private The numbers of {@link rekindle_admin:info/0} as metrics, for Prometheus and telemetry.
-module(rekindle_metrics).

-export([scopes/0, families/0]).

-export_type([labels/0, family/0]).

%% They identify a scope, also across restarts.
-type labels() :: #{role := server | client, transport := tls | dtls | none, scope := binary()}.

%% A metric as Prometheus sees it, with its samples.
-type family() :: {Name :: atom(), Help :: string(), gauge | counter, [{[{Label :: atom(), atom() | binary()}], number()}]}.

%% @doc The scopes, each with its labels. Empty if the native library cannot be loaded. If a listener was opened again and its old
%% scope still exists, only the new one is here: Prometheus refuses a scrape with the same labels twice.
-spec scopes() -> [{labels(), rekindle_admin:info()}].
scopes() ->
    case rekindle_faults:library() of
        ok -> maps:to_list(maps:from_list([{labels(Info), Info} || Info <- rekindle_info:all()]));
        {error, _} -> []
    end.

labels(#{role := Role, scope := Scope}) ->
    Transport =
        case rekindle_scope:transport(Scope) of
            undefined -> none;
            Known -> Known
        end,
    #{role => Role, transport => Transport, scope => unicode:characters_to_binary(rekindle_scope:name(Scope))}.

%% @doc All metrics, by Prometheus' conventions. A metric without a value in a scope, such as a bound that is not set, has no
%% series there.
-spec families() -> [family()].
families() ->
    Scopes = scopes(),
    Up =
        case rekindle_faults:library() of
            ok -> 1;
            {error, _} -> 0
        end,
    [
        {rekindle_up, "Whether the native library is loaded.", gauge, [{[], Up}]},
        {rekindle_crl_unreadable_files, "Revocation lists and their folders that cannot be read now.", gauge, [
            {[], Files}
         || Up =:= 1, Files <- [rekindle_crls:unreadable()], is_integer(Files)
        ]},
        {rekindle_crl_next_update_timestamp_seconds,
            "When an authority's newest revocation list becomes too old, in seconds since 1970.", gauge, [
                {[{issuer, Issuer}], Seconds}
             || Up =:= 1, {Issuer, Seconds} <- rekindle_crls:next_updates()
            ]}
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
value({certificate_miss, Reason}, #{certificate_misses_by := By}) -> maps:get(Reason, By);
value({seconds, Key}, Map) -> maps:get(Key, Map) / 1000;
value(state, #{state := up}) -> 1;
value(state, #{state := _}) -> 0;
value(Key, Map) -> maps:get(Key, Map).

%% Name, help and type of each metric, and for each of its series the additional labels and the entry of the info.
described() ->
    [
        {rekindle_sessions, "Sessions stored now.", gauge, [{[], sessions}]},
        {rekindle_max_sessions, "The bound max_sessions.", gauge, [{[], max_sessions}]},
        {rekindle_bytes, "Memory that sessions, index and tables take.", gauge, [{[], bytes}]},
        {rekindle_max_bytes, "The bound max_bytes.", gauge, [{[], max_bytes}]},
        {rekindle_templates, "Sets of common session fields, each stored once.", gauge, [{[], templates}]},
        {rekindle_certificates, "Client certificates stored now.", gauge, [{[], certificates}]},
        {rekindle_certified_sessions, "Sessions that are evicted last: the newest of each client certificate.", gauge, [
            {[], certified}
        ]},
        {rekindle_lifetime_seconds, "How long a session may be resumed.", gauge, [{[], lifetime}]},
        {rekindle_oldest_session_age_seconds, "Age of the oldest session.", gauge, [{[], oldest}]},
        {rekindle_lookups_total, "Lookups, by whether they found a session.", counter, [
            {[{result, hit}], hits}, {[{result, miss}], misses}
        ]},
        {rekindle_evicted_misses_total, "Lookups of sessions that were evicted not long ago.", counter, [{[], evicted_misses}]},
        {rekindle_lost_misses_total, "Lookups of sessions that expired or were dropped not long ago.", counter, [
            {[], lost_misses}
        ]},
        {rekindle_unknown_misses_total, "Lookups of ids that the scope does not know.", counter, [{[], unknown_misses}]},
        {rekindle_certificate_misses_total, "Lookups of sessions whose certificate does not let them be resumed, by reason.",
            counter, [{[{reason, Reason}], {certificate_miss, Reason}} || Reason <- rekindle_info:reasons(certificate_misses_by)]},
        {rekindle_inserts_total, "Sessions stored.", counter, [{[], inserts}]},
        {rekindle_expired_sessions_total, "Sessions dropped because their lifetime was over.", counter, [{[], expired}]},
        {rekindle_evicted_sessions_total, "Sessions dropped to make room.", counter, [{[], evicted}]},
        {rekindle_moved_total, "Sessions and certificates moved to give memory back.", counter, [{[], moved}]},
        {rekindle_refused_sessions_total, "Sessions not stored, by reason.", counter, [
            {[{reason, Reason}], {refused, Reason}}
         || Reason <- rekindle_info:reasons(refused_by)
        ]},
        {rekindle_faults_total, "Calls that failed in the native library.", counter, [{[], faults}]},
        {rekindle_journal_up, "Whether the scope's journal works.", gauge, [{[], {journal, state}}]},
        {rekindle_journal_queued_records, "Records that wait to be written.", gauge, [{[], {journal, queued}}]},
        {rekindle_journal_written_records_total, "Records written to the log.", counter, [{[], {journal, written}}]},
        {rekindle_journal_written_bytes_total, "Bytes written to the log.", counter, [{[], {journal, written_bytes}}]},
        {rekindle_journal_dropped_sessions_total, "Sessions not written to the log.", counter, [{[], {journal, dropped}}]},
        {rekindle_journal_read_records_total, "Records read from the log.", counter, [{[], {journal, read}}]},
        {rekindle_journal_applied_sessions_total, "Sessions put into the scope from the log.", counter, [
            {[], {journal, applied}}
        ]},
        {rekindle_journal_skipped_records_total, "Records read but not used, by reason.", counter, [
            {[{reason, Reason}], {journal, {skipped, Reason}}}
         || Reason <- rekindle_info:reasons(skipped)
        ]},
        {rekindle_journal_revocations, "Revocations that this node remembers.", gauge, [{[], {journal, revocations}}]},
        {rekindle_journal_unwritten_revocations, "Revocations of this node that are not in the log yet.", gauge, [
            {[], {journal, unwritten}}
        ]},
        {rekindle_journal_missing_revocations, "Revocations that other nodes knew and this node has not read.", gauge, [
            {[], {journal, missing}}
        ]},
        {rekindle_journal_log_bytes, "Size of the scope's log.", gauge, [{[], {journal, log_bytes}}]},
        {rekindle_journal_node_folder_up, "Whether this node can write revocations to its node folder.", gauge, [
            {[], {journal, node_folder}}
        ]},
        {rekindle_journal_node_folder_bytes, "Size of the revocations in the node folder.", gauge, [
            {[], {journal, node_folder_bytes}}
        ]},
        {rekindle_journal_lag_seconds, "Age of the last session from another node when it was read.", gauge, [
            {[], {journal, {seconds, lag}}}
        ]},
        {rekindle_journal_clock_ahead_seconds, "How far the clock of the log's server is ahead.", gauge, [
            {[], {journal, {seconds, clock_ahead}}}
        ]}
    ].
