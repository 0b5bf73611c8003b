%% @doc Collects the lines that Rekindle logs in another node.
-module(rekindle_log_lines).

-export([collect/1, taken/1]).
-export([collect/0, take/0, log/2]).

%% @doc Begins to collect the node's lines.
-spec collect(Node :: pid()) -> ok.
collect(Node) ->
    rekindle_node:call(Node, ?MODULE, collect, []).

%% @doc The lines so far, oldest first.
-spec taken(Node :: pid()) -> [string()].
taken(Node) ->
    rekindle_node:call(Node, ?MODULE, take, []).

%% @private
collect() ->
    Collector = spawn(fun() -> keep([]) end),
    true = register(?MODULE, Collector),
    logger:add_handler(?MODULE, ?MODULE, #{config => Collector}).

%% @private
take() ->
    ?MODULE ! {take, self()},
    receive
        {lines, Lines} -> Lines
    end.

keep(Lines) ->
    receive
        {logged, Line} ->
            keep([Line | Lines]);
        {take, From} ->
            From ! {lines, lists:reverse(Lines)},
            keep(Lines)
    end.

%% @private A logger handler.
log(#{msg := {Format, Args}, meta := #{rekindle := _}}, #{config := Collector}) ->
    Collector ! {logged, lists:flatten(io_lib:format(Format, Args))};
log(_, _) ->
    ok.
