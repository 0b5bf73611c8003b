%% @doc A collector for the library prometheus.erl. Turn it on with
%% `prometheus_registry:register_collector(rekindle_prometheus_collector)', or in the environment of `prometheus'. It does not
%% name the behaviour `prometheus_collector', because that would need the library at compile time.
-module(rekindle_prometheus_collector).

-export([collect_mf/2, deregister_cleanup/1]).

%% @private
-spec collect_mf(Registry :: term(), fun((MetricFamily :: term()) -> term())) -> ok.
collect_mf(_Registry, Callback) ->
    %% In a variable, so that no tool reports a missing module: only some nodes have the library.
    Library = prometheus_model_helpers,
    lists:foreach(
        fun({Name, Help, Type, Samples}) -> Callback(Library:create_mf(Name, Help, Type, Samples)) end,
        rekindle_metrics:families()
    ).

%% @private
-spec deregister_cleanup(Registry :: term()) -> ok.
deregister_cleanup(_Registry) ->
    ok.
