%% @doc TLS and DTLS clients of other projects, and OTP's own, which resume sessions.
%%
%% openssl, curl and Python run as processes of the operating system, always without a
%% shell. All connect to 127.0.0.1 and say in a {@type result()} how many full and resumed
%% handshakes the client itself saw. A program that is missing is
%% `error({not_installed, Name})'.
-module(rekindle_clients).

-export([
    openssl_reconnect/2,
    openssl_two_processes/3,
    openssl_save/4,
    both/3,
    openssl_offer/4,
    session_id/1,
    openssl_renegotiate/3,
    curl/2,
    python/2,
    erlang/2,
    erlang_dtls/2,
    run/4
]).

-export_type([opts/0, result/0, step/0, proto/0]).

-type proto() :: tls | dtls.

-type opts() :: #{
    cafile => file:filename(),
    certfile => file:filename(),
    keyfile => file:filename(),
    cipher => string(),
    extra => [string()] | [ssl:tls_client_option()],
    sess_file => file:filename(),
    second_port => inet:port_number(),
    initiator => client | server,
    reuse_sessions => save | true,
    timeout => pos_integer()
}.
%% <dl>
%% <dt>`cafile'</dt><dd>verify the server against it; the Erlang clients need it, as OTP
%%   caches no session of an unverified server</dd>
%% <dt>`certfile', `keyfile'</dt><dd>the client's certificate</dd>
%% <dt>`cipher'</dt><dd>a cipher suite by OpenSSL's name</dd>
%% <dt>`extra'</dt><dd>more arguments for openssl and curl, more options for Erlang</dd>
%% <dt>`sess_file'</dt><dd>where {@link openssl_two_processes/3} keeps the session, to
%%   offer it again later; a temporary file otherwise</dd>
%% <dt>`second_port'</dt><dd>offer the session to the listener at this port instead</dd>
%% <dt>`initiator'</dt><dd>who renegotiates in {@link openssl_renegotiate/3}</dd>
%% <dt>`reuse_sessions'</dt><dd>of the Erlang clients' first connection: `save' (default)
%%   never resumes; `true' is ssl's own default, and resumes if an earlier connection to
%%   the same port left a session. The second connection is always `true': where the port
%%   was another listener's before, ssl may offer that one's session instead</dd>
%% <dt>`timeout'</dt><dd>milliseconds for one program or connection, 15000 by default</dd>
%% </dl>

-type result() :: #{
    client := string(),
    full := non_neg_integer(),
    resumed := non_neg_integer(),
    evidence := string(),
    output := binary(),
    survived => boolean()
}.

-type step() :: binary() | {expect, Regexp :: string()}.
%% A step of a dialogue with a program: write the binary to its input, or wait until its output since the last match
%% matches.

-define(TIMEOUT, 15000).

%% @doc One process that makes a connection and then five more with the same session.
-spec openssl_reconnect(inet:port_number(), opts()) -> result().
openssl_reconnect(Port, Opts) ->
    Steps = lists:duplicate(5, {expect, summary()}) ++ quit(),
    openssl("openssl s_client -reconnect", tls, Port, ["-reconnect"], Steps, Opts).

