%% @doc A model of what each callback must answer in any sequence of calls, one process at a time: scopes and their holders,
%% lifetimes, and which sessions may be evicted. It is right as long as `max_bytes' is not reached. The tests of native/core, which
%% can move the time, check which session is evicted.
-module(rekindle_store_model).

-export([new/1, open/4, reopen/2, leave/3, advance/2, call/5]).
-export([places/1, caches/1, callers/2, scopes/1]).

-export_type([model/0, cache/0, caller/0, place/0, naming/0, operation/0, check/0]).

%% A listen socket, by a name that outlives it; or no socket; or the client's role.
-type place() :: {tls | dtls, atom()} | nowhere | client.
%% Whether the listener has the shared name. There is one such name for each transport.
-type naming() :: named | unnamed.
-type cache() :: term().
%% The process that called `init/1', or another one.
-type caller() :: owner | other.
-type operation() ::
    {lookup | delete | select, term()} | {update, term(), rekindle_sessions:value()} | size | fold | terminate.
-type outcome() :: {From :: integer(), Answer :: term(), To :: integer()}.
-type check() :: fun((outcome()) -> boolean()).

%% A session that may have been evicted is not certain.
-record(entry, {key, value, born, is_certain = true}).

-record(server, {entries = []}).

%% `live': key to number and value, numbers in order of the insertions. `deleted': key to value, time, and the number of
%% deletions up to that one.
-record(client, {live = #{}, deleted = #{}, deletions = 0}).

%% `books': of a server, what the owner's order of sessions holds by what it was answered. `out_of_sync': of a
%% client, whether a call of the owner's has failed. `chosen': after how many deletions the other caller, who is a
%% connection, chose the session that it looks up next.
-record(cache, {scope, callers = [owner, other], books = empty, out_of_sync = false, chosen = none}).

-record(model, {
    options :: #{
        places := everywhere | place(),
        max_sessions := pos_integer(),
        lifetime_ms := non_neg_integer()
    },
    now = 0,
    next = 0,
    %% How often the socket at a place was opened again.
    openings = #{},
    caches = #{},
    %% By the label a later cache joins them under, and a number.
    scopes = #{}
}).

-opaque model() :: #model{}.

-define(LINGER_MS, 5000).

-spec new(map()) -> model().
new(Options) ->
    #model{options = Options}.

%% @doc The places of open caches. A place has only one cache.
-spec places(model()) -> everywhere | place().
places(#model{options = #{places := Places}}) ->
    Places.

-spec caches(model()) -> [cache()].
caches(#model{caches = Caches}) ->
    maps:keys(Caches).

%% @doc The processes that can still make calls with the cache.
-spec callers(model(), cache()) -> [caller()].
callers(#model{caches = Caches}, Cache) ->
    case Caches of
        #{Cache := #cache{callers = Callers}} -> Callers;
        #{} -> []
    end.

%% @doc How many scopes are open.
-spec scopes(model()) -> non_neg_integer().
scopes(#model{scopes = Scopes}) ->
    map_size(Scopes).

-spec advance(model(), non_neg_integer()) -> model().
advance(#model{now = Now} = Model, Ms) ->
    Model#model{now = Now + Ms}.

-spec reopen(model(), place()) -> model().
reopen(#model{openings = Openings} = Model, Place) ->
    Model#model{openings = Openings#{Place => opening(Model, Place) + 1}}.

opening(#model{openings = Openings}, Place) ->
    maps:get(Place, Openings, 0).

-spec open(model(), cache(), place(), naming()) -> model().
open(#model{caches = Caches, scopes = Scopes, next = Next} = Model, Cache, Place, Naming) ->
    Scope = label(Model, Place, Naming),
    Store =
        case Scopes of
            #{Scope := Open} -> Open;
            #{} when Place =:= client -> #client{};
            #{} -> #server{}
        end,
    Model#model{
        next = Next + 1, caches = Caches#{Cache => #cache{scope = Scope}}, scopes = Scopes#{Scope => Store}
    }.

label(_Model, {Transport, _}, named) -> {named, Transport};
label(Model, {_, _} = Place, unnamed) -> {listener, Place, opening(Model, Place)};
label(#model{next = Next}, Place, _) -> {Place, Next}.

%% @doc One of the processes that hold the cache ends.
-spec leave(model(), cache(), caller()) -> model().
leave(#model{caches = Caches, scopes = Scopes} = Model, Cache, Caller) ->
    #{Cache := #cache{callers = Callers, scope = Scope} = Left} = Caches,
    case lists:delete(Caller, Callers) of
        [] ->
            Others = maps:remove(Cache, Caches),
            Model#model{
                caches = Others,
                scopes =
                    case lists:any(fun(#cache{scope = S}) -> S =:= Scope end, maps:values(Others)) of
                        true -> Scopes;
                        false -> maps:remove(Scope, Scopes)
                    end
            };
        Remaining ->
            Model#model{caches = Caches#{Cache := Left#cache{callers = Remaining}}}
    end.

%% @doc The expected result of the call, and the state after it. With a fault, all of the native library fails.
-spec call(model(), cache(), caller(), none | panic | refusal, operation()) -> {check(), model()}.
call(#model{caches = Caches, scopes = Scopes} = Model, Name, Caller, Fault, Operation) ->
    #{Name := #cache{scope = Scope} = Cache0} = Caches,
    #{Scope := Store0} = Scopes,
    #cache{books = Books, out_of_sync = OutOfSync, chosen = Chosen} = Cache0,
    Cache = Cache0#cache{
        books = next_books(Caller, Operation, Books),
        chosen = next_chosen(Caller, Fault, Operation, Store0, Chosen),
        out_of_sync = OutOfSync orelse (Caller =:= owner andalso Fault =/= none)
    },
    {Check, Store} =
        case {Store0, Caller, Operation} of
            {#server{}, owner, {delete, _}} ->
                {is(ok), Store0};
            {#server{}, owner, size} ->
                {is(size_for_otp(Books)), Store0};
            {#server{}, owner, {lookup, Key}} when Books =:= {asked, {only, Key}}; Books =:= {asked, any} ->
                {is_stub(Key), Store0};
            {#server{}, _, {select, _}} ->
                {is([]), Store0};
            _ when Fault =/= none -> {is(empty(Operation)), Store0};
            {#client{}, owner, {lookup, _}} when Cache#cache.out_of_sync -> {is(undefined), Store0};
            {#client{}, owner, size} when Cache#cache.out_of_sync -> {is({raised, error, out_of_sync}), Store0};
            {#server{}, _, _} ->
                server(Operation, Store0, Model);
            {#client{}, owner, _} ->
                client(Operation, none, Store0, Model);
            {#client{}, other, _} ->
                client(Operation, Chosen, Store0, Model)
        end,
    {Check, Model#model{
        next = Model#model.next + 1, caches = Caches#{Name := Cache}, scopes = Scopes#{Scope := Store}
    }}.

%% Whether there is a session in OTP's order, whether its size was asked for, and of which session it can be the
%% oldest. Once something was registered that is no session, nothing is known.
next_books(owner, {update, Key, Value}, Books) ->
    case {element(1, Value), Books} of
        {plain, _} -> unknown;
        {_, empty} -> {filled, {only, Key}};
        {_, {dropped, {only, _}}} -> {filled, {only, Key}};
        _ -> {filled, any}
    end;
next_books(owner, {delete, _}, {_, Oldest}) ->
    {dropped, Oldest};
next_books(owner, size, {filled, Oldest}) ->
    {asked, Oldest};
next_books(_, _, Books) ->
    Books.

%% A connection chooses from the sessions that are selected, or the one that it looks up first.
next_chosen(other, none, {select, _}, #client{deletions = Deletions}, _) ->
    Deletions;
next_chosen(other, none, {lookup, Key}, #client{live = Live, deletions = Deletions}, none) when is_map_key(Key, Live) ->
    Deletions;
next_chosen(other, _, {lookup, _}, #client{}, _) ->
    none;
next_chosen(_, _, _, _, Chosen) ->
    Chosen.

size_for_otp({State, _}) when State =:= filled; State =:= asked -> 1;
size_for_otp(_) -> 0.

is_stub(Key) ->
    fun({_, Answer, _}) -> rekindle_sessions:is_stub(Answer, Key) end.

%% The results of an empty cache.
empty({lookup, _}) -> undefined;
empty({select, _}) -> [];
empty(size) -> 0;
empty(fold) -> [];
empty(_) -> ok.

is(Expected) ->
    fun({_, Answer, _}) -> Answer =:= Expected end.

%% ---- a server's scope ----

server({lookup, Key}, #server{entries = Entries} = Store, Model) ->
    case lists:keyfind(Key, #entry.key, live(Entries, Model)) of
        false ->
            {is(undefined), Store};
        #entry{value = Value, is_certain = IsCertain} ->
            Check = fun({From, Answer, To}) ->
                (Answer =:= undefined andalso not IsCertain) orelse
                    rekindle_sessions:is_handed_out(Answer, Value, Key, From, To)
            end,
            {Check, Store}
    end;
server({update, Key, {Kind, _, _, _}}, Store, _) when Kind =:= misfit; not is_binary(Key) ->
    %% Not the session of this key: refused.
    {is(ok), Store};
server({update, _, _}, Store, #model{options = #{lifetime_ms := 0}}) ->
    {is(ok), Store};
server({update, Key, Value}, #server{entries = Entries}, #model{now = Now} = Model) ->
    Others = lists:keydelete(Key, #entry.key, Entries),
    {is(ok), #server{entries = make_room(Others, Model) ++ [#entry{key = Key, value = Value, born = Now}]}};
server({delete, Key}, #server{entries = Entries}, _) ->
    {is(ok), #server{entries = lists:keydelete(Key, #entry.key, Entries)}};
server(size, #server{entries = Entries} = Store, #model{options = #{max_sessions := Max}} = Model) ->
    %% The janitor may or may not have dropped what has expired.
    Least = length(certain(live(Entries, Model))),
    Most = min(Max, length(Entries)),
    {fun({_, Size, _}) -> Least =< Size andalso Size =< Most end, Store};
server(fold, #server{entries = Entries} = Store, Model) ->
    Live = live(Entries, Model),
    Check = fun({From, Pairs, To}) ->
        Keys = [Key || {Key, _} <- Pairs],
        length(Keys) =:= length(lists:usort(Keys)) andalso
            [Key || #entry{key = Key} <- certain(Live), not lists:member(Key, Keys)] =:= [] andalso
            lists:all(fun(Pair) -> is_one_of(Pair, Live, From, To) end, Pairs)
    end,
    {Check, Store};
server(terminate, _, _) ->
    {is(ok), #server{}}.

is_one_of({Key, Answer}, Entries, From, To) ->
    case lists:keyfind(Key, #entry.key, Entries) of
        #entry{value = Value} -> rekindle_sessions:is_handed_out(Answer, Value, Key, From, To);
        false -> false
    end.

live(Entries, #model{now = Now, options = #{lifetime_ms := Lifetime}}) ->
    [Entry || #entry{born = Born} = Entry <- Entries, Now - Born < Lifetime].

certain(Entries) ->
    [Entry || #entry{is_certain = true} = Entry <- Entries].

%% If the store is full, one session goes. As long as sessions with a verified certificate have at most half of the room, it is one
%% without, if there is one.
make_room(Entries, #model{options = #{max_sessions := Max}}) when length(Entries) < Max ->
    Entries;
make_room(Entries, #model{options = #{max_sessions := Max}} = Model) ->
    Verified = [Entry || Entry <- Entries, is_verified(Entry)],
    Others = certain(live(Entries -- Verified, Model)),
    IsSpared = length(Verified) =< Max div 2 andalso Others =/= [],
    [
        Entry#entry{is_certain = IsCertain andalso IsSpared andalso is_verified(Entry)}
     || #entry{is_certain = IsCertain} = Entry <- Entries
    ].

is_verified(#entry{value = {session, _, Verified, _}}) -> Verified =:= verified;
is_verified(_) -> false.

%% ---- a client's scope ----

client({lookup, Key}, Chosen, #client{live = Live, deleted = Deleted} = Store, #model{now = Now}) ->
    case {Live, Deleted} of
        {#{Key := {_, Value}}, _} ->
            {is_stored(Key, Value), Store};
        {_, #{Key := {Value, At, Deletions}}} when Chosen =/= none, Chosen < Deletions, Now < At + ?LINGER_MS ->
            {is_stored(Key, Value), Store};
        _ ->
            {is(undefined), Store}
    end;
client({update, Key, Value}, _, #client{live = Live, deleted = Deleted} = Store, #model{next = Next}) ->
    {is(ok), Store#client{live = Live#{Key => {Next, Value}}, deleted = maps:remove(Key, Deleted)}};
client({delete, Key}, _, #client{live = Live, deleted = Deleted, deletions = Before} = Store, #model{now = Now}) ->
    Deletions = Before + 1,
    case maps:take(Key, Live) of
        {{_, Value}, Rest} ->
            {is(ok), #client{live = Rest, deleted = Deleted#{Key => {Value, Now, Deletions}}, deletions = Deletions}};
        error ->
            {is(ok), Store}
    end;
client({select, Partial}, _, #client{live = Live} = Store, _) ->
    Selected = lists:sort([
        {-Number, Key, Value}
     || {{P, _} = Key, {Number, Value}} <- maps:to_list(Live), P =:= Partial
    ]),
    {is([rekindle_sessions:make(Value, Key) || {_, Key, Value} <- Selected]), Store};
client(size, _, #client{live = Live} = Store, _) ->
    {is(map_size(Live)), Store};
client(fold, _, #client{live = Live} = Store, _) ->
    Pairs = lists:sort([{Key, rekindle_sessions:make(Value, Key)} || {Key, {_, Value}} <- maps:to_list(Live)]),
    {fun({_, Answer, _}) -> is_list(Answer) andalso lists:sort(Answer) =:= Pairs end, Store};
client(terminate, _, #client{deletions = Deletions}, _) ->
    {is(ok), #client{deletions = Deletions}}.

is_stored(Key, Value) ->
    is(rekindle_sessions:make(Value, Key)).
