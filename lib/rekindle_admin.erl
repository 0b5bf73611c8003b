%% @doc The operator's functions: they show what the cache holds, drop sessions and change bounds. Call them from a remote
%% shell or a program.
%%
%% They work on the sessions of servers. {@link info/0} and {@link print/0} also show this node's sessions as a client. No function
%% changes these: OTP keeps its own list of them, and crashes if one is missing.
%%
%% {@link print/0} and {@link doctor/0} print text to the caller's group leader, also if they are called from another node or a
%% script. {@link report/0} returns the same text. Without the native library, these three functions and
%% {@link findings/0} say so, and all others fail with `{not_loaded, rekindle_nif}'.
%%
%% Nothing here shows a master secret.
-module(rekindle_admin).

-export([info/0, info/1, print/0, print/1, top/0, top/1]).
-export([sessions/0, sessions/1, sessions/2]).
-export([flush/0, flush/1, forget/1, revoke/1]).
-export([set/2]).
-export([reload_keys/0, replay_anyway/1, crls/0]).
-export([doctor/0, findings/0, report/0]).

-export_type([
    info/0,
    certificate_miss/0,
    refusal/0,
    journal/0,
    skipped/0,
    scope_name/0,
    which/0,
    session/0,
    peer/0,
    certificate_selector/0,
    revoked/0,
    page/0,
    next/0,
    limit/0
]).
-export_type([crl/0]).
-export_type([no_such_scope/0, bad_option/0]).

%% Characters per line of an ordinary terminal.
-define(WIDTH, 80).

%% With fewer, hardly any column fits beside the name of a scope.
-define(MIN_WIDTH, 20).

-type info() :: #{
    number := non_neg_integer(),
    scope := scope_name(),
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
    certificate_misses := non_neg_integer(),
    certificate_misses_by := #{certificate_miss() => non_neg_integer()},
    hit_rate := float() | undefined,
    expired := non_neg_integer(),
    evicted := non_neg_integer(),
    moved := non_neg_integer(),
    refused := non_neg_integer(),
    refused_by := #{refusal() => non_neg_integer()},
    faults := non_neg_integer(),
    journal := journal() | undefined
}.

-type certificate_miss() :: expired | revoked | unknown.
%% Why a stored session was not resumed: its client's certificate has expired (`expired') or is on a revocation list
%% (`revoked'); or the lists were not read yet, or the list of the certificate's issuer is too old (`unknown').

-type refusal() :: too_large | no_room | private_key | layout | lifetime | certificate.
%% Why a session was not stored. `too_large': its server name has more than 255 bytes, its client certificate more than
%% 64 KiB, or the rest more than 8 KiB. `no_room': the bound is too small for this session, evictions did not make enough
%% room in one insertion, or the system has no memory. `private_key': one of its fields could hold a private key. `layout':
%% Rekindle does not know the layout of the session record. `lifetime': it would have expired at once. `certificate': its client
%% certificate is not in the form that its authority gave it.

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
%% The state of a scope's journal. Counts begin when the scope is opened.
%%
%% The log: where it is (`location'), whether other nodes use it too (`shared'), whether it works (`state') and for how many
%% seconds (`since'), the last error (`last_error'), its size (`log_bytes', if it is known), how many milliseconds its clock is
%% ahead (`clock_ahead'), and the names of the keys, the newest last (`keys').
%%
%% Writing: records that wait (`queued'), records that were written (`written', `written_bytes'), and sessions that were not
%% written because too many waited (`dropped').
%%
%% Reading: records (`read'), sessions that were put into the scope (`applied') or were already there (`known'), and records that
%% were not used, by reason (`skipped'). `lag' is how old the last session of another node was when it was read, and `replay' how
%% long it took to read the log at the start, both in milliseconds.
%%
%% Revocations: how many this node remembers (`revocations'), how many of its own are not in the log yet (`unwritten'), and how
%% many other nodes knew and this node has not read (`missing'). While some are missing, `state' is `down' and no session is
%% read from the log; see {@link replay_anyway/1}. `node_folder' is where the node remembers revocations, `node_folder_error' why
%% it cannot use that folder, and `node_folder_bytes' how large they are there.

-type skipped() ::
    malformed | version | scope | log | layout | key | forged | future | expired | revoked | template | full | suite.
%% Why a record of the log was not used. `malformed': it is not a Rekindle record. `version': another version of Rekindle wrote
%% it. `scope', `log': it belongs to another scope; or to another log, or another stream of this one. `layout': its session has
%% other fields than those of this node's ssl. `key': this node does not have its key. `forged': it was changed, or sealed with
%% another key of the same name. `future': a clock is wrong. `expired', `revoked': the session must not be resumed. `template':
%% another record that it needs is missing. `full': there was no room for the session. `suite': the scope's listeners do not
%% allow the session's cipher suite, in their option `ciphers'.

-type scope_name() ::
    {listener, tls | dtls, address() | {address(), [{netns | bind_to_device, term()}]}}
    | {shared, tls | dtls, Name :: term()}
    | upgraded
    | unnamed
    | client.
%% The name of a scope: its listener's address; the name that the operator gave to several listeners (`shared'); `upgraded' for
%% all sockets upgraded with `ssl:handshake/2'; `unnamed' if OTP does not say which listener it is; or `client' for the
%% sessions that this node has as a client.

-type address() :: {inet:ip_address(), inet:port_number()} | inet:returned_non_ip_address().

-type which() ::
    all
    | inet:port_number()
    | {inet:ip_address(), inet:port_number()}
    | {name, Name :: term()}
    | scope_name()
    | (Text :: string() | binary())
    | info().
%% Selects scopes: all; those at a port or an address; those with a name that the operator gave; the one with this scope name, as
%% a term or as the text that {@link print/0} shows, such as `"tls 127.0.0.1:8883"'; or a map of {@link info/0}.

-type no_such_scope() :: {no_such_scope, which(), Open :: [scope_name()]}.
%% No open scope matches. `Open' are the names of the open ones.

-type bad_option() :: {bad_option, Line :: string()}.
%% `Line' names the option, its value and what is allowed.

-type session() :: #{
    scope := scope_name(),
    id := binary() | (Other :: term()),
    age := non_neg_integer(),
    time_left := non_neg_integer(),
    age_at_last_use := non_neg_integer() | undefined,
    cipher := unicode:chardata() | undefined,
    peer := peer() | undefined
}.

-type peer() :: #{subject := binary(), issuer := binary(), serial := integer() | undefined, fingerprint := binary()}.
%% Names as openssl writes them, such as `<<"CN=device-17,O=Example">>'; the fingerprint is the SHA-256 one,
%% in hexadecimal with colons. What cannot be read is `<<"unreadable">>', or `undefined' for the serial number.

-type certificate_selector() ::
    certificate()
    | (Fingerprint :: binary() | string())
    | {issuer, Issuer :: certificate() | public_key:issuer_name()}
    | {issuer, Issuer :: certificate() | public_key:issuer_name(), Serial :: integer()}.
%% Which client certificates are meant; see {@link revoke/1}.

-type revoked() ::
    {ok, Dropped :: non_neg_integer()}
    | {pending, Dropped :: non_neg_integer(), #{scope_name() | (Scope :: binary()) => Why :: binary()}}.
%% The result of a revocation, and how many sessions were dropped in this node. `ok': the revocation is durable. `pending': it
%% holds in this node, but two seconds after the call it is not durable yet in these scopes, or other nodes cannot read it in
%% their logs. Rekindle writes it as soon as the log can be reached; then `unwritten' in {@link info/0} is 0. Such a scope may have closed in the meantime. Its name is a binary
%% if it contains a term that cannot be read back from text, such as a process identifier. If the node folder could not be used
%% and no scope is known, there is `<<"node folder DIR">>' instead; if ssl has a wrong option of Rekindle, `<<"options">>'.

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

%% @doc All scopes of this node, in the order in which they were opened. The list is empty if no listener and no client uses
%% the cache.
%%
%% What a scope holds now: `sessions', client `certificates', `templates' (sets of fields that sessions have in common), and
%% `certified' sessions (the newest 8 of each client certificate). `bytes' is the memory that they take. `oldest' is the age of
%% the oldest session and `lifetime' how long a session may be resumed, both in seconds.
%%
%% The rest counts what has happened since the scope was opened. `hits' and `misses' are lookups; `hit_rate' is the share of hits,
%% from 0 to 1. The misses by reason are `evicted_misses' (for a session that was evicted not long ago, and that a larger bound
%% would have kept), `lost_misses' (for one that expired or was dropped not long ago), `certificate_misses' (for a stored session
%% that must not be resumed because of its client's certificate; `certificate_misses_by' has the reasons) and `unknown_misses'
%% (for ids that the scope does not know: ids of another listener or node, old ones, or the random ones of clients with TLS 1.3).
%% `inserts', `expired', `evicted' and `refused' are sessions that were stored, dropped or not stored; `refused_by' has the
%% reasons. `moved' counts sessions and certificates that were moved to give memory back to the system. `faults' are calls that
%% failed in the native library.
%%
%% `number' identifies a scope, even among scopes of the same name. A client scope has no bounds of its own: ssl's
%% `session_cache_client_max' and `session_lifetime' bound it.
-spec info() -> [info()].
info() ->
    rekindle_info:all().

