%% @private Logs that sessions outlive a restart in, and that nodes share them by: opens them as the options say.
%%
%% The work is done by threads of the native library; rekindle_journal_watcher logs what happens to them.
-module(rekindle_journal).

-export([open/3, is_for/2, is_shared/1, name/1, node_folders/0]).

-include("rekindle_log.hrl").

%% How many times the memory of a scope its log may take, where no option says it. A log keeps what is revoked, replaced and
%% expired until it is trimmed.
-define(LOG_BYTES_PER_BYTE, 4).

%% Where the native side counts on 64 bits.
-define(MAX_BOUND, 16#7FFF_FFFF_FFFF_FFFF).

%% @doc Whether a scope of this label can have such a journal.
-spec is_for(rekindle:journal(), rekindle_admin:label()) -> boolean().
is_for(none, _) -> false;
is_for(_, unnamed) -> false;
is_for(Journal, Label) -> not is_shared(Journal) orelse is_named(Label).

%% Sharing by accident would let clients in where they are not trusted: what leaves the node has a name that the
%% operator has given it.
is_named({shared, _, _}) -> true;
is_named(_) -> false.

%% @doc Whether other nodes take part in it.
-spec is_shared(rekindle:journal()) -> boolean().
is_shared(Journal) ->
    element(1, Journal) =:= valkey.

%% @doc Opens the journal of a server's scope where there is one to be. Whatever is wrong with it is logged, and the
%% listener works without.
-spec open(rekindle_nif:store(), rekindle_admin:label(), rekindle_options:options()) -> ok.
open(_Store, _Label, #{journal := none}) ->
    ok;
open(_Store, unnamed, _Options) ->
    %% It has no name that it could have again.
    ok;
open(Store, Label, #{journal := Journal} = Options) ->
    case is_for(Journal, Label) of
        true ->
            %% Atoms that sessions have have to be there before sessions are read.
            _ = [code:ensure_loaded(Module) || Module <- [ssl_handshake, ssl_cipher, tls_v1, public_key]],
            case rekindle_nif:open_journal(Store, native(Label, Options)) of
                ok -> rekindle_journal_watcher:start();
                {error, Why} -> log(Label, Why)
            end;
        false ->
            log(Label, "a log that nodes share is for listeners that have a name in the option scope")
    end.

log(Label, Why) ->
    ?LOG_LINE(warning, journal, "rekindle: no journal for ~ts: ~ts", [rekindle_table:scope(Label), Why]).

-spec native(rekindle_admin:label(), rekindle_options:options()) -> rekindle_nif:journal().
native(Label, #{journal := Journal, wait_for_living_node := Waits} = Options) ->
    maps:merge(
        #{
            scope => name(Label),
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

%% @doc What a scope is called in its log.
-spec name(rekindle_admin:label()) -> binary().
name(Label) ->
    unicode:characters_to_binary(io_lib:format("~0tp", [Label])).

%% @doc Where listeners of this node remember revocations, if they are opened now: in one folder, or in none where they have a
%% journal without one (`undefined'). Empty where they have no journal. No listener need be open.
-spec node_folders() -> [binary() | undefined].
node_folders() ->
    case rekindle_options:configured() of
        {ok, #{journal := none}, _} -> [];
        {ok, Options, _} ->
            case node_folder(Options) of
                [] -> [undefined];
                Folders -> Folders
            end;
        {error, _} -> []
    end.

node_folder(#{journal := none}) -> [];
node_folder(#{node_folder := undefined, journal := Journal}) -> [Dir || {folder, Dir} <- [log_of(Journal)]];
node_folder(#{node_folder := Dir}) -> [rekindle_options:path_to_native(Dir)].

log_of({folder, Dir}) -> {folder, rekindle_options:path_to_native(Dir)};
log_of({folder, Dir, _}) -> {folder, rekindle_options:path_to_native(Dir)};
log_of({valkey, Url, Options}) ->
    Given = maps:from_list([{Name, native_option(Name, Value)} || {Name, Value} <- Options, Name =/= key_file]),
    {valkey, maps:merge(#{url => text(Url), cluster => false, partitions => 1}, Given)}.

native_option(Name, Value) when Name =:= cluster; Name =:= partitions -> Value;
native_option(Name, Value) when Name =:= user; Name =:= password_env -> text(Value);
native_option(_, Value) -> rekindle_options:path_to_native(Value).

text(Value) ->
    unicode:characters_to_binary(Value).

key_file({folder, Dir}) -> rekindle_options:path_to_native(filename:join(Dir, "keys"));
key_file({folder, Dir, Options}) -> rekindle_options:path_to_native(proplists:get_value(key_file, Options, filename:join(Dir, "keys")));
key_file({valkey, _, Options}) -> rekindle_options:path_to_native(proplists:get_value(key_file, Options)).

%% Keys that the operator keeps elsewhere may be away for a while: others in their place would open nothing.
makes_key({folder, _}) -> true;
makes_key({folder, _, Options}) -> not lists:keymember(key_file, 1, Options);
makes_key({valkey, _, _}) -> false.
