%% @doc Checks what must hold in whatever order several processes make their calls: no call raises; no call returns an expired
%% session, a session of another key or scope, or one with a private key; and the bounds are kept.
%%
%% Runs in a node with the testing build of the native library.
-module(rekindle_concurrency).

-include_lib("proper/include/proper.hrl").

-export([prop_promises_hold/0]).

-define(LIFETIME_S, 1000).
-define(MAX_SESSIONS, 5).
-define(MAX_BYTES, 40_000).

%% One process opens each cache, and all use it.
-define(CACHES, [small, narrow, client, client]).

-spec prop_promises_hold() -> proper:test().
prop_promises_hold() ->
    ?FORALL(
        Scripts,
        [list(step()) || _ <- ?CACHES],
        rekindle_property:holds(fun() -> run(Scripts) end)
    ).

step() ->
    frequency([
        {30, {range(1, length(?CACHES)), operation()}},
        {1, {advance, oneof([300_000, 400_000])}},
        {1, garbage_collect},
        {1, die}
    ]).

operation() ->
    frequency([
        {6, {update, key(), oneof(rekindle_sessions:layouts()), oneof([verified, unverified])}},
        {1, {fill, range(1, 400)}},
        {6, {lookup, key()}},
        {2, {delete, key()}},
        {1, {select, partial_key()}},
        {1, size},
        {1, fold},
        {1, terminate}
    ]).

key() ->
    oneof([id(), {partial_key(), id()}]).

partial_key() ->
    oneof([{"a", 443}, {"b", 443}]).

id() ->
    ?LET(N, range(1, 8), <<N:256>>).

%% ---- a run ----

run(Scripts) ->
    Stored = ets:new(stored, [public]),
    Self = self(),
    Workers = [
        spawn_monitor(fun() -> work(Self, Kind, Stored, Script) end)
     || {Kind, Script} <- lists:zip(?CACHES, Scripts)
    ],
    Caches = [
        receive
            {cache, Pid, Cache} -> Cache
        end
     || {Pid, _} <- Workers
    ],
    [Pid ! {caches, Caches} || {Pid, _} <- Workers],
    Ends = [
        receive
            {'DOWN', Monitor, process, _, Reason} -> Reason
        end
     || {_, Monitor} <- Workers
    ],
    case [{ended, Reason} || Reason <- Ends, Reason =/= done] ++ over_bounds(Caches) of
        [] -> true;
        Broken -> Broken
    end.

%% By now no process is within a call.
over_bounds(Caches) ->
    Sizes = [rekindle:size(Cache) || {small, _, Cache} <- Caches],
    [{size, Size} || Size <- Sizes, Size > ?MAX_SESSIONS] ++
        [Info || #{role := server, bytes := Bytes, max_bytes := Max} = Info <- rekindle_admin:info(), Bytes > Max].

work(Parent, Kind, Stored, Script) ->
    Parent ! {cache, self(), {Kind, self(), rekindle:init(options(Kind))}},
    receive
        {caches, Caches} -> [step(Step, Caches, Stored) || Step <- Script]
    end,
    exit(done).

options(client) -> [{role, client}];
options(small) -> [{role, server}, {max_sessions, ?MAX_SESSIONS}, {lifetime, ?LIFETIME_S}];
options(narrow) -> [{role, server}, {max_bytes, ?MAX_BYTES}, {max_sessions, infinity}, {lifetime, ?LIFETIME_S}].

step({advance, Ms}, _, _) ->
    rekindle_nif:advance_clock(Ms);
step(garbage_collect, _, _) ->
    garbage_collect();
step(die, _, _) ->
    exit(done);
step({Number, Operation}, Caches, Stored) ->
    {Kind, Owner, Cache} = lists:nth(Number, Caches),
    From = rekindle_call:otp_now(),
    do(
        Operation,
        Cache,
        fun(Key, Session) -> true = is_promised({Kind, Owner}, Key, Session, From, Stored) end,
        {Kind, Owner, Stored}
    ).

do({update, Key, Layout, Verified}, Cache, _, {Kind, Owner, Stored}) ->
    Number = erlang:unique_integer([positive]),
    Value = {session, Layout, Verified, Number},
    true = ets:insert(Stored, {Number, {Kind, Owner}, Key, Value, not_yet}),
    ok = rekindle:update(Cache, Key, rekindle_sessions:make(Value, Key)),
    ets:update_element(Stored, Number, {5, rekindle_call:otp_now()});
do({fill, Count}, Cache, Check, About) ->
    [do({update, crypto:strong_rand_bytes(32), otp_27, unverified}, Cache, Check, About) || _ <- lists:seq(1, Count)];
do({lookup, Key}, Cache, Check, {_, Owner, _}) ->
    case rekindle:lookup(Cache, Key) of
        undefined -> ok;
        Session -> (Owner =:= self() andalso rekindle_sessions:is_stub(Session, Key)) orelse Check(Key, Session)
    end;
do({delete, Key}, Cache, _, _) ->
    ok = rekindle:delete(Cache, Key);
do({select, Partial}, Cache, Check, {Kind, _, _}) ->
    Sessions = rekindle:select_session(Cache, Partial),
    true = Kind =:= client orelse Sessions =:= [],
    [Check({Partial, rekindle_sessions:id(Session)}, Session) || Session <- Sessions];
do(size, Cache, _, {Kind, Owner, _}) ->
    Size = rekindle:size(Cache),
    true =
        case Kind of
            client -> Size >= 0;
            _ when Owner =:= self() -> Size =:= 0 orelse Size =:= 1;
            %% One that takes the place of another is there before that one goes.
            small -> Size =< ?MAX_SESSIONS + 1;
            %% Each session takes at least this much.
            narrow -> Size =< ?MAX_BYTES div 104
        end;
do(fold, Cache, Check, _) ->
    ok = rekindle:foldl(
        fun({Key, Session}, ok) ->
            Check(Key, Session),
            ok
        end,
        ok,
        Cache
    );
do(terminate, Cache, _, _) ->
    ok = rekindle:terminate(Cache).

%% It was stored there under that key, and had not expired when the call began.
is_promised({Kind, _} = Where, Key, Session, From, Stored) ->
    [{_, Where, Key, Value, At}] = ets:lookup(Stored, rekindle_sessions:number(Session)),
    case Kind of
        client ->
            Session =:= rekindle_sessions:make(Value, Key);
        _ ->
            rekindle_sessions:is_without_key(Session, Value, Key) andalso
                (At =:= not_yet orelse From - At < erlang:convert_time_unit(?LIFETIME_S, second, native))
    end.
