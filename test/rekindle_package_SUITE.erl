%% @doc Tests that the published files are complete and name one version, and that a build takes a prebuilt library only if it fits.
-module(rekindle_package_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_testcase/2, end_per_testcase/2]).

-export([
    the_version_is_the_same_everywhere/1,
    the_files_of_the_hex_package_suffice_to_build/1,
    the_pages_of_the_reference_are_there/1,
    links_between_pages_lead_somewhere/1,
    links_to_sections_lead_to_one/1,
    what_the_guide_for_contributors_names_is_there/1,
    modules_that_do_not_load_are_reported/1,
    a_library_that_was_asked_for_is_used_without_cargo/1,
    a_library_that_came_with_the_sources_is_used_without_cargo/1,
    a_library_of_other_sources_is_refused/1,
    a_library_with_other_features_is_refused/1,
    a_library_that_was_changed_is_refused/1,
    a_library_for_another_processor_is_refused/1,
    a_library_for_another_c_library_is_refused/1,
    a_library_that_needs_a_newer_node_is_refused/1,
    a_library_that_needs_a_newer_glibc_is_refused/1,
    the_library_for_this_platform_is_chosen_without_loading_it/1,
    no_library_is_taken_where_none_is_wanted/1,
    a_library_that_came_with_other_sources_is_built_again/1,
    a_cargo_that_is_too_old_is_reported_in_one_line/1,
    the_library_is_built_for_the_target_that_cargo_is_given/1,
    the_library_is_built_for_a_device_of_nerves/1,
    the_library_is_built_with_the_features_that_are_named/1,
    a_feature_that_is_not_known_is_reported_in_one_line/1
]).

all() ->
    [
        the_version_is_the_same_everywhere,
        the_files_of_the_hex_package_suffice_to_build,
        the_pages_of_the_reference_are_there,
        links_between_pages_lead_somewhere,
        links_to_sections_lead_to_one,
        what_the_guide_for_contributors_names_is_there,
        modules_that_do_not_load_are_reported,
        a_library_that_was_asked_for_is_used_without_cargo,
        a_library_that_came_with_the_sources_is_used_without_cargo,
        a_library_of_other_sources_is_refused,
        a_library_with_other_features_is_refused,
        a_library_that_was_changed_is_refused,
        a_library_for_another_processor_is_refused,
        a_library_for_another_c_library_is_refused,
        a_library_that_needs_a_newer_node_is_refused,
        a_library_that_needs_a_newer_glibc_is_refused,
        the_library_for_this_platform_is_chosen_without_loading_it,
        no_library_is_taken_where_none_is_wanted,
        a_library_that_came_with_other_sources_is_built_again,
        a_cargo_that_is_too_old_is_reported_in_one_line,
        the_library_is_built_for_the_target_that_cargo_is_given,
        the_library_is_built_for_a_device_of_nerves,
        the_library_is_built_with_the_features_that_are_named,
        a_feature_that_is_not_known_is_reported_in_one_line
    ].

init_per_testcase(Case, Config) ->
    [{root, rekindle_checkout:root(Config)} | rekindle_checkout:with_dir(Case, Config)].

end_per_testcase(_Case, Config) ->
    %% Copies of the sources, with what cargo has built.
    file:del_dir_r(proplists:get_value(dir, Config)).

%% ---- what is published ----

the_version_is_the_same_everywhere(Config) ->
    Version = list_to_binary(proplists:get_value(vsn, app(Config))),
    ?assertEqual([Version], captured("(?m)^version = \"(.*)\"", read("Cargo.toml", Config))),
    ?assertEqual([Version], captured("\\{release, \\{rekindle, \"(.*)\"\\}", read("rebar.config", Config))),
    %% The newest one that the changelog knows, where it has been released.
    case captured("(?m)^## \\[(\\d[^\\]]*)\\]", read("CHANGELOG.md", Config)) of
        [] -> ok;
        [Newest | _] -> ?assertEqual(Version, Newest)
    end.

