%% @private Finds the scope of a server's cache process, and names scopes in text and in logs.
%%
%% Sessions of one listener must not resume on another unless the operator says so: a resumption skips the listener's check of
%% the client's certificate (as in CVE-2025-23419 in nginx).
-module(rekindle_scope).

-export([of_server/1, open_sockets/1, processes_of_listener/0, is_of_upgraded_sockets/0, is_of_unknown_listener/0]).
-export([listen_sockets/1, socket_name/1, sockname/1, text_of_socket/1]).
-export([can_have_journal/2, text/1, quoted/1, log_name/1, of_log_name/1, text_of_log_name/1, transport/1, name/1, address/1]).

-export_type([listen_socket/0]).

%% A port; or with `inet_backend = socket' one of the others.
-type listen_socket() :: port() | {'$inet', module(), {pid(), socket:socket()}} | socket:socket().

%% @doc The scope of the calling cache process: its name, the listen socket if there is one, and whether to join the open scope
%% of that name.
-spec of_server(rekindle:scope()) -> {rekindle_admin:scope_name(), Socket :: string() | undefined, Join :: boolean()}.
of_server(Option) ->
    case listener() of
        {Socket, Transport, Address} ->
            case shared_name(Option, Address) of
                {ok, Name} ->
                    {{shared, Transport, Name}, socket_name(Socket), true};
                none ->
                    Scope = {listener, Transport, bound_address(Socket, Address)},
                    {Scope, socket_name(Socket), is_in_use(Scope, Socket)}
            end;
        none ->
            {name_without_listener(), undefined, false}
    end.

listener() ->
    case listen_sockets(self()) of
        [Socket | _] -> listener(Socket, driver(Socket), sockname(Socket));
        [] -> none
    end.

%% @doc The listen sockets of one of OTP's processes: a listener's cache process, or the tracker of a TLS listener.
%%
%% Such a process monitors its listen socket; a cache process does so before it calls `init/1'. `process_info/2' shows only
%% monitored ports; but from OTP 27 on the process's label contains the socket, whatever it is (proc_lib:get_label/1).
-spec listen_sockets(pid()) -> [listen_socket()].
listen_sockets(Process) ->
    case process_info(Process, [monitors, dictionary]) of
        [{monitors, Monitors}, {dictionary, Entries}] ->
            case {[Port || {port, Port} <- Monitors], proplists:get_value('$process_label', Entries)} of
                {[_ | _] = Ports, _} -> Ports;
                {[], {_, {'$inet', _, {Pid, _}} = Socket}} when is_pid(Pid) -> [Socket];
                {[], {_, {'$socket', _} = Socket}} -> [Socket];
                {[], _} -> []
            end;
        undefined ->
            []
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

%% @doc The address of a listen socket.
-spec sockname(listen_socket()) ->
    {ok, {inet:ip_address(), inet:port_number()} | inet:returned_non_ip_address()} | {error, term()}.
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

%% The same address is a different one in another network namespace or on another device.
bound_address(Socket, Address) ->
    case [Option || {_, Value} = Option <- netns_and_device(Socket), Value =/= <<>>, Value =/= ""] of
        [] -> Address;
        Elsewhere -> {Address, Elsewhere}
    end.

netns_and_device(Port) when is_port(Port) ->
    case inet:getopts(Port, [netns, bind_to_device]) of
        {ok, Options} -> Options;
        {error, _} -> []
    end;
netns_and_device({'$inet', _, {_, Socket}}) ->
    netns_and_device(Socket);
netns_and_device({'$socket', _} = Socket) ->
    %% Such a socket does not tell its namespace.
    case socket:getopt(Socket, {socket, bindtodevice}) of
        {ok, Device} when is_list(Device) -> [{bind_to_device, list_to_binary(Device)}];
        _ -> []
    end.

%% Several sockets on one address (SO_REUSEPORT) are one listener. But a listener that was closed and opened again is another
%% one, perhaps with another certificate authority, although the old one's process may not have ended yet. So we check whether
%% a socket is open, and not whether a process lives.
%%
%% Sockets that are no ports may be in different network namespaces, so they are different listeners.
is_in_use(Scope, Port) when is_port(Port) ->
    lists:any(fun is_open/1, rekindle_nif:sockets(Scope));
is_in_use(Scope, Socket) ->
    lists:member(socket_name(Socket), rekindle_nif:sockets(Scope)).

is_open("#Port" ++ _ = Port) -> erlang:port_info(list_to_port(Port), id) =/= undefined;
is_open(_) -> false.

