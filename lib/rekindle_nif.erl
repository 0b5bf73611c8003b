%% @private The native library's functions, and the loading of the library.
%%
%% Every function raises `badarg' for a term of the wrong type, and `nif_panicked' if the native code panics. `rekindle' turns
%% both into answers that OTP accepts. Durations and ages are in the unit that their name ends with.
-module(rekindle_nif).

-export([loaded/0]).
-export([open_server/4, open_client/1, sockets/1]).
-export([insert/3, server_lookup/2, server_lookup/3, client_lookup/3, deletions/1, peek/2]).
-export([delete/2, select/2, keys/1, size/1, clear/1]).
-export([count_fault/1, last_panic/0]).
-export([set_trust/4, crl_events/0, crls/0]).
-export([info/0, page/3, set_limits/2, revoke/3, own_certificates/1]).
-export([open_journal/2, journal_events/0, reload_keys/1, unwritten/0, replay_anyway/1, allow_suites/2]).

-ifdef(REKINDLE_TESTING).
-export([inject_fault/1, inject_one_fault/2, advance_clock/1]).
-endif.

-export_type([
    store/0, limits/0, scope_number/0, position/0, row/0, certificate_selector/0, revoked/0, pending/0, journal/0, event/0
]).
-export_type([crl_event/0, crl_file/0, crl/0]).

-on_load(load/0).

-type store() :: reference().
-type limits() :: {
    MaxBytes :: non_neg_integer(),
    MaxSessions :: non_neg_integer(),
    LifetimeMs :: non_neg_integer()
}.

-type scope_number() :: non_neg_integer().
-type position() :: non_neg_integer().
-type row() :: {
    Key :: term(),
    AgeMs :: non_neg_integer(),
    AgeAtLastUseMs :: non_neg_integer() | undefined,
    PeerCertificate :: public_key:der_encoded() | undefined,
    CipherSuite :: <<_:16>> | undefined,
    CertificateLeftS :: non_neg_integer() | undefined
}.

%% Selects client certificates: by fingerprint; all of an issuer, whose name is in DER; or the one of an issuer with this serial
%% number, as the value in DER.
-type certificate_selector() ::
    {sha256 | sha | issuer, binary()}
    | {issuer, Name :: binary(), Serial :: binary()}.

%% What to revoke: all sessions, the one with this id, or those that were made with these client certificates.
-type revoked() :: all | {session, Id :: <<_:256>>} | {certificates, [certificate_selector()]}.

%% The names of the scopes for which a revocation is not durable yet, and why.
-type pending() :: [{Scope :: binary(), Why :: binary()}].

%% `layout' describes this node's session records; see rekindle_layout. The node remembers revocations in `node_folder'. The
%% library makes a key file only if `makes_key' is true.
-type journal() :: #{
    scope := binary(),
    layout := binary(),
    key_file := binary(),
    makes_key := boolean(),
    node_folder => binary(),
    wait_for_living_node := boolean(),
    max_log_bytes := pos_integer(),
    log :=
        {folder, Dir :: binary()}
        | {valkey, #{
            url := binary(),
            cluster := boolean(),
            partitions := pos_integer(),
            user => binary(),
            password_file => binary(),
            password_env => binary(),
            ca_file => binary(),
            tls_cert_file => binary(),
            tls_key_file => binary()
        }}
}.

-type event() :: {
    Scope :: binary(),
    Location :: binary(),
    {down, Error :: binary()}
    | {up, AfterMs :: non_neg_integer(), Dropped :: non_neg_integer()}
    | {replayed, Sessions :: non_neg_integer(), TookMs :: non_neg_integer()}
    | {noticed, Notice :: binary()}
}.

%% Times are in seconds since 1970, names in DER.
-type crl_event() :: {
    Path :: binary(),
    {read, Lists :: non_neg_integer(), Entries :: non_neg_integer()}
    | up
    | down
    | {error, Line :: binary(), IsKnown :: boolean()}
    | {expired, Issuer :: binary(), NextUpdate :: non_neg_integer()}
    | {delta, Issuer :: binary()}
}.

%% If `IsKnown' is true, the lists that were read before stay in force.
-type crl_file() :: {Path :: binary(), [crl()], Error :: binary() | undefined, IsKnown :: boolean()}.

