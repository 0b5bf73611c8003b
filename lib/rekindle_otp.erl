%% @private Why OTP opens a cache: for a new listener, or for one that is in operation.
%%
%% An exception in `rekindle:init/1' ends only the start of a new listener, or of ssl. But it would end a listener, or a
%% supervisor, that is in operation. Only the stacks of OTP's processes tell the two apart: they wait until the calling process
%% has started.
-module(rekindle_otp).

-export([is_restart/0, is_in_operation/0, is_too_early/0]).
-export([note_cache/1, cache_of/1]).

-define(CACHE, rekindle_cache).

%% @doc Whether the listener or the supervisor that opens this cache is in operation.
-spec is_in_operation() -> boolean().
is_in_operation() ->
    is_restart() orelse is_replacement().

%% @doc Whether a supervisor restarts the calling process.
%%
%% A supervisor starts a child for the first time in a call (`handle_call'). When a child has ended, the supervisor gets a message and
%% restarts it (`handle_info'); if that fails, it sends itself a cast and tries again (`handle_cast'). This looks at all supervisors
%% above the process, because any of them may be the one that restarts it.
-spec is_restart() -> boolean().
is_restart() ->
    are_at(ancestors(), [{supervisor, handle_info}, {supervisor, handle_cast}]).

%% From OTP 29 on, a listener whose cache process has ended starts another one when the next client comes.
is_replacement() ->
    are_at(rekindle_scope:processes_of_listener(), [
        {tls_socket, handle_call},
        {dtls_packet_demux, handle_call},
        {dtls_packet_demux, handle_cast},
        {dtls_packet_demux, handle_info}
    ]).

are_at(Processes, Functions) ->
    lists:any(
        fun({Module, Function, _, _}) -> lists:member({Module, Function}, Functions) end,
        lists:flatmap(fun stack/1, Processes)
    ).

%% @doc Whether the node is booting and cannot load the native library yet. Distribution over TLS (`-proto_dist inet_tls')
%% opens caches that early. Up to OTP 25 the file server does not run then, and in embedded mode OTP knows the library's
%% module, but has not run its on_load function.
-spec is_too_early() -> boolean().
is_too_early() ->
    whereis(file_server_2) =:= undefined orelse
        (not erlang:module_loaded(rekindle_nif) andalso
            code:get_mode() =:= embedded andalso code:is_loaded(rekindle_nif) =/= false).

ancestors() ->
    case get('$ancestors') of
        undefined -> [];
        Ancestors -> Ancestors
    end.

stack(Name) when is_atom(Name) ->
    case whereis(Name) of
        undefined -> [];
        Process -> stack(Process)
    end;
stack(Process) when node(Process) =:= node() ->
    case process_info(Process, current_stacktrace) of
        {current_stacktrace, Frames} -> Frames;
        undefined -> []
    end;
stack(_) ->
    [].

%% @doc Notes for the doctor that the calling process has opened a cache, and whether the cache can keep sessions.
-spec note_cache(with_store | without_store) -> ok.
note_cache(Kind) ->
    _ = put(?CACHE, Kind),
    ok.

%% @doc The note of one of OTP's processes; `none' if its cache is not Rekindle's.
-spec cache_of(pid()) -> with_store | without_store | none.
cache_of(Process) ->
    case process_info(Process, dictionary) of
        {dictionary, Entries} -> proplists:get_value(?CACHE, Entries, none);
        undefined -> none
    end.