%% @doc One process saves its session, a second one offers it.
-spec openssl_two_processes(proto(), inet:port_number(), opts()) -> result().
openssl_two_processes(Proto, Port, #{sess_file := File} = Opts) ->
    Saved = openssl_save(Proto, Port, File, Opts),
    Offered = openssl_offer(Proto, maps:get(second_port, Opts, Port), File, Opts),
    both("openssl s_client -sess_out, then -sess_in", Saved, Offered);
openssl_two_processes(Proto, Port, Opts) ->
    File = temporary_file(),
    try
        openssl_two_processes(Proto, Port, Opts#{sess_file => File})
    after
        file:delete(File)
    end.

%% @doc Makes a connection and saves its session in `File'.
-spec openssl_save(proto(), inet:port_number(), file:filename(), opts()) -> result().
openssl_save(Proto, Port, File, Opts) ->
    openssl("openssl s_client -sess_out", Proto, Port, ["-sess_out", File], quit(), Opts).

%% @doc Makes a connection that offers the session saved in `File'.
-spec openssl_offer(proto(), inet:port_number(), file:filename(), opts()) -> result().
openssl_offer(Proto, Port, File, Opts) ->
    openssl("openssl s_client -sess_in", Proto, Port, ["-sess_in", File], quit(), Opts).

%% @doc The id of a session that was saved, as the administration has it.
-spec session_id(file:filename()) -> binary().
session_id(File) ->
    {0, Text} = run("openssl", ["sess_id", "-in", File, "-noout", "-text"], [], ?TIMEOUT),
    {match, [Id]} = re:run(Text, "Session-ID: ([0-9A-F]+)", [{capture, all_but_first, binary}]),
    Id.

%% @doc Offers the session saved in `File', renegotiates, and sends a line that must come
%% back.
%%
%% The `initiator' of the renegotiation is the `client' unless `Opts' say `server'.
%% `survived' in the result: a second handshake was finished and the connection still
%% worked. `full' and `resumed' count both handshakes.
-spec openssl_renegotiate(inet:port_number(), file:filename(), opts()) -> result().
openssl_renegotiate(Port, File, Opts) ->
    Initiator = maps:get(initiator, Opts, client),
    %% A server that answers has no more questions about its connection: OTP 27 aborts a renegotiation in which
    %% its certificate is asked for.
    Settled = [{expect, summary()}, <<"hello\n">>, {expect, "(?m)^hello"}],
    Echo = [<<"still here\n">>, {expect, "(?m)^still here"}, <<"Q\n">>],
    Steps = Settled ++ renegotiate(Initiator) ++ Echo,
    Args = openssl_args(tls, Port, ["-msg", "-sess_in", File], Opts),
    {_, Output} = run("openssl", Args, Steps, timeout(Opts)),
    Hellos = count("(?m)^<<< .*, ServerHello$", Output),
    Full = count("(?m)^<<< .*, Certificate$", Output),
    Finished = count("(?m)^<<< .*, Finished$", Output),
    Echoed = count("(?m)^still here", Output),
    #{
        client => lists:concat(["openssl s_client, ", Initiator, " renegotiates"]),
        full => Full,
        resumed => Hellos - Full,
        evidence => lists:concat([Finished, " handshakes, ", Echoed, " line echoed"]),
        output => Output,
        survived => Finished =:= 2 andalso Echoed =:= 1
    }.

%% @doc One process that fetches the same page twice, on two connections.
-spec curl(inet:port_number(), opts()) -> result().
curl(Port, Opts) ->
    Url = "https://127.0.0.1:" ++ integer_to_list(Port) ++ "/",
    %% -q: no ~/.curlrc.
    Args = lists:append([
        ["-q", "-s", "-v", "--noproxy", "*", "--tls-max", "1.2"],
        option("--cacert", Opts, cafile, ["--insecure"]),
        option("--cert", Opts, certfile),
        option("--key", Opts, keyfile),
        option("--ciphers", Opts, cipher),
        maps:get(extra, Opts, []),
        [Url, Url]
    ]),
    {_, Output} = run("curl", Args, [], timeout(Opts)),
    Connections = count("(?m)^\\* SSL connection using ", Output),
    Resumed = count("SSL re-?using session", Output),
    #{
        client => "curl",
        full => Connections - Resumed,
        resumed => Resumed,
        evidence => first_match("SSL re-?using session[^\r\n]*", Output, "no session reused"),
        output => Output
    }.

%% @doc Python's `ssl' module: two connections, the second with the session of the first.
-spec python(inet:port_number(), opts()) -> result().
python(Port, Opts) ->
    Files = [maps:get(Key, Opts, "") || Key <- [cafile, certfile, keyfile, cipher]],
    Args = ["-c", python_script(), integer_to_list(Port) | Files],
    {_, Output} = run("python3", Args, [], timeout(Opts)),
    Answers = matches("(?m)^session_reused (True|False)", Output),
    Resumed = length([1 || "True" <- Answers]),
    #{
        client => "Python ssl",
        full => length(Answers) - Resumed,
        resumed => Resumed,
        evidence => "session_reused: " ++ join(Answers),
        output => Output
    }.

