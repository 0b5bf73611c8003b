%% @doc What is wrong with Rekindle's place in this node, in plain words.
%%
%% OTP's processes are asked nothing that would keep them from their work: of caches it is only looked which
%% socket they watch, and of listeners the options they were opened with.
-module(rekindle_doctor).

-export([findings/0, format/1, log/1]).

-export_type([finding/0]).

-include("rekindle_log.hrl").

-type finding() :: {error | warning | note, Line :: unicode:chardata()}.
%% An `error' keeps sessions from being resumed, a `warning' keeps some, a `note' explains what may surprise.

%% How long a listener's process may take to answer, in milliseconds.
-define(PATIENCE, 1000).

-define(TLS_1_3, {3, 4}).

%% OTP's supervisors of cache processes.
-define(CACHES, [ssl_server_session_cache_sup, dtls_server_session_cache_sup]).

%% @doc What was found, the worst first. Empty where all is well.
-spec findings() -> [finding()].
findings() ->
    Missing = rekindle_options:missing_keys(),
    case rekindle_faults:library() of
        ok ->
            Infos = rekindle_admin:info(),
            Found = modules() ++ without_journal(Infos) ++ keys(Missing) ++ late_start(Missing, Infos) ++ listeners(Infos) ++
                rekindle_crls:findings(),
            sort(Found ++ lists:append([scope(Info) || Info <- Infos]));
        {error, {File, Reason}} ->
            sort([{error, library(File, Reason)} | keys(Missing)])
    end.

%% @doc The findings as lines.
-spec format([finding()]) -> unicode:chardata().
format([]) ->
    "Nothing wrong found.\n";
format(Findings) ->
    [io_lib:format("~s: ~ts~n", [Level, Line]) || {Level, Line} <- Findings].

%% @doc Logs the errors and warnings among the findings, one line each.
-spec log([finding()]) -> ok.
log(Findings) ->
    lists:foreach(
        fun(Line) -> ?LOG_LINE(warning, finding, "rekindle: ~ts", [Line]) end,
        [Line || {Level, Line} <- Findings, Level =/= note]
    ).

sort(Findings) ->
    [Finding || Level <- [error, warning, note], {L, _} = Finding <- Findings, L =:= Level].

library(File, Reason) ->
    io_lib:format(
        "the native library ~ts cannot be loaded: ~ts. Build it on this system and with this OTP release "
        "(rebar3 compile), or install a package made for them.",
        [File, Reason]
    ).

%% A release of OTP loads what it and the two before it have compiled; of older modules perhaps some, which come to
%% light when the others call them.
modules() ->
    Modules =
        case application:get_key(rekindle, modules) of
            {ok, All} -> All;
            undefined -> []
        end,
    [
        {error,
            io_lib:format(
                "the module ~s cannot be loaded: ~0tp. Build it with this OTP release, or install a package that was.",
                [Module, Reason]
            )}
     || Module <- Modules, {error, Reason} <- [code:ensure_loaded(Module)]
    ].

%% ---- ssl's environment ----

keys([]) ->
    wrong_options();
keys(Missing) ->
    Level = case lists:member(key_in_force(), Missing) of true -> error; false -> warning end,
    Keys = lists:join(", ", [io_lib:format("{~s, rekindle}", [Key]) || Key <- Missing]),
    [
        {Level, io_lib:format("in sys.config, write {ssl, [~ts]}. Which of the keys ssl reads depends on the OTP release.", [Keys])}
        | wrong_options()
    ].

%% What ssl reads for servers: it has the key's new name in its code from its releases with OTP 29 on.
key_in_force() ->
    Reads = try beam_lib:chunks(code:which(ssl_config), [atoms]) of
        {ok, {_, [{atoms, Atoms}]}} -> [Atom || {_, Atom} <- Atoms];
        _ -> []
    catch
        _:_ -> []
    end,
    case lists:member(server_session_cb, Reads) of
        true -> server_session_cb;
        false -> session_cb
    end.

