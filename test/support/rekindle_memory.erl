%% @doc The memory that the system has given to a process, and its content.
-module(rekindle_memory).

-export([resident_bytes/0, settled_resident_bytes/0, occurrences/2]).

%% Bytes per read.
-define(WINDOW_BYTES, 16#100000).

%% @doc How much of this process is in memory.
-spec resident_bytes() -> pos_integer().
resident_bytes() ->
    %% Not `file:read_file/1', which takes a large buffer for what has no size, and leaves it to another process.
    {ok, File} = file:open("/proc/self/status", [read, raw, binary]),
    {ok, Status} = file:read(File, 4096),
    ok = file:close(File),
    {match, [Kilobytes]} = re:run(Status, "VmRSS:\\s+(\\d+) kB", [{capture, all_but_first, binary}]),
    1024 * binary_to_integer(Kilobytes).

%% @doc The same once it no longer shrinks: threads may still be giving back what others have dropped.
-spec settled_resident_bytes() -> pos_integer().
settled_resident_bytes() ->
    [erlang:garbage_collect(Pid) || Pid <- processes()],
    settled(resident_bytes(), 50).

settled(Before, Patience) ->
    timer:sleep(100),
    case resident_bytes() of
        Now when Now < Before, Patience > 0 -> settled(Now, Patience - 1);
        Now -> Now
    end.

%% @doc How often a byte string is in the writable memory of a process of the system.
-spec occurrences(binary(), OsPid :: string()) -> non_neg_integer().
occurrences(Bytes, OsPid) ->
    {ok, Maps} = file:read_file(["/proc/", OsPid, "/maps"]),
    {ok, Memory} = file:open(["/proc/", OsPid, "/mem"], [read, raw, binary]),
    try
        lists:sum([
            count(Bytes, Memory, Range)
         || Range <- writable(binary:split(Maps, <<"\n">>, [global]))
        ])
    after
        file:close(Memory)
    end.

writable(Lines) ->
    [
        {binary_to_integer(From, 16), binary_to_integer(To, 16)}
     || Line <- Lines,
        {match, [From, To]} <- [re:run(Line, "^([0-9a-f]+)-([0-9a-f]+) rw", [{capture, all_but_first, binary}])]
    ].

count(_Bytes, _Memory, {From, To}) when From >= To ->
    0;
count(Bytes, Memory, {From, To}) ->
    %% Text that begins in a window may end after it.
    Here =
        case file:pread(Memory, From, min(To - From, ?WINDOW_BYTES + byte_size(Bytes) - 1)) of
            {ok, Window} -> length(binary:matches(Window, Bytes));
            _ -> 0
        end,
    Here + count(Bytes, Memory, {From + ?WINDOW_BYTES, To}).
