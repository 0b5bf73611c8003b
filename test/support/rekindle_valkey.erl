%% @doc Real Valkey and Redis servers on 127.0.0.1, each with a password and a folder of its own.
%%
%% A server ends with the process that started it, or by {@link stop/1}; nothing is written to disk.
-module(rekindle_valkey).

-export([programs/0, start/2, start/3, stop/1, suspend/1, resume/1, command/2, url/1, url/2]).

-export_type([server/0]).

-type server() :: #{
    port := inet:port_number(),
    tls := boolean(),
    password := string(),
    pid := string(),
    owner := pid(),
    cli := string(),
    dir := file:filename()
}.

-define(SECOND, 1000).

%% @doc The servers that are installed.
-spec programs() -> [string()].
programs() ->
    [Program || Program <- ["valkey-server", "redis-server"], os:find_executable(Program) =/= false].

%% @doc Starts a server with its files in this folder, on an unused port.
-spec start(Program :: string(), Dir :: file:filename()) -> server().
start(Program, Dir) ->
    start(Program, Dir, #{}).

%% @doc The same with a certain port or password, with TLS, or with options of the server's own.
-spec start(Program :: string(), Dir :: file:filename(), #{
    port => inet:port_number(),
    password => string(),
    tls => #{cert := file:filename(), key := file:filename(), ca := file:filename()},
    options => [string()]
}) -> server().
start(Program, Dir, Wanted) ->
    Port = maps:get(port, Wanted, rekindle_node:free_port()),
    Password = maps:get(password, Wanted, "pass word/1"),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Args =
        listening(Port, Wanted) ++
            ["--bind", "127.0.0.1", "--dir", Dir, "--save", "", "--appendonly", "no", "--requirepass", Password] ++
            maps:get(options, Wanted, []),
    Self = self(),
    Owner = spawn(fun() -> own(Self, Program, Args) end),
    Pid =
        receive
            {Owner, started, OsPid} -> integer_to_list(OsPid)
        end,
    Server = #{
        port => Port,
        tls => is_map_key(tls, Wanted),
        password => Password,
        pid => Pid,
        owner => Owner,
        cli => lists:flatten(string:replace(Program, "server", "cli")),
        dir => Dir
    },
    rekindle_node:await(fun() -> is_ready(Server, Wanted) end),
    Server.

listening(Port, #{tls := #{cert := Cert, key := Key, ca := Ca}}) ->
    [
        "--port",
        "0",
        "--tls-port",
        integer_to_list(Port),
        "--tls-cert-file",
        Cert,
        "--tls-key-file",
        Key,
        "--tls-ca-cert-file",
        Ca,
        "--tls-auth-clients",
        "no",
        "--tls-replication",
        "yes"
    ];
listening(Port, _) ->
    ["--port", integer_to_list(Port)].

%% Keeps the port, whose end ends the server.
own(Starter, Program, Args) ->
    Monitor = monitor(process, Starter),
    Port = open_port({spawn_executable, os:find_executable(Program)}, [{args, Args}, binary, stderr_to_stdout, exit_status]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    Starter ! {self(), started, OsPid},
    own_until(Monitor, Port, OsPid).

own_until(Monitor, Port, OsPid) ->
    receive
        {Port, {data, _}} -> own_until(Monitor, Port, OsPid);
        {Port, {exit_status, _}} -> ok;
        {'DOWN', Monitor, _, _, _} -> signal("KILL", integer_to_list(OsPid))
    end.

is_ready(Server, #{tls := _}) ->
    case gen_tcp:connect({127, 0, 0, 1}, maps:get(port, Server), []) of
        {ok, Socket} -> gen_tcp:close(Socket) =:= ok;
        {error, _} -> false
    end;
is_ready(Server, _) ->
    command(Server, ["PING"]) =:= "PONG".

%% @doc Ends it at once.
-spec stop(server()) -> ok.
stop(#{pid := Pid, owner := Owner}) ->
    Monitor = monitor(process, Owner),
    signal("KILL", Pid),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    end.

%% @doc Keeps it from doing anything, without closing its connections.
-spec suspend(server()) -> ok.
suspend(#{pid := Pid}) -> signal("STOP", Pid).

-spec resume(server()) -> ok.
resume(#{pid := Pid}) -> signal("CONT", Pid).

signal(Signal, Pid) ->
    {_, _} = rekindle_clients:run("kill", ["-" ++ Signal, Pid], [], 10 * ?SECOND),
    ok.

%% @doc The server's answer, as text.
-spec command(server(), [string()]) -> string().
command(#{port := Port, password := Password, cli := Cli}, Args) ->
    {_, Output} = rekindle_clients:run(
        Cli, ["-p", integer_to_list(Port), "--no-auth-warning", "-a", Password | Args], [], 10 * ?SECOND
    ),
    string:trim(binary_to_list(Output)).

%% @doc The server's address, with its password.
-spec url(server()) -> string().
url(#{password := Password} = Server) ->
    url(Server, ":" ++ uri_string:quote(Password) ++ "@").

%% @doc The server's address, with this before the host.
-spec url(server(), string()) -> string().
url(#{port := Port, tls := Tls}, UserInfo) ->
    Scheme =
        case Tls of
            true -> "valkeys";
            false -> "valkey"
        end,
    lists:concat([Scheme, "://", UserInfo, "127.0.0.1:", Port]).
