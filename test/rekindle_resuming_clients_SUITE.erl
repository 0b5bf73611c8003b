%% Tests which clients resume, with real clients of many libraries. Clients that a system does not have count as skipped.
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
        nss_resumes,
        mbedtls_resumes,
        wolfssl_resumes,
        bearssl_resumes,
        rustls_resumes,
        go_has_only_tickets,
        java_resumes_with_a_check_of_the_name,
        java_with_its_defaults_does_not
    ].

suite() ->
    [{timetrap, {minutes, 10}}].

%% One certificate of openssl's for all listeners: mbedTLS and wolfSSL take none of public_key's, which writes an algorithm's
%% parameters where there are none.
init_per_suite(Config) ->
    Dir = filename:join(?config(priv_dir, Config), "ca"),
    Ca = rekindle_ca:new(Dir, "Test CA"),
    Names = filename:join(Dir, "names"),
    ok = file:write_file(Names, "subjectAltName = DNS:localhost, IP:127.0.0.1\n"),
    [{ca, maps:get(cert, Ca)}, {server, rekindle_ca:issue(Ca, "localhost", ["-extfile", Names])} | Config].

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
    Opts = #{cafile => ?config(ca, Config)},
    resumes(1, tls, Config, fun(Port) -> rekindle_clients:erlang(Port, Opts) end),
    resumes(1, dtls, Config, fun(Port) -> rekindle_clients:erlang_dtls(Port, Opts) end).

%% It makes the second connection at once, and stays until it is ended.
gnutls_resumes(Config) ->
    Gnutls = fun(More, Version) ->
        fun(Port) ->
            Priority = "NORMAL:-VERS-ALL:+VERS-" ++ Version,
            Args = ["--resume", "--insecure", "--priority", Priority, "-p", integer_to_list(Port) | More] ++ ["127.0.0.1"],
            run("gnutls-cli", Args, 10_000)
        end
    end,
    with("gnutls-cli", fun(_) ->
        resumes(1, tls, Config, Gnutls([], "TLS1.2")),
        resumes(1, dtls, Config, Gnutls(["--udp"], "DTLS1.2"))
    end).

node_resumes(Config) ->
    with("node", fun(Node) ->
        resumes(1, tls, Config, fun(Port) -> run(Node, [data("resume.js", Config), integer_to_list(Port)]) end)
    end).

boringssl_resumes(Config) ->
    Python = os:getenv("REKINDLE_CURL_CFFI_PYTHON", "python3"),
    case os:find_executable(Python) =/= false andalso rekindle_clients:run(Python, ["-c", "import curl_cffi"], [], 30_000) of
        {0, _} ->
            Script = data("resume_boringssl.py", Config),
            resumes(1, tls, Config, fun(Port) -> run(Python, [Script, integer_to_list(Port)]) end);
        _ ->
            {skip, "NO curl_cffi HERE (pip install curl_cffi). BoringSSL WAS NOT TESTED."}
    end.

nss_resumes(Config) ->
    Tstclnt = fun(More) ->
        fun(Port) ->
            %% With its input open, or while it checks the server's certificate in a thread (without -O), it would not end.
            Args = ["-h", "127.0.0.1", "-p", integer_to_list(Port), "-D", "-O", "-o", "-o", "-A", "/dev/null", "-Q", "-L", "2"],
            run("tstclnt", Args ++ ["-V", "tls1.2:tls1.2" | More])
        end
    end,
    with("tstclnt", fun(_) ->
        resumes(1, tls, Config, Tstclnt([])),
        resumes(1, dtls, Config, Tstclnt(["-P", "client"]))
    end).

mbedtls_resumes(Config) ->
    resumes_both("mbedtls", "mbedtls/ssl.h", ["-lmbedtls", "-lmbedx509", "-lmbedcrypto"], Config).

wolfssl_resumes(Config) ->
    resumes_both("wolfssl", "wolfssl/options.h", ["-lwolfssl"], Config).

resumes_both(Name, Header, Libraries, Config) ->
    with_library(Name, Header, Libraries, Config, fun(Client) ->
        [
            resumes(1, Proto, Config, fun(Port) -> run(Client, [atom_to_list(Proto), integer_to_list(Port)]) end)
         || Proto <- [tls, dtls]
        ]
    end).

