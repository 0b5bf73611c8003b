%% @doc A process that has a cache, as OTP's cache process has it: it opens the cache and makes the calls.
-module(bench_worker).

-export([start/1, stop/1, run/2, run_all/1]).

-type task(Reply) :: fun((bench_store:store()) -> {Reply, bench_store:store()}).

%% @doc `Open' runs in the new process.
-spec start(Open :: fun(() -> bench_store:store())) -> pid().
start(Open) ->
    spawn_link(fun() -> loop(Open()) end).

%% @doc Ends the worker, and its cache.
-spec stop(pid()) -> ok.
stop(Worker) ->
    Monitor = monitor(process, Worker),
    unlink(Worker),
    exit(Worker, kill),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    end.

%% @doc Runs the task in the worker, and returns its reply.
-spec run(pid(), task(Reply)) -> Reply.
run(Worker, Task) ->
    [Reply] = run_all([{Worker, Task}]),
    Reply.

%% @doc Runs each task in its worker, all at once.
-spec run_all([{pid(), task(Reply)}]) -> [Reply].
run_all(Tasks) ->
    [Worker ! {self(), Task} || {Worker, Task} <- Tasks],
    [
        receive
            {Worker, Reply} -> Reply
        end
     || {Worker, _} <- Tasks
    ].

loop(Store) ->
    receive
        {From, Task} ->
            {Reply, Next} = Task(Store),
            From ! {self(), Reply},
            loop(Next)
    end.
