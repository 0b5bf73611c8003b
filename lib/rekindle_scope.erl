%% @private Which sessions a server's cache process may share with others.
%%
%% Sessions of one listener must not resume on another unless the operator says so: a resumption skips
%% the client certificate check of the listener it arrives at (CVE-2025-23419 in nginx is this).
-module(rekindle_scope).

-export([of_server/1, processes_of_listener/0, is_of_upgraded_sockets/0, is_of_unknown_listener/0, transport/1, name/1, address/1]).

%% With `inet_backend = socket', and what is below that.
-type listen_socket() :: port() | {'$inet', module(), {pid(), socket:socket()}} | socket:socket().

%% @doc The scope of the cache process that calls: its label, the listen socket where there is one, and
%% whether to join those that already use the label.
-spec of_server(rekindle:scope()) -> {rekindle_admin:label(), Socket :: string() | undefined, Join :: boolean()}.
of_server(Option) ->
    case listener() of
        {Socket, Transport, Address} ->
            case shared_name(Option, Address) of
                {ok, Name} ->
                    {{shared, Transport, Name}, socket_name(Socket), true};
                none ->
                    Label = {listener, Transport, whereabouts(Socket, Address)},
                    {Label, socket_name(Socket), is_in_use(Label, Socket)}
            end;
        none ->
            {listenerless(), undefined, false}
    end.

listener() ->
    case listen_sockets() of
        [Socket | _] -> listener(Socket, driver(Socket), sockname(Socket));
        [] -> none
    end.

%% OTP's cache process monitors its listen socket before it calls `init/1'. Only ports are seen among what a process
%% monitors; but from OTP 27 on the process's label has the socket, whatever it is (proc_lib:get_label/1).
-spec listen_sockets() -> [listen_socket()].
listen_sockets() ->
    {monitors, Monitors} = process_info(self(), monitors),
    case {[Port || {port, Port} <- Monitors], get('$process_label')} of
        {[_ | _] = Ports, _} -> Ports;
        {[], {_, {'$inet', _, {Pid, _}} = Socket}} when is_pid(Pid) -> [Socket];
        {[], {_, {'$socket', _} = Socket}} -> [Socket];
        {[], _} -> []
    end.

driver({'$inet', Driver, _}) ->
    Driver;
driver({'$socket', _} = Socket) ->
    maps:get(type, socket:info(Socket), undefined);
driver(Port) ->
    case erlang:port_info(Port, name) of
        {name, Name} -> Name;
        undefined -> undefined
    end.

