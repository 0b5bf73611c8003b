%% @private What is checked of a client's certificate before a session is resumed.
-module(rekindle_trust).

-export([open/2]).

%% @doc Has the sessions of a server's scope checked as the options say.
-spec open(rekindle_nif:store(), rekindle_options:options()) -> ok.
open(Store, #{expired_certificates := Expired, stale_crls := Stale, crls := Paths}) ->
    ok = rekindle_nif:set_trust(Store, Expired =:= resume, Stale =:= resume, [rekindle_crls:path(Path) || Path <- Paths]),
    Paths =:= [] orelse rekindle_crls:watch(),
    ok.
