%% @doc Runs the benchmarks and writes `results.json' and `RESULTS.md'. Started by run.sh.
-module(rekindle_bench).

-export([start/1]).

-define(CLIENT_CERT_BYTES, 900).
-define(PLAIN, {ecdsa, false}).
-define(WITH_CERT, {ecdsa, true}).

%% @doc The arguments are `quick' or `full', the folder for the results and Python's command.
-spec start([string()]) -> no_return().
start([Mode, Results, Python]) ->
    Start = erlang:monotonic_time(second),
    Certs = filename:join(Results, ".certs"),
    ok = bench_certs:make(Certs, ?CLIENT_CERT_BYTES),
    Settings = settings(list_to_atom(Mode), Python),
    Parts = maps:from_list([{Part, part(Part, Certs, Settings, Start)} || Part <- [micro, memory, bound, process, handshakes, flood]]),
    ok = file:del_dir_r(Certs),
    Took = erlang:monotonic_time(second) - Start,
    bench_report:write(Results, Parts#{machine => bench_report:machine(Mode, Took)}),
    halt(0).

settings(quick, Python) ->
    #{
        sizes => [1_000, 100_000],
        micro => [{?PLAIN, #{processes => [1, 2], rounds => 3, lookups => 40_000, churn_chunks => 40}}],
        memory => [{?PLAIN, 30_000}, {?WITH_CERT, 30_000}],
        bounds => [64 bsl 20],
        handshakes => {[?PLAIN, {rsa, true}], #{python => Python, rounds => 3, full => 40, resumed => 200, busy => 400}},
        flood => #{devices => 50, resumptions => 200, lookups => 50_000, sessions => 5_000}
    };
settings(full, Python) ->
    Rounds = #{processes => [1, 2], rounds => 5, lookups => 100_000, churn_chunks => 250},
    #{
        sizes => [1_000, 10_000, 100_000, 1_000_000],
        micro => [{?PLAIN, Rounds}, {?WITH_CERT, Rounds#{processes => [1]}}],
        memory => [{?PLAIN, 1_000_000} | [{Workload, 100_000} || Workload <- [?PLAIN, ?WITH_CERT, {rsa, false}]]],
        bounds => [64 bsl 20, 512 bsl 20],
        handshakes => {
            [{Key, ClientCert} || Key <- [ecdsa, rsa], ClientCert <- [false, true]],
            #{python => Python, rounds => 5, full => 200, resumed => 800, busy => 4000}
        },
        flood => #{devices => 500, resumptions => 5_000, lookups => 1_000_000, sessions => 100_000}
    }.

part(micro, Certs, #{micro := Workloads, sizes := Sizes}, Start) ->
    lists:append([
        begin
            say(Start, "micro, ~ts, ~b sessions", [bench_report:workload(Workload), Size]),
            bench_node:run({default, []}, fun() -> bench_micro:run(Certs, Workload, Size, Rounds) end)
        end
     || {Workload, Rounds} <- Workloads, Size <- Sizes
    ]);
part(memory, Certs, #{memory := Cases}, Start) ->
    [
        begin
            say(Start, "memory, ~ts, ~b sessions, ~ts", [bench_report:workload(Workload), Size, Name]),
            bench_node:run({default, []}, fun() -> bench_memory:sessions(Certs, Workload, Size, Name) end)
        end
     || {Workload, Size} <- Cases, Name <- bench_store:all(), Name =/= null
    ];
part(bound, Certs, #{bounds := Bounds, memory := Cases}, Start) ->
    [
        begin
            say(Start, "memory, ~ts, max_bytes ~b", [bench_report:workload(Workload), MaxBytes]),
            bench_node:run({default, []}, fun() -> bench_memory:bound(Certs, Workload, MaxBytes) end)
        end
     || MaxBytes <- Bounds, Workload <- lists:usort([Workload || {Workload, _} <- Cases])
    ];
part(process, Certs, #{sizes := Sizes}, Start) ->
    lists:append([
        begin
            say(Start, "OTP's cache process, ~ts, up to ~b sessions", [Name, lists:last(Sizes)]),
            Last = lists:last(Sizes),
            Env = #{
                default => [{session_cache_server_max, Last}],
                rekindle => [{session_cb_init_args, [{max_bytes, bench_store:max_bytes(Last)}, {max_sessions, Last}]}]
            },
            bench_node:run({Name, maps:get(Name, Env)}, fun() -> bench_process:run(Certs, ?PLAIN, Sizes, Name) end)
        end
     || Name <- [default, rekindle]
    ]);
part(handshakes, Certs, #{handshakes := {Workloads, Rounds}, sizes := Sizes}, Start) ->
    lists:append([
        begin
            say(Start, "handshakes, ~ts, up to ~b sessions", [bench_report:workload(Workload), lists:last(Sizes)]),
            bench_handshakes:run(Certs, Workload, [hd(Sizes), lists:last(Sizes)], busy_once(Workload, Rounds))
        end
     || Workload <- Workloads
    ]);
part(flood, Certs, #{flood := Settings}, Start) ->
    lists:append([
        begin
            say(Start, "flood, ~ts", [Name]),
            bench_flood:run(Certs, Name, Settings)
        end
     || Name <- [default, rekindle]
    ]).

%% It takes long, and is about OTP's cache process, to which the listener makes no difference.
busy_once(?PLAIN, Rounds) -> Rounds;
busy_once(_, Rounds) -> maps:remove(busy, Rounds).

say(Start, Format, Args) ->
    io:format("~4b s  " ++ Format ++ "~n", [erlang:monotonic_time(second) - Start | Args]).
