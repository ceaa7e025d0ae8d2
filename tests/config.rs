//! The configuration as an operator meets it: the shipped file, and what is said about a bad one.

use std::path::Path;

use helios::config::{AccessRule, Choice, Config, Durability, Io, KEYS, Who};

fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime-config/helios.toml");
    std::fs::read_to_string(path).expect("the shipped file")
}

/// Every case goes through here: a text, and the one line it must be refused with.
fn check(text: &str, message: &str) {
    let error = Config::parse(text, "helios.toml").expect_err(text);
    assert_eq!(error.to_string(), message, "for {text:?}");
    assert_eq!(error.file, "helios.toml");
}

#[test]
fn the_shipped_file_is_the_defaults() {
    let text = shipped();
    assert_eq!(
        Config::parse(&text, "helios.toml").unwrap(),
        Config::default()
    );
    for key in KEYS {
        let line = match key {
            "access" => "#[[access]]".to_owned(),
            key => format!("{key} = "),
        };
        let at = text.lines().position(|text| text.starts_with(&line));
        let at = at.unwrap_or_else(|| panic!("no line for {key}"));
        let lines: Vec<_> = text.lines().take(at).collect();
        let comment = lines.iter().rev().take_while(|line| line.starts_with('#'));
        let comment = comment.copied().collect::<String>();
        assert!(
            comment.contains("Default:"),
            "{key} has no default in its comment"
        );
        assert!(
            comment.contains("Unit:") || comment.contains("Range:"),
            "{key}: unit or range?"
        );
    }
}

#[test]
fn the_example_rules_of_the_shipped_file_work() {
    let text = shipped().replace("\n#[[access]]", "\n[[access]]");
    let text = ["user", "group", "agents"].iter().fold(text, |text, key| {
        text.replace(&format!("\n#{key} ="), &format!("\n{key} ="))
    });
    let config = Config::parse(&text, "helios.toml").unwrap();
    let rule = |who, agents: &str| AccessRule {
        who,
        agents: agents.to_owned(),
    };
    let expected = [
        rule(Who::User("root".to_owned()), "*"),
        rule(Who::Group("1000".to_owned()), "team-a-*"),
    ];
    assert_eq!(config.access, expected);
}

#[test]
fn every_key_arrives() {
    let text = r#"
        data_dir = "/var/lib/helios"
        socket = "h.sock"
        shards = 4
        shard_cores = [3, 1]
        prefetch_core = 0
        io = "threads"
        memory_max = "1GiB"
        l1_window_bytes = "8 KiB"
        segment_bytes = "1MiB"
        durability = "power"
        group_commit_interval = "100ms"
        [[access]]
        group = "staff"
        agents = "a*"
    "#;
    let expected = Config {
        data_dir: "/var/lib/helios".into(),
        socket: "h.sock".into(),
        shards: Choice::Fixed(4),
        shard_cores: Choice::Fixed(vec![3, 1]),
        prefetch_core: Choice::Fixed(0),
        io: Io::Threads,
        memory_max: 1 << 30,
        l1_window_bytes: 8 << 10,
        segment_bytes: 1 << 20,
        durability: Durability::Power,
        group_commit_interval: std::time::Duration::from_millis(100),
        access: vec![AccessRule {
            who: Who::Group("staff".into()),
            agents: "a*".into(),
        }],
        ..Config::default()
    };
    assert_eq!(Config::parse(text, "f").unwrap(), expected);
}

#[test]
fn the_socket_follows_the_data_directory() {
    let config = Config::parse("data_dir = \"elsewhere\"", "f").unwrap();
    assert_eq!(config, Config::at("elsewhere"));
    assert_eq!(config.socket, Path::new("elsewhere/helios.sock"));
    assert_eq!(Config::parse("", "f").unwrap(), Config::default());
}