wrong_options() ->
    case rekindle_options:configured() of
        {ok, _, _} -> [];
        {error, {bad_option, Line}} -> [{error, Line}]
    end.

%% ssl opens the client's cache when it starts. Without one, it started before it knew of Rekindle.
late_start(Missing, Infos) ->
    Clients = [Info || #{role := client} = Info <- Infos],
    case {whereis(ssl_manager), Missing, Clients} of
        {Pid, [], []} when is_pid(Pid) ->
            [{warning,
                "ssl had started before its keys were set: this node's client sessions are in OTP's own cache, and "
                "so are those of listeners opened by then. Set the keys before ssl starts: in sys.config or on the "
                "command line (-ssl session_cb rekindle), not in a file that is read later, such as RabbitMQ's "
                "advanced.config."}];
        _ ->
            []
    end.

%% ---- listeners ----

listeners(Infos) ->
    Ours = lists:append([rekindle_nif:sockets(Label) || #{role := server, scope := Label} <- Infos]),
    Strangers = [
        {error,
            io_lib:format(
                "the listener ~ts does not use Rekindle: it was opened while ssl had another session_cb. Open it again, "
                "with the keys set.",
                [address(Socket)]
            )}
     || Sup <- ?CACHES, Cache <- children(Sup), Socket <- watched(Cache), not lists:member(port_to_list(Socket), Ours)
    ],
    Strangers ++ lists:append([options(Socket, Options) ++ trust(Socket, Options, Infos) || Tracker <- children(ssl_listen_tracker_sup), Socket <- watched(Tracker), Options <- ssl_options(Tracker)]).

children(Sup) ->
    try
        [Pid || {_, Pid, _, _} <- supervisor:which_children(Sup), is_pid(Pid)]
    catch
        exit:_ -> []
    end.

watched(Pid) ->
    case process_info(Pid, monitors) of
        {monitors, Monitors} -> [Port || {port, Port} <- Monitors];
        undefined -> []
    end.

%% Found by content, as the state is OTP's affair. No more than one.
ssl_options(Tracker) ->
    try sys:get_state(Tracker, ?PATIENCE) of
        State when is_tuple(State) ->
            lists:sublist([Field || #{versions := _} = Field <- tuple_to_list(State)], 1);
        _ ->
            []
    catch
        _:_ -> []
    end.

options(Socket, #{versions := Versions} = Options) ->
    case [Version || Version <- Versions, Version =/= ?TLS_1_3, Version =/= 'tlsv1.3'] of
        [] ->
            [{note,
                io_lib:format(
                    "the listener ~ts speaks TLS 1.3 only, which resumes by tickets and needs no cache: see ssl's option "
                    "session_tickets.",
                    [address(Socket)]
                )}];
        _ ->
            case Options of
                #{reuse_sessions := false} ->
                    [{warning,
                        io_lib:format(
                            "the listener ~ts has {reuse_sessions, false} and resumes nothing before TLS 1.3: write "
                            "{reuse_sessions, true} in its options. (From OTP 29 on false is the default where it has "
                            "{verify, verify_peer}.)",
                            [address(Socket)]
                        )}];
                #{} ->
                    []
            end
    end.

trust(Socket, Options, Infos) ->
    IsOf = fun(Label) -> lists:member(port_to_list(Socket), rekindle_nif:sockets(Label)) end,
    rekindle_trust:findings(address(Socket), Options, [Info || #{role := server, scope := Label} = Info <- Infos, IsOf(Label)]).

address(Socket) ->
    case inet:sockname(Socket) of
        {ok, Address} -> rekindle_scope:address(Address);
        {error, _} -> port_to_list(Socket)
    end.

%% ---- scopes ----

scope(#{role := client}) ->
    [];
scope(#{scope := Label} = Info) ->
    [{Level, io_lib:format("~0tp: ~ts", [Label, Line])} || {Level, Line} <- faults(Info) ++ churn(Info) ++ unused(Info) ++ journal(Info)].

faults(#{faults := 0}) ->
    [];
faults(#{faults := Faults}) ->
    [{error, io_lib:format("~b calls failed in the native library; the log has the reason.", [Faults])}].

%% Fewer than these tell nothing.
-define(MANY, 1000).

churn(#{evicted := Evicted, inserts := Inserts, bytes := Bytes, sessions := Sessions} = Info) when
    Inserts >= ?MANY, 20 * Evicted >= Inserts, Sessions > 0
->
    #{max_bytes := MaxBytes, max_sessions := MaxSessions} = Info,
    Bound =
        case MaxSessions =/= infinity andalso Sessions >= MaxSessions - MaxSessions div 50 of
            true ->
                io_lib:format("max_sessions, which is ~b", [MaxSessions]);
            false ->
                io_lib:format("max_bytes, which is ~ts; a session takes ~b bytes", [rekindle_table:bytes(MaxBytes), Bytes div Sessions])
        end,
    [{warning,
        io_lib:format(
            "~b % of the sessions stored were dropped to make room, and their clients have to make a full handshake: "
            "raise ~ts.",
            [100 * Evicted div Inserts, Bound]
        )}];
churn(_) ->
    [].

unused(#{inserts := Inserts, hits := Hits, misses := Misses}) when Inserts >= ?MANY, 100 * Hits < Inserts, 10 * Misses < Inserts ->
    [{note,
        "hardly any session is resumed, and hardly any client offers one. Clients in Go, and in Java with its defaults, do not; those in "
        "Python and other libraries only if the program hands the session on."}];
unused(#{inserts := Inserts, hits := Hits, unknown_misses := Unknown}) when Inserts >= ?MANY, 100 * Hits < Inserts ->
    [{note,
        io_lib:format("hardly any session is resumed. ~b lookups asked for ids that this scope does not know. Such clients made their session at "
            "another listener or node, or they can do TLS 1.3 and send random ids.",
            [Unknown])}];
unused(_) ->
    [].

%% ---- journals ----

%% Milliseconds.
-define(MUCH_AHEAD, 1000).

without_journal(Infos) ->
    case rekindle_options:configured() of
        {ok, #{journal := Journal}, _} when Journal =/= none ->
            [{warning, why_without(Info, Journal)} || #{role := server, journal := undefined} = Info <- Infos];
        _ ->
            []
    end.

why_without(#{scope := Label}, Journal) ->
    Why =
        case rekindle_journal:is_for(Journal, Label) of
            true -> "it was opened before the option was set, or the log says why";
            false -> "a log that nodes share is for listeners that have a name: write {scope, #{Port => Name}}"
        end,
    io_lib:format("~0tp has no journal, its sessions end with the node: ~s.", [Label, Why]).

journal(#{journal := undefined}) ->
    [];
journal(#{journal := Journal} = Info) ->
    Checks = [
        fun broken/2, fun missing/2, fun node_folder/2, fun unwritten/2, fun clocks/2, fun skipped/2, fun certificates/2, fun promises/2
    ],
    lists:append([Check(Journal, Info) || Check <- Checks]).

%% Where revocations are missing, they are why it is down.
broken(#{state := down, missing := 0, last_error := Error}, _) ->
    [{error, io_lib:format("the journal does not work: ~ts", [Error])}];
broken(#{dropped := Dropped}, _) when Dropped > 0 ->
    [{warning, io_lib:format("~b sessions were not written to the journal: the log was away, or too slow.", [Dropped])}];
broken(_, _) ->
    [].

missing(#{missing := 0}, _) ->
    [];
missing(#{missing := Missing}, #{scope := Label}) ->
    [{error,
        io_lib:format(
            "the log lacks ~b revocations that were known when its sessions were written, so no session is read from it. Start a "
            "node that knows them: one that was running then, or one whose node_folder was kept. If you have no such node, "
            "rekindle_admin:replay_anyway(~0tp) reads the log without them; what was revoked can be resumed then, so revoke it "
            "again first.",
            [Missing, Label]
        )}].

node_folder(#{node_folder := Folder, node_folder_error := Error}, _) when Folder =/= undefined, Error =/= undefined ->
    [{error,
        io_lib:format(
            "the node folder ~ts cannot be used: ~ts. Revocations are in the log only, as long as that is there.", [Folder, Error]
        )}];
node_folder(_, _) ->
    [].

unwritten(#{unwritten := 0}, _) ->
    [];
unwritten(#{unwritten := Unwritten} = Journal, _) ->
    Until =
        case Journal of
            #{node_folder := Folder, node_folder_error := undefined} when Folder =/= undefined -> "The node folder keeps them until then";
            #{} -> "They are lost if this node ends before"
        end,
    [{warning,
        io_lib:format(
            "~b revocations are not in the log yet: nodes that share it do not know of them. ~s.", [Unwritten, Until]
        )}].

%% What holds as long as nothing fails, and not in every case.
promises(#{shared := true, node_folder := undefined}, _) ->
    [{note,
        "without the option node_folder this node remembers no revocation when it ends. A revocation is lost if this node ends before "
        "the log has it, or if the log is lost or set back while no node runs that knows of it. Give each node a folder of its "
        "own: {node_folder, Dir}." ++ waiting()}];
promises(_, _) ->
    [].

%% Only then is a log that was set back as a whole noticed by nodes that know nothing.
waiting() ->
    case rekindle_options:configured() of
        {ok, #{wait_for_living_node := true}, _} -> "";
        _ -> " Where nodes have no disk, {wait_for_living_node, true} lets a node read sessions only after another node has confirmed the log."
    end.

clocks(#{clock_ahead := Ahead}, _) when abs(Ahead) > ?MUCH_AHEAD ->
    [{warning,
        io_lib:format(
            "the clocks of this machine and of the log's differ by ~.1f s: let them be set by NTP. Sessions from the future wait "
            "until their time has come.",
            [abs(Ahead) / 1000]
        )}];
clocks(_, _) ->
    [].

skipped(#{skipped := Skipped}, _) ->
    [{Level, io_lib:format("~b records of the journal were left out: ~s", [Count, Why])}
     || {Reason, Level, Why} <- what_skipping_means(), Count <- [maps:get(Reason, Skipped)], Count > 0].

what_skipping_means() ->
    [
        {layout, warning, "the session records of the ssl that wrote them have other fields than those of this node's."},
        {key, warning,
            "they are sealed with a key that this node does not have. A new key goes into the key file of every node "
            "before it is used: add it as the last line everywhere, and only then a further one."},
        {forged, error,
            "they do not open with the key they name. Either two nodes have different keys under one name, or somebody has "
            "changed the log."},
        {future, warning, "they come from the future: a node's clock is wrong. They are read when their time has come."},
        {log, error,
            "they were written to another log, or to another stream of this one, and copied. Somebody has changed the log, or two "
            "logs were put together."},
        {malformed, error, "they are not Rekindle records. Is another program writing to this log?"},
        {version, warning, "they are of another version of Rekindle. They are kept until their time is over."},
        {template, warning, "what they have in common with others is not in the log."}
    ].

certificates(#{shared := true}, #{number := Number}) ->
    case rekindle_nif:own_certificates(Number) of
        [_, _ | _] = Different ->
            [{note,
                io_lib:format(
                    "its sessions were made under ~b server certificates. ssl resumes a session only where the listener has the "
                    "certificate it was made under: give all nodes the same, or the same RSA and EC pair.",
                    [length(Different)]
                )}];
        _ ->
            []
    end;
certificates(_, _) ->
    [].
