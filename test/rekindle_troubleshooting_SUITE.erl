%% @doc Makes each mistake of docs/guides/troubleshooting.md in a node, and compares what the node prints with the page.
-module(rekindle_troubleshooting_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).

-export([each_mistake_prints_what_the_page_quotes/1]).

%% Called in the nodes that make the mistakes.
-export([start_ssl/1, listen/1, listen_and_ask/1, set_keys_late/1, connect/1, await_journal/1]).

-define(TIMEOUT_MS, 60_000).
-define(KEYS, [session_cb, server_session_cb, client_session_cb]).

all() ->
    [each_mistake_prints_what_the_page_quotes].

init_per_suite(Config) ->
    rekindle_certs:with_certs(Config).

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    rekindle_checkout:with_dir(Case, Config).

end_per_testcase(_Case, _Config) ->
    ok.

each_mistake_prints_what_the_page_quotes(Config) ->
    Quotes = quotes(Config),
    Mistakes = mistakes(Config),
    ?assertEqual([Title || {Title, _, _, _} <- Mistakes], [Title || {Title, _} <- Quotes]),
    ?assertEqual([], [
        {Title, Quoted, Printed}
     || {{Title, Quoted}, {_, Environment, Folder, Call}} <- lists:zip(Quotes, Mistakes),
        Printed <- [one_line(run(Environment, Folder, Call, Config))],
        re:run(Printed, pattern(Quoted), [unicode, {capture, none}]) =:= nomatch
    ]).

%% ---- the page ----

quotes(Config) ->
    {ok, Page} = file:read_file(filename:join(rekindle_checkout:root(Config), "docs/guides/troubleshooting.md")),
    [_ | Sections] = re:split(Page, "(?m)^## ", [unicode]),
    [
        {hd(binary:split(Section, <<"\n">>)), one_line(Quoted)}
     || Section <- Sections,
        {match, [Quoted]} <- [re:run(Section, "(?ms)^```text\n(.*?)^```$", [unicode, {capture, all_but_first, binary}])]
    ].

%% However it is wrapped.
one_line(Text) ->
    re:replace(Text, "\\s+", " ", [global, unicode, {return, binary}]).

%% The page's listeners are on port 8443, and `…' stands for anything.
pattern(Quoted) ->
    Keys = re:replace(string:trim(Quoted), "\\bses+ion_cb\\b", atom_to_list(key("&")), [global, unicode, {return, binary}]),
    Escaped = re:replace(Keys, "[][.*+?(){}|^$\\\\]", "\\\\&", [global, unicode, {return, binary}]),
    re:replace(re:replace(Escaped, "8443", "\\\\d+", [global, {return, binary}]), "…", ".*", [global, unicode, {return, binary}]).

%% ---- the mistakes ----

%% For each mistake: ssl's environment, where Rekindle is, and what the node does.
mistakes(Config) ->
    Folder = filename:absname(filename:dirname(code:which(rekindle))),
    Options = listener_options(Config),
    Valkey = {valkey, "valkey://127.0.0.1:1", [{key_file, "keys"}]},
    [
        {<<"ssl does not start: undef">>, keys(), none, {start_ssl, []}},
        {<<"ssl does not start: native_library">>, keys(), without_library(Folder, Config), {start_ssl, []}},
        {<<"ssl does not start: bad_option">>, with_option({max_bytes, "64M"}), Folder, {start_ssl, []}},
        {<<"ssl:listen fails: session_cache_server_max is 0">>, [{session_cache_server_max, 0} | keys()], Folder,
            {listen, Options}},
        {<<"A misspelt option">>, with_option({max_byte, 1_000_000}), Folder, {listen, Options}},
        {<<"A missing or misspelt key">>, [{key("sesion_cb"), rekindle} | lists:keydelete(key("session_cb"), 1, keys())], Folder,
            {listen_and_ask, Options}},
        {<<"Keys that are set too late">>, [], Folder, {set_keys_late, Options}},
        {<<"A listener with reuse_sessions off">>, keys(), Folder, {listen_and_ask, [{reuse_sessions, false} | Options]}},
        {<<"A listener for TLS 1.3 only">>, keys(), Folder, {listen_and_ask, [{versions, ['tlsv1.3']} | Options]}},
        {<<"A test without -tls1_2">>, keys(), Folder, {connect, Options}},
        {<<"A shared journal for a listener without a name">>, with_option({journal, Valkey}), Folder, {listen, Options}},
        {<<"A journal's folder that others can write to">>, with_option({journal, {folder, open_folder(Config)}}), Folder,
            {await_journal, Options}}
    ].

