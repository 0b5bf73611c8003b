%% @private Calls that failed in the native library: counted, and logged at the 1st, 2nd, 4th, 8th … of a cache.
-module(rekindle_faults).

-export([library/0, note/5, with_uncounted/1]).

-include("rekindle_log.hrl").

-define(UNCOUNTED(Label), {?MODULE, Label}).

%% @doc As `rekindle_nif:loaded/0', also where the module itself is gone.
-spec library() -> ok | {error, {file:filename(), string()}}.
library() ->
    try
        rekindle_nif:loaded()
    catch
        error:undef -> {error, {"rekindle_nif.beam", "the module is not loaded"}}
    end.

%% @doc Takes note of the fault that is the cache's `Count'th: in the store's scope, and where the library does not
%% know the store (any more), under the scope's name.
-spec note(rekindle_nif:store() | unavailable, rekindle_admin:label() | term(), pos_integer(), atom(), term()) -> ok.
note(Store, Label, Count, Class, Reason) ->
    count(Store, Label, Reason),
    %% From a process of its own, because a log handler may block.
    _ = Count band (Count - 1) =:= 0 andalso spawn(fun() -> log(Count, Class, Reason) end),
    ok.

%% Where the module is gone, OTP would look for it in vain once more.
count(_Store, Label, undef) ->
    count_under(Label);
count(Store, Label, _Reason) ->
    try
        _ = rekindle_nif:count_fault(Store),
        ok
    catch
        error:_ -> count_under(Label)
    end.

%% Of faults that come first at the same time, one may stay uncounted.
count_under(Label) ->
    case persistent_term:get(?UNCOUNTED(Label), undefined) of
        undefined ->
            persistent_term:put(?UNCOUNTED(Label), counters:new(1, [write_concurrency])),
            count_under(Label);
        Counter ->
            counters:add(Counter, 1, 1)
    end.

%% @doc The scopes with the faults that the library could not count. Those of a name that several have, while a
%% listener is opened again, are the oldest's.
-spec with_uncounted([map()]) -> [map()].
with_uncounted(Infos) ->
    {Counted, _} = lists:mapfoldl(fun with_uncounted/2, #{}, Infos),
    Counted.

with_uncounted(#{scope := Label} = Info, Labels) when is_map_key(Label, Labels) ->
    {Info, Labels};
with_uncounted(#{scope := Label, faults := Faults} = Info, Labels) ->
    Uncounted =
        case persistent_term:get(?UNCOUNTED(Label), undefined) of
            undefined -> 0;
            Counter -> counters:get(Counter, 1)
        end,
    {Info#{faults := Faults + Uncounted}, Labels#{Label => true}}.

log(Count, Class, Reason) ->
    ?LOG_LINE(
        error, fault,
        "rekindle: a call failed in the native library (~ts:~ts), ~b so far in this cache",
        [Class, shown(Reason), Count]
    ).

%% Of a reason only what cannot hold any part of a session.
shown(nif_panicked) -> ["nif_panicked, last at ", rekindle_nif:last_panic()];
shown({not_loaded, rekindle_nif}) -> "not_loaded";
shown(Reason) when is_atom(Reason) -> atom_to_list(Reason);
shown(_) -> "...".
