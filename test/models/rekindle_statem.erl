%% @doc Random sequences of all callbacks, in several scopes and from several processes, against
%% `rekindle_store_model'. Runs in a node with the testing build of the native library.
-module(rekindle_statem).

-behaviour(proper_statem).

-include_lib("proper/include/proper.hrl").

-export([prop_answers_are_those_of_the_model/0, prop_one_server_cache/0, prop_one_client_cache/0]).
-export([initial_state/0, command/1, precondition/2, postcondition/3, next_state/3]).
-export([open/2, call/4, advance/1, reopen/1, leave/2]).
-export([open_sockets/0]).

-define(PLACES, [{tls, a}, {tls, b}, {dtls, c}]).
-define(LOCALHOST, {127, 0, 0, 1}).

-define(MAX_SESSIONS, 4).
-define(LIFETIME_S, 1000).

%% ---- the property ----

-spec prop_answers_are_those_of_the_model() -> proper:test().
prop_answers_are_those_of_the_model() ->
    prop_answers(commands(?MODULE)).

%% The same with one cache only, to see which session is evicted.
-spec prop_one_server_cache() -> proper:test().
prop_one_server_cache() ->
    prop_answers(commands(?MODULE, initial_state(nowhere))).

%% This also checks for how long, and by which process, a deleted session can be found.
-spec prop_one_client_cache() -> proper:test().
prop_one_client_cache() ->
    prop_answers(commands(?MODULE, initial_state(client))).

prop_answers(Type) ->
    ?FORALL(
        Commands,
        Type,
        begin
            %% References are given up with the processes of the last run.
            true = await_scopes(0),
            rekindle_property:holds(fun() -> run(Commands) end)
        end
    ).

run(Commands) ->
    Start = now_ms(),
    put(last_call_ended, Start),
    {History, _Model, Result} = run_commands(?MODULE, Commands),
    %% The model's clock stands while no command moves it: calls that were held up for a second tell nothing.
    Result =:= ok orelse get(last_call_ended) - Start > 900 orelse {Result, [Answer || {_, Answer} <- History]}.

now_ms() ->
    erlang:monotonic_time(millisecond).

initial_state() ->
    initial_state(everywhere).

initial_state(Places) ->
    rekindle_store_model:new(#{
        places => Places, max_sessions => ?MAX_SESSIONS, lifetime_ms => 1000 * ?LIFETIME_S
    }).

command(Model) ->
    case {rekindle_store_model:places(Model), rekindle_store_model:caches(Model)} of
        {everywhere, []} -> opening();
        {everywhere, Caches} -> frequency([{20, calling(Model, Caches)}, {3, opening()} | others(Model, Caches)]);
        {Place, []} -> {call, ?MODULE, open, [Place, unnamed]};
        {nowhere, [Cache]} -> alone(Cache, evicting());
        {client, [Cache]} -> alone(Cache, deleting())
    end.

opening() ->
    {call, ?MODULE, open, [frequency([{1, nowhere}, {2, client}, {5, place()}]), oneof([named, unnamed])]}.

%% One place comes more often, so that it is shared and opened again.
place() ->
    frequency([{4, {tls, a}}, {1, {tls, b}}, {1, {dtls, c}}]).

calling(Model, Caches) ->
    ?LET(
        Cache,
        oneof(Caches),
        {call, ?MODULE, call, [Cache, oneof(rekindle_store_model:callers(Model, Cache)), fault(), operation()]}
    ).

alone(Cache, Operation) ->
    frequency([{10, {call, ?MODULE, call, [Cache, other, none, Operation]}}, {1, advancing()}]).

evicting() ->
    Session = {session, otp_27, frequency([{3, unverified}, {1, verified}]), serial()},
    frequency([{10, {update, id(), Session}}, {5, {lookup, id()}}, {1, {delete, id()}}, {3, fold}]).

deleting() ->
    Key = {{"a", 443}, ?LET(N, range(1, 3), <<N:256>>)},
    frequency([{3, {update, Key, value()}}, {3, {delete, Key}}, {6, {lookup, Key}}, {2, {select, {"a", 443}}}]).

advancing() ->
    {call, ?MODULE, advance, [oneof([4_000, 5_000, 400_000, 600_000, 1_000_000])]}.

others(Model, Caches) ->
    [
        {1, advancing()},
        {2, {call, ?MODULE, reopen, [place()]}},
        {1,
            ?LET(
                Cache,
                oneof(Caches),
                {call, ?MODULE, leave, [Cache, oneof(rekindle_store_model:callers(Model, Cache))]}
            )}
    ].

fault() ->
    frequency([{20, none}, {1, panic}, {1, refusal}]).

operation() ->
    frequency([
        {6, {update, key(), value()}},
        {6, {lookup, key()}},
        {2, {delete, key()}},
        {1, {select, partial_key()}},
        {2, size},
        {1, fold},
        {1, ?SHRINK(oneof([size, terminate]), [size])}
    ]).

key() ->
    frequency([{5, id()}, {4, {partial_key(), id()}}]).

partial_key() ->
    oneof([{"a", 443}, {"b", 443}, 443]).

id() ->
    ?LET(N, range(1, 6), <<N:256>>).

value() ->
    frequency([
        {5, {session, oneof(rekindle_sessions:layouts()), oneof([verified, unverified]), serial()}},
        {1, {misfit, oneof(rekindle_sessions:layouts()), oneof([verified, unverified]), serial()}},
        {2, {plain, serial()}}
    ]).

serial() ->
    range(0, 16#FFFF).

precondition(Model, {call, _, call, [Cache, Caller, _, _]}) ->
    lists:member(Caller, rekindle_store_model:callers(Model, Cache));
precondition(Model, {call, _, leave, [Cache, Caller]}) ->
    lists:member(Caller, rekindle_store_model:callers(Model, Cache));
precondition(_, _) ->
    true.

next_state(Model, Cache, {call, _, open, [Place, Naming]}) ->
    rekindle_store_model:open(Model, Cache, Place, Naming);
next_state(Model, _, {call, _, call, [Cache, Caller, Fault, Operation]}) ->
    {_, Next} = rekindle_store_model:call(Model, Cache, Caller, Fault, Operation),
    Next;
next_state(Model, _, {call, _, advance, [Ms]}) ->
    rekindle_store_model:advance(Model, Ms);
next_state(Model, _, {call, _, reopen, [Place]}) ->
    rekindle_store_model:reopen(Model, Place);
next_state(Model, _, {call, _, leave, [Cache, Caller]}) ->
    rekindle_store_model:leave(Model, Cache, Caller).

postcondition(Model, {call, _, call, [Cache, Caller, Fault, Operation]}, Outcome) ->
    {Check, _} = rekindle_store_model:call(Model, Cache, Caller, Fault, Operation),
    Check(Outcome);
postcondition(Model, {call, _, leave, [Cache, Caller]}, _) ->
    Open = rekindle_store_model:scopes(rekindle_store_model:leave(Model, Cache, Caller)),
    await_scopes(Open);
postcondition(Model, {call, _, open, _} = Call, Cache) ->
    length(rekindle_admin:info()) =:= rekindle_store_model:scopes(next_state(Model, Cache, Call));
postcondition(_, _, _) ->
    true.

%% ---- what is tested ----

%% @doc Opens the sockets of the places. They stay open while the node lives.
-spec open_sockets() -> ok.
open_sockets() ->
    Self = self(),
    Pid = spawn(fun() ->
        true = register(?MODULE, self()),
        [listen(Place, 0) || Place <- ?PLACES],
        Self ! {open, self()},
        keep_sockets()
    end),
    receive
        {open, Pid} -> ok
    end.

keep_sockets() ->
    receive
        {reopen, Place, From} ->
            {Socket, Port} = erase(Place),
            ok = inet:close(Socket),
            listen(Place, Port),
            From ! {reopened, Place};
        {where, Place, From} ->
            From ! {there, Place, get(Place)}
    end,
    keep_sockets().

listen({Transport, _} = Place, Port) ->
    {ok, Socket} =
        case Transport of
            tls -> gen_tcp:listen(Port, [{ip, ?LOCALHOST}, {reuseaddr, true}]);
            dtls -> gen_udp:open(Port, [{ip, ?LOCALHOST}])
        end,
    {ok, Bound} = inet:port(Socket),
    put(Place, {Socket, Bound}).

reopen(Place) ->
    ?MODULE ! {reopen, Place, self()},
    receive
        {reopened, Place} -> ok
    end.

where(Place) ->
    ?MODULE ! {where, Place, self()},
    receive
        {there, Place, Where} -> Where
    end.

%% A cache as it is passed around here: the process that opened it, as OTP's would, and another one that
%% has it from there, and is a connection's where it is a client's. Nobody else has the reference.
open(Place, Naming) ->
    Self = self(),
    {Owner, Monitor} = spawn_monitor(fun() ->
        Cache = rekindle:init(options(Place, Naming)),
        Other = spawn(fun() ->
            put(ssl_manager, ssl_manager),
            serve(Cache, monitor(process, Self))
        end),
        Self ! {open, self(), Other},
        serve(Cache, monitor(process, Self))
    end),
    receive
        {open, Owner, Other} ->
            demonitor(Monitor, [flush]),
            {Owner, Other};
        {'DOWN', Monitor, process, Owner, Reason} ->
            error({init, Reason})
    end.

options(client, _) ->
    [{role, client}];
options(nowhere, _) ->
    [{role, server} | bounds()];
options(Place, Naming) ->
    {Socket, _} = where(Place),
    _ = erlang:monitor(port, Socket),
    [{role, server}, {scope, scope(Naming)} | bounds()].

scope(unnamed) -> listener;
scope(named) -> maps:from_list([{element(2, where(Place)), name} || Place <- ?PLACES]).

bounds() ->
    [{max_sessions, ?MAX_SESSIONS}, {lifetime, ?LIFETIME_S}].

serve(Cache, Run) ->
    receive
        {call, From, Fault, Operation} ->
            From ! {self(), rekindle_call:outcome(Cache, Fault, Operation)},
            serve(Cache, Run);
        {'DOWN', Run, process, _, _} ->
            ok
    end.

call(Cache, Caller, Fault, Operation) ->
    Pid = process(Cache, Caller),
    Pid ! {call, self(), Fault, Operation},
    receive
        {Pid, Outcome} ->
            put(last_call_ended, now_ms()),
            Outcome
    end.

process({Owner, _}, owner) -> Owner;
process({_, Other}, other) -> Other.

advance(Ms) ->
    _ = rekindle_nif:advance_clock(Ms),
    ok.

leave(Cache, Caller) ->
    Pid = process(Cache, Caller),
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    end.

%% References are given up when the processes' heaps are, some time after they have ended.
await_scopes(Number) ->
    await_scopes(Number, 1000).

await_scopes(Number, Tries) ->
    case length(rekindle_admin:info()) of
        Number ->
            true;
        _ when Tries > 0 ->
            timer:sleep(10),
            await_scopes(Number, Tries - 1);
        _ ->
            false
    end.
