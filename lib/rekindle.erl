%% @doc The session cache that OTP's ssl calls. Set it as `session_cb', `server_session_cb' and
%% `client_session_cb' in ssl's environment, and its options as `session_cb_init_args'.
%%
%% If a call fails below one of these functions, the function answers as an empty cache would.
%% {@link rekindle_admin:info/0} counts the fault, and the 1st, 2nd, 4th, 8th … fault of a cache is logged. OTP's
%% processes do not survive a callback that raises. So only two functions raise: {@link init/1}; and {@link size/1}, to make
%% ssl_manager start over after a fault or while there is no store yet, and where OTP's process for a server would crash
%% anyway. docs/otp.md explains each answer.
-module(rekindle).

-behaviour(ssl_session_cache_api).
-compile({inline, [find/3]}).

-include("rekindle_log.hrl").

-export([init/1, terminate/1, lookup/2, update/3, delete/2, foldl/3, select_session/2, size/1]).

-export_type([cache/0, key/0, partial_key/0, session/0, option/0, scope/0, journal/0]).

-type option() ::
    {max_bytes, pos_integer()}
    | {max_sessions, pos_integer() | infinity}
    | {lifetime, Seconds :: pos_integer()}
    | {scope, scope()}
    | {journal, journal()}
    | {node_folder, file:name_all()}
    | {wait_for_living_node, boolean()}
    | {max_log_bytes, pos_integer()}
    | {expired_certificates, full_handshake | resume}
    | {crls, [file:name_all()]}
    | {stale_crls, full_handshake | resume}.
%% An option in `session_cb_init_args'. docs/options.md has their meaning, units and defaults.