sockname({'$socket', _} = Socket) ->
    case socket:sockname(Socket) of
        {ok, #{addr := Ip, port := Port}} -> {ok, {Ip, Port}};
        {ok, #{path := Path}} -> {ok, {local, Path}};
        {ok, _} -> {error, unknown};
        {error, _} = Error -> Error
    end;
sockname(Socket) ->
    inet:sockname(Socket).

listener(Socket, Driver, {ok, Address}) when Driver =:= "tcp_inet"; Driver =:= gen_tcp_socket; Driver =:= stream ->
    {Socket, tls, Address};
listener(Socket, Driver, {ok, Address}) when Driver =:= "udp_inet"; Driver =:= gen_udp_socket; Driver =:= dgram ->
    {Socket, dtls, Address};
listener(_, _, _) ->
    none.

shared_name(Names, {Ip, Port}) when is_map(Names) ->
    case Names of
        #{{Ip, Port} := Name} -> {ok, Name};
        #{Port := Name} -> {ok, Name};
        #{} -> none
    end;
shared_name(_, _) ->
    none.

%% One address is another one in another network namespace, and on another device.
whereabouts(Socket, Address) ->
    case [Option || {_, Value} = Option <- place(Socket), Value =/= <<>>, Value =/= ""] of
        [] -> Address;
        Elsewhere -> {Address, Elsewhere}
    end.

place(Port) when is_port(Port) ->
    case inet:getopts(Port, [netns, bind_to_device]) of
        {ok, Options} -> Options;
        {error, _} -> []
    end;
place({'$inet', _, {_, Socket}}) ->
    place(Socket);
place({'$socket', _} = Socket) ->
    %% The namespace is not to be had.
    case socket:getopt(Socket, {socket, bindtodevice}) of
        {ok, Device} when is_list(Device) -> [{bind_to_device, list_to_binary(Device)}];
        _ -> []
    end.

%% Several sockets on one address (SO_REUSEPORT) are one listener. But a listener that was closed and
%% opened again at once is another one, perhaps with another certificate authority, although the old
%% one's process may still be about to end: so it counts whether a socket is open, not the process.
%%
%% Without ports it is not known whether two sockets are in one network namespace: they are two listeners.
is_in_use(Label, Port) when is_port(Port) ->
    lists:any(fun is_open/1, rekindle_nif:sockets(Label));
is_in_use(Label, Socket) ->
    lists:member(socket_name(Socket), rekindle_nif:sockets(Label)).

is_open("#Port" ++ _ = Port) -> erlang:port_info(list_to_port(Port), id) =/= undefined;
is_open(_) -> false.

%% By name, as the native side keeps encoded terms, and those of ports change with the node's name.
socket_name(Port) when is_port(Port) -> port_to_list(Port);
socket_name({'$inet', _, {Pid, _}}) -> pid_to_list(Pid);
socket_name(Socket) -> lists:flatten(io_lib:format("~0p", [Socket])).

listenerless() ->
    case is_of_upgraded_sockets() of
        true -> upgraded;
        false -> unnamed
    end.

%% @doc Whether the caller is a listener's cache process of OTP's, and its socket cannot be told: up to OTP 26 where it is
%% no port.
-spec is_of_unknown_listener() -> boolean().
is_of_unknown_listener() ->
    get('$initial_call') =:= {ssl_server_session_cache, init, 1} andalso
        not is_of_upgraded_sockets() andalso listen_sockets() =:= [].

%% @doc The processes that have to do with the listen socket of the cache process that calls, except itself.
-spec processes_of_listener() -> [pid()].
%% The specification of erlang:port_info/2 leaves `monitored_by' out.
-dialyzer({nowarn_function, processes_of_listener/0}).
processes_of_listener() ->
    Processes = [Process || Socket <- listen_sockets(), Process <- processes_of(Socket), is_pid(Process)],
    lists:delete(self(), lists:usort(Processes)).

processes_of({'$inet', _, {Pid, Socket}}) ->
    %% Its process monitors who owns it.
    Monitors = case process_info(Pid, monitors) of {monitors, Found} -> Found; undefined -> [] end,
    [Process || {process, Process} <- Monitors] ++ processes_of(Socket);
processes_of({'$socket', _} = Socket) ->
    socket:monitored_by(Socket);
processes_of(Port) ->
    lists:append([lists:flatten([Processes]) || Item <- [connected, monitored_by], {_, Processes} <- [erlang:port_info(Port, Item)]]).

%% @doc Whether the caller is the one cache process that OTP has for all sockets upgraded with ssl:handshake/2,
%% whatever they came from.
-spec is_of_upgraded_sockets() -> boolean().
is_of_upgraded_sockets() ->
    process_info(self(), registered_name) =:= {registered_name, ssl_unknown_listener}.

%% @doc What a scope's sessions are made over; `undefined' where both may be.
-spec transport(rekindle_admin:label()) -> tls | dtls | undefined.
transport({listener, Transport, _}) -> Transport;
transport({shared, Transport, _}) -> Transport;
transport(upgraded) -> tls;
transport(_) -> undefined.

%% @doc The rest of the label, for people.
-spec name(rekindle_admin:label()) -> unicode:chardata().
name({listener, _, {Address, Elsewhere}}) when is_list(Elsewhere) ->
    io_lib:format("~ts ~0tp", [address(Address), Elsewhere]);
name({listener, _, Address}) -> address(Address);
name({shared, _, Name}) -> io_lib:format("shared: ~0tp", [Name]);
name(Label) -> io_lib:format("~0tp", [Label]).

%% @doc Where a socket listens, for people.
-spec address({inet:ip_address(), inet:port_number()} | term()) -> unicode:chardata().
address({Ip, Port}) when tuple_size(Ip) =:= 8 -> io_lib:format("[~s]:~b", [inet:ntoa(Ip), Port]);
address({Ip, Port}) when tuple_size(Ip) =:= 4 -> io_lib:format("~s:~b", [inet:ntoa(Ip), Port]);
address(Address) -> io_lib:format("~0tp", [Address]).
