//! What each store keeps to, and names that lead out of one.

use std::io::{ErrorKind, Read, Write};

use super::memory::FaultyStore;
use super::*;

/// Both kinds of stores. The local one is in a folder that is not there yet.
fn stores(dir: &Path) -> [StoreFolder; 2] {
    [StoreFolder::from(dir.join("run").as_path()), StoreFolder::new(Arc::new(FaultyStore::default()))]
}

fn text(folder: &StoreFolder, name: &str) -> String {
    String::from_utf8(folder.read(name, 1000).unwrap()).unwrap()
}

fn kind<T: Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

fn objects(names: &[&str]) -> Vec<StoreEntry> {
    names.iter().map(|name| StoreEntry::Object((*name).to_owned())).collect()
}

#[test]
fn an_object_is_put_whole_and_stays_as_it_was_opened() {
    let dir = tempfile::tempdir().unwrap();
    for all in stores(dir.path()) {
        let folder = all.below("deep/er");
        assert_eq!(kind(folder.open("a")), ErrorKind::NotFound);
        assert!(!folder.has("a").unwrap());
        assert_eq!(all.list().unwrap(), []);
        let mut half = folder.create("a").unwrap();
        half.write_all(b"half").unwrap();
        assert_eq!(folder.list().unwrap(), []);
        drop(half);
        assert!(!folder.has("a").unwrap());

        folder.put("a", b"one").unwrap();
        let (opened, stamp) = (folder.open("a").unwrap(), folder.stamp("a").unwrap());
        let mut writer = folder.create("a").unwrap();
        writer.write_all(b"the ").unwrap();
        writer.write_all(b"second").unwrap();
        let written = writer.commit().unwrap();
        assert_eq!((text(&folder, "a").as_str(), written.bytes), ("the second", 10));
        assert_eq!(
            (folder.digest("a").unwrap(), folder.digest("a").unwrap()),
            (written.digest.clone(), written.digest)
        );
        assert_ne!(folder.stamp("a").unwrap(), stamp);
        let mut before = [0; 3];
        opened.read_at(0, &mut before).unwrap();
        assert_eq!((before, opened.size()), (*b"one", 3));
        assert_eq!(kind(opened.read_at(1, &mut before)), ErrorKind::UnexpectedEof);
        assert_eq!(kind(folder.read("a", 9)), ErrorKind::FileTooLarge);
        let mut all = Vec::new();
        folder.reader("a").unwrap().read_to_end(&mut all).unwrap();
        assert_eq!(all, b"the second");
        let mapped = folder.open("a").unwrap().map().unwrap();
        assert_eq!((mapped.size(), mapped.range(4..7).unwrap().as_ref()), (10, b"sec".as_slice()));
        assert_eq!(kind(mapped.range(4..11)), ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_put_may_ask_that_its_key_is_free() {
    let dir = tempfile::tempdir().unwrap();
    for folder in stores(dir.path()) {
        let once = |bytes: &[u8]| {
            let mut upload = folder.store.create("a").unwrap();
            upload.write(bytes).unwrap();
            upload.commit(PutIf::Absent)
        };
        once(b"one").unwrap();
        assert_eq!(kind(once(b"one")), ErrorKind::AlreadyExists);
        let before = folder.stamp("a").unwrap();
        folder.put_once("a", b"one").unwrap();
        assert_eq!(folder.stamp("a").unwrap(), before, "the same is not put again");
        folder.put_once("a", b"other").unwrap();
        assert_eq!(text(&folder, "a"), "other");
        folder.copy("a", "b").unwrap();
        assert_eq!(
            (kind(folder.copy("a", "b")), text(&folder, "b").as_str()),
            (ErrorKind::AlreadyExists, "other")
        );
    }
}

#[test]
fn names_are_listed_moved_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    for all in stores(dir.path()) {
        let folder = all.below("f");
        for name in ["b", "a", "sub/c", "sub/deep/d"] {
            folder.put(name, name.as_bytes()).unwrap();
        }
        let sub = StoreEntry::Folder("sub".to_owned());
        assert_eq!(folder.list().unwrap(), [objects(&["a", "b"]), vec![sub.clone()]].concat());
        folder.set_aside("a", "sub/a").unwrap();
        assert_eq!(kind(folder.set_aside("a", "x")), ErrorKind::NotFound);
        assert_eq!(text(&folder, "sub/a"), "a");
        for _ in 0..2 {
            folder.delete("b").unwrap();
            assert_eq!(folder.list().unwrap(), std::slice::from_ref(&sub));
        }
        for _ in 0..2 {
            folder.below("sub").clear().unwrap();
            assert!(!folder.has("sub/deep/d").unwrap());
            assert_eq!(folder.list().unwrap(), []);
        }
    }
}

#[test]
fn a_log_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for folder in stores(dir.path()) {
        let mut log = folder.log("l").unwrap();
        assert_eq!(text(&folder, "l"), "");
        log.append(b"one\ntwo\n").unwrap();
        log.truncate(4).unwrap();
        let mut log = folder.log("l").unwrap();
        log.append(b"2\n").unwrap();
        log.sync().unwrap();
        assert_eq!(text(&folder, "l"), "one\n2\n");
    }
}

#[test]
fn no_key_leads_out_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "x").unwrap();
    let absolute = dir.path().join("secret").to_string_lossy().into_owned();
    for folder in stores(dir.path()) {
        folder.put("here/a", b"x").unwrap();
        for key in
            ["", ".", "..", "../secret", "here/../../secret", "here//a", "/", "a\0b", "here/", &absolute]
        {
            let wrong = [
                kind(folder.open(key)),
                kind(folder.stamp(key)),
                kind(folder.create(key)),
                kind(folder.delete(key)),
                kind(folder.set_aside("here/a", key)),
                kind(folder.log(key)),
                kind(folder.store.clear(key)),
            ];
            assert_eq!(wrong, [ErrorKind::InvalidInput; 7], "{key:?}");
        }
        assert_eq!(text(&folder, "here/a"), "x");
    }
    assert_eq!(std::fs::read(dir.path().join("secret")).unwrap(), b"x");
}

#[test]
fn a_link_in_place_of_an_object_is_refused_and_counts_as_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = StoreFolder::from(dir.path());
    folder.put("a", b"x").unwrap();
    std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    for name in ["link", "folder"] {
        assert_eq!(kind(folder.open(name)), ErrorKind::InvalidInput, "{name}");
        assert_eq!(kind(folder.stamp(name)), ErrorKind::InvalidInput, "{name}");
        assert!(folder.has(name).unwrap(), "{name}");
    }
}
