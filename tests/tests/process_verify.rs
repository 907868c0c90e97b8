//! `cairn-node verify`: the disk of a stopped node, read through.

use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    files::{content, make_volume, must_read, put},
    process::{Output, run},
    scratch::Scratch,
};

fn verify(cluster: &CairnCluster, folder: Option<&Path>) -> Output {
    let spec = cluster.spec(0).args(["verify"]);
    let spec = match folder {
        Some(folder) => spec.args(["--data-dir", folder.to_str().unwrap()]),
        None => spec,
    };
    run(spec, None, Duration::from_secs(60)).expect("cairn-node verify runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_chunk_of_a_stopped_node_is_read_and_damage_is_named() {
    let scratch = Scratch::new("verify").unwrap();
    let url = format!("embedded://{}/metadata", scratch.path().display());
    let mut cluster = CairnCluster::start(ClusterOptions::new(&["a"], url)).await;
    make_volume(&cluster.client(), 1).await;
    for number in 0..5u64 {
        put(&cluster.client(), &format!("f{number}"), content(number, 5 << 20)).await;
    }
    let busy = verify(&cluster, None);
    assert!(!busy.success && busy.stderr.contains("in use by another process"), "{}", busy.stderr);
    cluster.stop(0);

    let sound = verify(&cluster, None);
    assert_eq!(sound.code, Some(0), "{}{}", sound.stdout, sound.stderr);
    assert!(sound.stdout.contains("10 chunks with 26214400 bytes"), "{}", sound.stdout);
    assert!(sound.stdout.contains("all of it is whole"), "{}", sound.stdout);

    // One byte of each of the files beside the segments.
    let folder = cluster.data_folder(0).to_owned();
    let hint = folder.join("hints").join("no-hint");
    fs::write(&hint, "what is left of a hint").unwrap();
    for name in ["identity", "identity.copy", "volumes", "hints/no-hint"] {
        let path = &folder.join(name);
        let whole = fs::read(path).unwrap();
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 4;
        fs::write(path, bytes).unwrap();
        let damaged = verify(&cluster, None);
        let named = damaged.stdout.lines().any(|line| line.contains("damaged") && line.contains(name));
        assert!(named, "{name}: {}", damaged.stdout);
        assert_eq!(damaged.success, *path == hint, "{name}: {}", damaged.stdout);
        assert!(damaged.stdout.contains("10 chunks with 26214400 bytes"), "{}", damaged.stdout);
        fs::write(path, whole).unwrap();
    }
    fs::remove_file(hint).unwrap();

    // What says which segments were given back; nothing was yet.
    let removed = folder.join("removed");
    assert!(!removed.exists());
    fs::write(&removed, "what is left of it").unwrap();
    let damaged = verify(&cluster, None);
    assert!(!damaged.success && damaged.stdout.contains("damaged: removed: "), "{}", damaged.stdout);
    fs::remove_file(&removed).unwrap();

    // All that was stored; looking does not make it look as if nothing had been.
    let (stored, elsewhere) = (folder.join("segments"), folder.join("elsewhere"));
    fs::rename(&stored, &elsewhere).unwrap();
    for _ in 0..2 {
        let missing = verify(&cluster, None);
        assert!(!missing.success && missing.stderr.contains("no folder named segments"), "{missing:?}");
    }
    fs::rename(&elsewhere, &stored).unwrap();
    // A folder in the place of a file is in the next start's way.
    let (copy, kept) = (folder.join("identity.copy"), folder.join("kept"));
    fs::rename(&copy, &kept).unwrap();
    fs::create_dir(&copy).unwrap();
    let damaged = verify(&cluster, None);
    assert!(
        !damaged.success && damaged.stdout.contains("identity.copy is a folder: move it away"),
        "{damaged:?}"
    );
    fs::remove_dir(&copy).unwrap();
    fs::rename(&kept, &copy).unwrap();

    // One bit of the content of a chunk.
    let segments = fs::read_dir(cluster.data_folder(0).join("segments")).unwrap();
    let paths = segments.map(|entry| entry.unwrap().path());
    let largest = paths.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&largest).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 2_000_000).unwrap();
    let damaged = verify(&cluster, None);
    assert_eq!(damaged.code, Some(1), "{}", damaged.stdout);
    assert!(damaged.stdout.starts_with("damaged: chunk "), "{}", damaged.stdout);
    assert!(damaged.stdout.contains("10 chunks with 22020096 bytes"), "{}", damaged.stdout);
    assert!(damaged.stdout.contains("damaged chunks: 1, damaged ranges besides: 0"), "{}", damaged.stdout);
    file.write_all_at(&byte, 2_000_000).unwrap();

    // A folder that is no node's stays as it is.
    let empty = Scratch::new("verify").unwrap();
    let nothing = verify(&cluster, Some(empty.path()));
    assert!(!nothing.success && nothing.stderr.contains("holds no node's data"), "{}", nothing.stderr);
    let left: Vec<_> = fs::read_dir(empty.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().contains("lock")), "{left:?}");

    // Verifying changes nothing for the node.
    cluster.restart(0);
    cluster.wait_settled().await;
    must_read(&cluster.client(), "f3", &content(3, 5 << 20)).await;

    // One segment, of which a later one knows, and then all of them.
    put(&cluster.client(), "more", content(9, 1_000)).await;
    cluster.stop(0);
    let names = fs::read_dir(&stored).unwrap().map(|entry| entry.unwrap().path());
    let first = names.min().unwrap();
    fs::rename(&first, &elsewhere).unwrap();
    let missing = verify(&cluster, None);
    let told = format!("missing: segments/{}, which had ", first.file_name().unwrap().to_str().unwrap());
    assert!(!missing.success && missing.stdout.contains(&told), "{}", missing.stdout);
    for entry in fs::read_dir(&stored).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let nothing = verify(&cluster, None).stdout;
    assert!(
        nothing.contains("no segment is there: nothing was ever stored on this disk, or it is gone"),
        "{nothing}"
    );
}
