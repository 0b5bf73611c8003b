%% @doc Sessions as OTP's processes pass them to a cache. A real handshake makes one, which is read from the default cache's
%% process. The others are copies with an id, secret, stamps and peer certificate of their own.
%%
%% As in reality, all sessions share one binary of the listener's certificate, and a peer certificate refers to the larger
%% buffer in which it was received.
-module(bench_sessions).

-export([template/2, make/2, id/1, key/1, chunk/3]).

-export_type([template/0, workload/0]).

-type workload() :: {bench_certs:key(), ClientCert :: boolean()}.

-opaque template() :: #{
    session := tuple(),
    secret := pos_integer(),
    time_stamp := pos_integer(),
    peer := none | {Before :: binary(), [bench_certs:piece()]}
}.

-define(SESSION_ID, 2).
-define(INTERNAL_ID, 3).
-define(PEER_CERTIFICATE, 4).
-define(FIRST_OTHER, 7).

%% @doc The session of a handshake with a listener of this node, whose ssl uses the default cache.
-spec template(Dir :: file:filename(), workload()) -> template().
template(Dir, Workload) ->
    Env = [{Key, application:get_env(ssl, Key)} || Key <- [session_cb, server_session_cb, session_cb_init_args]],
    [application:unset_env(ssl, Key) || {Key, _} <- Env],
    Session = handshake(Dir, Workload),
    [application:set_env(ssl, Key, Value) || {Key, {ok, Value}} <- Env],
    Stamp = element(1, element(?INTERNAL_ID, Session)),
    #{
        session => Session,
        secret => find(fun(Field) -> is_binary(Field) andalso byte_size(Field) =:= 48 end, Session),
        time_stamp => find(fun(Field) -> Field =:= Stamp end, Session),
        peer => peer(element(?PEER_CERTIFICATE, Session))
    }.

%% @doc The `N'th session. Each call returns the same id, secret and certificate.
-spec make(template(), non_neg_integer()) -> Session :: tuple().
make(#{session := Session, secret := Secret, time_stamp := TimeStamp, peer := Peer}, N) ->
    Now = erlang:monotonic_time(),
    Fields = [
        {?SESSION_ID, id(N)},
        {?INTERNAL_ID, {Now, erlang:unique_integer([monotonic])}},
        {?PEER_CERTIFICATE, peer_certificate(Peer, N)},
        {Secret, crypto:hash(sha384, <<N:64>>)},
        {TimeStamp, Now}
    ],
    lists:foldl(fun({Place, Value}, Acc) -> setelement(Place, Acc, Value) end, Session, Fields).

%% @doc The id of the `N'th session.
-spec id(non_neg_integer()) -> ssl:session_id().
id(N) ->
    crypto:hash(sha256, <<N:64>>).

%% @doc The key of the session in a server's cache: the id in the session, not a copy.
-spec key(Session :: tuple()) -> ssl:session_id().
key(Session) ->
    element(?SESSION_ID, Session).

%% @doc The sessions `From' to `To'.
-spec chunk(template(), non_neg_integer(), non_neg_integer()) -> [Session :: tuple()].
chunk(Template, From, To) ->
    [make(Template, N) || N <- lists:seq(From, To)].

handshake(Dir, Workload) ->
    {Server, Port} = rekindle_servers:start(tls, [{versions, ['tlsv1.2']} | bench_certs:server_opts(Dir, Workload)]),
    Client = filename:join(Dir, "client.pem"),
    {ok, Socket} = ssl:connect({127, 0, 0, 1}, Port, [
        {versions, ['tlsv1.2']}, {verify, verify_none}, {active, false}, {certfile, Client}, {keyfile, Client}
    ]),
    %% The process answers this call after it has registered the session.
    ok = ssl:send(Socket, "hello\n"),
    {ok, _} = ssl:recv(Socket, 6),
    Cache = bench_process:cache_of(rekindle_servers:listen_socket(Server)),
    [Session] = [Value || Tree <- tuple_to_list(sys:get_state(Cache)), Value <- sessions(Tree)],
    ssl:close(Socket),
    rekindle_servers:stop(Server),
    Session.

sessions({Size, _} = Tree) when is_integer(Size) ->
    [Value || Value <- gb_trees:values(Tree), is_tuple(Value), element(1, Value) =:= session];
sessions(_) ->
    [].

find(Wanted, Session) ->
    [Place] = [Place || Place <- lists:seq(?FIRST_OTHER, tuple_size(Session)), Wanted(element(Place, Session))],
    Place.

peer(undefined) ->
    none;
peer(Cert) ->
    {binary:copy(<<0>>, binary:referenced_byte_size(Cert) - byte_size(Cert)), bench_certs:pieces(Cert)}.

peer_certificate(none, _) ->
    undefined;
peer_certificate({Before, Pieces}, N) ->
    Cert = bench_certs:like(Pieces, N),
    Whole = iolist_to_binary([Before, Cert]),
    binary:part(Whole, byte_size(Before), byte_size(Whole) - byte_size(Before)).
