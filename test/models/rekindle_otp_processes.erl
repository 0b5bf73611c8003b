%% @doc Drives OTP's own processes, with Rekindle as their callback, by the messages that connections send: the cache process of a
%% listener, and `ssl_manager'. They must not crash.
%%
%% The messages are the same in OTP 25, 27 and 29. Runs in a node with the testing build of the native library.
-module(rekindle_otp_processes).

-include_lib("proper/include/proper.hrl").

-export([prop_the_cache_process_stays/0, prop_the_manager_stays/0]).

-import(rekindle_otp_model, [
    server_env/0, set_server_env/1, store_lifetime/1, maximum/0, id/0, kind/0, partial_key/0, age/1
]).

-define(INTERNAL_ID, 3).

%% ---- the cache process of a listener ----

-spec prop_the_cache_process_stays() -> proper:test().
prop_the_cache_process_stays() ->
    ?FORALL(
        {Env, Actions},
        ?LET(Env, server_env(), {Env, list(server_action(store_lifetime(Env)))}),
        rekindle_property:holds(fun() ->
            ok = rekindle_nif:inject_fault(none),
            %% It may have ended with a cache process that a former run broke.
            {ok, _} = application:ensure_all_started(ssl),
            application:set_env(ssl, session_cb_init_args, set_server_env(Env)),
            {ok, Listener} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
            {ok, Cache} = ssl_server_session_cache_sup:start_child(Listener),
            _ = lists:foldl(fun(Action, Known) -> server(Action, Cache, Known) end, #{}, Actions),
            %% It is the same process.
            gb_trees:size(order(Cache)) =< 1
        end)
    ).

server_action(Lifetime) ->
    frequency([
        {6, {register, id(), kind()}},
        {1, {register_others, range(1, 50)}},
        {5, {reuse, id(), Lifetime}},
        {1, new_session_id},
        {1, {advance, oneof([300_000, 400_000])}},
        {1, {set_max, oneof([0, maximum(), infinity])}},
        {1, {elsewhere, oneof([{delete, id()}, size, terminate])}},
        {2, {fault, oneof([panic, refusal]), range(0, 4)}}
    ]).

%% `Known' is what was registered last under an id, and when.
server({register, Id, {Verified, Number}}, Cache, Known) ->
    Value = {session, rekindle_sessions:host_layout(), Verified, Number},
    ok = ssl_server_session_cache:register_session(Cache, session(Value, Id)),
    Known#{Id => [{Value, rekindle_call:otp_now()} | maps:get(Id, Known, [])]};
server({register_others, Count}, Cache, Known) ->
    Value = {session, rekindle_sessions:host_layout(), unverified, 0},
    Ids = [crypto:strong_rand_bytes(32) || _ <- lists:seq(1, Count)],
    [ok = ssl_server_session_cache:register_session(Cache, session(Value, Id)) || Id <- Ids],
    Known;
server({reuse, Id, Lifetime}, Cache, Known) ->
    From = rekindle_call:otp_now(),
    case ssl_server_session_cache:reuse_session(Cache, Id) of
        not_reusable ->
            ok;
        Session ->
            true = lists:any(
                fun({Value, At}) ->
                    age(At) < Lifetime andalso
                        rekindle_sessions:is_handed_out(Session, Value, Id, From, rekindle_call:otp_now())
                end,
                maps:get(Id, Known, [])
            )
    end,
    Known;
server(new_session_id, Cache, Known) ->
    <<_:32/binary>> = ssl_server_session_cache:new_session_id(Cache),
    Known;
server({advance, Ms}, Cache, Known) ->
    %% The process handles messages in order, so earlier sessions are registered.
    _ = sys:get_state(Cache),
    _ = rekindle_nif:advance_clock(Ms),
    Known;
server({set_max, Max}, _Cache, Known) ->
    application:set_env(ssl, session_cache_server_max, Max),
    Known;
server({elsewhere, Operation}, Cache, Known) ->
    [Reference] = [Field || Field <- state(Cache), is_tuple(Field), element(1, Field) =:= server],
    _ = rekindle_call:outcome(Reference, none, Operation),
    Known;
server({fault, Mode, Spared}, Cache, Known) ->
    _ = sys:get_state(Cache),
    ok = rekindle_nif:inject_one_fault(Mode, Spared),
    Known.

%% ---- ssl_manager ----

-spec prop_the_manager_stays() -> proper:test().
prop_the_manager_stays() ->
    ?FORALL(
        {Max, Lifetime, Actions},
        {oneof([0, 1, 3, 1000]), oneof([0, 1000]), list(client_action())},
        rekindle_property:holds(fun() ->
            ok = rekindle_nif:inject_fault(none),
            application:set_env(ssl, session_cache_client_max, Max),
            application:set_env(ssl, session_lifetime, Lifetime),
            _ = application:stop(ssl),
            {ok, _} = application:ensure_all_started(ssl),
            Manager = whereis(ssl_manager),
            put(ssl_manager, ssl_manager),
            [client(Action) || Action <- Actions],
            Order = order(Manager),
            lists:keymember(fault, 1, Actions) orelse books_agree(Order)
        end)
    ).

client_action() ->
    frequency([
        {8, {register, oneof([true, unique]), partial_key(), id(), kind()}},
        {3, {invalidate, partial_key(), id(), kind()}},
        {1, validate},
        {1, {select, partial_key()}},
        {2, {fault, oneof([panic, refusal]), range(0, 4)}}
    ]).

client({register, Save, {Host, Port}, Id, Kind}) ->
    ssl_manager:register_session(Host, Port, client_session(Id, Kind), Save);
client({invalidate, {Host, Port}, Id, Kind}) ->
    %% Does what `ssl_manager:invalidate_session/3' does, without its delay.
    gen_server:cast(ssl_manager, {invalidate_session, Host, Port, client_session(Id, Kind)});
client(validate) ->
    ssl_manager ! validate_sessions,
    [await_end(Validator) || Validator <- state(ssl_manager), is_pid(Validator)];
client({select, {Host, Port}}) ->
    Sessions = rekindle:select_session(client_cache(), {Host, Port}),
    InternalIds = [element(?INTERNAL_ID, Session) || Session <- Sessions],
    InternalIds = lists:reverse(lists:sort(InternalIds));
client({fault, Mode, Spared}) ->
    _ = sys:get_state(ssl_manager),
    ok = rekindle_nif:inject_one_fault(Mode, Spared).

client_session(Id, {Verified, Number}) ->
    session({session, rekindle_sessions:host_layout(), Verified, Number}, Id).

client_cache() ->
    [Cache] = [Field || Field <- state(ssl_manager), is_tuple(Field), element(1, Field) =:= client],
    Cache.

%% The order has what is stored.
books_agree(Order) ->
    lists:all(
        fun({_, Session}) -> gb_trees:is_defined(element(?INTERNAL_ID, Session), Order) end,
        rekindle:foldl(fun(Pair, Pairs) -> [Pair | Pairs] end, [], client_cache())
    ).

await_end(Pid) ->
    Monitor = monitor(process, Pid),
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    end.

%% ---- both ----

session(Value, Id) ->
    rekindle_sessions:put_stamps(rekindle_sessions:make(Value, Id), erlang:monotonic_time(), 0).

%% The fields are found by content, as their places differ between releases.
state(Process) ->
    tuple_to_list(sys:get_state(Process)).

%% OTP's `session_order'.
order(Process) ->
    [Order] = [Field || {Size, _} = Field <- state(Process), is_integer(Size)],
    Order.
