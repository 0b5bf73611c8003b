%% @doc Helpers of the suites for journals: they make keys and sessions of openssl clients, and read the state of a node's journal.
-module(rekindle_journals).

-export([key/1, write_keys/2, save/3, save/4, offer/3, offer/4, servers/1, journal/2, await_written/2, durably/3]).

-include_lib("common_test/include/ct.hrl").

-export_type([client/0]).

%% A client's certificate, and its protocol if it is not TLS.
-type client() :: #{
    proto => rekindle_clients:proto(), certfile => file:filename(), keyfile => file:filename(), cipher => string()
}.

%% @doc A new key, as a line of a key file.
-spec key(Name :: string()) -> iodata().
key(Name) ->
    [Name, " ", base64:encode(crypto:strong_rand_bytes(32)), "\n"].

%% @doc Writes a key file, or replaces it at once, as docs/journal.md has it.
-spec write_keys(file:filename(), Keys :: [iodata()]) -> ok.
write_keys(File, Keys) ->
    New = File ++ ".new",
    ok = file:write_file(New, Keys),
    ok = file:change_mode(New, 8#600),
    ok = file:rename(New, File).

%% @equiv save(Name, Port, Config, #{})
save(Name, Port, Config) ->
    save(Name, Port, Config, #{}).

%% @doc Makes a session with a server, and keeps it in a file of this name.
-spec save(Name :: term(), inet:port_number(), ct_suite:ct_config(), client()) -> file:filename().
save(Name, Port, Config, Client) ->
    File = filename:join(?config(dir, Config), lists:flatten(io_lib:format("~0p.session", [Name]))),
    {Proto, Options} = client(Config, Client),
    #{full := 1} = rekindle_clients:openssl_save(Proto, Port, File, Options),
    File.

%% @equiv offer(File, Port, Config, #{})
offer(File, Port, Config) ->
    offer(File, Port, Config, #{}).

%% @doc Offers a session to a server.
-spec offer(file:filename(), inet:port_number(), ct_suite:ct_config(), client()) -> rekindle_clients:result().
offer(File, Port, Config, Client) ->
    {Proto, Options} = client(Config, Client),
    rekindle_clients:openssl_offer(Proto, Port, File, Options).

client(Config, Client) ->
    #{ca := Ca} = ?config(certs, Config),
    {maps:get(proto, Client, tls), maps:remove(proto, Client#{cafile => Ca})}.

%% @doc The scopes of a node's servers.
-spec servers(Node :: pid()) -> [rekindle_admin:info()].
servers(Node) ->
    [Info || #{role := server} = Info <- rekindle_node:call(Node, rekindle_admin, info, [])].

%% @doc The info of the newest journal of a node.
-spec journal(Node :: pid(), Key :: atom()) -> term().
journal(Node, Key) ->
    #{journal := #{Key := Value}} = lists:last(servers(Node)),
    Value.

%% @doc Waits until the node has written this many sessions, the records that they refer to (a template, a knowledge and a clock),
%% and its revocations. The queue alone does not tell: the writer takes records from it, and then appends the sessions last.
-spec await_written(Node :: pid(), Sessions :: pos_integer()) -> ok.
await_written(Node, Sessions) ->
    rekindle_node:await(fun() ->
        #{journal := #{written := Written, queued := Queued, unwritten := Unwritten}} = lists:last(servers(Node)),
        Written >= Sessions + 3 andalso Queued + Unwritten =:= 0
    end).

%% @doc Revokes with a function of the administration until the answer is that it is durable. On a busy machine, the log may take
%% longer than the two seconds after which the answer is that it is pending. Returns how many sessions were dropped.
-spec durably(Node :: pid(), revoke | forget | flush, Args :: [term()]) -> non_neg_integer().
durably(Node, Function, Args) ->
    durably(Node, Function, Args, 5).

durably(Node, Function, Args, Tries) ->
    case rekindle_node:call(Node, rekindle_admin, Function, Args) of
        {ok, Dropped} -> Dropped;
        {pending, Dropped, _} when Tries > 1 -> Dropped + durably(Node, Function, Args, Tries - 1)
    end.