%% @doc The selected scopes.
-spec info(which()) -> [info()].
info(Which) ->
    [Info || Info <- info(), is_meant(Which, Info)].

%% @doc Same as `print(#{})'.
-spec print() -> ok.
print() ->
    print(#{}).

%% @doc Prints what all scopes hold and what has happened in them and in their journals. No line has more characters than `width',
%% which is 80 by default and at least 20; with `infinity' each scope has one line in each table.
-spec print(#{width => pos_integer() | infinity}) -> ok.
print(Options) ->
    io:put_chars(tables(max(?MIN_WIDTH, maps:get(width, Options, ?WIDTH)))).

tables(Width) ->
    case rekindle_faults:library() of
        ok ->
            Infos = info(),
            [rekindle_table:of_scopes(Infos, Width), rekindle_table:of_journals(Infos, Width)];
        {error, Missing} ->
            rekindle_text:paragraphs([["There is nothing to show: ", rekindle_doctor:missing_library(Missing)]], Width)
    end.

%% @doc Same as `top(2)'.
-spec top() -> ok.
top() ->
    top(2).

%% @doc Prints the same as {@link print/0} again and again, `Seconds' apart, until someone presses Enter.
-spec top(Seconds :: pos_integer()) -> ok.
top(Seconds) when is_integer(Seconds), Seconds > 0 ->
    Printer = spawn_link(fun() -> print_every(1000 * Seconds) end),
    _ = io:get_line(""),
    unlink(Printer),
    exit(Printer, kill),
    ok.

print_every(Milliseconds) ->
    io:put_chars(["\e[H\e[2J", tables(?WIDTH), "Enter to end\n"]),
    timer:sleep(Milliseconds),
    print_every(Milliseconds).

%% @doc Same as `sessions(all)'.
-spec sessions() -> page() | {error, no_such_scope()}.
sessions() ->
    sessions(all).