-type crl() :: {
    Issuer :: binary(),
    Entries :: non_neg_integer(),
    ThisUpdate :: non_neg_integer(),
    NextUpdate :: non_neg_integer() | undefined,
    IsDelta :: boolean(),
    %% Lists for the same certificates replace each other: those of one authority, in canonical form, and of one part.
    {Authority :: binary(), Part :: binary()},
    %% Whether its next update counts. That of a list which is no longer there does not, if its issuer has a newer one.
    HasEnd :: boolean()
}.

-define(NOT_LOADED, erlang:nif_error({not_loaded, ?MODULE})).

%% @doc Whether the library is loaded. If not: the file, and why it could not be loaded.
-spec loaded() -> ok | {error, {file:filename(), string()}}.
loaded() ->
    persistent_term:get(?MODULE).

%% If the library cannot be loaded, the module is loaded nevertheless: the caller of `loaded/0' can give a better reason than
%% an `undef'. But a second load that fails must fail, so that the running code goes on with its library. If the running code
%% was deleted, only the first such load fails, and OTP logs why; otherwise the code server would try and fail at each call of
%% a cache.
load() ->
    File = filename:join(priv_dir(), ?MODULE_STRING),
    case erlang:load_nif(File, 0) of
        ok ->
            persistent_term:put(?MODULE, ok);
        {error, {_, Text}} = Error ->
            Missing = {error, {File ++ ".so", lists:flatten(Text)}},
            case persistent_term:get(?MODULE, undefined) of
                ok ->
                    erlang:module_loaded(?MODULE) orelse persistent_term:put(?MODULE, Missing),
                    Error;
                _ ->
                    persistent_term:put(?MODULE, Missing)
            end
    end.

priv_dir() ->
    case code:priv_dir(rekindle) of
        {error, bad_name} ->
            %% The folder has another name: it is a checkout, or a copy of the beam files.
            filename:join(filename:dirname(filename:dirname(filename:absname(code:which(?MODULE)))), "priv");
        Dir ->
            filename:absname(Dir)
    end.

-spec open_server(term(), term(), boolean(), limits()) -> store().
open_server(_Scope, _Socket, _Join, _Limits) ->
    ?NOT_LOADED.

-spec open_client(term()) -> store().
open_client(_Scope) ->
    ?NOT_LOADED.

-spec sockets(term()) -> [term()].
sockets(_Scope) ->
    ?NOT_LOADED.

-spec insert(store(), term(), term()) -> stored | refused.
insert(_Store, _Key, _Session) ->
    ?NOT_LOADED.

-spec server_lookup(store(), term()) -> term() | undefined.
server_lookup(_Store, _Key) ->
    ?NOT_LOADED.

%% @doc A lookup for a process that keeps templates of sessions on its heap. `Templates' is what the process keeps, at first any
%% term. Returns a session, which is a tuple tagged `session'; or a session and the templates to keep from now on; or any other
%% term that was stored.
-spec server_lookup(store(), term(), Templates :: term()) ->
    tuple() | {kept, Templates :: tuple(), Session :: tuple()} | {plain, term()} | undefined.
server_lookup(_Store, _Key, _Templates) ->
    ?NOT_LOADED.

