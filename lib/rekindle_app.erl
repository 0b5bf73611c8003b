%% @private Starting the application is not needed: ssl calls the cache whether it runs or not. Where it
%% is started, it looks whether ssl does.
-module(rekindle_app).

-behaviour(application).
-behaviour(supervisor).

-export([start/2, stop/1]).
-export([init/1]).

start(_Type, _Args) ->
    try
        rekindle_doctor:log(rekindle_doctor:findings())
    catch
        %% What is looked at is OTP's inside, and no reason not to start.
        _:_ -> ok
    end,
    supervisor:start_link({local, rekindle_sup}, ?MODULE, []).

stop(_State) ->
    ok.

init([]) ->
    {ok, {#{}, []}}.
