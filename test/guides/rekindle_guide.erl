%% @doc Follows a guide of docs/guides to the letter: its code blocks, from the first to the last.
%%
%% A block whose line above ends in "`FILE`:" becomes that file. A block of `sh' is run, and has to succeed;
%% one of `sh foreground' is run until {@link stop/1}. A block of `text' is what the command before it has to
%% print, blanks aside: `…' stands for anything in a line, and on a line of its own for any lines.
%%
%% Before a command that names a port of this machine, that port is waited for.
-module(rekindle_guide).

-include_lib("stdlib/include/assert.hrl").

-export([follow/2, follow/3, stop/1]).

-export_type([place/0]).

-type place() :: #{
    %% Where the commands run.
    dir := file:filename(),
    env := [{string(), string()}],
    %% What is another here than in the guide: paths, ports, where to fetch from.
    replace := [{Regexp :: iodata(), With :: iodata()}],
    %% Called after each command.
    after_command := fun(() -> term())
}.

-type block() :: {Language :: binary(), File :: binary() | none, Text :: binary()}.

-define(TIMEOUT, 180_000).

%% @doc Follows a whole guide.
-spec follow(file:filename(), place()) -> ok.
follow(Guide, Place) ->
    follow(Guide, fun(_) -> true end, Place).

%% @doc Follows the sections with these titles.
-spec follow(file:filename(), fun((Title :: binary()) -> boolean()), place()) -> ok.
follow(Guide, Wanted, Place) ->
    {ok, Text} = file:read_file(Guide),
    Blocks = [Block || {Title, Section} <- sections(Text), Wanted(Title), Block <- blocks(Section)],
    ?assertNotEqual([], Blocks),
    _ = lists:foldl(fun(Block, Printed) -> act(Block, Printed, Place) end, <<>>, Blocks),
    ok.

%% @doc Ends what {@link follow/2} has left running in this folder.
-spec stop(file:filename()) -> ok.
stop(Dir) ->
    [
        begin
            {ok, Pid} = file:read_file(File),
            end_group(string:trim(Pid), File)
        end
     || File <- filelib:wildcard(filename:join(Dir, "*.pid"))
    ],
    ok.

%% ---- the guide ----

sections(Text) ->
    [
        case binary:split(Part, <<"\n">>) of
            [Title, Section] -> {Title, Section};
            [Title] -> {Title, <<>>}
        end
     || Part <- re:split(Text, "(?m)^## ")
    ].

-spec blocks(binary()) -> [block()].
blocks(Section) ->
    Fence = "(?ms)(?:^([^\n]*)\n\n?)?^```([\\w ]*)\n(.*?)^```$",
    case re:run(Section, Fence, [global, unicode, {capture, all_but_first, binary}]) of
        {match, Found} -> [{Language, file_named(Above), Text} || [Above, Language, Text] <- Found];
        nomatch -> []
    end.

file_named(Above) ->
    case re:run(Above, "`([^`]+)`:$", [{capture, all_but_first, binary}]) of
        {match, [Name]} -> Name;
        nomatch -> none
    end.

%% ---- what to do ----

act({<<"text">>, none, Expected}, Printed, Place) ->
    has_printed(replace(Expected, Place), Printed),
    Printed;
act({<<"sh foreground">>, none, Command}, _, Place) ->
    start(replace(Command, Place), Place),
    <<>>;
act({<<"sh">>, none, Command}, _, #{after_command := After} = Place) ->
    Replaced = replace(Command, Place),
    [await_port(binary_to_integer(Port)) || Port <- captured("127\\.0\\.0\\.1:(\\d+)", Replaced)],
    {Status, Printed} = run(Replaced, Place),
    ct:log("~ts~n~ts", [Replaced, Printed]),
    Status =:= 0 orelse fail("Status ~p:~n~ts~n~ts", [Status, Replaced, Printed]),
    After(),
    Printed;
act({_, File, Text}, Printed, #{dir := Dir} = Place) when File =/= none ->
    Path = filename:join(Dir, replace(File, Place)),
    ok = filelib:ensure_dir(Path),
    ok = file:write_file(Path, replace(Text, Place)),
    Printed.

replace(Text, #{replace := Replacements}) ->
    Replace = fun({Regexp, With}, Before) ->
        re:replace(Before, Regexp, With, [global, unicode, {return, binary}])
    end,
    lists:foldl(Replace, Text, Replacements).

has_printed(Expected, Printed) ->
    Lines = [line(Line) || Line <- binary:split(without_blanks(Expected), <<"\n">>, [global, trim])],
    case re:run(without_blanks(Printed), ["(?m)^", Lines], [unicode, {capture, none}]) of
        match -> ok;
        nomatch -> fail("Expected:~n~ts~nPrinted:~n~ts", [Expected, Printed])
    end.

line(<<"…"/utf8>>) ->
    "(?:.*\n)*?";
line(Line) ->
    Escaped = re:replace(Line, "[][.*+?(){}|^$\\\\]", "\\\\&", [global, unicode]),
    [re:replace(Escaped, "…", ".*", [global, unicode]), "$\n?"].

%% rebar3 cannot print a reason with other characters.
fail(Format, Args) ->
    ct:fail("~s", [[Char || Char <- text(io_lib:format(Format, Args)), Char < 128]]).

%% How a table or a term is laid out depends on the widest cell, and on the release.
without_blanks(Text) ->
    re:replace(Text, "[ \t]+", "", [global, {return, binary}]).

captured(Regexp, Text) ->
    case re:run(Text, Regexp, [global, {capture, all_but_first, binary}]) of
        {match, Matches} -> lists:append(Matches);
        nomatch -> []
    end.

%% ---- commands ----

run(Command, #{dir := Dir} = Place) ->
    Script = text(["cd \"$0\"\n", Command]),
    rekindle_clients:run("env", env(Place) ++ ["sh", "-ec", Script, Dir], [], ?TIMEOUT).

%% In a process group of its own, by which it is ended. Its input stays open.
start(Command, #{dir := Dir} = Place) ->
    Name = filename:join(Dir, integer_to_list(erlang:unique_integer([positive]))),
    Script = text(["cd \"$0\"\necho $$ >", Name, ".pid\nexec >", Name, ".log 2>&1\n", Command]),
    spawn(fun() ->
        rekindle_clients:run("setsid", ["--wait", "env"] ++ env(Place) ++ ["sh", "-ec", Script, Dir], [], 10 * ?TIMEOUT)
    end),
    await(fun() -> filelib:is_regular(Name ++ ".pid") end, started).

env(#{env := Env}) ->
    [Name ++ "=" ++ Value || {Name, Value} <- Env].

text(Chardata) ->
    unicode:characters_to_list(Chardata).

await_port(Port) ->
    await(
        fun() ->
            case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
                {ok, Socket} -> gen_tcp:close(Socket) =:= ok;
                {error, _} -> false
            end
        end,
        {port, Port}
    ).

end_group(Pid, File) ->
    kill("-TERM", Pid),
    try
        await(fun() -> kill("-0", Pid) =/= 0 end, {ended, Pid})
    catch
        error:_ -> kill("-KILL", Pid)
    end,
    ok = file:delete(File).

kill(Signal, Group) ->
    {Status, _} = rekindle_clients:run("kill", [Signal, "--", text([$-, Group])], [], ?TIMEOUT),
    Status.

await(Condition, What) ->
    await(Condition, What, 600).

await(_, What, 0) ->
    error({awaited_in_vain, What});
await(Condition, What, Tries) ->
    case Condition() of
        true ->
            ok;
        false ->
            timer:sleep(100),
            await(Condition, What, Tries - 1)
    end.
