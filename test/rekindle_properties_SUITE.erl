%% Tests properties of the callbacks, and of OTP's processes that call them, with random sequences.
%%
%% `PROPERTY_CASES=200000 rebar3 ct --suite test/rekindle_properties_SUITE' runs more cases than usual. A
%% property that fails writes down its counterexample and prints how to run just that again.
-module(rekindle_properties_SUITE).

-include_lib("common_test/include/ct.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2]).
-export([
    the_callbacks_answer_as_the_model/1,
    a_server_s_cache_alone_answers_as_the_model/1,
    a_client_s_cache_alone_answers_as_the_model/1,
    what_is_promised_holds_for_processes_that_work_at_once/1,
    the_server_s_process_of_otp_lives_on/1,
    the_client_s_manager_of_otp_lives_on/1,
    the_real_cache_process_stays/1,
    the_real_manager_stays/1
]).
-export([check/2, check_again/2]).

suite() ->
    case os:getenv("PROPERTY_CASES") of
        false -> [{timetrap, {minutes, 10}}];
        _ -> [{timetrap, infinity}]
    end.

all() ->
    [
        the_callbacks_answer_as_the_model,
        a_server_s_cache_alone_answers_as_the_model,
        a_client_s_cache_alone_answers_as_the_model,
        what_is_promised_holds_for_processes_that_work_at_once,
        the_server_s_process_of_otp_lives_on,
        the_client_s_manager_of_otp_lives_on,
        the_real_cache_process_stays,
        the_real_manager_stays
    ].

init_per_suite(Config) ->
    [{testing_build, rekindle_checkout:testing_build(Config)} | Config].

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    [{test_case, Case} | Config].

the_callbacks_answer_as_the_model(Config) ->
    Node = start(Config),
    ok = rekindle_node:call(Node, rekindle_statem, open_sockets, []),
    holds(Node, {rekindle_statem, prop_answers_are_those_of_the_model}, 3000, Config).

a_server_s_cache_alone_answers_as_the_model(Config) ->
    holds(start(Config), {rekindle_statem, prop_one_server_cache}, 2000, Config).

a_client_s_cache_alone_answers_as_the_model(Config) ->
    holds(start(Config), {rekindle_statem, prop_one_client_cache}, 2000, Config).

what_is_promised_holds_for_processes_that_work_at_once(Config) ->
    Node = start(Config),
    holds(Node, {rekindle_concurrency, prop_promises_hold}, 500, Config).

the_server_s_process_of_otp_lives_on(Config) ->
    holds(start(Config), {rekindle_otp_model, prop_server_cache_process_lives_on}, 3000, Config).

the_client_s_manager_of_otp_lives_on(Config) ->
    holds(start(Config), {rekindle_otp_model, prop_client_manager_lives_on}, 3000, Config).

the_real_cache_process_stays(Config) ->
    holds(start(Config), {rekindle_otp_processes, prop_the_cache_process_stays}, 1000, Config).

the_real_manager_stays(Config) ->
    holds(start(Config), {rekindle_otp_processes, prop_the_manager_stays}, 1000, Config).

%% ---- running properties ----

start(Config) ->
    rekindle_node:start([], [?config(testing_build, Config)]).

%% Runs the property in the node, and stops the node.
holds(Node, {Module, Property}, Cases, Config) ->
    {Result, Output} =
        case os:getenv("PROPERTY_COUNTEREXAMPLE") of
            false ->
                peer:call(Node, ?MODULE, check, [{Module, Property}, cases(Cases)], infinity);
            File ->
                {ok, [Counterexample]} = file:consult(File),
                peer:call(Node, ?MODULE, check_again, [{Module, Property}, Counterexample], infinity)
        end,
    rekindle_node:stop(Node),
    ct:log("~ts", [Output]),
    Result =:= true orelse fail(Property, Result, Output, Config).

cases(Usual) ->
    list_to_integer(os:getenv("PROPERTY_CASES", integer_to_list(Usual))).

%% @private In the node.
check({Module, Property}, Cases) ->
    with_output(fun(Options) ->
        proper:quickcheck(Module:Property(), [long_result, {numtests, Cases} | Options])
    end).

%% @private In the node.
check_again({Module, Property}, Counterexample) ->
    with_output(fun(Options) -> proper:check(Module:Property(), Counterexample, Options) end).

%% The node's output must be sent here.
with_output(Run) ->
    Leader = spawn_link(fun() -> collect([]) end),
    group_leader(Leader, self()),
    Result = Run([nocolors]),
    Leader ! {output, self()},
    receive
        {Leader, Output} -> {Result, Output}
    end.

%% The part of Erlang's I/O protocol that printing needs.
collect(Output) ->
    receive
        {io_request, From, ReplyAs, Request} ->
            From ! {io_reply, ReplyAs, ok},
            collect([Output | printed(Request)]);
        {output, From} ->
            From ! {self(), unicode:characters_to_binary(Output)}
    end.

printed({put_chars, _, Text}) -> [Text];
printed({put_chars, _, Module, Function, Args}) -> [apply(Module, Function, Args)];
printed(_) -> [].

fail(Property, Counterexample, Output, Config) when is_list(Counterexample) ->
    File = filename:join(?config(priv_dir, Config), atom_to_list(Property) ++ ".counterexample"),
    ok = file:write_file(File, io_lib:format("~0tp.~n", [Counterexample])),
    ct:pal(
        "~ts~nTo run just this again:~n"
        "  PROPERTY_COUNTEREXAMPLE=~ts rebar3 ct --suite test/~s --case ~s",
        [Output, File, ?MODULE, ?config(test_case, Config)]
    ),
    ct:fail({Property, Counterexample});
fail(Property, Result, Output, _Config) ->
    ct:pal("~ts", [Output]),
    ct:fail({Property, Result}).
