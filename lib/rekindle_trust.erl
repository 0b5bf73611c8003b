%% @private What is checked of a client's certificate before a session is resumed, and what of a listener's options a
%% resumption goes around.
-module(rekindle_trust).

-export([open/2, findings/3]).

-include_lib("kernel/include/file.hrl").

%% Sessions that are looked at, at most.
-define(MOST, 100_000).

-define(PAGE, 1000).

%% Options of a server name's own that decide who is let in.
-define(CHECKS, [cacerts, cacertfile, verify, verify_fun, fail_if_no_peer_cert, partial_chain, crl_check, crl_cache, depth]).

%% @doc Has the sessions of a server's scope checked as the options say.
-spec open(rekindle_nif:store(), rekindle_options:options()) -> ok.
open(Store, #{expired_certificates := Expired, stale_crls := Stale, crls := Paths}) ->
    ok = rekindle_nif:set_trust(Store, Expired =:= resume, Stale =:= resume, [rekindle_options:path_to_native(Path) || Path <- Paths]),
    Paths =:= [] orelse rekindle_crls:watch(),
    ok.

%% @doc What resumptions at a listener go around. `Options' are those that ssl has of it, `Scopes' the scopes that it has
%% its sessions in.
-spec findings(Address :: unicode:chardata(), Options :: map(), Scopes :: [rekindle_admin:info()]) ->
    [rekindle_doctor:finding()].
findings(Address, Options, Scopes) ->
    lists:append([Check(Address, Options, Scopes) || Check <- [fun authorities/3, fun lists/3, fun ciphers/3, fun names/3]]).

%% The file may have been read again without a change. But a session that is older than it was made with what was in it
%% before.
authorities(Address, #{cacertfile := File}, [#{certificates := Certificates, number := Number} | _]) when Certificates > 0 ->
    case changed(File) of
        undefined ->
            [];
        Changed ->
            %% Both are whole seconds: the file is younger than this.
            AgeMs = 1000 * (erlang:system_time(second) + 1 - Changed),
            IsOlder = fun({_, Age, _, Certificate, _, _}) -> Certificate =/= undefined andalso Age > AgeMs end,
            [
                {warning,
                    io_lib:format(
                        "the authorities of the listener ~ts (~ts) have changed since ~b sessions were made, which resume without "
                        "a look at them. If one was taken out, call rekindle_admin:flush(~b) or "
                        "rekindle_admin:revoke({issuer, Authority}).",
                        [Address, File, Count, port(Address)]
                    )}
             || Count <- [count(IsOlder, Number)], Count > 0
            ]
    end;
authorities(_, _, _) ->
    [].

%% Also when it was put there, as copies may keep the time of the content.
changed(File) when is_list(File), File =/= []; is_binary(File), File =/= <<>> ->
    case file:read_file_info(File, [{time, posix}]) of
        {ok, #file_info{mtime = Modified, ctime = Changed}} -> max(Modified, Changed);
        {error, _} -> undefined
    end;
changed(_) ->
    undefined.

lists(Address, #{crl_check := Check} = Options, _Scopes) when Check =/= false ->
    case rekindle_options:parse(application:get_env(ssl, session_cb_init_args, [])) of
        {ok, #{crls := []}, _} ->
            [
                {warning,
                    io_lib:format(
                        "the listener ~ts looks at revocation lists (crl_check), resumptions do not: write ~ts in "
                        "session_cb_init_args.",
                        [Address, crls(Options)]
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
    "{crls, [Path]} with files or folders that have its lists".

ciphers(Address, #{ciphers := [Suite | _] = Suites}, [#{number := Number, sessions := Sessions} | _]) when
    byte_size(Suite) =:= 2, Sessions > 0
->
    IsExcluded = fun({_, _, _, _, Cipher, _}) -> Cipher =/= undefined andalso not lists:member(Cipher, Suites) end,
    [
        {warning,
            io_lib:format(
                "~b sessions of the listener ~ts have cipher suites that its option ciphers does not allow any more, and resume "
                "with them: call rekindle_admin:flush(~b).",
                [Count, Address, port(Address)]
            )}
     || Count <- [count(IsExcluded, Number)], Count > 0
    ];
ciphers(_, _, _) ->
    [].

%% From OTP 29 on, ssl itself refuses a session at another name.
names(Address, Options, _Scopes) ->
    Fun = maps:get(sni_fun, Options, undefined),
    All = maps:get(sni_hosts, Options, []) ++ hosts_of(Fun),
    Hosts = [Host || {Host, Own} <- All, is_list(Own), {Name, _} <- Own, lists:member(Name, ?CHECKS)],
    HasFun = is_own(Fun) andalso All =:= [],
    case list_to_integer(erlang:system_info(otp_release)) < 29 andalso (Hosts =/= [] orelse HasFun) of
        true ->
            [
                {warning,
                    io_lib:format(
                        "the listener ~ts decides by the server name whom it lets in (~s). On this OTP release, a client that was let in "
                        "at one name resumes its session at another one that has the same certificate. Give each name a certificate "
                        "of its own, or a listener.",
                        [Address, case HasFun of true -> "sni_fun"; false -> "sni_hosts" end]
                    )}
            ];
        false ->
            []
    end.

%% OTP 27 makes a fun of its own of `sni_hosts', also where the operator set neither.
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

%% How many of a scope's sessions are so, of the first ones if there are many.
count(IsSo, Number) ->
    count(IsSo, Number, 0, ?MOST, 0).

count(_, _, _, Left, Count) when Left =< 0 ->
    Count;
count(IsSo, Number, From, Left, Count) ->
    case rekindle_nif:page(Number, From, ?PAGE) of
        {Rows, Next} ->
            Found = Count + length([Row || Row <- Rows, IsSo(Row)]),
            case Next of
                done -> Found;
                _ -> count(IsSo, Number, Next, Left - length(Rows), Found)
            end;
        undefined ->
            Count
    end.

%% What it is called by in rekindle_admin: the number after the last colon.
port(Address) ->
    [Port | _] = lists:reverse(string:lexemes(unicode:characters_to_list(Address), ":")),
    try list_to_integer(Port) catch error:badarg -> 0 end.
