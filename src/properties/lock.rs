//! Properties of a lock's record: it is read as it was written, and nothing else is taken for one.

use crate::lock::{Ends, Held, Record, Written, shown};
use jiff::Timestamp;
use std::time::Duration;

pub fn lock(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    in_redis(&text);
    in_a_file(&text);
}

fn in_redis(value: &str) {
    let held = Held::decode(value, Some(Duration::from_secs(30)));
    match &held.record {
        // Written by a client that knows nothing of records, and shown as it is.
        None => assert_eq!(held.holder, value),
        Some(record) => {
            let (legacy, _) = value.split_once("|gpuctl1|").expect("ours bear the mark");
            assert_eq!(held.holder, legacy);
            let again = Held::decode(&record.encode(&held.holder), Some(Duration::from_secs(30)));
            assert_eq!(held.ends, Ends::In(Duration::from_secs(30)));
            assert_eq!((&again.holder, &again.record), (&held.holder, &held.record));
        }
    }
    assert!(held.describe().starts_with(&held.holder));

    // Whatever name the holder has, the record is found, and Redis finds where to put the fence.
    let holder = shown(value);
    let ours = record().encode(&holder);
    assert!(ours.starts_with(&format!("{holder}|gpuctl1|{{\"fence\":0")));
    assert_eq!(ours.find("\"fence\":0"), Some(holder.len() + "|gpuctl1|{".len()));
    let held = Held::decode(&ours, None);
    assert_eq!((held.holder, held.record), (holder, Some(record())));
}

fn in_a_file(text: &str) {
    let Some(written) = Written::parse(text) else { return };
    let whole = written.text(7);
    let written = Written { seq: *b"0007", ..written };
    assert_eq!(Written::parse(&whole), Some(written.clone()));
    // What a longer record has left behind this one changes nothing.
    assert_eq!(Written::parse(&format!("{whole}{text}")), Some(written));
    // A record that is cut short is damaged, and a damaged record does not mean a free lock.
    for end in (0..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
        assert!(Written::parse(&whole[..end]).is_none(), "{}", &whole[..end]);
    }
}

fn record() -> Record {
    Record {
        fence: 0,
        token: "0123456789abcdef0123456789abcdef".to_owned(),
        host: "nora".to_owned(),
        boot: "8f6d0b0e-0000-4000-8000-000000000000".to_owned(),
        pid_ns: Some(4026531836),
        pid: Some(1234),
        pid_start: Some(56789),
        since: Timestamp::UNIX_EPOCH,
        user: "root".to_owned(),
        command: "run render.sh".to_owned(),
        services: vec!["comfyui".to_owned()],
        until_since_boot_ms: None,
        place: "8f6d0b0e-0000-4000-8000-000000000000:1a:2b3c".to_owned(),
        renewed: true,
    }
}
