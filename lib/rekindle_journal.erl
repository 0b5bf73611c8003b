%% @private Opens the journals of servers' scopes as the options say.
%%
%% Threads of the native library do the work. rekindle_journal_watcher logs what happens to them.
-module(rekindle_journal).

-export([open/3, node_folders/0]).

-include("rekindle_log.hrl").

%% The default of max_log_bytes, as a multiple of max_bytes. Until it is trimmed, a log also keeps sessions that were revoked,
%% replaced or have expired.
-define(LOG_BYTES_PER_BYTE, 4).

%% The native side has signed 64-bit bounds.
-define(MAX_BOUND, 16#7FFF_FFFF_FFFF_FFFF).

%% @doc Opens the journal of a server's scope if the options ask for one. If that fails, a line is logged and the listener works
%% without a journal.
-spec open(rekindle_nif:store(), rekindle_admin:scope_name(), rekindle_options:options()) -> ok.
open(_Store, _Scope, #{journal := none}) ->
    ok;
open(_Store, unnamed, _Options) ->
    %% After a restart, such a scope could not be found in the log.
    ok;
open(Store, Scope, #{journal := Journal} = Options) ->
    case rekindle_scope:can_have_journal(Scope, Journal) of
        true ->
            %% The reader makes no atoms, so the atoms in sessions must exist before it reads.
            _ = [code:ensure_loaded(Module) || Module <- [ssl_handshake, ssl_cipher, tls_v1, public_key]],
            case rekindle_nif:open_journal(Store, native(Scope, Options)) of
                ok ->
                    rekindle_journal_watcher:start(),
                    rekindle_suites:start(Scope);
                {error, Why} ->
                    log(Scope, Why)
            end;
        false when Scope =:= upgraded ->
            log(Scope, "nodes share sessions by name, and upgraded sockets have none");
        false ->
            log(Scope, "Valkey needs a listener with a name, for example {scope, #{8883 => mqtt}}")
    end.

log(Scope, Why) ->
    ?LOG_LINE(warning, journal, "rekindle: no journal for ~ts: ~ts", [rekindle_scope:text(Scope), Why]).

-spec native(rekindle_admin:scope_name(), rekindle_options:options()) -> rekindle_nif:journal().
native(Scope, #{journal := Journal, wait_for_living_node := Waits} = Options) ->
    maps:merge(
        #{
            scope => rekindle_scope:log_name(Scope),
            layout => rekindle_layout:layout(),
            key_file => key_file(Journal),
            makes_key => makes_key(Journal),
            wait_for_living_node => Waits,
            max_log_bytes => max_log_bytes(Options),
            log => log_of(Journal)
        },
        maps:from_list([{node_folder, Folder} || Folder <- node_folder(Options)])
    ).

max_log_bytes(#{max_log_bytes := undefined, max_bytes := MaxBytes}) -> min(?LOG_BYTES_PER_BYTE * MaxBytes, ?MAX_BOUND);
max_log_bytes(#{max_log_bytes := MaxLogBytes}) -> MaxLogBytes.

%% @doc Where listeners that are opened now remember revocations: a folder, or `undefined' if they have a journal without a node
%% folder. Empty if they have no journal. No listener need be open.
-spec node_folders() -> [binary() | undefined].
node_folders() ->
    case rekindle_options:configured() of
        {ok, #{journal := none}, _} ->
            [];
        {ok, Options, _} ->
            case node_folder(Options) of
                [] -> [undefined];
                Folders -> Folders
            end;
        {error, _} ->
            []
    end.

node_folder(#{journal := none}) -> [];
node_folder(#{node_folder := undefined, journal := Journal}) -> [Dir || {folder, Dir} <- [log_of(Journal)]];
node_folder(#{node_folder := Dir}) -> [rekindle_options:path_to_native(Dir)].

log_of({folder, Dir}) ->
    {folder, rekindle_options:path_to_native(Dir)};
log_of({folder, Dir, _}) ->
    {folder, rekindle_options:path_to_native(Dir)};
log_of({valkey, Url, Options}) ->
    Given = maps:from_list([{Name, native_option(Name, Value)} || {Name, Value} <- Options, Name =/= key_file]),
    {valkey, maps:merge(#{url => text(Url), cluster => false, partitions => 1}, Given)}.

native_option(Name, Value) when Name =:= cluster; Name =:= partitions -> Value;
native_option(Name, Value) when Name =:= user; Name =:= password_env -> text(Value);
native_option(_, Value) -> rekindle_options:path_to_native(Value).

text(Value) ->
    unicode:characters_to_binary(Value).

key_file({folder, Dir}) ->
    rekindle_options:path_to_native(filename:join(Dir, "keys"));
key_file({folder, Dir, Options}) ->
    rekindle_options:path_to_native(proplists:get_value(key_file, Options, filename:join(Dir, "keys")));
key_file({valkey, _, Options}) ->
    rekindle_options:path_to_native(proplists:get_value(key_file, Options)).

%% A key file of the operator's may be missing for a while. Rekindle must not put new keys in its place: they would open nothing.
makes_key({folder, _}) -> true;
makes_key({folder, _, Options}) -> not lists:keymember(key_file, 1, Options);
makes_key({valkey, _, _}) -> false.
