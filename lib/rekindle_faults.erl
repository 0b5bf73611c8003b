%% @private Counts calls that failed in the native library, and logs the 1st, 2nd, 4th, 8th … of a cache.
-module(rekindle_faults).

-export([library/0, note/5, with_uncounted/1]).

-include("rekindle_log.hrl").

-define(UNCOUNTED(Scope), {?MODULE, Scope}).

%% @doc Same as `rekindle_nif:loaded/0', and also works if that module is unloaded.
-spec library() -> ok | {error, {file:filename(), string()}}.
library() ->
    try
        rekindle_nif:loaded()
    catch
        error:undef -> {error, {"rekindle_nif.beam", "the module is not loaded"}}
    end.

%% @doc Counts the fault in the store's scope, or under the scope's name if the library does not know the store (any more).
%% `Count' is how many faults the cache has had.
-spec note(rekindle_nif:store() | unavailable, rekindle_admin:scope_name() | term(), pos_integer(), atom(), term()) -> ok.
note(Store, Scope, Count, Class, Reason) ->
    count(Store, Scope, Reason),
    %% A process of its own logs, because a log handler may block.
    _ = Count band (Count - 1) =:= 0 andalso spawn(fun() -> log(Count, Class, Reason) end),
    ok.

%% If the module is unloaded, another call would make the code server search for it again.
count(_Store, Scope, undef) ->
    count_under(Scope);
count(Store, Scope, _Reason) ->
    try
        _ = rekindle_nif:count_fault(Store),
        ok
    catch
        error:_ -> count_under(Scope)
    end.

%% If the first faults of two processes come at the same time, one of them may not be counted.
count_under(Scope) ->
    case persistent_term:get(?UNCOUNTED(Scope), undefined) of
        undefined ->
            persistent_term:put(?UNCOUNTED(Scope), counters:new(1, [write_concurrency])),
            count_under(Scope);
        Counter ->
            counters:add(Counter, 1, 1)
    end.

%% @doc Adds the faults that the library could not count to the scopes. If several scopes have one name, because a listener was
%% opened again, the oldest one gets them.
-spec with_uncounted([map()]) -> [map()].
with_uncounted(Infos) ->
    {Counted, _} = lists:mapfoldl(fun with_uncounted/2, #{}, Infos),
    Counted.

with_uncounted(#{scope := Scope} = Info, Scopes) when is_map_key(Scope, Scopes) ->
    {Info, Scopes};
with_uncounted(#{scope := Scope, faults := Faults} = Info, Scopes) ->
    Uncounted =
        case persistent_term:get(?UNCOUNTED(Scope), undefined) of
            undefined -> 0;
            Counter -> counters:get(Counter, 1)
        end,
    {Info#{faults := Faults + Uncounted}, Scopes#{Scope => true}}.

log(Count, Class, Reason) ->
    ?LOG_LINE(
        error,
        fault,
        "rekindle: a call failed in the native library (~ts:~ts), ~b so far in this cache",
        [Class, shown(Reason), Count]
    ).

%% Shows only reasons that cannot contain a part of a session.
shown(nif_panicked) -> ["nif_panicked, last at ", rekindle_nif:last_panic()];
shown({not_loaded, rekindle_nif}) -> "not_loaded";
shown(Reason) when is_atom(Reason) -> atom_to_list(Reason);
shown(_) -> "...".