%% @doc The names of the open listen sockets of a scope, sorted. A socket that is no port counts as open.
-spec open_sockets(rekindle_admin:scope_name()) -> [string()].
open_sockets(Scope) ->
    lists:usort([Socket || Socket <- rekindle_nif:sockets(Scope), hd(Socket) =/= $# orelse is_open(Socket)]).

%% @doc The name of a listen socket in the native library. That keeps encoded terms, and the encoding of a port changes with the
%% node's name.
-spec socket_name(listen_socket()) -> string().
socket_name(Port) when is_port(Port) -> port_to_list(Port);
socket_name({'$inet', _, {Pid, _}}) -> pid_to_list(Pid);
socket_name(Socket) -> lists:flatten(io_lib:format("~0p", [Socket])).

name_without_listener() ->
    case is_of_upgraded_sockets() of
        true -> upgraded;
        false -> unnamed
    end.

%% @doc Whether the caller is a listener's cache process whose socket is unknown: up to OTP 26, if it is no port.
-spec is_of_unknown_listener() -> boolean().
is_of_unknown_listener() ->
    get('$initial_call') =:= {ssl_server_session_cache, init, 1} andalso
        not is_of_upgraded_sockets() andalso listen_sockets(self()) =:= [].

%% @doc The processes that own or monitor the listen socket of the calling cache process, without the caller.
-spec processes_of_listener() -> [pid()].
%% The specification of erlang:port_info/2 lacks `monitored_by'.
-dialyzer({nowarn_function, processes_of_listener/0}).
processes_of_listener() ->
    Processes = [Process || Socket <- listen_sockets(self()), Process <- processes_of(Socket), is_pid(Process)],
    lists:delete(self(), lists:usort(Processes)).

processes_of({'$inet', _, {Pid, Socket}}) ->
    %% The socket's process monitors its owner.
    Monitors =
        case process_info(Pid, monitors) of
            {monitors, Found} -> Found;
            undefined -> []
        end,
    [Process || {process, Process} <- Monitors] ++ processes_of(Socket);
processes_of({'$socket', _} = Socket) ->
    socket:monitored_by(Socket);
processes_of(Port) ->
    lists:append([
        lists:flatten([Processes])
     || Item <- [connected, monitored_by], {_, Processes} <- [erlang:port_info(Port, Item)]
    ]).

%% @doc Whether the caller is the cache process that OTP has for all sockets upgraded with ssl:handshake/2.
-spec is_of_upgraded_sockets() -> boolean().
is_of_upgraded_sockets() ->
    process_info(self(), registered_name) =:= {registered_name, ssl_unknown_listener}.

%% @doc The name of a scope in all text for people: its transport, if there is one, and the rest of the name.
-spec text(rekindle_admin:scope_name()) -> unicode:chardata().
text(Scope) ->
    case transport(Scope) of
        undefined -> name(Scope);
        Transport -> io_lib:format("~s ~ts", [Transport, name(Scope)])
    end.

%% @doc What a listen socket is called in text: as the scope that belongs to this listener alone.
-spec text_of_socket(listen_socket()) -> unicode:chardata().
text_of_socket(Socket) ->
    case listener(Socket, driver(Socket), sockname(Socket)) of
        {_, Transport, Address} -> text({listener, Transport, Address});
        none -> socket_name(Socket)
    end.

%% @doc The name in text as an Erlang string, to paste into a call of rekindle_admin.
-spec quoted(rekindle_admin:scope_name()) -> unicode:chardata().
quoted(Scope) ->
    io_lib:write_string(unicode:characters_to_list(text(Scope))).

%% @doc Whether the scope of this name can have this journal.
-spec can_have_journal(rekindle_admin:scope_name(), rekindle:journal()) -> boolean().
can_have_journal(_, none) -> false;
can_have_journal(unnamed, _) -> false;
can_have_journal({shared, _, _}, _) -> true;
%% If nodes shared sessions by accident, they would let clients in that they do not trust. So the operator has to name what
%% leaves the node.
can_have_journal(_, Journal) -> element(1, Journal) =/= valkey.

%% @doc The name of a scope in its log.
-spec log_name(rekindle_admin:scope_name()) -> binary().
log_name(Scope) ->
    unicode:characters_to_binary(io_lib:format("~0tp", [Scope])).

%% @doc The name of a scope that is called so in its log, also if the scope is no longer open. A name that cannot be read, because
%% it contains a process identifier for example, stays as it is.
-spec of_log_name(binary()) -> rekindle_admin:scope_name() | binary().
of_log_name(Name) ->
    try
        {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list([Name, "."])),
        {ok, Scope} = erl_parse:parse_term(Tokens),
        Name = log_name(Scope),
        Scope
    catch
        error:_ -> Name
    end.

%% @doc The same for people.
-spec text_of_log_name(binary()) -> unicode:chardata().
text_of_log_name(Name) ->
    case of_log_name(Name) of
        Name -> Name;
        Scope -> text(Scope)
    end.

%% @doc The transport of a scope's sessions, or `undefined' if it may be either.
-spec transport(rekindle_admin:scope_name()) -> tls | dtls | undefined.
transport({listener, Transport, _}) -> Transport;
transport({shared, Transport, _}) -> Transport;
transport(upgraded) -> tls;
transport(_) -> undefined.

%% @doc A scope's name without the transport, as people read it.
-spec name(rekindle_admin:scope_name()) -> unicode:chardata().
name({listener, _, {Address, Elsewhere}}) when is_list(Elsewhere) ->
    io_lib:format("~ts ~0tp", [address(Address), Elsewhere]);
name({listener, _, Address}) ->
    address(Address);
name({shared, _, Name}) ->
    io_lib:format("shared: ~0tp", [Name]);
name(Scope) ->
    io_lib:format("~0tp", [Scope]).

%% @doc The address of a socket, as people read it.
-spec address({inet:ip_address(), inet:port_number()} | term()) -> unicode:chardata().
address({Ip, Port}) when tuple_size(Ip) =:= 8 -> io_lib:format("[~s]:~b", [inet:ntoa(Ip), Port]);
address({Ip, Port}) when tuple_size(Ip) =:= 4 -> io_lib:format("~s:~b", [inet:ntoa(Ip), Port]);
address(Address) -> io_lib:format("~0tp", [Address]).
