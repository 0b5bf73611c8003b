%% @private The figures of scopes, and the reasons that they count by.
-module(rekindle_info).

-export([all/0, reasons/1]).

%% @doc See {@link rekindle_admin:info/0}.
-spec all() -> [rekindle_admin:info()].
all() ->
    [with_hit_rate(Info) || Info <- rekindle_faults:with_uncounted(rekindle_nif:info())].

with_hit_rate(#{hits := 0, misses := 0} = Info) -> Info#{hit_rate => undefined};
with_hit_rate(#{hits := Hits, misses := Misses} = Info) -> Info#{hit_rate => Hits / (Hits + Misses)}.

%% @doc The reasons that a map of {@link rekindle_admin:info()} counts by, in the order of the documentation.
-spec reasons(refused_by | certificate_misses_by | skipped) -> [atom()].
reasons(refused_by) -> [too_large, no_room, private_key, layout, lifetime, certificate];
reasons(certificate_misses_by) -> [expired, revoked, unknown];
reasons(skipped) -> [expired, revoked, full, suite, layout, key, template, forged, future, scope, log, version, malformed].
