%% @doc What an operator asks of the cache, from a remote shell or a program.
-module(rekindle_admin).

-export([info/0]).

-export_type([info/0]).

%% One scope. `bytes' and `max_bytes' in bytes, `lifetime' in seconds; `templates' is how many kinds of
%% sessions are kept in common parts; the rest are numbers of sessions, or of calls since the scope was
%% opened. A client scope has no bounds of its own: ssl's
%% `session_cache_client_max' and `session_lifetime' bound it.
-type info() :: #{
    scope := rekindle_scope:label(),
    role := server | client,
    sessions := non_neg_integer(),
    bytes := non_neg_integer(),
    templates := non_neg_integer(),
    max_bytes := pos_integer() | infinity,
    max_sessions := pos_integer() | infinity,
    lifetime := non_neg_integer() | infinity,
    inserts := non_neg_integer(),
    hits := non_neg_integer(),
    misses := non_neg_integer(),
    expired := non_neg_integer(),
    evicted := non_neg_integer(),
    refused := non_neg_integer(),
    faults := non_neg_integer()
}.

%% @doc All scopes of this node, the first opened first. The list is empty where no listener and no
%% client uses the cache. Fails with `{not_loaded, rekindle_nif}' where the native library is missing.
-spec info() -> [info()].
info() ->
    rekindle_nif:info().
