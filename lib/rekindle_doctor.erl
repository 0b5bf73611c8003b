%% @private Finds what is wrong with Rekindle's setup in this node, why it matters, and which setting fixes it. See
%% {@link rekindle_admin:findings/0}.
%%
%% The doctor does not disturb OTP's processes. It looks at the sockets that cache processes monitor and at their process
%% dictionaries, and asks listeners only for the options that they were opened with.
-module(rekindle_doctor).

-export([findings/0, outdated_suites/1, opened/1, format/2, log/1, missing_library/1]).

-export_type([finding/0]).

-include("rekindle_log.hrl").
-include_lib("kernel/include/file.hrl").

-type finding() :: {error | warning | note, Line :: unicode:chardata()}.
%% An `error' prevents resumptions, or weakens revocations. A `warning' prevents some resumptions, now or later. A `note' explains
%% a surprise.

%% How long a listener's process may take to answer.
-define(WAIT_MS, 1000).

-define(TLS_1_3, {3, 4}).

%% OTP's supervisors of cache processes.
-define(CACHES, [ssl_server_session_cache_sup, dtls_server_session_cache_sup]).

%% @doc The findings, the worst first. The list is empty if nothing is wrong.
-spec findings() -> [{error | warning | note, Line :: binary()}].
findings() ->
    [
        {Level, unicode:characters_to_binary(Line)}
     || Level <- [error, warning, note], {L, Line} <- found(rekindle_faults:library(), modules_that_do_not_load()), L =:= Level
    ].

found({error, Missing}, _) ->
    [{error, missing_library(Missing)} | environment()];
found(ok, [_ | _] = Modules) ->
    %% They may be those that the rest of this needs.
    [{error, modules_do_not_load(Modules)}];
found(ok, []) ->
    environment() ++
        case whereis(ssl_sup) of
            undefined -> ssl_is_not_started();
            _ -> findings_of_running_ssl(rekindle_info:all())
        end.

