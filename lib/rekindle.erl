%% @doc The session cache that OTP's ssl calls: set it as `session_cb', `server_session_cb' and
%% `client_session_cb' in ssl's environment, and its options as `session_cb_init_args'.
%%
%% Each function but {@link init/1} answers, whatever fails below it: with what an empty cache would
%% answer, a fault counted in {@link rekindle_admin:info/0}, and a log line at the 1st, 2nd, 4th, 8th …
%% fault of a cache. Only {@link size/1} raises: after a fault, where ssl_manager expects it; and where OTP's
%% process for a server cannot be saved.
%% Otherwise OTP's processes do not survive a callback that raises; see docs/otp.md for what they ask and why
%% each answer is what it is.
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
%% Of `session_cb_init_args'. The bounds are those of one scope. Defaults: 64 MiB; ssl's
%% `session_cache_server_max' where it is set, else `infinity'; ssl's `session_lifetime'; `listener'; `none'. Those of the last
%% three: `full_handshake'; `[]'; `full_handshake'.
%%
%% Three are for journals. `node_folder' is a folder of this node alone, in which it remembers revocations outside the
%% log; by default a folder journal's own folder, and none with Valkey. With `wait_for_living_node', a node that remembers no
%% revocation reads no session from the log until another node has confirmed that no revocation is missing in it; by default it
%% reads them. `max_log_bytes' bounds what the log of a scope takes: the oldest sessions go first, revocations
%% never; by default four times `max_bytes'.

