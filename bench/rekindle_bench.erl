%% @doc Runs the benchmarks and writes `results.json'. Started by run.sh.
-module(rekindle_bench).

-export([start/1]).

-define(CLIENT_CERT_BYTES, 900).
-define(PLAIN, {ecdsa, false}).
-define(WITH_CERT, {ecdsa, true}).
-define(OTP_CACHES, [gb_trees, ets_ordered_set, ets_set, rekindle]).

%% @doc The arguments are the mode, the folder for the results and Python's command. The environment's `PARTS' may name
%% the parts to run. A measurement that fails does not stop the others, but is named in the results.
-spec start([string()]) -> no_return().
start([Mode, Results, Python]) ->
    Start = bench_report:start(),
    Certs = filename:join(Results, ".certs"),
    ok = bench_certs:make(Certs, ?CLIENT_CERT_BYTES),
    Measurements = measurements(settings(list_to_atom(Mode), Python), Certs),
    Wanted = [list_to_atom(Part) || Part <- string:lexemes(os:getenv("PARTS", ""), " ")],
    Outcomes = [
        begin
            Named = unicode:characters_to_binary([atom_to_list(Part), ", ", Title]),
            io:format("~4b s  ~ts~n", [bench_report:seconds_since(Start), Named]),
            outcome(Part, Named, Measure)
        end
     || {Part, Title, Measure} <- Measurements, Wanted =:= [] orelse lists:member(Part, Wanted)
    ],
    ok = file:del_dir_r(Certs),
    Machine = bench_report:machine(Start),
    About = iolist_to_binary(bench_report:about(command(Mode), Machine)),
    Failed = [Named || {failed, Named} <- Outcomes],
    bench_report:write(Results, #{
        about => About, machine => Machine, failed => Failed, rows => lists:append([Rows || {ok, Rows} <- Outcomes])
    }),
    halt(length(Failed)).