findings_of_running_ssl(Infos) ->
    Servers = [Info || #{role := server} = Info <- Infos],
    Clients = Infos -- Servers,
    late_start(Clients) ++ bounds_of_no_scope(Servers) ++ rights(Servers) ++ listeners(Servers) ++ rekindle_crls:findings() ++
        scopes(Servers).

%% @doc The findings about sessions of the scope with this name in its log whose cipher suites a listener does not allow.
-spec outdated_suites(LogName :: binary()) -> [finding()].
outdated_suites(LogName) ->
    Infos = [Info || #{scope := Scope} = Info <- rekindle_info:all(), rekindle_scope:log_name(Scope) =:= LogName],
    BySocket = by_socket(Infos),
    lists:append([
        rekindle_trust:suites(rekindle_scope:text_of_socket(Socket), Options, scopes_of(Socket, BySocket))
     || {Socket, Options} <- opened(fun(Socket) -> scopes_of(Socket, BySocket) =/= [] end)
    ]).

%% @doc The findings as lines of this width at most.
-spec format([finding()], rekindle_text:width()) -> unicode:chardata().
format([], _) ->
    "Nothing wrong found.\n";
format(Findings, Width) ->
    rekindle_text:paragraphs([[atom_to_list(Level), ": ", Line] || {Level, Line} <- Findings], Width).

%% @doc Logs the errors and warnings among the findings, one line each.
-spec log([finding()]) -> ok.
log(Findings) ->
    lists:foreach(
        fun(Line) -> ?LOG_LINE(warning, finding, "rekindle: ~ts", [Line]) end,
        [Line || {Level, Line} <- Findings, Level =/= note]
    ).

%% ---- the installation ----

%% @doc Says why the native library is missing, and what to do.
-spec missing_library({file:filename(), string()}) -> unicode:chardata().
missing_library({File, Reason}) ->
    io_lib:format(
        "the native library ~ts cannot be loaded: ~ts. Without it, ssl does not start and no listener opens with Rekindle. "
        "Build it on this system with this OTP release (rebar3 compile), or install a package that was made for them.",
        [File, Reason]
    ).

%% An OTP release loads modules that were compiled by it or by one of the two releases before it, and perhaps some older ones.
%% Without this check, a module that does not load is noticed only when something calls it.
modules_that_do_not_load() ->
    [{Module, Reason} || Module <- modules(), {error, Reason} <- [code:ensure_loaded(Module)]].

%% From the file, because the application need not be loaded.
modules() ->
    case file:consult(code:where_is_file("rekindle.app")) of
        {ok, [{application, rekindle, Keys}]} -> proplists:get_value(modules, Keys, []);
        {error, _} -> []
    end.

modules_do_not_load(Modules) ->
    io_lib:format(
        "OTP ~s cannot load these modules of Rekindle: ~ts. Functions that need them fail. Build Rekindle with this OTP "
        "release, or install a package that was made for it.",
        [release(), lists:join(", ", [io_lib:format("~s (~0tp)", [Module, Reason]) || {Module, Reason} <- Modules])]
    ).

ssl_is_not_started() ->
    [
        {error,
            "ssl is not started in this node, so no listener uses Rekindle. If it should have started, the log says why it did "
            "not. Otherwise name ssl in the applications of your .app file, or call application:ensure_all_started(ssl)."}
    ].

%% ---- ssl's environment ----

environment() ->
    keys(rekindle_options:missing_keys()) ++ misspelt_keys() ++ options() ++ misplaced_options() ++ zero_max().

keys([]) ->
    [];
keys(Missing) ->
    {ServerKey, ClientKey} = keys_in_force(),
    {Level, Format, Args} =
        case {lists:member(ServerKey, Missing), lists:member(ClientKey, Missing)} of
            {true, _} ->
                {error, "OTP ~s reads ~s, which is not set to rekindle, so no listener uses Rekindle.", [release(), ServerKey]};
            {false, true} ->
                {warning,
                    "OTP ~s reads ~s for clients, which is not set to rekindle, so this node's clients do not use Rekindle.", [
                        release(), ClientKey
                    ]};
            {false, false} ->
                {warning, "this node works, but other OTP releases read other keys than OTP ~s, and would not use Rekindle.", [
                    release()
                ]}
        end,
    Keys = lists:join(", ", [io_lib:format("{~s, rekindle}", [Key]) || Key <- Missing]),
    [{Level, [io_lib:format(Format, Args), " In sys.config, write {ssl, [", Keys, "]}."]}].

release() ->
    erlang:system_info(otp_release).

%% The keys that ssl reads for servers and for clients. The code of the releases that read the new keys contains their names.
keys_in_force() ->
    Reads =
        try beam_lib:chunks(code:which(ssl_config), [atoms]) of
            {ok, {_, [{atoms, Atoms}]}} -> [Atom || {_, Atom} <- Atoms];
            _ -> []
        catch
            _:_ -> []
        end,
    case lists:member(server_session_cb, Reads) of
        true -> {server_session_cb, client_session_cb};
        false -> {session_cb, session_cb}
    end.

misspelt_keys() ->
    [
        {warning, io_lib:format("ssl's environment has the key ~s, which nothing reads. Did you mean ~s?", [Key, Meant])}
     || {Key, Meant} <- rekindle_options:misspelt_keys()
    ].

options() ->
    Key = rekindle_options:args_key(),
    case rekindle_options:configured() of
        {ok, _, []} ->
            [];
        {ok, _, Foreign} ->
            [
                {warning,
                    io_lib:format(
                        "ssl's ~s has options that Rekindle does not know and ignores: ~ts. Correct them, or take them out.",
                        [Key, lists:join(", ", rekindle_options:unknown(Foreign))]
                    )}
            ];
        {error, {bad_option, "rekindle: " ++ Line}} ->
            [{error, io_lib:format("~ts. No listener opens until this is corrected in ssl's ~s.", [Line, Key])}]
    end.

misplaced_options() ->
    Options = [Option || {Option, _, _} <- rekindle_options:schema()],
    [
        {warning,
            io_lib:format(
                "the option ~s is in the environment of ~s, where nothing reads it. Move it into ssl's session_cb_init_args: "
                "{ssl, [{session_cb_init_args, [{~s, ...}]}]}.",
                [Option, App, Option]
            )}
     || App <- [rekindle, ssl], {Option, _} <- application:get_all_env(App), lists:member(Option, Options)
    ].

zero_max() ->
    case application:get_env(ssl, session_cache_server_max) of
        {ok, 0} ->
            [
                {error,
                    "ssl's session_cache_server_max is 0, so no listener opens. Remove it. To turn resumption off, give listeners "
                    "{reuse_sessions, false}."}
            ];
        _ ->
            []
    end.

%% ssl opens the client's cache when it starts. Without a scope, the cache may still be Rekindle's: it may get its store later.
late_start(Clients) ->
    Manager = whereis(ssl_manager),
    case rekindle_options:missing_keys() of
        [] when is_pid(Manager), Clients =:= [] ->
            [
                {warning,
                    "ssl started before its keys were set, so this node's client sessions are in OTP's own cache, and so are "
                    "those of listeners that were opened by then. Set the keys before ssl starts: in sys.config, or on the "
                    "command line (-ssl session_cb rekindle server_session_cb rekindle client_session_cb rekindle), but not in "
                    "a file that is read later, such as RabbitMQ's advanced.config."}
             || rekindle_otp:cache_of(Manager) =:= none
            ];
        _ ->
            []
    end.

%% ---- listeners ----

listeners(Servers) ->
    Opened = opened(fun(_) -> true end),
    BySocket = by_socket(Servers),
    lists:append([without_rekindle(Sup, BySocket) || Sup <- ?CACHES]) ++ upgraded_sockets(Servers) ++
        lists:append([listener(Socket, Options, BySocket) || {Socket, Options} <- Opened]) ++ never_used(Opened, BySocket).

%% @doc The wanted ones among the sockets of the listeners, and their options.
-spec opened(fun((rekindle_scope:listen_socket()) -> boolean())) -> [{rekindle_scope:listen_socket(), map()}].
opened(IsWanted) ->
    [
        {Socket, Options}
     || Tracker <- children(ssl_listen_tracker_sup),
        Socket <- rekindle_scope:listen_sockets(Tracker),
        IsWanted(Socket),
        Options <- ssl_options(Tracker)
    ] ++
        [
            {Socket, Options}
         || Demultiplexer <- children(dtls_listener_sup),
            Socket <- linked(Demultiplexer),
            IsWanted(Socket),
            Options <- dtls_options(Demultiplexer)
        ].

without_rekindle(Sup, BySocket) ->
    [
        {error, [rekindle_scope:text_of_socket(Socket), Why]}
     || Cache <- children(Sup),
        Socket <- rekindle_scope:listen_sockets(Cache),
        scopes_of(Socket, BySocket) =:= [],
        Why <- why_without_rekindle(rekindle_otp:cache_of(Cache))
    ].

why_without_rekindle(none) ->
    [" does not use Rekindle, because it was opened while ssl had another session_cb. Open it again, with the keys set."];
why_without_rekindle(without_store) ->
    [
        " keeps no sessions, because its cache process could not use Rekindle's library or options when OTP started it. The log "
        "says why. Repair that, and open the listener again."
    ];
%% It gets its store with the first session.
why_without_rekindle(with_store) ->
    [].

%% OTP has one process for all of them.
upgraded_sockets(Servers) ->
    Cache = whereis(ssl_unknown_listener),
    [
        {error,
            "sockets that are upgraded with ssl:handshake/2 do not use Rekindle, because the first one came while ssl had "
            "another session_cb. Start ssl again, with the keys set."}
     || is_pid(Cache), [] =:= [Info || #{scope := upgraded} = Info <- Servers], rekindle_otp:cache_of(Cache) =:= none
    ].

children(Sup) ->
    try
        [Pid || {_, Pid, _, _} <- supervisor:which_children(Sup), is_pid(Pid)]
    catch
        exit:_ -> []
    end.

linked(Pid) ->
    case process_info(Pid, links) of
        {links, Links} -> [Port || Port <- Links, is_port(Port)];
        undefined -> []
    end.

%% The options of a DTLS listener, in a list of one at most. The process is asked for them, because its state holds all clients
%% and would be large to copy. A process that does not know this call would crash, so the function is looked for first.
dtls_options(Demultiplexer) ->
    try
        erlang:function_exported(dtls_packet_demux, get_all_opts, 1) andalso
            gen_server:call(Demultiplexer, get_all_opts, ?WAIT_MS)
    of
        {ok, _, #{versions := _} = Options} -> [Options];
        _ -> []
    catch
        _:_ -> []
    end.

%% The options in the tracker's state, wherever they are: its layout differs between releases. A list of one at most.
ssl_options(Tracker) ->
    try sys:get_state(Tracker, ?WAIT_MS) of
        State when is_tuple(State) ->
            lists:sublist([Field || #{versions := _} = Field <- tuple_to_list(State)], 1);
        _ ->
            []
    catch
        _:_ -> []
    end.

listener(Socket, Options, BySocket) ->
    Name = rekindle_scope:text_of_socket(Socket),
    resumption(Name, Options) ++ rekindle_trust:findings(Name, Options, scopes_of(Socket, BySocket)).

resumption(Name, #{versions := Versions} = Options) ->
    case {lists:all(fun is_tls_1_3/1, Versions), Options} of
        {true, #{session_tickets := Tickets}} when Tickets =/= disabled ->
            [];
        {true, _} ->
            [
                {note, [
                    Name,
                    " speaks TLS 1.3 only, which resumes by tickets and needs no session cache. To let clients resume, write "
                    "{session_tickets, stateless} in its options."
                ]}
            ];
        {false, #{reuse_sessions := false}} ->
            [
                {warning, [
                    Name,
                    " has {reuse_sessions, false} and resumes nothing before TLS 1.3. Write {reuse_sessions, true} in its "
                    "options. (From OTP 29 on, false is the default for listeners with {verify, verify_peer}.)"
                ]}
            ];
        {false, _} ->
            []
    end.

is_tls_1_3(Version) ->
    Version =:= ?TLS_1_3 orelse Version =:= 'tlsv1.3'.

%% Listeners for TLS 1.3 and earlier versions that have open connections, and no session was ever stored or looked up.
never_used(Opened, BySocket) ->
    Candidates = [
        Socket
     || {Socket, #{versions := Versions} = Options} <- Opened,
        lists:any(fun is_tls_1_3/1, Versions),
        not lists:all(fun is_tls_1_3/1, Versions),
        maps:get(session_tickets, Options, disabled) =:= disabled,
        maps:get(reuse_sessions, Options, true) =/= false,
        [#{inserts := 0, hits := 0, misses := 0} | _] <- [scopes_of(Socket, BySocket)]
    ],
    Counts = open_connections(Candidates),
    [
        {note,
            io_lib:format(
                "~ts has open connections (~b), and none of its clients has made or offered a session yet. They probably speak "
                "TLS 1.3, which resumes by tickets and needs no session cache. To let them resume, write {session_tickets, "
                "stateless} in its options.",
                [rekindle_scope:text_of_socket(Socket), Count]
            )}
     || Socket <- Candidates, {ok, {_, Port}} <- [rekindle_scope:sockname(Socket)], #{Port := Count} <- [Counts]
    ].

%% How many connections are open, by local port.
open_connections([]) ->
    #{};
open_connections(_) ->
    lists:foldl(
        fun(Port, Counts) -> maps:update_with(Port, fun(Count) -> Count + 1 end, 1, Counts) end,
        #{},
        [
            Port
         || Socket <- erlang:ports(),
            erlang:port_info(Socket, name) =:= {name, "tcp_inet"},
            {ok, _} <- [inet:peername(Socket)],
            {ok, {_, Port}} <- [inet:sockname(Socket)]
        ]
    ).

scopes_of(Socket, BySocket) ->
    maps:get(rekindle_scope:socket_name(Socket), BySocket, []).

%% The scopes of each listen socket, in their order.
by_socket(Infos) ->
    Pairs = [{Socket, Info} || #{scope := Scope} = Info <- Infos, Socket <- rekindle_nif:sockets(Scope)],
    lists:foldr(fun({Socket, Info}, Index) -> Index#{Socket => [Info | maps:get(Socket, Index, [])]} end, #{}, Pairs).

%% ---- scopes ----

%% The same finding in several scopes is one line.
scopes(Servers) ->
    Found = [{Finding, rekindle_scope:text(Scope)} || #{scope := Scope} = Info <- Servers, Finding <- scope(Info)],
    Names = fun(Finding) -> named([Name || {Same, Name} <- Found, Same =:= Finding]) end,
    [{Level, [Names(Finding), ": ", Line]} || {Level, Line} = Finding <- unique([Finding || {Finding, _} <- Found])].

unique([]) -> [];
unique([First | Rest]) -> [First | unique([Other || Other <- Rest, Other =/= First])].

named([First, Second, Third, _ | Rest]) -> io_lib:format("~ts, ~ts, ~ts and ~b more", [First, Second, Third, 1 + length(Rest)]);
named(Names) -> lists:join(", ", Names).

scope(Info) ->
    [
        {Level, lists:flatten(Line)}
     || {Level, Line} <- faults(Info) ++ bounds(Info) ++ churn(Info) ++ unused(Info) ++ journal(Info)
    ].

faults(#{faults := 0}) ->
    [];
faults(#{faults := Faults}) ->
    [
        {error,
            io_lib:format(
                "~b calls failed in the native library, and their clients had to make full handshakes. The log has the reason. If "
                "somebody unloaded the module rekindle_nif, open the listener again; otherwise please report it.",
                [Faults]
            )}
    ].

%% Below these, hardly any session can be resumed. The bytes have room for less than three hundred sessions.
-define(MIN_BYTES, 64 * 1024).
-define(MIN_SESSIONS, 10).
-define(MIN_LIFETIME_SECONDS, 60).

bounds(Info) ->
    lists:append([bound(maps:with([Bound], Info)) || Bound <- [max_bytes, max_sessions, lifetime]]).

bound(#{max_bytes := MaxBytes}) when MaxBytes < ?MIN_BYTES ->
    [
        {error,
            io_lib:format(
                "max_bytes is ~b, which has room for hardly any session: the index, tables and first pages of a scope take up to "
                "40 KiB. Write {max_bytes, 67108864}, which is the default (64 MiB), or leave it out.",
                [MaxBytes]
            )}
    ];
bound(#{max_bytes := MaxBytes}) when is_integer(MaxBytes) ->
    [
        {warning,
            io_lib:format(
                "max_bytes is ~b (~s), and this machine has ~s of memory: the system may end the node before the bound is "
                "reached. Write a smaller max_bytes, for example {max_bytes, ~b}.",
                [MaxBytes, rekindle_text:bytes(MaxBytes), rekindle_text:bytes(Memory), Memory div 4]
            )}
     || Memory <- memory_bytes(), MaxBytes > Memory
    ];
bound(#{max_sessions := MaxSessions}) when MaxSessions < ?MIN_SESSIONS ->
    [
        {warning,
            io_lib:format(
                "max_sessions is ~b: the sessions of all other clients are dropped. Write a larger one, or {max_sessions, "
                "infinity} to let max_bytes alone bound them.",
                [MaxSessions]
            )}
    ];
bound(#{lifetime := Lifetime}) when Lifetime =< 0 ->
    [
        {error,
            "no session is kept, because ssl's session_lifetime is 0. Take it out of ssl's environment, or write "
            "{session_lifetime, 86400}, and open the listener again."}
    ];
bound(#{lifetime := Lifetime}) when Lifetime < ?MIN_LIFETIME_SECONDS ->
    [
        {warning,
            io_lib:format(
                "sessions expire after ~b s: clients that come back later make full handshakes. Write a longer lifetime in "
                "seconds, for example {lifetime, 86400}.",
                [Lifetime]
            )}
    ];
bound(_) ->
    [].

%% Checks the configured bounds if no listener is open.
bounds_of_no_scope([]) ->
    case rekindle_options:configured() of
        {ok, Options, _} -> bounds(rekindle_options:limits(Options));
        {error, _} -> []
    end;
bounds_of_no_scope(_) ->
    [].

%% Empty if the system does not tell.
memory_bytes() ->
    case file:read_file("/proc/meminfo") of
        {ok, Text} ->
            case re:run(Text, "^MemTotal: *([0-9]+) kB", [{capture, all_but_first, list}]) of
                {match, [KiB]} -> [1024 * list_to_integer(KiB)];
                nomatch -> []
            end;
        {error, _} ->
            []
    end.

%% With fewer insertions, the ratios mean nothing.
-define(MANY, 1000).

%% A larger bound helps only if clients ask for evicted sessions. The store remembers about as many evicted sessions as it has room
%% for, so with a bound that is far too small these lookups count as unknown.
churn(#{evicted := Evicted, sessions := Sessions} = Info) ->
    case stored(Info) of
        Stored when Stored >= ?MANY, 20 * Evicted >= Stored, Sessions > 0 -> churn(100 * Evicted div Stored, Info);
        _ -> []
    end.

%% Sessions of a journal are evicted, too.
stored(#{inserts := Inserts, journal := #{applied := Applied}}) -> Inserts + Applied;
stored(#{inserts := Inserts}) -> Inserts.

churn(Percent, #{hits := Hits, misses := Misses} = Info) ->
    #{evicted_misses := Asked, unknown_misses := Unknown} = Info,
    Lookups = Hits + Misses,
    Raise = bound_in_force(Info),
    Dropped = io_lib:format("~b % of the sessions that were stored were dropped to make room", [Percent]),
    if
        Lookups > 0, 20 * Asked >= Lookups ->
            Asking = io_lib:format(", and clients asked for ~b of them and had to make full handshakes. Raise ~ts.", [
                Asked, Raise
            ]),
            [{warning, [Dropped, Asking]}];
        Lookups > 0, 20 * Unknown >= Lookups ->
            [
                {warning, [
                    Dropped,
                    io_lib:format(
                        ", and ~b lookups asked for ids that are not known: those of sessions that were dropped longer ago, or "
                        "random ones of clients that can do TLS 1.3. Raise ~ts. If such lookups do not become fewer, the larger "
                        "bound is of no use.",
                        [Unknown, Raise]
                    )
                ]}
            ];
        true ->
            [
                {note, [Dropped, ", but hardly any client asked for one of them. A larger bound would save few handshakes."]}
             || unused(Info) =:= []
            ]
    end.

bound_in_force(#{max_sessions := MaxSessions, sessions := Sessions}) when
    is_integer(MaxSessions), Sessions >= MaxSessions - MaxSessions div 50
->
    io_lib:format("max_sessions, which is ~b, for example to {max_sessions, ~b}", [MaxSessions, 2 * MaxSessions]);
bound_in_force(#{max_bytes := MaxBytes, bytes := Bytes, sessions := Sessions}) ->
    io_lib:format("max_bytes, which is ~b (~ts), for example to {max_bytes, ~b}; a session takes ~b bytes here", [
        MaxBytes, rekindle_text:bytes(MaxBytes), 2 * MaxBytes, Bytes div Sessions
    ]).

unused(#{inserts := Inserts, hits := Hits, misses := Misses}) when
    Inserts >= ?MANY, 100 * Hits < Inserts, 10 * Misses < Inserts
->
    [
        {note,
            "hardly any session is resumed, because hardly any client offers one. Clients in Java with its defaults do not; those "
            "in Python and with many other libraries only if the program hands the session on."}
    ];
unused(#{inserts := Inserts, hits := Hits, misses := Misses, unknown_misses := Unknown}) when
    Inserts >= ?MANY, 100 * Hits < Inserts, 2 * Unknown >= Misses
->
    [
        {note,
            io_lib:format(
                "hardly any session is resumed. ~b lookups asked for ids that this scope does not know. Such clients made their "
                "session at another listener or node, or they send random ids, as clients in Go and those that can do TLS 1.3 do.",
                [Unknown]
            )}
    ];
unused(#{inserts := Inserts, hits := Hits} = Info) when Inserts >= ?MANY, 100 * Hits < Inserts ->
    #{evicted_misses := Evicted, lost_misses := Lost, certificate_misses := Certificate} = Info,
    [
        {note,
            io_lib:format(
                "hardly any session is resumed, although clients offer them: ~b had been evicted, ~b had expired or been dropped, "
                "and the certificates of ~b did not let them be resumed (rekindle_admin:info() says why in certificate_misses_by).",
                [Evicted, Lost, Certificate]
            )}
    ];
unused(_) ->
    [].

%% ---- who can write ----

%% An open journal checks its folders and keys itself.
rights(Servers) ->
    case rekindle_options:configured() of
        {ok, #{crls := Lists} = Options, _} ->
            Own =
                case [Journal || #{journal := #{} = Journal} <- Servers] of
                    [] -> folders(Options);
                    _ -> []
                end,
            [Finding || Path <- Own, Finding <- rights(Path, 8#022, "could change which sessions are resumed", "700")] ++
                [
                    Finding
                 || Path <- Lists, Finding <- rights(Path, 8#002, "could take a certificate off the revocation list", "755")
                ];
        {error, _} ->
            []
    end.

folders(#{journal := none}) ->
    [];
folders(#{journal := Journal, node_folder := NodeFolder}) ->
    [Folder || Folder <- [NodeFolder | log_folder(Journal)], Folder =/= undefined].

log_folder({folder, Folder}) -> [Folder];
log_folder({folder, Folder, _}) -> [Folder];
log_folder(_) -> [].

rights(Path, Forbidden, Danger, Allowed) ->
    case file:read_file_info(Path) of
        {ok, #file_info{mode = Mode}} when Mode band Forbidden =/= 0 ->
            [
                {error,
                    io_lib:format("other users can write to ~ts (mode ~.8b), and ~s. Call: chmod ~s ~ts", [
                        Path, Mode band 8#7777, Danger, Allowed, Path
                    ])}
            ];
        _ ->
            []
    end.

%% ---- journals ----

-define(MUCH_AHEAD_MS, 1000).

journal(#{journal := undefined, scope := Scope}) ->
    case rekindle_options:configured() of
        {ok, #{journal := Journal}, _} when Journal =/= none ->
            {Level, Why} = why_without(Scope, rekindle_scope:can_have_journal(Scope, Journal)),
            [{Level, ["its sessions are lost when the node ends, because it has no journal: ", Why]}];
        _ ->
            []
    end;
journal(#{journal := Journal} = Info) ->
    Checks = [
        fun broken/2,
        fun missing/2,
        fun node_folder/2,
        fun unwritten/2,
        fun clocks/2,
        fun skipped/2,
        fun certificates/2,
        fun without_node_folder/2
    ],
    lists:append([Check(Journal, Info) || Check <- Checks]).

why_without(_, true) ->
    {warning, "it was opened before the option was set, or the log says why. Repair that, and open the listener again."};
why_without(unnamed, false) ->
    {warning,
        "OTP does not say which listener it is. This happens up to OTP 26 with inet_backend = socket: leave that out, or use OTP 27 "
        "or later."};
why_without(upgraded, false) ->
    {note,
        "OTP does not say which listeners upgraded sockets come from, so they have no name under which nodes could share sessions."};
why_without({listener, _, {_, Port}}, false) when is_integer(Port) ->
    {warning,
        io_lib:format("nodes share sessions by name. Give this listener one: write {scope, #{~b => mqtt}}, for example.", [Port])};
why_without(_, false) ->
    {warning, "nodes share sessions by name. Give this listener one: write {scope, #{Port => Name}}."}.

%% If revocations are missing, another finding says so.
broken(#{state := down, missing := 0, last_error := Error}, _) ->
    [
        {error,
            io_lib:format(
                "the journal does not work: ~ts. Handshakes go on, but sessions stay in this node and are lost when it ends.", [
                    Error
                ]
            )}
    ];
broken(#{dropped := Dropped}, _) when Dropped > 0 ->
    [
        {warning,
            io_lib:format(
                "~b sessions were not written to the journal, because the log was away or too slow. They are lost when this node "
                "ends, and other nodes do not have them.",
                [Dropped]
            )}
    ];
broken(_, _) ->
    [].

missing(#{missing := 0}, _) ->
    [];
missing(#{missing := Missing}, #{scope := Scope}) ->
    [
        {error,
            io_lib:format(
                "the log lacks ~b revocations that were known when its sessions were written, so no session is read from it. Start "
                "a node that knows them: one that was running then, or one whose node_folder was kept. If you have no such node, "
                "revoke again what has to be revoked, then call rekindle_admin:replay_anyway(~ts), which reads the log without "
                "them.",
                [Missing, rekindle_scope:quoted(Scope)]
            )}
    ].

node_folder(#{node_folder := Folder, node_folder_error := Error}, _) when Folder =/= undefined, Error =/= undefined ->
    [
        {error,
            io_lib:format(
                "the node folder ~ts cannot be used: ~ts. Until then only the log has the revocations, and they are lost with it.",
                [Folder, Error]
            )}
    ];
node_folder(_, _) ->
    [].

unwritten(#{unwritten := 0}, _) ->
    [];
unwritten(#{unwritten := Unwritten} = Journal, _) ->
    Until =
        case Journal of
            #{node_folder := Folder, node_folder_error := undefined} when Folder =/= undefined ->
                "The node folder keeps them until then";
            #{} ->
                "They are lost if this node ends before"
        end,
    [
        {warning,
            io_lib:format(
                "~b revocations are not in the log yet: nodes that share it do not know of them. ~s.", [Unwritten, Until]
            )}
    ].

%% Names what the journal does not promise without a node folder.
without_node_folder(#{shared := true, node_folder := undefined}, _) ->
    [
        {note,
            "without the option node_folder this node remembers no revocation when it ends. A revocation is lost if this node ends "
            "before the log has it, or if the log is lost or set back while no node runs that knows of it. Give each node a folder "
            "of its own: {node_folder, Dir}." ++ advice_to_wait()}
    ];
without_node_folder(_, _) ->
    [].

%% Only with this option do nodes that know nothing notice that a log was set back as a whole.
advice_to_wait() ->
    case rekindle_options:configured() of
        {ok, #{wait_for_living_node := true}, _} ->
            "";
        _ ->
            " Where nodes have no disk, {wait_for_living_node, true} lets a node read sessions only after another node has confirmed "
            "the log."
    end.

clocks(#{clock_ahead := Ahead}, _) when abs(Ahead) > ?MUCH_AHEAD_MS ->
    [
        {warning,
            io_lib:format(
                "the clocks of this machine and of the log's machine differ by ~.1f s. A session from the future is read only when "
                "its time has come. Set both clocks by NTP.",
                [abs(Ahead) / 1000]
            )}
    ];
clocks(_, _) ->
    [].

skipped(#{skipped := Skipped}, _) ->
    [
        {Level, io_lib:format("~b records of the journal were left out: ~s", [Count, Why])}
     || Reason <- rekindle_info:reasons(skipped), #{Reason := Count} <- [Skipped], Count > 0, {Level, Why} <- why_skipped(Reason)
    ].

why_skipped(Normal) when Normal =:= expired; Normal =:= revoked; Normal =:= suite; Normal =:= scope ->
    [];
why_skipped(full) ->
    [
        {warning,
            "there was no room for their sessions. Raise max_bytes, or max_sessions if it is set: each node holds the sessions of all nodes."}
    ];
why_skipped(layout) ->
    [
        {warning,
            "the ssl that wrote them has other fields in its session records than this node's. Their clients make full handshakes "
            "here, until all nodes run one OTP release."}
    ];
why_skipped(key) ->
    [
        {warning,
            "they are sealed with a key that this node does not have. Copy that key from another node's key file. When you rotate "
            "keys, add the next one only when every node has the new one."}
    ];
why_skipped(template) ->
    [
        {warning,
            "they need another record, which is not in the log or cannot be read here. Their clients make full handshakes here."}
    ];
why_skipped(forged) ->
    [
        {error,
            "they do not open with the key they name. Either two nodes have different keys under one name, or somebody has changed "
            "the log. Compare the key files, and find out who can write to the log. If the state is down for this reason and all "
            "files are the same, revoke again what has to be revoked, then call rekindle_admin:replay_anyway/1 on each such node."}
    ];
why_skipped(future) ->
    [
        {warning,
            "they come from the future, so a node's clock is wrong. They are read when their time has come. Set all clocks by NTP."}
    ];
why_skipped(log) ->
    [
        {error,
            "they were written to another log, or to another stream of this one, and copied. Either two logs were put together, or "
            "somebody has changed the log. Find out who can write to it."}
    ];
why_skipped(version) ->
    [
        {warning,
            "another version of Rekindle wrote them. Their clients make full handshakes here, until all nodes run one version."}
    ];
why_skipped(malformed) ->
    [
        {error,
            "they are not Rekindle records. Is another program writing to this log? Give Rekindle a folder or a database of its own."}
    ].

certificates(#{shared := true}, #{number := Number}) ->
    case rekindle_nif:own_certificates(Number) of
        [_, _ | _] = Different ->
            [
                {note,
                    io_lib:format(
                        "its sessions were made under ~b server certificates. ssl resumes a session only where the listener has "
                        "the certificate it was made under: give all nodes the same, or the same RSA and EC pair.",
                        [length(Different)]
                    )}
            ];
        _ ->
            []
    end;
certificates(_, _) ->
    [].