-type scope() :: listener | #{inet:port_number() | {inet:ip_address(), inet:port_number()} => Name :: term()}.
%% Which listeners share their sessions: none do (`listener'), or those under one name. A resumption skips the
%% check of the client's certificate: only give one name to listeners that check it alike.

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
%% Where sessions are written to, sealed, so that they outlive a restart (`folder'), or so that other nodes
%% have them as well (`valkey', for listeners with a name in `scope'). See docs/journal.md.

-type partial_key() :: {ssl:host(), inet:port_number()} | inet:port_number().
%% With whom a client made its session.

-type key() :: ssl:session_id() | {partial_key(), ssl:session_id()} | term().
%% On the server the bare session id, on the client together with whom it was made with. Any other
%% term will do as well.

-type session() :: ssl_session_cache_api:session().
%% OTP's session record. Any other term is stored as well.

%% These stay in the state of OTP's processes: a new version of this module has to take the old ones.
-record(server, {
    %% `later' where the library could not be loaded yet: see late/2.
    store :: rekindle_nif:store() | unavailable | {later, rekindle_options:options()},
    %% The process of OTP's that ran init/1.
    owner :: pid(),
    %% The scope's name; `no_room' where OTP's process cannot take a session. The first version of this module
    %% kept a number here.
    label :: rekindle_admin:label() | no_room | undefined | integer(),
    notes :: atomics:atomics_ref()
}).
-record(client, {
    store :: rekindle_nif:store() | unavailable | later,
    owner :: pid(),
    notes :: atomics:atomics_ref()
}).

-opaque cache() :: #server{} | #client{}.
%% What {@link init/1} gives to OTP's process. When nobody has it any more, the sessions in it are dropped.

%% What `notes' holds: calls that failed; of a server, what rekindle_order keeps there; of a client, whether one
%% of the owner's calls has failed.
-define(FAULTS, 1).
-define(ADRIFT, 2).

%% Where OTP's process keeps templates of sessions; see find/3.
-define(TEMPLATES, rekindle_templates).

%% Where OTP's process keeps the store, and the scope's name, of a cache that was opened without; see late/2.
-define(LATE_STORE, rekindle_late_store).

%% Where a connection keeps when it chose the session that it offers; see find_of_client/3.
-define(CHOSEN_AT, rekindle_chosen_at).

%% The value of `Expression', or `Otherwise' where it fails. A macro, so that a lookup makes no fun.
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

%% @doc Opens the cache of a listener or of the client manager. Called by OTP's processes with the
%% options of `session_cb_init_args' and, usually, `{role, server | client}' in front.
%%
%% A wrong option or a missing native library is logged in one line and exits with
%% `{shutdown, {bad_option, Line}}' or `{shutdown, {native_library, Line}}', which ends ssl:listen or
%% the start of ssl. But where a process is started in place of another, it gets a cache that keeps nothing:
%% its listener or supervisor would not survive an exit. Options of others are left alone.
%%
%% While the node boots and cannot load the library yet, a cache is opened that keeps nothing; it keeps sessions
%% as soon as the library can be loaded.
-spec init([option() | {role, server | client} | term()]) -> cache().
init(Args) ->
    try
        rekindle_otp:is_too_early() orelse require_native_library(),
        open(Args)
    catch
        throw:{refused, What, Line, Label} ->
            %% ssl_manager calls this again where it starts over.
            case rekindle_otp:is_in_operation() orelse get(?MODULE) =/= undefined of
                true ->
                    log_refusal_once(What, Line),
                    without_store(Args, Label);
                false ->
                    log_refusal(What, Line),
                    %% A `shutdown' reason spares the reader the crash report of OTP's process.
                    exit({shutdown, {What, Line}})
            end
    end.

%% @doc Drops all sessions of the cache.
-spec terminate(cache()) -> ok.
terminate(Cache) ->
    ?ATTEMPT(Cache, ok, rekindle_nif:clear(store(Cache))).

%% @doc The session under the key, or `undefined'. A server's session comes without private key and
%% with a time stamp in the far future: the store alone decides on its age. A client's comes as it was stored.
-spec lookup(cache(), key()) -> session() | undefined.
lookup(#server{store = Store, owner = Owner, notes = Notes} = Cache, Key) ->
    case rekindle_order:lookup(Notes, Key) of
        none -> ?ATTEMPT(Cache, undefined, find(Store, Owner, Key));
        Stub -> Stub
    end;
lookup(#client{owner = Owner} = Cache, Key) ->
    case self() =/= Owner orelse not is_adrift(Cache) of
        true -> ?ATTEMPT(Cache, undefined, find_of_client(store(Cache), Owner, Key));
        false -> undefined
    end.

%% @doc Stores the session under the key, in place of one that may be there.
-spec update(cache(), key(), session()) -> ok.
update(Cache, Key, Session) ->
    note_registration(Cache, Key, Session),
    _ = ?ATTEMPT(Cache, refused, rekindle_nif:insert(store(Cache), Key, Session)),
    ok.

%% @doc Drops the session under the key. On the server it is not obeyed when OTP's process asks: what
%% that process drops is its only note of order, not a session anyone wants gone.
-spec delete(cache(), key()) -> ok.
delete(#server{owner = Owner, notes = Notes}, _Key) when Owner =:= self() ->
    rekindle_order:drop(Notes);
delete(Cache, Key) ->
    ?ATTEMPT(Cache, ok, rekindle_nif:delete(store(Cache), Key)).

%% @doc Folds over `{Key, Session}' of all sessions. Those stored or dropped meanwhile may be met or not.
-spec foldl(fun(({key(), session()}, Acc) -> Acc), Acc, cache()) -> Acc.
foldl(Fun, Acc0, Cache) ->
    Visit = fun(Key, Acc) ->
        case ?ATTEMPT(Cache, undefined, rekindle_nif:peek(store(Cache), Key)) of
            undefined -> Acc;
            Session -> Fun({Key, Session}, Acc)
        end
    end,
    lists:foldl(Visit, Acc0, ?ATTEMPT(Cache, [], rekindle_nif:keys(store(Cache)))).

%% @doc The sessions a client has with a server, newest first. Servers have none.
-spec select_session(cache(), partial_key()) -> [session()].
select_session(#server{}, _PartialKey) ->
    [];
select_session(#client{owner = Owner} = Cache, PartialKey) ->
    ?ATTEMPT(Cache, [], begin
        Store = store(Cache),
        _ = is_connection(Owner) andalso put(?CHOSEN_AT, rekindle_nif:deletions(Store)),
        rekindle_nif:select(Store, PartialKey)
    end).

%% @doc How many sessions there are, except when OTP's server process asks: it means «is there a session in my
%% order that I should drop?», and is told 0 while its order is empty, and 1 ever after. So it replaces the one
%% session in its order, whatever its maximum is. See rekindle_order.
%%
%% Where one of its calls has failed, ssl_manager's order of sessions may no longer be that of the store. It
%% asks for the size before it registers a session, and starts over with another cache where that raises. So
%% it does where the native library was loaded again, and does not know the store, and while there is no store yet:
%% its order stays empty until it starts over with one.
-spec size(cache()) -> non_neg_integer().
size(#server{owner = Owner, label = no_room}) when Owner =:= self() ->
    %% OTP's process would crash, and log the session.
    exit({shutdown, no_room});
size(#server{owner = Owner, notes = Notes}) when Owner =:= self() ->
    rekindle_order:size(Notes);
size(#client{store = later, owner = Owner}) when Owner =:= self() ->
    error(no_store_yet);
size(#client{store = Store, owner = Owner} = Cache) when Owner =:= self() ->
    try rekindle_nif:size(Store) of
        Size ->
            is_adrift(Cache) andalso error(books_adrift),
            Size
    catch
        Class:Reason ->
            fault(Cache, Class, Reason),
            %% A library that does not know the store has been loaded since.
            Reason =:= badarg andalso is_reference(Store) andalso error(books_adrift),
            0
    end;
size(Cache) ->
    ?ATTEMPT(Cache, 0, rekindle_nif:size(store(Cache))).

open(Args) ->
    case rekindle_options:parse(Args) of
        {ok, #{role := Role} = Options, Foreign} ->
            log_once(foreign_options, names(Foreign), fun log_foreign_options/1),
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
    %% A process that is restarted has the maximum of the one before, which was not 0.
    Max =/= 0 orelse rekindle_otp:is_restart() orelse refuse(bad_option, no_room(), no_room),
    case rekindle_otp:is_too_early() of
        true ->
            server({later, Options}, undefined);
        false ->
            {Store, Label} = open_server_store(Options),
            server(Store, Label)
    end.

open_server_store(#{scope := ScopeOption} = Options) ->
    open_store(fun() ->
        #{lifetime := SslLifetime} = ssl_config:pre_1_3_session_opts(server),
        {Label, Socket, Join} = rekindle_scope:of_server(ScopeOption),
        Store = rekindle_nif:open_server(Label, Socket, Join, rekindle_options:to_native(limits(Options, SslLifetime))),
        %% Before a journal is read.
        ok = rekindle_trust:open(Store, Options),
        open_journal(Store, Label, Options),
        rekindle_scope:is_of_unknown_listener() andalso log_once(unknown_listener, unknown, fun log_unknown_listener/1),
        {Store, Label}
    end).

%% The store, and the scope's name, of a cache that was opened before the library could be loaded. OTP's process has
%% the cache as it was then: what is opened now is kept beside it.
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

server(Store, Label) ->
    #server{store = Store, owner = self(), label = Label, notes = atomics:new(2, [])}.

client(Store) ->
    #client{store = Store, owner = self(), notes = notes_of_client()}.

without_store([{role, server} | _], Label) -> server(unavailable, Label);
without_store(_, _) -> client(unavailable).

open_journal(Store, Label, Options) ->
    try
        rekindle_journal:open(Store, Label, Options)
    catch
        Class:_ -> ?LOG_LINE(error, journal, "rekindle: no journal could be opened (~s): the listener works without", [Class])
    end.

%% Where ssl_manager starts over, it goes on counting its faults: else each would be a first one, and logged.
notes_of_client() ->
    Notes = atomics:new(2, []),
    case put(?MODULE, Notes) of
        undefined -> ok;
        Former -> atomics:put(Notes, ?FAULTS, atomics:get(Former, ?FAULTS))
    end,
    Notes.

limits(Options, SslLifetime) ->
    Options#{max_sessions := max_sessions(Options), lifetime := lifetime(Options, SslLifetime)}.

max_sessions(#{max_sessions := undefined}) ->
    case application:get_env(ssl, session_cache_server_max) of
        {ok, Max} when is_integer(Max), Max > 0 -> Max;
        _ -> infinity
    end;
max_sessions(#{max_sessions := Max}) ->
    Max.

%% Where ssl's lifetime is 0, nothing is to be resumed.
lifetime(_Options, SslLifetime) when SslLifetime =< 0 -> 0;
lifetime(#{lifetime := undefined}, SslLifetime) -> SslLifetime;
lifetime(#{lifetime := Lifetime}, _SslLifetime) -> Lifetime.

%% A cache without a store keeps nothing and counts each call as a fault: better than no listener.
open_store(Open) ->
    try
        Open()
    catch
        Class:Reason ->
            ?LOG_LINE(error, no_store, "rekindle: no store could be opened, nothing will be cached: ~0tp", [{Class, Reason}]),
            {unavailable, undefined}
    end.

%% Before anything can fail: OTP's process has the session in its order from now on, whatever becomes of it
%% here.
note_registration(#server{owner = Owner, notes = Notes}, Key, Session) when Owner =:= self() ->
    rekindle_order:register(Notes, Key, Session);
note_registration(_, _, _) ->
    ok.

%% Whether what the owner has noted of the sessions may differ from what is stored.
is_adrift(#client{notes = Notes}) ->
    atomics:get(Notes, ?ADRIFT) =:= 1.

note_drift(#client{owner = Owner, notes = Notes}) when Owner =:= self() ->
    atomics:put(Notes, ?ADRIFT, 1);
note_drift(_) ->
    ok.

%% OTP's process keeps what its sessions have in common on its own heap, where a lookup need not copy it to. Of
%% what is in its dictionary the native library knows what is its own, and replaces anything else.
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

%% A connection chooses the session that it offers to its server, and looks it up when the server agrees. It has to
%% find it then, even if it was deleted in the meantime: otherwise the handshake fails. Nobody else does. A session may
%% have been deleted because it must not be resumed (RFC 5246, 7.2.2), and the manager would take it out of its books
%% twice.
find_of_client(Store, Owner, Key) ->
    case is_connection(Owner) andalso erase(?CHOSEN_AT) of
        false ->
            rekindle_nif:client_lookup(Store, Key, undefined);
        undefined ->
            %% It was told which one to choose.
            Deletions = rekindle_nif:deletions(Store),
            Session = rekindle_nif:client_lookup(Store, Key, undefined),
            _ = Session =/= undefined andalso put(?CHOSEN_AT, Deletions),
            Session;
        ChosenAt ->
            rekindle_nif:client_lookup(Store, Key, ChosenAt)
    end.

%% OTP's connections have the name of their manager in their dictionary.
is_connection(Owner) ->
    self() =/= Owner andalso get(ssl_manager) =/= undefined.

store(#server{store = {later, Options}, owner = Owner}) -> element(1, late(Options, Owner));
store(#server{store = Store}) -> Store;
store(#client{store = later}) -> throw(no_store_yet);
store(#client{store = Store}) -> Store.

fault(Cache, Class, Reason) ->
    note_drift(Cache),
    Count = atomics:add_get(notes(Cache), ?FAULTS, 1),
    try
        rekindle_faults:note(store(Cache), label(Cache), Count, Class, Reason)
    catch
        %% No process can be started: the fault is not logged.
        _:_ -> ok
    end.

notes(#server{notes = Notes}) -> Notes;
notes(#client{notes = Notes}) -> Notes.

label(#server{store = {later, Options}, owner = Owner}) -> element(2, late(Options, Owner));
label(#server{label = Label}) -> Label;
label(#client{}) -> client.

require_native_library() ->
    case rekindle_faults:library() of
        ok ->
            ok;
        {error, {File, Reason}} ->
            Line = io_lib:format("rekindle: the native library ~ts cannot be loaded: ~ts", [File, why_not_loaded(File, Reason)]),
            refuse(native_library, lists:flatten(Line))
    end.

%% The system's own words would be «not a directory».
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

-spec refuse(atom(), string(), no_room | undefined) -> no_return().
refuse(What, Line, Label) ->
    throw({refused, What, Line, Label}).

%% A listener is refused when it is opened. Where the cache of upgraded sockets is, each of them asks for it
%% again, and as often as clients like.
log_refusal(What, Line) ->
    case rekindle_scope:is_of_upgraded_sockets() of
        true -> log_refusal_once(What, Line);
        false -> ?LOG_LINE(error, What, "~ts", [Line])
    end.

log_refusal_once(What, Line) ->
    log_once(refusal, Line, fun(_) -> ?LOG_LINE(error, What, "~ts", [Line]) end).

no_room() ->
    %% OTP's process crashes at the first session then, whatever it is answered.
    "rekindle: ssl's session_cache_server_max is 0; allowed: any other integer "
    "(to turn resumption off, give the listeners {reuse_sessions, false})".

%% All listeners of a node get the same options: what there is to say of them is said once.
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

%% Not their values, of which we know nothing: one may be a password.
names(Options) ->
    [name(Option) || Option <- Options].

name(Option) when is_tuple(Option), tuple_size(Option) > 0, is_atom(element(1, Option)) -> element(1, Option);
name(Option) when is_atom(Option) -> Option;
name(_) -> '...'.

log_foreign_options(Names) ->
    ?LOG_LINE(notice, foreign_options, "rekindle: options left alone, they are not rekindle's: ~0tp", [Names]).

log_unknown_listener(_) ->
    ?LOG_LINE(
        warning, unknown_listener,
        "rekindle: a listener's socket is no port (inet_backend = socket), and OTP ~ts does not tell which it is: "
        "the listener's sessions are under the name unnamed, and it gets no name of the option scope and no journal. "
        "OTP 27 and later tell it.",
        [erlang:system_info(otp_release)]).

log_missing_keys(Keys) ->
    ?LOG_LINE(
        warning, missing_keys,
        "rekindle: ssl's ~0tp should be rekindle, too: which keys ssl reads depends on the OTP release",
        [Keys]).
