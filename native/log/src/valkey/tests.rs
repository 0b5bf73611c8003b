//! Tests of settings, keys and answers, without a server.

use super::*;

fn check(url: &str) -> Result<(), String> {
    ValkeyConfig::new(url).check()
}

#[test]
fn urls() {
    for url in [
        "valkey://host",
        "valkeys://:secret@host:7000",
        "redis://user:secret@10.0.0.1:6379/3",
        "rediss://[::1]:6379/",
        "redis://:pa@ss:wo%2Frd@host",
    ] {
        assert_eq!(check(url), Ok(()), "{url}");
    }
    for url in [
        "",
        "secret",
        "host:6379",
        "http://user:secret@host",
        "unix:///secret",
        "redis+unix:///secret",
        "redis://",
        "redis://:secret@",
        "redis://:secret@:6379",
        "redis://:sec/ret@host",
        "redis://user:1234/secret@host",
        "redis://secret/secret@host",
        "redis://:secret@host:port",
        "redis://:secret@host:70000",
        "redis://:secret@host/zero",
        "redis://:secret@host/-1",
        "redis://:secret@host/4294967295",
        "redis://:secret@0.0.0.0",
        "redis://:secret@[::]",
        "redis://:%ff%fe@host",
        "rediss://:secret@host/#insecure",
        "redis://:secret@host?protocol=resp3",
        "redis://user@host",
    ] {
        let wrong = check(url).expect_err(url);
        assert!(
            !wrong.contains("secret") && !wrong.contains('\n'),
            "{url}: {wrong}"
        );
        let config = ValkeyConfig::new(url);
        let shown = format!("{} {config:?}", config.location());
        assert!(!shown.contains("secret"), "{url}: {shown}");
        assert!(ValkeyLog::new(config).is_err_and(|error| error.0 == wrong));
    }
    assert!(check("http://host")
        .is_err_and(|wrong| wrong.contains("valkey, redis and, with TLS, valkeys, rediss")));
}

#[test]
fn what_does_not_go_together() {
    let config = |url: &str| ValkeyConfig::new(url);
    let password = || Password::File("/nowhere".into());
    let partitions = |partitions| ValkeyConfig {
        partitions,
        ..config("redis://host")
    };
    let ca = |url| ValkeyConfig {
        ca_file: Some("ca".into()),
        ..config(url)
    };
    let cluster = |url| ValkeyConfig {
        cluster: true,
        ..config(url)
    };
    let in_file = |url| ValkeyConfig {
        password: password(),
        ..config(url)
    };
    let user = |url| ValkeyConfig {
        user: Some("user".into()),
        ..config(url)
    };
    let client = |url, key: Option<&str>| ValkeyConfig {
        tls_cert_file: Some("client.pem".into()),
        tls_key_file: key.map(Into::into),
        ..config(url)
    };
    for (config, right) in [
        (partitions(0), false),
        (partitions(65), false),
        (partitions(64), true),
        (ca("redis://host"), false),
        (ca("valkeys://host"), true),
        (cluster("redis://host/1"), false),
        (cluster("redis://host/0"), true),
        (in_file("redis://:secret@host"), false),
        (in_file("redis://host"), true),
        (in_file("redis://user@host"), true),
        (user("redis://host"), false),
        (user("redis://:secret@host"), true),
        (client("rediss://host", Some("key")), true),
        (client("rediss://host", None), false),
        (client("redis://host", Some("key")), false),
    ] {
        assert_eq!(
            config.check().is_ok(),
            right,
            "{config:?}: {:?}",
            config.check()
        );
        assert_eq!(ValkeyLog::new(config).is_ok(), right);
    }
}

#[test]
fn what_people_see_has_no_password() {
    let config = ValkeyConfig::new("rediss://user:secret@host:7000/2");
    assert_eq!(config.location(), "rediss://host:7000/2");
    assert_eq!(
        format!("{config:?}"),
        "ValkeyConfig { url: \"rediss://host:7000/2\", user: None, password: Url, ca_file: None, \
         tls_cert_file: None, tls_key_file: None, cluster: false, partitions: 1 }"
    );
}