-type scope() :: listener | #{inet:port_number() | {inet:ip_address(), inet:port_number()} => Name :: term()}.
%% Which listeners share their sessions: none (`listener'), or those with the same name. A resumption skips the check of the
%% client's certificate, so give one name only to listeners that check it alike.

-type journal() ::
    none
    | {folder, Dir :: file:name_all()}
    | {folder, Dir :: file:name_all(), [{key_file, file:name_all()}]}
    | {valkey, Url :: unicode:chardata(), [
        {key_file, file:name_all()}
        | {user, unicode:chardata()}
        | {password_file, file:name_all()}
        | {password_env, Variable :: unicode:chardata()}
        | {ca_file, file:name_all()}
        | {tls_cert_file, file:name_all()}
        | {tls_key_file, file:name_all()}
        | {cluster, boolean()}
        | {partitions, 1..64}
    ]}.
%% The log that sealed sessions are written to: a folder, so that they survive a restart; or a Valkey server, through which nodes
%% share them (only for listeners with a name in `scope'). See docs/journal.md.

-type partial_key() :: {ssl:host(), inet:port_number()} | inet:port_number().
%% The server that a client made its session with.

-type key() :: ssl:session_id() | {partial_key(), ssl:session_id()} | term().
%% On the server the session id, on the client the id and the server it was made with. Any other term works, too.

-type session() :: ssl_session_cache_api:session().
%% OTP's session record. Any other term works, too.

%% These records stay in the state of OTP's processes, so a new version of this module must accept old ones.
-record(server, {
    %% `later' if the library could not be loaded yet; see late/2.
    store :: rekindle_nif:store() | unavailable | {later, rekindle_options:options()},
    %% OTP's process, which called init/1.
    owner :: pid(),
    %% The scope's name; `zero_max' if OTP's process would crash over a session. The first version of this module kept a
    %% number here.
    scope :: rekindle_admin:scope_name() | zero_max | undefined | integer(),
    flags :: atomics:atomics_ref()
}).
-record(client, {
    store :: rekindle_nif:store() | unavailable | later,
    owner :: pid(),
    flags :: atomics:atomics_ref()
}).

-opaque cache() :: #server{} | #client{}.
%% What {@link init/1} returns to OTP's process. When no process refers to it any more, its sessions are dropped.

%% Places in `flags': the number of faults, and of a client whether one of the owner's calls has failed. rekindle_order uses
%% the second place of a server.
-define(FAULTS, 1).
-define(OUT_OF_SYNC, 2).

%% Keys in the process dictionary. OTP's process keeps templates of sessions; see find/3.
-define(TEMPLATES, rekindle_templates).

%% OTP's process keeps the store and the scope's name of a cache that was opened without them; see late/2.
-define(LATE_STORE, rekindle_late_store).

%% A connection keeps when it chose the session that it offers; see find_of_client/3.
-define(CHOSEN_AT, rekindle_chosen_at).

%% The value of `Expression', or `Otherwise' if it fails. A macro, because a lookup should not make a fun.
-define(ATTEMPT(Cache, Otherwise, Expression),
    try
        Expression
    catch
        throw:no_store_yet ->
            Otherwise;
        Class:Reason ->
            fault(Cache, Class, Reason),
            Otherwise
    end
).

%% @doc Opens the cache of a listener or of the client manager. OTP's processes call it with the options of
%% `session_cb_init_args' and, usually, `{role, server | client}' in front.
%%
%% If an option is wrong or the native library is missing, it logs one line and exits with `{shutdown, {bad_option, Line}}' or
%% `{shutdown, {native_library, Line}}', which ends ssl:listen or the start of ssl. But a process that OTP starts in place of
%% another gets a cache that keeps nothing, because its listener or supervisor would not survive an exit. Options that are not
%% Rekindle's are ignored.
%%
%% While the node boots and cannot load the library yet, the cache keeps nothing. It keeps sessions as soon as the library
%% can be loaded.
-spec init([option() | {role, server | client} | term()]) -> cache().
init(Args) ->
    try
        rekindle_otp:is_too_early() orelse require_native_library(),
        open(Args)
    catch
        throw:{refused, What, Line, Scope} ->
            %% ssl_manager calls this again when it starts over.
            case rekindle_otp:is_in_operation() orelse get(?MODULE) =/= undefined of
                true ->
                    log_refusal_once(What, Line),
                    without_store(Args, Scope);
                false ->
                    log_refusal(What, Line),
                    %% With a `shutdown' reason, OTP's process writes no crash report.
                    exit({shutdown, {What, Line}})
            end
    end.

%% @doc Drops all sessions of the cache.
-spec terminate(cache()) -> ok.
terminate(Cache) ->
    ?ATTEMPT(Cache, ok, rekindle_nif:clear(store(Cache))).

%% @doc Returns the session under the key, or `undefined'. A server's session has no private key, and a time stamp in the far
%% future, so that the store alone decides on its age. A client's session comes back as it was stored.
-spec lookup(cache(), key()) -> session() | undefined.
lookup(#server{store = Store, owner = Owner, flags = Flags} = Cache, Key) ->
    case rekindle_order:lookup(Flags, Key) of
        none -> ?ATTEMPT(Cache, undefined, find(Store, Owner, Key));
        Stub -> Stub
    end;
lookup(#client{owner = Owner} = Cache, Key) ->
    case self() =/= Owner orelse not is_out_of_sync(Cache) of
        true -> ?ATTEMPT(Cache, undefined, find_of_client(store(Cache), Owner, Key));
        false -> undefined
    end.

%% @doc Stores the session under the key, and replaces one that is there.
-spec update(cache(), key(), session()) -> ok.
update(Cache, Key, Session) ->
    note_registration(Cache, Key, Session),
    _ = ?ATTEMPT(Cache, refused, rekindle_nif:insert(store(Cache), Key, Session)),
    ok.

%% @doc Drops the session under the key. It does nothing if OTP's process for a server asks: that process only drops the one
%% entry of its own order; see rekindle_order.
-spec delete(cache(), key()) -> ok.
delete(#server{owner = Owner, flags = Flags}, _Key) when Owner =:= self() ->
    rekindle_order:drop(Flags);
delete(Cache, Key) ->
    ?ATTEMPT(Cache, ok, rekindle_nif:delete(store(Cache), Key)).

%% @doc Folds over `{Key, Session}' of all sessions. It may miss or meet sessions that are stored or dropped meanwhile.
-spec foldl(fun(({key(), session()}, Acc) -> Acc), Acc, cache()) -> Acc.
foldl(Fun, Acc0, Cache) ->
    Visit = fun(Key, Acc) ->
        case ?ATTEMPT(Cache, undefined, rekindle_nif:peek(store(Cache), Key)) of
            undefined -> Acc;
            Session -> Fun({Key, Session}, Acc)
        end
    end,
    lists:foldl(Visit, Acc0, ?ATTEMPT(Cache, [], rekindle_nif:keys(store(Cache)))).

%% @doc Returns the sessions that a client has with a server, newest first. A server's cache returns none.
-spec select_session(cache(), partial_key()) -> [session()].
select_session(#server{}, _PartialKey) ->
    [];
select_session(#client{owner = Owner} = Cache, PartialKey) ->
    ?ATTEMPT(Cache, [], begin
        Store = store(Cache),
        _ = is_connection(Owner) andalso put(?CHOSEN_AT, rekindle_nif:deletions(Store)),
        rekindle_nif:select(Store, PartialKey)
    end).

%% @doc Returns the number of sessions, unless OTP's process for a server asks. That process wants to know whether its order
%% holds a session to drop, so it gets 0 while its order is empty, and 1 from then on; see rekindle_order.
%%
%% If one of ssl_manager's calls has failed, its order of sessions may differ from the store. It asks for the size before it
%% registers a session, and starts over with a new cache if that raises. So this function raises then. It also raises if the
%% native library was loaded again and does not know the store, and while there is no store yet.
-spec size(cache()) -> non_neg_integer().
size(#server{owner = Owner, scope = zero_max}) when Owner =:= self() ->
    %% Otherwise OTP's process would crash, and log the session.
    exit({shutdown, zero_max});
size(#server{owner = Owner, flags = Flags}) when Owner =:= self() ->
    rekindle_order:size(Flags);
size(#client{store = later, owner = Owner}) when Owner =:= self() ->
    error(no_store_yet);
size(#client{store = Store, owner = Owner} = Cache) when Owner =:= self() ->
    try rekindle_nif:size(Store) of
        Size ->
            is_out_of_sync(Cache) andalso error(out_of_sync),
            Size
    catch
        Class:Reason ->
            fault(Cache, Class, Reason),
            %% The library was loaded again, and does not know the store.
            Reason =:= badarg andalso is_reference(Store) andalso error(out_of_sync),
            0
    end;
size(Cache) ->
    ?ATTEMPT(Cache, 0, rekindle_nif:size(store(Cache))).

open(Args) ->
    case rekindle_options:parse(Args) of
        {ok, #{role := Role} = Options, Foreign} ->
            log_once(unknown_options, rekindle_options:unknown(Foreign), fun log_unknown_options/1),
            log_once(missing_keys, rekindle_options:missing_keys(), fun log_missing_keys/1),
            open(Role, Options);
        {error, {bad_option, Line}} ->
            refuse(bad_option, Line)
    end.

open(client, _Options) ->
    case rekindle_otp:is_too_early() of
        true ->
            client(later);
        false ->
            {Store, _} = open_store(fun() -> {rekindle_nif:open_client(client), client} end),
            client(Store)
    end;
open(server, Options) ->
    #{max := Max} = ssl_config:pre_1_3_session_opts(server),
    %% A restarted process has the maximum of its predecessor, which was not 0.
    Max =/= 0 orelse rekindle_otp:is_restart() orelse refuse(bad_option, zero_max(), zero_max),
    case rekindle_otp:is_too_early() of
        true ->
            server({later, Options}, undefined);
        false ->
            {Store, Scope} = open_server_store(Options),
            server(Store, Scope)
    end.

open_server_store(#{scope := ScopeOption} = Options) ->
    open_store(fun() ->
        {Scope, Socket, Join} = rekindle_scope:of_server(ScopeOption),
        Store = rekindle_nif:open_server(Scope, Socket, Join, rekindle_options:to_native(rekindle_options:limits(Options))),
        %% Before the journal is read, so that it brings back no session of a revoked certificate.
        ok = rekindle_trust:set_checks(Store, Options),
        open_journal(Store, Scope, Options),
        rekindle_scope:is_of_unknown_listener() andalso log_once(unknown_listener, unknown, fun log_unknown_listener/1),
        {Store, Scope}
    end).

%% The store and the scope's name of a cache that was opened before the library could be loaded. The cache in the state of
%% OTP's process cannot change, so its process dictionary keeps them.
late(Options, Owner) when Owner =:= self() ->
    case get(?LATE_STORE) of
        undefined ->
            rekindle_otp:is_too_early() andalso throw(no_store_yet),
            Opened = open_late(Options),
            _ = put(?LATE_STORE, Opened),
            Opened;
        Opened ->
            Opened
    end;
late(_Options, _Owner) ->
    throw(no_store_yet).

open_late(Options) ->
    try
        require_native_library(),
        open_server_store(Options)
    catch
        throw:{refused, What, Line, _} ->
            log_refusal_once(What, Line),
            {unavailable, undefined}
    end.

server(Store, Scope) ->
    note_cache(Store),
    #server{store = Store, owner = self(), scope = Scope, flags = atomics:new(2, [])}.

client(Store) ->
    note_cache(Store),
    #client{store = Store, owner = self(), flags = flags_of_client()}.

%% For the doctor. A cache whose store is opened later counts as one with a store.
note_cache(unavailable) -> rekindle_otp:note_cache(without_store);
note_cache(_) -> rekindle_otp:note_cache(with_store).

without_store([{role, server} | _], Scope) -> server(unavailable, Scope);
without_store(_, _) -> client(unavailable).

open_journal(Store, Scope, Options) ->
    try
        rekindle_journal:open(Store, Scope, Options)
    catch
        Class:_ ->
            ?LOG_LINE(error, journal, "rekindle: the journal could not be opened (~s); the listener works without it", [Class])
    end.

%% When ssl_manager starts over, the count of its faults goes on: otherwise each fault would be a first one, and logged.
flags_of_client() ->
    Flags = atomics:new(2, []),
    case put(?MODULE, Flags) of
        undefined -> ok;
        Former -> atomics:put(Flags, ?FAULTS, atomics:get(Former, ?FAULTS))
    end,
    Flags.

%% A cache without a store keeps nothing and counts each call as a fault. That is better than no listener.
open_store(Open) ->
    try
        Open()
    catch
        Class:Reason ->
            ?LOG_LINE(error, no_store, "rekindle: the store could not be opened, so no session is kept: ~0tp", [{Class, Reason}]),
            {unavailable, undefined}
    end.

%% This comes before anything can fail, because OTP's process has the session in its order from now on in any case.
note_registration(#server{owner = Owner, flags = Flags}, Key, Session) when Owner =:= self() ->
    rekindle_order:register(Flags, Key, Session);
note_registration(_, _, _) ->
    ok.

%% Whether the owner's order of sessions may differ from the store.
is_out_of_sync(#client{flags = Flags}) ->
    atomics:get(Flags, ?OUT_OF_SYNC) =:= 1.

mark_out_of_sync(#client{owner = Owner, flags = Flags}) when Owner =:= self() ->
    atomics:put(Flags, ?OUT_OF_SYNC, 1);
mark_out_of_sync(_) ->
    ok.

%% OTP's process keeps the common parts of its sessions on its own heap, so that a lookup need not copy them there. The native
%% library recognizes its own templates in the dictionary, and replaces anything else.
find({later, Options}, Owner, Key) ->
    {Store, _} = late(Options, Owner),
    find(Store, Owner, Key);
find(Store, Owner, Key) when Owner =:= self() ->
    case rekindle_nif:server_lookup(Store, Key, get(?TEMPLATES)) of
        {kept, Templates, Session} ->
            put(?TEMPLATES, Templates),
            Session;
        {plain, Term} ->
            Term;
        SessionOrUndefined ->
            SessionOrUndefined
    end;
find(Store, _Owner, Key) ->
    rekindle_nif:server_lookup(Store, Key).

%% A connection chooses the session that it offers to its server, and looks it up when the server agrees. It must find the
%% session then, even if it was deleted in the meantime; otherwise the handshake fails. No other process may find it: it may
%% have been deleted because it must not be resumed (RFC 5246, 7.2.2), and the manager would remove it from its order twice.
find_of_client(Store, Owner, Key) ->
    case is_connection(Owner) andalso erase(?CHOSEN_AT) of
        false ->
            rekindle_nif:client_lookup(Store, Key, undefined);
        undefined ->
            %% The caller named the session to offer.
            Deletions = rekindle_nif:deletions(Store),
            Session = rekindle_nif:client_lookup(Store, Key, undefined),
            _ = Session =/= undefined andalso put(?CHOSEN_AT, Deletions),
            Session;
        ChosenAt ->
            rekindle_nif:client_lookup(Store, Key, ChosenAt)
    end.

%% OTP's connections have their manager's name in their dictionary.
is_connection(Owner) ->
    self() =/= Owner andalso get(ssl_manager) =/= undefined.

store(#server{store = {later, Options}, owner = Owner}) -> element(1, late(Options, Owner));
store(#server{store = Store}) -> Store;
store(#client{store = later}) -> throw(no_store_yet);
store(#client{store = Store}) -> Store.

fault(Cache, Class, Reason) ->
    mark_out_of_sync(Cache),
    Count = atomics:add_get(flags(Cache), ?FAULTS, 1),
    try
        rekindle_faults:note(store(Cache), scope(Cache), Count, Class, Reason)
    catch
        %% If no process can be started, the fault is not logged.
        _:_ -> ok
    end.

flags(#server{flags = Flags}) -> Flags;
flags(#client{flags = Flags}) -> Flags.

scope(#server{store = {later, Options}, owner = Owner}) -> element(2, late(Options, Owner));
scope(#server{scope = Scope}) -> Scope;
scope(#client{}) -> client.

require_native_library() ->
    case rekindle_faults:library() of
        ok ->
            ok;
        {error, {File, Reason}} ->
            Line = io_lib:format("rekindle: the native library ~ts cannot be loaded: ~ts", [File, why_not_loaded(File, Reason)]),
            refuse(native_library, lists:flatten(Line))
    end.

%% The system would only say "not a directory".
why_not_loaded(File, Reason) ->
    case is_in_file(filename:dirname(File)) of
        true ->
            "it is in an archive, such as an escript, and the system loads libraries from files only; "
            "give the escript the application's folder on disk: %%! -pa PATH/rekindle/ebin";
        false ->
            Reason
    end.

is_in_file(Path) ->
    filelib:is_regular(Path) orelse (filename:dirname(Path) =/= Path andalso is_in_file(filename:dirname(Path))).

-spec refuse(atom(), string()) -> no_return().
refuse(What, Line) ->
    refuse(What, Line, undefined).

-spec refuse(atom(), string(), zero_max | undefined) -> no_return().
refuse(What, Line, Scope) ->
    throw({refused, What, Line, Scope}).

%% A listener is refused once, when it is opened. The cache of upgraded sockets is refused at each handshake, so clients decide
%% how often.
log_refusal(What, Line) ->
    case rekindle_scope:is_of_upgraded_sockets() of
        true -> log_refusal_once(What, Line);
        false -> ?LOG_LINE(error, What, "~ts", [Line])
    end.

log_refusal_once(What, Line) ->
    log_once(refusal, Line, fun(_) -> ?LOG_LINE(error, What, "~ts", [Line]) end).

zero_max() ->
    %% OTP's process would crash at the first session, whatever the answers are.
    "rekindle: ssl's session_cache_server_max is 0; allowed: any other integer "
    "(to turn resumption off, give the listeners {reuse_sessions, false})".

%% All listeners of a node get the same options, so one line is enough.
log_once(_Topic, [], _Log) ->
    ok;
log_once(Topic, What, Log) ->
    case persistent_term:get({?MODULE, Topic}, []) of
        What ->
            ok;
        _ ->
            persistent_term:put({?MODULE, Topic}, What),
            Log(What)
    end.

log_unknown_options(Options) ->
    ?LOG_LINE(warning, unknown_options, "rekindle: unknown options are ignored: ~ts", [lists:join(", ", Options)]).

log_unknown_listener(_) ->
    ?LOG_LINE(
        warning,
        unknown_listener,
        "rekindle: a listener's socket is not a port (inet_backend = socket), and OTP ~ts does not say which listener it is. "
        "So the listener is called unnamed, the option scope cannot name it, and it has no journal. OTP 27 and later say which it is.",
        [erlang:system_info(otp_release)]
    ).

log_missing_keys(Keys) ->
    ?LOG_LINE(
        warning,
        missing_keys,
        "rekindle: set ssl's ~0tp to rekindle, too: which keys ssl reads depends on the OTP release",
        [Keys]
    ).