%% @doc OTP's own client in this node: two connections, compared by their session ids.
-spec erlang(inet:port_number(), opts()) -> result().
erlang(Port, Opts) ->
    erlang("Erlang ssl", [{versions, ['tlsv1.2']}], Port, Opts).

%% @doc The same over DTLS.
-spec erlang_dtls(inet:port_number(), opts()) -> result().
erlang_dtls(Port, Opts) ->
    erlang("Erlang ssl (DTLS)", [{protocol, dtls}, {versions, ['dtlsv1.2']}], Port, Opts).

%% @doc Runs a program without a shell, and returns its exit status and all it printed.
%%
%% `Exe' is looked up in the path. `Input' is followed step by step. A program that takes
%% longer than `TimeoutMs', or outlives the calling process, is killed; the status of one that
%% ends without reading its input can be lost, and is `closed' then.
-spec run(Exe :: string(), Args :: [string()], Input :: [step()], TimeoutMs :: pos_integer()) ->
    {ExitStatus :: non_neg_integer() | timeout | closed, Output :: binary()}.
run(Exe, Args, Input, TimeoutMs) ->
    Path = executable(Exe),
    Caller = self(),
    %% A process of its own: a port whose program stops reading takes its owner along.
    {Runner, Monitor} = spawn_monitor(fun() -> run(Caller, Path, Args, Input, TimeoutMs) end),
    receive
        {Runner, Result} ->
            demonitor(Monitor, [flush]),
            Result;
        {'DOWN', Monitor, process, Runner, Reason} ->
            error({run, Exe, Reason})
    end.

%% ---- running programs ----

run(Caller, Path, Args, Input, TimeoutMs) ->
    process_flag(trap_exit, true),
    _ = monitor(process, Caller),
    Port = open_port({spawn_executable, Path}, [
        {args, Args}, binary, stream, exit_status, stderr_to_stdout, hide
    ]),
    _ = erlang:send_after(TimeoutMs, self(), timeout),
    Caller ! {self(), follow(Input, Port, <<>>, 0)}.

follow([{expect, Regexp} | Rest] = Steps, Port, Output, Seen) ->
    case re:run(Output, Regexp, [{offset, Seen}, {capture, first}]) of
        {match, [{At, Length}]} -> follow(Rest, Port, Output, At + Length);
        nomatch -> wait(Steps, Port, Output, Seen)
    end;
follow([Bytes | Rest], Port, Output, Seen) ->
    %% Not port_command/2, which fails if the program is gone.
    Port ! {self(), {command, Bytes}},
    follow(Rest, Port, Output, Seen);
follow([], Port, Output, Seen) ->
    wait([], Port, Output, Seen).

wait(Steps, Port, Output, Seen) ->
    receive
        {Port, {data, Data}} ->
            follow(Steps, Port, <<Output/binary, Data/binary>>, Seen);
        {Port, {exit_status, Status}} ->
            {Status, Output};
        {'EXIT', Port, _} ->
            {closed, Output};
        timeout ->
            kill(Port),
            {timeout, Output};
        {'DOWN', _, process, _, _} ->
            kill(Port),
            exit(normal)
    end.

kill(Port) ->
    case erlang:port_info(Port, os_pid) of
        {os_pid, OsPid} ->
            Args = ["-KILL", integer_to_list(OsPid)],
            Kill = open_port({spawn_executable, executable("kill")}, [{args, Args}, exit_status]),
            receive
                {Kill, {exit_status, _}} -> ok
            end;
        undefined ->
            ok
    end.

executable(Name) ->
    case os:find_executable(Name) of
        false -> error({not_installed, Name});
        Path -> Path
    end.

%% ---- openssl ----

