%% @doc Puts hours of a server's life into minutes: devices connect, resume and stay away too long, over TLS and DTLS; listeners
%% are closed and opened; connections and OTP's cache processes are killed.
%% Started by run.sh.
%%
%% The server is a node of its own. Each device knows whether its session has to resume, or must not, and reports a difference. The
%% run fails if a device reports one, if the server logs an error that nobody provoked, or if its memory grows.
-module(rekindle_soak).

-export([start/1]).
-export([serve/3, accept/2, count_reports/0, log/2, kill_connection/0, kill_cache/1, memory/0]).

%% Seconds. The bounds are narrow, so that sessions expire and are evicted all the time.
-define(LIFETIME, 30).
%% Allowed difference, because clocks go in steps and a session is made before its device knows it.
-define(DOUBT, 3).
-define(MAX_SESSIONS, 300).

-define(DEVICES, 12).
-define(SAMPLE_MS, 1_000).
-define(CHAOS_MS, 3_000).
%% OTP gives a cache supervisor up after four crashes an hour; two leave room for one that was not meant.
-define(CACHE_KILLS_AN_HOUR, 2).

%% A `steady' listener is never closed, and none of its sessions may be lost.
-define(LISTENERS, [{steady, tls}, {steady_dtls, dtls}, {reopened, tls}, {reopened_dtls, dtls}, {killed, tls}]).
-define(STEADY, [steady, steady_dtls]).

%% The table of all counters.
-define(TABLE, ?MODULE).

%% @doc The arguments are minutes and an empty folder.
-spec start([string()]) -> no_return().
start([Minutes, Folder]) ->
    Seconds = round(60 * to_number(Minutes)),
    {ok, _} = application:ensure_all_started(ssl),
    logger:set_primary_config(level, error),
    ets:new(?TABLE, [named_table, public, {write_concurrency, true}]),
    Certs = rekindle_certs:make(Folder),
    Journal = {folder, filename:join(Folder, "journal")},
    Options = [{session_cb_init_args, [{max_sessions, ?MAX_SESSIONS}, {lifetime, ?LIFETIME}, {journal, Journal}]}],
    Node = rekindle_node:start_ssl(Options),
    ok = rekindle_node:call(Node, ?MODULE, count_reports, []),
    [open(Node, Name, Kind, Certs) || {Name, Kind} <- ?LISTENERS],
    Workers =
        [fun() -> device(Name, Kind, Certs, N rem 2 =:= 0, none) end || {Name, Kind} <- ?LISTENERS, N <- lists:seq(1, ?DEVICES)] ++
            [fun() -> openssl(Certs) end, fun() -> flood(Certs) end, fun() -> chaos(Node, Certs, Seconds) end],
    [spawn_link(Worker) || Worker <- Workers],
    Samples = sample(Node, now_ms() + 1000 * Seconds, []),
    Failures = report(Seconds, Node, Samples),
    halt(min(1, Failures)).

to_number(Text) ->
    try
        list_to_float(Text)
    catch
        error:badarg -> float(list_to_integer(Text))
    end.

%% ---- the server's node ----

open(Node, Name, Kind, Certs) ->
    Port = rekindle_node:call(Node, ?MODULE, serve, [Name, Kind, server_opts(Kind, Certs)]),
    ets:insert(?TABLE, {Name, ets:update_counter(?TABLE, {epoch, Name}, 1, {{epoch, Name}, 0}), Port}).

server_opts(Kind, #{ca := Ca, server := #{ec := #{cert := Cert, key := Key}}}) ->
    [
        {ip, {127, 0, 0, 1}},
        {certfile, Cert},
        {keyfile, Key},
        {cacertfile, Ca},
        {verify, verify_peer},
        {reuse_sessions, true},
        {active, false},
        {mode, binary},
        {versions, [version(Kind)]},
        {protocol, Kind},
        {log_level, none}
        | [{reuseaddr, true} || Kind =:= tls]
    ].

version(tls) -> 'tlsv1.2';
version(dtls) -> 'dtlsv1.2'.

%% @private Opens a listener, in place of the one of that name. Answers its port.
serve(Name, Kind, Options) ->
    case whereis(Name) of
        undefined ->
            ok;
        Old ->
            Monitor = monitor(process, Old),
            Old ! close,
            receive
                {'DOWN', Monitor, process, _, _} -> ok
            end
    end,
    Caller = self(),
    spawn(fun() ->
        register(Name, self()),
        {ok, Listener} = ssl:listen(0, Options),
        {ok, {_, Port}} = ssl:sockname(Listener),
        Acceptors = [spawn(?MODULE, accept, [Kind, Listener]) || _ <- lists:seq(1, 4)],
        Caller ! {Name, Port},
        receive
            close -> ok
        end,
        [exit(Pid, kill) || Pid <- Acceptors],
        ssl:close(Listener)
    end),
    receive
        {Name, Port} -> Port
    end.

%% @private
accept(Kind, Listener) ->
    case ssl:transport_accept(Listener) of
        {ok, Transport} ->
            Pid = spawn(fun() ->
                receive
                    go -> echo(Transport)
                end
            end),
            _ = ssl:controlling_process(Transport, Pid),
            Pid ! go,
            accept(Kind, Listener);
        {error, _} ->
            timer:sleep(50),
            accept(Kind, Listener)
    end.

echo(Transport) ->
    case ssl:handshake(Transport, 10_000) of
        {ok, Socket} ->
            case ssl:recv(Socket, 0, 10_000) of
                {ok, Bytes} ->
                    _ = ssl:send(Socket, Bytes),
                    _ = ssl:recv(Socket, 0, 10_000);
                {error, _} ->
                    ok
            end,
            _ = ssl:close(Socket),
            ok;
        {error, _} ->
            ok
    end.

%% @private Error reports that do not mention what chaos killed.
count_reports() ->
    persistent_term:put(?MODULE, counters:new(1, [])),
    Self = self(),
    spawn(fun() ->
        ets:new(killed, [named_table, public]),
        Self ! ready,
        timer:sleep(infinity)
    end),
    receive
        ready -> ok
    end,
    ok = logger:remove_handler(default),
    logger:add_handler(?MODULE, ?MODULE, #{level => error}).

%% @private A logger handler.
log(Event, _) ->
    Text = unicode:characters_to_list(logger_formatter:format(Event, #{template => [msg], single_line => true})),
    case [Pid || {Pid} <- ets:tab2list(killed), string:find(Text, Pid) =/= nomatch] of
        [] ->
            counters:add(persistent_term:get(?MODULE), 1, 1),
            io:format("the server logged: ~ts~n", [Text]);
        _ ->
            ok
    end.

kill(Pid) ->
    ets:insert(killed, {pid_to_list(Pid)}),
    exit(Pid, kill).

%% @private Kills a process of a connection.
kill_connection() ->
    Pids = [Pid || Sup <- [tls_connection_sup, dtls_connection_sup], Pid <- descendants(Sup)],
    case Pids of
        [] -> false;
        _ -> kill(lists:nth(rand:uniform(length(Pids)), Pids))
    end.

descendants(Sup) ->
    try supervisor:which_children(Sup) of
        Children ->
            lists:append([
                case Type of
                    supervisor -> descendants(Pid);
                    worker -> [Pid]
                end
             || {_, Pid, Type, _} <- Children, is_pid(Pid)
            ])
    catch
        exit:_ -> []
    end.

%% @private Kills OTP's cache process of a listener.
kill_cache(Port) ->
    [
        kill(Cache)
     || {_, Cache, _, _} <- supervisor:which_children(ssl_server_session_cache_sup),
        {monitors, [{port, Socket}]} <- [process_info(Cache, monitors)],
        {ok, {_, P}} <- [inet:sockname(Socket)],
        P =:= Port
    ].

%% @private Resident bytes of the process of the operating system, and bytes of the BEAM's.
memory() ->
    {ok, Status} = file:read_file("/proc/self/status"),
    {match, [Kib]} = re:run(Status, "VmRSS:\\s+([0-9]+)", [{capture, all_but_first, list}]),
    {1024 * list_to_integer(Kib), erlang:memory(total)}.

%% ---- devices ----

%% A session a device has: what it needs to offer it, when it was made, and by which opening of the listener.
device(Name, Kind, Certs, HasCertificate, Session) ->
    [{_, Epoch, Port}] = ets:lookup(?TABLE, Name),
    Offer =
        case Session of
            none -> [];
            #{offer := IdAndData} -> [{reuse_session, IdAndData}]
        end,
    Start = now_ms(),
    case connect(Kind, Port, Offer, HasCertificate, Certs) of
        {ok, {Id, _} = New} ->
            [{_, EpochAfter, _}] = ets:lookup(?TABLE, Name),
            Resumed = Session =/= none andalso element(1, maps:get(offer, Session)) =:= Id,
            count(
                {Kind,
                    case Resumed of
                        true -> resumed;
                        false -> full
                    end}
            ),
            [verdict(Name, Resumed, Session, Start) || Session =/= none, Epoch =:= EpochAfter],
            pause(),
            Next =
                case Resumed of
                    true -> Session;
                    false -> #{offer => New, before => Start, made => now_ms(), epoch => Epoch}
                end,
            device(Name, Kind, Certs, HasCertificate, Next);
        {error, _} ->
            count({Kind, failed}),
            timer:sleep(200),
            device(Name, Kind, Certs, HasCertificate, Session)
    end.

%% Mostly short, now and then longer than a session lives.
pause() ->
    timer:sleep(
        case rand:uniform(20) of
            1 -> 1000 * (?LIFETIME + ?DOUBT + 1);
            _ -> rand:uniform(600)
        end
    ).

verdict(Name, Resumed, #{before := Before, made := Made, epoch := Epoch}, Start) ->
    [{_, EpochNow, _}] = ets:lookup(?TABLE, Name),
    TooOld = Start - Made > 1000 * (?LIFETIME + ?DOUBT),
    Young = now_ms() - Before < 1000 * (?LIFETIME - ?DOUBT),
    case Resumed of
        true when TooOld -> count(resumed_after_its_lifetime);
        true when Epoch =/= EpochNow -> count(resumed_on_another_listener);
        false when Young, Epoch =:= EpochNow -> lost(lists:member(Name, ?STEADY));
        _ -> ok
    end.

lost(true) -> count(lost);
lost(false) -> ok.

connect(Kind, Port, Offer, HasCertificate, #{ca := Ca, client := #{ec := #{cert := Cert, key := Key}}}) ->
    Options = [
        {versions, [version(Kind)]},
        {protocol, Kind},
        {cacertfile, Ca},
        {verify, verify_peer},
        {active, false},
        {mode, binary},
        {server_name_indication, disable},
        {reuse_sessions, save},
        {log_level, none}
        | Offer ++ [Option || HasCertificate, Option <- [{certfile, Cert}, {keyfile, Key}]]
    ],
    case ssl:connect({127, 0, 0, 1}, Port, Options, 10_000) of
        {ok, Socket} ->
            %% Answered after the server has registered the session.
            Answer =
                case ssl:send(Socket, "hello") of
                    ok -> ssl:recv(Socket, 5, 10_000);
                    Error -> Error
                end,
            Info = ssl:connection_information(Socket, [session_id, session_data]),
            _ = ssl:close(Socket),
            case {Answer, Info} of
                {{ok, <<"hello">>}, {ok, [{session_id, Id}, {session_data, Data}]}} -> {ok, {Id, Data}};
                _ -> {error, {Answer, Info}}
            end;
        {error, _} = Error ->
            Error
    end.

%% A client nobody here wrote.
openssl(#{ca := Ca} = Certs) ->
    [{_, _, Port}] = ets:lookup(?TABLE, steady),
    #{full := Full, resumed := Resumed} = rekindle_clients:openssl_reconnect(Port, #{cafile => Ca}),
    ets:update_counter(?TABLE, {openssl, full}, Full, {{openssl, full}, 0}),
    ets:update_counter(?TABLE, {openssl, resumed}, Resumed, {{openssl, resumed}, 0}),
    %% Fewer connections where one was killed; more full ones where a session was lost.
    [count({openssl, failed}) || Full + Resumed < 6],
    [count(lost) || Full > 1],
    timer:sleep(2000),
    openssl(Certs).

%% Sessions that nobody comes back for, on a listener that may lose some.
flood(Certs) ->
    [{_, _, Port}] = ets:lookup(?TABLE, killed),
    case connect(tls, Port, [], false, Certs) of
        {ok, _} -> count({flood, full});
        {error, _} -> timer:sleep(200)
    end,
    flood(Certs).

%% ---- chaos ----

chaos(Node, Certs, Seconds) ->
    Allowed = max(1, floor(?CACHE_KILLS_AN_HOUR * Seconds / 3600)),
    chaos(Node, Certs, [now_ms() + N * 1000 * Seconds div (Allowed + 1) || N <- lists:seq(1, min(3, Allowed))], 0).

chaos(Node, Certs, Kills, N) ->
    timer:sleep(?CHAOS_MS),
    case rekindle_node:call(Node, ?MODULE, kill_connection, []) of
        true -> count(killed_connections);
        false -> ok
    end,
    case N rem 3 of
        0 -> reopen(Node, reopened, tls, Certs);
        1 -> reopen(Node, reopened_dtls, dtls, Certs);
        2 -> reload(Node)
    end,
    case Kills of
        [At | Later] ->
            case now_ms() >= At of
                true ->
                    [{_, _, Port}] = ets:lookup(?TABLE, killed),
                    [_] = rekindle_node:call(Node, ?MODULE, kill_cache, [Port]),
                    count(killed_caches),
                    %% Releases differ in what a listener without its cache process does.
                    timer:sleep(500),
                    open(Node, killed, tls, Certs),
                    chaos(Node, Certs, Later, N + 1);
                false ->
                    chaos(Node, Certs, Kills, N + 1)
            end;
        [] ->
            chaos(Node, Certs, [], N + 1)
    end.

reopen(Node, Name, Kind, Certs) ->
    open(Node, Name, Kind, Certs),
    count(reopened_listeners).

%% Reloads as a hot upgrade does. Processes that run old code would be killed.
reload(Node) ->
    _ = rekindle_node:call(Node, code, purge, [rekindle]),
    {module, rekindle} = rekindle_node:call(Node, code, load_file, [rekindle]),
    count(upgrades_of_the_callback_module).

%% ---- the report ----

sample(Node, Until, Samples) ->
    timer:sleep(?SAMPLE_MS),
    Sample = rekindle_node:call(Node, ?MODULE, memory, []),
    case now_ms() < Until of
        true -> sample(Node, Until, [Sample | Samples]);
        false -> lists:reverse([Sample | Samples])
    end.

report(Seconds, Node, Samples) ->
    Infos = rekindle_node:call(Node, rekindle_admin, info, []),
    Reports = rekindle_node:run(Node, fun() -> counters:get(persistent_term:get(?MODULE), 1) end),
    %% The memory that the first fifth of the run takes does not count as growth.
    Rest = lists:nthtail(length(Samples) div 5, Samples),
    {First, Last} = {lists:sublist(Rest, length(Rest) div 4), lists:nthtail(3 * length(Rest) div 4, Rest)},
    Memory = fun(Place, Of) -> median([element(Place, Sample) || Sample <- Of]) end,
    Faults = lists:sum([Count || #{faults := Count} <- Infos]),
    Sum = fun(Key) -> lists:sum([maps:get(Key, Info) || #{role := server} = Info <- Infos]) end,
    io:format("~nsoak, ~b s~n~n", [Seconds]),
    [
        line("~s, ~s", [Kind, What], counted({Kind, What}))
     || Kind <- [tls, dtls, openssl, flood], What <- [full, resumed, failed], counted({Kind, What}) > 0
    ],
    [
        line("~s", [string:replace(atom_to_list(What), "_", " ", all)], counted(What))
     || What <- [reopened_listeners, killed_connections, killed_caches, upgrades_of_the_callback_module]
    ],
    [line("sessions ~s in the scopes open now", [What], Sum(What)) || What <- [expired, evicted, refused]],
    [
        line("~s, MiB, ~s quarter of what comes after the start", [What, Name], Memory(Place, Of) div 1048576)
     || {Place, What} <- [{1, "resident memory"}, {2, "the BEAM's memory"}], {Name, Of} <- [{first, First}, {last, Last}]
    ],
    Bad = [
        {"sessions lost that should have been there", counted(lost)},
        {"sessions resumed after their lifetime", counted(resumed_after_its_lifetime)},
        {"sessions resumed on another listener", counted(resumed_on_another_listener)},
        {"faults", Faults},
        {"error reports nobody provoked", Reports},
        {"no handshake, or no resumption, of a kind",
            length([1 || Kind <- [tls, dtls, openssl], What <- [full, resumed], counted({Kind, What}) =:= 0])},
        {"memory that grew", length([1 || Place <- [1, 2], Memory(Place, Last) > Memory(Place, First) * 5 div 4 + (16 bsl 20)])}
    ],
    [line("~s", [What], Number) || {What, Number} <- Bad],
    Failures = length([What || {What, Number} <- Bad, Number > 0]),
    io:format("~n~s~n", [
        case Failures of
            0 -> "All as it should be.";
            _ -> "Not as it should be."
        end
    ]),
    Failures.

line(Format, Args, Number) ->
    io:format("~-70ts ~10b~n", [io_lib:format(Format, Args), Number]).

median(Values) ->
    lists:nth((length(Values) + 1) div 2, lists:sort(Values)).

count(What) ->
    ets:update_counter(?TABLE, What, 1, {What, 0}).

counted(What) ->
    case ets:lookup(?TABLE, What) of
        [{_, Number}] -> Number;
        [] -> 0
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).