#[test]
fn a_bad_value_is_named_with_file_line_and_key() {
    let size = "not a size; write a number with B, KiB, MiB, GiB or TiB (8KiB to 4MiB)";
    let shards = "not a number of shards; write \"auto\" or a number from 1 to 64";
    let duration = "not a duration; write a number with us, ms or s (0us to 100ms)";
    for (line, message) in [
        (r#"l1_window_bytes = "5 pounds""#, size),
        (r#"l1_window_bytes = "32KB""#, size),
        ("l1_window_bytes = 32768", size),
        (
            r#"l1_window_bytes = "8MiB""#,
            "out of range; write a size from 8KiB to 4MiB",
        ),
        (
            r#"l1_window_bytes = "4097MiB""#,
            "out of range; write a size from 8KiB to 4MiB",
        ),
        (
            r#"l1_window_bytes = "9KiB""#,
            "not a power of two; write one from 8KiB to 4MiB",
        ),
        (
            r#"segment_bytes = "2GiB""#,
            "out of range; write a size from 1MiB to 1GiB",
        ),
        (
            r#"segment_bytes = "4097MiB""#,
            "out of range; write a size from 1MiB to 1GiB",
        ),
        (
            r#"memory_max = "15MiB""#,
            "out of range; write a size from 16MiB to 16TiB",
        ),
        ("shards = 0", shards),
        ("shards = 65", shards),
        ("shards = -1", shards),
        ("shards = 65537", shards),
        ("shards = 1.0", shards),
        (r#"shards = "four""#, shards),
        (
            "shard_cores = [0, 0]",
            "core 0 stands there twice; write each core once",
        ),
        (
            "shard_cores = []",
            "not a list of cores; write \"auto\" or 1 to 64 core numbers like [1, 2]",
        ),
        (
            "prefetch_core = -1",
            "not a core; write \"auto\" or a core number like 0",
        ),
        (
            r#"durability = "strong""#,
            r#"not one of the choices; write "volatile" or "process" or "power""#,
        ),
        (
            "io = 1",
            r#"not one of the choices; write "auto" or "glommio" or "threads""#,
        ),
        (
            r#"group_commit_interval = "101ms""#,
            "out of range; write a duration from 0us to 100ms",
        ),
        (r#"group_commit_interval = "1""#, duration),
        ("group_commit_interval = 0", duration),
        (
            "data_dir = 7",
            "not what belongs there; write a path in quotes",
        ),
        (r#"socket = """#, "not a path"),
    ] {
        check(
            &format!("# one\n\n{line} # three\n"),
            &format!("helios.toml:3: {line}: {message}"),
        );
    }
}

#[test]
fn values_over_several_lines_are_shown_in_one() {
    check(
        "shard_cores = [\n  1,\n  \"two\",\n]",
        "helios.toml:1: shard_cores = [ 1, \"two\", ]: not a list of cores; write \"auto\" or 1 to \
         64 core numbers like [1, 2]",
    );
}

#[test]
fn an_unknown_key_is_named() {
    check(
        "io = \"auto\"\nmemory_mx = \"1GiB\"",
        "helios.toml:2: memory_mx: unknown key; did you mean memory_max?",
    );
    check(
        "[[access]]\nuser = 1\nagents = \"*\"\nagent = \"x\"",
        "helios.toml:4: agent: unknown key; did you mean agents?",
    );
    check(
        "[server]\nport = 80",
        "helios.toml:1: server: unknown key; runtime-config/helios.toml in the source lists them all",
    );
}

#[test]
fn a_bad_rule_is_named() {
    let who = "missing; write either user or group, not both";
    check(
        "\n[[access]]\nagents = \"*\"",
        &format!("helios.toml:2: access[0]: {who}"),
    );
    check(
        "[[access]]\nuser = 1\nagents = \"*\"\n[[access]]\nuser = 1\ngroup = 1\nagents = \"*\"",
        &format!("helios.toml:4: access[1]: {who}"),
    );
    check(
        "[[access]]\nuser = 1",
        "helios.toml:1: access[0]: missing; write agents = \"a pattern of their names\"",
    );
    check(
        "[[access]]\nuser = 1\nagents = \"\"",
        "helios.toml:3: access[0].agents = \"\": not a pattern of agent names; write 1 to 255 \
         bytes, * standing for any text",
    );
    check(
        "[[access]]\nuser = true\nagents = \"*\"",
        "helios.toml:2: access[0].user = true: not what belongs there; write a name in quotes or a \
         numeric id",
    );
    check(
        "io = \"auto\"\naccess = \"all\"",
        "helios.toml:2: access: not what belongs there; write [[access]] above each rule",
    );
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_line() {
    for (text, line) in [
        ("io = \"auto\"\nio = \"auto\"", 2),
        ("io = \"auto\"\nshards", 2),
        ("shards = ", 1),
        ("io = \"auto\"\n\n= 3\n", 3),
        ("shard_cores = [1,\n2,\n", 2),
    ] {
        let error = Config::parse(text, "helios.toml").expect_err(text);
        let message = error.to_string();
        assert_eq!(error.line, line, "{text:?}: {message}");
        assert!(
            message.starts_with(&format!("helios.toml:{line}: not TOML: ")),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent.toml");
    let message = Config::load(&path).expect_err("absent").to_string();
    assert!(message.starts_with(&format!("{}: cannot be read (No such file", path.display())));

    assert!(
        Config::load(dir.path())
            .expect_err("a directory")
            .to_string()
            .contains("cannot be")
    );

    std::fs::write(&path, b"io = \"auto\"\n# \xff\n").unwrap();
    let message = Config::load(&path).expect_err("not UTF-8").to_string();
    assert!(
        message.ends_with(":2: not UTF-8 text; save the file as UTF-8"),
        "{message}"
    );

    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    let message = Config::load(&path).expect_err("too large").to_string();
    assert!(
        message.ends_with(": larger than 1MiB, so not a configuration"),
        "{message}"
    );

    std::fs::write(&path, "shards = 3").unwrap();
    assert_eq!(Config::load(&path).unwrap().shards, Choice::Fixed(3));
}

#[test]
fn a_name_that_nobody_has_is_refused_with_its_line() {
    let text = "[[access]]\nuser = \"root\"\nagents = \"*\"\n[[access]]\nuser = \"no such user\"\n\
                agents = \"*\"";
    let config = Config::parse(text, "helios.toml").unwrap();
    let error = helios::config::Access::resolve(&config, 1).expect_err("unknown user");
    assert_eq!(
        error.to_string(),
        "helios.toml:5: access[1].user = \"no such user\": no such user in /etc/passwd; write the \
         name of one, or a numeric id"
    );
}