%% rebar3_hex puts the application's resource into `src', wherever it was.
the_files_of_the_hex_package_suffice_to_build(Config) ->
    App = app(Config),
    Files = proplists:get_value(files, App),
    ?assertEqual([], [File || File <- Files, not filelib:is_file(in_root(File, Config))]),
    Package = copy(Files, Config),
    ?assertEqual(["/native/fuzz"], proplists:get_value(exclude_patterns, App)),
    ok = file:del_dir_r(filename:join(Package, "native/fuzz")),
    ok = filelib:ensure_dir(filename:join(Package, "src/x")),
    {ok, _} = file:copy(in_root("lib/rekindle.app.src", Config), filename:join(Package, "src/rekindle.app.src")),
    %% Saves building all of it again. Times are kept: cargo goes by them.
    ok = file:make_dir(filename:join(Package, "target")),
    {0, _} = run_in(Package, ["cp", "-Rp", in_root("target/release", Config), "target"]),
    {0, _} = run_in(Package, ["rebar3", "compile"]),
    [
        ?assert(filelib:is_regular(filename:join([Package, "_build/default/lib/rekindle", File])))
     || File <- ["ebin/rekindle.app", "ebin/rekindle.beam", "priv/rekindle_nif.so"]
    ].

the_pages_of_the_reference_are_there(Config) ->
    {ok, Terms} = file:consult(in_root("rebar.config", Config)),
    Extras = proplists:get_value(extras, proplists:get_value(ex_doc, Terms)),
    Pages = [
        case Extra of
            {Page, _} -> Page;
            Page -> Page
        end
     || Extra <- Extras
    ],
    ?assertEqual([], [Page || Page <- Pages, not filelib:is_regular(in_root(Page, Config))]),
    Root = proplists:get_value(root, Config),
    ?assertEqual([], [
        Page
     || Dir <- ["docs/", "docs/guides/"], Page <- filelib:wildcard(Dir ++ "*.md", Root), not lists:member(Page, Pages)
    ]).

links_between_pages_lead_somewhere(Config) ->
    Links = [{Page, Link} || Page <- pages(Config), Link <- captured("\\]\\(([^)#:]+)(?:#[^)]*)?\\)", read(Page, Config))],
    ?assert(length(Links) > 10),
    ?assertEqual([], [{Page, Link} || {Page, Link} <- Links, not filelib:is_file(in_root(target(Page, Link), Config))]).

links_to_sections_lead_to_one(Config) ->
    Links = [
        {Page, File, Anchor}
     || Page <- pages(Config), {File, Anchor} <- in_pairs(captured("\\]\\(([^)#:]*)#([^)]+)\\)", read(Page, Config)))
    ],
    ?assert(length(Links) > 10),
    ?assertEqual([], [
        {Page, File, Anchor}
     || {Page, File, Anchor} <- Links, not lists:member(Anchor, anchors(target(Page, File), Config))
    ]).

pages(Config) ->
    Folders = ["*.md", "docs/*.md", "docs/guides/*.md", "bench/results/*.md"],
    lists:append([filelib:wildcard(Pages, proplists:get_value(root, Config)) || Pages <- Folders]).

%% The file that a link in a page leads to.
target(Page, <<>>) -> Page;
target(Page, Link) -> filename:join(filename:dirname(Page), Link).

in_pairs([One, Other | Rest]) -> [{One, Other} | in_pairs(Rest)];
in_pairs([]) -> [].

%% The names that GitHub gives to the sections of a page.
anchors(Page, Config) ->
    [
        string:lowercase(
            re:replace(re:replace(Title, "[^\\w\\- ]", "", [global, unicode, ucp]), " ", "-", [global, {return, binary}])
        )
     || Title <- captured("(?m)^#+ (.*)$", read(Page, Config))
    ].

what_the_guide_for_contributors_names_is_there(Config) ->
    Guide = read("CONTRIBUTING.md", Config),
    Commands = lists:usort(captured("(?m)(?:^    |`)make ([\\w-]+)", Guide)),
    ?assertNotEqual([], Commands),
    ?assertEqual([], Commands -- captured("(?m)^([\\w-]+):", read("Makefile", Config))),
    Suites = lists:usort(captured("(rekindle_\\w+_SUITE)", Guide)),
    ?assertNotEqual([], Suites),
    ?assertEqual([], [Suite || Suite <- Suites, not filelib:is_regular(in_root(<<"test/", Suite/binary, ".erl">>, Config))]).

%% Makes a module that looks as if a much older OTP release had compiled it. No other module needs it before somebody revokes.
modules_that_do_not_load_are_reported(Config) ->
    App = filename:join(proplists:get_value(dir, Config), "rekindle"),
    Lib = code:lib_dir(rekindle),
    ok = file:make_dir(App),
    {0, _} = run_in(App, ["cp", "-RL", filename:join(Lib, "ebin"), filename:join(Lib, "priv"), "."]),
    ok = file:write_file(filename:join(App, "ebin/rekindle_certificate.beam"), "FOR1 of another age"),
    Node = rekindle_node:start([], [filename:join(App, "ebin")]),
    {ok, _} = rekindle_node:call(Node, application, ensure_all_started, [rekindle]),
    [{error, Line}] = rekindle_node:call(Node, rekindle_admin, findings, []),
    ?assertMatch({match, _}, re:run(Line, "cannot load these modules of Rekindle: rekindle_certificate \\(badfile\\)\\.")),
    rekindle_node:stop(Node).