%% @doc Also finds a session that was deleted a moment ago, if the caller chose it before. `ChosenAt' is the number of deletions
%% at that time.
-spec client_lookup(store(), term(), ChosenAt :: non_neg_integer() | undefined) -> term() | undefined.
client_lookup(_Store, _Key, _ChosenAt) ->
    ?NOT_LOADED.

-spec deletions(store()) -> non_neg_integer().
deletions(_Store) ->
    ?NOT_LOADED.

-spec peek(store(), term()) -> term() | undefined.
peek(_Store, _Key) ->
    ?NOT_LOADED.

-spec delete(store(), term()) -> ok.
delete(_Store, _Key) ->
    ?NOT_LOADED.

-spec select(store(), term()) -> [term()].
select(_Store, _PartialKey) ->
    ?NOT_LOADED.

-spec keys(store()) -> [term()].
keys(_Store) ->
    ?NOT_LOADED.

-spec size(store()) -> non_neg_integer().
size(_Store) ->
    ?NOT_LOADED.

-spec clear(store()) -> ok.
clear(_Store) ->
    ?NOT_LOADED.

-spec count_fault(store()) -> pos_integer().
count_fault(_Store) ->
    ?NOT_LOADED.

-spec last_panic() -> binary() | undefined.
last_panic() ->
    ?NOT_LOADED.

-spec set_trust(store(), AllowsExpired :: boolean(), AllowsStale :: boolean(), Paths :: [binary()]) -> ok.
set_trust(_Store, _AllowsExpired, _AllowsStale, _Paths) ->
    ?NOT_LOADED.

-spec crl_events() -> {[crl_event()], AreAnyOpen :: boolean()}.
crl_events() ->
    ?NOT_LOADED.

-spec crls() -> [{IsRead :: boolean(), IsComplete :: boolean(), [crl_file()]}].
crls() ->
    ?NOT_LOADED.

-spec info() -> [map()].
info() ->
    ?NOT_LOADED.

-spec page(scope_number(), position(), Limit :: pos_integer()) -> {[row()], position() | done} | undefined.
page(_Number, _From, _Limit) ->
    ?NOT_LOADED.

-spec set_limits(scope_number(), limits()) -> ok | undefined.
set_limits(_Number, _Limits) ->
    ?NOT_LOADED.

%% @doc Revokes in the given scopes; with `all' also in those that open later. Writes the revocation to the node folders of
%% these scopes and to `NodeFolders' first, and then waits up to two seconds until it is durable.
-spec revoke(all | [scope_number()], revoked(), NodeFolders :: [binary() | undefined]) ->
    {Dropped :: non_neg_integer(), pending()}.
revoke(_Scopes, _What, _NodeFolders) ->
    ?NOT_LOADED.

-spec own_certificates(scope_number()) -> [term()].
own_certificates(_Number) ->
    ?NOT_LOADED.

-spec open_journal(store(), journal()) -> ok | {error, Why :: binary()}.
open_journal(_Store, _Journal) ->
    ?NOT_LOADED.

-spec journal_events() -> {[event()], IsAnyJournal :: boolean()}.
journal_events() ->
    ?NOT_LOADED.

-spec reload_keys(scope_number()) -> {ok, Names :: [binary()]} | {error, Line :: binary()} | undefined.
reload_keys(_Number) ->
    ?NOT_LOADED.

%% @doc How many revocations of all scopes are not in the log yet.
-spec unwritten() -> non_neg_integer().
unwritten() ->
    ?NOT_LOADED.

%% @doc Reads a scope's log although it lacks revocations.
-spec replay_anyway(scope_number()) -> ok | undefined.
replay_anyway(_Number) ->
    ?NOT_LOADED.

%% @doc Lets only sessions with these cipher suites come from a scope's log, and drops others. Returns how many were left out or
%% dropped since the last call; `undefined' if the scope has no journal.
-spec allow_suites(scope_number(), [binary()] | all) -> LeftOut :: non_neg_integer() | undefined.
allow_suites(_Number, _Suites) ->
    ?NOT_LOADED.

-ifdef(REKINDLE_TESTING).
-spec inject_fault(none | panic | refusal) -> ok.
inject_fault(_Mode) ->
    ?NOT_LOADED.

-spec inject_one_fault(panic | refusal, SparedCalls :: non_neg_integer()) -> ok.
inject_one_fault(_Mode, _SparedCalls) ->
    ?NOT_LOADED.

-spec advance_clock(ByMs :: non_neg_integer()) -> AdvancedMs :: non_neg_integer().
advance_clock(_ByMs) ->
    ?NOT_LOADED.
-endif.
