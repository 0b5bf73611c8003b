%% @doc Real TLS, DTLS and upgraded-socket servers in this node, for tests and the demo.
%%
%% A connection answers a `GET' request with a small page and closes. Otherwise it works
%% line by line: `renegotiate' makes the server renegotiate and then answer `renegotiated'
%% or `failed: Reason'; any other line is echoed.
%%
%% A server survives failed handshakes, remembers every finished one, and lives until
%% {@link stop/1}, even after the process that started it.
-module(rekindle_servers).

-export([start/2, stop/1, listen_socket/1, caches/0, sync_caches/0, cache_processes/0, handshakes/1, failures/1]).

-export_type([kind/0, handshake/0]).

-type kind() :: tls | dtls | upgrade.

-type handshake() :: #{
    session_id := binary() | unknown,
    protocol := atom(),
    selected_cipher_suite := map() | undefined,
    peer_cert := undefined | public_key:der_encoded()
}.
%% `unknown': the client had closed before the server could ask. Renegotiations do not count
%% as handshakes.

-define(HANDSHAKE_TIMEOUT, 10000).

%% @doc Starts a server on 127.0.0.1 (or `{ip, _}') and an unused port (or `{port, _}').
%%
%% `Opts' are options of `ssl:listen/2', or of `ssl:handshake/2' for `upgrade'. Fails with
%% the listener's error.
-spec start(kind(), Opts :: [term()]) -> {Server :: pid(), inet:port_number()}.
start(Kind, Opts) ->
    {Server, Monitor} = spawn_monitor(fun() -> init(Kind, Opts) end),
    case call(Server, Monitor, start) of
        {ok, Port} -> {Server, Port};
        {error, Reason} -> error({listen, Kind, Reason})
    end.

%% @doc The caches of this node's listeners, by port, which are found in the state of OTP's processes.
-spec caches() -> #{inet:port_number() => tuple()}.
caches() ->
    maps:from_list([
        {element(2, element(2, {ok, _} = inet:sockname(Socket))), Reference}
     || {_, Cache, _, _} <- supervisor:which_children(ssl_server_session_cache_sup),
        {monitors, [{port, Socket}]} <- [process_info(Cache, monitors)],
        Reference <- tuple_to_list(sys:get_state(Cache)),
        is_record(Reference, server, 5)
    ]).

%% @doc Waits until the caches have what connections have registered, because these do not wait for that.
-spec sync_caches() -> ok.
sync_caches() ->
    lists:foreach(
        fun(Cache) ->
            try
                sys:get_state(Cache)
            catch
                %% That of a listener that was closed.
                exit:{Reason, _} when Reason =:= noproc; Reason =:= normal; Reason =:= shutdown -> ended
            end
        end,
        cache_processes()
    ).

%% @doc The cache processes of this node's listeners.
-spec cache_processes() -> [pid()].
cache_processes() ->
    Supervisors = [ssl_server_session_cache_sup, dtls_server_session_cache_sup, ssl_upgrade_server_session_cache_sup],
    [Cache || Supervisor <- Supervisors, {_, Cache, _, _} <- supervisor:which_children(Supervisor), is_pid(Cache)].

%% @doc Closes the listener and all connections. The port is free afterwards.
-spec stop(Server :: pid()) -> ok.
stop(Server) ->
    call(Server, stop).

%% @doc The listening socket, of `ssl' or, for `upgrade', of `gen_tcp'.
-spec listen_socket(Server :: pid()) -> ssl:sslsocket() | gen_tcp:socket().
listen_socket(Server) ->
    call(Server, listen_socket).

%% @doc The finished handshakes, oldest first. A client can be done a moment before its server is.
-spec handshakes(Server :: pid()) -> [handshake()].
handshakes(Server) ->
    call(Server, handshakes).

%% @doc The reasons of the failed handshakes, oldest first.
-spec failures(Server :: pid()) -> [term()].
failures(Server) ->
    call(Server, failures).

%% ---- the server's process: owns the listener, starts the connections ----

call(Server, Request) ->
    call(Server, monitor(process, Server), Request).

call(Server, Monitor, Request) ->
    Server ! {call, self(), Monitor, Request},
    receive
        {Monitor, Reply} ->
            demonitor(Monitor, [flush]),
            Reply;
        {'DOWN', Monitor, process, Server, Reason} ->
            error({server_is_gone, Reason})
    end.

init(Kind, Opts) ->
    process_flag(trap_exit, true),
    receive
        {call, From, Ref, start} ->
            case listen(Kind, Opts) of
                {ok, Listener, Port} ->
                    From ! {Ref, {ok, Port}},
                    loop(
                        accept_next(#{
                            listener => Listener,
                            port => Port,
                            connections => #{},
                            handshakes => [],
                            failures => []
                        })
                    );
                {error, _} = Error ->
                    From ! {Ref, Error}
            end
    end.

loop(#{connections := Connections, handshakes := Handshakes, failures := Failures} = State) ->
    receive
        accepted ->
            loop(accept_next(State));
        {handshake, Handshake} ->
            loop(State#{handshakes := [Handshake | Handshakes]});
        {failure, Reason} ->
            loop(State#{failures := [Reason | Failures]});
        {'EXIT', Pid, _} ->
            loop(State#{connections := maps:remove(Pid, Connections)});
        {call, From, Ref, stop} ->
            close_all(State),
            From ! {Ref, ok};
        {call, From, Ref, Question} ->
            From ! {Ref, answer(Question, State)},
            loop(State)
    end.

answer(listen_socket, #{listener := {_, Socket, _}}) -> Socket;
answer(handshakes, #{handshakes := Handshakes}) -> lists:reverse(Handshakes);
answer(failures, #{failures := Failures}) -> lists:reverse(Failures).

accept_next(#{listener := Listener, connections := Connections} = State) ->
    Server = self(),
    Pid = spawn_link(fun() -> accept(Server, Listener) end),
    State#{connections := Connections#{Pid => true}}.

listen(Kind, Opts) ->
    Port = proplists:get_value(port, Opts, 0),
    Ip = proplists:get_value(ip, Opts, {127, 0, 0, 1}),
    SslOpts = proplists:delete(port, proplists:delete(ip, Opts)),
    SocketOpts = [{ip, Ip}, {reuseaddr, true}, {active, false}, {mode, binary}],
    case listen(Kind, Port, SocketOpts, SslOpts) of
        {ok, Socket} ->
            {ok, {_, ActualPort}} = sockname(Kind, Socket),
            {ok, {Kind, Socket, SslOpts}, ActualPort};
        {error, _} = Error ->
            Error
    end.

listen(tls, Port, SocketOpts, SslOpts) ->
    ssl:listen(Port, SocketOpts ++ SslOpts);
listen(dtls, Port, SocketOpts, SslOpts) ->
    ssl:listen(Port, [{protocol, dtls} | SocketOpts] ++ SslOpts);
listen(upgrade, Port, SocketOpts, _SslOpts) ->
    gen_tcp:listen(Port, SocketOpts).

sockname(upgrade, Socket) -> inet:sockname(Socket);
sockname(_, Socket) -> ssl:sockname(Socket).

close_all(#{listener := {Kind, Socket, _}, port := Port, connections := Connections}) ->
    Pids = maps:keys(Connections),
    _ = close_listener(Kind, Socket),
    lists:foreach(fun(Pid) -> exit(Pid, kill) end, Pids),
    lists:foreach(fun await_exit/1, Pids),
    await_free(Kind, Port, 100).

close_listener(upgrade, Socket) -> gen_tcp:close(Socket);
close_listener(_, Socket) -> ssl:close(Socket).

await_exit(Pid) ->
    receive
        {'EXIT', Pid, _} -> ok
    end.

%% The process that owns a DTLS listener's UDP socket outlives ssl:close/1 until the last
%% connection is gone.
await_free(dtls, Port, Tries) when Tries > 0 ->
    case gen_udp:open(Port, [{ip, {127, 0, 0, 1}}]) of
        {ok, Socket} ->
            gen_udp:close(Socket);
        {error, eaddrinuse} ->
            timer:sleep(20),
            await_free(dtls, Port, Tries - 1)
    end;
await_free(_, _, _) ->
    ok.

%% ---- a connection's process: accepts, has its successor started, serves ----

accept(Server, {Kind, Socket, _} = Listener) ->
    case transport_accept(Kind, Socket) of
        {ok, Transport} ->
            Server ! accepted,
            serve(Server, Listener, Transport);
        {error, closed} ->
            ok;
        {error, _} ->
            timer:sleep(50),
            accept(Server, Listener)
    end.

transport_accept(upgrade, Socket) -> gen_tcp:accept(Socket);
transport_accept(_, Socket) -> ssl:transport_accept(Socket).

serve(Server, {Kind, _, SslOpts}, Transport) ->
    case handshake(Kind, Transport, SslOpts) of
        {ok, Socket} ->
            Server ! {handshake, describe(Socket)},
            converse(Socket, <<>>);
        {error, Reason} ->
            Server ! {failure, Reason}
    end.

handshake(upgrade, Transport, SslOpts) ->
    ssl:handshake(Transport, SslOpts, ?HANDSHAKE_TIMEOUT);
handshake(_, Transport, _) ->
    ssl:handshake(Transport, ?HANDSHAKE_TIMEOUT).

describe(Socket) ->
    PeerCert = peer_cert(Socket),
    case ssl:connection_information(Socket, [session_id, protocol, selected_cipher_suite]) of
        {ok, Info} ->
            (maps:from_list(Info))#{peer_cert => PeerCert};
        {error, _} ->
            #{
                session_id => unknown,
                protocol => unknown,
                selected_cipher_suite => undefined,
                peer_cert => PeerCert
            }
    end.

peer_cert(Socket) ->
    case ssl:peercert(Socket) of
        {ok, Der} -> Der;
        {error, _} -> undefined
    end.

converse(Socket, Buffer) ->
    case ssl:recv(Socket, 0) of
        {ok, Data} -> answer_all(Socket, <<Buffer/binary, Data/binary>>);
        {error, _} -> ssl:close(Socket)
    end.

answer_all(Socket, <<"GET ", _/binary>> = Request) ->
    case binary:match(Request, <<"\r\n\r\n">>) of
        nomatch ->
            converse(Socket, Request);
        _ ->
            send(Socket, page()),
            ssl:close(Socket)
    end;
answer_all(Socket, Buffer) ->
    case binary:split(Buffer, <<"\n">>) of
        [Line, Rest] ->
            send(Socket, reply(Socket, Line)),
            answer_all(Socket, Rest);
        [_] ->
            converse(Socket, Buffer)
    end.

reply(Socket, <<"renegotiate">>) ->
    case ssl:renegotiate(Socket) of
        ok -> <<"renegotiated\n">>;
        {error, Reason} -> io_lib:format("failed: ~0p~n", [Reason])
    end;
reply(_Socket, Line) ->
    [Line, $\n].

%% A peer that is gone is seen by the next ssl:recv/2.
send(Socket, Data) ->
    _ = ssl:send(Socket, Data),
    ok.

page() ->
    <<
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: text/plain\r\n"
        "Content-Length: 9\r\n"
        "Connection: close\r\n"
        "\r\n"
        "rekindle\n"
    >>.
