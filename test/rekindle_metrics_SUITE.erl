%% Tests the metrics and the log lines of a node. The groups prometheus and rabbitmq need programs that a machine may not have:
%% `make metrics-test' gets them.
-module(rekindle_metrics_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(MINUTE, 60_000).

-define(BAD_OPTION, "rekindle: option max_bytes is 0;").

all() ->
    [{group, text}, {group, telemetry}, {group, log}, {group, prometheus}, {group, rabbitmq}].

groups() ->
    [
        {text, [], [
            the_metrics_are_the_numbers_of_info,
            revocation_lists_are_shown_for_the_node,
            one_of_two_scopes_of_a_name_is_shown,
            without_the_library_that_is_all_there_is,
            the_documentation_has_the_metrics_there_are
        ]},
        {telemetry, [], [each_scope_is_an_event]},
        {log, [], [
            the_default_handler_shows_the_lines,
            a_line_says_what_it_is_about,
            lines_have_the_domain_that_is_asked_for,
            a_wrong_domain_is_none,
            clients_cannot_repeat_a_refusal
        ]},
        {prometheus, [], [promtool_finds_nothing_wrong, alerts_are_raised_when_they_should_be, every_panel_and_alert_has_data]},
        {rabbitmq, [], [a_collector_shows_the_same]}
    ].

suite() ->
    [{timetrap, {minutes, 3}}].

init_per_suite(Config) ->
    [{certs, rekindle_certs:make(?config(priv_dir, Config))}, {root, rekindle_checkout:root(Config)} | Config].

end_per_suite(_Config) ->
    ok.

init_per_group(prometheus, Config) ->
    case [Program || Program <- ["prometheus", "promtool"], os:find_executable(Program) =:= false] of
        [] ->
            Config;
        Missing ->
            {skip,
                lists:append(lists:join(" AND ", Missing)) ++
                    " NOT FOUND. NOTHING WAS TESTED WITH PROMETHEUS: make metrics-test does"}
    end;
init_per_group(rabbitmq, Config) ->
    Folder = os:getenv("REKINDLE_RABBITMQ", "/usr/lib/rabbitmq"),
    case filelib:wildcard(filename:join(Folder, "lib/rabbitmq_server-*/plugins/{prometheus,quantile_estimator}-*/ebin")) of
        [_, _] = Folders -> [{folders, Folders} | Config];
        _ -> {skip, "prometheus.erl OF RABBITMQ NOT FOUND. THE COLLECTOR WAS NOT TESTED: make metrics-test does"}
    end;
init_per_group(_, Config) ->
    Config.

end_per_group(_, _Config) ->
    ok.

%% ---- text ----

the_metrics_are_the_numbers_of_info(Config) ->
    Name = "a \"name\"\\ with\nodd «characters» ±",
    with_busy_node(Name, Config, fun(Node) ->
        {Before, Series, Infos} = rekindle_node:run(Node, fun() ->
            {rekindle_admin:info(), parse(rekindle_prometheus:text()), rekindle_admin:info()}
        end),
        ?assertMatch([_, _, _], Infos),
        ?assertEqual(1, maps:get({"rekindle_up", []}, Series)),
        [
            begin
                Value = maps:get({Name1, labels(Info) ++ More}, Series, none),
                ?assert(is_between(Value, expected(Metric, First), expected(Metric, Info)), {Metric, Value, First, Info})
            end
         || {First, Info} <- lists:zip(Before, Infos), {Name1, More} = Metric <- metrics()
        ],
        %% And no others.
        ?assertEqual(
            [], maps:keys(Series) -- [{"rekindle_up", []} | [{N, labels(Info) ++ More} || Info <- Infos, {N, More} <- metrics()]]
        ),
        ?assertMatch([#{sessions := 1, hits := 5, misses := 0}], [I || #{scope := {listener, _, _}} = I <- Infos]),
        ?assertEqual([{"too_large", 1}], [{Reason, N} || Info <- Infos, Reason <- reasons(), N <- [refused(Reason, Info)], N > 0]),
        [Shared] = [
            maps:get("scope", maps:from_list(L))
         || {"rekindle_sessions", L} <- maps:keys(Series), lists:member({"transport", "dtls"}, L)
        ],
        ?assertEqual(lists:flatten(io_lib:format("shared: ~0tp", [Name])), Shared)
    end).

%% A name, and the labels that it has beside those of the scope.
metrics() ->
    [
        {Name, []}
     || Name <- [
            "rekindle_sessions",
            "rekindle_max_sessions",
            "rekindle_bytes",
            "rekindle_max_bytes",
            "rekindle_templates",
            "rekindle_certificates",
            "rekindle_certified_sessions",
            "rekindle_lifetime_seconds",
            "rekindle_oldest_session_age_seconds",
            "rekindle_evicted_misses_total",
            "rekindle_lost_misses_total",
            "rekindle_unknown_misses_total",
            "rekindle_inserts_total",
            "rekindle_expired_sessions_total",
            "rekindle_evicted_sessions_total",
            "rekindle_moved_total",
            "rekindle_faults_total"
        ]
    ] ++
        [{"rekindle_lookups_total", [{"result", Result}]} || Result <- ["hit", "miss"]] ++
        [{"rekindle_certificate_misses_total", [{"reason", Reason}]} || Reason <- ["expired", "revoked", "unknown"]] ++
        [{"rekindle_refused_sessions_total", [{"reason", Reason}]} || Reason <- reasons()].

reasons() ->
    ["too_large", "no_room", "private_key", "layout", "lifetime", "certificate"].

expected({"rekindle_lookups_total", [{"result", "hit"}]}, #{hits := Hits}) ->
    Hits;
expected({"rekindle_lookups_total", [{"result", "miss"}]}, #{misses := Misses}) ->
    Misses;
expected({"rekindle_refused_sessions_total", [{"reason", Reason}]}, Info) ->
    refused(Reason, Info);
expected({"rekindle_certificate_misses_total", [{"reason", Reason}]}, #{certificate_misses_by := By}) ->
    maps:get(list_to_existing_atom(Reason), By);
expected({"rekindle_certified_sessions", _}, #{certified := Certified}) ->
    Certified;
expected({"rekindle_oldest_session_age_seconds", _}, #{oldest := Oldest}) ->
    number(Oldest);
expected({"rekindle_lifetime_seconds", _}, #{lifetime := Lifetime}) ->
    number(Lifetime);
expected({"rekindle_" ++ Name, _}, Info) ->
    Key = re:replace(Name, "(_sessions)?_total$", "", [{return, list}]),
    number(maps:get(list_to_existing_atom(Key), Info)).

number(Number) when is_integer(Number) -> Number;
number(_) -> none.

%% Ages and memory change while they are read: what was read before and after tells the range. Where both are the same, so is this.
is_between(Value, Before, After) ->
    min(Before, After) =< Value andalso Value =< max(Before, After).

labels(#{role := Role, scope := Label}) ->
    Transport =
        case Label of
            {_, T, _} -> T;
            client -> none
        end,
    Scope =
        case Label of
            {listener, _, {Ip, Port}} -> inet:ntoa(Ip) ++ ":" ++ integer_to_list(Port);
            {shared, _, Name} -> lists:flatten(io_lib:format("shared: ~0tp", [Name]));
            client -> "client"
        end,
    [{"role", atom_to_list(Role)}, {"transport", atom_to_list(Transport)}, {"scope", Scope}].

revocation_lists_are_shown_for_the_node(Config) ->
    [File, Missing] = Files = [filename:join(?config(priv_dir, Config), Name) || Name <- ["ca.crl", "missing.crl"]],
    Ca = rekindle_ca:new(filename:join(?config(priv_dir, Config), "ca_with_list"), "CA with a list"),
    Before = erlang:system_time(second),
    rekindle_ca:list(Ca, File),
    with_busy_node(fleet, [{crls, Files}], Config, fun(Node) ->
        Shown = fun() ->
            maps:filter(
                fun({Name, _}, _) -> string:prefix(Name, "rekindle_crl_") =/= nomatch end,
                parse(rekindle_node:call(Node, rekindle_prometheus, text, []))
            )
        end,
        NextUpdate = {"rekindle_crl_next_update_timestamp_seconds", [{"issuer", "O=Example,CN=CA with a list"}]},
        rekindle_node:await(fun() -> maps:is_key(NextUpdate, Shown()) end),
        #{NextUpdate := Seconds} = First = Shown(),
        ?assertEqual(#{{"rekindle_crl_unreadable_files", []} => 1}, maps:remove(NextUpdate, First)),
        %% The authority's lists are good for 30 days.
        ?assert(abs(Seconds - Before - 30 * 86_400) < 60),
        rekindle_ca:list(Ca, Missing, ["-crldays", "40"]),
        rekindle_node:await(fun() -> maps:get({"rekindle_crl_unreadable_files", []}, Shown()) =:= 0 end),
        ?assert(maps:get(NextUpdate, Shown()) > Seconds + 9 * 86_400)
    end).

one_of_two_scopes_of_a_name_is_shown(_Config) ->
    Node = rekindle_node:start_ssl([]),
    rekindle_node:run(Node, fun() ->
        Old = rekindle:init([{role, server}]),
        New = rekindle:init([{role, server}]),
        ok = rekindle:update(New, <<1:256>>, any),
        [ok = rekindle:update(Old, <<N:256>>, any) || N <- [1, 2, 3]],
        ?assertMatch([#{sessions := 3}, #{sessions := 1}], rekindle_admin:info(unnamed)),
        %% The parser refuses a series that comes twice.
        ?assertMatch([1], [
            Value
         || {{"rekindle_sessions", Labels}, Value} <- maps:to_list(parse(rekindle_prometheus:text())),
            lists:member({"scope", "unnamed"}, Labels)
        ]),
        [rekindle:terminate(Cache) || Cache <- [Old, New]]
    end),
    rekindle_node:stop(Node).

without_the_library_that_is_all_there_is(_Config) ->
    Node = rekindle_node:start_ssl([]),
    ok = rekindle_node:call(Node, persistent_term, put, [rekindle_nif, {error, {"rekindle_nif.so", "gone"}}]),
    ?assertEqual(#{{"rekindle_up", []} => 0}, parse(rekindle_node:call(Node, rekindle_prometheus, text, []))),
    ?assertEqual(ok, rekindle_node:call(Node, rekindle_telemetry, measure, [])),
    rekindle_node:stop(Node).

the_documentation_has_the_metrics_there_are(Config) ->
    Rows = matches("(?m)^\\| `(rekindle_\\w+)` \\| (\\w+) \\|", documentation(Config)),
    ?assertEqual(
        lists:sort([[atom_to_binary(Name), atom_to_binary(Type)] || {Name, _, Type, _} <- rekindle_metrics:families()]),
        lists:sort(Rows)
    ).

documentation(Config) ->
    {ok, Text} = file:read_file(filename:join(?config(root, Config), "docs/metrics.md")),
    Text.

matches(Regexp, Text) ->
    {match, Matches} = re:run(Text, Regexp, [global, unicode, {capture, all_but_first, binary}]),
    Matches.

%% The text format, strictly: a series stands under the TYPE of its metric, and once.
parse(Text) ->
    parse(string:split(unicode:characters_to_list(iolist_to_binary(Text)), "\n", all), none, #{}).

parse([""], _, Series) ->
    Series;
parse(["# HELP " ++ Help, "# TYPE " ++ Type | Lines], _, Series) ->
    [Name, [_ | _]] = string:split(Help, " "),
    [Name, Kind] = string:split(Type, " "),
    true = lists:member(Kind, ["gauge", "counter"]),
    true = (Kind =:= "counter") =:= (string:find(Name, "_total") =/= nomatch),
    parse(Lines, Name, Series);
parse([Line | Lines], Name, Series) ->
    {Name, Rest} = lists:split(length(Name), Line),
    {Labels, " " ++ Value} = parse_labels(Rest),
    false = maps:is_key({Name, Labels}, Series),
    parse(Lines, Name, Series#{{Name, Labels} => list_to_integer(Value)}).

parse_labels([C | Rest]) when C =:= ${; C =:= $, ->
    [Label, [$" | Quoted]] = string:split(Rest, "="),
    {Value, After} = unquote(Quoted, ""),
    {Labels, Rest1} = parse_labels(After),
    {[{Label, Value} | Labels], Rest1};
parse_labels("}" ++ Rest) ->
    {[], Rest};
parse_labels(Rest) ->
    {[], Rest}.

unquote("\\n" ++ Rest, Value) -> unquote(Rest, [$\n | Value]);
unquote([$\\, C | Rest], Value) when C =:= $\\; C =:= $" -> unquote(Rest, [C | Value]);
unquote([$" | Rest], Value) -> {lists:reverse(Value), Rest};
unquote([C | Rest], Value) when C =/= $\\ -> unquote(Rest, [C | Value]).

%% ---- telemetry ----

%% The library itself is in none of Debian's packages: this stands in for it.
each_scope_is_an_event(Config) ->
    with_busy_node(fleet, Config, fun(Node) ->
        {Before, Events, Infos} = rekindle_node:run(Node, fun() ->
            Execute = "execute(Name, Measurements, Metadata) -> self() ! {event, Name, Measurements, Metadata}, ok.",
            Forms = [
                begin
                    {ok, Tokens, _} = erl_scan:string(F),
                    {ok, Form} = erl_parse:parse_form(Tokens),
                    Form
                end
             || F <- ["-module(telemetry).", "-export([execute/3]).", Execute]
            ],
            {ok, telemetry, Beam} = compile:forms(Forms),
            {module, telemetry} = code:load_binary(telemetry, "telemetry", Beam),
            Before = rekindle_admin:info(),
            ok = rekindle_telemetry:measure(),
            {Before, flushed(event), rekindle_admin:info()}
        end),
        Expected = fun(Info) ->
            Numbers = maps:filter(fun(_, Value) -> is_integer(Value) end, maps:without([number, hit_rate], Info)),
            By = maps:from_list([{list_to_atom("refused_" ++ Reason), N} || Reason <- reasons(), N <- [refused(Reason, Info)]]),
            maps:merge(Numbers, By)
        end,
        ?assertEqual(length(Infos), length(Events)),
        ?assertMatch([1], [N || Info <- Infos, N <- [refused("too_large", Info)], N > 0]),
        [
            begin
                Labels = maps:from_list([{list_to_atom(Label), Value} || {Label, Value} <- labels(Info)]),
                [Measured] = [M || {event, [rekindle, scope], M, Metadata} <- Events, metadata(Metadata) =:= Labels],
                [Least, Most] = [Expected(I) || I <- [First, Info]],
                ?assertEqual([maps:keys(Least), maps:keys(Most)], [maps:keys(Measured), maps:keys(Measured)]),
                IsWrong = fun(Name, Value) -> not is_between(Value, maps:get(Name, Least), maps:get(Name, Most)) end,
                ?assertEqual(#{}, maps:filter(IsWrong, Measured), {First, Info})
            end
         || {First, Info} <- lists:zip(Before, Infos)
        ]
    end).

refused(Reason, #{refused_by := By}) ->
    maps:get(list_to_existing_atom(Reason), By).

metadata(#{role := Role, transport := Transport, scope := Scope} = Metadata) when map_size(Metadata) =:= 3, is_binary(Scope) ->
    #{role => atom_to_list(Role), transport => atom_to_list(Transport), scope => unicode:characters_to_list(Scope)}.

flushed(Tag) ->
    receive
        Message when element(1, Message) =:= Tag -> [Message | flushed(Tag)]
    after 0 -> []
    end.

%% ---- log ----

%% A node as it is started without a word on logging, and what it prints.
the_default_handler_shows_the_lines(_Config) ->
    Refuse = "catch rekindle:init([{role, server}, {max_bytes, 0}]),",
    ?assertNotEqual(nomatch, string:find(printed([], Refuse), ?BAD_OPTION)),
    %% And why there is no domain: it does not show those.
    ?assertEqual(
        nomatch,
        string:find(printed(["-rekindle", "log_domain", "[rekindle]"], "ok = application:load(rekindle)," ++ Refuse), ?BAD_OPTION)
    ).

printed(Args, Eval) ->
    Path = ["-noinput", "-pa", filename:dirname(code:which(rekindle))],
    {0, Output} = rekindle_clients:run(
        "erl", Path ++ Args ++ ["-eval", Eval ++ "ok = logger_std_h:filesync(default), init:stop()."], [], ?MINUTE
    ),
    Output.

a_line_says_what_it_is_about(_Config) ->
    Node = rekindle_node:start_ssl([{client_session_cb, unset}, {session_cb_init_args, [{other, 1}]}]),
    rekindle_node:run(Node, fun() ->
        ok = logger:set_primary_config(level, all),
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        refused(fun() -> rekindle:init([{max_bytes, 0}]) end),
        Cache = rekindle:init([{role, server}, {another, 1}]),
        %% The reference of a cache that the native library has never made.
        undefined = rekindle:lookup(setelement(2, Cache, make_ref()), <<1:256>>),
        Fault = next_line(),
        {ok, _} = application:ensure_all_started(rekindle),
        Lines = [{Level, Meta} || {logged, Level, Meta, "rekindle: " ++ _} <- [Fault | flushed(logged)]],
        Topics = [{Level, Topic, maps:is_key(domain, Meta)} || {Level, #{rekindle := Topic} = Meta} <- Lines],
        ?assertEqual(length(Lines), length(Topics)),
        ?assertEqual(
            [{error, bad_option, false}, {error, fault, false}, {warning, finding, false}, {warning, unknown_options, false}],
            lists:usort(Topics)
        )
    end),
    rekindle_node:stop(Node).

lines_have_the_domain_that_is_asked_for(_Config) ->
    Passes = fun({Action, Compare, Domain}) -> {fun logger_filters:domain/2, {Action, Compare, Domain}} end,
    with_domain([rekindle], fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{
            config => self(), filter_default => stop, filters => [{own, Passes({log, sub, [rekindle]})}]
        }),
        refused(fun() -> rekindle:init([{max_bytes, 0}]) end),
        logger:error("someone else"),
        ?assertMatch([{logged, error, #{domain := [rekindle], rekindle := bad_option}, ?BAD_OPTION ++ _}], flushed(logged)),
        ok = logger:set_handler_config(?MODULE, filters, [{own, Passes({log, sub, [other]})}]),
        refused(fun() -> rekindle:init([{max_bytes, 0}]) end),
        ?assertEqual([], flushed(logged))
    end).

a_wrong_domain_is_none(_Config) ->
    with_domain(rekindle, fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        refused(fun() -> rekindle:init([{max_bytes, 0}]) end),
        [{logged, error, Meta, ?BAD_OPTION ++ _}] = flushed(logged),
        ?assertNot(maps:is_key(domain, Meta))
    end).

refused(Fun) ->
    try Fun() of
        Answer -> error({not_refused, Answer})
    catch
        _:_ -> ok
    end.

with_domain(Domain, Fun) ->
    Node = rekindle_node:start_ssl([]),
    ok = rekindle_node:call(Node, application, set_env, [rekindle, log_domain, Domain]),
    rekindle_node:run(Node, Fun),
    rekindle_node:stop(Node).

%% Does what OTP does for each upgraded socket as long as there is no cache.
clients_cannot_repeat_a_refusal(_Config) ->
    Node = rekindle_node:start_ssl([]),
    rekindle_node:run(Node, fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        Upgrade = fun(MaxBytes) ->
            ok = application:set_env(ssl, session_cb_init_args, [{max_bytes, MaxBytes}]),
            [refused(fun() -> ssl_upgrade_server_session_cache_sup:start_child(normal) end) || _ <- [1, 2, 3]],
            ?assertEqual(undefined, whereis(ssl_unknown_listener)),
            [Line || {logged, error, #{rekindle := _}, Line} <- flushed(logged)]
        end,
        ?assertMatch([?BAD_OPTION ++ _], Upgrade(0)),
        ?assertEqual([], Upgrade(0)),
        ?assertMatch(["rekindle: option max_bytes is none;" ++ _], Upgrade(none)),
        %% A listener's are all logged: nobody but the operator opens one.
        [?assertExit({shutdown, _}, rekindle:init([{role, server}, {max_bytes, 0}])) || _ <- [1, 2]],
        ?assertMatch([_, _], flushed(logged))
    end),
    rekindle_node:stop(Node).

%% A logger handler.
log(#{level := Level, meta := Meta} = Event, #{config := Pid}) ->
    Pid !
        {logged, Level, Meta,
            unicode:characters_to_list(logger_formatter:format(Event, #{template => [msg], single_line => true}))}.

next_line() ->
    receive
        {logged, _, #{rekindle := fault}, _} = Line -> Line
    after 10_000 -> error(nothing_logged)
    end.

%% ---- prometheus ----

promtool_finds_nothing_wrong(Config) ->
    with_busy_node("a \"name\"\\ with\nodd «characters»", Config, fun(Node) ->
        File = filename:join(?config(priv_dir, Config), "metrics.txt"),
        ok = file:write_file(File, rekindle_node:call(Node, rekindle_prometheus, text, [])),
        %% It complains with status 0 as well.
        ?assertEqual({0, <<>>}, rekindle_clients:run("sh", ["-c", "exec promtool check metrics <\"$0\"", File], [], ?MINUTE))
    end),
    {Status, Output} = rekindle_clients:run("promtool", ["check", "rules", rules(Config)], [], ?MINUTE),
    ?assertEqual(0, Status, Output).

rules(Config) ->
    filename:join(?config(root, Config), "docs/prometheus/rekindle.rules.yml").

%% Uses invented series of three hours. Scope s evicts 6 % of what it stores and t 4 %; of the lookups of w 6 % ask for
%% evicted sessions, of those of x 4 %. s has a fault after 100 minutes; it refuses a session whose layout it does not
%% know after 150, one that it has no room for after 165, and thirty that are too large after 172, while t has refused
%% nine of these after 120, and u thirty because of their certificates after 172. A revocation list ends after 155 minutes, and another is unreadable after 162; sessions of s are not
%% resumed for want of a list after 173, and one of t because it is revoked after 183. The journal of s stops after 170, and
%% reads forged records after 180. Of t, two revocations are unwritten, three missing, and the node folder fails, all after 190.
alerts_are_raised_when_they_should_be(Config) ->
    Series = fun(Metric, Scope, Values) ->
        io_lib:format("      - {series: 'rekindle_~s{scope=\"~s\"}', values: '~s'}\n", [Metric, Scope, Values])
    end,
    Labelled = fun(Metric, Scope, Label, Value, Values) ->
        io_lib:format("      - {series: 'rekindle_~s{scope=\"~s\", ~s=\"~s\"}', values: '~s'}\n", [
            Metric, Scope, Label, Value, Values
        ])
    end,
    Skipped = fun(Reason, Values) -> Labelled("journal_skipped_records_total", "s", "reason", Reason, Values) end,
    Refused = fun(Scope, Reason, Values) -> Labelled("refused_sessions_total", Scope, "reason", Reason, Values) end,
    Raised = fun(Minute, Alerts) ->
        Expression = "count by (alertname, scope) (ALERTS{alertstate=\"firing\"})",
        Samples = [
            io_lib:format("{labels: '{alertname=\"~s\", scope=\"~s\"}', value: 1}", [Alert, Scope])
         || {Alert, Scope} <- Alerts
        ],
        io_lib:format("      - {expr: '~s', eval_time: ~bm, exp_samples: [~s]}\n", [Expression, Minute, lists:join(", ", Samples)])
    end,
    NotLoaded = {"RekindleNotLoaded", "u"},
    TooSmall = [{"RekindleTooSmall", "s"}, {"RekindleMissesEvicted", "w"}],
    Refusals = [{"RekindleRefuses", "s"}, {"RekindleNoRoom", "s"}],
    CrlEnds = {"RekindleCrlEnds", "s"},
    Crls = [CrlEnds, {"RekindleCrlUnreadable", "s"}],
    KeptOut = [{"RekindleCrlsKeepSessionsOut", "s"}, {"RekindleRevokedClient", "t"}],
    File = filename:join(?config(priv_dir, Config), "alerts.yml"),
    ok = file:write_file(File, [
        "rule_files: ['",
        rules(Config),
        "']\n"
        "evaluation_interval: 1m\n"
        "tests:\n"
        "  - interval: 1m\n"
        "    input_series:\n",
        Series("up", "s", "1x200"),
        Series("up", "u", "1x80 0x120"),
        [Series("inserts_total", Scope, "0+100x200") || Scope <- ["s", "t"]],
        Series("evicted_sessions_total", "s", "0+6x200"),
        Series("evicted_sessions_total", "t", "0+4x200"),
        [Labelled("lookups_total", Scope, "result", Result, "0+50x200") || Scope <- ["w", "x"], Result <- ["hit", "miss"]],
        Series("evicted_misses_total", "w", "0+6x200"),
        Series("evicted_misses_total", "x", "0+4x200"),
        Series("faults_total", "s", "0x100 1x100"),
        Series("faults_total", "t", "3x200"),
        Refused("s", "layout", "0x150 1x50"),
        Refused("s", "no_room", "0x165 1x35"),
        Refused("s", "too_large", "0x172 30x28"),
        Refused("t", "layout", "0x200"),
        Refused("t", "no_room", "0x200"),
        Refused("t", "too_large", "0x120 9x80"),
        Refused("u", "certificate", "0x172 30x28"),
        Series("crl_next_update_timestamp_seconds", "s", io_lib:format("~bx200", [86400 + 155 * 60 - 30])),
        Series("crl_next_update_timestamp_seconds", "t", "1000000x200"),
        Series("crl_unreadable_files", "s", "0x162 2x38"),
        Series("crl_unreadable_files", "t", "0x200"),
        Labelled("certificate_misses_total", "s", "reason", "unknown", "0x173 1+1x27"),
        Labelled("certificate_misses_total", "s", "reason", "expired", "0+1x200"),
        Labelled("certificate_misses_total", "t", "reason", "revoked", "0x183 1x17"),
        Series("journal_up", "s", "1x170 0x30"),
        Series("journal_up", "t", "1x200"),
        Series("journal_unwritten_revocations", "s", "0x200"),
        Series("journal_unwritten_revocations", "t", "0x190 2x10"),
        Series("journal_missing_revocations", "s", "0x200"),
        Series("journal_missing_revocations", "t", "0x190 3x10"),
        Series("journal_node_folder_up", "s", "1x200"),
        Series("journal_node_folder_up", "t", "1x190 0x10"),
        Skipped("forged", "0x180 9x20"),
        Skipped("expired", "0+5x200"),
        "    promql_expr_test:\n",
        Raised(30, []),
        Raised(75, TooSmall),
        Raised(95, [NotLoaded | TooSmall]),
        Raised(105, [NotLoaded, {"RekindleFaults", "s"} | TooSmall]),
        Raised(160, [NotLoaded, CrlEnds, {"RekindleRefuses", "s"} | TooSmall]),
        Raised(168, [NotLoaded | Crls ++ Refusals] ++ TooSmall),
        Raised(
            178,
            [NotLoaded, {"RekindleProbed", "s"}, {"RekindleProbed", "u"}, {"RekindleJournalDown", "s"} | Crls ++ Refusals] ++
                TooSmall
        ),
        Raised(
            185,
            [
                NotLoaded,
                {"RekindleProbed", "s"},
                {"RekindleProbed", "u"},
                {"RekindleJournalDown", "s"},
                {"RekindleForgedRecords", "s"}
                | Crls ++ KeptOut ++ Refusals
            ] ++ TooSmall
        ),
        Raised(
            198,
            [
                NotLoaded,
                {"RekindleProbed", "s"},
                {"RekindleProbed", "u"},
                {"RekindleJournalDown", "s"}
                | Crls ++ KeptOut ++ Refusals
            ] ++ TooSmall ++
                [
                    {Alert, "t"}
                 || Alert <- ["RekindleRevocationsUnwritten", "RekindleRevocationsMissing", "RekindleNodeFolderDown"]
                ]
        )
    ]),
    {Status, Output} = rekindle_clients:run("promtool", ["test", "rules", File], [], ?MINUTE),
    ?assertEqual(0, Status, Output).

%% A real Prometheus scrapes a real node, and is asked what the dashboard would ask it.
every_panel_and_alert_has_data(Config) ->
    {ok, _} = application:ensure_all_started(inets),
    Journal = {journal, {folder, filename:join(?config(priv_dir, Config), "journal")}},
    List = filename:join(?config(priv_dir, Config), "good.crl"),
    rekindle_ca:list(rekindle_ca:new(filename:join(?config(priv_dir, Config), "ca_with_good_list"), "CA"), List),
    with_busy_node(fleet, [Journal, {crls, [List]}], Config, fun(Node) ->
        Port = serve_metrics(Node, Config),
        with_prometheus(Port, Config, fun(Api) ->
            await_data(Api, "up{job=\"rekindle\"} == 1", fun() -> ok end),
            Listener = hd([P || #{scope := {listener, _, {_, P}}} <- rekindle_node:call(Node, rekindle_admin, info, [])]),
            Reconnect = fun() -> connect(Listener, Config) end,
            Expressions = dashboard(Config),
            ?assert(length(Expressions) >= 10),
            [await_data(Api, Expression, Reconnect) || Expression <- Expressions],
            %% The alerts are evaluated, and none is raised.
            await(
                "rules are evaluated",
                fun() ->
                    {200, Rules} = fetch(Api ++ "rules"),
                    length(matches("\"health\":\"(ok)\"", <<Rules/binary, "\"health\":\"ok\"">>)) =:= 1 + 16
                end,
                fun() -> ok end
            ),
            {200, Alerts} = fetch(Api ++ "alerts"),
            ?assertNotEqual(nomatch, string:find(Alerts, "\"alerts\":[]"))
        end)
    end).

%% The expressions of the dashboard, as Grafana sends them with everything selected. Fails where the file is not
%% what Grafana imports.
dashboard(Config) ->
    Script =
        "import json, sys\n"
        "d = json.load(open(sys.argv[1]))\n"
        "assert d['id'] is None and d['title'] and d['schemaVersion'] >= 36\n"
        "inputs = {'${%s}' % i['name'] for i in d['__inputs'] if i['type'] == 'datasource'}\n"
        "panels, cells = d['panels'], set()\n"
        "assert len({p['id'] for p in panels}) == len(panels)\n"
        "required = {r['id'] for r in d['__requires']}\n"
        "for p in panels:\n"
        "    assert p['type'] in required and p['title'] and p['datasource']['uid'] in inputs\n"
        "    g = p['gridPos']\n"
        "    assert g['x'] + g['w'] <= 24\n"
        "    own = {(x, y) for x in range(g['x'], g['x'] + g['w']) for y in range(g['y'], g['y'] + g['h'])}\n"
        "    assert not own & cells\n"
        "    cells |= own\n"
        "    assert len({t['refId'] for t in p['targets']}) == len(p['targets']) > 0\n"
        "    for t in p['targets']:\n"
        "        print(t['expr'])\n"
        "for v in d['templating']['list']:\n"
        "    metric, label = v['query']['query'][len('label_values('):-1].rsplit(', ', 1)\n"
        "    print('count by (%s) (%s)' % (label, metric))\n",
    {0, Output} = rekindle_clients:run(
        "python3", ["-c", Script, filename:join(?config(root, Config), "docs/grafana/rekindle.json")], [], ?MINUTE
    ),
    Variables = [{"$__rate_interval", "1m"}, {"$instance", ".*"}, {"$scope", ".*"}],
    [
        lists:foldl(fun({Variable, Value}, E) -> string:replace(E, Variable, Value, all) end, Line, Variables)
     || Line <- string:lexemes(Output, "\n")
    ].

%% Serves the metrics as the documentation says.
serve_metrics(Node, Config) ->
    [Code] = [
        Code
     || [Code] <- matches("(?s)```erlang\n(.*?)```", documentation(Config)), string:find(Code, "-module(my_metrics)") =/= nomatch
    ],
    Dir = ?config(priv_dir, Config),
    File = filename:join(Dir, "my_metrics.erl"),
    ok = file:write_file(File, Code),
    {ok, my_metrics, Beam} = compile:file(File, [binary, return_errors]),
    {module, my_metrics} = rekindle_node:call(Node, code, load_binary, [my_metrics, File, Beam]),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [inets]),
    Options = [
        {port, 0},
        {bind_address, {127, 0, 0, 1}},
        {server_name, "test"},
        {server_root, Dir},
        {document_root, Dir},
        {modules, [my_metrics]}
    ],
    {ok, Server} = rekindle_node:call(Node, inets, start, [httpd, Options]),
    [{port, Port}] = rekindle_node:call(Node, httpd, info, [Server, [port]]),
    Port.

with_prometheus(Target, Config, Fun) ->
    Dir = filename:join(?config(priv_dir, Config), "prometheus"),
    File = filename:join(Dir, "prometheus.yml"),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(
        File,
        io_lib:format(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            "rule_files: ['~ts']\n"
            "scrape_configs: [{job_name: rekindle, static_configs: [{targets: ['127.0.0.1:~b']}]}]\n",
            [rules(Config), Target]
        )
    ),
    Address = "127.0.0.1:" ++ integer_to_list(rekindle_node:free_port()),
    Args = [
        "--config.file=" ++ File,
        "--storage.tsdb.path=" ++ filename:join(Dir, "data"),
        "--web.listen-address=" ++ Address,
        "--log.level=warn"
    ],
    %% The program goes with this process.
    {Prometheus, Monitor} = spawn_monitor(fun() -> exit(rekindle_clients:run("prometheus", Args, [], 3 * ?MINUTE)) end),
    try
        await("Prometheus is ready", fun() -> element(1, fetch("http://" ++ Address ++ "/-/ready")) =:= 200 end, fun() -> ok end),
        Fun("http://" ++ Address ++ "/api/v1/")
    after
        exit(Prometheus, kill),
        receive
            {'DOWN', Monitor, process, _, Reason} -> ct:log("~0tp", [Reason])
        end
    end.

%% Until there are values that are numbers.
await_data(Api, Expression, Meanwhile) ->
    Url = Api ++ "query?" ++ uri_string:compose_query([{"query", unicode:characters_to_list(Expression)}]),
    await(
        Expression,
        fun() ->
            {Status, Answer} = fetch(Url),
            ?assertEqual(200, Status, {Expression, Answer}),
            re:run(Answer, "\"value\":\\[[0-9.]+,\"[0-9]") =/= nomatch
        end,
        Meanwhile
    ).

await(What, Condition, Meanwhile) ->
    await(What, Condition, Meanwhile, erlang:monotonic_time(millisecond) + ?MINUTE).

await(What, Condition, Meanwhile, Until) ->
    case Condition() =:= true of
        true ->
            ok;
        false ->
            ?assert(erlang:monotonic_time(millisecond) < Until, What),
            Meanwhile(),
            timer:sleep(200),
            await(What, Condition, Meanwhile, Until)
    end.

fetch(Url) ->
    case httpc:request(get, {Url, []}, [{timeout, 10_000}], [{body_format, binary}]) of
        {ok, {{_, Status, _}, _, Body}} -> {Status, Body};
        {error, Reason} -> {error, Reason}
    end.

%% ---- rabbitmq ----

a_collector_shows_the_same(Config) ->
    with_busy_node("a \"name\"\\ with\nodd «characters»", Config, fun(Node) ->
        {Text, Own} = rekindle_node:run(Node, fun() ->
            ok = code:add_pathsa(?config(folders, Config)),
            {ok, _} = application:ensure_all_started(prometheus),
            prometheus_registry:clear(default),
            ok = prometheus_registry:register_collector(rekindle_prometheus_collector),
            Text = prometheus_text_format:format(),
            ok = prometheus_registry:deregister_collector(rekindle_prometheus_collector),
            {Text, rekindle_prometheus:text()}
        end),
        %% It writes the type first, and an empty line in the end.
        Series = parse([
            string:trim(
                re:replace(Text, "(?m)^(# TYPE .*)\n(# HELP .*)$", "\\2\n\\1", [global, {return, binary}]), trailing, "\n"
            ),
            "\n"
        ]),
        ?assert(map_size(Series) > 30),
        ?assertEqual(ageless(parse(Own)), ageless(Series))
    end).

ageless(Series) ->
    maps:filter(fun({Name, _}, _) -> Name =/= "rekindle_oldest_session_age_seconds" end, Series).

%% ---- a node with something to show ----

%% A listener that has been resumed at and has refused a session, one that shares under a name, and ssl's client.
with_busy_node(Name, Config, Fun) ->
    with_busy_node(Name, [], Config, Fun).

with_busy_node(Name, More, Config, Fun) ->
    SharedPort = rekindle_node:free_port(),
    Node = rekindle_node:start_ssl([{session_cb_init_args, [{scope, #{SharedPort => Name}} | More]}]),
    #{server := #{ec := #{cert := Cert, key := Key}}} = ?config(certs, Config),
    Options = [{certfile, Cert}, {keyfile, Key}],
    {_, Port} = rekindle_node:call(Node, rekindle_servers, start, [tls, [{versions, ['tlsv1.2']} | Options]]),
    {_, SharedPort} = rekindle_node:call(Node, rekindle_servers, start, [dtls, [{port, SharedPort} | Options]]),
    connect(Port, Config),
    TooLarge = binary:copy(<<1>>, 10_000),
    rekindle_node:run(Node, fun() -> rekindle:update(maps:get(Port, rekindle_servers:caches()), <<1:256>>, TooLarge) end),
    Fun(Node),
    rekindle_node:stop(Node).

connect(Port, Config) ->
    #{full := 1, resumed := 5} = rekindle_clients:openssl_reconnect(Port, #{cafile => maps:get(ca, ?config(certs, Config))}).
