%% @doc The results as a JSON file for plot.py, and as tables for people.
-module(bench_report).

-export([write/2, machine/2, workload/1]).

%% @doc Writes `results.json' and `RESULTS.md' into the folder.
-spec write(file:filename(), #{atom() => term()}) -> ok.
write(Folder, Results) ->
    ok = file:write_file(filename:join(Folder, "results.json"), [json(Results), $\n]),
    ok = file:write_file(filename:join(Folder, "RESULTS.md"), unicode:characters_to_binary(tables(Results))).

%% @doc What the benchmarks ran on.
-spec machine(string(), Seconds :: integer()) -> map().
machine(Mode, Seconds) ->
    _ = application:load(ssl),
    {ok, Ssl} = application:get_key(ssl, vsn),
    #{
        mode => list_to_atom(Mode),
        seconds => Seconds,
        cpu => list_to_binary(first_match("/proc/cpuinfo", "model name\\s*: (.*)")),
        cores => erlang:system_info(logical_processors_available),
        memory_kib => list_to_integer(first_match("/proc/meminfo", "MemTotal:\\s*([0-9]+)")),
        system => list_to_binary(string:trim(os:cmd("uname -sr"))),
        otp => list_to_binary(erlang:system_info(otp_release)),
        ssl => list_to_binary(Ssl),
        commit => list_to_binary(string:trim(os:cmd("git describe --always --dirty 2>/dev/null"))),
        load_after => list_to_binary(first_match("/proc/loadavg", "^(\\S+)"))
    }.

first_match(File, Regexp) ->
    case file:read_file(File) of
        {ok, Text} ->
            case re:run(Text, Regexp, [{capture, all_but_first, list}, multiline]) of
                {match, [Found]} -> Found;
                nomatch -> "0"
            end;
        {error, _} ->
            "0"
    end.

-spec workload(bench_sessions:workload()) -> string().
workload({Key, ClientCert}) ->
    case Key of
        ecdsa -> "ECDSA P-256";
        rsa -> "RSA 2048"
    end ++
        case ClientCert of
            false -> "";
            true -> ", client certificates"
        end.

%% ---- tables ----

