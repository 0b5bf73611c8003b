%% @private Which sessions a server's cache process may share with others.
%%
%% Sessions of one listener must not resume on another unless the operator says so: a resumption skips
%% the client certificate check of the listener it arrives at (CVE-2025-23419 in nginx is this).
-module(rekindle_scope).

-export([of_server/1, processes_of_listener/0, is_of_upgraded_sockets/0, transport/1, name/1, address/1]).

%% @doc The scope of the cache process that calls: its label, the listen socket where there is one, and
%% whether to join those that already use the label.
-spec of_server(rekindle:scope()) -> {rekindle_admin:label(), Socket :: string() | undefined, Join :: boolean()}.
of_server(Option) ->
    case listener() of
        {Socket, Transport, Address} ->
            case shared_name(Option, Address) of
                {ok, Name} ->
                    {{shared, Transport, Name}, port_to_list(Socket), true};
                none ->
                    Label = {listener, Transport, whereabouts(Socket, Address)},
                    {Label, port_to_list(Socket), is_in_use(Label)}
            end;
        none ->
            {listenerless(), undefined, false}
    end.

listener() ->
    case listen_sockets() of
        [Socket | _] -> listener(Socket, erlang:port_info(Socket, name), inet:sockname(Socket));
        [] -> none
    end.

%% OTP's cache process monitors its listen socket before it calls `init/1'.
listen_sockets() ->
    {monitors, Monitors} = process_info(self(), monitors),
    [Port || {port, Port} <- Monitors].

listener(Socket, {name, "tcp_inet"}, {ok, Address}) -> {Socket, tls, Address};
listener(Socket, {name, "udp_inet"}, {ok, Address}) -> {Socket, dtls, Address};
listener(_, _, _) -> none.

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
    case inet:getopts(Socket, [netns, bind_to_device]) of
        {ok, Options} ->
            case [Option || {_, Value} = Option <- Options, Value =/= <<>>, Value =/= ""] of
                [] -> Address;
                Elsewhere -> {Address, Elsewhere}
            end;
        {error, _} ->
            Address
    end.

%% Several sockets on one address (SO_REUSEPORT) are one listener. But a listener that was closed and
%% opened again at once is another one, perhaps with another certificate authority, although the old
%% one's process may still be about to end: so it counts whether a socket is open, not the process.
is_in_use(Label) ->
    lists:any(fun is_open/1, rekindle_nif:sockets(Label)).

%% By name, as the native side keeps encoded terms, and those of ports change with the node's name.
is_open(Socket) ->
    erlang:port_info(list_to_port(Socket), id) =/= undefined.

listenerless() ->
    case is_of_upgraded_sockets() of
        true -> upgraded;
        false -> unnamed
    end.

%% @doc The processes that have to do with the listen socket of the cache process that calls, except itself.
-spec processes_of_listener() -> [pid()].
%% The specification of erlang:port_info/2 leaves `monitored_by' out.
-dialyzer({nowarn_function, processes_of_listener/0}).
processes_of_listener() ->
    Infos = [erlang:port_info(Socket, Item) || Socket <- listen_sockets(), Item <- [connected, monitored_by]],
    lists:delete(self(), lists:usort(lists:flatten([Processes || {_, Processes} <- Infos]))).

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