%% From OTP 29 on, ssl reads server_session_cb where the page has session_cb.
key(Name) ->
    case list_to_integer(erlang:system_info(otp_release)) < 29 of
        true -> list_to_atom(Name);
        false -> list_to_atom("server_" ++ Name)
    end.

keys() ->
    [{Key, rekindle} || Key <- ?KEYS].

with_option(Option) ->
    [{session_cb_init_args, [Option]} | keys()].

listener_options(Config) ->
    #{server := #{ec := #{cert := Cert, key := Key}}} = proplists:get_value(certs, Config),
    [{certfile, Cert}, {keyfile, Key}].

without_library(Folder, Config) ->
    Copy = filename:join(proplists:get_value(dir, Config), "rekindle/ebin"),
    ok = filelib:ensure_path(Copy),
    [
        {ok, _} = file:copy(File, filename:join(Copy, filename:basename(File)))
     || File <- filelib:wildcard(filename:join(Folder, "*"))
    ],
    Copy.

open_folder(Config) ->
    Folder = filename:join(proplists:get_value(dir, Config), "sessions"),
    ok = file:make_dir(Folder),
    ok = file:change_mode(Folder, 8#777),
    Folder.

%% ---- a node ----

run(Environment, Folder, {Function, Arguments}, Config) ->
    File = filename:join(proplists:get_value(dir, Config), "sys"),
    ok = file:write_file(File ++ ".config", io_lib:format("~tp.~n", [[{ssl, Environment}]])),
    Call = io_lib:format("~s:~s(~0tp), init:stop().", [?MODULE, Function, Arguments]),
    Helpers = filename:absname(filename:dirname(code:which(?MODULE))),
    Paths = ["-pa", Helpers | [Argument || Folder =/= none, Argument <- ["-pa", Folder]]],
    Command =
        ["erl", "-noinput", "-config", File, "-env", "ERL_CRASH_DUMP_SECONDS", "0"] ++ Paths ++ ["-eval", lists:flatten(Call)],
    {0, Printed} = rekindle_clients:run("env", ["-u", "ERL_LIBS" | Command], [], ?TIMEOUT_MS),
    ct:log("~ts", [Printed]),
    Printed.

start_ssl(_) ->
    application:ensure_all_started(ssl).

listen(Options) ->
    start_ssl([]),
    try
        rekindle_servers:start(tls, Options)
    catch
        error:{server_is_gone, _} -> refused
    end.

listen_and_ask(Options) ->
    listen(Options),
    rekindle_admin:doctor().

set_keys_late(Options) ->
    start_ssl([]),
    [application:set_env(ssl, Key, rekindle) || Key <- ?KEYS],
    listen_and_ask(Options).

connect(Options) ->
    {_, Port} = listen([{versions, ['tlsv1.2', 'tlsv1.3']} | Options]),
    io:put_chars(os:cmd(io_lib:format("openssl s_client -connect 127.0.0.1:~b -reconnect </dev/null", [Port]))).

%% The log is opened in the background.
await_journal(Options) ->
    rekindle_log_lines:collect(),
    listen(Options),
    rekindle_node:await(fun() -> rekindle_log_lines:take() =/= [] end).
