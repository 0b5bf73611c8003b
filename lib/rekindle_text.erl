%% @private Text for people: tables and paragraphs that fit into a width, and numbers with units.
-module(rekindle_text).

-export([table/2, paragraphs/2, bytes/1, duration/1, percent/1, count/1]).

-export_type([width/0, table/0]).

-type width() :: pos_integer() | infinity.

-type table() :: {Head :: [unicode:chardata(), ...], Rows :: [[unicode:chardata(), ...]]}.
%% The first column holds names, the others numbers.

%% A name of at most this many characters stands on the same line as its numbers.
-define(SHORT_NAME, 24).

-define(GAP, "  ").

%% @doc The table as lines that are no wider than `Width'. If the columns need more, the rest of them follow as further tables. A
%% long name that has no room beside its numbers stands on a line of its own above them.
-spec table(table(), width()) -> unicode:chardata().
table({Head, Rows}, Width) ->
    [Names | Columns] = columns([[unicode:characters_to_list(Cell) || Cell <- Row] || Row <- [Head | Rows]]),
    ForName = min(longest(Names), ?SHORT_NAME),
    lists:join($\n, [block(Names, Block, Width) || Block <- blocks(Columns, ForName, Width)]).

columns([[] | _]) -> [];
columns(Rows) -> [[hd(Row) || Row <- Rows] | columns([tl(Row) || Row <- Rows])].

%% Lists of as many columns as fit beside a short name.
blocks(Columns, ForName, Width) -> blocks(Columns, ForName, Width, ForName, []).

blocks([], _, _, _, Block) ->
    [lists:reverse(Block)];
blocks([Column | Rest] = Columns, ForName, Width, Used, Block) ->
    case Used + column_width(Column) of
        Total when Total > Width, Block =/= [] -> [lists:reverse(Block) | blocks(Columns, ForName, Width)];
        Total -> blocks(Rest, ForName, Width, Total, [Column | Block])
    end.

column_width(Column) -> length(?GAP) + longest(Column).

longest(Texts) -> lists:max([string:length(Text) || Text <- Texts]).

block(Names, Columns, Width) ->
    Room = room(Width, lists:sum([column_width(Column) || Column <- Columns])),
    NameWidth = lists:max([0 | [string:length(Name) || Name <- Names, string:length(Name) =< Room]]),
    [row(Name, Numbers, NameWidth, Width) || [Name | Numbers] <- columns([Names | [padded(Column) || Column <- Columns]])].

room(infinity, _) -> infinity;
room(Width, Taken) -> Width - Taken.

padded(Column) ->
    Width = longest(Column),
    [string:pad(Cell, Width, leading) || Cell <- Column].

row(Name, Numbers, NameWidth, Width) ->
    case string:length(Name) =< NameWidth of
        true -> [string:pad(Name, NameWidth), [[?GAP, Number] || Number <- Numbers], $\n];
        false -> [cut(Name, Width), row("", Numbers, NameWidth, Width)]
    end.

%% In lines of this width at most, wherever they end.
cut(Text, Width) ->
    case string:length(Text) =< Width of
        true -> [Text, $\n];
        false -> [string:slice(Text, 0, Width), $\n | cut(string:slice(Text, Width), Width)]
    end.

%% @doc Each text as a paragraph. Its lines after the first are indented.
-spec paragraphs([unicode:chardata()], width()) -> unicode:chardata().
paragraphs(Texts, Width) ->
    [wrapped(words(unicode:characters_to_list(Text), Width), Width) || Text <- Texts].

%% A word that is wider than a line, such as a path, is cut.
words(Text, Width) ->
    lists:append([pieces(Word, Width) || Word <- string:lexemes(Text, " \n")]).

pieces(Word, Width) ->
    case string:length(Word) + length(?GAP) =< Width of
        true -> [Word];
        false -> [string:slice(Word, 0, Width - length(?GAP)) | pieces(string:slice(Word, Width - length(?GAP)), Width)]
    end.

wrapped([], _) -> [];
wrapped([Word | Words], Width) -> wrapped(Words, string:length(Word), [Word], Width).

wrapped([], _, Text, _) ->
    [lists:reverse(Text), $\n];
wrapped([Word | Words], Used, Text, Width) ->
    case Used + 1 + string:length(Word) of
        Total when Total =< Width -> wrapped(Words, Total, [Word, $\s | Text], Width);
        _ -> wrapped(Words, length(?GAP) + string:length(Word), [Word, ?GAP, $\n | Text], Width)
    end.

%% @doc Bytes, with a unit.
-spec bytes(non_neg_integer()) -> iolist().
bytes(Bytes) when Bytes < 1024 -> [integer_to_list(Bytes), " B"];
bytes(Bytes) when Bytes < 1 bsl 20 -> io_lib:format("~.1f KiB", [Bytes / 1024]);
bytes(Bytes) when Bytes < 1 bsl 30 -> io_lib:format("~.1f MiB", [Bytes / (1 bsl 20)]);
bytes(Bytes) when Bytes < 1 bsl 40 -> io_lib:format("~.1f GiB", [Bytes / (1 bsl 30)]);
bytes(Bytes) -> io_lib:format("~.1f TiB", [Bytes / (1 bsl 40)]).

%% @doc Seconds, in the two largest units.
-spec duration(non_neg_integer() | infinity | undefined) -> iolist().
duration(Seconds) when not is_integer(Seconds) -> "-";
duration(Seconds) when Seconds < 60 -> [integer_to_list(Seconds), " s"];
duration(Seconds) when Seconds < 3600 -> two(Seconds, 60, "min", 1, "s");
duration(Seconds) when Seconds < 86400 -> two(Seconds, 3600, "h", 60, "min");
duration(Seconds) -> two(Seconds, 86400, "d", 3600, "h").

two(Seconds, Large, LargeName, Small, SmallName) ->
    case Seconds rem Large div Small of
        0 -> io_lib:format("~b ~s", [Seconds div Large, LargeName]);
        Rest -> io_lib:format("~b ~s ~b ~s", [Seconds div Large, LargeName, Rest, SmallName])
    end.

%% @doc A part of 1, in percent.
-spec percent(float() | undefined) -> iolist().
percent(undefined) -> "-";
percent(Part) -> io_lib:format("~.1f %", [100 * Part]).

%% @doc An integer, its thousands set apart.
-spec count(non_neg_integer()) -> iolist().
count(Number) when Number < 1000 -> integer_to_list(Number);
count(Number) -> [count(Number div 1000), io_lib:format(",~3..0b", [Number rem 1000])].
