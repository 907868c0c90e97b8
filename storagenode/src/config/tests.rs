//! Where settings come from, and what is said about bad ones.

use super::*;

const NEEDED: &[(&str, &str)] = &[
    ("DATABASE_URL", "etcd://a,b:1/cairn"),
    ("TLS_CERT_FILE", "/tls/tls.crt"),
    ("TLS_KEY_FILE", "/tls/tls.key"),
    ("TLS_CA_FILE", "/tls/ca.crt"),
    ("KEK_FILE", "/kek"),
    ("CLIENT_TOKENS_FILE", "/tokens"),
];

fn parse(flags: &[&str], environment: &[(&str, &str)], dotenv: Option<&str>) -> Result<NodeConfig, String> {
    let matches =
        grammar().try_get_matches_from([&["cairn-node"], flags].concat()).map_err(|e| e.to_string())?;
    let find = |name: &str| {
        let found = environment.iter().chain(NEEDED).find(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    };
    let given = Given {
        environment: &find,
        dotenv: dotenv.map(str::to_owned),
        host_name: "host-7.example".to_owned(),
    };
    match command(&matches, &given).map_err(|error| error.to_string())? {
        Command::Run(config) => Ok(*config),
        other => panic!("{other:?}"),
    }
}

#[test]
fn flags_beat_the_environment_beats_the_file_beats_defaults() {
    let config = parse(
        &["--grpc-port", "1"],
        &[("GRPC_PORT", "2"), ("HTTP_PORT", "2"), ("ZONE", " ")],
        Some("GRPC_PORT=3\nHTTP_PORT=3\nZONE=z3\nSOMETHING_ELSE=x\nCAPACITY=10Gi"),
    )
    .unwrap();
    assert_eq!((config.grpc_port, config.http_port, config.zone.as_str()), (1, 2, "z3"));
    assert_eq!(config.capacity_bytes, Some(10 << 30));
    assert_eq!(
        (config.node_name.as_str(), config.advertise_host.as_str()),
        ("host-7.example", "host-7.example")
    );
    assert_eq!((config.cluster_name.as_str(), config.expected_nodes), ("cairn", 1));
    assert_eq!((config.bind_host.as_str(), config.advertise_port), ("0.0.0.0", None));
    assert_eq!(config.log_format, LogFormat::Text);
    assert!(matches!(config.database_url, DatabaseUrl::Etcd(_)));
}

#[test]
fn a_new_disk_is_said_for_one_node_or_for_this_one() {
    let says = |flags: &[&str], environment: &[(&str, &str)]| {
        parse(&[flags, &["--node-name", "n2"]].concat(), environment, None).unwrap().new_disk
    };
    assert!(!says(&[], &[]));
    assert!(!says(&[], &[("NEW_DISK", "false")]));
    assert!(!says(&["--new-disk", "n1"], &[]), "another node's");
    assert!(says(&["--new-disk", "n2"], &[]));
    assert!(says(&[], &[("NEW_DISK", "n2")]));
    assert!(says(&[], &[("NEW_DISK", "true")]));
}

#[test]
fn all_mistakes_are_told_at_once_with_their_source() {
    let error = parse(
        &["--zone", "a b"],
        &[("GRPC_PORT", "70000"), ("EXPECTED_NODES", "0"), ("KEK_FILE", ""), ("ADVERTISE_HOST", "h:1")],
        Some("LOG_FORMAT=xml\nLOG=cairn_node=loud\nCAPACITY=100"),
    )
    .unwrap_err();
    for part in [
        "--zone: \"a b\"",
        "GRPC_PORT in the environment: \"70000\"",
        "EXPECTED_NODES in the environment",
        "KEK_FILE is not set",
        "ADVERTISE_HOST in the environment",
        "LOG_FORMAT in the .env file, line 1",
        "LOG in the .env file, line 2",
        "CAPACITY in the .env file, line 3",
    ] {
        assert!(error.contains(part), "{part} is not in:\n{error}");
    }
    assert_eq!(error.lines().count(), 9, "{error}");
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let find = |name: &str| match name {
        "ZONE" => Some(OsString::from_vec(b"a\xff".to_vec())),
        _ => NEEDED.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)),
    };
    let given = Given { environment: &find, dotenv: None, host_name: "h".to_owned() };
    let matches = grammar().try_get_matches_from(["cairn-node"]).unwrap();
    let error = command(&matches, &given).unwrap_err().to_string();
    assert!(error.contains("ZONE in the environment is not UTF-8"), "{error}");
}

#[test]
fn postgres_is_refused_with_the_accepted_forms() {
    let error = parse(&[], &[("DATABASE_URL", "postgres://user:secret@db/cairn")], None).unwrap_err();
    assert!(error.contains("embedded:///folder") && error.contains("etcd://"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn etcd_over_tls() {
    let config =
        parse(&["--etcd-ca-file", "/ca", "--etcd-cert-file", "/c", "--etcd-key-file", "/k"], &[], None)
            .unwrap();
    let DatabaseUrl::Etcd(address) = config.database_url else { panic!() };
    let tls = address.tls.unwrap();
    assert_eq!(tls.ca_file, PathBuf::from("/ca"));
    assert_eq!(tls.certificate.unwrap().key_file, PathBuf::from("/k"));
    assert!(
        parse(&["--etcd-ca-file", "/ca", "--etcd-key-file", "/k"], &[], None)
            .unwrap_err()
            .contains("go together")
    );
    assert!(
        parse(&["--etcd-cert-file", "/c", "--etcd-key-file", "/k"], &[], None)
            .unwrap_err()
            .contains("ETCD_CA_FILE")
    );
}

#[test]
fn every_setting_is_in_the_help_and_only_once() {
    grammar().debug_assert();
    let help = grammar().render_long_help().to_string();
    // Lines are wrapped to the terminal.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in SETTINGS {
        assert_eq!(help.matches(&format!("[env: {}]", setting.name)).count(), 1, "{}", setting.name);
        assert!(help.contains(&format!("--{} ", flag_of(setting.name))), "{}", setting.name);
    }
    assert!(help.contains("init-secrets"));
}

#[test]
fn the_example_file_can_be_used() {
    let example = include_str!("../../../.env.example");
    let values = dotenv::parse(example).unwrap();
    for name in values.keys() {
        assert!(SETTINGS.iter().any(|setting| setting.name == name), "{name} is no setting");
    }
    // Settings that the example only mentions are spelled right as well.
    for line in example.lines().filter_map(|line| line.strip_prefix("#")) {
        if let Some((name, _)) = line.split_once('=')
            && !name.contains(' ')
        {
            assert!(SETTINGS.iter().any(|setting| setting.name == name), "{name} is no setting");
        }
    }
    parse(&[], &[], Some(example)).unwrap();
}

#[test]
fn secrets_are_asked_for_with_hosts() {
    let arguments =
        ["cairn-node", "init-secrets", "--folder", "/certs", "--hosts", "n1, n2,", "--cluster", "c"];
    let matches = grammar().try_get_matches_from(arguments).unwrap();
    let given = Given { environment: &|_| None, dotenv: None, host_name: String::new() };
    let expected = InitSecrets {
        folder: "/certs".into(),
        cluster: "c".into(),
        hosts: vec!["n1".into(), "n2".into()],
        etcd_hosts: vec![],
    };
    assert_eq!(command(&matches, &given), Ok(Command::InitSecrets(expected)));
    assert!(grammar().try_get_matches_from(["cairn-node", "init-secrets"]).is_err());
    assert!(grammar().try_get_matches_from(["cairn-node", "--no-such-flag"]).is_err());
}
