%% @doc An event of the library telemetry for each scope, where a node has it. Made for telemetry_poller:
%% `{rekindle_telemetry, measure, []}' is a measurement. No handshake makes an event.
-module(rekindle_telemetry).

-export([measure/0]).

-define(MEASURED, [
    sessions, max_sessions, bytes, max_bytes, templates, certificates, certified, lifetime, oldest, hits, misses, evicted_misses,
    lost_misses, unknown_misses, ended, inserts, expired, evicted, moved, refused, faults
]).

%% @doc Executes `[rekindle, scope]' once for each scope. The measurements are the numbers of
%% {@link rekindle_admin:info/0}, without those that have no value, and `refused_too_large' and its like for the
%% reasons; the metadata tell the scope.
-spec measure() -> ok.
measure() ->
    %% In a variable, so that no tool looks for what only some nodes have.
    Library = telemetry,
    lists:foreach(
        fun({Labels, Info}) ->
            Measurements = maps:filter(fun(_, Value) -> is_number(Value) end, maps:with(?MEASURED, Info)),
            Library:execute([rekindle, scope], maps:merge(Measurements, refused(Info)), Labels)
        end,
        rekindle_metrics:scopes()
    ).

refused(#{refused_by := By}) ->
    #{too_large := TooLarge, no_room := NoRoom, private_key := PrivateKey, layout := Layout, lifetime := Lifetime} = By,
    #{
        refused_too_large => TooLarge,
        refused_no_room => NoRoom,
        refused_private_key => PrivateKey,
        refused_layout => Layout,
        refused_lifetime => Lifetime
    }.
