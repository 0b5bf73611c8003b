%% @doc A model of OTP's book-keeping of sessions, which calls the callbacks at random. Whatever the store evicts, expires or
%% refuses, and whatever fails in it, OTP's processes must not crash.
%%
%% The model follows `ssl_server_session_cache', `ssl_manager' and `ssl_session' of OTP 25 (ssl 10.8.7), 27 (11.2.12) and
%% 29 (11.7.8). The server's rules are the same in the three. The client's are the same in 25 and 27; in 29
%% the manager forgets its note of a session that is registered again under its key. Between the releases
%% the session record differs as well.
%%
%% Runs in a node with the testing build of the native library.
-module(rekindle_otp_model).

-include_lib("proper/include/proper.hrl").

-export([prop_server_cache_process_lives_on/0, prop_client_manager_lives_on/0]).
-export([server_env/0, set_server_env/1, store_lifetime/1, maximum/0, id/0, kind/0, partial_key/0, age/1]).

-import(rekindle_sessions, [internal_id/1]).

%% The state of OTP's process, and what the model knows beside it.
-record(state, {
    release :: 25 | 27 | 29,
    cache,
    %% The value that OTP's process has read. ssl's environment may have another one by now.
    max,
    %% `session_lifetime', in seconds.
    lifetime,
    %% OTP's `session_order': internal id to key.
    order = gb_trees:empty(),
    %% Messages that `ssl_manager' has not yet come to.
    inbox = [],
    %% The sessions that a lookup of a key may return: the value, and when it was registered.
    known = #{},
    %% The session that a client has offered to a server, and when.
    offered = none,
    %% How long the store keeps a session, in seconds, and whether it may drop one before.
    store_lifetime = infinity,
    bounded = false,
    %% The options of the server's cache.
    options = [],
    %% Whether the server's process was made to ask for the size without a session to register.
    asked = false,
    %% Whether a call has failed.
    faulty = false,
    %% Whether a session was registered under a key that had one.
    repeated = false
}).

%% How long a deleted session can still be found by a connection that offered it.
-define(LINGER_S, 5).

%% ---- the server's process ----

-spec prop_server_cache_process_lives_on() -> proper:test().
prop_server_cache_process_lives_on() ->
    ?FORALL(
        {Release, Env, Actions},
        {release(), server_env(), list({server_action(), faults()})},
        rekindle_property:holds(fun() ->
            is_record(lists:foldl(fun server/2, start_server(Release, Env), Actions), state)
        end)
    ).

server_env() ->
    ?LET(
        {Max, SslLifetime, MaxSessions, Lifetime},
        {maximum(), oneof([0, 1000, 1000, 1000]), oneof([1, 3, infinity]), oneof([unset, 2000, 300])},
        #{max => Max, ssl_lifetime => SslLifetime, max_sessions => MaxSessions, lifetime => Lifetime}
    ).

%% OTP's process does not survive 0, and is not started with it.
maximum() ->
    oneof([1, 2, 5, 1000, -1, 1 bsl 70, -1 bsl 70]).

server_action() ->
    frequency([
        {6, {register, id(), kind()}},
        {5, {reuse, id()}},
        {1, {advance, oneof([300_000, 400_000])}},
        {2, {set_max, oneof([0, maximum(), infinity])}},
        {1, {restart, maximum()}},
        {1, ask_size},
        %% An operator, or another listener that shares the scope.
        {1, {elsewhere, oneof([{delete, id()}, {update, id(), kind()}, size, terminate])}}
    ]).

%% Returns the rest of it: the options.
set_server_env(#{max := Max, ssl_lifetime := SslLifetime, max_sessions := MaxSessions, lifetime := Lifetime}) ->
    application:set_env(ssl, session_cache_server_max, Max),
    application:set_env(ssl, session_lifetime, SslLifetime),
    [{max_sessions, MaxSessions} | [{lifetime, Lifetime} || Lifetime =/= unset]].

start_server(Release, Env) ->
    #{max := Max, ssl_lifetime := SslLifetime, max_sessions := MaxSessions} = Env,
    Options = [{role, server} | set_server_env(Env)],
    #state{
        release = Release,
        cache = rekindle:init(Options),
        options = Options,
        max = Max,
        lifetime = SslLifetime,
        store_lifetime = store_lifetime(Env),
        bounded = MaxSessions =/= infinity
    }.

%% How long the store keeps a session, in seconds.
store_lifetime(#{ssl_lifetime := 0}) -> 0;
store_lifetime(#{ssl_lifetime := SslLifetime, lifetime := unset}) -> SslLifetime;
store_lifetime(#{lifetime := Lifetime}) -> Lifetime.

server({Action, Faults}, State0) ->
    put(faults, Faults),
    #state{order = Order} = State = server_action(Action, State0),
    %% The one entry of docs/otp.md.
    true = gb_trees:size(Order) =< 1,
    State.

server_action({register, Id, Kind}, #state{max = Max, order = Order0} = State) ->
    Stamp = rekindle_call:otp_now(),
    InternalId = {Stamp, erlang:unique_integer([monotonic])},
    {Value, Session} = session(State, Id, Kind, InternalId),
    Order =
        case call(State, size) of
            Max ->
                {_, Oldest, Rest} = gb_trees:take_smallest(Order0),
                ok = call(State, {delete, Oldest}),
                Rest;
            Size when Size > 0 ->
                {_, Oldest, Rest} = gb_trees:take_smallest(Order0),
                case is_valid(call(State, {lookup, Oldest}), State) of
                    true ->
                        Order0;
                    false ->
                        ok = call(State, {delete, Oldest}),
                        Rest
                end;
            0 ->
                Order0
        end,
    store(Id, Value, Session, fun call/2, State#state{
        order = gb_trees:insert(InternalId, Id, Order), asked = false
    });
server_action({reuse, Id}, #state{order = Order, asked = Asked} = State) ->
    From = rekindle_call:otp_now(),
    Fault = next_fault(),
    Found = call(State, {lookup, Id}),
    (Asked andalso rekindle_sessions:is_stub(Found, Id)) orelse check_lookup(Id, Found, From, Fault, State),
    case Found of
        undefined ->
            State;
        Session ->
            case is_valid(Session, State) of
                true ->
                    State;
                false ->
                    ok = call(State, {delete, Id}),
                    State#state{order = gb_trees:delete(internal_id(Session), Order), asked = false}
            end
    end;
server_action({set_max, Max}, State) ->
    application:set_env(ssl, session_cache_server_max, Max),
    State;
server_action({restart, Max}, #state{options = Options} = State) ->
    %% By OTP's supervisor, which keeps the maximum.
    application:set_env(ssl, session_cache_server_max, Max),
    State#state{cache = rekindle:init(Options), order = gb_trees:empty(), known = #{}, asked = false};
server_action(ask_size, State) ->
    %% No process of OTP does this.
    _ = call(State, size),
    State#state{asked = true};
server_action({advance, Ms}, State) ->
    _ = rekindle_nif:advance_clock(Ms),
    State;
server_action({elsewhere, {update, Id, Kind}}, State) ->
    {Value, Session} = session(State, Id, Kind, {rekindle_call:otp_now(), 0}),
    store(Id, Value, Session, fun elsewhere/2, State);
server_action({elsewhere, Operation}, #state{known = Known} = State) ->
    Fault = next_fault(),
    _ = elsewhere(State, Operation),
    State#state{
        known =
            case Operation of
                {delete, Id} when Fault =:= none -> maps:remove(Id, Known);
                terminate when Fault =:= none -> #{};
                _ -> Known
            end
    }.

%% The result is the session of that id, young enough, and is not missing if it must be there.
check_lookup(Id, Found, From, Fault, #state{known = Known, bounded = Bounded} = State) ->
    case {Found, Known} of
        {undefined, #{Id := {_, At}}} when Fault =:= none, not Bounded ->
            true = age(At) >= State#state.store_lifetime;
        {undefined, _} ->
            ok;
        {_, #{Id := {Value, At}}} ->
            true = age(At) < State#state.store_lifetime,
            true = rekindle_sessions:is_handed_out(Found, Value, Id, From, rekindle_call:otp_now())
    end.

%% ---- the client's manager ----

-spec prop_client_manager_lives_on() -> proper:test().
prop_client_manager_lives_on() ->
    ?FORALL(
        {Release, Max, Actions},
        {release(), oneof([0, 1, 3, 1000]), list({client_action(), faults()})},
        rekindle_property:holds(fun() ->
            books_agree(lists:foldl(fun client/2, start_client(Release, Max), Actions))
        end)
    ).

client_action() ->
    frequency([
        {8, {register, oneof([true, unique]), partial_key(), id(), kind()}},
        {2, {invalidate, partial_key(), id()}},
        {1, validate},
        {3, next_message},
        {1, {advance, oneof([300_000, 400_000])}},
        {2, {offer, partial_key()}},
        {2, agree}
    ]).

partial_key() ->
    oneof([{"a", 443}, {"b", 443}]).

start_client(Release, Max) ->
    #state{release = Release, cache = rekindle:init([{role, client}]), max = Max, lifetime = 1000}.

client({Action, Faults}, State) ->
    put(faults, Faults),
    client_action(Action, State#state{faulty = State#state.faulty orelse Faults =/= []}).

%% If nothing has failed since the last registration, the store holds the sessions in OTP's order, and no more than it may.
books_agree(#state{faulty = true}) ->
    true;
books_agree(#state{order = Order, max = Max, repeated = Repeated} = State) ->
    put(faults, []),
    Sessions = [Session || {_, Session} <- elsewhere(State, fold)],
    elsewhere(State, size) =:= length(Sessions) andalso (Repeated orelse length(Sessions) =< Max) andalso
        lists:all(fun(Session) -> gb_trees:is_defined(internal_id(Session), Order) end, Sessions).

client_action({register, Save, Partial, Id, Kind}, State) ->
    Stamp = rekindle_call:otp_now(),
    {_, Session} = session(State, Id, Kind, {Stamp, 0}),
    Selected = [call(State, {select, Partial}) || Save =:= unique],
    case lists:any(fun(Other) -> is_equivalent(Session, Other) end, lists:append(Selected)) of
        true -> State;
        false -> register_client(Stamp, {Partial, Id}, Session, State)
    end;
client_action({invalidate, Partial, Id}, #state{inbox = Inbox} = State) ->
    State#state{inbox = Inbox ++ [{Partial, Id}]};
client_action(validate, #state{inbox = Inbox} = State) ->
    Old = [Key || {Key, Session} <- elsewhere(State, fold), not is_valid(Session, State)],
    State#state{inbox = Inbox ++ Old};
client_action(next_message, #state{inbox = []} = State) ->
    State;
client_action(next_message, #state{inbox = [Key | Inbox], order = Order} = State) ->
    case call(State, {lookup, Key}) of
        undefined ->
            State#state{inbox = Inbox};
        Session ->
            ok = call(State, {delete, Key}),
            State#state{inbox = Inbox, order = gb_trees:delete(internal_id(Session), Order)}
    end;
client_action({advance, Ms}, State) ->
    _ = rekindle_nif:advance_clock(Ms),
    State;
client_action({offer, Partial}, State) ->
    Connection = connection(),
    case through(Connection, State, {select, Partial}) of
        [] ->
            State;
        [Newest | _] = Sessions ->
            true = lists:all(fun(Session) -> internal_id(Session) =< internal_id(Newest) end, Sessions),
            State#state{offered = {{Partial, rekindle_sessions:id(Newest)}, rekindle_call:otp_now(), Connection}}
    end;
client_action(agree, #state{offered = none} = State) ->
    State;
client_action(agree, #state{offered = {Key, At, Connection}} = State) ->
    %% The connection fails if the session is gone already.
    true = next_fault() =/= none orelse age(At) >= ?LINGER_S orelse is_tuple(through(Connection, State, {lookup, Key})),
    State#state{offered = none}.

register_client(Stamp, Key, Session0, #state{max = Max} = State) ->
    InternalId = {Stamp, erlang:unique_integer([monotonic])},
    {_, Unique} = InternalId,
    Session = rekindle_sessions:put_stamps(Session0, Stamp, Unique),
    Faulty = get(faults) =/= [],
    try
        Order1 = without_stale_note(Key, State),
        Order2 =
            case call(State, size) of
                Max ->
                    {_, Oldest, Rest} = gb_trees:take_smallest(Order1),
                    ok = call(State, {delete, Oldest}),
                    Rest;
                _ ->
                    Order1
            end,
        ok = call(State, {store, Key, Session}),
        State#state{
            order = gb_trees:insert(InternalId, Key, Order2),
            faulty = Faulty,
            repeated = State#state.repeated orelse lists:member(Key, gb_trees:values(Order2))
        }
    catch
        _:_ ->
            _ = call(State, terminate),
            %% Without a role.
            State#state{
                cache = rekindle:init([]), order = gb_trees:empty(), offered = none, faulty = Faulty, repeated = false
            }
    end.

without_stale_note(Key, #state{release = 29, order = Order} = State) ->
    case call(State, {lookup, Key}) of
        undefined -> Order;
        Session -> gb_trees:delete_any(internal_id(Session), Order)
    end;
without_stale_note(_, #state{order = Order}) ->
    Order.

%% OTP compares more, all of which is the same here.
is_equivalent(Session, Other) ->
    [element(Place, Session) || Place <- [4, 5]] =:= [element(Place, Other) || Place <- [4, 5]].

%% ---- both ----

release() ->
    oneof([25, 27, 29]).

%% The faults of the first calls that the action makes.
faults() ->
    frequency([{4, []}, {1, list(oneof([none, panic, refusal]))}]).

id() ->
    ?LET(N, range(1, 4), <<N:256>>).

kind() ->
    {oneof([verified, unverified]), range(0, 16#FFFF)}.

layout(#state{release = 25}) -> otp_25;
layout(#state{release = 27}) -> otp_27;
layout(#state{release = 29}) -> otp_29_1_2.

session(State, Id, {Verified, Number}, {Stamp, Unique}) ->
    Value = {session, layout(State), Verified, Number},
    {Value, rekindle_sessions:put_stamps(rekindle_sessions:make(Value, Id), Stamp, Unique)}.

is_valid(Session, #state{lifetime = Lifetime} = State) ->
    rekindle_sessions:is_valid(layout(State), Session, {rekindle_call:otp_now(), Lifetime}).

age(Since) ->
    erlang:convert_time_unit(rekindle_call:otp_now() - Since, native, second).

store(Id, Value, Session, Call, #state{known = Known} = State) ->
    Fault = next_fault(),
    ok = Call(State, {store, Id, Session}),
    case Fault of
        none -> State#state{known = Known#{Id => {Value, rekindle_sessions:stamp(Session)}}};
        _ -> State
    end.

next_fault() ->
    case get(faults) of
        [] -> none;
        [Fault | _] -> Fault
    end.

take_fault() ->
    case get(faults) of
        [] ->
            none;
        [Fault | Others] ->
            put(faults, Others),
            Fault
    end.

%% Calls as OTP's process.
call(#state{cache = Cache}, Operation) ->
    case rekindle_call:outcome(Cache, take_fault(), Operation) of
        {_, {raised, Class, Reason}, _} -> erlang:Class(Reason);
        {_, Answer, _} -> Answer
    end.

%% A process that looks like one of OTP's connections. It ends with the run.
connection() ->
    spawn_link(fun() ->
        put(ssl_manager, ssl_manager),
        serve()
    end).

serve() ->
    receive
        {call, From, Fault, State, Operation} ->
            put(faults, [Fault]),
            From ! {self(), call(State, Operation)},
            serve()
    end.

through(Connection, State, Operation) ->
    Connection ! {call, self(), take_fault(), State, Operation},
    receive
        {Connection, Answer} -> Answer
    end.

%% Calls as another process.
elsewhere(State, Operation) ->
    Fault = take_fault(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        put(faults, [Fault]),
        exit({answer, call(State, Operation)})
    end),
    receive
        {'DOWN', Monitor, process, Pid, Reason} ->
            {answer, Answer} = Reason,
            Answer
    end.