outcome(Part, Named, Measure) ->
    try
        {ok, [Row#{part => Part} || Row <- lists:flatten([Measure()])]}
    catch
        Class:Reason:Stack ->
            io:format("Failed: ~tp~n", [{Class, Reason, Stack}]),
            {failed, Named}
    end.

command("full") -> "make bench";
command("quick") -> "make bench-quick";
command(Mode) -> "bench/run.sh " ++ Mode.

%% ---- how much ----

%% `tiny' shows in a minute that everything runs; its numbers say nothing.
settings(tiny, Python) ->
    (settings(quick, Python))#{
        micro := {[{?PLAIN, [500, 1_000]}, {?WITH_CERT, [500]}], #{rounds => 5, lookups => 1_000, churn => 1_000}},
        two_processes := #{rounds => 5, lookups => 1_000},
        large := {[500, 5_000], #{rounds => 5, lookups => 1_000}},
        memory := [{?PLAIN, 2_000, 2}, {?WITH_CERT, 1_000, 1}],
        bounds := [1 bsl 20],
        process := {?OTP_CACHES, [500, 1_000]},
        handshakes := {[?PLAIN], [500, 1_000], ?OTP_CACHES, #{rounds => 2, full => 5, resumed => 20}},
        busy := {busy_caches(?OTP_CACHES, 1_000), #{rounds => 2, connections => 100}},
        flood := {?OTP_CACHES, #{devices => 10, resumptions => 20, lookups => 1_000, sessions => 400}}
    };
settings(quick, Python) ->
    #{
        python => Python,
        micro => {[{?PLAIN, [1_000, 100_000]}, {?WITH_CERT, [1_000]}], #{rounds => 5, lookups => 40_000, churn => 8_000}},
        two_processes => #{rounds => 5, lookups => 100_000},
        large => {[], #{}},
        memory => [{?PLAIN, 20_000, 1}, {?WITH_CERT, 5_000, 1}],
        bounds => [8 bsl 20],
        process => {[gb_trees, rekindle], [1_000, 30_000]},
        handshakes => {[?PLAIN], [1_000, 30_000], [gb_trees, rekindle], #{rounds => 3, full => 30, resumed => 150}},
        busy => {busy_caches([gb_trees, rekindle], 30_000), #{rounds => 3, connections => 300}},
        flood => {[gb_trees, rekindle], #{devices => 50, resumptions => 200, lookups => 50_000, sessions => 5_000}}
    };
settings(full, Python) ->
    #{
        python => Python,
        micro => {
            [{Workload, [1_000, 100_000, 1_000_000]} || Workload <- [?PLAIN, ?WITH_CERT]],
            #{rounds => 7, lookups => 200_000, churn => 50_000}
        },
        two_processes => #{rounds => 7, lookups => 1_000_000},
        large => {[1_000_000, 10_000_000], #{rounds => 7, lookups => 200_000}},
        memory => [{?PLAIN, 1_000_000, 1}, {?PLAIN, 100_000, 5}, {?WITH_CERT, 100_000, 1}, {{rsa, false}, 100_000, 1}],
        bounds => [64 bsl 20, 512 bsl 20],
        process => {?OTP_CACHES, [1_000, 100_000, 1_000_000]},
        handshakes => {[?PLAIN, {rsa, true}], [1_000, 1_000_000], ?OTP_CACHES, #{rounds => 5, full => 200, resumed => 800}},
        busy => {busy_caches(?OTP_CACHES, 1_000_000), #{rounds => 5, connections => 6_000}},
        flood => {?OTP_CACHES, #{devices => 500, resumptions => 2_000, lookups => 1_000_000, sessions => 100_000}}
    }.

%% The other caches get more room: with a thousand places they would drop the sessions that are to be resumed.
busy_caches(Names, Size) ->
    [{rekindle, min(1_000, Size div 2)} | [{Name, Size} || Name <- Names]].

%% ---- what ----

%% {Part, Title, Measure}
measurements(#{python := Python} = Settings, Certs) ->
    #{
        micro := {Cases, MicroSettings},
        two_processes := TwoSettings,
        large := {LargeSizes, LargeSettings},
        memory := Memory,
        bounds := Bounds,
        process := {ProcessCaches, ProcessSizes},
        handshakes := {HandshakeWorkloads, HandshakeSizes, HandshakeCaches, HandshakeSettings},
        busy := {BusyCaches, BusySettings},
        flood := {FloodCaches, FloodSettings}
    } = Settings,
    Micro = fun(Workload, Caches, How) ->
        fun() -> bench_node:run({undefined, []}, fun() -> bench_micro:run(Certs, Workload, Caches, How) end) end
    end,
    All = MicroSettings#{operations => [hit, miss, churn]},
    Smallest = lists:min([Size || {_, Sizes} <- Cases, Size <- Sizes]),
    Largest = lists:max([0 | LargeSizes]),
    lists:append([
        [
            {micro, title(Workload, Size), Micro(Workload, [{Name, Size, 1} || Name <- bench_store:names(Workload)], All)}
         || {Workload, Sizes} <- Cases, Size <- Sizes
        ],
        [
            {two_processes, title(?PLAIN, Smallest),
                Micro(?PLAIN, [{Name, Smallest, N} || Name <- bench_store:names(?PLAIN), N <- [1, 2]], TwoSettings#{
                    operations => [hit]
                })}
        ],
        [
            {large, title(?PLAIN, Largest),
                Micro(?PLAIN, [{Name, Size, 1} || Size <- LargeSizes, Name <- [loop, rekindle]], LargeSettings#{
                    operations => [hit]
                })}
         || Largest > 0
        ],
        [
            {memory, [title(Workload, Size), ", ", atom_to_list(Name)], fun() ->
                bench_node:run({undefined, []}, fun() -> bench_memory:sessions(Certs, Workload, Size, Name) end)
            end}
         || {Workload, Size, Nodes} <- Memory, _ <- lists:seq(1, Nodes), Name <- ?OTP_CACHES
        ],
        [
            {bound, [bench_report:workload(Workload), ", ", integer_to_list(MaxBytes bsr 20), " MiB"], fun() ->
                bench_node:run({undefined, []}, fun() -> bench_memory:bound(Certs, Workload, MaxBytes) end)
            end}
         || MaxBytes <- Bounds, Workload <- lists:usort([Workload || {Workload, _, _} <- Memory])
        ],
        [
            {process, [title(?PLAIN, lists:last(ProcessSizes)), ", ", atom_to_list(Name)], fun() ->
                Config = bench_store:ssl_env(Name, lists:last(ProcessSizes)),
                bench_node:run(Config, fun() -> bench_process:run(Certs, ?PLAIN, ProcessSizes, Name) end)
            end}
         || Name <- ProcessCaches
        ],
        [
            {handshakes, title(Workload, lists:last(HandshakeSizes)), fun() ->
                bench_handshakes:run(Certs, Workload, HandshakeSizes, HandshakeCaches, HandshakeSettings#{python => Python})
            end}
         || Workload <- HandshakeWorkloads
        ],
        [
            {busy, title(?PLAIN, lists:max([Size || {_, Size} <- BusyCaches])), fun() ->
                bench_handshakes:busy(Certs, ?PLAIN, BusyCaches, BusySettings#{python => Python})
            end}
        ],
        [{flood, atom_to_list(Name), fun() -> bench_flood:run(Certs, Name, FloodSettings) end} || Name <- FloodCaches]
    ]).

title(Workload, Size) ->
    [bench_report:workload(Workload), ", ", bench_report:count(Size), " sessions"].