#[test]
fn keys_of_different_scopes_are_different() {
    let scopes = [
        "",
        "a",
        "a:0",
        "a}:0",
        "{a}",
        "a%3A0",
        "a b",
        "a%20b",
        "a\nb",
        "café",
        "127.0.0.1:8883",
    ];
    let config = ValkeyConfig {
        partitions: 2,
        ..ValkeyConfig::new("redis://host")
    };
    let mut keys: Vec<String> = scopes
        .iter()
        .flat_map(|scope| keys(&config, scope))
        .map(|key| String::from_utf8(key).unwrap())
        .collect();
    for key in &keys {
        assert_eq!(key.matches(['{', '}']).count(), 2, "{key}");
        assert!(
            !key.contains(|c: char| c.is_control() || c.is_whitespace()),
            "{key}"
        );
    }
    assert!(keys.contains(&"rekindle:2:{127.0.0.1%3A8883:1}:sessions".to_owned()));
    assert!(keys.contains(&"rekindle:2:{café}:control".to_owned()));
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 33);
}

#[test]
fn ids_are_in_the_order_of_the_server() {
    assert_eq!(Id::parse(b"12-3"), Some(Id(12, 3)));
    for wrong in [
        "",
        "12",
        "12-",
        "-3",
        "12-3-4",
        "x-3",
        "12-99999999999999999999",
    ] {
        assert_eq!(Id::parse(wrong.as_bytes()), None, "{wrong}");
    }
    assert!(Id(9, 7) < Id(10, 0));
    assert_eq!(Id(10, 0).previous(), Some(Id(9, u64::MAX)));
    assert_eq!(Id(10, 5).previous(), Some(Id(10, 4)));
    assert_eq!(Id(0, 1).previous(), None);
    assert_eq!(Id(0, 0).previous(), None);
    assert_eq!(Id(9, u64::MAX).next(), Id(10, 0));
    assert_eq!(Id(10, 4).next(), Id(10, 5));
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

#[test]
fn pages() {
    let entry = |id: &str, fields| Value::Array(vec![text(id), fields]);
    let fields = |name: &str, value| Value::Array(vec![text(name), value]);
    let read = page(Value::Array(vec![
        entry("7-1", fields("r", text("x"))),
        entry("7-2", fields("s", text("x"))),
        entry("7-3", Value::Nil),
        entry("7-4", fields("r", Value::TooLong)),
        entry("7-5", fields("r", Value::NoRoom)),
        entry("7-6", fields("r", text("y"))),
    ]));
    assert_eq!(
        read,
        Some(Page {
            entries: vec![
                (Id(7, 1), Some(b"x".to_vec())),
                (Id(7, 2), None),
                (Id(7, 3), None),
                (Id(7, 4), None)
            ],
            cut_at: Some(Id(7, 5)),
        })
    );
    let descends = |ids: &[(u64, u64)], cut_at: Option<(u64, u64)>| {
        let page = Page {
            entries: ids.iter().map(|id| (Id(id.0, id.1), None)).collect(),
            cut_at: cut_at.map(|id| Id(id.0, id.1)),
        };
        page.descends_from(Id(7, 5))
    };
    assert!(descends(&[], None) && descends(&[(7, 5), (7, 4), (6, 9)], Some((6, 8))));
    assert!(descends(&[(0, 1)], None) && descends(&[], Some((7, 5))));
    assert!(!descends(&[(7, 6)], None) && !descends(&[(7, 5), (7, 5)], None));
    assert!(!descends(&[(7, 4), (7, 5)], None) && !descends(&[(0, 1), (0, 0)], None));
    assert!(!descends(&[(7, 5)], Some((7, 5))) && !descends(&[], Some((8, 0))));
    for wrong in [
        Value::Nil,
        Value::Int(1),
        Value::Array(vec![Value::Nil]),
        Value::Array(vec![entry("7", Value::Nil)]),
    ] {
        assert_eq!(page(wrong.clone()), None, "{wrong:?}");
    }
}

#[test]
fn extents() {
    let known = Value::Array(vec![
        text("length"),
        Value::Int(3),
        text("radix-tree-keys"),
        Value::Int(1),
        text("last-generated-id"),
        text("7-2"),
        text("first-entry"),
        Value::Nil,
    ]);
    let three = Extent {
        length: 3,
        last: Id(7, 2),
    };
    assert_eq!(extent(known), Ok(Some(three)));
    let none = Value::Error("ERR no such key".into());
    assert_eq!(extent(none), Ok(Some(Extent::default())));
    let refused = Value::Error("WRONGTYPE no".into());
    assert_eq!(extent(refused), Err("WRONGTYPE no".into()));
    for wrong in [
        Value::Nil,
        text("x"),
        Value::Array(vec![]),
        Value::Array(vec![text("length"), Value::Int(3)]),
    ] {
        assert_eq!(extent(wrong), Ok(None));
    }
}
