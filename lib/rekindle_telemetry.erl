%% @doc Measurements for the library telemetry. Let telemetry_poller call `{rekindle_telemetry, measure, []}'. Handshakes execute
%% no events.
-module(rekindle_telemetry).

-export([measure/0]).

-define(MEASURED, [
    sessions,
    max_sessions,
    bytes,
    max_bytes,
    templates,
    certificates,
    certified,
    lifetime,
    oldest,
    hits,
    misses,
    evicted_misses,
    lost_misses,
    unknown_misses,
    certificate_misses,
    inserts,
    expired,
    evicted,
    moved,
    refused,
    faults
]).

%% @doc Executes the event `[rekindle, scope]' once for each scope. The measurements are the numbers of
%% {@link rekindle_admin:info/0} that have a value, without those of journals, and the refused sessions by reason, such as
%% `refused_too_large'. The metadata are `role', `transport' and `scope'.
-spec measure() -> ok.
measure() ->
    %% In a variable, so that no tool reports a missing module: only some nodes have the library.
    Library = telemetry,
    lists:foreach(
        fun({Labels, Info}) ->
            Measurements = maps:filter(fun(_, Value) -> is_number(Value) end, maps:with(?MEASURED, Info)),
            Library:execute([rekindle, scope], maps:merge(Measurements, refused(Info)), Labels)
        end,
        rekindle_metrics:scopes()
    ).

refused(#{refused_by := By}) ->
    #{
        too_large := TooLarge,
        no_room := NoRoom,
        private_key := PrivateKey,
        layout := Layout,
        lifetime := Lifetime,
        certificate := Certificate
    } = By,
    #{
        refused_too_large => TooLarge,
        refused_no_room => NoRoom,
        refused_private_key => PrivateKey,
        refused_layout => Layout,
        refused_lifetime => Lifetime,
        refused_certificate => Certificate
    }.