%% @doc Same as `sessions(Which, #{})'.
-spec sessions(which()) -> page() | {error, no_such_scope()}.
sessions(Which) ->
    sessions(Which, #{}).

%% @doc A page of sessions, in no particular order. `limit' is the most sessions of a page, by default 50. `from' is the `next' of
%% the page before. A session that stays stored while you read the pages is on exactly one of them.
%%
%% `id' is in hexadecimal. `age', `time_left' and `age_at_last_use' are in seconds. `time_left' is 0 if the client's certificate
%% does not let the session be resumed. `age_at_last_use' is how old the session was when it was last looked up, or `undefined'
%% if it was never looked up. `peer' is the client's certificate.
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

shown(#{scope := Scope, lifetime := Lifetime}, Rows) ->
    [
        #{
            scope => Scope,
            id => shown_id(Key),
            age => AgeMs div 1000,
            %% Without a certificate this is the atom `undefined', which compares as larger than any number.
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

%% @doc Same as `flush(all)'.
-spec flush() -> revoked() | {error, no_such_scope()}.
flush() ->
    flush(all).

%% @doc Drops all sessions of the selected scopes, and returns how many were dropped in this node. Their clients make a full
%% handshake next time. If a scope has a journal, the sessions in the journal are dropped as well, on every node. With `all', this
%% also holds for scopes that are opened later in this node: they read none of the old sessions from a log.
-spec flush(which()) -> revoked() | {error, no_such_scope()}.
flush(all) ->
    revoke_in(all, all);
