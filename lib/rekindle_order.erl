%% @private What OTP's process for a server has in its order of sessions, and what to answer so that it never has more
%% than one there.
%%
%% That process asks for the cache's size before it registers a session. Told its maximum, it drops the oldest session
%% of its order; told any other number above 0, it looks that one up, drops it if it has expired, and crashes if it is
%% not there; told 0, it drops none. Its maximum is not known: ssl's environment may have changed since it was read. So
%% it is told 0 or 1, as many as its order holds, and is handed a session that expired long ago where it looks up the
%% oldest: a stub. It drops that one either way.
%%
%% The functions are for that process alone, and keep what they know in its dictionary. It holds no secret.
-module(rekindle_order).

-export([size/1, lookup/2, drop/1, register/3]).

%% `notes' are the cache's own: a process may have opened several, although none of OTP's does.
-record(order, {
    notes :: atomics:atomics_ref(),
    %% Whether the order holds a session. `asked': the process has asked for the size, and looks up the oldest next.
    state :: empty | filled | asked,
    %% The only session there; or `any', where there may be others.
    oldest :: {only, rekindle:key()} | any,
    %% Of the newest session there.
    internal_id :: term(),
    arity :: pos_integer()
}).

%% Place in `notes': whether a session was registered. It tells where the order was filled by a version of this
%% application that kept nothing in the dictionary.
-define(REGISTERED, 2).

%% In OTP's unit and in seconds, this is longer ago than any lifetime.
-define(LONG_AGO, -(1 bsl 128)).

%% @doc The size that OTP's process is told.
-spec size(atomics:atomics_ref()) -> 0 | 1.
size(Notes) ->
    case get(?MODULE) of
        #order{notes = Notes, state = State} = Order when State =/= empty ->
            _ = put(?MODULE, Order#order{state = asked}),
            1;
        _ ->
            0
    end.

%% @doc The stub, where OTP's process looks up the oldest session of its order; otherwise `none'.
%%
%% Its internal id is in the order, and OTP's process can take it out of there. So even if the size was asked for out
%% of turn, and a session is looked up to be resumed, the process makes a full handshake and lives on.
-spec lookup(atomics:atomics_ref(), rekindle:key()) -> tuple() | none.
lookup(Notes, Key) ->
    case get(?MODULE) of
        #order{notes = Notes, state = asked, oldest = Oldest} = Order when Oldest =:= any; element(2, Oldest) =:= Key ->
            stub(Key, Order);
        _ ->
            none
    end.

%% The place of the time stamp is not the same in all releases: it is in all places that may be it.
stub(Key, #order{internal_id = InternalId, arity = Arity}) ->
    erlang:make_tuple(Arity, ?LONG_AGO, [{1, session}, {2, Key}, {3, InternalId}]).

%% @doc OTP's process drops a session from its order.
-spec drop(atomics:atomics_ref()) -> ok.
drop(Notes) ->
    case get(?MODULE) of
        #order{notes = Notes} = Order ->
            _ = put(?MODULE, Order#order{state = empty}),
            ok;
        _ ->
            ok
    end.

%% @doc OTP's process adds a session to its order.
-spec register(atomics:atomics_ref(), rekindle:key(), rekindle:session()) -> ok.
register(Notes, Key, Session) ->
    Oldest = oldest_with(Key, Notes),
    _ =
        case Session of
            _ when tuple_size(Session) > 3, element(1, Session) =:= session ->
                put(?MODULE, #order{
                    notes = Notes,
                    state = filled,
                    oldest = Oldest,
                    internal_id = element(3, Session),
                    arity = tuple_size(Session)
                });
            _ ->
                %% There is nothing to make a stub of. A size of 0 is safe, though the order grows.
                erase(?MODULE)
        end,
    ok.

%% The oldest session once that of the key is there.
oldest_with(Key, Notes) ->
    case get(?MODULE) of
        #order{notes = Notes, state = empty, oldest = {only, _}} ->
            {only, Key};
        #order{notes = Notes} ->
            any;
        _ ->
            case atomics:exchange(Notes, ?REGISTERED, 1) of
                0 -> {only, Key};
                1 -> any
            end
    end.
