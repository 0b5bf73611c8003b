%% @doc Certificate authorities that can revoke certificates, made with openssl.
-module(rekindle_ca).

-export([new/2, new/3, issue/2, issue/3, revoke/2, revoke/3, list/2, list/3, replace/2, serial/1]).

-export_type([ca/0]).

-type ca() :: #{dir := file:filename(), cert := file:filename(), key := file:filename()}.

%% @doc Same as `new/3', without more options.
-spec new(file:filename(), string()) -> ca().
new(Dir, Name) ->
    new(Dir, Name, #{}).

%% @doc An authority of this name. `mask' is which string types openssl may write names in.
-spec new(file:filename(), string(), #{mask => string()}) -> ca().
new(Dir, Name, Options) ->
    ok = filelib:ensure_dir(filename:join(Dir, "file")),
    Ca = #{dir => Dir, cert => filename:join(Dir, "ca.pem"), key => filename:join(Dir, "ca.key")},
    ok = file:write_file(filename:join(Dir, "index.txt"), ""),
    ok = file:write_file(filename:join(Dir, "serial"), "1000\n"),
    ok = file:write_file(filename:join(Dir, "crlnumber"), "01\n"),
    ok = file:write_file(config(Ca), [
        "[ca]\ndefault_ca = own\n[own]\ndir = ",
        Dir,
        "\ndatabase = $dir/index.txt\nnew_certs_dir = $dir\n"
        "serial = $dir/serial\ncrlnumber = $dir/crlnumber\ncertificate = $dir/ca.pem\nprivate_key = $dir/ca.key\n"
        "default_md = sha256\ndefault_days = 30\ndefault_crl_days = 30\npolicy = any\nunique_subject = no\n"
        "crl_extensions = list\n[any]\ncommonName = supplied\norganizationName = optional\n"
        "[list]\nauthorityKeyIdentifier = keyid\n"
        "[delta_list]\n2.5.29.27 = critical, DER:020101\n"
        "[part_list]\nissuingDistributionPoint = critical, @part\n[part]\nfullname = URI:http://example.com/part.crl\n"
        "[req]\ndistinguished_name = name\nprompt = no\nx509_extensions = own_extensions\nstring_mask = ",
        maps:get(mask, Options, "utf8only"),
        "\n[name]\nO = Example\nCN = ",
        Name,
        "\n"
        "[own_extensions]\nbasicConstraints = critical, CA:true\nkeyUsage = keyCertSign, cRLSign\nsubjectKeyIdentifier = hash\n"
    ]),
    openssl(["req", "-x509", "-config", config(Ca), "-days", "30", "-out", maps:get(cert, Ca) | new_key(maps:get(key, Ca))]),
    Ca.

config(#{dir := Dir}) ->
    filename:join(Dir, "ca.conf").

new_key(File) ->
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", File].

%% @doc A certificate for this name.
-spec issue(ca(), string()) -> rekindle_certs:identity().
issue(Ca, Name) ->
    issue(Ca, Name, []).

%% @doc With more arguments for `openssl ca', such as `["-enddate", "20300101000000Z"]'.
-spec issue(ca(), string(), [string()]) -> rekindle_certs:identity().
issue(#{dir := Dir} = Ca, Name, Args) ->
    File = fun(Ending) -> filename:join(Dir, Name ++ Ending) end,
    openssl(["req", "-new", "-subj", "/O=Example/CN=" ++ Name, "-out", File(".csr") | new_key(File(".key"))]),
    openssl(["ca", "-batch", "-notext", "-config", config(Ca), "-in", File(".csr"), "-out", File(".pem") | Args]),
    #{cert => File(".pem"), key => File(".key")}.

%% @doc Revokes a certificate, from the next list on.
-spec revoke(ca(), rekindle_certs:identity()) -> ok.
revoke(Ca, Identity) ->
    revoke(Ca, Identity, "unspecified").

-spec revoke(ca(), rekindle_certs:identity(), Reason :: string()) -> ok.
revoke(Ca, #{cert := Cert}, Reason) ->
    openssl(["ca", "-batch", "-config", config(Ca), "-revoke", Cert, "-crl_reason", Reason]).

%% @doc Writes the current revocation list to a file, as PEM.
-spec list(ca(), file:filename()) -> ok.
list(Ca, File) ->
    list(Ca, File, []).

%% @doc With more arguments for `openssl ca -gencrl', such as `["-crlsec", "10"]', or `["-crlexts", "delta_list"]' and
%% `["-crlexts", "part_list"]' for a list of changes, and for one of a part of the certificates.
-spec list(ca(), file:filename(), [string()]) -> ok.
list(Ca, File, Args) ->
    replace(File, fun(Made) -> openssl(["ca", "-batch", "-config", config(Ca), "-gencrl", "-out", Made | Args]) end).

%% @doc Puts a file at once into its place, where the fun has not made it: Rekindle reports a file that is gone for a moment, or
%% is not whole. It leaves out those whose name begins with a dot.
-spec replace(file:filename(), fun((Made :: file:filename()) -> ok)) -> ok.
replace(File, Make) ->
    Made = filename:join(filename:dirname(File), [$. | filename:basename(File)]),
    ok = Make(Made),
    ok = file:rename(Made, File).

%% @doc The serial number of a certificate.
-spec serial(rekindle_certs:identity()) -> non_neg_integer().
serial(#{cert := Cert}) ->
    {0, Text} = rekindle_clients:run("openssl", ["x509", "-in", Cert, "-noout", "-serial"], [], 15_000),
    {match, [Digits]} = re:run(Text, "serial=([0-9A-F]+)", [{capture, all_but_first, list}]),
    list_to_integer(Digits, 16).

openssl(Args) ->
    case rekindle_clients:run("openssl", Args, [], 15_000) of
        {0, _} -> ok;
        {Status, Output} -> error({openssl, Args, Status, Output})
    end.