tables(#{machine := Machine, micro := Micro, memory := Memory, bound := Bound, process := Process, handshakes := Handshakes, flood := Flood}) ->
    [
        "# Results\n\n", about(Machine),
        "\n## One operation\n\n"
        "CPU time in nanoseconds, with the ratio to Rekindle's; below 1 the other cache is cheaper. Medians of interleaved "
        "rounds, the loop with a cache that does nothing taken off. Wall time is per operation of all processes together.\n",
        [micro(Title, Operation, Micro) || {Operation, Title} <- [{hit, "Hit"}, {miss, "Miss"}, {insert, "Insert"}, {delete, "Delete"}]],
        "\n## Memory\n\nBytes a session: in use, and as the process of the operating system has grown, after filling, and "
        "after all sessions were replaced three times over. What the process itself grows and shrinks by makes the "
        "resident bytes uncertain by about 2 MiB in all: ", uncertainty(Memory), ".\n\n", memory(Memory),
        "\n### What max_bytes keeps\n\nWhat the process has grown by when the cache is full for the first time, and after "
        "twice as many sessions again.\n\n", bound(Bound),
        "\n## OTP's cache process\n\nAs it is filled by registrations (ECDSA, no client certificates), and then as a new session pushes "
        "out an old one. The longest garbage collection and the times of `reuse_session` are those on the way from the "
        "size above. The CPU time of a registration is the whole node's, with making the session and sending it.\n\n", process(Process),
        "\n## Handshakes\n\nTLS 1.2, a client of OpenSSL's on the same machine, one connection at a time, from before the TCP connection "
        "to the first byte of the server. CPU time is that of the server's process for one connection.\n\n",
        handshakes([Row || #{handshake := Kind} = Row <- Handshakes, Kind =/= busy]),
        "\n### Resumption while OTP's cache process is busy\n\nResumed connections are due at a rate of 200 a second while 2000 new "
        "sessions a second are registered; the time is from when a connection was due. What a pause of the cache process "
        "delays is all counted.\n\n",
        busy([Row || #{handshake := busy} = Row <- Handshakes]),
        "\n### Resumption while the listener is flooded\n\nDevices that have come back once go on doing so, one connection "
        "after the other (OTP's own client), in a cache with room for ten times as many sessions, while ids that nobody has "
        "are looked up and sessions that nobody comes back for are registered: a million and 100,000 in a full run, a "
        "twentieth in a quick one.\n\n",
        flood(Flood)
    ].

about(#{mode := Mode, seconds := Seconds, cpu := Cpu, cores := Cores, memory_kib := Kib, system := System, otp := Otp, ssl := Ssl, commit := Commit, load_after := Load}) ->
    io_lib:format(
        "`make bench~ts`, ~b s, commit ~ts. ~ts, ~b cores, ~b GiB, ~ts, OTP ~ts (ssl-~ts). Load average at the end: ~ts.\n",
        [maps:get(Mode, #{quick => "-quick", full => ""}), Seconds, Commit, Cpu, Cores, round(Kib / 1048576), System, Otp, Ssl, Load]
    ).

micro(Title, Operation, Rows) ->
    Cases = unique([{Workload, Processes, Size} || #{workload := Workload, processes := Processes, size := Size} <- Rows]),
    Stores = [Store || Store <- bench_store:all(), Store =/= null],
    [
        "\n### ", Title, "\n\n",
        table(
            ["sessions", "listener", "processes"] ++ lists:append([[store(Store)] || Store <- Stores]) ++ ["wall, Rekindle", "wall, gb_trees"],
            [
                [count(Size), workload(Workload), integer_to_list(Processes)] ++
                    [with_ratio(Store, Of) || Store <- Stores] ++
                    [fixed(wall(Store, Of)) || Store <- [rekindle, gb_trees]]
             || {Workload, Processes, Size} <- lists:sort(Cases),
                Of <- [[Row || #{workload := W, processes := P, size := S, operation := O} = Row <- Rows, {W, P, S, O} =:= {Workload, Processes, Size, Operation}]]
            ]
        )
    ].

with_ratio(rekindle, Rows) -> ["**", fixed(cpu(rekindle, Rows)), "**"];
with_ratio(Store, Rows) -> [fixed(cpu(Store, Rows)), " (", ratio(cpu(Store, Rows), cpu(rekindle, Rows)), ")"].

cpu(Store, Rows) -> of_store(Store, cpu_ns, Rows).
wall(Store, Rows) -> of_store(Store, wall_ns, Rows).

of_store(Store, Key, Rows) ->
    [Value] = [maps:get(Key, Row) || #{store := S} = Row <- Rows, S =:= Store],
    Value.

memory(Rows) ->
    table(
        ["sessions", "listener", "cache", "live", "resident", "live, replaced", "resident, replaced", "ratio of the last"],
        [
            [count(Size), workload(Workload), store(Store)] ++
                [fixed(Value) || Value <- [LiveFilled, Filled, LiveChurned, Churned]] ++
                [ratio(Churned, rekindle_resident(Row, Rows))]
         || #{
                size := Size,
                workload := Workload,
                store := Store,
                filled := #{live := LiveFilled, resident := Filled},
                churned := #{live := LiveChurned, resident := Churned}
            } = Row <- Rows
        ]
    ).

uncertainty(Rows) ->
    lists:join(", ", [
        io_lib:format("~b bytes a session at ~ts sessions", [(2 bsl 20) div Size, count(Size)])
     || Size <- unique([Size || #{size := Size} <- Rows])
    ]).

rekindle_resident(#{size := Size, workload := Workload}, Rows) ->
    [Resident] = [Resident || #{store := rekindle, size := S, workload := W, churned := #{resident := Resident}} <- Rows, {S, W} =:= {Size, Workload}],
    Resident.

bound(Rows) ->
    table(
        ["max_bytes", "listener", "sessions", "bytes a session", "counted", "resident, full", "resident, replaced", "of max_bytes"],
        [
            [mib(MaxBytes), workload(Workload), count(Sessions), fixed(Counted / max(1, Sessions)), mib(Counted), mib(Full), mib(Churned), percent(Churned / MaxBytes)]
         || #{
                max_bytes := MaxBytes,
                workload := Workload,
                sessions := Sessions,
                counted_bytes := Counted,
                resident_full := Full,
                resident_churned := Churned
            } <- Rows
        ]
    ).

process(Rows) ->
    table(
        ["sessions", "cache", "size of the process", "CPU a registration, ns", "longest garbage collection", "calls", "p50", "p99", "longest"],
        [
            [[count(Size), [", full" || Phase =:= full]], store(Store), mib(Bytes), fixed(Cpu), ms(Gc), count(Calls), ms(P50), ms(P99), ms(Max)]
         || #{
                store := Store,
                phase := Phase,
                process_bytes := Bytes,
                registration_cpu_ns := Cpu,
                longest_gc_ns := Gc,
                calls := Calls,
                call_p50_ns := P50,
                call_p99_ns := P99,
                call_max_ns := Max,
                size := Size
            } <- lists:sort(fun(A, B) -> place(A) =< place(B) end, Rows)
        ]
    ).

place(#{size := Size, phase := Phase}) -> {Size, Phase =:= full}.

handshakes(Rows) ->
    table(
        ["listener", "handshake", "sessions", "cache", "a second", "server CPU", "p50", "p99", "p99.9", "max", "connections"],
        [
            [workload(Workload), atom_to_list(Kind), count(Size), store(Store), fixed(Rate), ms(Cpu), ms(P50), ms(P99), ms(P999), ms(Max), count(Count)]
         || #{
                workload := Workload,
                handshake := Kind,
                size := Size,
                store := Store,
                per_second := Rate,
                server_cpu_ns := Cpu,
                p50_ns := P50,
                p99_ns := P99,
                p999_ns := P999,
                max_ns := Max,
                count := Count
            } <- Rows
        ]
    ).

busy(Rows) ->
    table(
        ["listener", "sessions", "cache", "p50", "p99", "p99.9", "max", "connections"],
        [
            [workload(Workload), count(Size), store(Store), ms(P50), ms(P99), ms(P999), ms(Max), count(Count)]
         || #{
                workload := Workload,
                size := Size,
                store := Store,
                p50_ns := P50,
                p99_ns := P99,
                p999_ns := P999,
                max_ns := Max,
                count := Count
            } <- Rows
        ]
    ).

flood(Rows) ->
    table(
        ["cache", "flood", "resumed", "p50", "p99", "max", "connections"],
        [
            [store(Store), atom_to_list(Phase), percent(Resumed), ms(P50), ms(P99), ms(Max), count(Count)]
         || #{store := Store, phase := Phase, resumed := Resumed, p50_ns := P50, p99_ns := P99, max_ns := Max, connections := Count} <- Rows
        ]
    ).

table(Head, Rows) ->
    [line(Head), line([case Name of "listener" -> "---"; "cache" -> "---"; "handshake" -> "---"; _ -> "---:" end || Name <- Head]) | [line(Row) || Row <- Rows]].

line(Cells) ->
    ["| ", lists:join(" | ", Cells), " |\n"].

store(rekindle) -> "Rekindle";
store(gb_trees) -> "gb_trees (server default)";
store(ets_ordered_set) -> "ets ordered_set (client default)";
store(ets_set) -> "ets set";
store(default) -> "default".

count(N) when N < 1000 -> integer_to_list(N);
count(N) -> [count(N div 1000), io_lib:format(",~3..0b", [N rem 1000])].

fixed(Number) -> integer_to_list(round(Number)).
ratio(A, B) when B > 0 -> io_lib:format("×~.1f", [A / B]);
ratio(_, _) -> "–".
percent(Part) -> io_lib:format("~.1f %", [100.0 * Part]).
mib(Bytes) -> io_lib:format("~.2f MiB", [Bytes / 1048576]).
ms(Nanoseconds) -> io_lib:format("~.3f ms", [Nanoseconds / 1.0e6]).

unique(List) -> lists:usort(List).

%% ---- JSON: maps, lists, numbers, atoms, binaries, and a workload as its name ----

json(Map) when is_map(Map) ->
    ["{", lists:join(",\n", [[json(Key), ": ", json(Value)] || {Key, Value} <- lists:sort(maps:to_list(Map))]), "}"];
json(List) when is_list(List) ->
    ["[", lists:join(",\n", [json(Item) || Item <- List]), "]"];
json({Key, ClientCert} = Workload) when is_atom(Key), is_boolean(ClientCert) ->
    json(list_to_binary(workload(Workload)));
json(Float) when is_float(Float) ->
    io_lib:format("~.3f", [Float]);
json(Integer) when is_integer(Integer) ->
    integer_to_list(Integer);
json(Atom) when is_atom(Atom) ->
    json(atom_to_binary(Atom));
json(Text) when is_binary(Text) ->
    [$", [escaped(Character) || <<Character>> <= Text], $"].

escaped(Character) when Character =:= $"; Character =:= $\\ -> [$\\, Character];
escaped(Character) when Character >= $\s -> Character;
escaped(_) -> $\s.
