%% @doc Gives random terms to the functions that take terms: options, and sessions that are stored and looked up.
%% `scripts/fuzz.sh' runs it. A failure names the seed with which to repeat the run.
-module(rekindle_fuzz).

-export([main/1, seconds/1]).

-define(SESSION_ID, 2).
-define(INTERNAL_ID, 3).
-define(PRIVATE_KEY, 6).

%% @doc `-run rekindle_fuzz main Executions [Seed]'.
-spec main([string()]) -> no_return().
main([Executions]) ->
    main([Executions, new_seed()]);
main([Executions, Seed]) ->
    Last = list_to_integer(Executions),
    run(Seed, fun(N) -> N > Last end).

%% @doc `-run rekindle_fuzz seconds Seconds'.
-spec seconds([string()]) -> no_return().
seconds([Seconds]) ->
    End = erlang:monotonic_time(second) + list_to_integer(Seconds),
    run(new_seed(), fun(_) -> erlang:monotonic_time(second) >= End end).

new_seed() ->
    integer_to_list(erlang:system_time()).

run(Seed, IsOver) ->
    io:format("options and sessions, seed ~s~n", [Seed]),
    Number = run(list_to_integer(Seed), 1, caches(), IsOver),
    #{faults := 0, inserts := Stored, refused := Refused} = sums(),
    io:format("~b executions, ~b sessions stored, ~b refused~n", [Number, Stored, Refused]),
    halt(0).

run(Seed, N, Caches, IsOver) ->
    case IsOver(N) of
        true ->
            N - 1;
        false ->
            execute(Seed, N, Caches),
            run(Seed, N + 1, Caches, IsOver)
    end.

%% Each execution has a seed of its own, so that it can be run alone.
execute(Seed, N, Caches) ->
    _ = rand:seed(exsss, {Seed, N, 0}),
    try
        options(arguments()),
        [sessions(Cache, pair()) || Cache <- Caches]
    catch
        Class:Reason:Stack ->
            io:format("execution ~b of seed ~b: ~p~n", [N, Seed, {Class, Reason, Stack}]),
            halt(1)
    end.

caches() ->
    _ = application:load(ssl),
    Caches = [rekindle:init([{role, Role}, {max_bytes, 1_000_000}]) || Role <- [server, client]],
    logger:set_primary_config(level, none),
    Caches.

sums() ->
    Add = fun(_, A, B) -> A + B end,
    Numbers = [maps:with([faults, inserts, refused], Info) || Info <- rekindle_admin:info()],
    lists:foldl(fun(Info, Sum) -> maps:merge_with(Add, Info, Sum) end, #{}, Numbers).

%% Any term is a list of options, or is refused with one readable line.
options(Args) ->
    case rekindle_options:parse(Args) of
        {ok, #{role := _, max_bytes := _, max_sessions := _, lifetime := _, scope := _}, Foreign} ->
            true = is_list(Foreign),
            ok;
        {error, {bad_option, "rekindle: option " ++ _ = Line}} ->
            nomatch = string:find(Line, "\n"),
            true = is_binary(unicode:characters_to_binary(Line)),
            ok
    end.

%% A session comes back as it was, but for what a server's session loses, or is refused. Only what is
%% tagged as a session is, and what is too large.
sessions(Cache, {Key, Session}) ->
    Before = refused(),
    ok = rekindle:update(Cache, Key, Session),
    Answer = rekindle:lookup(Cache, Key),
    case refused() of
        Before -> true = is_expected(element(1, Cache), Session, Answer);
        _ -> is_session(Session) orelse is_large({Key, Session}) orelse error({refused, Session})
    end,
    %% Now and then all sessions are read, and dropped.
    case rand:uniform(200) of
        1 ->
            Number = rekindle:foldl(fun({_, _}, N) -> N + 1 end, 0, Cache),
            true = Number =< elsewhere(fun() -> rekindle:size(Cache) end),
            ok = rekindle:terminate(Cache),
            [] = rekindle:foldl(fun(Found, All) -> [Found | All] end, [], Cache),
            ok;
        _ ->
            ok
    end.

%% To the process that opened it, a server's cache does not tell its size.
elsewhere(Fun) ->
    {_, Monitor} = spawn_monitor(fun() -> exit({result, Fun()}) end),
    receive
        {'DOWN', Monitor, process, _, {result, Result}} -> Result
    end.

refused() ->
    maps:get(refused, sums()).

is_expected(client, Session, Answer) ->
    Answer =:= Session;
is_expected(server, Session, Answer) ->
    Answer =:= Session orelse (is_session(Session) andalso is_stamped(Session, Answer)).

is_session(Term) ->
    is_tuple(Term) andalso tuple_size(Term) > 1 andalso element(1, Term) =:= session.

%% 8 KiB, apart from the encoding of the two.
is_large(Pair) ->
    byte_size(term_to_binary(Pair)) > 8_000.

is_stamped(Session, Answer) ->
    {Stamp, _} = element(?INTERNAL_ID, Session),
    {Present, _} = element(?INTERNAL_ID, Answer),
    Expected = fun
        (?INTERNAL_ID, _) -> element(?INTERNAL_ID, Answer);
        (?PRIVATE_KEY, _) -> undefined;
        (Place, Value) when Value =:= Stamp, Place > ?PRIVATE_KEY -> Present;
        (_, Value) -> Value
    end,
    Fields = lists:zip(lists:seq(1, tuple_size(Session)), tuple_to_list(Session)),
    list_to_tuple([Expected(Place, Value) || {Place, Value} <- Fields]) =:= Answer.

%% ---- random terms ----

arguments() ->
    pick([
        fun() -> [option() || _ <- lists:seq(1, rand:uniform(6))] end,
        fun() -> [option() | term(2)] end,
        fun() -> term(4) end
    ]).

option() ->
    pick([
        fun() -> {name(), value()} end,
        fun() -> {name(), term(3)} end,
        fun() -> name() end,
        fun() -> term(3) end
    ]).

name() ->
    one_of([role, max_bytes, max_sessions, lifetime, scope, password]).

value() ->
    pick([
        fun() -> one_of([server, client, infinity, listener, 0, 1, -1, 3_155_760_000, 1 bsl 63]) end,
        fun() -> rand:uniform(1 bsl 70) end,
        fun() -> maps:from_list([{port(), term(2)} || _ <- lists:seq(1, rand:uniform(3))]) end
    ]).

port() ->
    one_of([0, 1, 443, 65535, 65536, {{127, 0, 0, 1}, 443}, {{0, 0, 0, 0, 0, 0, 0, 1}, 8883}, {{1, 2}, 443}, any]).

%% Most often a session as some release of OTP makes it, with something wrong in it now and then.
pair() ->
    Id = pick([fun() -> rand:bytes(32) end, fun() -> rand:bytes(32) end, fun() -> term(2) end]),
    Session = pick([
        fun() -> session(Id) end,
        fun() -> distorted(session(Id)) end,
        fun() -> distorted(distorted(session(Id))) end,
        fun() -> term(4) end
    ]),
    {Id, Session}.

session(Id) ->
    Stamp = rand:uniform(1 bsl 60) - (1 bsl 59),
    Certificate = one_of([undefined, rand:bytes(rand:uniform(1500))]),
    Head = [session, Id, {Stamp, rand:uniform(1000)}, Certificate, [<<1:4000>>], one_of([undefined, key()])],
    Compression = one_of([[], [0]]),
    Secret = [<<192, (rand:uniform(4))>>, rand:bytes(48), undefined, true, Stamp, {namedCurve, rand:uniform(3)}],
    Rest = one_of([[undefined, undefined], [undefined, undefined, undefined, "localhost"]]),
    list_to_tuple(Head ++ Compression ++ Secret ++ Rest).

key() ->
    {'RSAPrivateKey', 'two-prime', rand:uniform(1 bsl 100), 65537, rand:uniform(1 bsl 100)}.

distorted(Session) ->
    Place = rand:uniform(tuple_size(Session)),
    Term = element(Place, Session),
    pick([
        fun() -> setelement(Place, Session, term(3)) end,
        fun() -> erlang:delete_element(Place, Session) end,
        fun() -> erlang:insert_element(Place, Session, Term) end,
        fun() -> setelement(rand:uniform(tuple_size(Session)), Session, Term) end,
        fun() -> erlang:append_element(Session, term(2)) end,
        fun() -> setelement(Place, Session, [key()]) end
    ]).

term(0) ->
    leaf();
term(Depth) ->
    Some = fun() -> [term(Depth - 1) || _ <- lists:seq(1, rand:uniform(4))] end,
    pick([
        fun leaf/0,
        Some,
        fun() -> Some() ++ leaf() end,
        fun() -> list_to_tuple(Some()) end,
        fun() -> maps:from_list([{term(Depth - 1), Value} || Value <- Some()]) end
    ]).

leaf() ->
    Bytes = rand:bytes(rand:uniform(80)),
    pick([
        fun() -> one_of([undefined, session, true, '', 'ß\n', [], {}, #{}, <<>>, 0, -1, 1.5, -0.0]) end,
        fun() -> Bytes end,
        fun() ->
            <<_:3, Bits/bitstring>> = Bytes,
            Bits
        end,
        fun() -> rand:uniform(1 bsl rand:uniform(200)) - (1 bsl 60) end,
        fun() -> rand:normal() end,
        fun() -> binary_to_list(Bytes) end,
        fun() -> one_of([self(), make_ref(), fun lists:map/2, fun() -> Bytes end]) end
    ]).

pick(Makers) ->
    (one_of(Makers))().

one_of(List) ->
    lists:nth(rand:uniform(length(List)), List).
