%% @doc What each callback must answer, of any sequence of calls by one process at a time: scopes and who
%% holds them, lifetimes, and which session goes when one has to. Holds as long as `max_bytes' is not reached.
-module(rekindle_store_model).

-export([new/1, open/4, reopen/2, leave/3, advance/2, call/5]).
-export([places/1, caches/1, callers/2, scopes/1]).

-export_type([model/0, cache/0, caller/0, place/0, naming/0, operation/0, check/0]).

%% A listen socket, by a name that outlives it; or no socket; or the client's role.
-type place() :: {tls | dtls, atom()} | nowhere | client.
%% Whether the listener takes part in the one name there is for each transport.
-type naming() :: named | unnamed.
-type cache() :: term().
%% The process that called `init/1', or another one.
-type caller() :: owner | other.
-type operation() ::
    {lookup | delete | select, term()} | {update, term(), rekindle_sessions:value()} | size | fold | terminate.
-type outcome() :: {From :: integer(), Answer :: term(), To :: integer()}.
-type check() :: fun((outcome()) -> boolean()).

-record(entry, {number, key, value, born, visited = false}).

%% Entries, the oldest first; the number of the one where the hand stands, or `none'.
-record(order, {entries = [], hand = none}).

-record(server, {unverified = #order{}, verified = #order{}}).

%% `live': key to number and value, numbers in order of the insertions. `deleted': key to value and time.
-record(client, {live = #{}, deleted = #{}}).

%% `registered': of a server, whether the owner has registered a session. `adrift': of a client, whether a
%% call of the owner's has failed.
-record(cache, {scope, callers = [owner, other], registered = false, adrift = false}).

-record(model, {
    options :: #{
        places := everywhere | place(),
        max_sessions := pos_integer(),
        lifetime_ms := non_neg_integer(),
        ssl_max := integer()
    },
    now = 0,
    next = 0,
    %% How often the socket at a place was opened anew.
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

%% @doc Where caches are opened: at one place there is only one.
-spec places(model()) -> everywhere | place().
places(#model{options = #{places := Places}}) ->
    Places.

-spec caches(model()) -> [cache()].
caches(#model{caches = Caches}) ->
    maps:keys(Caches).

%% @doc Who can still make calls with the cache.
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

%% @doc What the call must answer, and what is after it. With a fault, all of the native library fails.
-spec call(model(), cache(), caller(), none | panic | refusal, operation()) -> {check(), model()}.
call(#model{caches = Caches, scopes = Scopes} = Model, Name, Caller, Fault, Operation) ->
    #{Name := #cache{scope = Scope} = Cache0} = Caches,
    #{Scope := Store0} = Scopes,
    #cache{registered = Registered, adrift = Adrift} = Cache0,
    Cache = Cache0#cache{
        registered = Registered orelse (Caller =:= owner andalso is_update(Operation)),
        adrift = Adrift orelse (Caller =:= owner andalso Fault =/= none)
    },
    {Check, Store} =
        case {Store0, Caller, Operation} of
            {#server{}, owner, {delete, _}} -> {is(ok), Store0};
            {#server{}, owner, size} -> {is(size_for_otp(Cache, Model)), Store0};
            {#server{}, _, {select, _}} -> {is([]), Store0};
            _ when Fault =/= none -> {is(empty(Operation)), Store0};
            {#client{}, owner, {lookup, _}} when Cache#cache.adrift -> {is(undefined), Store0};
            {#client{}, owner, size} when Cache#cache.adrift -> {is({raised, error, books_adrift}), Store0};
            {#server{}, _, _} -> server(Operation, Store0, Model);
            {#client{}, _, _} -> client(Operation, Caller, Store0, Model)
        end,
    {Check, Model#model{
        next = Model#model.next + 1, caches = Caches#{Name := Cache}, scopes = Scopes#{Scope := Store}
    }}.

is_update({update, _, _}) -> true;
is_update(_) -> false.

size_for_otp(#cache{registered = false}, _) -> 0;
size_for_otp(#cache{registered = true}, #model{options = #{ssl_max := Max}}) -> Max.

%% What an empty cache answers.
empty({lookup, _}) -> undefined;
empty({select, _}) -> [];
empty(size) -> 0;
empty(fold) -> [];
empty(_) -> ok.

is(Expected) ->
    fun({_, Answer, _}) -> Answer =:= Expected end.

%% ---- a server's scope ----

server({lookup, Key}, Store, Model) ->
    case [Entry || #entry{key = K} = Entry <- entries(Store), K =:= Key, is_live(Entry, Model)] of
        [] ->
            {is(undefined), Store};
        [#entry{value = Value, number = Number}] ->
            Check = fun({From, Answer, To}) -> rekindle_sessions:is_handed_out(Answer, Value, Key, From, To) end,
            {Check, on_orders(fun(Order) -> visit(Number, Order) end, Store)}
    end;
server({update, Key, {Kind, _, _, _}}, Store, _) when Kind =:= misfit; not is_binary(Key) ->
    %% Not the session of this key: refused.
    {is(ok), Store};
server({update, _, _}, Store, #model{options = #{lifetime_ms := 0}}) ->
    {is(ok), Store};
server({update, Key, Value}, Store, #model{now = Now, next = Next} = Model) ->
    Old = numbers(Key, Store),
    New = #entry{number = Next, key = Key, value = Value, born = Now},
    Added = add(New, make_room(Store, 1 - length(Old), Model)),
    {is(ok), lists:foldl(fun remove/2, Added, Old)};
server({delete, Key}, Store, _) ->
    {is(ok), lists:foldl(fun remove/2, Store, numbers(Key, Store))};
server(size, Store, Model) ->
    %% The janitor may or may not have dropped what has expired.
    Live = length([live || Entry <- entries(Store), is_live(Entry, Model)]),
    Held = length(entries(Store)),
    {fun({_, Size, _}) -> Live =< Size andalso Size =< Held end, Store};
server(fold, Store, Model) ->
    Entries = [Entry || Entry <- entries(Store), is_live(Entry, Model)],
    Live = lists:sort([{Key, Value} || #entry{key = Key, value = Value} <- Entries]),
    Check = fun({From, Pairs, To}) ->
        is_list(Pairs) andalso length(Pairs) =:= length(Live) andalso
            lists:all(
                fun({{Key, Answer}, {K, Value}}) ->
                    Key =:= K andalso rekindle_sessions:is_handed_out(Answer, Value, Key, From, To)
                end,
                lists:zip(lists:keysort(1, Pairs), Live)
            )
    end,
    {Check, Store};
server(terminate, _, _) ->
    {is(ok), #server{}}.

entries(#server{unverified = #order{entries = Unverified}, verified = #order{entries = Verified}}) ->
    Unverified ++ Verified.

numbers(Key, Store) ->
    [Number || #entry{key = K, number = Number} <- entries(Store), K =:= Key].

is_live(#entry{born = Born}, #model{now = Now, options = #{lifetime_ms := Lifetime}}) ->
    Now - Born < Lifetime.

make_room(Store, Wanted, #model{options = #{max_sessions := Max}} = Model) ->
    case length(entries(Store)) + Wanted > Max of
        true -> make_room(drop_one(Store, Model), Wanted, Model);
        false -> Store
    end.

drop_one(#server{unverified = Unverified, verified = Verified} = Store, Model) ->
    case [Entry || Entry <- entries(Store), not is_live(Entry, Model)] of
        [#entry{number = Expired} | _] ->
            remove(Expired, Store);
        [] when Unverified#order.entries =/= [] ->
            {Victim, Order} = victim(Unverified),
            remove(Victim, Store#server{unverified = Order});
        [] ->
            {Victim, Order} = victim(Verified),
            remove(Victim, Store#server{verified = Order})
    end.

add(#entry{value = {session, _, verified, _}} = New, #server{verified = Order} = Store) ->
    Store#server{verified = append(New, Order)};
add(New, #server{unverified = Order} = Store) ->
    Store#server{unverified = append(New, Order)}.

append(New, #order{entries = Entries} = Order) ->
    Order#order{entries = Entries ++ [New]}.

remove(Number, Store) ->
    on_orders(fun(Order) -> without(Number, Order) end, Store).

on_orders(Fun, #server{unverified = Unverified, verified = Verified}) ->
    #server{unverified = Fun(Unverified), verified = Fun(Verified)}.

visit(Number, #order{entries = Entries} = Order) ->
    case lists:keyfind(Number, #entry.number, Entries) of
        false -> Order;
        Entry -> Order#order{entries = lists:keyreplace(Number, #entry.number, Entries, Entry#entry{visited = true})}
    end.

%% The hand goes on to the next newer one, if it stood there.
without(Number, #order{entries = Entries, hand = Hand} = Order) ->
    Order#order{
        entries = [Entry || #entry{number = N} = Entry <- Entries, N =/= Number],
        hand =
            case Hand of
                Number -> first_number([Entry || #entry{number = N} = Entry <- Entries, N > Number]);
                _ -> Hand
            end
    }.

first_number([]) -> none;
first_number([#entry{number = Number} | _]) -> Number.

%% SIEVE: from the hand to the newest, then from the oldest again, taking marks until there is none.
victim(#order{entries = Entries, hand = none} = Order) ->
    victim(Order#order{hand = first_number(Entries)});
victim(#order{entries = Entries, hand = Hand} = Order) ->
    case lists:keyfind(Hand, #entry.number, Entries) of
        #entry{visited = false} ->
            {Hand, Order};
        Visited ->
            victim(Order#order{
                entries = lists:keystore(Hand, #entry.number, Entries, Visited#entry{visited = false}),
                hand = first_number([Entry || #entry{number = N} = Entry <- Entries, N > Hand])
            })
    end.

%% ---- a client's scope ----

client({lookup, Key}, Caller, #client{live = Live, deleted = Deleted} = Store, #model{now = Now}) ->
    case {Live, Deleted} of
        {#{Key := {_, Value}}, _} -> {is_stored(Key, Value), Store};
        {_, #{Key := {Value, At}}} when Caller =:= other, Now < At + ?LINGER_MS -> {is_stored(Key, Value), Store};
        _ -> {is(undefined), Store}
    end;
client({update, Key, Value}, _, #client{live = Live, deleted = Deleted}, #model{next = Next}) ->
    {is(ok), #client{live = Live#{Key => {Next, Value}}, deleted = maps:remove(Key, Deleted)}};
client({delete, Key}, _, #client{live = Live, deleted = Deleted} = Store, #model{now = Now}) ->
    case maps:take(Key, Live) of
        {{_, Value}, Rest} -> {is(ok), #client{live = Rest, deleted = Deleted#{Key => {Value, Now}}}};
        error -> {is(ok), Store}
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
client(terminate, _, _, _) ->
    {is(ok), #client{}}.

is_stored(Key, Value) ->
    is(rekindle_sessions:make(Value, Key)).
