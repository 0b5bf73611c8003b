%% @doc Invented sessions for the models: session records of all OTP releases, and plain terms.
-module(rekindle_sessions).

-export([layouts/0, host_layout/0, make/2, is_handed_out/5, is_in_far_future/2, is_without_key/3, is_stub/2, is_valid/3]).
-export([id/1, number/1, stamp/1, internal_id/1, put_stamps/3]).

-export_type([value/0, layout/0]).

-type layout() :: otp_25 | otp_27 | otp_29_1_1 | otp_29_1_2.

%% How a session differs from others with its key. A `misfit' contains another id than its key. Rekindle refuses to store it for a
%% server.
-type value() ::
    {session | misfit, layout(), verified | unverified, Number :: 0..16#FFFF}
    | {plain, Number :: non_neg_integer()}.

%% Elements that are at the same place in all releases.
-define(SESSION_ID, 2).
-define(INTERNAL_ID, 3).
-define(PRIVATE_KEY, 6).

%% An old time stamp, which differs from any present one.
-define(DAYS_AGO, erlang:convert_time_unit(-300_000_000, second, native)).

-spec layouts() -> [layout()].
layouts() ->
    [otp_25, otp_27, otp_29_1_1, otp_29_1_2].

%% @doc The layout that the ssl of this node has.
-spec host_layout() -> layout().
host_layout() ->
    Now = erlang:monotonic_time(),
    [Layout | _] = [
        Layout
     || Layout <- layouts(),
        true =:=
            try
                ssl_session:valid_session(put_stamps(make({session, Layout, verified, 1}, <<1:256>>), Now, 1), 1000)
            catch
                error:_ -> false
            end
    ],
    Layout.

%% @doc The session stored under this key. The same each time.
-spec make(value(), rekindle:key()) -> tuple().
make({plain, _} = Plain, _Key) ->
    Plain;
make({misfit, Layout, Verified, Number}, _Key) ->
    make({session, Layout, Verified, Number}, <<1:1, Number:255>>);
make({session, Layout, Verified, Number}, Key) ->
    Id =
        case Key of
            {_Partial, ClientId} -> ClientId;
            _ -> Key
        end,
    Stamp = ?DAYS_AGO + Number,
    Certificate =
        case Verified of
            verified -> rekindle_certs:shaped(<<"certificate", Number:800>>);
            unverified -> undefined
        end,
    PrivateKey = {'ECPrivateKey', 1, <<Number:256>>, undefined, undefined},
    Head = [session, Id, {Stamp, Number}, Certificate, [<<"chain", 1:800>>], PrivateKey],
    Tail = [true, Stamp, {namedCurve, {1, 3, 132, 0, 34}}, undefined, undefined],
    list_to_tuple(Head ++ rest(Layout, [<<192, 48>>, <<Number:384>>, undefined], Tail)).

%% The compression method; the maximal length of fragments; the server's name.
rest(otp_25, Middle, Tail) -> [0 | Middle] ++ Tail;
rest(otp_27, Middle, Tail) -> Middle ++ Tail;
rest(otp_29_1_1, Middle, Tail) -> Middle ++ [undefined | Tail];
rest(otp_29_1_2, Middle, Tail) -> Middle ++ [undefined | Tail] ++ ["localhost"].

%% @doc Whether the term is what a server's lookup between two times may answer for what `make/2' made:
%% without private key, and with a stamp that no lifetime has passed since.
-spec is_handed_out(term(), value(), rekindle:key(), integer(), integer()) -> boolean().
is_handed_out(Answer, {plain, _} = Plain, _Key, _From, _To) ->
    Answer =:= Plain;
is_handed_out(Answer, Value, Key, _From, To) when element(?PRIVATE_KEY, Answer) =:= undefined ->
    {Stamp, 0} = internal_id(Answer),
    is_in_far_future(Stamp, To) andalso is_without_key(Answer, Value, Key);
is_handed_out(_Answer, _Value, _Key, _From, _To) ->
    false.

%% @doc Whether the stamp is years after the time, in OTP's unit.
-spec is_in_far_future(integer(), integer()) -> boolean().
is_in_far_future(Stamp, Time) ->
    erlang:convert_time_unit(Stamp - Time, native, second) > 10 * 365 * 86_400.

%% @doc The same, with any stamp.
-spec is_without_key(term(), value(), rekindle:key()) -> boolean().
is_without_key(Answer, Value, Key) ->
    {Stamp, Unique} = internal_id(Answer),
    Answer =:= put_stamps(setelement(?PRIVATE_KEY, make(Value, Key), undefined), Stamp, Unique).

%% @doc Whether the term is what OTP's process for a server is handed in place of the oldest session in its order:
%% nothing of a session but key and internal id.
-spec is_stub(term(), rekindle:key()) -> boolean().
is_stub(Answer, Key) when is_tuple(Answer), tuple_size(Answer) > ?INTERNAL_ID ->
    [Tag, Id, _InternalId | Fields] = tuple_to_list(Answer),
    {Tag, Id} =:= {session, Key} andalso lists:all(fun(Field) -> is_integer(Field) andalso Field < -1 bsl 64 end, Fields);
is_stub(_, _) ->
    false.

%% @doc Same as OTP's `ssl_session:valid_session/2' of that release, which accepts only its own record; `Lifetime' is in
%% seconds, and `Now' in OTP's unit.
-spec is_valid(layout(), tuple(), {Now :: integer(), Lifetime :: integer()}) -> boolean().
is_valid(Layout, Session, {Now, Lifetime}) ->
    {Arity, StampPlace} = places(Layout),
    {session, Arity} = {element(1, Session), tuple_size(Session)},
    erlang:convert_time_unit(Now - element(StampPlace, Session), native, second) < Lifetime.

places(otp_25) -> {15, 12};
places(otp_27) -> {14, 11};
places(otp_29_1_1) -> {15, 12};
places(otp_29_1_2) -> {16, 12}.

%% @doc The number of the value that the session was made for.
-spec number(tuple()) -> non_neg_integer().
number(Session) ->
    [Number] = [Number || <<Number:384>> <- tuple_to_list(Session)],
    Number.

-spec id(tuple()) -> ssl:session_id().
id(Session) ->
    element(?SESSION_ID, Session).

-spec stamp(tuple()) -> integer().
stamp(Session) ->
    element(stamp_place(Session), Session).

-spec internal_id(tuple()) -> term().
internal_id(Session) ->
    element(?INTERNAL_ID, Session).

-spec put_stamps(tuple(), integer(), integer()) -> tuple().
put_stamps(Session, Stamp, Unique) ->
    setelement(stamp_place(Session), setelement(?INTERNAL_ID, Session, {Stamp, Unique}), Stamp).

%% It is found by content, as in the store.
stamp_place(Session) ->
    stamp_place(Session, element(1, element(?INTERNAL_ID, Session)), ?PRIVATE_KEY + 1).

stamp_place(Session, Stamp, Place) when element(Place, Session) =:= Stamp -> Place;
stamp_place(Session, Stamp, Place) -> stamp_place(Session, Stamp, Place + 1).
