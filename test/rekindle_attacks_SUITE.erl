%% Tests that the store keeps its promises against any client: its memory has a bound, a flood does not evict known devices,
%% expired sessions go, no secret stays. Each case attacks a promise by what clients can do: through the callbacks alone, through
%% OTP's cache process, or over TLS.
-module(rekindle_attacks_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-import(rekindle_attacks, [open/1, info/1, number/0, id/1, kind/1, put/3, put/4, alive/3, drop/2]).
-import(rekindle_attacks, [visit/3, in_process/1]).

-define(KIB, 1024).
-define(MIB, (1024 * 1024)).

%% How many of the newest sessions of a client certificate count as certified; see docs/store.md.
-define(CERTIFIED_SESSIONS_PER_CERTIFICATE, 8).

all() ->
    [{group, Group} || Group <- [memory, eviction, refusal, expiry, revocation, secrets, tls]].

groups() ->
    [
        {memory, [], [
            survivors_of_many_server_names_pin_no_memory,
            survivors_of_many_certificates_pin_no_memory,
            survivors_are_moved_together_rather_than_evicted,
            bursts_of_large_sessions_do_not_exceed_the_bound,
            an_index_and_templates_that_grow_are_within_the_bound,
            a_narrower_bound_holds_within_two_seconds,
            empty_scopes_take_next_to_nothing
        ]},
        {eviction, [], [
            clients_that_resume_once_do_not_push_out_devices,
            one_certificate_does_not_push_out_devices_without,
            sessions_too_large_to_store_push_out_nobody,
            kinds_of_sessions_do_not_push_out_devices,
            the_five_thousandth_kind_costs_what_the_first_did,
            devices_that_lose_all_their_sessions_recover,
            certified_and_anonymous_devices_share_the_room_in_bytes,
            certified_and_anonymous_devices_share_the_room_in_sessions,
            a_certificates_older_sessions_count_as_anonymous
        ]},
        {refusal, [], [
            what_is_too_large_is_refused_and_counted,
            each_refusal_is_counted_under_its_reason
        ]},
        {expiry, [], [
            expired_sessions_go_in_whatever_order_they_came,
            expired_sessions_of_many_scopes_go_within_two_seconds,
            caches_opened_and_closed_all_the_time_do_not_stop_expiry
        ]},
        {revocation, [], [
            revoking_one_certificate_of_many_drops_exactly_its_sessions,
            revoking_is_a_look_up,
            certificates_of_one_authority_come_back_bit_for_bit
        ]},
        {secrets, [], [
            a_search_of_the_memory_finds_what_is_there,
            no_secret_of_a_deleted_session_stays,
            no_secret_of_an_evicted_session_stays,
            no_secret_of_a_session_that_is_kept_as_a_term_stays,
            no_secret_stays_where_a_session_was_moved_from,
            no_secret_of_a_dropped_scope_stays
        ]},
        {tls, [], [server_names_of_all_lengths_stay_within_the_bound]}
    ].

suite() ->
    [{timetrap, {minutes, 3}}].

init_per_suite(Config) ->
    _ = application:load(ssl),
    [application:set_env(ssl, Key, rekindle) || Key <- [session_cb, server_session_cb, client_session_cb]],
    Config.

end_per_suite(_Config) ->
    [application:unset_env(ssl, Key) || Key <- [session_cb, server_session_cb, client_session_cb]],
    ok.

%% ---- memory ----

survivors_of_many_server_names_pin_no_memory(_Config) ->
    in_node(fun() ->
        assert_bound([{4 * ?MIB, drift(with_names(16))}, {16 * ?MIB, drift(with_names(64))}])
    end).

survivors_of_many_certificates_pin_no_memory(_Config) ->
    in_node(fun() ->
        assert_bound([{MaxBytes, drift(with_certificates())} || MaxBytes <- [4 * ?MIB, 16 * ?MIB]])
    end).

%% Kinds of sessions, the length of their certificates, and about how many bytes a session takes.
with_names(Step) ->
    [
        {kind(#{server_name => lists:duplicate(Length, $a)}), 0, 110 + Length}
     || Length <- lists:seq(255, 1, -Step)
    ].

with_certificates() ->
    [{kind(#{}), Length, 110 + Length} || Length <- lists:seq(4000, 300, -250)].

%% Sessions of one size after the other. One session in each 256 KiB keeps coming back.
drift(Sizes) ->
    fun(Cache, MaxBytes, Watch) ->
        lists:foldl(
            fun({Kind, CertificateBytes, Bytes}, Kept) ->
                Apart = max(1, 256 * ?KIB div Bytes),
                New = repeat(MaxBytes div Bytes, [], fun(N, Survivors) ->
                    Number = put_sized(Cache, Kind, CertificateBytes),
                    N rem 1000 =:= 0 andalso Watch(),
                    case N rem Apart of
                        0 -> alive(Cache, Kind, [Number]) ++ Survivors;
                        _ -> Survivors
                    end
                end),
                Watch(),
                alive(Cache, Kind, New ++ Kept)
            end,
            [],
            Sizes
        )
    end.

%% The same, but clients log out: few sessions are left, and these must stay.
survivors_are_moved_together_rather_than_evicted(_Config) ->
    in_node(fun() ->
        MaxBytes = 4 * ?MIB,
        Sizes = with_names(16) ++ with_certificates(),
        assert_within(MaxBytes, fun() ->
            {Growth, {Left, All}} = rekindle_attacks:growth(MaxBytes, desert(Sizes)),
            ?assertEqual(All, Left),
            Growth
        end)
    end).

desert(Sizes) ->
    fun(Cache, MaxBytes, Watch) ->
        Kept = lists:foldl(
            fun({Kind, CertificateBytes, Bytes}, Kept) ->
                Apart = max(1, 256 * ?KIB div Bytes),
                {New, Survivors} = repeat(MaxBytes div 2 div Bytes, {[], []}, fun(N, {New, Survivors}) ->
                    Number = put_sized(Cache, Kind, CertificateBytes),
                    case N rem Apart of
                        0 -> {New, [Number | Survivors]};
                        _ -> {[Number | New], Survivors}
                    end
                end),
                Watch(),
                drop(Cache, New),
                [{Kind, Survivors} | Kept]
            end,
            [],
            Sizes
        ),
        Watch(),
        {
            lists:sum([length(alive(Cache, Kind, Survivors)) || {Kind, Survivors} <- Kept]),
            lists:sum([length(Survivors) || {_, Survivors} <- Kept])
        }
    end.

bursts_of_large_sessions_do_not_exceed_the_bound(_Config) ->
    in_node(fun() -> assert_bound([{4 * ?MIB, fun bursts/3}, {16 * ?MIB, fun bursts/3}]) end).

bursts(Cache, MaxBytes, Watch) ->
    Kind = kind(#{}),
    Small = fun() ->
        repeat(MaxBytes div 120, ok, fun(_, _) -> put(Cache, Kind, number()) end),
        Watch()
    end,
    Large = fun(Bytes, Put) ->
        repeat(2 * MaxBytes div Bytes, ok, fun(N, _) ->
            Put(),
            N rem 8 =:= 0 andalso Watch()
        end)
    end,
    Small(),
    Large(8000, fun() ->
        rekindle:update(Cache, id(number()), {any, crypto:strong_rand_bytes(8000)})
    end),
    Small(),
    Large(64 * ?KIB, fun() -> put_sized(Cache, Kind, 64 * ?KIB) end),
    Small(),
    Large(20_000, fun() -> put_sized(Cache, Kind, 20_000) end).

an_index_and_templates_that_grow_are_within_the_bound(_Config) ->
    in_node(fun() -> assert_bound([{4 * ?MIB, fun kinds_and_hosts/3}, {16 * ?MIB, fun kinds_and_hosts/3}]) end).

%% An index from nothing to full, then as many kinds of sessions as clients can ask for, then those of virtual hosts,
%% each with certificates of its own.
kinds_and_hosts(Cache, MaxBytes, Watch) ->
    Few = kind(#{}),
    repeat(MaxBytes div 100, ok, fun(N, _) ->
        put(Cache, Few, number()),
        N rem 500 =:= 0 andalso Watch()
    end),
    Chain = [crypto:strong_rand_bytes(1400) || _ <- [1, 2, 3]],
    repeat(2000, ok, fun(N, _) ->
        put(Cache, kind(#{own_certificates => Chain, cipher_suite => <<N:16>>}), number()),
        N rem 20 =:= 0 andalso Watch()
    end),
    repeat(MaxBytes div (2 * 1400), ok, fun(N, _) ->
        put(Cache, kind(#{own_certificates => [crypto:strong_rand_bytes(1400) || _ <- [1, 2, 3]]}), number()),
        N rem 20 =:= 0 andalso Watch()
    end).

a_narrower_bound_holds_within_two_seconds(_Config) ->
    {Wide, Narrow} = {64 * ?MIB, 4 * ?MIB},
    assert_within(Narrow, fun() -> in_node(fun() -> growth_when_narrowed(Wide, Narrow) end) end).

growth_when_narrowed(Wide, Narrow) ->
    {Cache, Number} = open([{max_bytes, Wide}]),
    Kind = kind(#{}),
    Fill = fun(Bytes) -> repeat(Bytes div 130, ok, fun(_, _) -> put(Cache, Kind, number()) end) end,
    %% After this, Erlang's own memory no longer grows.
    Fill(?MIB),
    Before = rekindle_memory:settled_resident_bytes(),
    Fill(Wide),
    Full = rekindle_memory:resident_bytes() - Before,
    {ok, 1} = rekindle_admin:set(info(Number), [{max_bytes, Narrow}]),
    Grown = lowest_growth(Before, now_ms() + 2000),
    #{sessions := Left} = info(Number),
    ?assert(Full > Wide div 2, Full),
    ?assert(Left > Narrow div 400, Left),
    Grown.

lowest_growth(Before, Until) ->
    erlang:garbage_collect(),
    Growth = rekindle_memory:resident_bytes() - Before,
    case now_ms() < Until of
        true ->
            timer:sleep(50),
            min(Growth, lowest_growth(Before, Until));
        false ->
            Growth
    end.

%% Scopes are cheap in memory and in CPU time: 10,000 may take a hundredth of a core.
empty_scopes_take_next_to_nothing(_Config) ->
    in_node(fun() ->
        Scopes = 1000,
        Open = fun(Number) ->
            [rekindle:init([{role, server}, {max_bytes, 1024 * ?MIB}]) || _ <- lists:seq(1, Number)]
        end,
        First = Open(10),
        Before = rekindle_memory:settled_resident_bytes(),
        More = Open(Scopes),
        %% A busy machine makes the threads take more, but not each time.
        TookMs = lists:min(Took = [native_ms(fun() -> timer:sleep(2000) end) || _ <- lists:seq(1, 5)]),
        Grown = (rekindle_memory:settled_resident_bytes() - Before) div Scopes,
        %% The caches are held this long.
        [0 | _] = lists:usort([rekindle:size(Cache) || Cache <- First ++ More]),
        ?assert(Grown < 16 * ?KIB, Grown),
        ?assert(TookMs < 4, Took),
        {comment, lists:concat([Grown, " bytes each, ", TookMs, " ms in two seconds"])}
    end).

%% The share of a processor that the native library's threads use while `Fun' runs.
native_ms(Fun) ->
    Before = native_ns(),
    Fun(),
    (native_ns() - Before) div 1_000_000.

native_ns() ->
    lists:sum([
        begin
            {ok, Stat} = file:read_file(filename:join(filename:dirname(File), "schedstat")),
            [Ns | _] = binary:split(Stat, <<" ">>),
            binary_to_integer(Ns)
        end
     || File <- filelib:wildcard("/proc/self/task/*/comm"), {ok, <<"rekindle", _/binary>>} <- [file:read_file(File)]
    ]).

put_sized(Cache, Kind, 0) -> put(Cache, Kind, number());
put_sized(Cache, Kind, CertificateBytes) -> put(Cache, Kind, number(), rekindle_certs:sized(CertificateBytes)).

assert_bound(Attacks) ->
    Comments = [
        assert_within(MaxBytes, fun() -> element(1, rekindle_attacks:growth(MaxBytes, Attack)) end)
     || {MaxBytes, Attack} <- Attacks
    ],
    {comment, lists:join("; ", [Comment || {comment, Comment} <- Comments])}.

%% `Measure' answers by how many bytes the process grew. On a busy machine Erlang's own heaps sometimes grow by some MiB more.
%% What the store takes beyond its bound, it takes in each run.
assert_within(MaxBytes, Measure) ->
    Limit = MaxBytes + MaxBytes div 10 + 2 * ?MIB,
    Grown = measured(Measure, fun(Growth) -> Growth =< Limit end),
    Comment = io_lib:format("grew by ~w KiB of ~b", [[Growth div ?KIB || Growth <- Grown], Limit div ?KIB]),
    ?assert(lists:min(Grown) =< Limit, lists:flatten(Comment)),
    {comment, Comment}.

%% What up to three measurements answered. It ends with the first one that is good.
measured(Measure, IsGood) -> measured(Measure, IsGood, 3).

measured(_, _, 0) ->
    [];
measured(Measure, IsGood, TriesLeft) ->
    Result = Measure(),
    case IsGood(Result) of
        true -> [Result];
        false -> [Result | measured(Measure, IsGood, TriesLeft - 1)]
    end.

%% ---- eviction ----

clients_that_resume_once_do_not_push_out_devices(_Config) ->
    assert_left(95, fun(Cache, Kind) ->
        repeat(120_000, ok, fun(_, _) -> alive(Cache, Kind, [put(Cache, Kind, number())]) end)
    end).

one_certificate_does_not_push_out_devices_without(_Config) ->
    assert_left(95, fun(Cache, Kind) ->
        Certificate = rekindle_certs:sized(900),
        repeat(17_000, ok, fun(_, _) -> put(Cache, Kind, number(), Certificate) end)
    end).

sessions_too_large_to_store_push_out_nobody(_Config) ->
    assert_left(98, fun(Cache, _Kind) ->
        Large = kind(#{server_name => lists:duplicate(60_000, $a)}),
        repeat(300, ok, fun(_, _) -> put(Cache, Large, number()) end)
    end).

%% Fills the store with sessions that have come back twice.
devices(Kind) ->
    {Cache, _} = open([{max_bytes, 16 * ?MIB}]),
    Stored = repeat(100_000, [], fun(_, Numbers) -> [put(Cache, Kind, number()) | Numbers] end),
    Devices = alive(Cache, Kind, lists:reverse(Stored)),
    {Cache, alive(Cache, Kind, Devices)}.

%% How long ago a device resumed decides how long it is protected. If the machine halts for a moment, it is too long ago.
assert_left(Percent, Attack) ->
    Measure = fun() -> in_process(fun() -> left(Attack) end) end,
    Left = measured(Measure, fun(Left) -> Left >= Percent end),
    ?assert(lists:max(Left) >= Percent, Left),
    {comment, io_lib:format("per cent of the devices left: ~w", [Left])}.

left(Attack) ->
    Kind = kind(#{}),
    {Cache, Devices} = devices(Kind),
    Attack(Cache, Kind),
    100 * length(alive(Cache, Kind, Devices)) / length(Devices).

%% Clients choose the cipher suite and the curve.
kinds_of_sessions_do_not_push_out_devices(_Config) ->
    IsGood = fun(Percent) -> Percent >= 95 end,
    Left = [
        {MiB, Kinds, measured(fun() -> in_process(fun() -> left_after_kinds(MiB * ?MIB, Kinds) end) end, IsGood)}
     || {MiB, Kinds} <- [{4, 100}, {4, 400}, {4, 1024}, {16, 400}, {16, 1024}]
    ],
    ?assertEqual([], [Worse || {_, _, Percents} = Worse <- Left, not lists:any(IsGood, Percents)], Left),
    {comment, io_lib:format("{MiB, kinds, per cent left}: ~0p", [Left])}.

left_after_kinds(MaxBytes, Kinds) ->
    {Cache, _} = open([{max_bytes, MaxBytes}]),
    Chain = [crypto:strong_rand_bytes(1400) || _ <- [1, 2, 3]],
    Common = kind(#{own_certificates => Chain}),
    Stored = repeat(MaxBytes div 140, [], fun(_, Numbers) -> [put(Cache, Common, number()) | Numbers] end),
    Devices = alive(Cache, Common, lists:reverse(Stored)),
    _ = alive(Cache, Common, Devices),
    repeat(Kinds, ok, fun(N, _) ->
        Kind = kind(#{own_certificates => Chain, cipher_suite => <<(N rem 32):16>>, curve => N div 32}),
        alive(Cache, Kind, [put(Cache, Kind, number())])
    end),
    100 * length(alive(Cache, Common, Devices)) / length(Devices).

%% In bytes, with twenty sessions of each kind. Before, there are as many sessions in both caches, so that their indexes
%% grow alike.
the_five_thousandth_kind_costs_what_the_first_did(_Config) ->
    in_process(fun() ->
        Chain = [crypto:strong_rand_bytes(1400) || _ <- [1, 2, 3]],
        Kind = fun(N) -> kind(#{own_certificates => Chain, cipher_suite => <<N:16>>}) end,
        Cost = fun(Before) ->
            {Cache, Number} = open([{max_bytes, 1024 * ?MIB}]),
            repeat(30_000 - Before, ok, fun(_, _) -> put(Cache, Kind(0), number()) end),
            repeat(Before, ok, fun(N, _) -> put(Cache, Kind(N), number()) end),
            #{bytes := Without} = info(Number),
            Last = Before + 250,
            [repeat(20, ok, fun(_, _) -> put(Cache, Kind(N), number()) end) || N <- lists:seq(Before + 1, Last)],
            #{bytes := With} = info(Number),
            Session = put(Cache, Kind(Last), number()),
            ?assertEqual([Session], alive(Cache, Kind(Last), [Session])),
            (With - Without) div 250
        end,
        {First, Last} = {Cost(0), Cost(4750)},
        ?assert(Last < 3 * First div 2, {First, Last}),
        {comment, lists:concat([First, " bytes a kind, then ", Last])}
    end).

%% OTP's own process makes the calls. From the third round on, all devices resume again.
devices_that_lose_all_their_sessions_recover(_Config) ->
    Resumed = in_node(fun() -> [{Percent, recovery(10_000, Percent)} || Percent <- [50, 88, 100]] end),
    ?assertEqual([], [Worse || {_, Rounds} = Worse <- Resumed, lists:min(lists:nthtail(2, Rounds)) < 95], Resumed),
    {comment, io_lib:format("{per cent of the room, per cent resumed in each round}: ~w", [Resumed])}.

recovery(Room, Percent) ->
    application:set_env(ssl, session_cache_server_max, Room),
    Devices = lists:seq(1, Room * Percent div 100),
    {ok, Process} = ssl_server_session_cache:start_link(ssl_unknown_listener, #{
        lifetime => 86400, session_cb => rekindle, session_cb_init_args => [], max => Room
    }),
    {Session, _} = kind(#{}),
    Renewed = fun(_) ->
        Number = number(),
        Made = setelement(2, Session, id(Number)),
        ok = ssl_server_session_cache:register_session(
            Process, rekindle_sessions:put_stamps(Made, erlang:monotonic_time(), 1)
        ),
        Number
    end,
    Resumes = fun(Number) ->
        ssl_server_session_cache:reuse_session(Process, id(Number)) =/= not_reusable
    end,
    Round = fun(_, {Numbers, Resumed}) ->
        {Renumbered, Which} = visit(Numbers, Resumes, Renewed),
        {Renumbered, [100 * length(Which) div length(Numbers) | Resumed]}
    end,
    {Known, _} = repeat(2, {lists:map(Renewed, Devices), []}, Round),
    {_, Resumed} = repeat(6, {lists:map(Renewed, Known), []}, Round),
    unlink(Process),
    exit(Process, kill),
    rekindle_node:await(fun() -> rekindle_admin:info() =:= [] end),
    lists:reverse(Resumed).

certified_and_anonymous_devices_share_the_room_in_bytes(_Config) ->
    assert_shared(fun(#{bytes := Bytes}) -> [{max_bytes, Bytes * 80 div 100}] end).

certified_and_anonymous_devices_share_the_room_in_sessions(_Config) ->
    assert_shared(fun(#{sessions := Sessions}) -> [{max_sessions, Sessions * 80 div 100}] end).

%% There is room for 80 % of all devices, half of which have a certificate.
assert_shared(Room) ->
    in_process(fun() ->
        Kind = kind(#{}),
        Certificates = list_to_tuple([rekindle_certs:sized(900) || _ <- lists:seq(1, 5000)]),
        Make = fun(Cache) ->
            fun
                ({anonymous, N, _}) -> {anonymous, N, put(Cache, Kind, number())};
                ({certified, N, _}) -> {certified, N, put(Cache, Kind, number(), element(N, Certificates))}
            end
        end,
        Devices = [{Is, N, none} || N <- lists:seq(1, 5000), Is <- [anonymous, certified]],
        {All, Number} = open([{max_bytes, 1024 * ?MIB}]),
        lists:foreach(Make(All), Devices),
        {Cache, _} = open(Room(info(Number))),
        Resumes = fun({_, _, Session}) -> alive(Cache, Kind, [Session]) =/= [] end,
        Round = fun(_, {Before, ResumedBefore}) ->
            {After, Resumed} = visit(Before, Resumes, Make(Cache)),
            {After, Resumed ++ ResumedBefore}
        end,
        {Known, _} = repeat(3, {lists:map(Make(Cache), Devices), []}, Round),
        {Last, Resumed} = repeat(4, {Known, []}, Round),
        %% A tenth of the devices are replaced by new ones.
        {Replaced, _} = lists:split(1000, rekindle_attacks:shuffled(Last)),
        New = lists:map(Make(Cache), Replaced),
        Rates = [
            {known, rates(Resumed, lists:append(lists:duplicate(4, Devices)))},
            {new, rates(lists:filter(Resumes, New), New)}
        ],
        ?assertEqual([], [Rate || {_, Each} <- Rates, {_, Percent} = Rate <- Each, Percent < 60], Rates),
        {comment, io_lib:format("per cent resumed: ~0p", [Rates])}
    end).

rates(Resumed, All) ->
    Count = fun(Is, Devices) -> length([Is || {Kind, _, _} <- Devices, Kind =:= Is]) end,
    [{Is, 100 * Count(Is, Resumed) div Count(Is, All)} || Is <- [anonymous, certified]].

a_certificates_older_sessions_count_as_anonymous(_Config) ->
    in_process(fun() ->
        Kind = kind(#{}),
        {Cache, _} = open([{max_sessions, 1000}]),
        Certificate = rekindle_certs:sized(900),
        Certified = [put(Cache, Kind, number(), Certificate) || _ <- lists:seq(1, 100)],
        repeat(5000, ok, fun(_, _) -> put(Cache, Kind, number()) end),
        Newest = lists:nthtail(100 - ?CERTIFIED_SESSIONS_PER_CERTIFICATE, Certified),
        ?assertEqual(Newest, alive(Cache, Kind, Certified))
    end).

%% ---- refusal ----

what_is_too_large_is_refused_and_counted(_Config) ->
    in_process(fun() ->
        {Cache, Number} = open([]),
        Named = fun(Length) -> kind(#{server_name => lists:duplicate(Length, $a)}) end,
        Session = fun(Kind, CertificateBytes) ->
            fun() -> alive(Cache, Kind, [put_sized(Cache, Kind, CertificateBytes)]) =/= [] end
        end,
        Term = fun(Key, Bytes) ->
            fun() ->
                Value = {any, crypto:strong_rand_bytes(Bytes)},
                ok = rekindle:update(Cache, Key, Value),
                rekindle:lookup(Cache, Key) =:= Value
            end
        end,
        Outcomes = [
            begin
                Before = refused_by(Number),
                {What, IsTaken(), added(Before, refused_by(Number))}
            end
         || {What, IsTaken} <- [
                {{name, 255}, Session(Named(255), 0)},
                {{name, 256}, Session(Named(256), 0)},
                {{name, 60_000}, Session(Named(60_000), 0)},
                {{certificate, 65_536}, Session(kind(#{}), 65_536)},
                {{certificate, 65_537}, Session(kind(#{}), 65_537)},
                {{name_and_certificate, 255, 65_536}, Session(Named(255), 65_536)},
                {{term, 8000}, Term(id(number()), 8000)},
                {{term, 8193}, Term(id(number()), 8193)},
                {{key, 8193}, Term({key, crypto:strong_rand_bytes(8193)}, 1)}
            ]
        ],
        Refused = #{refused => 1, too_large => 1},
        ?assertEqual(
            [
                {{name, 255}, true, #{}},
                {{name, 256}, false, Refused},
                {{name, 60_000}, false, Refused},
                {{certificate, 65_536}, true, #{}},
                {{certificate, 65_537}, false, Refused},
                {{name_and_certificate, 255, 65_536}, true, #{}},
                {{term, 8000}, true, #{}},
                {{term, 8193}, false, Refused},
                {{key, 8193}, false, Refused}
            ],
            Outcomes
        )
    end).

each_refusal_is_counted_under_its_reason(_Config) ->
    in_process(fun() ->
        {Session, _} = kind(#{}),
        Key = {'ECPrivateKey', 1, <<1:256>>, undefined, undefined},
        Attempts = [
            {private_key, [], erlang:append_element(Session, Key)},
            {layout, [], setelement(3, Session, undefined)},
            {no_room, [{max_bytes, 100}], Session},
            {lifetime, [], Session}
        ],
        Counts = [
            begin
                %% With a lifetime of 0, nothing may be resumed.
                Reason =:= lifetime andalso application:set_env(ssl, session_lifetime, 0),
                {Cache, Number} = open(Options),
                application:unset_env(ssl, session_lifetime),
                None = refused_by(Number),
                ok = rekindle:update(Cache, element(2, Refused), Refused),
                {Reason, added(None, refused_by(Number))}
            end
         || {Reason, Options, Refused} <- Attempts
        ],
        ?assertEqual([{Reason, #{refused => 1, Reason => 1}} || {Reason, _, _} <- Attempts], Counts)
    end).

%% The list includes the total.
refused_by(Number) ->
    #{refused := Total, refused_by := By} = info(Number),
    ?assertEqual([certificate, layout, lifetime, no_room, private_key, too_large], lists:sort(maps:keys(By))),
    ?assertEqual(Total, lists:sum(maps:values(By))),
    By#{refused => Total}.

added(Before, After) ->
    Added = [{Key, Count - maps:get(Key, Before)} || {Key, Count} <- maps:to_list(After)],
    maps:from_list([Pair || {_, Count} = Pair <- Added, Count =/= 0]).

%% ---- expiry ----

%% A journal gives back the newest first. Here the oldest ends before the newest and after the one between them, as the
%% lifetime was changed in the meantime.
expired_sessions_go_in_whatever_order_they_came(Config) ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    Folder = filename:join(?config(priv_dir, Config), ?FUNCTION_NAME),
    Open = fun() ->
        %% OTP's cache process does the same.
        _ = monitor(port, Socket),
        open([{scope, #{Port => ?FUNCTION_NAME}}, {journal, {folder, Folder}}, {lifetime, 60}])
    end,
    Kind = kind(#{}),
    OldestEnds = in_process(fun() ->
        {Cache, Number} = Open(),
        [OldestEnds | _] = [
            begin
                {ok, 1} = rekindle_admin:set(info(Number), [{lifetime, Lifetime}]),
                put(Cache, Kind, number()),
                now_ms() + 1000 * Lifetime
            end
         || Lifetime <- [10, 9, 60]
        ],
        rekindle_node:await(fun() -> is_written(3, info(Number)) end),
        OldestEnds
    end),
    rekindle_node:await(fun() -> [Scope || #{journal := #{}} = Scope <- rekindle_admin:info()] =:= [] end),
    in_process(fun() ->
        {_, Number} = Open(),
        rekindle_node:await(fun() -> maps:get(applied, maps:get(journal, info(Number))) =:= 3 end),
        Poll = fun Poll() ->
            #{sessions := Sessions} = info(Number),
            case now_ms() < OldestEnds + 10_000 andalso Sessions > 1 of
                true ->
                    timer:sleep(50),
                    Poll();
                false ->
                    Sessions
            end
        end,
        ?assertEqual(1, Poll())
    end).

%% And the records that they refer to.
is_written(Sessions, #{journal := #{written := Written, queued := 0}}) -> Written >= Sessions + 3;
is_written(_, _) -> false.

expired_sessions_of_many_scopes_go_within_two_seconds(_Config) ->
    in_process(fun() ->
        none_each_time(fun() ->
            Ends = [
                begin
                    {Cache, Number} = open([{lifetime, Lifetime}]),
                    repeat(20, ok, fun(_, _) -> put(Cache, kind(#{}), number()) end),
                    {Number, now_ms() + 1000 * Lifetime}
                end
             || Lifetime <- lists:append(lists:duplicate(100, [1, 2, 3]))
            ],
            [Delay || Delay <- delays(Ends), Delay > 2000]
        end)
    end).

%% A busy machine makes threads late, but not three times in a row.
none_each_time(Late) ->
    ?assertNotMatch([[_ | _], [_ | _], [_ | _]], measured(Late, fun(Some) -> Some =:= [] end)).

%% For each scope, how long after its end it was first seen empty.
delays([]) ->
    [];
delays(Ends) ->
    timer:sleep(50),
    Now = now_ms(),
    Empty = maps:from_list([{Number, true} || #{number := Number, sessions := 0} <- rekindle_admin:info()]),
    {Gone, Left} = lists:partition(fun({Number, _}) -> is_map_key(Number, Empty) end, Ends),
    [] = [Number || {Number, End} <- Left, Now > End + 10_000],
    [Now - End || {_, End} <- Gone] ++ delays(Left).

caches_opened_and_closed_all_the_time_do_not_stop_expiry(_Config) ->
    in_process(fun() ->
        Kind = kind(#{}),
        {Cache, Number} = open([{lifetime, 1}]),
        Opened = counters:new(1, []),
        Openers = [spawn_link(fun() -> open_and_close(Kind, Opened) end) || _ <- [1, 2, 3, 4]],
        none_each_time(fun() ->
            repeat(100, ok, fun(_, _) -> put(Cache, Kind, number()) end),
            timer:sleep(3000),
            [Left || #{sessions := Left} <- [info(Number)], Left > 0]
        end),
        [unlink(Opener) || Opener <- Openers],
        [exit(Opener, kill) || Opener <- Openers],
        ?assert(counters:get(Opened, 1) > 0)
    end).

open_and_close(Kind, Opened) ->
    in_process(fun() -> put(rekindle:init([{role, server}]), Kind, number()) end),
    counters:add(Opened, 1, 1),
    open_and_close(Kind, Opened).

%% ---- revocation ----

revoking_one_certificate_of_many_drops_exactly_its_sessions(_Config) ->
    in_process(fun() ->
        Kind = kind(#{}),
        {Cache, Sessions, Authority} = certified(Kind, 50_000),
        {All, _} = lists:unzip(Sessions),
        [{One, {_, OneDer}}, {Two, {TwoSerial, TwoDer}}] = [lists:nth(N, Sessions) || N <- [20_000, 40_000]],
        More = [put(Cache, Kind, number(), Der) || Der <- [OneDer, TwoDer], _ <- lists:seq(1, 20)],
        {MoreOne, MoreTwo} = lists:split(20, More),
        ?assertEqual({ok, 0}, rekindle_admin:revoke(crypto:strong_rand_bytes(32))),
        ?assertEqual({ok, 21}, rekindle_admin:revoke(crypto:hash(sha256, OneDer))),
        ?assertEqual(lists:delete(One, All) ++ MoreTwo, alive(Cache, Kind, All ++ More)),
        ?assertEqual({ok, 21}, rekindle_admin:revoke({issuer, Authority, TwoSerial})),
        ?assertEqual(All -- [One, Two], alive(Cache, Kind, All ++ More)),
        ?assertEqual({ok, 0}, rekindle_admin:revoke(crypto:hash(sha256, OneDer))),
        %% The certificate itself may come again, checked by its listener.
        Again = put(Cache, Kind, number(), OneDer),
        ?assertEqual([Again], alive(Cache, Kind, [Again, One | MoreOne]))
    end).

%% The time must not depend on the number of sessions: a walk over them takes several milliseconds.
revoking_is_a_look_up(_Config) ->
    in_process(fun() ->
        Kind = kind(#{}),
        {_, Sessions, _} = certified(Kind, 10_000),
        {Revoked, _} = lists:split(20, rekindle_attacks:shuffled(Sessions)),
        Took = lists:min([
            begin
                {Microseconds, {ok, 1}} = timer:tc(rekindle_admin, revoke, [crypto:hash(sha256, Der)]),
                Microseconds
            end
         || {_, {_, Der}} <- Revoked
        ]),
        ?assert(Took < 1000, Took),
        {comment, lists:concat([Took, " microseconds"])}
    end).

%% Stores a session with each of this many certificates of one authority.
certified(Kind, Count) ->
    {Authority, [Der | _]} = rekindle_certs:series(1),
    Forge = rekindle_certs:forger(Der),
    {Cache, _} = open([{max_bytes, 256 * ?MIB}]),
    Sessions = [
        begin
            {_, OtherDer} = Certificate = Forge(N),
            {put(Cache, Kind, number(), OtherDer), Certificate}
        end
     || N <- lists:seq(1, Count)
    ],
    {Cache, Sessions, Authority}.

%% Compares at once, and again after the janitor has compressed them, also if some of them were dropped in between.
certificates_of_one_authority_come_back_bit_for_bit(_Config) ->
    in_process(fun() ->
        Kind = kind(#{}),
        %% Some certificates have a flipped bit in their validity.
        {Cache, _} = open([{max_bytes, 64 * ?MIB}, {expired_certificates, resume}]),
        {_, [Der | _] = Signed} = rekindle_certs:series(300),
        Forge = rekindle_certs:forger(Der),
        Forged = [element(2, Forge(N)) || N <- lists:seq(1, 10_000)],
        Flipped = [flipped(Bit, Der) || Bit <- lists:seq(0, bit_size(Der) - 1, 13)],
        %% A flipped bit in a length leaves no certificate.
        Taken = [Bytes || Bytes <- Flipped, not_as_stored(Cache, [{put(Cache, Kind, number(), Bytes), Bytes}]) =:= []],
        ?assert(length(Taken) > length(Flipped) div 2, {length(Taken), length(Flipped)}),
        Random = [rekindle_certs:shaped(crypto:strong_rand_bytes(Bytes)) || Bytes <- lists:seq(1, 3000, 37)],
        Alike = [rekindle_certs:shaped(binary:copy(<<0>>, Bytes)) || Bytes <- lists:seq(1, 65_000, 6500)],
        Sessions = [
            {put(Cache, Kind, number(), Certificate), Certificate}
         || Certificate <- Signed ++ Forged ++ Taken ++ Random ++ Alike, _ <- [1, 2]
        ],
        ?assertEqual([], not_as_stored(Cache, Sessions)),
        timer:sleep(1200),
        %% Others may have been compressed against the first ones.
        {First, Left} = lists:split(40, Sessions),
        drop(Cache, [Number || {Number, _} <- First]),
        ?assertEqual([], not_as_stored(Cache, Left)),
        timer:sleep(2500),
        ?assertEqual([], not_as_stored(Cache, Left))
    end).

flipped(Bit, Bytes) ->
    <<Before:Bit/bitstring, Value:1, After/bitstring>> = Bytes,
    <<Before/bitstring, (1 - Value):1, After/bitstring>>.

not_as_stored(Cache, Sessions) ->
    IsAsStored = fun({Number, Certificate}) ->
        case rekindle:lookup(Cache, id(Number)) of
            undefined -> false;
            Session -> element(4, Session) =:= Certificate
        end
    end,
    [Number || {Number, _} = Session <- Sessions, not IsAsStored(Session)].

%% ---- secrets ----

%% A node with a cache, whose memory is searched from this one. There, the secret is only known to processes whose heaps
%% go back to the system with them. What is said of it in the node are two numbers, of which it is the exclusive or.

%% The search must not find a secret that is gone; otherwise the other cases would prove nothing.
a_search_of_the_memory_finds_what_is_there(_Config) ->
    with_secret([], fun(#{in_node := InNode, halves := Halves, found := Found}) ->
        ?assertEqual(0, Found()),
        Holder = InNode(fun(_) ->
            Self = self(),
            Hold = fun(Secret) ->
                Self ! {held, self()},
                receive
                    stop -> Secret
                end
            end,
            spawn(fun() -> secretly(Halves, Hold) end),
            receive
                {held, Holder} -> Holder
            end
        end),
        ?assert(Found() > 0),
        InNode(fun(_) -> Holder ! stop end),
        rekindle_node:await(fun() -> Found() =:= 0 end)
    end).

no_secret_of_a_deleted_session_stays(_Config) ->
    with_secret([], fun(#{in_node := InNode, halves := Halves, found := Found}) ->
        %% Resumed once in between. What stays of it may be overwritten soon: so at once, and more than once.
        Each = [
            begin
                InNode(fun(Cache) ->
                    put_secretly(Cache, Halves, [#{}], [N]),
                    secretly(Halves, fun(_) -> true = is_tuple(rekindle:lookup(Cache, id(N))) end),
                    drop(Cache, [N])
                end),
                Found()
            end
         || N <- lists:seq(1, 5)
        ],
        ?assertEqual([0, 0, 0, 0, 0], Each)
    end).

no_secret_of_an_evicted_session_stays(_Config) ->
    with_secret([{max_sessions, 100}], fun(#{in_node := InNode, halves := Halves, found := Found}) ->
        Left = InNode(fun(Cache) ->
            Numbers = lists:seq(1, 50),
            put_secretly(Cache, Halves, [#{}], Numbers),
            %% They have another size, so that they do not take the others' places.
            Kind = kind(#{server_name => lists:duplicate(200, $a)}),
            repeat(1000, ok, fun(_, _) -> put(Cache, Kind, 1000 + number()) end),
            alive(Cache, Kind, Numbers)
        end),
        ?assertEqual([], Left),
        ?assertEqual(0, Found())
    end).

%% A session whose secret the store cannot distinguish from another field.
no_secret_of_a_session_that_is_kept_as_a_term_stays(_Config) ->
    with_secret([], fun(#{in_node := InNode, halves := Halves, found := Found}) ->
        InNode(fun(Cache) ->
            Id = id(1),
            secretly(Halves, fun(Secret) ->
                {Session, _} = kind(#{secret => Secret}),
                rekindle:update(Cache, Id, erlang:append_element(setelement(2, Session, Id), <<0:384>>))
            end),
            1 = in_process(fun() -> rekindle:size(Cache) end),
            drop(Cache, [1])
        end),
        ?assertEqual(0, Found())
    end).

%% Most sessions of many sizes go, and the rest is moved together.
no_secret_stays_where_a_session_was_moved_from(_Config) ->
    with_secret([{max_bytes, 4 * ?MIB}], fun(#{in_node := InNode, halves := Halves, found := Found}) ->
        Left = InNode(fun(Cache) -> thin_out(Cache, Halves) end),
        timer:sleep(2500),
        ?assert(Found() =< Left, {Found(), Left})
    end).

no_secret_of_a_dropped_scope_stays(_Config) ->
    with_secret([{max_bytes, 4 * ?MIB}], fun(#{in_node := InNode, halves := Halves, found := Found, stop := Stop}) ->
        _ = InNode(fun(Cache) -> thin_out(Cache, Halves) end),
        Stop(),
        %% The janitor drops the sessions after the scope is gone.
        rekindle_node:await(fun() -> Found() =:= 0 end)
    end).

%% One in fifty sessions of all sizes stays. Returns how many.
thin_out(Cache, Halves) ->
    Sizes = [#{server_name => lists:duplicate(Length, $a)} || Length <- lists:seq(1, 255, 16)],
    Numbers = lists:seq(1, 8000),
    put_secretly(Cache, Halves, Sizes, Numbers),
    drop(Cache, [N || N <- Numbers, N rem 50 > 0]),
    in_process(fun() -> rekindle:size(Cache) end).

with_secret(Options, Fun) ->
    Halves = {crypto:strong_rand_bytes(48), crypto:strong_rand_bytes(48)},
    in_node_searched(fun(Node, OsPid) ->
        Keeper = rekindle_node:run(Node, fun() -> keeper(Options) end),
        Secret = crypto:exor(element(1, Halves), element(2, Halves)),
        Fun(#{
            in_node => fun(Do) -> rekindle_node:run(Node, fun() -> ask(Keeper, Do) end) end,
            halves => Halves,
            %% A part of the secret would be too much, too.
            found => fun() ->
                lists:max([rekindle_memory:occurrences(binary:part(Secret, At, 24), OsPid) || At <- [0, 24]])
            end,
            stop => fun() ->
                rekindle_node:run(Node, fun() ->
                    exit(Keeper, kill),
                    rekindle_node:await(fun() -> rekindle_admin:info() =:= [] end)
                end)
            end
        })
    end).

%% A process that has the cache, and runs the funs that it gets.
keeper(Options) ->
    spawn(fun() ->
        {Cache, _} = open(Options),
        keep(Cache)
    end).

keep(Cache) ->
    receive
        {From, Ref, Do} ->
            From ! {Ref, Do(Cache)},
            keep(Cache)
    end.

ask(Keeper, Do) ->
    Ref = monitor(process, Keeper),
    Keeper ! {self(), Ref, Do},
    receive
        {Ref, Answer} -> Answer;
        {'DOWN', Ref, process, Keeper, Reason} -> error(Reason)
    end.

put_secretly(Cache, Halves, Fields, Numbers) ->
    secretly(Halves, fun(Secret) ->
        Kinds = [element(1, kind(Field#{secret => Secret})) || Field <- Fields],
        lists:foreach(
            fun(N) ->
                Id = id(N),
                ok = rekindle:update(Cache, Id, setelement(2, lists:nth(1 + N rem length(Kinds), Kinds), Id))
            end,
            Numbers
        )
    end).

%% Such a large heap is not collected on its own, so that no copy stays. It goes back to the system before the process ends, as
%% others may hear of the end before.
secretly({Half, OtherHalf}, Fun) ->
    Run = fun() ->
        Fun(crypto:exor(Half, OtherHalf)),
        erlang:garbage_collect(),
        exit(normal)
    end,
    {Pid, Monitor} = spawn_opt(Run, [monitor, {min_heap_size, 4_000_000}]),
    receive
        {'DOWN', Monitor, process, Pid, normal} -> ok
    end.

in_node_searched(Fun) ->
    Node = start_node(fun() -> rekindle_node:start([]) end),
    OsPid = rekindle_node:call(Node, os, getpid, []),
    try file:open(["/proc/", OsPid, "/mem"], [read, raw]) of
        {ok, Memory} ->
            ok = file:close(Memory),
            Fun(Node, OsPid);
        {error, Reason} ->
            {skip, lists:concat(["the memory of another process cannot be read: ", Reason])}
    after
        rekindle_node:stop(Node)
    end.

%% ---- TLS ----

%% Anonymous clients make sessions with names of each length. That they make very many of each would take minutes: OTP's
%% cache process gets more of the same, as if they had. One in each 256 KiB keeps coming back.
server_names_of_all_lengths_stay_within_the_bound(Config) ->
    case rekindle_sessions:host_layout() of
        otp_29_1_2 -> assert_within(4 * ?MIB, fun() -> growth_by_server_names(4 * ?MIB, Config) end);
        _ -> {skip, "this ssl notes no server name in a session"}
    end.

growth_by_server_names(MaxBytes, Config) ->
    #{ca := Ca, server := #{ec := #{cert := Cert, key := Key}}} = rekindle_certs:make(?config(priv_dir, Config)),
    Server = start_node(fun() -> rekindle_node:start_ssl([{session_cb_init_args, [{max_bytes, MaxBytes}]}]) end),
    Clients = rekindle_node:start_ssl([]),
    {_, Port} = rekindle_node:call(Server, rekindle_servers, start, [
        tls, [{certfile, Cert}, {keyfile, Key}, {versions, ['tlsv1.2']}]
    ]),
    Connect = fun(Lengths) -> rekindle_node:run(Clients, fun() -> connect(Port, Lengths) end) end,
    Multiply = fun(Ids, Kept, Times) -> rekindle_node:run(Server, fun() -> multiply(Ids, Kept, Times) end) end,
    %% So that loading code does not count.
    ok = rekindle_node:run(Server, fun load_all/0),
    %% A short run lets Erlang's own memory grow.
    {_, Before} = Multiply(Connect(lists:seq(1, 255, 5)), [], 1000),
    {ok, _} = rekindle_node:call(Server, rekindle_admin, flush, []),
    {_, Peak} = lists:foldl(
        fun(Longest, {Kept, Peak}) ->
            Ids = Connect(lists:seq(Longest - 14, Longest)),
            {More, Resident} = Multiply(Ids, Kept, MaxBytes div (110 + Longest)),
            {More ++ Kept, max(Peak, Resident)}
        end,
        {[], Before},
        lists:seq(255, 15, -15)
    ),
    ?assertMatch(
        #{full := 1, resumed := 1},
        rekindle_clients:openssl_two_processes(tls, Port, #{cafile => Ca, extra => ["-servername", "localhost"]})
    ),
    rekindle_node:stop(Clients),
    rekindle_node:stop(Server),
    Peak - Before.

load_all() ->
    Modules = [application:get_key(Application, modules) || Application <- [stdlib, crypto, public_key, ssl, rekindle]],
    lists:foreach(fun code:ensure_loaded/1, lists:append([Names || {ok, Names} <- Modules])).

connect(Port, Lengths) ->
    [
        begin
            {ok, Socket} = ssl:connect({127, 0, 0, 1}, Port, [
                {versions, ['tlsv1.2']},
                {verify, verify_none},
                {reuse_sessions, false},
                {server_name_indication, lists:duplicate(Length, $a)}
            ]),
            {ok, [{session_id, Id}]} = ssl:connection_information(Socket, [session_id]),
            ok = ssl:close(Socket),
            Id
        end
     || Length <- Lengths
    ].

%% Registers sessions with these ids. Returns the ids of those that keep coming back, and the most memory that this process had.
multiply(Ids, Kept, Times) ->
    [{_, Process, _, _}] = supervisor:which_children(ssl_server_session_cache_sup),
    [Cache] = [Field || Field <- tuple_to_list(sys:get_state(Process)), is_tuple(Field), element(1, Field) =:= server],
    Samples = list_to_tuple([Session || Id <- Ids, Session <- [rekindle:lookup(Cache, Id)], Session =/= undefined]),
    true = tuple_size(Samples) > length(Ids) div 2,
    Apart = max(1, Times div 8),
    put(peak, 0),
    More = repeat(Times, [], fun(N, More) ->
        Id = id(number()),
        Session = setelement(2, element(1 + N rem tuple_size(Samples), Samples), Id),
        ok = ssl_server_session_cache:register_session(
            Process, rekindle_sessions:put_stamps(Session, erlang:monotonic_time(), 1)
        ),
        N rem 250 =:= 0 andalso put(peak, max(get(peak), resident_when_idle(Process))),
        case N rem Apart of
            0 -> [Id || ssl_server_session_cache:reuse_session(Process, Id) =/= not_reusable] ++ More;
            _ -> More
        end
    end),
    _ = [ssl_server_session_cache:reuse_session(Process, Id) || Id <- More ++ Kept],
    {More, get(peak)}.

resident_when_idle(Process) ->
    _ = sys:get_state(Process),
    %% Connections that have ended leave garbage in others as well.
    [erlang:garbage_collect(Pid) || Pid <- processes()],
    rekindle_memory:resident_bytes().

%% ---- everywhere ----

now_ms() ->
    erlang:monotonic_time(millisecond).

in_node(Fun) ->
    Node = start_node(fun() -> rekindle_node:start([]) end),
    try
        rekindle_node:run(Node, Fun)
    after
        rekindle_node:stop(Node)
    end.

%% Erlang keeps no freed memory in it.
start_node(Start) ->
    true = os:putenv("ERL_ZFLAGS", "+MMmcs 0"),
    try
        Start()
    after
        os:unsetenv("ERL_ZFLAGS")
    end.

%% Calls `Fun' with 1 to `Times', and with its previous result.
repeat(Times, Acc, Fun) -> repeat(1, Times, Acc, Fun).

repeat(N, Times, Acc, _) when N > Times -> Acc;
repeat(N, Times, Acc, Fun) -> repeat(N + 1, Times, Fun(N, Acc), Fun).
