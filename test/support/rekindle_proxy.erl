%% @doc A TCP proxy on 127.0.0.1 that disturbs connections as networks do. Its caller decides how, while it runs.
%%
%% It ends with the process that started it, or by {@link stop/1}.
-module(rekindle_proxy).

-export([start/1, port/1, set/2, stop/1]).

-export_type([proxy/0, mode/0, direction/0]).

-opaque proxy() :: #{owner := pid(), table := ets:table(), port := inet:port_number()}.

-type direction() :: to_server | to_client.

-type mode() ::
    pass
    | hold
    | {delay, Ms :: non_neg_integer()}
    | {cut, direction(), Bytes :: non_neg_integer()}
    | {flip, direction(), Every :: pos_integer()}
    | {clock_ahead, Seconds :: pos_integer()}.
%% <dl>
%% <dt>`pass'</dt><dd>bytes go through</dd>
%% <dt>`hold'</dt><dd>connections are taken, and nothing goes through until another mode is set</dd>
%% <dt>`delay'</dt><dd>what comes is held for so long, each time</dd>
%% <dt>`cut'</dt><dd>each connection is reset after this many more bytes</dd>
%% <dt>`flip'</dt><dd>one bit is flipped in every byte whose position in the connection is a multiple of this number</dd>
%% <dt>`clock_ahead'</dt><dd>what Valkey answers to TIME is so much later</dd>
%% </dl>

-define(HELD_MS, 20).

%% @doc A proxy in front of this port.
-spec start(inet:port_number()) -> proxy().
start(Target) ->
    Starter = self(),
    Owner = spawn(fun() ->
        Monitor = monitor(process, Starter),
        Table = ets:new(?MODULE, [public]),
        true = ets:insert(Table, {mode, 0, pass}),
        {ok, Listener} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}} | options()]),
        {ok, Port} = inet:port(Listener),
        _ = spawn_link(fun() -> accept(Listener, Table, Target) end),
        Starter ! {self(), #{owner => self(), table => Table, port => Port}},
        receive
            {'DOWN', Monitor, _, _, _} -> exit(shutdown);
            stop -> exit(shutdown)
        end
    end),
    receive
        {Owner, Proxy} -> Proxy
    end.

-spec port(proxy()) -> inet:port_number().
port(#{port := Port}) -> Port.

%% @doc Sets the mode, also for open connections. Bytes are counted from now on.
-spec set(proxy(), mode()) -> ok.
set(#{table := Table}, Mode) ->
    true = ets:insert(Table, {mode, erlang:unique_integer(), Mode}),
    ok.

%% @doc Closes all connections, and accepts no more.
-spec stop(proxy()) -> ok.
stop(#{owner := Owner}) ->
    Monitor = monitor(process, Owner),
    Owner ! stop,
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    end.

options() ->
    [binary, {active, false}, {nodelay, true}].

%% All are linked with the owner.
accept(Listener, Table, Target) ->
    {ok, Client} = gen_tcp:accept(Listener),
    Owner = self(),
    Connection = spawn_link(fun() ->
        receive
            Owner -> connect(Client, Table, Target)
        end
    end),
    ok = gen_tcp:controlling_process(Client, Connection),
    Connection ! Owner,
    accept(Listener, Table, Target).

connect(Client, Table, Target) ->
    case gen_tcp:connect({127, 0, 0, 1}, Target, options()) of
        {ok, Server} ->
            Back = spawn_link(fun() -> forward(to_client, Server, Client, Table) end),
            ok = forward(to_server, Client, Server, Table),
            Monitor = monitor(process, Back),
            receive
                {'DOWN', Monitor, _, _, _} -> ok
            end;
        {error, _} ->
            reset(Client)
    end.

forward(Direction, From, To, Table) ->
    forward(Direction, From, To, Table, none, 0).

%% `Count' bytes went through since the mode was set.
forward(Direction, From, To, Table, Since, Count) ->
    case gen_tcp:recv(From, 0) of
        {ok, Bytes} ->
            {Now, Mode} = mode(Table),
            Seen =
                case Now of
                    Since -> Count;
                    _ -> 0
                end,
            case treat(Mode, Direction, Bytes, Seen) of
                {Rest, cut} ->
                    _ = gen_tcp:send(To, Rest),
                    both(fun reset/1, From, To);
                Treated ->
                    case gen_tcp:send(To, Treated) of
                        ok -> forward(Direction, From, To, Table, Now, Seen + byte_size(Bytes));
                        {error, _} -> both(fun gen_tcp:close/1, From, To)
                    end
            end;
        {error, _} ->
            both(fun gen_tcp:close/1, From, To)
    end.

mode(Table) ->
    case ets:lookup(Table, mode) of
        [{mode, _, hold}] ->
            timer:sleep(?HELD_MS),
            mode(Table);
        [{mode, Since, Mode}] ->
            {Since, Mode}
    end.

treat({delay, Ms}, _, Bytes, _) ->
    timer:sleep(Ms),
    Bytes;
treat({cut, Direction, After}, Direction, Bytes, Seen) when Seen + byte_size(Bytes) >= After ->
    {binary:part(Bytes, 0, max(0, After - Seen)), cut};
treat({flip, Direction, Every}, Direction, Bytes, Seen) ->
    Numbered = lists:zip(lists:seq(Seen + 1, Seen + byte_size(Bytes)), binary_to_list(Bytes)),
    <<<<(flip(Number rem Every, Byte))>> || {Number, Byte} <- Numbered>>;
treat({clock_ahead, Seconds}, to_client, Bytes, _) ->
    case re:run(Bytes, "^\\*2\r\n\\$10\r\n(\\d{10})\r\n\\$\\d\r\n", [{capture, all_but_first, index}]) of
        {match, [{At, 10}]} ->
            <<Before:At/binary, Time:10/binary, After/binary>> = Bytes,
            <<Before/binary, (integer_to_binary(binary_to_integer(Time) + Seconds))/binary, After/binary>>;
        nomatch ->
            Bytes
    end;
treat(_, _, Bytes, _) ->
    Bytes.

flip(0, Byte) -> Byte bxor 2#100;
flip(_, Byte) -> Byte.

both(Close, One, Other) ->
    _ = Close(One),
    _ = Close(Other),
    ok.

reset(Socket) ->
    _ = inet:setopts(Socket, [{linger, {true, 0}}]),
    gen_tcp:close(Socket).
