%% Tests the templates that OTP's process keeps on its own heap: they are used, they are bounded, they contain no secret, any other
%% term in their place does no harm, and every session comes back unchanged.
-module(rekindle_templates_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0]).
-export([
    sessions_of_many_kinds_come_back_in_any_order/1,
    a_frequent_kind_comes_among_many_rare_ones/1,
    many_kinds_are_kept_and_replaced_only_now_and_then/1,
    what_is_kept_is_small_and_no_secret/1,
    what_is_large_is_not_kept/1,
    anything_in_its_place_does_no_harm/1,
    parts_of_it_that_are_broken_do_no_harm/1,
    others_than_the_owner_keep_nothing/1,
    terms_that_look_like_answers_come_back/1,
    fields_of_any_kind_are_told_apart/1,
    caches_of_one_process_do_not_mix/1,
    it_outlives_the_module_it_came_by/1,
    what_another_load_of_the_library_left_is_replaced/1,
    a_kind_takes_little_beside_the_certificates_they_share/1,
    own_certificates_are_listed_once/1
]).

%% The key in the process dictionary.
-define(TEMPLATES, rekindle_templates).

-define(PEER_CERTIFICATE, 4).
-define(OWN_CERTIFICATES, 5).
-define(PRIVATE_KEY, 6).

%% Most templates of a process.
-define(MOST, 8).
%% In a full tuple, one in this many lookups may replace a template.
-define(LOOKUPS_PER_REPLACEMENT, 16).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [
        sessions_of_many_kinds_come_back_in_any_order,
        a_frequent_kind_comes_among_many_rare_ones,
        many_kinds_are_kept_and_replaced_only_now_and_then,
        what_is_kept_is_small_and_no_secret,
        what_is_large_is_not_kept,
        anything_in_its_place_does_no_harm,
        parts_of_it_that_are_broken_do_no_harm,
        others_than_the_owner_keep_nothing,
        terms_that_look_like_answers_come_back,
        fields_of_any_kind_are_told_apart,
        caches_of_one_process_do_not_mix,
        it_outlives_the_module_it_came_by,
        what_another_load_of_the_library_left_is_replaced,
        a_kind_takes_little_beside_the_certificates_they_share,
        own_certificates_are_listed_once
    ].

%% ---- kinds ----