openssl(Client, Proto, Port, Args, Steps, Opts) ->
    AllArgs = openssl_args(Proto, Port, Args, Opts),
    {Status, Output} = run("openssl", AllArgs, Steps, timeout(Opts)),
    Outcomes = outcomes(Status, Output),
    #{
        client => Client,
        full => length([1 || "New" <- Outcomes]),
        resumed => length([1 || "Reused" <- Outcomes]),
        evidence => count_runs(Outcomes),
        output => Output
    }.

%% s_client reports a handshake that the server refused like a finished one, and only its
%% exit status tells: it stops at the first failure.
outcomes(Status, Output) ->
    Words = matches("(?m)^(New|Reused), ", Output),
    case Status of
        0 -> Words;
        timeout -> Words ++ ["timeout"];
        _ -> lists:sublist(Words, max(0, length(Words) - 1)) ++ ["failed"]
    end.

openssl_args(Proto, Port, Args, Opts) ->
    lists:append([
        ["s_client", "-connect", "127.0.0.1:" ++ integer_to_list(Port), version(Proto)],
        option("-CAfile", Opts, cafile),
        ["-verify_return_error" || is_map_key(cafile, Opts)],
        option("-cert", Opts, certfile),
        option("-key", Opts, keyfile),
        option("-cipher", Opts, cipher),
        Args,
        maps:get(extra, Opts, [])
    ]).

version(tls) -> "-tls1_2";
version(dtls) -> "-dtls1_2".

%% s_client quits on a Q at once, even within its handshake.
quit() ->
    [{expect, summary()}, <<"Q\n">>].

%% The last lines that s_client prints about a finished handshake.
summary() ->
    "(?s)(?:New|Reused), .*?Extended master secret: \\w+\n---\n".

%% s_client only sees a command at the start of what one read gives it.
renegotiate(client) ->
    %% A line that is sent in the middle of the handshake would break it.
    [<<"R\n">>, {expect, "RENEGOTIATING"}, {expect, "(?m)^<<< .*, Finished$"}];
renegotiate(server) ->
    [<<"renegotiate\n">>, {expect, "(?m)^(?:renegotiated|failed: .*)$"}].

both(Client, First, Second) ->
    #{full := Full1, resumed := Resumed1, evidence := Evidence1, output := Output1} = First,
    #{full := Full2, resumed := Resumed2, evidence := Evidence2, output := Output2} = Second,
    #{
        client => Client,
        full => Full1 + Full2,
        resumed => Resumed1 + Resumed2,
        evidence => Evidence1 ++ ", then " ++ Evidence2,
        output => <<Output1/binary, Output2/binary>>
    }.

temporary_file() ->
    Unique = integer_to_list(erlang:unique_integer([positive])),
    Name = lists:concat(["rekindle-", os:getpid(), "-", Unique, ".session"]),
    filename:join(os:getenv("TMPDIR", "/tmp"), Name).

%% ---- Python ----

python_script() ->
    "import socket, ssl, sys\n"
    "port, ca, cert, key, cipher = sys.argv[1:]\n"
    "ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n"
    "ctx.maximum_version = ssl.TLSVersion.TLSv1_2\n"
    "if ca:\n"
    "    ctx.load_verify_locations(ca)\n"
    "else:\n"
    "    ctx.check_hostname = False\n"
    "    ctx.verify_mode = ssl.CERT_NONE\n"
    "if cert:\n"
    "    ctx.load_cert_chain(cert, key)\n"
    "if cipher:\n"
    "    ctx.set_ciphers(cipher)\n"
    "session = None\n"
    "for _ in range(2):\n"
    "    raw = socket.create_connection(('127.0.0.1', int(port)), timeout=10)\n"
    "    with ctx.wrap_socket(raw, server_hostname='localhost', session=session) as s:\n"
    "        s.sendall(b'hello\\n')\n"
    "        assert s.recv(100) == b'hello\\n'\n"
    "        session = s.session\n"
    "        print('session_reused', s.session_reused)\n".

%% ---- Erlang ----