%% ---- a library built elsewhere ----

a_library_that_was_asked_for_is_used_without_cargo(Config) ->
    Sources = sources(Config),
    Folder = prebuilt("elsewhere", Config),
    {0, Output} = build(Sources, Folder),
    ?assertEqual(iolist_to_binary(["rekindle: took the prebuilt library ", Folder, "/rekindle_nif.so"]), the_line(Output)),
    ?assertEqual(file:read_file(library(Config)), file:read_file(built(Sources))),
    %% Nothing to say the next time.
    ?assertEqual({0, <<>>}, build(Sources, Folder)).

a_library_that_came_with_the_sources_is_used_without_cargo(Config) ->
    Sources = sources(Config),
    prebuilt("sources/native/prebuilt", Config),
    {0, Output} = build(Sources, ""),
    ?assertNotEqual(nomatch, string:find(the_line(Output), "took the prebuilt library")),
    ?assertEqual(file:read_file(library(Config)), file:read_file(built(Sources))).

a_library_of_other_sources_is_refused(Config) ->
    Sources = sources(Config),
    Folder = prebuilt("elsewhere", Config),
    change(Sources),
    refuses(Sources, Folder, "was not built from these sources").

a_library_with_other_features_is_refused(Config) ->
    Sources = sources(Config),
    Folder = prebuilt("elsewhere", Config),
    {Status, Output} = build(Sources, Folder, "exit 1", ["REKINDLE_FEATURES=none"]),
    ?assertNotEqual(0, Status),
    ?assertNotEqual(nomatch, string:find(the_line(Output), "was not built from these sources with the features none")),
    {0, _} = build(Sources, Folder, "exit 1", ["REKINDLE_FEATURES=valkey,folder"]).

a_library_that_was_changed_is_refused(Config) ->
    Sources = sources(Config),
    Folder = prebuilt("elsewhere", Config),
    ok = file:write_file(filename:join(Folder, "rekindle_nif.so"), "x", [append]),
    refuses(Sources, Folder, "is not the one of its manifest").