sessions_of_many_kinds_come_back_in_any_order(_Config) ->
    Cache = open(),
    [
        begin
            Sessions = [session(Layout, Verified, Kind) || Kind <- lists:seq(1, Kinds), Verified <- [verified, unverified]],
            store(Cache, Sessions),
            [assert_handed_out(Cache, Session) || _ <- [1, 2, 3], Session <- shuffled(Sessions)]
        end
     || Layout <- rekindle_sessions:layouts(), Kinds <- [1, ?MOST, ?MOST + 1, 50]
    ],
    ?assertMatch(#{faults := 0, refused := 0}, info(Cache)).

a_frequent_kind_comes_among_many_rare_ones(_Config) ->
    Cache = open(),
    [Frequent | Rare] = Sessions = kinds(40),
    store(Cache, Sessions),
    [assert_handed_out(Cache, Session) || Session <- Rare],
    ?assertEqual(?MOST, length(records())),
    ?assertNot(is_kept(Frequent)),
    [assert_handed_out(Cache, Frequent) || _ <- lists:seq(1, ?LOOKUPS_PER_REPLACEMENT)],
    ?assert(is_kept(Frequent)).

many_kinds_are_kept_and_replaced_only_now_and_then(_Config) ->
    Cache = open(),
    Sessions = kinds(20),
    store(Cache, Sessions),
    Rounds = 50,
    Changes = [
        changed
     || _ <- lists:seq(1, Rounds),
        Session <- Sessions,
        Before <- [get(?TEMPLATES)],
        assert_handed_out(Cache, Session) =:= ok,
        get(?TEMPLATES) =/= Before
    ],
    Replacements = length(Changes) - ?MOST,
    ?assert(Replacements > 0, Replacements),
    ?assert(Replacements =< Rounds * length(Sessions) div ?LOOKUPS_PER_REPLACEMENT, Replacements),
    ?assertEqual(?MOST, length(records())),
    ?assertEqual(?MOST, length(lists:usort(records()))).

%% ---- what is kept ----

what_is_kept_is_small_and_no_secret(_Config) ->
    Cache = open(),
    Sessions = kinds(20),
    store(Cache, Sessions),
    [assert_handed_out(Cache, Session) || _ <- [1, 2], Session <- Sessions],
    ?assertEqual(?MOST, length(records())),
    Bytes = erlang:external_size(get(?TEMPLATES)),
    ?assert(erts_debug:flat_size(get(?TEMPLATES)) < 200 * ?MOST, Bytes),
    Kept = term_to_binary(get(?TEMPLATES)),
    Private = [Field || Session <- Sessions, Field <- private_fields(Session)],
    ?assertEqual([], [Field || Field <- Private, binary:match(Kept, Field) =/= nomatch]),
    %% The search finds a secret that is there.
    [Certificate | _] = element(?OWN_CERTIFICATES, hd(Sessions)),
    ?assertNotEqual(nomatch, binary:match(Kept, Certificate)).

what_is_large_is_not_kept(_Config) ->
    Cache = open(),
    [
        begin
            Session = setelement(Place, session(otp_25, verified, 1), Large),
            store(Cache, [Session]),
            assert_handed_out(Cache, Session),
            assert_handed_out(Cache, Session),
            ?assertEqual([], records())
        end
     || {Place, Large} <- [
            {?OWN_CERTIFICATES, [<<N:8000>> || N <- lists:seq(1, 100)]},
            {?OWN_CERTIFICATES, lists:seq(1, 1000)},
            {15, list_to_tuple(lists:seq(1, 1000))},
            {15, binary:copy(<<"large">>, 10_000)},
            {15, 1.5}
        ]
    ],
    ?assertMatch(#{faults := 0}, info(Cache)).

%% ---- what else may be in its place ----

anything_in_its_place_does_no_harm(_Config) ->
    Cache = open(),
    Sessions = kinds(3),
    store(Cache, Sessions),
    [
        begin
            put(?TEMPLATES, Term),
            [assert_handed_out(Cache, Session) || Session <- Sessions],
            ?assertEqual(3, length(records()))
        end
     || Term <- [
            undefined,
            kept,
            1,
            1.5,
            <<1>>,
            [],
            [a | b],
            #{a => 1},
            self(),
            make_ref(),
            fun() -> ok end,
            {},
            {1},
            {0},
            {1, 2, 3},
            {-1, 1, {session}},
            erlang:make_tuple(17, 0),
            erlang:make_tuple(1_000_000, {}),
            {1 bsl 70, 1 bsl 70, {}}
        ]
    ].

%% A tuple of this load of the library that somebody has changed.
parts_of_it_that_are_broken_do_no_harm(_Config) ->
    Cache = open(),
    [First, Second] = Sessions = kinds(2),
    store(Cache, Sessions),
    assert_handed_out(Cache, First),
    {Load, Name, Record} = Good = get(?TEMPLATES),
    [
        begin
            put(?TEMPLATES, Broken),
            assert_handed_out(Cache, First),
            assert_handed_out(Cache, Second),
            ?assert(is_kept(First) andalso is_kept(Second)),
            Repaired = get(?TEMPLATES),
            assert_handed_out(Cache, First),
            ?assertEqual(Repaired, get(?TEMPLATES))
        end
     || Broken <- [
            {Load},
            {Load, Name},
            {Load, Name, Record, Name},
            {Load + 1, Name, Record},
            {Load, Name, undefined},
            {Load, Name, {}},
            {Load, Name, erlang:delete_element(1, Record)},
            {Load, Name, erlang:append_element(Record, undefined)},
            {Load, Name, tuple_to_list(Record)},
            {Load, Record, Name},
            {Load, undefined, Record},
            {Load, {Name}, Record},
            erlang:make_tuple(1 + 2 * ?MOST + 2, Load)
        ]
    ],
    put(?TEMPLATES, Good),
    assert_handed_out(Cache, First),
    ?assertEqual(Good, get(?TEMPLATES)).

others_than_the_owner_keep_nothing(_Config) ->
    Cache = open(),
    Sessions = kinds(3),
    store(Cache, Sessions),
    elsewhere(fun() ->
        [assert_handed_out(Cache, Session) || _ <- [1, 2], Session <- Sessions],
        ?assertEqual(undefined, get(?TEMPLATES)),
        %% These processes do not use a tuple that they have, either.
        put(?TEMPLATES, something),
        [assert_handed_out(Cache, Session) || Session <- Sessions],
        ?assertEqual(something, get(?TEMPLATES)),
        store(Cache, kinds(1))
    end),
    ?assertEqual([], records()).

terms_that_look_like_answers_come_back(_Config) ->
    Cache = open(),
    Session = session(otp_25, verified, 1),
    store(Cache, [Session]),
    assert_handed_out(Cache, Session),
    Kept = get(?TEMPLATES),
    [
        begin
            Key = {key, N},
            ok = rekindle:update(Cache, Key, Term),
            ?assertEqual(Term, rekindle:lookup(Cache, Key)),
            ?assertEqual(Term, elsewhere(fun() -> rekindle:lookup(Cache, Key) end)),
            ?assertEqual([{Key, Term}], [Pair || {Found, _} = Pair <- fold(Cache), Found =:= Key])
        end
     || {N, Term} <- numbered([
            kept,
            plain,
            session,
            {kept},
            {plain},
            {kept, Kept},
            {kept, Kept, Session},
            {kept, {}, undefined},
            {kept, 1, 2, 3},
            {plain, Session},
            {plain, undefined},
            {plain, 1, 2},
            {plain, {kept, Kept, Session}},
            {kept, Kept, {plain, 1}},
            {session}
        ])
    ],
    ?assertEqual(Kept, get(?TEMPLATES)),
    ?assertMatch(#{faults := 0, refused := 0}, info(Cache)).

%% Sessions that differ in one field only, looked up in turn.
fields_of_any_kind_are_told_apart(_Config) ->
    Cache = open(),
    Certificate = rekindle_certs:sized(1100),
    <<_:8, Shifted/binary>> = <<0:4, Certificate/binary, 0:4>>,
    Terms = [
        undefined,
        true,
        '',
        0,
        1,
        -1,
        0.0,
        1.0,
        (1 bsl 59) - 1,
        1 bsl 59,
        -(1 bsl 59),
        -(1 bsl 59) - 1,
        (1 bsl 63) - 1,
        1 bsl 63,
        -(1 bsl 63),
        1 bsl 64,
        1 bsl 200,
        <<>>,
        <<0>>,
        <<0, 0, 0>>,
        <<1:1>>,
        <<1:7>>,
        <<0:384, 0>>,
        Certificate,
        <<Certificate/binary, 0>>,
        Shifted,
        [],
        [[]],
        [<<>>],
        [<<0>>],
        [<<0>>, <<0>>],
        [<<0>> | <<0>>],
        [Certificate],
        [Certificate, Certificate],
        [a],
        [a | b],
        [<<1:1>>],
        [<<1, 0:800>>],
        [<<2, 0:800>>],
        [<<1, 0:800, 1>>],
        {},
        {{}},
        {1},
        {1, 2},
        {1, <<2>>},
        {1, {2}},
        {{1}, 2},
        {1, [2]},
        {1, 2.0},
        list_to_tuple(lists:seq(1, 33)),
        lists:foldl(fun(_, Inner) -> {Inner} end, 0, lists:seq(1, 7)),
        self(),
        make_ref()
    ],
    [
        begin
            Sessions = [setelement(Place, session(otp_25, unverified, 1), copy(Term)) || Term <- Terms],
            elsewhere(fun() -> store(Cache, Sessions) end),
            #{templates := Templates} = info(Cache),
            store(Cache, [setelement(2, Session, crypto:strong_rand_bytes(32)) || Session <- Sessions]),
            ?assertMatch(#{templates := Templates}, info(Cache)),
            [assert_handed_out(Cache, Session) || _ <- [1, 2], Session <- Sessions],
            elsewhere(fun() -> [assert_handed_out(Cache, Session) || Session <- Sessions] end)
        end
     || Place <- [?OWN_CERTIFICATES, 15]
    ],
    ?assertMatch(#{faults := 0, refused := 0}, info(Cache)).

caches_of_one_process_do_not_mix(_Config) ->
    Caches = [open() || _ <- [1, 2, 3]],
    %% The scopes have the same ids, and other sessions.
    Of = fun(Cache) ->
        [
            begin
                Session = session(otp_27, verified, Kind),
                {Cache, setelement(?OWN_CERTIFICATES, setelement(2, Session, <<Kind:256>>), [<<N:800>>])}
            end
         || Kind <- [1, 2], N <- [index(Cache, Caches)]
        ]
    end,
    Sessions = lists:append([Of(Cache) || Cache <- Caches]),
    [store(Cache, [Session]) || {Cache, Session} <- Sessions],
    [assert_handed_out(Cache, Session) || _ <- [1, 2, 3], {Cache, Session} <- shuffled(Sessions)],
    ?assertEqual(6, length(records())).

%% ---- upgrades ----

it_outlives_the_module_it_came_by(_Config) ->
    rekindle_node:run_in_new(fun() ->
        Cache = open(),
        Sessions = kinds(3),
        store(Cache, Sessions),
        [assert_handed_out(Cache, Session) || Session <- Sessions],
        Kept = get(?TEMPLATES),
        [
            begin
                _ = code:purge(rekindle),
                {module, rekindle} = code:load_file(rekindle)
            end
         || _ <- [1, 2]
        ],
        [assert_handed_out(Cache, Session) || Session <- Sessions],
        ?assertEqual(Kept, get(?TEMPLATES)),
        ?assertMatch(#{faults := 0}, info(Cache))
    end).

%% The library is another file, and its numbers begin again.
what_another_load_of_the_library_left_is_replaced(Config) ->
    [First | _] = Copies = [copy_of_rekindle(Version, Config) || Version <- ["1", "2", "3"]],
    Node = rekindle_node:start([], [filename:join(First, "ebin")]),
    try
        rekindle_node:run(Node, fun() ->
            [
                begin
                    true = code:replace_path(rekindle, Copy),
                    _ = code:delete(rekindle_nif),
                    _ = code:purge(rekindle_nif),
                    {module, rekindle_nif} = code:load_file(rekindle_nif),
                    ?assertEqual(filename:join(Copy, "priv"), code:priv_dir(rekindle)),
                    Left = get(?TEMPLATES),
                    Cache = open(),
                    _ = put(?TEMPLATES, Left),
                    Sessions = [session(otp_25, verified, Kind) || Kind <- Kinds],
                    store(Cache, Sessions),
                    [assert_handed_out(Cache, Session) || _ <- [1, 2], Session <- Sessions],
                    ?assertEqual(2, length(records()))
                end
             || {Copy, Kinds} <- lists:zip(Copies, [[1, 2], [3, 4], [2, 1]])
            ]
        end)
    after
        rekindle_node:stop(Node)
    end.

%% ---- what kinds take ----

a_kind_takes_little_beside_the_certificates_they_share(_Config) ->
    Chain = [crypto:strong_rand_bytes(3000), crypto:strong_rand_bytes(3000)],
    Held = fun(Kinds) ->
        Cache = open(),
        Sessions = [
            setelement(?OWN_CERTIFICATES, session(otp_25, unverified, 1 + N rem Kinds), Chain)
         || N <- lists:seq(1, 2000)
        ],
        store(Cache, Sessions),
        #{templates := Kinds, bytes := Bytes} = info(Cache),
        Bytes
    end,
    {One, Many} = {Held(1), Held(2000)},
    ?assert((Many - One) div 1999 < 600, {One, Many}),
    %% The counter works at all.
    ?assert((Many - One) div 1999 > 200, {One, Many}).

own_certificates_are_listed_once(_Config) ->
    Cache = open(),
    Chains = [[crypto:strong_rand_bytes(900)], [crypto:strong_rand_bytes(900), <<"short">>]],
    store(Cache, [setelement(?OWN_CERTIFICATES, session(otp_25, unverified, N), Chain) || N <- lists:seq(1, 20), Chain <- Chains]),
    #{number := Number, templates := 40} = info(Cache),
    ?assertEqual(lists:sort(Chains), lists:sort(rekindle_nif:own_certificates(Number))).

%% ---- sessions ----

kinds(Number) ->
    [session(otp_29_1_2, verified, Kind) || Kind <- lists:seq(1, Number)].

%% A new session. Its cipher suite decides its kind.
session(Layout, Verified, Kind) ->
    Id = crypto:strong_rand_bytes(32),
    Session = rekindle_sessions:make({session, Layout, Verified, rand:uniform(16#FFFF)}, Id),
    list_to_tuple([
        case Field of
            <<192, 48>> -> <<Kind:16>>;
            <<_:384>> -> crypto:strong_rand_bytes(48);
            _ -> Field
        end
     || Field <- tuple_to_list(Session)
    ]).

%% The parts that only the process which looks the session up may have.
private_fields(Session) ->
    [Secret] = [Field || <<_:384>> = Field <- tuple_to_list(Session)],
    {'ECPrivateKey', _, Key, _, _} = element(?PRIVATE_KEY, Session),
    [Secret, Key, rekindle_sessions:id(Session), element(?PEER_CERTIFICATE, Session), <<"localhost">>].

store(Cache, Sessions) ->
    [ok = rekindle:update(Cache, rekindle_sessions:id(Session), Session) || Session <- Sessions].

assert_handed_out(Cache, Session) ->
    Answer = rekindle:lookup(Cache, rekindle_sessions:id(Session)),
    {Stamp, Unique} = rekindle_sessions:internal_id(Answer),
    ?assert(rekindle_sessions:is_in_far_future(Stamp, erlang:monotonic_time())),
    Expected = rekindle_sessions:put_stamps(setelement(?PRIVATE_KEY, Session, undefined), Stamp, Unique),
    ?assertEqual(Expected, Answer),
    ok.

%% The records of the templates that this process keeps.
records() ->
    case get(?TEMPLATES) of
        undefined -> [];
        Kept -> [Record || Record <- tuple_to_list(Kept), is_tuple(Record)]
    end.

is_kept(Session) ->
    [Suite] = [Field || <<_:16>> = Field <- tuple_to_list(Session)],
    lists:any(fun(Record) -> lists:member(Suite, tuple_to_list(Record)) end, records()).

%% ---- the cache ----

open() ->
    _ = application:load(ssl),
    erase(?TEMPLATES),
    rekindle:init([{role, server}, {max_bytes, 1 bsl 30}]).

info(Cache) ->
    Info = lists:last(rekindle_admin:info()),
    %% A use of it after: nobody else refers to it, and it would be gone otherwise.
    _ = elsewhere(fun() -> rekindle:size(Cache) end),
    Info.

fold(Cache) ->
    rekindle:foldl(fun(Pair, Acc) -> [Pair | Acc] end, [], Cache).

elsewhere(Fun) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({result, Fun()}) end),
    receive
        {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    end.

copy_of_rekindle(Version, Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), "rekindle-" ++ Version),
    Files = [filename:join("ebin", "*"), filename:join("priv", "*.so")],
    [
        begin
            To = filename:join([Dir, filename:basename(filename:dirname(File)), filename:basename(File)]),
            ok = filelib:ensure_dir(To),
            {ok, _} = file:copy(File, To)
        end
     || Of <- Files, File <- filelib:wildcard(filename:join(code:lib_dir(rekindle), Of))
    ],
    Dir.

%% No literal of this module, which all processes have at one place.
copy(Term) ->
    binary_to_term(term_to_binary(Term)).

shuffled(List) ->
    [Element || {_, Element} <- lists:sort([{rand:uniform(), Element} || Element <- List])].

numbered(List) ->
    lists:zip(lists:seq(1, length(List)), List).

index(Element, [Element | _]) -> 1;
index(Element, [_ | Rest]) -> 1 + index(Element, Rest).
