%% @doc Helpers for attacks on the store: they make session records of this node's ssl by the hundred thousand, let devices come
%% back for their sessions, and measure how the process grows.
-module(rekindle_attacks).

-export([open/1, info/1, kind/1, put/3, put/4, alive/3, drop/2]).
-export([id/1, number/0, visit/3, shuffled/1]).
-export([growth/2, in_process/1]).

-export_type([kind/0, fields/0, attack/0]).

-type fields() :: #{
    own_certificates => [binary()],
    certificate => binary(),
    cipher_suite => <<_:16>>,
    curve => byte(),
    server_name => string(),
    secret => <<_:384>>
}.
%% The parts of a session that differ from others.

-opaque kind() :: {Session :: tuple(), SecretAt :: pos_integer()}.
%% The session that others are copies of.

-type attack() :: fun((rekindle:cache(), MaxBytes :: pos_integer(), Watch :: fun(() -> ok)) -> term()).
%% `Watch' records how much of the process is in memory now.

-define(SESSION_ID, 2).
-define(PEER_CERTIFICATE, 4).
-define(OWN_CERTIFICATES, 5).

%% @doc Opens a server's cache, and says by which number `rekindle_admin' knows its scope. The cache lives as long as
%% the calling process.
-spec open([rekindle:option()]) -> {rekindle:cache(), Number :: non_neg_integer()}.
open(Options) ->
    Cache = rekindle:init([{role, server} | Options]),
    #{number := Number} = lists:last(rekindle_admin:info()),
    erlang:put({?MODULE, Number}, Cache),
    {Cache, Number}.

