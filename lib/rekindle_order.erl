%% @private Answers that keep at most one session in the order of OTP's process for a server.
%%
%% That process asks for the cache's size before it registers a session. If the answer is its maximum, it drops the oldest
%% session of its order. If the answer is any other number above 0, it looks that session up, drops it if it has expired, and
%% crashes if it is not there. If the answer is 0, it drops none. We do not know its maximum: ssl's environment may have changed
%% since the process read it. So the answer is 0 or 1, as many as the order holds, and when the process looks up the oldest
%% session, it gets a stub: a session that expired long ago. Either way it drops that session.
%%
%% Only that process calls these functions. They keep what they know in its dictionary, without a secret.
-module(rekindle_order).

-export([size/1, lookup/2, drop/1, register/3]).

%% `flags' identifies the cache: a process may have opened several, although OTP's processes do not.
-record(order, {
    flags :: atomics:atomics_ref(),
    %% Whether the order holds a session. `asked': the process has asked for the size, and next looks up the oldest.
    state :: empty | filled | asked,
    %% The only session in the order, or `any' if there may be others.
    oldest :: {only, rekindle:key()} | any,
    %% These two belong to the newest session in the order.
    internal_id :: term(),
    arity :: pos_integer()
}).

%% Place in `flags': whether a session was registered. It shows whether a version of this application that kept nothing in the
%% dictionary has filled the order.
-define(REGISTERED, 2).

%% In OTP's unit and in seconds, this is longer ago than any lifetime.
-define(LONG_AGO, -(1 bsl 128)).

%% @doc The answer to OTP's process: 1 if its order holds a session, otherwise 0.
-spec size(atomics:atomics_ref()) -> 0 | 1.
size(Flags) ->
    case get(?MODULE) of
        #order{flags = Flags, state = State} = Order when State =/= empty ->
            _ = put(?MODULE, Order#order{state = asked}),
            1;
        _ ->
            0
    end.

%% @doc The stub, if OTP's process looks up the oldest session of its order; otherwise `none'.
%%
%% The stub's internal id is in the order, so OTP's process can remove it from there. Suppose the process has asked for the size
%% at another time, and now looks a session up to resume it: it makes a full handshake and lives on.
-spec lookup(atomics:atomics_ref(), rekindle:key()) -> tuple() | none.
lookup(Flags, Key) ->
    case get(?MODULE) of
        #order{flags = Flags, state = asked, oldest = Oldest} = Order when Oldest =:= any; element(2, Oldest) =:= Key ->
            stub(Key, Order);
        _ ->
            none
    end.

%% The time stamp's place differs between releases, so the stub has it in every place that may be the one.
stub(Key, #order{internal_id = InternalId, arity = Arity}) ->
    erlang:make_tuple(Arity, ?LONG_AGO, [{1, session}, {2, Key}, {3, InternalId}]).

%% @doc OTP's process drops a session from its order.
-spec drop(atomics:atomics_ref()) -> ok.
drop(Flags) ->
    case get(?MODULE) of
        #order{flags = Flags} = Order ->
            _ = put(?MODULE, Order#order{state = empty}),
            ok;
        _ ->
            ok
    end.

%% @doc OTP's process adds a session to its order.
-spec register(atomics:atomics_ref(), rekindle:key(), rekindle:session()) -> ok.
register(Flags, Key, Session) ->
    Oldest = oldest_with(Key, Flags),
    _ =
        case Session of
            _ when tuple_size(Session) > 3, element(1, Session) =:= session ->
                put(?MODULE, #order{
                    flags = Flags,
                    state = filled,
                    oldest = Oldest,
                    internal_id = element(3, Session),
                    arity = tuple_size(Session)
                });
            _ ->
                %% No stub can be made. A size of 0 is safe, though the order grows.
                erase(?MODULE)
        end,
    ok.

%% The oldest session in the order after the session of this key was added.
oldest_with(Key, Flags) ->
    case get(?MODULE) of
        #order{flags = Flags, state = empty, oldest = {only, _}} ->
            {only, Key};
        #order{flags = Flags} ->
            any;
        _ ->
            case atomics:exchange(Flags, ?REGISTERED, 1) of
                0 -> {only, Key};
                1 -> any
            end
    end.