flush(Which) ->
    case servers(Which) of
        [] -> {error, no_such_scope(Which)};
        Scopes -> revoke_in([Number || #{number := Number} <- Scopes], all)
    end.

%% @doc Drops the session with this id from all scopes and their journals, and returns how many were dropped in this node. The
%% id is a binary of 32 bytes, or hexadecimal digits.
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

%% @doc Drops all sessions that were made with a client certificate, or with one of several, and returns how many were dropped
%% in this node. The client has to make a full handshake next time, in which the listener's revocation list or verify fun decides.
%% So first make the listener refuse the certificate.
%%
%% Select a certificate by DER or PEM, or by a record of `public_key'; each stands for the issuer and the serial number in it.
%% `{issuer, Issuer, Serial}' selects one by its issuer and serial number, and `{issuer, Issuer}' all certificates of an
%% authority. `Issuer' is the authority's certificate or its name; names match in any string type, letter case and spacing. A
%% list selects several in one call. If one selector is wrong, nothing is dropped.
%%
%% A fingerprint (SHA-256 or SHA-1; as bytes, or in hexadecimal with or without colons) is less safe. If the authority signs with
%% ECDSA, the client can write the signature of its certificate in a second form, which is as valid and gives the certificate
%% another fingerprint.
%%
%% With a journal, the revocation also holds for the journal's sessions, on every node, and for scopes that are opened later in
%% this node. {@type revoked()} says what the answer promises.
%%
%% The function looks certificates up. Only to revoke authorities does it read all certificates, once and in small steps.
-spec revoke(certificate_selector() | [certificate_selector()]) -> revoked() | {error, {bad_certificate, Line :: string()}}.
revoke(Selectors) ->
    case rekindle_certificate:selectors(Selectors) of
        {ok, Certificates} -> revoke_in(all, {certificates, Certificates});
        {error, _} = Error -> Error
    end.

revoke_in(Scopes, What) ->
    {Dropped, NotDurable} = rekindle_nif:revoke(Scopes, What, rekindle_journal:node_folders()),
    case [{rekindle_scope:of_log_name(Scope), Why} || {Scope, Why} <- NotDurable] ++ not_remembered(Scopes) of
        [] -> {ok, Dropped};
        Pending -> {pending, Dropped, maps:from_list(Pending)}
    end.

%% With wrong options, no listener can open, and nobody knows where to remember a revocation for later.
not_remembered(all) ->
    case rekindle_options:configured() of
        {ok, _, _} ->
            [];
        {error, {bad_option, Line}} ->
            [{<<"options">>, unicode:characters_to_binary([Line, ". Correct this, and revoke again."])}]
    end;
not_remembered(_) ->
    [].

%% @doc Changes bounds or the lifetime of the selected scopes, and returns how many scopes it changed. Sessions that no longer
%% fit are evicted within seconds. ssl's environment does not change: a listener that is opened later has the bounds that are
%% there and, if it joins a shared scope, gives them to that scope.
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

%% @doc Reads the key files of all journals again, and returns the names of each scope's keys, the newest last. Rekindle does
%% that by itself within a second of a change; this function shows at once whether a new file is correct. If other nodes have
%% taken a key out of use, they are asked whether that is still so: it is forgotten if none says so within 75 seconds.
-spec reload_keys() -> [{scope_name(), {ok, Names :: [binary()]} | {error, Line :: binary()}}].
reload_keys() ->
    [
        {Scope, rekindle_nif:reload_keys(Number)}
     || #{number := Number, scope := Scope, journal := #{}} <- servers(all)
    ].

%% @doc Reads the logs of the selected scopes although revocations are missing in them, or may be in records that do not open,
%% and returns how many scopes that concerns. Sessions that a missing revocation covers can then be resumed. So call it only if no
%% node that knows the revocations will come back, and first revoke again what has to be revoked. It does nothing to a scope whose
%% journal is not `down'.
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

%% @doc The revocation lists of the option `crls'. Resumptions are checked against them. Rekindle reads them again within two
%% seconds of a change.
-spec crls() -> [crl()].
crls() ->
    rekindle_crls:crls().

%% @doc Checks this node, and prints what is wrong, why it matters and which setting fixes it. See {@link findings/0}.
-spec doctor() -> ok.
doctor() ->
    io:put_chars(diagnosis()).

diagnosis() ->
    rekindle_doctor:format(findings(), ?WIDTH).

%% @doc The findings that {@link doctor/0} prints, as a list, the worst first. It is empty if nothing is wrong.
%%
%% An `error' prevents resumptions, or weakens revocations. A `warning' prevents some resumptions, now or later. A `note' explains
%% a surprise.
%%
%% The application `rekindle' logs the errors and warnings when it starts. If you do not start it, and the key that this
%% release of ssl reads is missing or misspelt, ssl does not call Rekindle, and only this function shows it. If another key is
%% missing, Rekindle logs that when it opens a cache.
-spec findings() -> [{error | warning | note, Line :: binary()}].
findings() ->
    rekindle_doctor:findings().

%% @doc The text of {@link print/0} and {@link doctor/0}, as UTF-8, for a program or a bug report.
-spec report() -> binary().
report() ->
    unicode:characters_to_binary([tables(?WIDTH), $\n, diagnosis()]).

servers(Which) ->
    [Info || #{role := server} = Info <- info(Which)].

in_scopes(Which, Do) ->
    case servers(Which) of
        [] when Which =/= all -> {error, no_such_scope(Which)};
        Scopes -> {ok, lists:sum([Do(Scope) || Scope <- Scopes])}
    end.

no_such_scope(Which) ->
    {no_such_scope, Which, [Scope || #{scope := Scope} <- servers(all)]}.

is_meant(all, _) ->
    true;
is_meant(#{number := Number}, #{number := Other}) ->
    Number =:= Other;
is_meant(Scope, #{scope := Scope}) ->
    true;
is_meant(Text, #{scope := Scope}) when is_list(Text); is_binary(Text) -> is_text(Text, rekindle_scope:text(Scope));
is_meant({name, Name}, #{scope := {shared, _, Other}}) ->
    Name =:= Other;
is_meant(Address, #{scope := {listener, Transport, {Other, Elsewhere}}}) when is_tuple(Other), is_list(Elsewhere) ->
    is_meant(Address, #{scope => {listener, Transport, Other}});
is_meant({_, _} = Address, #{scope := {listener, _, Other}}) ->
    Address =:= Other;
is_meant(Port, #{scope := {listener, _, {_, Other}}}) ->
    Port =:= Other;
is_meant(_, _) ->
    false.

is_text(Text, Name) ->
    try
        unicode:characters_to_binary(Text) =:= unicode:characters_to_binary(Name)
    catch
        error:badarg -> false
    end.
