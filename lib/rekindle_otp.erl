%% @private How OTP has come to open a cache. An exception ends no more than the start of a listener or of ssl, if nothing
%% was in operation before; otherwise it ends what is.
-module(rekindle_otp).

-export([is_restart/0, is_in_operation/0, is_too_early/0]).

%% @doc Whether the listener or the supervisor that opens this cache was at work before.
-spec is_in_operation() -> boolean().
is_in_operation() ->
    is_restart() orelse is_replacement().

%% Nothing but the stacks of OTP's processes tells it: they wait for the calling process to start.

%% @doc Whether a supervisor starts the calling process in place of another, with the arguments that this one had.
%%
%% A supervisor is sent a message when the other one ends, and casts to itself to try once more; for a first start it
%% is called. It may itself be one that a supervisor restarts.
-spec is_restart() -> boolean().
is_restart() ->
    are_at(ancestors(), [{supervisor, handle_info}, {supervisor, handle_cast}]).

%% Since OTP 29, a listener starts another cache process where its own has ended, when the next client comes.
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

%% @doc Whether the node boots, and cannot load the native library yet. Distribution over TLS (`-proto_dist inet_tls')
%% opens caches as early. Up to OTP 25 the file server is not there then, and in embedded mode OTP knows the module of
%% the library, but has not run its on_load function.
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
