%% @private Sets which checks of a client's certificate a resumption makes, and finds options of a listener that it bypasses.
-module(rekindle_trust).

-export([set_checks/2, findings/3, suites/3, allowed_suites/1]).

-include_lib("kernel/include/file.hrl").

%% The findings look at the first sessions of a scope only.
-define(MAX_SESSIONS, 100_000).

-define(SESSIONS_PER_PAGE, 1000).

%% If a server name has one of these options of its own, the name decides which clients get in.
-define(CHECKS, [cacerts, cacertfile, verify, verify_fun, fail_if_no_peer_cert, partial_chain, crl_check, crl_cache, depth]).

%% @doc Makes the store check the sessions of a server's scope as the options say.
-spec set_checks(rekindle_nif:store(), rekindle_options:options()) -> ok.
set_checks(Store, #{expired_certificates := Expired, stale_crls := Stale, crls := Paths}) ->
    ok = rekindle_nif:set_trust(Store, Expired =:= resume, Stale =:= resume, [
        rekindle_options:path_to_native(Path)
     || Path <- Paths
    ]),
    Paths =:= [] orelse rekindle_crls:watch(),
    ok.

%% @doc Findings about checks that resumptions at a listener bypass. `Options' are the listener's options in ssl, and `Scopes'
%% the scopes with its sessions.
-spec findings(Listener :: unicode:chardata(), Options :: map(), Scopes :: [rekindle_admin:info()]) ->
    [rekindle_doctor:finding()].
findings(Listener, Options, Scopes) ->
    lists:append([Check(Listener, Options, Scopes) || Check <- [fun authorities/3, fun lists/3, fun suites/3, fun names/3]]).

%% A session that is older than the file was made with the authorities that were in the file before. (Somebody may have written
%% the file again without a change.)
authorities(Listener, #{cacertfile := File}, [#{certificates := Certificates, number := Number, scope := Scope} | _]) when
    Certificates > 0
->
    case changed(File) of
        undefined ->
            [];
        Changed ->
            %% The time of a file is in whole seconds, so the file is no older than this. Erlang's own time may lag behind the
            %% system's clock, which files have theirs from.
            FileAgeMs = os:system_time(millisecond) - 1000 * Changed,
            IsOlder = fun({_, AgeMs, _, Certificate, _, _}) -> Certificate =/= undefined andalso AgeMs > FileAgeMs end,
            [
                {warning,
                    io_lib:format(
                        "~ts: its authorities (~ts) have changed since ~b of its sessions were made, and these resume "
                        "unchecked. If you have removed an authority, call rekindle_admin:flush(~ts) or "
                        "rekindle_admin:revoke({issuer, Authority}).",
                        [Listener, File, Count, rekindle_scope:quoted(Scope)]
                    )}
             || Count <- [count(IsOlder, Number)], Count > 0
            ]
    end;
authorities(_, _, _) ->
    [].

%% When the file was written or put there: a copy may keep the time of the content.
changed(File) when is_list(File), File =/= []; is_binary(File), File =/= <<>> ->
    case file:read_file_info(File, [{time, posix}]) of
        {ok, #file_info{mtime = Modified, ctime = Changed}} -> max(Modified, Changed);
        {error, _} -> undefined
    end;
changed(_) ->
    undefined.

lists(Listener, #{crl_check := Check} = Options, _Scopes) when Check =/= false ->
    case rekindle_options:configured() of
        {ok, #{crls := []}, _} ->
            [
                {warning,
                    io_lib:format(
                        "~ts checks revocation lists (crl_check), but resumptions do not: a client whose certificate is "
                        "revoked resumes its session. Write ~ts into ~s.",
                        [Listener, crls(Options), rekindle_options:args_key()]
                    )}
            ];
        _ ->
            []
    end;
lists(_, _, _) ->
    [].

crls(#{crl_cache := {ssl_crl_hash_dir, {_, Args}}}) when is_list(Args) ->
    case proplists:get_value(dir, Args) of
        undefined -> crls(#{});
        Dir -> io_lib:format("{crls, [\"~ts\"]}", [Dir])
    end;
crls(_) ->
    "{crls, [Path]} with the files or folders of its lists".

%% @doc The finding about sessions with cipher suites that the listener does not allow. ssl resumes a session with its own suite,
%% and does not tell a cache which suites the listener allows.
-spec suites(Listener :: unicode:chardata(), Options :: map(), Scopes :: [rekindle_admin:info()]) -> [rekindle_doctor:finding()].
suites(Listener, #{ciphers := [Suite | _] = Suites} = Options, [#{number := Number, sessions := Sessions, scope := Scope} | _]) when
    byte_size(Suite) =:= 2, Sessions > 0
->
    IsExcluded = fun({_, _, _, _, Cipher, _}) -> Cipher =/= undefined andalso not lists:member(Cipher, Suites) end,
    Flush = io_lib:format("rekindle_admin:flush(~ts)", [rekindle_scope:quoted(Scope)]),
    {Level, Advice} =
        case have_names_own_suites(Options) of
            false ->
                {warning, ["resume with them. Call ", Flush, "."]};
            true ->
                {note, [
                    "resume with them. Its sni_hosts or sni_fun may allow them for some server names. If not, ",
                    Flush,
                    " drops these sessions."
                ]}
        end,
    [
        {Level,
            io_lib:format("~ts: ~b of its sessions have cipher suites that its option ciphers does not allow, and ~ts", [
                Listener, Count, Advice
            ])}
     || Count <- [count(IsExcluded, Number)], Count > 0
    ];
suites(_, _, _) ->
    [].

%% Whether server names may have suites of their own. Then sessions with suites that the listener does not allow are made again.
have_names_own_suites(Options) ->
    {Hosts, HasFun} = names_of(Options),
    HasFun orelse lists:any(fun({_, Own}) -> is_list(Own) andalso lists:keymember(ciphers, 1, Own) end, Hosts).

%% @doc The cipher suites that a listener with these options in ssl allows; `all' if they are not known, or if server names may
%% have others.
-spec allowed_suites(Options :: map()) -> [binary()] | all.
allowed_suites(#{ciphers := [_ | _] = Suites} = Options) ->
    AreKnown = lists:all(fun(Suite) -> is_binary(Suite) andalso byte_size(Suite) =:= 2 end, Suites),
    case AreKnown andalso names_of(Options) of
        {[], false} -> Suites;
        _ -> all
    end;
allowed_suites(_) ->
    all.

%% Since a patch of OTP 29, ssl refuses to resume a session under another name.
names(Listener, Options, _Scopes) ->
    {Hosts, HasFun} = names_of(Options),
    %% As in a property list, the first value counts.
    Own = [maps:from_list([Option || {_, _} = Option <- lists:reverse(Given)]) || {_, Given} <- Hosts, is_list(Given)],
    AreClientsVerified = lists:any(fun(Some) -> maps:get(verify, Some, verify_none) =:= verify_peer end, [Options | Own]),
    case AreClientsVerified andalso not rekindle_layout:has_server_name(rekindle_layout:layout()) of
        true when HasFun ->
            [
                {note,
                    io_lib:format(
                        "~ts has an sni_fun. If it lets in different clients by server name, a client that got in under one name "
                        "can, on this OTP release, resume its session under another name with the same certificate. In that "
                        "case, give each name its own certificate or listener.",
                        [Listener]
                    )}
            ];
        true ->
            [
                {warning,
                    io_lib:format(
                        "~ts decides by the server name whom it lets in (sni_hosts). On this OTP release, a client that got in "
                        "under one name can resume its session under another name with the same certificate. Give each name "
                        "its own certificate or listener.",
                        [Listener]
                    )}
             || is_certificate_shared(Options, Own)
            ];
        false ->
            []
    end.

%% Whether a server name with checks of its own has the same certificate as another name, or as all other names.
is_certificate_shared(Options, Own) ->
    Default = certificates(Options),
    OfHosts = [
        {
            case certificates(Host) of
                [] -> Default;
                Certificates -> Certificates
            end,
            [] =/= maps:keys(maps:with(?CHECKS, Host))
        }
     || Host <- Own
    ],
    Names = lists:enumerate([{Default, false} | OfHosts]),
    [] =/= [Same || {N, {Some, true}} <- Names, {Other, {More, _}} <- Names, Other =/= N, Same <- Some, lists:member(Same, More)].

%% What ssl's options say of a server's certificates: their files, or themselves.
certificates(Options) ->
    lists:append([certificate(Some) || #{} = Some <- [Options | maps:get(certs_keys, Options, [])]]).

certificate(#{cert := [Der | _]}) -> [{der, Der}];
certificate(#{cert := Der}) when is_binary(Der) -> [{der, Der}];
certificate(#{certfile := File}) when File =/= <<>>, File =/= [] -> [{file, rekindle_options:path_to_native(File)}];
certificate(_) -> [].

%% The server names that have options of their own, and whether a fun of the operator's decides on others.
names_of(Options) ->
    Fun = maps:get(sni_fun, Options, undefined),
    Hosts = maps:get(sni_hosts, Options, []) ++ hosts_of(Fun),
    {Hosts, is_own(Fun) andalso Hosts =:= []}.

%% OTP 27 turns `sni_hosts' into a fun of its own, even if the operator set neither.
is_own(Fun) when is_function(Fun) ->
    not is_of_ssl(Fun);
is_own(_) ->
    false.

is_of_ssl(Fun) ->
    lists:member(erlang:fun_info(Fun, module), [{module, ssl}, {module, ssl_config}]).

hosts_of(Fun) when is_function(Fun) ->
    {env, Env} = erlang:fun_info(Fun, env),
    [Pair || is_of_ssl(Fun), is_list(Env), Hosts <- Env, is_list(Hosts), {_, _} = Pair <- Hosts];
hosts_of(_) ->
    [].

%% How many of a scope's first sessions meet the condition.
count(IsSo, Number) ->
    count(IsSo, Number, 0, ?MAX_SESSIONS, 0).

count(_, _, _, Left, Count) when Left =< 0 ->
    Count;
count(IsSo, Number, From, Left, Count) ->
    case rekindle_nif:page(Number, From, ?SESSIONS_PER_PAGE) of
        {Rows, Next} ->
            Found = Count + length([Row || Row <- Rows, IsSo(Row)]),
            case Next of
                done -> Found;
                _ -> count(IsSo, Number, Next, Left - length(Rows), Found)
            end;
        undefined ->
            Count
    end.
