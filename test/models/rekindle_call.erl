%% @doc Makes one call of a callback, in the form that the models use.
-module(rekindle_call).

-export([outcome/3, otp_now/0]).

%% @doc Makes the call. If there is a fault, all functions of the native library fail during the call. Returns the result, and
%% OTP's time before and after the call.
-spec outcome(rekindle:cache(), none | panic | refusal, rekindle_store_model:operation() | {store, term(), term()}) ->
    {From :: integer(), Answer :: term(), To :: integer()}.
outcome(Cache, Fault, Operation) ->
    From = otp_now(),
    ok = rekindle_nif:inject_fault(Fault),
    Answer =
        try
            call(Cache, Operation)
        catch
            Class:Reason -> {raised, Class, Reason}
        after
            ok = rekindle_nif:inject_fault(none)
        end,
    {From, Answer, otp_now()}.

call(Cache, {lookup, Key}) -> rekindle:lookup(Cache, Key);
call(Cache, {update, Key, Value}) -> rekindle:update(Cache, Key, rekindle_sessions:make(Value, Key));
call(Cache, {store, Key, Session}) -> rekindle:update(Cache, Key, Session);
call(Cache, {delete, Key}) -> rekindle:delete(Cache, Key);
call(Cache, {select, PartialKey}) -> rekindle:select_session(Cache, PartialKey);
call(Cache, size) -> rekindle:size(Cache);
call(Cache, fold) -> rekindle:foldl(fun(Pair, Pairs) -> [Pair | Pairs] end, [], Cache);
call(Cache, terminate) -> rekindle:terminate(Cache).

%% @doc OTP's clock, put forward as far as the library's.
-spec otp_now() -> integer().
otp_now() ->
    erlang:monotonic_time() + erlang:convert_time_unit(rekindle_nif:advance_clock(0), millisecond, native).
