%% @doc Draws the picture of `docs/metrics.md': the panels of the Grafana dashboard as a real Prometheus draws them.
%%
%% A node with Rekindle has a small `max_bytes'. Devices come back to it again and again. Later, visitors come as well, more
%% than the bound has room for, and half of them come back once. In the end an operator raises the bound. All clients are
%% processes of `openssl'.
%%
%% Run it in a node of its own, with the application and the test helpers in the code path. The arguments of {@link main/1}
%% are a folder and the picture's file. The folder has a subfolder `consoles' with `dashboard.html', and gets everything else
%% that is written. The environment variable `PROMETHEUS_ROOT' names the folder where Prometheus was unpacked.
-module(rekindle_metrics_demo).

-export([main/1, do/1]).

-include_lib("inets/include/httpd.hrl").

%% When what happens, counted from the start.
-define(VISITORS_COME_AT_S, 60).
-define(BOUND_IS_RAISED_AT_S, 190).
-define(END_S, 330).

-define(MAX_BYTES, 128 * 1024).
-define(RAISED_MAX_BYTES, 1024 * 1024).

-define(DEVICES, 40).
-define(DEVICE_COMES_BACK_AFTER_MS, 5000).
-define(VISITOR_COMES_AFTER_MS, 80).
-define(VISITOR_COMES_BACK_AFTER_MS, 60000).

-define(SCRAPE_INTERVAL_S, 5).
-define(WIDTH_PIXELS, 1000).
-define(HEIGHT_PIXELS, 950).
-define(BROWSER_TIMEOUT_MS, 60000).

%% @doc Draws the picture and ends the node: status 0 if the picture was drawn, 1 otherwise.
-spec main([string()]) -> no_return().
main([Folder, Picture]) ->
    {ok, _} = application:ensure_all_started(inets),
    Prometheus = "127.0.0.1:" ++ integer_to_list(rekindle_node:free_port()),
    {_, Monitor} = spawn_monitor(fun() -> draw(Folder, Prometheus, Picture) end),
    Status =
        receive
            {'DOWN', Monitor, process, _, drawn} ->
                0;
            {'DOWN', Monitor, process, _, Reason} ->
                io:format("There is no picture: ~p~n", [Reason]),
                1
        end,
    %% Its program ends after the process that runs it, and would outlive this node.
    rekindle_node:await(fun() -> not is_ready(Prometheus) end),
    halt(Status).

%% Ends with an exit, which ends the linked processes and their programs.
-spec draw(file:filename(), string(), file:filename()) -> no_return().
draw(Folder, Prometheus, Picture) ->
    Ca = rekindle_ca:new(filename:join(Folder, "ca"), "Devices"),
    Devices = [{N, rekindle_ca:issue(Ca, "device-" ++ integer_to_list(N))} || N <- lists:seq(1, ?DEVICES)],
    {Node, Port} = start_node(Folder, Ca),
    start_prometheus(Folder, Prometheus, serve_metrics(Node, Folder)),
    Load = spawn_link(fun() -> load(Port, Folder, Devices) end),
    timer:sleep(1000 * ?BOUND_IS_RAISED_AT_S),
    {ok, 1} = rekindle_node:call(Node, rekindle_admin, set, [all, [{max_bytes, ?RAISED_MAX_BYTES}]]),
    timer:sleep(1000 * (?END_S - ?BOUND_IS_RAISED_AT_S)),
    unlink(Load),
    exit(Load, shutdown),
    io:put_chars(rekindle_node:call(Node, rekindle_admin, report, [])),
    take_picture(Folder, Prometheus, Picture),
    rekindle_node:stop(Node),
    exit(drawn).

%% ---- the node ----

start_node(Folder, #{cert := CaFile}) ->
    Port = rekindle_node:free_port(),
    Node = rekindle_node:start_ssl([{session_cb_init_args, [{max_bytes, ?MAX_BYTES}, {scope, #{Port => mqtt}}]}]),
    #{server := #{ec := #{cert := Cert, key := Key}}} = rekindle_certs:make(Folder),
    Options = [
        {port, Port}, {versions, ['tlsv1.2']}, {certfile, Cert}, {keyfile, Key}, {verify, verify_peer}, {cacertfile, CaFile}
    ],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, Options]),
    {Node, Port}.

serve_metrics(Node, Folder) ->
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [inets]),
    Options = [
        {port, 0},
        {bind_address, {127, 0, 0, 1}},
        {server_name, "metrics"},
        {server_root, Folder},
        {document_root, Folder},
        {modules, [?MODULE]}
    ],
    {ok, Server} = rekindle_node:call(Node, inets, start, [httpd, Options]),
    [{port, Port}] = rekindle_node:call(Node, httpd, info, [Server, [port]]),
    Port.

%% @private
do(_) ->
    Text = rekindle_prometheus:text(),
    Length = integer_to_list(iolist_size(Text)),
    Head = [{code, 200}, {content_type, rekindle_prometheus:content_type()}, {content_length, Length}],
    {proceed, [{response, {response, Head, Text}}]}.

%% ---- the clients ----

load(Port, Folder, Devices) ->
    [
        spawn_link(fun() ->
            timer:sleep(N * ?DEVICE_COMES_BACK_AFTER_MS div ?DEVICES),
            device(Port, session_file(Folder, "device", N), #{certfile => Cert, keyfile => Key})
        end)
     || {N, #{cert := Cert, key := Key}} <- Devices
    ],
    timer:sleep(1000 * ?VISITORS_COME_AT_S),
    visitors(Port, Folder, 1).

session_file(Folder, Kind, N) ->
    filename:join(Folder, lists:concat([Kind, "-", N, ".session"])).

%% Keeps the newest session, as real devices do.
device(Port, File, Opts) ->
    #{full := 1} = rekindle_clients:openssl_save(tls, Port, File, Opts),
    device_comes_back(Port, File, Opts#{extra => ["-sess_out", File]}).

device_comes_back(Port, File, Opts) ->
    timer:sleep(?DEVICE_COMES_BACK_AFTER_MS),
    handshake(rekindle_clients:openssl_offer(tls, Port, File, Opts)),
    device_comes_back(Port, File, Opts).

visitors(Port, Folder, N) ->
    spawn_link(fun() -> visitor(Port, session_file(Folder, "visitor", N), N rem 2 =:= 0) end),
    timer:sleep(?VISITOR_COMES_AFTER_MS),
    visitors(Port, Folder, N + 1).

visitor(Port, File, ComesBack) ->
    handshake(rekindle_clients:openssl_save(tls, Port, File, #{})),
    [
        begin
            timer:sleep(?VISITOR_COMES_BACK_AFTER_MS),
            handshake(rekindle_clients:openssl_offer(tls, Port, File, #{}))
        end
     || ComesBack
    ],
    ok = file:delete(File).

handshake(#{full := Full, resumed := Resumed}) when Full + Resumed =:= 1 ->
    ok.

%% ---- Prometheus and the browser ----

start_prometheus(Folder, Address, MetricsPort) ->
    Config = filename:join(Folder, "prometheus.yml"),
    ok = file:write_file(
        Config,
        io_lib:format(
            "global: {scrape_interval: ~bs}\n"
            "scrape_configs: [{job_name: rekindle, static_configs: [{targets: ['127.0.0.1:~b'], labels: {instance: node1}}]}]\n",
            [?SCRAPE_INTERVAL_S, MetricsPort]
        )
    ),
    Assets = filename:join(os:getenv("PROMETHEUS_ROOT"), "usr/share"),
    Args = [
        "--config.file=" ++ Config,
        "--storage.tsdb.path=" ++ filename:join(Folder, "data"),
        "--web.listen-address=" ++ Address,
        "--web.local-assets=" ++ filename:join(Assets, "prometheus/web"),
        "--web.console.libraries=" ++ filename:join(Assets, "doc/prometheus/examples/console_libraries"),
        "--web.console.templates=" ++ filename:join(Folder, "consoles"),
        "--log.level=warn"
    ],
    spawn_link(fun() -> exit({prometheus, rekindle_clients:run("prometheus", Args, [], 2000 * ?END_S)}) end),
    rekindle_node:await(fun() -> is_ready(Address) end).

is_ready(Address) ->
    case httpc:request(get, {"http://" ++ Address ++ "/-/ready", []}, [{timeout, 1000}], []) of
        {ok, {{_, 200, _}, _, _}} -> true;
        _ -> false
    end.

take_picture(Folder, Address, Picture) ->
    Range = io_lib:format("{\"duration\":~b,\"endTime\":~b}", [?END_S, erlang:system_time(second)]),
    Url = ["http://", Address, "/consoles/dashboard.html#pctc", uri_string:quote(lists:flatten(Range))],
    Args = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--user-data-dir=" ++ filename:join(Folder, "browser"),
        lists:concat(["--window-size=", ?WIDTH_PIXELS, ",", ?HEIGHT_PIXELS]),
        "--virtual-time-budget=10000",
        "--screenshot=" ++ Picture,
        lists:append(Url)
    ],
    {0, Output} = rekindle_clients:run("chromium", Args, [], ?BROWSER_TIMEOUT_MS),
    {true, _} = {filelib:is_regular(Picture), Output},
    ok.
