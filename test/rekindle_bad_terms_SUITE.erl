%% Calls every native function with any term in any place. It must answer or raise `badarg', and never end the node. The suite
%% takes the functions that rekindle_nif exports, and finds out by trying how to call them correctly. So it covers a new function
%% as well, or says that it does not know how to call it.
-module(rekindle_bad_terms_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    any_term_in_any_place/1,
    large_terms_in_any_place/1,
    any_term_within_a_session/1,
    references_of_an_earlier_load/1
]).

-define(ID, <<7:256>>).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [any_term_in_any_place, large_terms_in_any_place, any_term_within_a_session, references_of_an_earlier_load].

%% The node is separate, so that its end is noticed.
init_per_testcase(_Case, Config) ->
    [{node, rekindle_node:start([])} | Config].

end_per_testcase(_Case, Config) ->
    try
        rekindle_node:stop(proplists:get_value(node, Config))
    catch
        %% It has crashed, and the case with it.
        exit:_ -> ok
    end.

any_term_in_any_place(Config) ->
    for_each_function(Config, fun(Function, Calls) ->
        attack(Function, Calls, terms() ++ [wrapped(Term) || Term <- terms()])
    end).

%% One large term at a time, made once for all functions, and not in every company.
large_terms_in_any_place(Config) ->
    [
        begin
            ok = rekindle_node:run(proplists:get_value(node, Config), fun() -> persistent_term:put(?MODULE, Large()) end),
            for_each_function(Config, fun(Function, Calls) ->
                attack(Function, one_for_each_store(Calls), [persistent_term:get(?MODULE)])
            end)
        end
     || Large <- large_terms()
    ].

any_term_within_a_session(Config) ->
    for_each_function(Config, fun(Function, Calls) ->
        Session = session(),
        Sessions = [
            setelement(Place, Session, Term)
         || Place <- lists:seq(1, tuple_size(Session)), Term <- [wrapped(none) | terms()]
        ],
        attack(Function, one_for_each_store(Calls), Sessions)
    end).

references_of_an_earlier_load(Config) ->
    rekindle_node:run(proplists:get_value(node, Config), fun() ->
        Old = stores(),
        true = code:delete(rekindle_nif),
        %% No process runs in that code: this process only calls it.
        _ = code:purge(rekindle_nif),
        {module, rekindle_nif} = code:load_file(rekindle_nif),
        ok = rekindle_nif:loaded(),
        [attack(Function, good_calls(Function), Old) || Function <- functions()],
        assert_sane(),
        %% The old ones are dropped, by a library that does not know their type any more.
        garbage_collect()
    end),
    rekindle_node:run(proplists:get_value(node, Config), fun assert_sane/0).

%% ---- the functions ----

for_each_function(Config, Attack) ->
    Node = proplists:get_value(node, Config),
    [
        begin
            ct:log("~p", [Function]),
            rekindle_node:run(Node, fun() ->
                Attack(Function, good_calls(Function)),
                assert_sane()
            end)
        end
     || Function <- functions()
    ].

functions() ->
    rekindle_nif:module_info(exports) -- [{module_info, 0}, {module_info, 1}, {loaded, 0}].

%% All ways to fill the function's arguments with good terms.
good_calls({_, 0}) ->
    [];
good_calls({Name, Arity} = Function) ->
    Values = [
        ?ID, session(), client, true, {1_000_000, 1000, 60_000}, journal(), [], all, {certificates, [{sha256, ?ID}]} | stores()
    ],
    %% Numbers only where it takes nothing without: of a scope, a place, a limit.
    Good =
        case good_calls(Name, Arity, Values) of
            [] -> good_calls(Name, Arity, [1 | Values]);
            Found -> Found
        end,
    ?assertMatch({_, [_ | _]}, {Function, Good}),
    Good.

good_calls(Name, Arity, Values) ->
    [Args || Args <- combinations(Arity, Values), is_answer(call(Name, Args))].

combinations(0, _) -> [[]];
combinations(N, Values) -> [[Value | Rest] || Rest <- combinations(N - 1, Values), Value <- Values].

one_for_each_store([]) ->
    [];
one_for_each_store([[First | _] = Args | Calls]) when is_reference(First) ->
    [Args | one_for_each_store([Call || Call <- Calls, hd(Call) =/= First])];
one_for_each_store([Args | _]) ->
    [Args].

%% Each term in each place of each call. Where a store is needed, any other term must fail.
attack({Name, 0}, [], _) ->
    ?assert(is_answer(call(Name, [])));
attack({Name, Arity}, Calls, Terms) ->
    [
        begin
            Answer = call(Name, replace(Place, Args, Term)),
            IsMistaken = is_answer(Answer) andalso takes_stores_only(Place, Calls) andalso not is_store(Term),
            (is_answer(Answer) andalso not IsMistaken) orelse Answer =:= badarg orelse
                error({unexpected, Name, Place, shown(Term), shown(Answer)})
        end
     || Term <- Terms, Place <- lists:seq(1, Arity), Args <- Calls
    ],
    %% The next call must not find what this one has stored.
    [rekindle_nif:clear(Store) || [Store | _] <- Calls, is_store(Store)],
    garbage_collect().

takes_stores_only(Place, Calls) ->
    lists:all(fun(Args) -> is_reference(lists:nth(Place, Args)) end, Calls).

is_store(Term) ->
    is_reference(Term) andalso is_answer(call(size, [Term])).

call(Name, Args) ->
    try
        {answer, apply(rekindle_nif, Name, Args)}
    catch
        error:badarg -> badarg;
        Class:Reason -> {Class, Reason}
    end.

is_answer(Answer) ->
    is_tuple(Answer) andalso element(1, Answer) =:= answer.

replace(Place, Args, Term) ->
    {Before, [_ | After]} = lists:split(Place - 1, Args),
    Before ++ [Term | After].

shown(Term) ->
    lists:flatten(io_lib:format("~0P", [Term, 12])).

assert_sane() ->
    [Server, Client] = stores(),
    stored = rekindle_nif:insert(Server, ?ID, session()),
    ?assertEqual(session, element(1, rekindle_nif:server_lookup(Server, ?ID))),
    stored = rekindle_nif:insert(Client, ?ID, session()),
    ?assertEqual(session(), rekindle_nif:client_lookup(Client, ?ID, undefined)),
    ?assert(is_list(rekindle_nif:info())),
    ?assertEqual(undefined, rekindle_nif:last_panic()).

%% ---- the terms ----

stores() ->
    [rekindle_nif:open_server(server, undefined, false, {1 bsl 30, 1000, 60_000}), rekindle_nif:open_client(client)].

%% A session record of OTP 25.
session() ->
    {session, ?ID, {1, 2}, rekindle_certs:shaped(<<1:800>>), [<<2:800>>], undefined, 0, <<192, 48>>, <<3:384>>, undefined, true,
        1, {namedCurve, {1, 3, 132, 0, 34}}, undefined, undefined}.

%% The options of a journal in a folder that cannot exist.
journal() ->
    #{
        scope => <<"s">>,
        layout => <<"l">>,
        key_file => <<"/dev/null/keys">>,
        makes_key => true,
        wait_for_living_node => false,
        max_log_bytes => 1_000_000,
        log => {folder, <<"/dev/null/folder">>}
    }.

wrapped(Term) ->
    {Term, [Term | Term], #{Term => Term}}.

terms() ->
    Fun = fun() -> ok end,
    Plain = [
        undefined,
        'not an atom of anyone',
        0,
        -1,
        1 bsl 63,
        -(1 bsl 64),
        (1 bsl 64) - 1,
        1 bsl 64,
        1 bsl 100_000,
        0.0,
        -1.0e308,
        <<>>,
        <<1:1>>,
        <<7:255>>,
        binary:copy(<<0>>, 70_000),
        [],
        [a | b],
        [[] | <<1:3>>],
        lists:seq(1, 1000),
        "text",
        {},
        {1, 2},
        {session},
        {-1, 0, 0},
        {1 bsl 64, 0, 0},
        {0, 0, 0},
        {0.5, undefined, <<>>},
        list_to_tuple(lists:seq(1, 100_000)),
        list_to_tuple([session | lists:seq(1, 300)]),
        #{},
        #{a => 1},
        #{scope => 1, layout => <<>>, key_file => <<>>, log => {folder, <<>>}},
        #{scope => <<255>>, layout => <<>>, key_file => <<>>, log => {folder, <<>>}},
        #{scope => <<>>, layout => <<>>, key_file => <<>>, log => {valkey, #{}}},
        #{scope => <<>>, layout => <<>>, key_file => <<>>, log => {valkey, #{url => <<"x">>, cluster => 1, partitions => -1}}},
        [{sha, <<1:256>>}],
        [{issuer, <<>>, 1}],
        Fun,
        fun erlang:halt/0,
        self(),
        hd(erlang:ports()),
        binary_to_term(<<131, 88, (atom_of(<<"a@elsewhere">>))/binary, 1:32, 2:32, 3:32>>)
    ],
    Plain ++ references() ++ stores().

references() ->
    [
        make_ref(),
        atomics:new(1, []),
        counters:new(1, []),
        ets:new(table, []),
        %% A resource of another library.
        crypto:hash_init(sha256),
        element(2, file:open(code:which(?MODULE), [read, raw])),
        %% References of another node: NEWER_REFERENCE_EXT and NEW_REFERENCE_EXT.
        binary_to_term(<<131, 90, 3:16, (atom_of(<<"a@elsewhere">>))/binary, 7:32, 1:32, 2:32, 3:32>>),
        binary_to_term(<<131, 114, 3:16, (atom_of(<<"a@elsewhere">>))/binary, 3, 1:32, 2:32, 3:32>>),
        of_a_dropped_store()
    ].

atom_of(Name) ->
    <<119, (byte_size(Name)), Name/binary>>.

%% A store's reference after the store is gone: only its number is left.
of_a_dropped_store() ->
    Self = self(),
    {_, Monitor} = spawn_monitor(fun() -> Self ! {number, term_to_binary(hd(stores()))} end),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    end,
    receive
        {number, Number} -> binary_to_term(Number)
    end.

large_terms() ->
    [
        fun() -> binary:copy(<<"0123456789">>, 10_000_000) end,
        fun() -> <<1:1, (binary:copy(<<"0123456789">>, 10_000_000))/binary>> end,
        fun() -> 1 bsl 4_000_000 end,
        fun() -> lists:seq(1, 3_000_000) end,
        fun() -> nested(fun(Inner) -> [Inner] end) end,
        fun() -> nested(fun(Inner) -> [Inner | tail] end) end,
        fun() -> nested(fun(Inner) -> {Inner} end) end,
        fun() -> nested(fun(Inner) -> {session, Inner} end) end,
        fun() -> nested(fun(Inner) -> #{inner => Inner} end) end,
        fun() -> nested(fun(Inner) -> #{Inner => key} end) end
    ].

nested(Wrap) ->
    lists:foldl(fun(_, Inner) -> Wrap(Inner) end, [], lists:seq(1, 1_000_000)).
