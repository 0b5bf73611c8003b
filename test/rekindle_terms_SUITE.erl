%% Tests that any key and any session come back from the cache unchanged, except for OTP's own server sessions, which lose their
%% private key and get new time stamps.
-module(rekindle_terms_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("public_key/include/public_key.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_group/2, end_per_group/2]).
-export([
    any_term_is_a_session/1,
    any_term_is_a_key/1,
    keys_of_equal_bytes_are_one_key/1,
    similar_keys_are_different_keys/1,
    a_session_is_overwritten/1,
    a_session_is_deleted/1,
    huge_and_deep_terms_do_no_harm/1,
    server_sessions_of_all_releases_lose_their_key_and_are_stamped_again/1,
    no_kind_of_private_key_comes_back/1,
    no_private_key_is_in_the_memory_of_the_node/1,
    sessions_of_unknown_shape_are_refused/1,
    what_is_too_large_is_refused/1,
    a_session_without_room_or_lifetime_is_refused/1,
    sessions_of_a_future_shape_come_back_whole_or_are_refused/1,
    a_server_name_is_the_sessions_own/1,
    a_session_without_server_name_is_no_larger/1,
    a_deep_term_within_a_server_session_does_no_harm/1,
    what_only_looks_like_a_session_is_kept_as_it_is/1,
    client_sessions_come_back_exactly/1
]).

-record(point, {x, y = undefined}).

-define(SSL_KEYS, [session_cb, server_session_cb, client_session_cb]).

%% The elements of a server session that change.
-define(INTERNAL_ID, 3).
-define(PRIVATE_KEY, 6).

%% Enough sessions to distinguish stored copies from garbage on Erlang's heaps.
-define(COPIES, 1000).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [
        {group, server},
        {group, client},
        server_sessions_of_all_releases_lose_their_key_and_are_stamped_again,
        no_kind_of_private_key_comes_back,
        no_private_key_is_in_the_memory_of_the_node,
        sessions_of_unknown_shape_are_refused,
        what_is_too_large_is_refused,
        a_session_without_room_or_lifetime_is_refused,
        sessions_of_a_future_shape_come_back_whole_or_are_refused,
        a_server_name_is_the_sessions_own,
        a_session_without_server_name_is_no_larger,
        a_deep_term_within_a_server_session_does_no_harm,
        what_only_looks_like_a_session_is_kept_as_it_is,
        client_sessions_come_back_exactly
    ].

groups() ->
    Cases = [
        any_term_is_a_session,
        any_term_is_a_key,
        keys_of_equal_bytes_are_one_key,
        similar_keys_are_different_keys,
        a_session_is_overwritten,
        a_session_is_deleted,
        huge_and_deep_terms_do_no_harm
    ],
    [{server, Cases}, {client, Cases}].

init_per_suite(Config) ->
    _ = application:load(ssl),
    [application:set_env(ssl, Key, rekindle) || Key <- ?SSL_KEYS],
    Config.

end_per_suite(_Config) ->
    [application:unset_env(ssl, Key) || Key <- ?SSL_KEYS].

init_per_group(Role, Config) ->
    [{role, Role} | Config].

end_per_group(_Role, _Config) ->
    ok.

%% ---- any term, in both roles ----

any_term_is_a_session(Config) ->
    Cache = open(Config),
    Pairs = [{{{"host", 443}, <<N:256>>}, Term} || {N, Term} <- numbered(terms(Config))],
    [rekindle:update(Cache, Key, Term) || {Key, Term} <- Pairs],
    [assert_same(Term, lookup(Cache, Key)) || {Key, Term} <- Pairs],
    assert_same(sorted(Pairs), sorted(fold(Cache))),
    assert_selected(Config, Cache, {"host", 443}, [Term || {_, Term} <- Pairs]),
    ?assertMatch(#{refused := 0, faults := 0}, info(Cache)).

any_term_is_a_key(Config) ->
    Cache = open(Config),
    Pairs = numbered([undefined | terms(Config)]),
    [rekindle:update(Cache, Key, {session_of, N}) || {N, Key} <- Pairs],
    [?assertEqual({session_of, N}, lookup(Cache, Key)) || {N, Key} <- Pairs],
    ?assertEqual(length(Pairs), size_of(Cache)),
    assert_same(sorted([Key || {_, Key} <- Pairs]), sorted([Key || {Key, _} <- fold(Cache)])),
    %% The same for a client's half of a key.
    [rekindle:update(Cache, {Key, id}, {selected, N}) || {N, Key} <- Pairs],
    [assert_selected(Config, Cache, Key, [{selected, N}]) || {N, Key} <- Pairs],
    ?assertMatch(#{refused := 0, faults := 0}, info(Cache)).

keys_of_equal_bytes_are_one_key(Config) ->
    Cache = open(Config),
    [
        begin
            Within = <<1, 2, 3, Key/binary, 4, 5, 6>>,
            <<_:3/binary, Part:(byte_size(Key))/binary, _/binary>> = Within,
            <<_:4, Shifted:(byte_size(Key))/binary, _:4>> = <<0:4, Key/binary, 0:4>>,
            rekindle:update(Cache, Key, whole),
            ?assertEqual(whole, lookup(Cache, Part)),
            rekindle:update(Cache, Part, part),
            ?assertEqual(part, lookup(Cache, Shifted)),
            rekindle:update(Cache, Shifted, shifted),
            ?assertEqual(shifted, lookup(Cache, binary:copy(Key)))
        end
     || Key <- [crypto:strong_rand_bytes(Size) || Size <- [1, 31, 32, 33, 64, 65, 1000]]
    ],
    ?assertEqual(7, size_of(Cache)).

similar_keys_are_different_keys(Config) ->
    Cache = open(Config),
    Id = crypto:strong_rand_bytes(32),
    <<Short:31/binary, Last>> = Id,
    <<Bits:255/bitstring, _:1>> = Id,
    Keys = [
        Id,
        Short,
        <<Id/binary, 0>>,
        Bits,
        binary_to_list(Id),
        {Id},
        [Id],
        {Id, Id},
        {{Id, Id}, Id},
        term_to_binary(Id),
        [Short | Last],
        <<>>,
        [],
        {},
        '',
        1,
        1.0,
        <<1>>,
        [1],
        {1},
        #{1 => 1},
        true,
        "true",
        <<"true">>
    ],
    [rekindle:update(Cache, Key, N) || {N, Key} <- numbered(Keys)],
    [?assertEqual(N, lookup(Cache, Key)) || {N, Key} <- numbered(Keys)],
    ?assertEqual(length(Keys), size_of(Cache)).

a_session_is_overwritten(Config) ->
    Cache = open(Config),
    Keys = [crypto:strong_rand_bytes(32) | terms(Config)],
    [rekindle:update(Cache, Key, first) || Key <- Keys],
    [rekindle:update(Cache, Key, {second, Key}) || Key <- Keys],
    [assert_same({second, Key}, lookup(Cache, Key)) || Key <- Keys],
    ?assertEqual(length(Keys), size_of(Cache)).

a_session_is_deleted(Config) ->
    Cache = open(Config),
    {Dropped, Kept} = lists:split(10, [crypto:strong_rand_bytes(32) | terms(Config)]),
    [rekindle:update(Cache, Key, here) || Key <- Dropped ++ Kept],
    elsewhere(fun() -> [rekindle:delete(Cache, Key) || Key <- Dropped ++ [never_stored]] end),
    [?assertEqual(undefined, rekindle:lookup(Cache, Key)) || Key <- Dropped],
    [?assertEqual(here, rekindle:lookup(Cache, Key)) || Key <- Kept],
    ?assertEqual(length(Kept), size_of(Cache)),
    assert_same(sorted(Kept), sorted([Key || {Key, _} <- fold(Cache)])).

%% In a node of its own: a stack that overflows takes the whole node along. A server's cache takes the deep ones only.
huge_and_deep_terms_do_no_harm(Config) ->
    Role = proplists:get_value(role, Config),
    Deep = nested_terms(500),
    Huge =
        nested_terms(100_000) ++
            [
                binary:copy(<<"0123456789">>, 1_048_576),
                lists:seq(1, 300_000),
                maps:from_list([{N, N} || N <- lists:seq(1, 100_000)])
            ],
    rekindle_node:run_in_new(fun() ->
        Cache = rekindle:init([{role, Role}, {max_bytes, 1_000_000_000}]),
        [
            begin
                rekindle:update(Cache, key, Term),
                ?assert(lookup(Cache, key) =:= Term),
                rekindle:update(Cache, Term, value),
                ?assertEqual(value, lookup(Cache, Term)),
                ?assertEqual(2, size_of(Cache)),
                ?assert([Term] =:= [Key || {Key, value} <- fold(Cache)]),
                elsewhere(fun() -> rekindle:delete(Cache, Term) end)
            end
         || Term <-
                case Role of
                    client -> Deep ++ Huge;
                    server -> Deep
                end
        ],
        ?assertMatch(#{refused := 0, faults := 0}, info(Cache)),
        [
            begin
                rekindle:update(Cache, another_key, Term),
                rekindle:update(Cache, Term, value),
                ?assertEqual([undefined, undefined], [lookup(Cache, Key) || Key <- [another_key, Term]])
            end
         || Role =:= server, Term <- Huge
        ],
        Refused =
            case Role of
                client -> 0;
                server -> 2 * length(Huge)
            end,
        ?assertMatch(#{refused_by := #{too_large := Refused}, refused := Refused, faults := 0}, info(Cache))
    end).

nested_terms(Depth) ->
    [
        nested(Depth, Wrap)
     || Wrap <- [
            fun(Inner) -> [Inner] end, fun(Inner) -> {Inner} end, fun(Inner) -> [1 | Inner] end, fun(Inner) -> #{in => Inner} end
        ]
    ].

%% ---- OTP's server sessions ----

server_sessions_of_all_releases_lose_their_key_and_are_stamped_again(_Config) ->
    Cache = open_server(),
    [
        begin
            {Id, Session} = server_session(Layout, Key),
            rekindle:update(Cache, Id, Session),
            assert_stamped_again(Session, fun() -> lookup(Cache, Id) end),
            assert_stamped_again(Session, fun() -> proplists:get_value(Id, fold(Cache)) end)
        end
     || Layout <- layouts(), Key <- [undefined, #{}, rsa_key(secret())]
    ],
    ?assertMatch(#{refused := 0, faults := 0}, info(Cache)).

%% A session that was stored for hours comes back with other stamps than it had.
assert_stamped_again(Session, Ask) ->
    Answer = Ask(),
    {Stamp, Unique} = element(?INTERNAL_ID, Answer),
    ?assert(rekindle_sessions:is_in_far_future(Stamp, erlang:monotonic_time())),
    ?assert(is_integer(Unique)),
    Expected = setelement(?PRIVATE_KEY, setelement(?INTERNAL_ID, Session, {Stamp, Unique}), undefined),
    assert_same(setelement(time_stamp_place(Session), Expected, Stamp), Answer).

no_kind_of_private_key_comes_back(_Config) ->
    Cache = open_server(),
    Secret = secret(),
    [
        begin
            {Id, Session} = server_session(Layout, Key),
            ?assert(is_within(Secret, Session)),
            rekindle:update(Cache, Id, Session),
            Answer = lookup(Cache, Id),
            ?assertEqual(undefined, element(?PRIVATE_KEY, Answer)),
            ?assertNot(is_within(Secret, Answer))
        end
     || Layout <- layouts(), Key <- private_keys(Secret)
    ],
    ?assertNot(is_within(Secret, fold(Cache))),
    ?assertMatch(#{refused := 0, faults := 0}, info(Cache)).

%% A key that the store kept would be there once for each session. What Erlang's heaps keep of it are a few
%% copies, whatever the number of sessions. That the search finds keys shows on the client's side.
no_private_key_is_in_the_memory_of_the_node(_Config) ->
    case filelib:is_file("/proc/self/mem") of
        true ->
            {Sessions, Found} = keys_in_memory(server),
            ?assertEqual({?COPIES, few}, {Sessions, few_or_many(Found)}),
            {ClientSessions, ClientFound} = keys_in_memory(client),
            ?assertEqual({?COPIES, many}, {ClientSessions, few_or_many(ClientFound)}),
            {comment, lists:concat([Found, " copies in the server's node, ", ClientFound, " in the client's"])};
        false ->
            {skip, "no /proc/self/mem to search"}
    end.

few_or_many(Found) when Found < ?COPIES div 5 -> few;
few_or_many(Found) when Found >= ?COPIES -> many;
few_or_many(Found) -> Found.

sessions_of_unknown_shape_are_refused(_Config) ->
    Cache = open_server(),
    [
        begin
            Id = crypto:strong_rand_bytes(32),
            #{refused := Refused} = Before = info(Cache),
            ?assertEqual(ok, rekindle:update(Cache, Id, Shape(Id))),
            #{refused := RefusedNow} = Now = info(Cache),
            ?assertEqual({Name, [Reason], Refused + 1}, {Name, new_refusals(Before, Now), RefusedNow}),
            ?assertEqual({Name, undefined}, {Name, lookup(Cache, Id)})
        end
     || {{_, Reason, _} = Name, Shape} <- unknown_shapes()
    ],
    %% Not its bytes: the empty index is counted when the janitor comes by.
    ?assertMatch(#{faults := 0, sessions := 0, templates := 0}, info(Cache)),
    ?assertEqual([], fold(Cache)),
    {Id, Good} = server_session(otp_27, rsa_key(secret())),
    rekindle:update(Cache, Id, Good),
    ?assertMatch(#{sessions := 1}, info(Cache)).

%% The reasons that sessions were refused for in between, each as often as it was counted.
new_refusals(#{refused_by := Before}, #{refused_by := Now}) ->
    ?assertEqual([certificate, layout, lifetime, no_room, private_key, too_large], lists:sort(maps:keys(Now))),
    lists:append([lists:duplicate(Count - maps:get(Reason, Before), Reason) || {Reason, Count} <- maps:to_list(Now)]).

%% Each limit, and one byte more. The listener's own parts do not count.
what_is_too_large_is_refused(_Config) ->
    Cache = open_server(),
    {_, Session} = server_session(otp_29_1_2, undefined),
    Name = fun(Bytes) -> setelement(tuple_size(Session), Session, lists:duplicate(Bytes, $a)) end,
    Certificate = fun(Bytes) -> setelement(4, Session, rekindle_certs:sized(Bytes)) end,
    %% Which of its secrets is the master secret cannot be told, so it has no template.
    Odd = fun(Certificates, Own, Bytes) ->
        Both = setelement(5, setelement(4, Session, Certificates), Own),
        list_to_tuple(tuple_to_list(Both) ++ [binary:copy(<<1>>, 48), binary:copy(<<2>>, Bytes)])
    end,
    Der = fun(Bytes) -> binary:copy(<<3>>, Bytes) end,
    Plain = fun(Bytes) -> binary:copy(<<4>>, Bytes) end,
    Outcome = fun(Id, Term) ->
        Value =
            case is_tuple(Term) of
                true -> setelement(2, Term, Id);
                false -> Term
            end,
        Before = info(Cache),
        ok = rekindle:update(Cache, Id, Value),
        case {lookup(Cache, Id), new_refusals(Before, info(Cache))} of
            {undefined, [Reason]} -> Reason;
            {Answer, []} when Answer =/= undefined -> kept
        end
    end,
    Sessions = [
        {kept, Name(255)},
        {too_large, Name(256)},
        {too_large, Name(60_000)},
        {too_large, Name(70_000)},
        {kept, Certificate(65_536)},
        {too_large, Certificate(65_537)},
        {kept, Odd(undefined, [Der(1000)], 6_500)},
        {too_large, Odd(undefined, [Der(1000)], 8_192)},
        %% Without a template, the listener's certificates count, but not the client's.
        {kept, Odd(rekindle_certs:sized(60_000), [Der(1_000), Der(1_000)], 5_500)},
        %% A slot has 96 bytes; two are for the length, and seven for the encoding of the term.
        {kept, Plain(8_192 - 105)},
        {too_large, Plain(8_192 - 104)}
    ],
    ?assertEqual([Expected || {Expected, _} <- Sessions], [Outcome(<<N:256>>, Term) || {N, {_, Term}} <- numbered(Sessions)]),
    %% With another key, there is less room, by the size of the key.
    Key = fun(Byte) -> binary:copy(Byte, 4_000) end,
    ?assertEqual(kept, Outcome(Key(<<5>>), Plain(8_192 - 4_000 - 113))),
    ?assertEqual(too_large, Outcome(Key(<<6>>), Plain(8_192 - 4_000 - 112))).

a_session_without_room_or_lifetime_is_refused(_Config) ->
    Id = crypto:strong_rand_bytes(32),
    [
        begin
            Store = rekindle_nif:open_server(Reason, undefined, false, Limits),
            Before = lists:last(rekindle_admin:info()),
            ?assertEqual(refused, rekindle_nif:insert(Store, Id, session)),
            ?assertEqual([Reason], new_refusals(Before, lists:last(rekindle_admin:info()))),
            ?assertEqual(0, rekindle_nif:size(Store))
        end
     || {Reason, Limits} <- [
            {no_room, {100, 1000, 1000}}, {no_room, {1_000_000, 0, 1000}}, {lifetime, {1_000_000, 1000, 0}}
        ]
    ].

%% Nobody knows these records, so Rekindle finds the key and the stamps by their content. All other fields must come back unchanged,
%% because otherwise OTP would resume another session.
sessions_of_a_future_shape_come_back_whole_or_are_refused(_Config) ->
    Cache = open_server(),
    Outcomes = [
        {{Layout, Name}, outcome(Cache, Layout, Change)}
     || Layout <- layouts(), {Name, Change} <- future_changes(tuple_size(element(2, server_session(Layout, undefined))))
    ],
    ?assertEqual([], [Outcome || {_, What} = Outcome <- Outcomes, What =/= kept, What =/= refused]),
    %% Fields that the store need not understand are no reason to refuse.
    ?assertEqual([], [Shape || {{_, {must_be_kept, _}} = Shape, refused} <- Outcomes]),
    Refused = length([refused || {_, refused} <- Outcomes]),
    ?assert(Refused > 0),
    ?assertMatch(#{refused := Refused, faults := 0}, info(Cache)).

outcome(Cache, Layout, Change) ->
    Key = rsa_key(secret()),
    {Id, Known} = server_session(Layout, Key),
    Session = list_to_tuple(Change(tuple_to_list(Known))),
    #{refused := Refused} = info(Cache),
    ok = rekindle:update(Cache, Id, Session),
    case {lookup(Cache, Id), info(Cache)} of
        {undefined, #{refused := N}} when N =:= Refused + 1 ->
            refused;
        {Answer, #{refused := Refused}} when tuple_size(Answer) =:= tuple_size(Session) ->
            {OldStamp, _} = OldInternalId = element(?INTERNAL_ID, Session),
            {Stamp, _} = InternalId = element(?INTERNAL_ID, Answer),
            New = #{OldInternalId => InternalId, OldStamp => Stamp, Key => undefined},
            Expected = [maps:get(Field, New, Field) || Field <- tuple_to_list(Session)],
            case list_to_tuple(Expected) of
                Answer when Stamp > OldStamp -> kept;
                _ -> {differs, Session, Answer}
            end;
        Other ->
            {unexpected, Other}
    end.

%% The fields of a session, with `session' first.
future_changes(Size) ->
    Kept =
        [
            {fields_added, fun(Fields) -> Fields ++ [undefined, true, {a, 1}, <<"binary">>, 17, 1.5] end},
            {more_than_a_template_has, fun(Fields) -> Fields ++ lists:seq(1, 40) end},
            {more_than_a_byte_can_count, fun(Fields) -> Fields ++ lists:seq(1, 300) end},
            {no_cipher_suite, replaced(fun is_cipher_suite/1, undefined)},
            {no_secret, replaced(fun is_master_secret/1, undefined)},
            {another_secret, fun(Fields) -> Fields ++ [crypto:strong_rand_bytes(48)] end},
            {peer_certificate_decoded, fun(Fields) -> setnth(4, Fields, {cert, <<"der">>, {otp, "decoded"}}) end},
            {peer_certificate_empty, fun(Fields) -> setnth(4, Fields, <<>>) end},
            {two_names, fun(Fields) -> Fields ++ ["one.example", "two.example"] end},
            {a_name_as_long_as_any, fun(Fields) -> Fields ++ [lists:duplicate(255, $a)] end},
            {a_name_that_is_none, fun(Fields) -> Fields ++ [[$a, 256], [$a, -1], [$a, b], [$a | $b], [$a | <<"b">>]] end}
        ] ++
            [
                {{a_secret_of_bytes, Bytes}, replaced(fun is_master_secret/1, crypto:strong_rand_bytes(Bytes))}
             || Bytes <- [0, 1, 32, 47, 49, 64, 5_000]
            ],
    Places = lists:seq(2, Size),
    [{{must_be_kept, Name}, Change} || {Name, Change} <- Kept] ++
        [{{without, Place}, fun(Fields) -> without(Place, Fields) end} || Place <- Places] ++
        [
            {{added_before, Place, New}, fun(Fields) -> added(Place, New, Fields) end}
         || Place <- Places, New <- [undefined, <<1, 2>>, "name", [<<"der">>], {a, b}]
        ] ++
        [
            {{swapped, One, Other}, fun(Fields) -> swapped(One, Other, Fields) end}
         || One <- Places, Other <- Places, One < Other
        ] ++
        [{{ends_after, Place}, fun(Fields) -> lists:sublist(Fields, Place) end} || Place <- Places].

replaced(Is, New) ->
    fun(Fields) ->
        [
            case Is(Field) of
                true -> New;
                false -> Field
            end
         || Field <- Fields
        ]
    end.

is_cipher_suite(Field) -> is_binary(Field) andalso byte_size(Field) =:= 2.
is_master_secret(Field) -> is_binary(Field) andalso byte_size(Field) =:= 48.

without(Place, Fields) ->
    {Before, [_ | After]} = lists:split(Place - 1, Fields),
    Before ++ After.

added(Place, New, Fields) ->
    {Before, After} = lists:split(Place - 1, Fields),
    Before ++ [New | After].

swapped(One, Other, Fields) ->
    setnth(One, setnth(Other, Fields, lists:nth(One, Fields)), lists:nth(Other, Fields)).

setnth(Place, Fields, New) ->
    tuple_to_list(setelement(Place, list_to_tuple(Fields), New)).

%% A client chooses it, and could otherwise have a template made by each of its connections.
a_server_name_is_the_sessions_own(_Config) ->
    Cache = open_server(),
    {_, Session} = server_session(otp_29_1_2, rsa_key(secret())),
    Names = [undefined, "", "a", "localhost", [0, 255], lists:duplicate(255, $b)],
    Many = ["host" ++ integer_to_list(N) || N <- lists:seq(1, 2000)],
    Sessions = [
        {crypto:strong_rand_bytes(32), setelement(tuple_size(Session), setelement(4, Session, Certificate), Name)}
     || Name <- Names ++ Many, Certificate <- [undefined, element(4, Session)]
    ],
    [rekindle:update(Cache, Id, setelement(2, S, Id)) || {Id, S} <- Sessions],
    [assert_stamped_again(setelement(2, S, Id), fun() -> lookup(Cache, Id) end) || {Id, S} <- Sessions],
    %% One template for no name and the empty name, and one for all other names.
    ?assertMatch(#{templates := 3, refused := 0, faults := 0}, info(Cache)).

a_session_without_server_name_is_no_larger(_Config) ->
    Bytes = fun(Name) ->
        Cache = open_server(),
        {_, Session} = server_session(otp_29_1_2, undefined),
        Unverified = setelement(tuple_size(Session), setelement(4, Session, undefined), Name),
        [rekindle:update(Cache, Id, setelement(2, Unverified, Id)) || Id <- [<<N:256>> || N <- lists:seq(1, 2000)]],
        #{sessions := 2000, bytes := Held} = info(Cache),
        Held div 2000
    end,
    %% A slot of 104 bytes, and its place in the index.
    ?assert(Bytes(undefined) < 140, Bytes(undefined)),
    ?assert(Bytes("localhost") > Bytes(undefined)).

a_deep_term_within_a_server_session_does_no_harm(_Config) ->
    rekindle_node:run_in_new(fun() ->
        Cache = open_server(),
        Deep = [nested(200_000, Wrap) || Wrap <- [fun(In) -> {In} end, fun(In) -> [In] end, fun(In) -> [1 | In] end]],
        [
            begin
                {Id, Session} = server_session(Layout, undefined),
                rekindle:update(Cache, Id, setelement(Place, Session, Term)),
                _ = lookup(Cache, Id),
                {KeyId, WithDeepKey} = server_session(Layout, Term),
                rekindle:update(Cache, KeyId, WithDeepKey),
                %% The list is no key, and the session is refused.
                case lookup(Cache, KeyId) of
                    undefined -> ?assert(is_list(Term));
                    Answer -> ?assertEqual(undefined, element(?PRIVATE_KEY, Answer))
                end
            end
         || Layout <- layouts(), Term <- Deep, Place <- [2, 3, 4, 5, 8, 10]
        ],
        ?assertMatch(#{faults := 0}, info(Cache))
    end).

what_only_looks_like_a_session_is_kept_as_it_is(_Config) ->
    Cache = open_server(),
    {Id, Session} = server_session(otp_25, rsa_key(secret())),
    [
        begin
            rekindle:update(Cache, Id, Term),
            assert_same(Term, lookup(Cache, Id))
        end
     || Term <- [session, {session}, {"session", Id}, [Session], {a, Session}, tuple_to_list(Session), #{s => Session}]
    ],
    ?assertMatch(#{refused := 0, faults := 0}, info(Cache)).

client_sessions_come_back_exactly(_Config) ->
    Cache = rekindle:init([{role, client}]),
    Known = [server_session(Layout, Key) || Layout <- layouts(), Key <- private_keys(secret())],
    Unknown = [{Id, Shape(Id)} || {_, Shape} <- unknown_shapes(), Id <- [crypto:strong_rand_bytes(32)]],
    Pairs = [{{{"host", 443}, Id}, Session} || {Id, Session} <- Known ++ Unknown],
    [rekindle:update(Cache, Key, Session) || {Key, Session} <- Pairs],
    [assert_same(Session, lookup(Cache, Key)) || {Key, Session} <- Pairs],
    Selected = rekindle:select_session(Cache, {"host", 443}),
    assert_same(sorted([Session || {_, Session} <- Pairs]), sorted(Selected)),
    assert_same(sorted(Pairs), sorted(fold(Cache))).

%% ---- terms ----

%% A server's cache accepts terms of up to 8 KiB with their key.
terms(Config) ->
    case proplists:get_value(role, Config) of
        client -> terms();
        server -> [Term || Term <- terms(), byte_size(term_to_binary(Term)) =< 4_000]
    end.

terms() ->
    Large = binary:copy(<<"large">>, 700),
    <<_:7/binary, SubBinary:100/binary, _/binary>> = Large,
    [
        an_atom,
        'grüße, мир 🌍',
        '',
        true,
        0,
        -1,
        255,
        1 bsl 31,
        1 bsl 63,
        -(1 bsl 64),
        1 bsl 5000,
        -(1 bsl 5000),
        1.5,
        -0.0,
        1.0e300,
        <<>>,
        <<"small">>,
        <<1:1>>,
        <<16#ABCDEF:23>>,
        Large,
        SubBinary,
        crypto:strong_rand_bytes(31),
        crypto:strong_rand_bytes(33),
        {},
        {one},
        list_to_tuple(lists:seq(1, 300)),
        [],
        "a string",
        "строка",
        [[[]]],
        [a, b | c],
        [1, 2 | 3],
        [[] | <<>>],
        lists:seq(1, 70_000),
        lists:duplicate(70_000, $a),
        #{},
        #{a => 1, "b" => #{c => 2}, {d} => [3]},
        maps:from_list([{{key, N}, <<N:64>>} || N <- lists:seq(1, 1000)]),
        fun lists:map/2,
        fun erlang:'+'/2,
        fun ?MODULE:all/0,
        fun_of_no_module(),
        fun(X) -> {X, Large} end,
        fun numbered/1,
        self(),
        spawn(fun() -> ok end),
        hd(erlang:ports()),
        make_ref(),
        atomics:new(1, []),
        crypto:hash_init(sha256),
        ets:new(a_table, []),
        #point{x = 1},
        #'ECPrivateKey'{version = 1, privateKey = <<"not a session">>},
        {not_found, undefined, #{}}
    ].

%% An atom that does not exist yet. A careful decoder refuses it.
fun_of_no_module() ->
    Name = list_to_atom("module" ++ integer_to_list(erlang:unique_integer([positive]))),
    erlang:make_fun(Name, function, 1).

numbered(List) ->
    lists:zip(lists:seq(1, length(List)), List).

nested(Depth, Wrap) ->
    lists:foldl(fun(_, Inner) -> Wrap(Inner) end, [], lists:seq(1, Depth)).

%% Releases before OTP 27 take -0.0 for 0.0, so the bytes are compared as well.
assert_same(Expected, Actual) ->
    ?assert(Expected =:= Actual),
    ?assert(term_to_binary(Expected) =:= term_to_binary(Actual)).

%% Some terms that are not the same are equal in Erlang's order.
sorted(Terms) ->
    [Term || {_, Term} <- lists:sort([{term_to_binary(Term), Term} || Term <- Terms])].

%% ---- private keys ----

%% 64 bytes that can be found again, wherever they are and whichever end comes first. The highest and the
%% lowest bit are set, so that the number is as long as the bytes.
secret() ->
    <<_:1, Bits:510, _:1>> = crypto:strong_rand_bytes(64),
    <<1:1, Bits:510, 1:1>>.

is_within(Secret, Term) ->
    Bytes = term_to_binary(Term),
    lists:any(fun(Needle) -> binary:match(Bytes, Needle) =/= nomatch end, [Secret, reversed(Secret)]).

reversed(Bytes) ->
    binary:encode_unsigned(binary:decode_unsigned(Bytes, little), big).

private_keys(Secret) ->
    Number = binary:decode_unsigned(Secret),
    Rsa = rsa_key(Secret),
    Ec = #'ECPrivateKey'{version = 1, privateKey = Secret, parameters = {namedCurve, ?secp521r1}, publicKey = <<4>>},
    Pss = #'RSASSA-PSS-params'{saltLength = 32},
    [
        Rsa,
        {Rsa, Pss},
        Ec,
        Ec#'ECPrivateKey'{parameters = {namedCurve, ?'id-Ed25519'}},
        #'DSAPrivateKey'{version = 0, p = 23, q = 11, g = 4, y = 8, x = Number},
        #'PrivateKeyInfo'{version = v1, privateKey = Secret},
        {'OneAsymmetricKey', v2, undefined, Secret, asn1_NOVALUE, asn1_NOVALUE},
        {'RSAPrivateKey', Secret},
        #{algorithm => rsa, engine => make_ref(), key_id => <<"id">>, password => Secret},
        #{algorithm => ecdsa, sign_fun => fun(_, _, _) -> Secret end},
        {another, [kind, #{made_of => Secret}]}
    ].

rsa_key(Secret) ->
    Number = binary:decode_unsigned(Secret),
    #'RSAPrivateKey'{
        version = 'two-prime',
        modulus = 3233,
        publicExponent = 65537,
        privateExponent = Number,
        prime1 = Number,
        prime2 = 53,
        exponent1 = 53,
        exponent2 = 49,
        coefficient = 38,
        otherPrimeInfos = asn1_NOVALUE
    }.

%% ---- session records ----

%% OTP 29.1.1's record has as many elements as OTP 25's, but not the same.
layouts() ->
    [otp_25, otp_27, otp_29_1_1, otp_29_1_2].

%% A session as OTP stores it. Its stamps are some days old, so that they differ from new ones.
server_session(Layout, PrivateKey) ->
    Id = crypto:strong_rand_bytes(32),
    Stamp = erlang:monotonic_time() - erlang:convert_time_unit(300_000, second, native),
    Chain = [crypto:strong_rand_bytes(900), crypto:strong_rand_bytes(700)],
    Head = [session, Id, {Stamp, -576460752303423000}, rekindle_certs:sized(800), Chain, PrivateKey],
    Cipher = <<192, 48>>,
    Secret = crypto:strong_rand_bytes(48),
    Tail = [undefined, true, Stamp, {namedCurve, {1, 3, 132, 0, 34}}, undefined, undefined],
    {Id, list_to_tuple(Head ++ rest(Layout, Cipher, Secret, Tail))}.

rest(otp_25, Cipher, Secret, Tail) -> [0, Cipher, Secret | Tail];
rest(otp_27, Cipher, Secret, Tail) -> [Cipher, Secret | Tail];
rest(otp_29_1_1, Cipher, Secret, Tail) -> [Cipher, Secret | Tail] ++ [{max_frag_enum, 1}];
rest(otp_29_1_2, Cipher, Secret, Tail) -> [Cipher, Secret | Tail] ++ [undefined, "localhost"].

time_stamp_place(Session) ->
    {Stamp, _} = element(?INTERNAL_ID, Session),
    [Place] = [Place || Place <- lists:seq(7, tuple_size(Session)), element(Place, Session) =:= Stamp],
    Place.

unknown_shapes() ->
    Key = rsa_key(secret()),
    Last = fun(Session) -> tuple_size(Session) end,
    Put = fun(Place, Term) -> fun(Session) -> setelement(Place, Session, Term) end end,
    PutLast = fun(Term) -> fun(Session) -> setelement(Last(Session), Session, Term) end end,
    WithKeys = [
        {key_for_peer_certificate, Put(4, Key)},
        {key_for_own_certificates, Put(5, Key)},
        {key_at_the_end, PutLast(Key)},
        {key_added, fun(Session) -> erlang:append_element(Session, Key) end},
        {key_in_a_list, Put(5, [<<"cert">>, Key])},
        {key_in_a_tail, Put(5, [<<"cert">> | Key])},
        {key_in_a_list_in_a_tuple, PutLast({a, [b, {c, Key}]})},
        {key_in_a_pair, PutLast({Key, #'RSASSA-PSS-params'{}})},
        {ec_key, PutLast(#'ECPrivateKey'{privateKey = <<1>>})},
        {dsa_key, PutLast(#'DSAPrivateKey'{x = 1})},
        {key_info, PutLast(#'PrivateKeyInfo'{privateKey = <<1>>})},
        {one_asymmetric_key, PutLast({'OneAsymmetricKey', v2, undefined, <<1>>, asn1_NOVALUE, asn1_NOVALUE})},
        {encoded_key, PutLast({'ECPrivateKey', <<1>>})},
        {engine, PutLast(#{algorithm => rsa, engine => make_ref(), key_id => <<1>>})},
        {small_map_in_a_list, PutLast([#{}])},
        {sign_fun, PutLast(fun(_) -> Key end)},
        {external_fun_in_a_tuple, PutLast({a, fun lists:map/2})},
        {key_far_down, PutLast(nested_around(7, Key))},
        {anything_further_down, PutLast(nested_around(20, harmless))}
    ],
    Strange = [
        {cipher_suite_for_key, Put(6, <<192, 48>>)},
        {secret_for_key, Put(6, secret())},
        {two_stamps, fun(Session) -> setelement(Last(Session), Session, element(1, element(3, Session))) end},
        {another_stamp, fun(Session) -> setelement(time_stamp_place(Session), Session, 1) end},
        {no_stamp, fun(Session) -> setelement(time_stamp_place(Session), Session, undefined) end},
        {stamps_no_numbers, fun(Session) ->
            setelement(time_stamp_place(Session), setelement(3, Session, {undefined, 1}), undefined)
        end},
        {no_internal_id, Put(3, undefined)},
        {internal_id_of_three, fun(Session) -> setelement(3, Session, {element(1, element(3, Session)), 1, 2}) end},
        {internal_id_a_number, fun(Session) -> setelement(3, Session, element(1, element(3, Session))) end},
        {another_id, Put(2, <<0:256>>)},
        {no_id, Put(2, undefined)},
        {ends_before_the_stamp, fun(Session) -> first(9, Session) end},
        {ends_with_the_key, fun(Session) -> first(6, Session) end},
        {ends_before_the_key, fun(Session) -> first(5, Session) end},
        {id_only, fun(Session) -> first(2, Session) end}
    ],
    [
        {{Layout, Reason, Name}, unknown(Layout, Change)}
     || Layout <- layouts(), {Reason, Changes} <- [{private_key, WithKeys}, {layout, Strange}], {Name, Change} <- Changes
    ].

unknown(Layout, Change) ->
    fun(Id) ->
        {_, Session} = server_session(Layout, undefined),
        Change(setelement(2, Session, Id))
    end.

first(Count, Tuple) ->
    list_to_tuple(lists:sublist(tuple_to_list(Tuple), Count)).

nested_around(Depth, Term) ->
    lists:foldl(fun(_, Inner) -> [Inner] end, Term, lists:seq(1, Depth)).

%% ---- the memory of a node ----

%% How many sessions a node holds that were made with one private key, and how often that key is in its memory.
keys_in_memory(Role) ->
    Secret = secret(),
    Node = rekindle_node:start([]),
    try
        Sessions = rekindle_node:run(Node, fun() -> fill(Role, Secret) end),
        OsPid = rekindle_node:call(Node, os, getpid, []),
        {Sessions, lists:sum([rekindle_memory:occurrences(Bytes, OsPid) || Bytes <- [Secret, reversed(Secret)]])}
    after
        rekindle_node:stop(Node)
    end.

fill(Role, Secret) ->
    Self = self(),
    Keeper = spawn(fun() ->
        Cache = rekindle:init([{role, Role}]),
        Key = rsa_key(Secret),
        [
            begin
                {Id, Session} = server_session(otp_25, Key),
                rekindle:update(Cache, Id, Session)
            end
         || _ <- lists:seq(1, ?COPIES)
        ],
        Self ! {self(), size_of(Cache)},
        %% The sessions go with the last reference to the cache.
        receive
            stop -> exit(Cache)
        end
    end),
    receive
        {Keeper, Sessions} -> Sessions
    end.

%% ---- the cache ----

open(Config) ->
    rekindle:init([{role, proplists:get_value(role, Config)}]).

open_server() ->
    rekindle:init([{role, server}]).

%% The info of the cache that was opened last. `Cache' must be that one.
info(Cache) ->
    Info = lists:last(rekindle_admin:info()),
    %% This use keeps the reference alive until here: otherwise it could be garbage-collected before.
    _ = size_of(Cache),
    Info.

lookup(Cache, Key) ->
    rekindle:lookup(Cache, Key).

%% The process that opened a server's cache counts as OTP's process, and gets another number.
size_of(Cache) ->
    elsewhere(fun() -> rekindle:size(Cache) end).

fold(Cache) ->
    rekindle:foldl(fun(Pair, Acc) -> [Pair | Acc] end, [], Cache).

assert_selected(Config, Cache, PartialKey, Sessions) ->
    Expected =
        case proplists:get_value(role, Config) of
            server -> [];
            client -> Sessions
        end,
    assert_same(sorted(Expected), sorted(rekindle:select_session(Cache, PartialKey))).

elsewhere(Fun) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({result, Fun()}) end),
    receive
        {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    end.
