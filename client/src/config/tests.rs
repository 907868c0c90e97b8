//! Reading, writing and using contexts.

use proptest::prelude::*;

use super::*;

fn sample() -> ConfigFile {
    let laptop = Context {
        name: "laptop".into(),
        endpoints: vec!["https://127.0.0.1:50051".into()],
        ca_file: Some("ca.crt".into()),
        token: Some("secret".into()),
        ..Context::default()
    };
    let kubernetes = Context {
        name: "kubernetes".into(),
        endpoints: vec!["n1".into(), "n2".into()],
        ca: Some("-----BEGIN CERTIFICATE-----\n".into()),
        certificate_file: Some("tls.crt".into()),
        key_file: Some("/run/tls.key".into()),
        server_name: Some("cairn".into()),
        ..Context::default()
    };
    ConfigFile { current: Some("laptop".into()), contexts: vec![laptop, kubernetes] }
}

#[test]
fn the_path_follows_the_environment() {
    let with = |pairs: &'static [(&str, &str)]| {
        path_from(move |name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
        })
    };
    assert_eq!(with(&[("CAIRN_CONFIG", "/c"), ("HOME", "/h")]).unwrap(), PathBuf::from("/c"));
    let xdg = with(&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")]).unwrap();
    assert_eq!(xdg, PathBuf::from("/x/cairn/config.yaml"));
    assert_eq!(with(&[("HOME", "/h")]).unwrap(), PathBuf::from("/h/.config/cairn/config.yaml"));
    assert!(matches!(with(&[]), Err(ConfigError::NoHome)));
}

#[test]
fn a_file_that_was_named_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("contexts.yaml");
    let read = |key: &'static str| {
        let value = if key == "HOME" { folder.path().to_owned() } else { path.clone() };
        read_from(move |name| (name == key).then(|| value.clone()))
    };
    let error = read("CAIRN_CONFIG").unwrap_err();
    assert!(matches!(error, ConfigError::NoSuchFile { .. }), "{error}");
    for part in ["CAIRN_CONFIG", "contexts.yaml"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(read("HOME").unwrap().1, ConfigFile::default(), "nobody named that one");
    sample().write(&path).unwrap();
    assert_eq!(read("CAIRN_CONFIG").unwrap(), (path.clone(), sample()));
}

#[test]
fn what_is_written_is_read_and_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new").join("config.yaml");
    assert_eq!(ConfigFile::read(&path).unwrap(), ConfigFile::default(), "no file: no contexts");
    sample().write(&path).unwrap();
    assert_eq!(ConfigFile::read(&path).unwrap(), sample());
    let mut changed = sample();
    changed.set(Context { name: "laptop".into(), endpoints: vec!["other".into()], ..Context::default() });
    changed.write(&path).unwrap();
    assert_eq!(ConfigFile::read(&path).unwrap(), changed);
    assert_eq!(changed.contexts.len(), 2);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn files_with_mistakes_are_refused_with_the_place() {
    for (text, part) in [
        ("contexts: [{name: a, endpoints: [], tokn: x}]", "tokn"),
        ("contexts: 7", "contexts"),
        ("contexts: [{endpoints: []}]", "name"),
        ("contexts: [{name: a, endpoints: []}, {name: a, endpoints: []}]", "two contexts"),
        ("contexts: [{name: '', endpoints: []}]", "empty name"),
        ("a: b: c", ""),
    ] {
        let why = ConfigFile::parse(text).expect_err(text);
        assert!(why.contains(part), "{text}: {why}");
    }
    assert_eq!(ConfigFile::parse("").unwrap(), ConfigFile::default());
}

#[test]
fn the_context_is_the_named_the_current_or_the_only_one() {
    let path = Path::new("c.yaml");
    let mut file = sample();
    let name =
        |file: &ConfigFile, wanted| file.context(wanted, path).unwrap().map(|context| context.name.clone());
    assert_eq!(name(&file, Some("kubernetes")).as_deref(), Some("kubernetes"));
    assert_eq!(name(&file, None).as_deref(), Some("laptop"));
    assert!(matches!(file.context(Some("x"), path), Err(ConfigError::NoSuchContext { .. })));
    file.current = None;
    assert_eq!(name(&file, None), None);
    file.contexts.truncate(1);
    assert_eq!(name(&file, None).as_deref(), Some("laptop"));
}

#[test]
fn paths_start_at_the_folder_of_the_file() {
    let folder = Path::new("/etc/cairn");
    let file = sample();
    let laptop = file.contexts[0].client_config(folder).unwrap();
    assert!(matches!(&laptop.ca, Pem::File(path) if path == Path::new("/etc/cairn/ca.crt")));
    assert!(matches!(&laptop.credentials, Credentials::Token(token) if token == "secret"));
    let kubernetes = file.contexts[1].client_config(folder).unwrap();
    assert_eq!(kubernetes.server_name.as_deref(), Some("cairn"));
    let Credentials::Certificate { certificate: Pem::File(certificate), key: Pem::File(key) } =
        kubernetes.credentials
    else {
        panic!("a certificate");
    };
    assert_eq!(certificate, Path::new("/etc/cairn/tls.crt"));
    assert_eq!(key, Path::new("/run/tls.key"));
}

#[test]
fn contradictions_are_refused() {
    let broken: [fn(&mut Context); 6] = [
        |context| context.ca = Some("x".into()),
        |context| context.ca_file = None,
        |context| context.token_file = Some("t".into()),
        |context| context.certificate_file = Some("c".into()),
        |context| context.endpoints.clear(),
        |context| {
            context.token = None;
            context.key_file = Some("k".into());
        },
    ];
    for change in broken {
        let mut context = sample().contexts.remove(0);
        change(&mut context);
        let error = context.client_config(Path::new("/")).expect_err("refused");
        assert!(!error.help().is_empty() && error.to_string().contains("laptop"), "{error}");
    }
}

#[test]
fn secrets_are_not_in_debug_output() {
    let shown = format!("{:?} {:?}", sample(), sample().contexts[0].client_config(Path::new("/")).unwrap());
    assert!(!shown.contains("secret"), "{shown}");
}

proptest! {
    #[test]
    fn any_text_survives_writing(name in "\\PC{1,12}", token in "\\PC{0,20}", endpoint in "\\PC{0,20}") {
        let context = Context { name, endpoints: vec![endpoint], token: Some(token), ..Context::default() };
        let file = ConfigFile { current: None, contexts: vec![context] };
        let text = serde_yaml::to_string(&file).unwrap();
        prop_assert_eq!(ConfigFile::parse(&text).unwrap(), file);
    }
}
