%% @doc What an operator asks of the cache and does to it, from a remote shell or a program.
%%
%% All of it works on the sessions of servers. Those of clients are shown in {@link info/0} and left alone
%% otherwise: OTP's own book-keeping has them, and fails where it does not find them again.
%%
%% Nothing here shows a master secret. Fails with `{not_loaded, rekindle_nif}' where the native library is
%% missing.
-module(rekindle_admin).

-export([info/0, info/1, print/0, top/0, top/1]).
-export([sessions/0, sessions/1, sessions/2]).
-export([flush/0, flush/1, forget/1, revoke/1]).
-export([set/2]).
-export([reload_keys/0, replay_anyway/1, crls/0]).
-export([doctor/0]).

-export_type([info/0, ended/0, refusal/0, journal/0, skipped/0, label/0, which/0, session/0, peer/0, wanted/0, revoked/0, page/0, next/0, limit/0]).
-export_type([crl/0]).
-export_type([no_such_scope/0, bad_option/0]).

-type info() :: #{
    number := non_neg_integer(),
    scope := label(),
    role := server | client,
    sessions := non_neg_integer(),
    bytes := non_neg_integer(),
    templates := non_neg_integer(),
    certificates := non_neg_integer(),
    certified := non_neg_integer(),
    oldest := non_neg_integer() | undefined,
    max_bytes := pos_integer() | infinity,
    max_sessions := pos_integer() | infinity,
    lifetime := non_neg_integer() | infinity,
    inserts := non_neg_integer(),
    hits := non_neg_integer(),
    misses := non_neg_integer(),
    evicted_misses := non_neg_integer(),
    lost_misses := non_neg_integer(),
    unknown_misses := non_neg_integer(),
    ended := non_neg_integer(),
    ended_by := #{ended() => non_neg_integer()},
    hit_rate := float() | undefined,
    expired := non_neg_integer(),
    evicted := non_neg_integer(),
    moved := non_neg_integer(),
    refused := non_neg_integer(),
    refused_by := #{refusal() => non_neg_integer()},
    faults := non_neg_integer(),
    journal := journal() | undefined
}.

-type ended() :: expired | revoked | unknown.
%% Why a session that is there was not resumed: its client's certificate has expired; a revocation list has it; or the
%% lists were not read yet, or the one of its issuer is too old.

-type refusal() :: too_large | no_room | private_key | layout | lifetime.
%% Why a session was not stored: it has a server name over 255 bytes, a client certificate over 64 KiB, or more than
%% 8 KiB besides its certificate and template; the bound is too small for this one session, or the system has no
%% memory; one of its fields could hold a private key; it is a session record of a layout that Rekindle does not
%% know; or it would have expired at once.

-type journal() :: #{
    location := binary(),
    shared := boolean(),
    state := starting | up | down,
    since := non_neg_integer(),
    last_error := binary() | undefined,
    queued := non_neg_integer(),
    unwritten := non_neg_integer(),
    missing := non_neg_integer(),
    written := non_neg_integer(),
    written_bytes := non_neg_integer(),
    dropped := non_neg_integer(),
    read := non_neg_integer(),
    applied := non_neg_integer(),
    known := non_neg_integer(),
    skipped := #{skipped() => non_neg_integer()},
    revocations := non_neg_integer(),
    node_folder := binary() | undefined,
    node_folder_error := binary() | undefined,
    node_folder_bytes := non_neg_integer(),
    log_bytes := non_neg_integer() | undefined,
    lag := non_neg_integer(),
    clock_ahead := integer(),
    replay := non_neg_integer() | undefined,
    keys := [binary()]
}.
%% How a scope's journal is.
%%
%% The log: where it is (`location'), whether other nodes share it, whether it works (`state'), for how many seconds (`since'),
%% what was wrong last (`last_error'), how many bytes it takes (`log_bytes', where the log tells), how far its clock is ahead in
%% milliseconds, and the names of the keys, the newest last.
%%
%% Written: records that wait (`queued'), that were written, in bytes, and sessions that were `dropped' because too many waited.
%% Read: records, sessions of these that were put into the scope (`applied'), that were there already (`known'), and records
%% left out (`skipped'), by reason; how old the last session of another node was when it came (`lag'), and how long reading took at
%% the start (`replay'), in milliseconds.
%%
%% Revocations: how many are remembered (`revocations'), how many of this node's are not in the log yet (`unwritten'), and how
%% many other nodes knew of that this node has not read (`missing'). While some are missing, `state' is `down' and no
%% session is read from the log; see {@link replay_anyway/1}. `node_folder' is where the node remembers revocations, `node_folder_error'
%% why it cannot.
%%
%% Numbers count from the scope's opening.

-type skipped() ::
    malformed | version | scope | log | layout | key | forged | future | expired | revoked | template | full.
%% Why a record was left out: it is no record; of another version of Rekindle; of another scope; of another log, or of another
%% stream of this one; its fields are not those of this node's ssl; its key is not known; it was changed, or sealed with another
%% key of that name; it comes from the future; it has expired; it is revoked; what it has in common with others is missing; or
%% there was no room for it.

-type label() ::
    {listener, tls | dtls, address() | {address(), [{netns | bind_to_device, term()}]}}
    | {shared, tls | dtls, Name :: term()}
    | upgraded
    | unnamed
    | client.
%% What a scope is called: by its listener, by the name that the operator gave to several; that of all sockets
%% upgraded with `ssl:handshake/2'; one whose listener cannot be told; or that of this node's client sessions.

-type address() :: {inet:ip_address(), inet:port_number()} | inet:returned_non_ip_address().

-type which() ::
    all
    | inet:port_number()
    | {inet:ip_address(), inet:port_number()}
    | {name, Name :: term()}
    | label()
    | info().
%% Which scopes are meant: all, those of a port or address, those the operator gave this name, the one of
%% this label, or one that {@link info/0} has shown.

-type no_such_scope() :: {no_such_scope, which(), Open :: [label()]}.
%% No scope is meant by this, and those are open.

-type bad_option() :: {bad_option, Line :: string()}.
%% `Line' names the option, its value and what is allowed.

-type session() :: #{
    scope := label(),
    id := binary() | (Other :: term()),
    age := non_neg_integer(),
    time_left := non_neg_integer(),
    age_at_last_use := non_neg_integer() | undefined,
    cipher := unicode:chardata() | undefined,
    peer := peer() | undefined
}.

-type peer() :: #{subject := binary(), issuer := binary(), serial := integer(), fingerprint := binary()}.
%% Names as openssl writes them, such as `<<"CN=device-17,O=Example">>'; the fingerprint is the SHA-256 one,
%% in hexadecimal with colons.

-type wanted() ::
    certificate()
    | Fingerprint :: binary()
    | string()
    | {issuer, Issuer :: certificate() | public_key:issuer_name()}
    | {issuer, Issuer :: certificate() | public_key:issuer_name(), Serial :: integer()}.
%% Which client certificates are meant; see {@link revoke/1}.

-type revoked() ::
    {ok, Dropped :: non_neg_integer()}
    | {pending, Dropped :: non_neg_integer(), #{label() | (Scope :: binary()) => Why :: binary()}}.
%% What came of a revocation, and how many sessions were dropped in this node. `ok': it holds, whatever happens to the
%% log. `pending': it holds in this node, but for these scopes it is not durable yet, two seconds after the call. It is
%% written as soon as the log can be reached; `unwritten' in {@link info/0} is 0 then. A scope that is not open any
%% more is named as its log names it.

-type certificate() :: public_key:der_encoded() | Pem :: binary() | string() | Record :: tuple().

-type crl() :: #{
    path := file:filename(),
    issuer := binary() | undefined,
    entries := non_neg_integer(),
    this_update := calendar:datetime() | undefined,
    next_update := calendar:datetime() | undefined,
    delta := boolean(),
    error := Line :: binary() | undefined
}.
%% A revocation list: the file it is in, who issued it, how many entries it has, when it was made and when there is to be
%% a newer one (UTC), and whether it has only what changed since another list. `error' says what is wrong with the file now:
%% the lists that were read from it before stay in force. The issuer is `undefined' if nothing was read from the file or folder.

-opaque next() :: {rekindle_nif:scope_number(), rekindle_nif:position()}.
%% Where the next page of sessions begins.

-type page() :: #{sessions := [session()], next := next() | done}.

-type limit() :: {max_bytes, pos_integer()} | {max_sessions, pos_integer() | infinity} | {lifetime, Seconds :: pos_integer()}.

%% @doc All scopes of this node, the first opened first. The list is empty where no listener and no
%% client uses the cache.
%%
%% `bytes' and `max_bytes' are in bytes, `lifetime' and `oldest' (the age of the oldest session) in seconds;
%% `templates' is how many kinds of sessions are kept in common parts, `certificates' how many client certificates
%% are kept; `certified' is how many sessions count as certified: the newest 8 of each certificate. `hit_rate' is the
%% part of lookups that found a session, from 0 to 1; the rest are numbers of sessions, or of calls since the scope
%% was opened. `evicted_misses' are the misses that asked for a session which was evicted not long ago: a larger
%% bound would have kept it. `lost_misses' asked for a session that went not long ago for another reason: it expired, or
%% somebody dropped it. `unknown_misses' asked for ids that the scope does not know: they are
%% of another listener or node, too old, or random, as clients with TLS 1.3 send them. `ended' are the misses that asked for a session which is there and must not be resumed
%% because of its client's certificate, `ended_by' the same by reason. `moved' is how many sessions and certificates were moved together to give pages back to
%% the system. `refused' is how many sessions were not stored, `refused_by' the same by reason.
%% `number' tells a scope from others, also of the same name. A client scope has no bounds of its own: ssl's
%% `session_cache_client_max' and `session_lifetime' bound it.
-spec info() -> [info()].
info() ->
    [with_hit_rate(Info) || Info <- rekindle_faults:with_uncounted(rekindle_nif:info())].

%% @doc The scopes meant.
-spec info(which()) -> [info()].
info(Which) ->
    [Info || Info <- info(), is_meant(Which, Info)].

%% @doc Prints what all scopes hold as a table, what happened in them and in their journals as others, and where
%% sessions were refused, why.
-spec print() -> ok.
print() ->
    Infos = info(),
    io:put_chars([rekindle_table:of_scopes(Infos), rekindle_table:of_journals(Infos)]).

%% @doc As `top(2)'.
-spec top() -> ok.
top() ->
    top(2).

%% @doc Prints all scopes every so many seconds, until Enter is pressed.
-spec top(Seconds :: pos_integer()) -> ok.
top(Seconds) when is_integer(Seconds), Seconds > 0 ->
    Printer = spawn_link(fun() -> print_every(1000 * Seconds) end),
    _ = io:get_line(""),
    unlink(Printer),
    exit(Printer, kill),
    ok.

print_every(Milliseconds) ->
    Infos = info(),
    io:put_chars(["\e[H\e[2J", rekindle_table:of_scopes(Infos), rekindle_table:of_journals(Infos), "Enter to end\n"]),
    timer:sleep(Milliseconds),
    print_every(Milliseconds).

%% @doc As `sessions(all)'.
-spec sessions() -> page() | {error, no_such_scope()}.
sessions() ->
    sessions(all).

%% @doc As `sessions(Which, #{})'.
-spec sessions(which()) -> page() | {error, no_such_scope()}.
sessions(Which) ->
    sessions(Which, #{}).

%% @doc A page of sessions, in no order that means anything. `limit' is how many at most, 50 if it is left
%% out; `from' is what the page before gave as `next'. A session that stays is on one page, whatever comes
%% and goes in between.
%%
%% Of a session, `id' is in hexadecimal; `age' and `time_left' are in seconds, `time_left' is 0 where its client's
%% certificate does not let it be resumed; `age_at_last_use' is how old it was
%% when it was last looked up, in seconds, or `undefined' if it never was; `peer' is the client's certificate.
-spec sessions(which(), #{limit => pos_integer(), from => next() | done}) -> page() | {error, no_such_scope()}.
sessions(Which, Options) ->
    Limit = maps:get(limit, Options, 50),
    case servers(Which) of
        [] when Which =/= all -> {error, no_such_scope(Which)};
        Scopes -> page(Scopes, maps:get(from, Options, first(Scopes)), Limit, [])
    end.

page(_, done, _, Sessions) ->
    #{sessions => lists:append(lists:reverse(Sessions)), next => done};
page(_, Next, Limit, Sessions) when Limit =< 0 ->
    #{sessions => lists:append(lists:reverse(Sessions)), next => Next};
page(Scopes, {Number, Position}, Limit, Sessions) ->
    case [Scope || #{number := N} = Scope <- Scopes, N >= Number] of
        [#{number := Number} = Scope | Later] ->
            case rekindle_nif:page(Number, Position, Limit) of
                {Rows, done} -> page(Scopes, first(Later), Limit - length(Rows), [shown(Scope, Rows) | Sessions]);
                {Rows, Next} -> page(Scopes, {Number, Next}, Limit - length(Rows), [shown(Scope, Rows) | Sessions]);
                undefined -> page(Scopes, first(Later), Limit, Sessions)
            end;
        %% The scope has ended since the page before.
        Later ->
            page(Scopes, first(Later), Limit, Sessions)
    end.

first([]) -> done;
first([#{number := Number} | _]) -> {Number, 0}.

shown(#{scope := Label, lifetime := Lifetime}, Rows) ->
    [
        #{
            scope => Label,
            id => shown_id(Key),
            age => AgeMs div 1000,
            %% An atom is more than any number.
            time_left => min(CertificateLeft, max(0, Lifetime - AgeMs div 1000)),
            age_at_last_use => seconds(LastUseMs),
            cipher => cipher(Suite),
            peer => rekindle_certificate:summary(Certificate)
        }
     || {Key, AgeMs, LastUseMs, Certificate, Suite, CertificateLeft} <- Rows
    ].

seconds(undefined) -> undefined;
seconds(Ms) -> Ms div 1000.

shown_id(Key) when is_binary(Key) -> binary:encode_hex(Key);
shown_id(Key) -> Key.

cipher(undefined) ->
    undefined;
cipher(Suite) ->
    try
        ssl:suite_to_str(ssl_cipher_format:suite_bin_to_map(Suite))
    catch
        _:_ -> ["0x", binary:encode_hex(Suite)]
    end.

%% @doc As `flush(all)'.
-spec flush() -> revoked() | {error, no_such_scope()}.
flush() ->
    flush(all).

%% @doc Drops all sessions of the scopes meant, and says how many. Their clients make a full handshake next
%% time. With a journal, those in it are dropped as well, on every node; the number is that of this node's. `all' also means the
%% scopes that are opened later in this node, as far as their sessions come from a log.
-spec flush(which()) -> revoked() | {error, no_such_scope()}.
flush(all) ->
    revoke_in(all, all);
flush(Which) ->
    case servers(Which) of
        [] -> {error, no_such_scope(Which)};
        Scopes -> revoke_in([Number || #{number := Number} <- Scopes], all)
    end.

%% @doc Drops the session of this id, as OTP has it or in hexadecimal, from all scopes and their journals, and says
%% how many there were in this node.
-spec forget(ssl:session_id() | Hexadecimal :: string() | binary()) ->
    revoked() | {error, {bad_session_id, Line :: string()}}.
forget(Id) ->
    case session_id(Id) of
        {ok, Key} ->
            revoke_in(all, {session, Key});
        error ->
            {error, {bad_session_id, "allowed: the 32 bytes of a session id as a binary, or their 64 hexadecimal digits"}}
    end.

session_id(Id) when byte_size(Id) =:= 32 ->
    {ok, Id};
session_id(Id) ->
    case rekindle_certificate:from_hex(Id) of
        {ok, Bytes} when byte_size(Bytes) =:= 32 -> {ok, Bytes};
        _ -> error
    end.

%% @doc Drops all sessions that were made with a client certificate, or with one of several, and says how many. Its
%% holder has to make a full handshake next time, in which the listener's revocation list or verify fun decides: so make that
%% know of the revocation first.
%%
%% The certificate is given as DER or PEM, as a record of public_key's, or by its fingerprint (SHA-256 or
%% SHA-1; as bytes, or in hexadecimal with or without colons). Or as `{issuer, Issuer, Serial}' or, for all
%% certificates of an authority, `{issuer, Issuer}', where `Issuer' is the authority's certificate or its name. Names
%% are compared whatever string type, case and spacing they are written in. A list of these is one call. If one of them is
%% wrong, nothing is dropped.
%%
%% With a journal, it holds for those in it as well, on every node, and for scopes that are opened later in this node; the
%% number is that of this node's. See {@type revoked()} for what the answer promises.
%%
%% Looks certificates up; only authorities take a walk over all certificates, one for all of them, in slices.
-spec revoke(wanted() | [wanted()]) -> revoked() | {error, {bad_certificate, Line :: string()}}.
revoke(Wanted) ->
    case rekindle_certificate:wanted(Wanted) of
        {ok, Certificates} -> revoke_in(all, {certificates, Certificates});
        {error, _} = Error -> Error
    end.

revoke_in(Scopes, What) ->
    case rekindle_nif:revoke(Scopes, What, rekindle_journal:node_folders()) of
        {Dropped, []} -> {ok, Dropped};
        {Dropped, Pending} -> {pending, Dropped, labelled(Pending)}
    end.

%% The native side knows scopes by their names in logs.
labelled(Pending) ->
    Labels = maps:from_list([{rekindle_journal:name(Label), Label} || #{scope := Label} <- servers(all)]),
    maps:from_list([{maps:get(Name, Labels, Name), Why} || {Name, Why} <- Pending]).

%% @doc Changes bounds or the lifetime of the scopes meant, at once, and says of how many. What is too much
%% then goes within seconds. The options in ssl's environment stay as they are: the next listener, and one
%% that joins a shared scope, brings those.
-spec set(which(), [limit()]) ->
    {ok, Scopes :: non_neg_integer()} | {error, no_such_scope() | bad_option()}.
set(Which, Limits) ->
    case rekindle_options:parse_limits(Limits) of
        {ok, New} ->
            in_scopes(Which, fun(#{number := Number} = Info) ->
                case rekindle_nif:set_limits(Number, rekindle_options:to_native(maps:merge(Info, New))) of
                    ok -> 1;
                    undefined -> 0
                end
            end);
        {error, _} = Error ->
            Error
    end.

%% @doc Reads the key files of all journals anew, and says which keys each scope has, the newest last. They are read
%% by themselves within a second of a change; this tells at once whether a new file is right.
-spec reload_keys() -> [{label(), {ok, Names :: [binary()]} | {error, Line :: binary()}}].
reload_keys() ->
    [
        {Label, rekindle_nif:reload_keys(Number)}
     || #{number := Number, scope := Label, journal := #{}} <- servers(all)
    ].

%% @doc Reads the logs of the scopes meant although revocations are missing in them, and says of how many. What was revoked
%% and is missing can be resumed then: only do so where no node that knows of the revocations will come back, and revoke again
%% what has to be. A scope whose journal is not down is left as it is.
-spec replay_anyway(which()) -> {ok, Scopes :: non_neg_integer()} | {error, no_such_scope()}.
replay_anyway(Which) ->
    in_scopes(Which, fun
        (#{number := Number, journal := #{state := down}}) ->
            case rekindle_nif:replay_anyway(Number) of
                ok -> 1;
                undefined -> 0
            end;
        (_) ->
            0
    end).

%% @doc The revocation lists that resumptions are checked against: those of the option `crls'. They are read again by
%% themselves within two seconds of a change.
-spec crls() -> [crl()].
crls() ->
    rekindle_crls:crls().

%% @doc Checks this node, prints what is wrong and what to write, and answers the same as a list. See
%% {@link rekindle_doctor:findings/0}.
-spec doctor() -> [rekindle_doctor:finding()].
doctor() ->
    Findings = rekindle_doctor:findings(),
    io:put_chars(rekindle_doctor:format(Findings)),
    Findings.

with_hit_rate(#{hits := 0, misses := 0} = Info) -> Info#{hit_rate => undefined};
with_hit_rate(#{hits := Hits, misses := Misses} = Info) -> Info#{hit_rate => Hits / (Hits + Misses)}.

servers(Which) ->
    [Info || #{role := server} = Info <- info(Which)].

in_scopes(Which, Do) ->
    case servers(Which) of
        [] when Which =/= all -> {error, no_such_scope(Which)};
        Scopes -> {ok, lists:sum([Do(Scope) || Scope <- Scopes])}
    end.

no_such_scope(Which) ->
    {no_such_scope, Which, [Label || #{scope := Label} <- servers(all)]}.

is_meant(all, _) -> true;
is_meant(#{number := Number}, #{number := Other}) -> Number =:= Other;
is_meant(Label, #{scope := Label}) -> true;
is_meant({name, Name}, #{scope := {shared, _, Other}}) -> Name =:= Other;
is_meant(Address, #{scope := {listener, Transport, {Other, Elsewhere}}}) when is_tuple(Other), is_list(Elsewhere) ->
    is_meant(Address, #{scope => {listener, Transport, Other}});
is_meant({_, _} = Address, #{scope := {listener, _, Other}}) -> Address =:= Other;
is_meant(Port, #{scope := {listener, _, {_, Other}}}) -> Port =:= Other;
is_meant(_, _) -> false.
