//! The vectors that `TREE.md` prints. They were computed by another program, written from that text.

use super::*;

const TREE_MD: &str = include_str!("../../TREE.md");

/// What the document has after a label at the beginning of a line, line breaks removed.
pub fn vector(label: &str) -> String {
    let start = format!("\n{label} ");
    let at = TREE_MD
        .find(&start)
        .unwrap_or_else(|| panic!("no vector {label}"));
    let mut lines = TREE_MD[at + start.len()..].lines();
    let mut text = lines.next().unwrap_or_default().trim().to_owned();
    for line in lines.take_while(|line| line.starts_with(' ')) {
        text.push_str(line.trim());
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn hashes() {
    for (label, key) in [
        ("hash-a", &b"a"[..]),
        ("hash-8", b"messages"),
        ("hash-17", b"messages/00000017"),
    ] {
        let hash = boundary::key_hash(key);
        let levels = [0, 1].map(|level| format!("{:08x}", boundary::at_level(hash, level)));
        assert_eq!(
            format!("{hash:016x} {} {}", levels[0], levels[1]),
            vector(label)
        );
    }
}

#[test]
fn the_empty_tree() {
    assert_eq!(ObjectId::of_node(&EMPTY_NODE), EMPTY_TREE);
    assert_eq!(EMPTY_TREE.to_string(), vector("empty"));
}

#[test]
fn a_leaf() {
    let mut changes = Changes::default();
    let id = ObjectId::of_blob(b"state");
    changes.put(b"a", Value::Inline(b"1")).unwrap();
    changes
        .put(b"message/1", Value::Blob { id, bytes: 100 })
        .unwrap();
    changes
        .put(b"message/20", Value::Chunks { id, bytes: 1 << 20 })
        .unwrap();
    changes.put(b"message/200", Value::Inline(b"")).unwrap();
    let mut writer = TreeWriter::default();
    let root = writer
        .apply(&MemoryNodes::default(), &EMPTY_TREE, &changes)
        .unwrap();
    let (id, bytes) = writer.new_nodes().next().unwrap();
    assert_eq!(id, root);
    assert_eq!(hex(bytes), vector("leaf"));
    assert_eq!(id.to_string(), vector("leaf-id"));
}

#[test]
fn a_tree_of_a_thousand_keys() {
    let keys = (0..1000).map(|no| format!("messages/{no:08}").into_bytes());
    let model: Model = keys.map(|key| (key.clone(), key)).collect();
    let mut forest = Forest::default();
    let root = forest.build(&model);
    assert_eq!(root.to_string(), vector("thousand"));
    let node = open(&forest.nodes, &root).unwrap();
    let mut key = node::KeyBuf::default();
    let first: Vec<_> = (0..node.len().min(6))
        .map(|index| {
            node.key_at(&node.place(index), &mut key);
            String::from_utf8_lossy(&key.as_slice()[9..]).into_owned()
        })
        .collect();
    assert_eq!(first.join(" "), vector("starts"));
    assert_eq!(format!("{} {}", node.level(), node.len()), vector("root"));
}
