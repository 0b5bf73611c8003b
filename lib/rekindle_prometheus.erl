%% @doc The metrics in Prometheus' text format. Serve them with the node's own HTTP server: see docs/metrics.md.
-module(rekindle_prometheus).

-export([text/0, content_type/0]).

%% @doc All metrics of this node, in UTF-8.
-spec text() -> iodata().
text() ->
    [family(Family) || Family <- rekindle_metrics:families()].

%% @doc The value of the header `content-type' that goes with {@link text/0}.
-spec content_type() -> string().
content_type() ->
    "text/plain; version=0.0.4; charset=utf-8".

family({Name, Help, Type, Samples}) ->
    Metric = atom_to_binary(Name),
    [
        ["# HELP ", Metric, $\s, Help, $\n, "# TYPE ", Metric, $\s, atom_to_binary(Type), $\n]
        | [[Metric, labels(Labels), $\s, number(Value), $\n] || {Labels, Value} <- Samples]
    ].

number(Value) when is_integer(Value) -> integer_to_binary(Value);
number(Value) -> float_to_binary(Value, [{decimals, 3}]).

labels([]) -> [];
labels(Labels) -> [${, lists:join($,, [label(Label) || Label <- Labels]), $}].

label({Name, Value}) when is_atom(Value) -> label({Name, atom_to_binary(Value)});
label({Name, Value}) -> [atom_to_binary(Name), "=\"", [escaped(Char) || <<Char>> <= Value], $"].

%% No byte of a longer UTF-8 sequence is one of these.
escaped($\\) -> "\\\\";
escaped($") -> "\\\"";
escaped($\n) -> "\\n";
escaped(Byte) -> Byte.
