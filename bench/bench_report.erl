%% @doc Writes the results of a run as a JSON file, from which report.py and plot.py make tables and plots. The
%% benchmarks of journals print their tables themselves, with the functions here.
-module(bench_report).

-export([start/0, seconds_since/1, write/2, machine/1, about/2, workload/1]).
-export([table/2, count/1]).

%% The load average above which alone.sh refuses.
-define(BUSY, 0.5).
%% The share of CPU steal above which other virtual machines disturbed a run.
-define(BUSY_STEAL_PERCENT, 2).

-record(start, {second :: integer(), processors :: {Used :: integer(), Stolen :: integer()}}).

%% @doc Where a run begins, for `seconds_since/1' and `machine/1'.
-spec start() -> #start{}.
start() ->
    #start{second = erlang:monotonic_time(second), processors = processors()}.

-spec seconds_since(#start{}) -> non_neg_integer().
seconds_since(#start{second = Second}) ->
    erlang:monotonic_time(second) - Second.

%% @doc Writes `results.json' into the folder.
-spec write(file:filename(), #{atom() => term()}) -> ok.
write(Folder, Results) ->
    ok = file:write_file(filename:join(Folder, "results.json"), [json(Results), $\n]).

%% @doc What the benchmarks ran on.
-spec machine(#start{}) -> map().
machine(Start) ->
    _ = application:load(ssl),
    {ok, Ssl} = application:get_key(ssl, vsn),
    Steal = steal_percent(Start),
    #{
        seconds => seconds_since(Start),
        cpu => list_to_binary(first_match("/proc/cpuinfo", "model name\\s*: (.*)")),
        cores => erlang:system_info(logical_processors_available),
        memory_kib => list_to_integer(first_match("/proc/meminfo", "MemTotal:\\s*([0-9]+)")),
        system => list_to_binary(string:trim(os:cmd("uname -sr"))),
        otp => list_to_binary(erlang:system_info(otp_release)),
        ssl => list_to_binary(Ssl),
        commit => list_to_binary(commit()),
        load_before => load_before(),
        steal_percent => Steal,
        busy => load_before() > ?BUSY orelse Steal > ?BUSY_STEAL_PERCENT,
        load_after => list_to_float(first_match("/proc/loadavg", "^(\\S+)"))
    }.

%% The results that the run has written by now are no change of what it measures.
commit() ->
    Changes = os:cmd("git status --porcelain --untracked-files=no -- . ':!bench/results' 2>/dev/null"),
    string:trim(os:cmd("git describe --always 2>/dev/null")) ++
        case Changes of
            "" -> "";
            _ -> "-dirty"
        end.

%% As alone.sh has found it.
load_before() ->
    list_to_float(os:getenv("LOAD_BEFORE")).

%% How much of the processor time that this machine wanted since the start its host gave to others.
steal_percent(#start{processors = {UsedBefore, StolenBefore}}) ->
    {Used, Stolen} = processors(),
    Steal = Stolen - StolenBefore,
    100 * Steal / max(1, Used - UsedBefore + Steal).

%% In clock ticks of all processors since the machine started: those it used, and those its host gave to others (proc(5)).
processors() ->
    Ticks = string:lexemes(first_match("/proc/stat", "^cpu +(.*)"), " "),
    [User, Nice, System, _Idle, _IoWait, Irq, SoftIrq, Steal | _] = [list_to_integer(Tick) || Tick <- Ticks],
    {User + Nice + System + Irq + SoftIrq, Steal}.

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

%% @doc A paragraph about that.
-spec about(Command :: string(), map()) -> iodata().
about(Command, #{seconds := Seconds, commit := Commit, cpu := Cpu, cores := Cores, memory_kib := Kib} = Machine) ->
    #{system := System, otp := Otp, ssl := Ssl, busy := Busy} = Machine,
    #{load_before := Before, load_after := After, steal_percent := Steal} = Machine,
    [
        [
            "**Busy machine**: other programs or machines took processor time, so do not compare these figures with others. "
         || Busy
        ],
        io_lib:format(
            "`~ts`, ~b s, commit ~ts. ~ts, ~b cores, ~b GiB, ~ts, OTP ~ts (ssl-~ts). "
            "Load average before: ~.2f, after: ~.2f. CPU steal: ~.1f %.",
            [Command, Seconds, Commit, Cpu, Cores, round(Kib / 1048576), System, Otp, Ssl, Before, After, Steal]
        )
    ].

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

%% @doc The first column is aligned to the left, the others to the right.
-spec table([iodata()], [[iodata()]]) -> iodata().
table(Head, Rows) ->
    [line(Head), line(["---" | ["---:" || _ <- tl(Head)]]) | lists:map(fun line/1, Rows)].

line(Cells) ->
    ["| ", lists:join(" | ", Cells), " |\n"].

-spec count(non_neg_integer()) -> iolist().
count(Number) when Number < 1000 -> integer_to_list(Number);
count(Number) -> [count(Number div 1000), io_lib:format(",~3..0b", [Number rem 1000])].

%% ---- JSON: maps, lists, numbers, atoms, binaries, and a workload as its name ----

json(Map) when is_map(Map) ->
    ["{", lists:join(", ", [[json(Key), ": ", json(Value)] || {Key, Value} <- lists:sort(maps:to_list(Map))]), "}"];
json([First | _] = List) when is_map(First) ->
    ["[\n", lists:join(",\n", [json(Item) || Item <- List]), "\n]"];
json(List) when is_list(List) ->
    ["[", lists:join(", ", [json(Item) || Item <- List]), "]"];
json({Key, ClientCert} = Workload) when is_atom(Key), is_boolean(ClientCert) ->
    json(list_to_binary(workload(Workload)));
json(Float) when is_float(Float) ->
    io_lib:format("~.3f", [Float]);
json(Integer) when is_integer(Integer) ->
    integer_to_list(Integer);
json(Boolean) when is_boolean(Boolean) ->
    atom_to_list(Boolean);
json(Atom) when is_atom(Atom) ->
    json(atom_to_binary(Atom));
json(Text) when is_binary(Text) ->
    [$", [escaped(Character) || <<Character>> <= Text], $"].

escaped(Character) when Character =:= $"; Character =:= $\\ -> [$\\, Character];
escaped(Character) when Character >= $\s -> Character;
escaped(_) -> $\s.