bearssl_resumes(Config) ->
    with_library("bearssl", "bearssl.h", ["-lbearssl"], Config, fun(Client) ->
        #{cert := Cert} = ?config(server, Config),
        Der = filename:join(?config(priv_dir, Config), "server.der"),
        {0, _} = run("openssl", ["x509", "-in", Cert, "-outform", "DER", "-out", Der]),
        resumes(1, tls, Config, fun(Port) -> run(Client, [integer_to_list(Port), Der]) end)
    end).

rustls_resumes(Config) ->
    Target = filename:join(rekindle_checkout:root(Config), "target/rustls_client"),
    Build = ["cargo", "build", "--quiet", "--locked", "--target-dir", Target],
    {0, _} = rekindle_checkout:run_in(data("rustls", Config), Build, 300_000),
    %% `make matrix' tests other releases where cargo builds nothing.
    Client = filename:join(Target, "debug/resume_rustls"),
    with(Client, fun(_) -> resumes(1, tls, Config, fun(Port) -> run(Client, [integer_to_list(Port)]) end) end).

%% It resumes TLS 1.2 by tickets alone, which ssl does not have. Its ids are random, also without TLS 1.3.
go_has_only_tickets(Config) ->
    with("go", fun(Go) ->
        Client = filename:join(?config(priv_dir, Config), "resume_go"),
        {0, _} = run(Go, ["build", "-o", Client, data("resume.go", Config)], 300_000),
        Info = resumes(0, tls, Config, fun(Port) -> run(Client, [integer_to_list(Port)]) end),
        ?assertMatch(#{misses := 2, unknown_misses := 2}, Info)
    end).

java_resumes_with_a_check_of_the_name(Config) ->
    with("java", fun(Java) -> resumes(1, tls, Config, java(Java, ["HTTPS"], Config)) end).

%% Not without the extended master secret, which ssl does not have, or a check of the host's name.
java_with_its_defaults_does_not(Config) ->
    with("java", fun(Java) -> resumes(0, tls, Config, java(Java, [], Config)) end).

java(Java, More, Config) ->
    fun(Port) -> run(Java, [data("Resume.java", Config), integer_to_list(Port) | More]) end.

%% ---- ----

with(Name, Fun) ->
    case os:find_executable(Name) of
        false -> missing(Name);
        Path -> Fun(Path)
    end.

%% Compiles the client in C of a library without one of its own.
with_library(Name, Header, Libraries, Config, Fun) ->
    with("cc", fun(Cc) ->
        Client = filename:join(?config(priv_dir, Config), "resume_" ++ Name),
        case run(Cc, ["-fsyntax-only", "-include", Header, "-x", "c", "/dev/null"]) of
            {0, _} ->
                {0, _} = run(Cc, ["-o", Client, data("resume_" ++ Name ++ ".c", Config) | Libraries]),
                Fun(Client);
            _ ->
                missing(Header)
        end
    end).

missing(Name) ->
    {skip, "NO " ++ Name ++ " HERE. IT WAS NOT TESTED."}.

run(Program, Args) ->
    run(Program, Args, 60_000).

run(Program, Args, TimeoutMs) ->
    {_, Output} = Result = rekindle_clients:run(Program, Args, [], TimeoutMs),
    ct:log("~ts", [Output]),
    Result.

%% Runs a client against a listener of its own, and checks how often the cache handed a session out. Answers what the cache
%% counted.
resumes(Times, Proto, Config, Client) ->
    Node = rekindle_node:start_ssl([]),
    #{cert := Cert, key := Key} = ?config(server, Config),
    Version = maps:get(Proto, #{tls => 'tlsv1.2', dtls => 'dtlsv1.2'}),
    Options = [
        {certfile, Cert}, {keyfile, Key}, {cacertfile, ?config(ca, Config)}, {versions, [Version]}, {reuse_sessions, true}
    ],
    {Server, Port} = rekindle_node:call(Node, rekindle_servers, start, [Proto, Options]),
    _ = Client(Port),
    Handshakes = 1 + max(1, Times),
    rekindle_node:await(fun() -> length(rekindle_node:call(Node, rekindle_servers, handshakes, [Server])) >= Handshakes end),
    [#{hits := Hits, inserts := Inserts} = Info] = rekindle_node:call(Node, rekindle_admin, info, [Port]),
    ?assertEqual({Times, Handshakes - Times}, {Hits, Inserts}),
    rekindle_node:stop(Node),
    Info.

data(File, Config) ->
    filename:join(?config(data_dir, Config), File).