%% The 18th byte of an ELF header is the processor: 0 is none.
a_library_for_another_processor_is_refused(Config) ->
    Sources = sources(Config),
    {ok, <<Start:18/binary, _, Rest/binary>>} = file:read_file(library(Config)),
    Folder = prebuilt("elsewhere", <<Start/binary, 0, Rest/binary>>, #{}, Config),
    refuses(Sources, Folder, "is not for " ++ platform(Config)).

a_library_for_another_c_library_is_refused(Config) ->
    Sources = sources(Config),
    {ok, Library} = file:read_file(library(Config)),
    Other = binary:replace(Library, <<"libc.so.6">>, <<"libc.so.5">>, [global]),
    refuses(Sources, prebuilt("elsewhere", Other, #{}, Config), "is not for " ++ platform(Config)),
    Folder = prebuilt("others", Other, #{platform => "x86_64-linux-other"}, Config),
    refuses(Sources, Folder, "is for " ++ platform(Config)).

a_library_that_needs_a_newer_node_is_refused(Config) ->
    Sources = sources(Config),
    {ok, Library} = file:read_file(library(Config)),
    [
        refuses(Sources, prebuilt(Nif, Library, #{nif => Nif}, Config), "needs version " ++ Nif)
     || Nif <- ["2.99", "3.0", "1.0"]
    ].

a_library_that_needs_a_newer_glibc_is_refused(Config) ->
    Sources = sources(Config),
    {ok, Library} = file:read_file(library(Config)),
    refuses(Sources, prebuilt("elsewhere", Library, #{glibc => "2.99"}, Config), "needs glibc 2.99").

%% The file has only an ELF header and the name of its C library.
the_library_for_this_platform_is_chosen_without_loading_it(Config) ->
    Sources = sources(Config),
    {ok, <<Start:64/binary, _/binary>>} = file:read_file(library(Config)),
    Stump = <<Start/binary, "libc.so.6">>,
    Folder = prebuilt("elsewhere", Stump, #{}, Config),
    Manifest = filename:join(Folder, "rekindle_nif.manifest"),
    {ok, Line} = file:read_file(Manifest),
    ok = file:write_file(Manifest, ["none.so machine9-linux-gnu 2.15 - 0 0\n", Line]),
    {0, _} = build(Sources, Folder),
    ?assertEqual({ok, Stump}, file:read_file(built(Sources))).

no_library_is_taken_where_none_is_wanted(Config) ->
    Sources = sources(Config),
    prebuilt("sources/native/prebuilt", Config),
    {Status, Output} = build(Sources, "none"),
    ?assertNotEqual(0, Status),
    ?assertNotEqual(nomatch, string:find(Output, "cargo was called")),
    ?assertNot(filelib:is_file(built(Sources))).

a_library_that_came_with_other_sources_is_built_again(Config) ->
    Sources = sources(Config),
    prebuilt("sources/native/prebuilt", Config),
    change(Sources),
    {Status, Output} = build(Sources, ""),
    ?assertNotEqual(nomatch, string:find(Output, "was not built from these sources")),
    ?assertNotEqual(nomatch, string:find(Output, "cargo was called")),
    ?assertNotEqual(0, Status).

%% The one of Debian 12 cannot read Cargo.lock.
a_cargo_that_is_too_old_is_reported_in_one_line(Config) ->
    Sources = sources(Config),
    {Status, Output} = build(Sources, "", "echo 'cargo 1.63.0 (fd9c4297c 2022-07-01)'"),
    ?assertNotEqual(0, Status),
    [Oldest] = captured("(?m)^rust-version = \"(.*)\"", read("Cargo.toml", Config)),
    ?assertEqual(
        <<"rekindle: building the native library needs Rust ", Oldest/binary,
            " or later, but the cargo on the PATH is 1.63.0. "
            "Get Rust from https://rustup.rs">>,
        the_line(Output)
    ).

the_library_is_built_for_the_target_that_cargo_is_given(Config) ->
    Sources = sources(Config),
    {0, Output} = build_for("aarch64-unknown-linux-musl", ["CARGO_BUILD_TARGET=aarch64-unknown-linux-musl"], Sources),
    ?assertNotEqual(nomatch, string:find(Output, "'-Ctarget-feature=-crt-static'")),
    ?assertEqual(nomatch, string:find(Output, "linker:")).

the_library_is_built_for_a_device_of_nerves(Config) ->
    Sources = sources(Config),
    Nerves = ["CROSSCOMPILE=/opt/nerves/bin/armv6-nerves-linux-gnueabihf", "CC=/opt/nerves/bin/armv6-nerves-linux-gnueabihf-gcc"],
    {0, Output} = build_for("arm-unknown-linux-gnueabihf", Nerves, Sources),
    ?assertNotEqual(nomatch, string:find(Output, "linker: /opt/nerves/bin/armv6-nerves-linux-gnueabihf-gcc")),
    ?assertEqual(nomatch, string:find(Output, "crt-static")).

the_library_is_built_with_the_features_that_are_named(Config) ->
    Sources = sources(Config),
    Target = "x86_64-unknown-linux-gnu",
    [
        begin
            Env = ["CARGO_BUILD_TARGET=" ++ Target | ["REKINDLE_FEATURES=" ++ Value || Value =/= unset]],
            {0, Output} = build_for(Target, Env, Sources),
            ?assertEqual(Said, captured("(--no-default-features|--features [\\w,]+)", Output), Value),
            ok = file:delete(built(Sources))
        end
     || {Value, Said} <- [
            {unset, [<<"--no-default-features">>, <<"--features folder,valkey">>]},
            {"", [<<"--no-default-features">>, <<"--features folder,valkey">>]},
            {"valkey,folder", [<<"--no-default-features">>, <<"--features folder,valkey">>]},
            {"folder", [<<"--no-default-features">>, <<"--features folder">>]},
            {"none", [<<"--no-default-features">>]}
        ]
    ].

a_feature_that_is_not_known_is_reported_in_one_line(Config) ->
    Sources = sources(Config),
    {Status, Output} = build(Sources, "", "echo cargo was called", ["REKINDLE_FEATURES=sqlite"]),
    ?assertNotEqual(0, Status),
    ?assertEqual(
        <<"rekindle: REKINDLE_FEATURES is sqlite, and can be folder, valkey, folder,valkey or none">>, string:trim(Output)
    ).

%% With a cargo that says what it was told, and makes what is looked for.
build_for(Target, Env, Sources) ->
    Cargo = [
        "case $1 in\n"
        "--version) echo cargo 99.0.0 ;;\n"
        "build)\n"
        "    echo \"$@\"\n"
        "    env | sed -n 's/^CARGO_TARGET_.*_LINKER=/linker: /p'\n"
        "    case \"$*\" in *\"--target ",
        Target,
        " \"*) ;; *) exit 1 ;; esac\n"
        "    mkdir -p target/",
        Target,
        "/release\n"
        "    echo ",
        Target,
        " >target/",
        Target,
        "/release/librekindle_nif.so ;;\n"
        "esac"
    ],
    Result = build(Sources, "", Cargo, Env),
    ?assertEqual({ok, list_to_binary(Target ++ "\n")}, file:read_file(built(Sources))),
    Result.

the_line(Output) ->
    [Line] = [Line || Line <- string:lexemes(Output, "\n"), string:prefix(Line, "rekindle: ") =/= nomatch],
    Line.

refuses(Sources, Folder, Reason) ->
    {Status, Output} = build(Sources, Folder),
    ?assertNotEqual(0, Status),
    ?assertNotEqual(nomatch, string:find(the_line(Output), Reason)),
    ?assertEqual(nomatch, string:find(Output, "cargo was called")),
    ?assertNot(filelib:is_file(built(Sources))).

%% Runs with a cargo that fails.
build(Sources, Folder) ->
    build(Sources, Folder, "echo cargo was called\nexit 1").

build(Sources, Folder, Script) ->
    build(Sources, Folder, Script, []).

build(Sources, Folder, Script, Variables) ->
    Bin = filename:join(filename:dirname(Sources), "bin"),
    Cargo = filename:join(Bin, "cargo"),
    ok = filelib:ensure_dir(Cargo),
    ok = file:write_file(Cargo, ["#!/bin/sh\n", Script, "\n"]),
    ok = file:change_mode(Cargo, 8#755),
    Env = ["PATH=" ++ Bin ++ ":" ++ os:getenv("PATH"), "REKINDLE_PREBUILT=" ++ Folder | Variables],
    run_in(Sources, ["env" | Env] ++ ["sh", "-c", "exec sh native/build.sh 2>&1"]).

prebuilt(Name, Config) ->
    {ok, Library} = file:read_file(library(Config)),
    prebuilt(Name, Library, #{}, Config).

%% A folder with a library, and what a manifest says of it.
prebuilt(Name, Library, Said, Config) ->
    Folder = filename:join(proplists:get_value(dir, Config), Name),
    File = filename:join(Folder, "rekindle_nif.so"),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, Library),
    Line = [
        "rekindle_nif.so",
        maps:get(platform, Said, platform(Config)),
        maps:get(nif, Said, "2.15"),
        maps:get(glibc, Said, "2.17"),
        native("fingerprint.sh", [File], Config),
        native("fingerprint.sh", [], Config)
    ],
    ok = file:write_file(filename:join(Folder, "rekindle_nif.manifest"), [lists:join(" ", Line), "\n"]),
    Folder.

platform(Config) ->
    native("platform.sh", [], Config).

native(Script, Args, Config) ->
    {0, Output} = run_in(proplists:get_value(root, Config), ["sh", "native/" ++ Script | Args]),
    string:trim(binary_to_list(Output)).

%% A comment is enough: who can say what it does to a build?
change(Sources) ->
    ok = file:write_file(filename:join(Sources, "native/core/src/clock.rs"), "// Changed.\n", [append]).

library(_Config) ->
    filename:join([code:lib_dir(rekindle), "priv", "rekindle_nif.so"]).

built(Sources) ->
    filename:join(Sources, "priv/rekindle_nif.so").

%% ---- the checkout ----

sources(Config) ->
    copy(["lib", "native", "Cargo.toml", "Cargo.lock"], Config).

copy(Names, Config) ->
    Copy = filename:join(proplists:get_value(dir, Config), "sources"),
    ok = file:make_dir(Copy),
    {0, _} = run_in(Copy, ["cp", "-Rp"] ++ [in_root(Name, Config) || Name <- Names] ++ ["."]),
    Copy.

app(Config) ->
    {ok, [{application, rekindle, App}]} = file:consult(in_root("lib/rekindle.app.src", Config)),
    App.

run_in(Dir, Command) ->
    rekindle_checkout:run_in(Dir, Command, 600_000).

read(Name, Config) ->
    {ok, Content} = file:read_file(in_root(Name, Config)),
    Content.

captured(Regexp, Text) ->
    case re:run(Text, Regexp, [global, unicode, {capture, all_but_first, binary}]) of
        {match, Matches} -> lists:append(Matches);
        nomatch -> []
    end.

in_root(Name, Config) ->
    filename:join(proplists:get_value(root, Config), Name).