erlang(Client, ProtoOpts, Port, Opts) ->
    SslOpts = ProtoOpts ++ erlang_opts(Opts),
    Timeout = timeout(Opts),
    First = erlang_connect(Port, maps:get(reuse_sessions, Opts, save), SslOpts, Timeout),
    Second = erlang_connect(Port, true, SslOpts, Timeout),
    erlang_result(Client, First, Second).

erlang_opts(Opts) ->
    [
        {verify, verify_peer},
        {cacertfile, maps:get(cafile, Opts)},
        {active, false},
        {mode, binary}
    ] ++
        [{certfile, File} || #{certfile := File} <- [Opts]] ++
        [{keyfile, File} || #{keyfile := File} <- [Opts]] ++
        [{ciphers, [Cipher]} || #{cipher := Cipher} <- [Opts]] ++
        maps:get(extra, Opts, []).

%% By name: OTP 25 files a session under the server name it sends, and looks for it under the
%% host it was told to connect to.
erlang_connect(Port, Reuse, SslOpts, Timeout) ->
    case ssl:connect("localhost", Port, [{reuse_sessions, Reuse} | SslOpts], Timeout) of
        {ok, Socket} ->
            {ok, [{session_id, Id}]} = ssl:connection_information(Socket, [session_id]),
            Echo = erlang_echo(Socket, Timeout),
            _ = ssl:close(Socket),
            %% ssl_manager may still have the session in its mailbox; it answers in order.
            _ = sys:get_state(ssl_manager),
            [Id || Echo =:= {ok, <<"hello\n">>}];
        {error, _} ->
            []
    end.

erlang_echo(Socket, Timeout) ->
    _ = ssl:send(Socket, <<"hello\n">>),
    ssl:recv(Socket, 6, Timeout).

erlang_result(Client, First, Second) ->
    %% `session_resumption' is false on a resumed TLS 1.2 session in OTP 25 and 27.
    Resumed = length([1 || Id <- Second, lists:member(Id, First)]),
    Ids = [hex(Id) || Id <- First ++ Second],
    #{
        client => Client,
        full => length(Ids) - Resumed,
        resumed => Resumed,
        evidence => "session ids " ++ join([string:slice(Id, 0, 8) || Id <- Ids]),
        output => iolist_to_binary([[Id, $\n] || Id <- Ids])
    }.

hex(Bin) ->
    lists:flatten([io_lib:format("~2.16.0b", [Byte]) || <<Byte>> <= Bin]).

%% ---- arguments and output ----

timeout(Opts) ->
    maps:get(timeout, Opts, ?TIMEOUT).

option(Name, Opts, Key) ->
    option(Name, Opts, Key, []).

option(Name, Opts, Key, Default) ->
    case Opts of
        #{Key := Value} -> [Name, Value];
        #{} -> Default
    end.

count(Regexp, Output) ->
    case re:run(Output, Regexp, [global, {capture, first}]) of
        {match, Matches} -> length(Matches);
        nomatch -> 0
    end.

matches(Regexp, Output) ->
    case re:run(Output, Regexp, [global, {capture, all_but_first, list}]) of
        {match, Matches} -> lists:append(Matches);
        nomatch -> []
    end.

first_match(Regexp, Output, Default) ->
    case re:run(Output, Regexp, [{capture, first, list}]) of
        {match, [Match]} -> Match;
        nomatch -> Default
    end.

%% ["New", "Reused", "Reused"] -> "New, Reused x 2"
count_runs([]) ->
    "no handshake";
count_runs([Word | Rest]) ->
    join(count_runs(Rest, Word, 1)).

count_runs([Word | Rest], Word, N) ->
    count_runs(Rest, Word, N + 1);
count_runs(Rest, Word, 1) ->
    [Word | next_run(Rest)];
count_runs(Rest, Word, N) ->
    [lists:concat([Word, " x ", N]) | next_run(Rest)].

next_run([]) -> [];
next_run([Word | Rest]) -> count_runs(Rest, Word, 1).

join(Words) ->
    lists:append(lists:join(", ", Words)).