%% @doc The scope in `rekindle_admin:info/0'.
-spec info(Number :: non_neg_integer()) -> rekindle_admin:info().
info(Number) ->
    [Info] = [Info || #{number := N} = Info <- rekindle_admin:info(), N =:= Number],
    Info.

%% @doc A session as this node's ssl makes them. Where it notes no server name, one with a name is as the ssl of
%% OTP 29 makes them: the store takes the records of all releases.
-spec kind(fields()) -> kind().
kind(Fields) ->
    Layout =
        case Fields of
            #{server_name := _} -> otp_29_1_2;
            #{} -> rekindle_sessions:host_layout()
        end,
    Bare = rekindle_sessions:make({session, Layout, unverified, 1}, <<0:256>>),
    [SecretAt] = [Place || Place <- lists:seq(1, tuple_size(Bare)), is_binary_of(48, element(Place, Bare))],
    {maps:fold(fun(Name, Value, Session) -> changed(Name, Value, SecretAt, Session) end, Bare, Fields), SecretAt}.

changed(own_certificates, Ders, _, Session) -> setelement(?OWN_CERTIFICATES, Session, Ders);
changed(certificate, Der, _, Session) -> setelement(?PEER_CERTIFICATE, Session, Der);
changed(server_name, Name, _, Session) -> setelement(tuple_size(Session), Session, Name);
changed(secret, Secret, SecretAt, Session) -> setelement(SecretAt, Session, Secret);
changed(cipher_suite, Suite, _, Session) -> replaced(fun(Field) -> is_binary_of(2, Field) end, Suite, Session);
changed(curve, Last, _, Session) -> replaced(fun is_curve/1, {namedCurve, {1, 3, 132, 0, Last}}, Session).

replaced(Is, New, Session) ->
    Replaced = fun(Field) ->
        case Is(Field) of
            true -> New;
            false -> Field
        end
    end,
    list_to_tuple(lists:map(Replaced, tuple_to_list(Session))).

is_binary_of(Bytes, Field) -> is_binary(Field) andalso byte_size(Field) =:= Bytes.

is_curve({namedCurve, _}) -> true;
is_curve(_) -> false.

%% @doc A number that no session in this node has had.
-spec number() -> pos_integer().
number() ->
    erlang:unique_integer([positive]).

%% @doc The id of the session with this number. It is as random as OTP's ids.
-spec id(integer()) -> ssl:session_id().
id(Number) ->
    crypto:hash(sha256, <<Number:64>>).

%% @doc Stores a session of this kind, with a secret of its own, and returns its number.
-spec put(rekindle:cache(), kind(), Number) -> Number when Number :: integer().
put(Cache, {Session, SecretAt}, Number) ->
    Id = id(Number),
    ok = rekindle:update(Cache, Id, setelement(SecretAt, setelement(?SESSION_ID, Session, Id), secret(Id))),
    Number.

%% @doc The same with a client certificate.
-spec put(rekindle:cache(), kind(), Number, Certificate :: binary()) -> Number when Number :: integer().
put(Cache, {Session, SecretAt}, Number, Certificate) ->
    put(Cache, {setelement(?PEER_CERTIFICATE, Session, Certificate), SecretAt}, Number).

secret(Id) ->
    <<Id/binary, "0123456789abcdef">>.

%% @doc Which of these sessions can be resumed. Fails if one has another session's secret.
-spec alive(rekindle:cache(), kind(), [Number]) -> [Number] when Number :: integer().
alive(Cache, {_, SecretAt}, Numbers) ->
    [Number || Number <- Numbers, is_alive(Cache, SecretAt, id(Number))].

is_alive(Cache, SecretAt, Id) ->
    case rekindle:lookup(Cache, Id) of
        undefined ->
            false;
        Session ->
            Secret = secret(Id),
            {Id, Secret} = {element(?SESSION_ID, Session), element(SecretAt, Session)},
            true
    end.

%% @doc Drops sessions. A deletion by the process that opened the cache would be ignored, so another process does it.
-spec drop(rekindle:cache(), [integer()]) -> ok.
drop(Cache, Numbers) ->
    in_process(fun() -> lists:foreach(fun(Number) -> ok = rekindle:delete(Cache, id(Number)) end, Numbers) end).

%% @doc All devices come by once, in any order. One that cannot resume makes a new session. Answers the devices, and
%% which of them have resumed.
-spec visit([Device], fun((Device) -> boolean()), fun((Device) -> Device)) -> {[Device], Resumed :: [Device]}.
visit(Devices, Resumes, Renewed) ->
    Come = fun(Device, Resumed) ->
        case Resumes(Device) of
            true -> {Device, [Device | Resumed]};
            false -> {Renewed(Device), Resumed}
        end
    end,
    lists:mapfoldl(Come, [], shuffled(Devices)).

-spec shuffled([Term]) -> [Term].
shuffled(Terms) ->
    [Term || {_, Term} <- lists:sort([{rand:uniform(), Term} || Term <- Terms])].

%% @doc By how many bytes, at most, this process grows for a cache with this bound while `Attack' is run on it; and what
%% that answers. For a node of its own.
-spec growth(pos_integer(), attack()) -> {integer(), term()}.
growth(MaxBytes, Attack) ->
    %% This is what Erlang's own heaps take for such an attack. The first run also loads code.
    _ = peak([{max_sessions, 1}], MaxBytes div 8, Attack),
    {Without, _} = peak([{max_sessions, 1}], MaxBytes div 4, Attack),
    {With, Answer} = peak([], MaxBytes, Attack),
    {With - Without, Answer}.

peak(Options, MaxBytes, Attack) ->
    _ = rekindle_memory:settled_resident_bytes(),
    Run = fun() ->
        {Cache, _} = open([{max_bytes, MaxBytes} | Options]),
        erlang:put(peak, 0),
        Answer = Attack(Cache, MaxBytes, fun watch/0),
        {erlang:get(peak), Answer}
    end,
    %% Each scheduler has heaps of its own, which would grow when the process first runs there.
    Peak = in_process(Run, [{scheduler, 1}]),
    rekindle_node:await(fun() -> rekindle_admin:info() =:= [] end),
    Peak.

watch() ->
    erlang:garbage_collect(),
    erlang:put(peak, max(erlang:get(peak), rekindle_memory:resident_bytes())),
    ok.

%% @doc Runs `Fun' in a process that ends with it.
-spec in_process(fun(() -> Result)) -> Result.
in_process(Fun) ->
    in_process(Fun, []).

in_process(Fun, Options) ->
    {Pid, Monitor} = spawn_opt(fun() -> exit({result, Fun()}) end, [monitor | Options]),
    receive
        {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    end.
