%% @private The metadata of Rekindle's log events, for an operator's filters and formatters.
-module(rekindle_log).

-export([metadata/1]).

%% `rekindle' says what the line is about. There is a `domain' only if the operator configures one, because OTP's default
%% handler drops events of domains that it does not know.
-spec metadata(Topic :: atom()) -> logger:metadata().
metadata(Topic) ->
    case application:get_env(rekindle, log_domain) of
        {ok, [_ | _] = Domain} -> #{rekindle => Topic, domain => Domain};
        _ -> #{rekindle => Topic}
    end.
