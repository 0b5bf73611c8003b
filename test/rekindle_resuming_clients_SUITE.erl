%% Which clients resume: real ones of many libraries. Those that a system does not have are skipped, and counted as skipped.
-module(rekindle_resuming_clients_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

all() ->
    [
        openssl_resumes,
        curl_resumes,
        python_resumes,
        erlang_resumes,
        gnutls_resumes,
        node_resumes,
        boringssl_resumes,
        java_resumes_with_a_check_of_the_name,
        java_with_its_defaults_does_not
    ].

suite() ->
    [{timetrap, {minutes, 2}}].

init_per_suite(Config) ->
    [{certs, rekindle_certs:make(?config(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

openssl_resumes(Config) ->
    resumes(5, tls, Config, fun(Port) -> rekindle_clients:openssl_reconnect(Port, #{}) end),
    resumes(1, dtls, Config, fun(Port) -> rekindle_clients:openssl_two_processes(dtls, Port, #{}) end).

curl_resumes(Config) ->
    resumes(1, tls, Config, fun(Port) -> rekindle_clients:curl(Port, #{}) end).

python_resumes(Config) ->
    resumes(1, tls, Config, fun(Port) -> rekindle_clients:python(Port, #{}) end).

erlang_resumes(Config) ->
    {ok, _} = application:ensure_all_started(ssl),
    Opts = #{cafile => maps:get(ca, ?config(certs, Config))},
    resumes(1, tls, Config, fun(Port) -> rekindle_clients:erlang(Port, Opts) end),
    resumes(1, dtls, Config, fun(Port) -> rekindle_clients:erlang_dtls(Port, Opts) end).

%% It makes the second connection at once, and stays until it is ended.
gnutls_resumes(Config) ->
    Gnutls = fun(More, Version) ->
        fun(Port) ->
            Priority = "NORMAL:-VERS-ALL:+VERS-" ++ Version,
            Args = ["--resume", "--insecure", "--priority", Priority, "-p", integer_to_list(Port) | More] ++ ["127.0.0.1"],
            run("gnutls-cli", Args, 5_000)
        end
    end,
    with("gnutls-cli", fun(_) ->
        resumes(1, tls, Config, Gnutls([], "TLS1.2")),
        resumes(1, dtls, Config, Gnutls(["--udp"], "DTLS1.2"))
    end).

node_resumes(Config) ->
    with("node", fun(Node) -> resumes(1, tls, Config, fun(Port) -> run(Node, [data("resume.js", Config), integer_to_list(Port)]) end) end).

boringssl_resumes(Config) ->
    Python = os:getenv("REKINDLE_CURL_CFFI_PYTHON", "python3"),
    case os:find_executable(Python) =/= false andalso rekindle_clients:run(Python, ["-c", "import curl_cffi"], [], 30_000) of
        {0, _} ->
            Script = data("resume_boringssl.py", Config),
            resumes(1, tls, Config, fun(Port) -> run(Python, [Script, integer_to_list(Port)]) end);
        _ ->
            {skip, "NO curl_cffi HERE (pip install curl_cffi). BoringSSL WAS NOT TESTED."}
    end.

java_resumes_with_a_check_of_the_name(Config) ->
    with("java", fun(Java) -> resumes(1, tls, Config, java(Java, ["HTTPS"], Config)) end).

%% Not without the extended master secret, which ssl of OTP 25 does not have, or a check of the host's name.
java_with_its_defaults_does_not(Config) ->
    with("java", fun(Java) -> resumes(0, tls, Config, java(Java, [], Config)) end).

java(Java, More, Config) ->
    fun(Port) -> run(Java, [data("Resume.java", Config), integer_to_list(Port) | More]) end.

%% ---- ----

with(Name, Fun) ->
    case os:find_executable(Name) of
        false -> {skip, "NO " ++ Name ++ " HERE. IT WAS NOT TESTED."};
        Path -> Fun(Path)
    end.

run(Program, Args) ->
    run(Program, Args, 60_000).

run(Program, Args, TimeoutMs) ->
    {_, Output} = Result = rekindle_clients:run(Program, Args, [], TimeoutMs),
    ct:log("~ts", [Output]),
    Result.

%% Runs a client against a listener of its own, and checks how often the cache handed a session out.
resumes(Times, Proto, Config, Client) ->
    Node = rekindle_node:start_ssl([]),
    #{server := #{rsa := #{cert := Cert, key := Key}}, ca := Ca} = ?config(certs, Config),
    Version = maps:get(Proto, #{tls => 'tlsv1.2', dtls => 'dtlsv1.2'}),
    Options = [{certfile, Cert}, {keyfile, Key}, {cacertfile, Ca}, {versions, [Version]}, {reuse_sessions, true}],
    {Server, Port} = rekindle_node:call(Node, rekindle_servers, start, [Proto, Options]),
    _ = Client(Port),
    Handshakes = 1 + max(1, Times),
    rekindle_node:await(fun() -> length(rekindle_node:call(Node, rekindle_servers, handshakes, [Server])) >= Handshakes end),
    [#{hits := Hits, inserts := Inserts}] = rekindle_node:call(Node, rekindle_admin, info, [Port]),
    ?assertEqual({Times, Handshakes - Times}, {Hits, Inserts}),
    rekindle_node:stop(Node),
    ok.

data(File, Config) ->
    filename:join(?config(data_dir, Config), File).
